// y += 1, in 64 bits
#version 460
#include "sterna.glsl"
layout(local_size_x = 32) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U64, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    uint end = part_end(group, y_chunk, y_len);
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < end; i += LANES) {
        uvec2 v = y.at[i];
        uint carry;
        v.x = uaddCarry(v.x, 1u, carry);
        v.y += carry;
        y.at[i] = v;
    }
}
