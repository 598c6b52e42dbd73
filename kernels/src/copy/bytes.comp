// y = x, for elements that are not made of whole words.
#version 460
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#include "stock.glsl"
layout(local_size_x = 256) in;
// Bytes an element; at most 64.
layout(constant_id = 0) const uint BYTES = 1;
layout(buffer_reference, std430, buffer_reference_align = 1) buffer U8 { uint8_t at[]; };
layout(push_constant) uniform Args { LAUNCH BUFFER(U8, x) BUFFER(U8, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    same_len(part_len(group, x_chunk, x_len), part_len(group, y_chunk, y_len))
    if (y_len > 0x7FFFFFFFu / BYTES) {
        complain(TOO_LONG, y_len, BYTES)
        return;
    }
    uint end = part_end(group, y_chunk, y_len) * BYTES;
    for (uint i = part_start(group, y_chunk, y_len) * BYTES + lane(); i < end; i += LANES) y.at[i] = x.at[i];
}
