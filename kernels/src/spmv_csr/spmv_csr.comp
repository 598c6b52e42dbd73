// y = A·x, sparse rows
#version 460
#include "stock.glsl"
#include "rows.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args {
    LAUNCH BUFFER(U32, row_ptr) BUFFER(U32, col) BUFFER(F32, val) BUFFER(F32, x) BUFFER(F32, y)
};

void main() {
    uint group;
    if (!this_group(group)) return;
    uint first = part_start(group, y_chunk, y_len), count = part_len(group, y_chunk, y_len);
    rows_of_group(first, count, y_chunk, row_ptr_len)
    uint entries = min(col_len, val_len);
    for (uint row = first + lane(); row < first + count; row += LANES) {
        uint start = row_ptr.at[row], end = row_ptr.at[row + 1u];
        if (start > end || end > entries) {
            complain(NO_ROW, row, end)
            return;
        }
        Sum s = Sum(0.0, 0.0);
        for (uint i = start; i < end; i++) {
            uint c = col.at[i];
            if (c >= x_len) {
                complain(NO_COLUMN, c, x_len)
                return;
            }
            precise float p = val.at[i] * x.at[c];
            precise float lost = fma(val.at[i], x.at[c], -p);
            s = plus(s, Sum(p, lost));
        }
        y.at[row] = rounded(s);
    }
}
