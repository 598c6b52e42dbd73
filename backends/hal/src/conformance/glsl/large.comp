// A plain value of 128 bytes, which comes in a block of its own.
#version 460
#include "sterna.glsl"
layout(local_size_x = 16) in;
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Rest { BUFFER(U64, y) uvec2 value[16]; };
layout(push_constant) uniform Args { LAUNCH Rest rest; };

void main() {
    uint group;
    if (!this_group(group)) return;
    if (group == 0u && lane() < rest.y_len) rest.y.at[lane()] = rest.value[lane()];
}
