// A plain value of 8 KiB beside buffers by address: it comes in a buffer of its own.
#version 460
#include "sterna.glsl"
layout(local_size_x = 64) in;
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Rest { BUFFER_AT(y) uint table[2048]; };
layout(push_constant) uniform Args { LAUNCH Rest rest; };

void main() {
    uint group;
    if (!this_group(group)) return;
    uint end = part_end(group, rest.y_chunk, rest.y_len);
    for (uint i = part_start(group, rest.y_chunk, rest.y_len) + lane(); i < end; i += LANES)
        U32(rest.y_at).at[i] = rest.table[i % 2048u];
}
