// One level of a breadth-first search: nodes look for a predecessor on the last level.
#version 460
#include "stock.glsl"
#include "rows.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args {
    LAUNCH BUFFER(U32, row_ptr) BUFFER(U32, source) BUFFER(U32, level) BUFFER(U32, next) BUFFER(U32, found) uint depth;
};

const uint UNREACHED = 0xFFFFFFFFu;
shared uint reached;

void main() {
    uint group;
    if (!this_group(group)) return;
    uint first = part_start(group, next_chunk, next_len), count = part_len(group, next_chunk, next_len);
    rows_of_group(first, count, next_chunk, row_ptr_len)
    same_len(next_len, level_len)
    if (group >= found_len) {
        complain(TOO_FEW_SUMS, found_len, group)
        return;
    }
    if (lane() == 0u) reached = 0u;
    barrier();
    for (uint row = first + lane(); row < first + count; row += LANES) {
        uint start = row_ptr.at[row], end = row_ptr.at[row + 1u], now = level.at[row];
        if (start > end || end > source_len) {
            complain(NO_ROW, row, end)
            end = start;
        }
        for (uint i = start; now == UNREACHED && i < end; i++) {
            uint u = source.at[i];
            if (u >= level_len) {
                complain(NO_COLUMN, u, level_len)
                break;
            }
            if (level.at[u] == depth) {
                now = depth + 1u;
                atomicAdd(reached, 1u);
            }
        }
        next.at[row] = now;
    }
    barrier();
    if (lane() == 0u) found.at[group] = reached;
}
