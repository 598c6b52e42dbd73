// Each node's next rank.
#version 460
#include "stock.glsl"
#include "rows.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args {
    LAUNCH BUFFER(U32, row_ptr) BUFFER(U32, source) BUFFER(F32, contribution) BUFFER(F32, dangling) BUFFER(F32, next)
    float damping;
};

shared float everywhere;

void main() {
    uint group;
    if (!this_group(group)) return;
    uint first = part_start(group, next_chunk, next_len), count = part_len(group, next_chunk, next_len);
    rows_of_group(first, count, next_chunk, row_ptr_len)
    same_len(contribution_len + 1u, row_ptr_len)
    // Every group adds these up anew: one number a group of the first half, next to nothing beside the edges.
    Sum held = Sum(0.0, 0.0);
    for (uint i = lane(); i < dangling_len; i += LANES) held = plus(held, dangling.at[i]);
    held = over_group(held);
    if (lane() == 0u) everywhere = (1.0 - damping + damping * rounded(held)) / float(contribution_len);
    barrier();
    for (uint row = first + lane(); row < first + count; row += LANES) {
        uint start = row_ptr.at[row], end = row_ptr.at[row + 1u];
        if (start > end || end > source_len) {
            complain(NO_ROW, row, end)
            return;
        }
        Sum s = Sum(0.0, 0.0);
        for (uint i = start; i < end; i++) {
            uint u = source.at[i];
            if (u >= contribution_len) {
                complain(NO_COLUMN, u, contribution_len)
                return;
            }
            s = plus(s, contribution.at[u]);
        }
        next.at[row] = everywhere + damping * rounded(s);
    }
}
