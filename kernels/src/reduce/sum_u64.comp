// A partial sum of x for each group, modulo 2⁶⁴, in pairs of words.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U64, x) BUFFER(U64, sums) };

shared uvec2 part[256];

uvec2 plus(uvec2 a, uvec2 b) {
    uint carry;
    uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}

void main() {
    uint group;
    if (!this_group(group)) return;
    if (group >= sums_len) {
        complain(TOO_FEW_SUMS, sums_len, group)
        return;
    }
    uvec2 s = uvec2(0u);
    uint end = part_end(group, x_chunk, x_len);
    for (uint i = part_start(group, x_chunk, x_len) + lane(); i < end; i += LANES) s = plus(s, x.at[i]);
    for (uint half_way = 128u; half_way > 0u; half_way >>= 1) {
        part[lane()] = s;
        barrier();
        if (lane() < half_way) s = plus(s, part[lane() + half_way]);
        barrier();
    }
    if (lane() == 0u) sums.at[group] = s;
}
