// y += a·x
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(F32, x) BUFFER(F32, y) float a; };

void main() {
    uint group;
    if (!this_group(group)) return;
    same_len(part_len(group, x_chunk, x_len), part_len(group, y_chunk, y_len))
    uint end = part_end(group, y_chunk, y_len);
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < end; i += LANES) y.at[i] += a * x.at[i];
}
