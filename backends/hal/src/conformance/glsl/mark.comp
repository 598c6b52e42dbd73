// Each group marks its part with the number of groups there are.
#version 460
#include "sterna.glsl"
layout(local_size_x = 4) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < part_end(group, y_chunk, y_len); i += LANES)
        y.at[i] = 1u + grid_count();
}
