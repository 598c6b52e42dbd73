// Three 16-bit numbers, passed as one and a half words.
#version 460
#include "sterna.glsl"
layout(local_size_x = 1) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, y) uint low; uint high; };

void main() {
    uint group;
    if (!this_group(group) || group != 0u || y_len < 3u) return;
    y.at[0] = low & 0xFFFFu;
    y.at[1] = low >> 16;
    y.at[2] = high & 0xFFFFu;
}
