// How often each value occurs.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, counts) };

const uint OWN = 1024u;
shared uint own[OWN];

void main() {
    uint group;
    if (!this_group(group)) return;
    bool few = counts_len <= OWN;
    for (uint i = lane(); i < OWN; i += LANES) own[i] = 0u;
    barrier();
    uint end = part_end(group, x_chunk, x_len);
    for (uint i = part_start(group, x_chunk, x_len) + lane(); i < end; i += LANES) {
        uint v = x.at[i];
        if (v >= counts_len) complain(NO_BIN, v, counts_len)
        else if (few) atomicAdd(own[v], 1u);
        else atomicAdd(counts.at[v], 1u);
    }
    barrier();
    if (!few) return;
    for (uint i = lane(); i < counts_len; i += LANES)
        if (own[i] > 0u) atomicAdd(counts.at[i], own[i]);
}
