// y[0] = Σ x, in 64 bits as two words
#version 460
#include "sterna.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, y) };

shared uvec2 sums[64];

uvec2 plus(uvec2 a, uvec2 b) {
    uint carry;
    uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}

void main() {
    uint group;
    if (!this_group(group)) return;
    uvec2 sum = uvec2(0u);
    for (uint i = lane(); i < x_len; i += LANES) sum = plus(sum, uvec2(x.at[i], 0u));
    sums[lane()] = sum;
    barrier();
    if (lane() != 0u || y_len == 0u) return;
    for (uint i = 1u; i < LANES; i++) sum = plus(sum, sums[i]);
    y.at[0] = sum.x;
    y.at[1] = sum.y;
}
