// A loop of many rounds whose outcome depends on each: whether a driver runs them all.
#version 460
#include "sterna.glsl"
layout(local_size_x = 1) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, y) };

void main() {
    uint group;
    if (!this_group(group) || x_len == 0u || y_len == 0u) return;
    uint v = x.at[0];
    for (uint i = 0u; i < 70000u; i++) v = (v * 1664525u + 1013904223u) ^ (v >> 7);
    y.at[0] = v;
}
