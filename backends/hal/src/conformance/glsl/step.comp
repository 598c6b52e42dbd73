// y = 3·y + add
#version 460
#include "sterna.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, y) uint add; };

void main() {
    uint group;
    if (!this_group(group)) return;
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < part_end(group, y_chunk, y_len); i += LANES)
        y.at[i] = y.at[i] * 3u + add;
}
