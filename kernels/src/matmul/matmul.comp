// C = A·B: 16 rows a group, in tiles of 16 by 16.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(F32, a) BUFFER(F32, b) BUFFER(F32, c) uint inner; uint columns; };

const uint SIDE = 16u;
shared float tile_a[SIDE][SIDE];
// One more, so that lanes of a column are in different banks.
shared float tile_b[SIDE][SIDE + 1u];

void main() {
    uint group;
    if (!this_group(group)) return;
    uint of_a = part_len(group, a_chunk, a_len), of_c = part_len(group, c_chunk, c_len);
    if (of_a % inner != 0u || of_c % columns != 0u) {
        complain(NO_PLANE, of_a % inner != 0u ? a_len : c_len, of_a % inner != 0u ? inner : columns)
        return;
    }
    same_len(of_a / inner, of_c / columns)
    if (b_len / columns != inner || b_len % columns != 0u) {
        complain(NO_PLANE, b_len, columns)
        return;
    }
    uint rows = of_c / columns, start_a = part_start(group, a_chunk, a_len), start_c = part_start(group, c_chunk, c_len);
    uint row = lane() / SIDE, column = lane() % SIDE;
    for (uint left = 0u; left < columns; left += SIDE) {
        float sum = 0.0;
        for (uint along = 0u; along < inner; along += SIDE) {
            bool in_a = row < rows && along + column < inner, in_b = along + row < inner && left + column < columns;
            tile_a[row][column] = in_a ? a.at[start_a + row * inner + along + column] : 0.0;
            tile_b[row][column] = in_b ? b.at[(along + row) * columns + left + column] : 0.0;
            barrier();
            for (uint i = 0u; i < SIDE; i++) sum += tile_a[row][i] * tile_b[i][column];
            barrier();
        }
        if (row < rows && left + column < columns) c.at[start_c + row * columns + left + column] = sum;
    }
}
