// Three planes to one: how bright a pixel looks.
#version 460
#include "sterna.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(F32, r) BUFFER(F32, g) BUFFER(F32, b) BUFFER(F32, light) };

void main() {
    uint group;
    if (!this_group(group)) return;
    uint end = min(part_end(group, light_chunk, light_len), min(r_len, min(g_len, b_len)));
    for (uint i = part_start(group, light_chunk, light_len) + lane(); i < end; i += LANES)
        light.at[i] = 0.299 * r.at[i] + 0.587 * g.at[i] + 0.114 * b.at[i];
}
