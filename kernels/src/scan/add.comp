// Adds to each element the sums of the chunks before its own.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, sums) BUFFER(U32, y) };

shared uint part[256];

void main() {
    uint group;
    if (!this_group(group)) return;
    if (group > sums_len) {
        complain(TOO_FEW_SUMS, sums_len, group)
        return;
    }
    uint before = 0u;
    for (uint i = lane(); i < group; i += LANES) before += sums.at[i];
    part[lane()] = before;
    barrier();
    for (uint half_way = 128u; half_way > 0u; half_way >>= 1) {
        if (lane() < half_way) part[lane()] += part[lane() + half_way];
        barrier();
    }
    before = part[0];
    uint end = part_end(group, y_chunk, y_len);
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < end; i += LANES) y.at[i] += before;
}
