// y = value, for elements that are not made of whole words.
#version 460
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#include "stock.glsl"
layout(local_size_x = 256) in;
// Bytes an element; at most 64.
layout(constant_id = 0) const uint BYTES = 1;
layout(buffer_reference, std430, buffer_reference_align = 1) buffer U8 { uint8_t at[]; };
layout(push_constant) uniform Args { LAUNCH BUFFER(U8, y) uint value[16]; };

void main() {
    uint group;
    if (!this_group(group)) return;
    if (y_len > 0x7FFFFFFFu / BYTES) {
        complain(TOO_LONG, y_len, BYTES)
        return;
    }
    uint end = part_end(group, y_chunk, y_len) * BYTES;
    for (uint i = part_start(group, y_chunk, y_len) * BYTES + lane(); i < end; i += LANES) {
        uint b = i % BYTES;
        y.at[i] = uint8_t((value[b >> 2] >> (8u * (b & 3u))) & 0xFFu);
    }
}
