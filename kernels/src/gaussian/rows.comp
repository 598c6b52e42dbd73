// Gaussian blur along rows.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Rest {
    BUFFER_AT(src) BUFFER_AT(dst) uint width; uint radius; float weight[17];
};
layout(push_constant) uniform Args { LAUNCH Rest rest; };

void main() {
    uint group;
    if (!this_group(group)) return;
    F32 src = F32(rest.src_at), dst = F32(rest.dst_at);
    uint width = rest.width;
    same_len(part_len(group, rest.src_chunk, rest.src_len), part_len(group, rest.dst_chunk, rest.dst_len))
    if (rest.src_len % width != 0u) {
        complain(NO_PLANE, rest.src_len, width)
        return;
    }
    uint end = part_end(group, rest.dst_chunk, rest.dst_len);
    for (uint i = part_start(group, rest.dst_chunk, rest.dst_len) + lane(); i < end; i += LANES) {
        float sum = rest.weight[0] * src.at[i];
        // Columns beyond the border count as the border's.
        uint row = i - i % width, column = i % width;
        for (uint d = 1u; d <= rest.radius; d++) {
            float a = src.at[row + (column > d ? column - d : 0u)], b = src.at[row + min(column + d, width - 1u)];
            sum += rest.weight[d] * (a + b);
        }
        dst.at[i] = sum;
    }
}
