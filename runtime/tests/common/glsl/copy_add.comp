// y = x + a
#version 460
#include "sterna.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, y) uint a; };

void main() {
    uint group;
    if (!this_group(group)) return;
    uint end = min(part_end(group, y_chunk, y_len), x_len);
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < end; i += LANES) y.at[i] = x.at[i] + a;
}
