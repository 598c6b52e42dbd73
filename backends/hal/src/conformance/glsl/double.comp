// y = 2·x + all[0]
#version 460
#include "sterna.glsl"
layout(local_size_x = 16) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, all) BUFFER(U32, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < min(part_end(group, y_chunk, y_len), x_len); i += LANES)
        y.at[i] = x.at[i] * 2u + all.at[0];
}
