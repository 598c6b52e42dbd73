// How often each count comes. Groups add up in their own memory first, as far as that reaches.
#version 460
#include "sterna.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, counts) BUFFER(U32, histogram) };

const uint OWN = 1024u;
shared uint own[OWN];

void main() {
    uint group;
    if (!this_group(group)) return;
    for (uint i = lane(); i < OWN; i += LANES) own[i] = 0u;
    barrier();
    uint end = part_end(group, counts_chunk, counts_len);
    for (uint i = part_start(group, counts_chunk, counts_len) + lane(); i < end; i += LANES) {
        uint n = counts.at[i];
        if (n >= histogram_len) complain(1, n, histogram_len)
        else if (n < OWN) atomicAdd(own[n], 1u);
        else atomicAdd(histogram.at[n], 1u);
    }
    barrier();
    for (uint i = lane(); i < min(OWN, histogram_len); i += LANES)
        if (own[i] > 0u) atomicAdd(histogram.at[i], own[i]);
}
