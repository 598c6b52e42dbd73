// Running sums within each chunk, and the sum of each chunk.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, y) BUFFER(U32, sums) };

shared uint part[256];

void main() {
    uint group;
    if (!this_group(group)) return;
    uint count = part_len(group, x_chunk, x_len);
    same_len(count, part_len(group, y_chunk, y_len))
    if (group >= sums_len) {
        complain(TOO_FEW_SUMS, sums_len, group)
        return;
    }
    uint first = part_start(group, x_chunk, x_len), before = 0u;
    // A tile of one element a lane at a time: W. D. Hillis and G. L. Steele, Data Parallel Algorithms, 1986.
    for (uint tile = 0u; tile < count; tile += LANES) {
        uint i = tile + lane();
        uint sum = i < count ? x.at[first + i] : 0u;
        for (uint reach = 1u; reach < LANES; reach <<= 1) {
            part[lane()] = sum;
            barrier();
            if (lane() >= reach) sum += part[lane() - reach];
            barrier();
        }
        if (i < count) y.at[first + i] = before + sum;
        part[lane()] = sum;
        barrier();
        before += part[LANES - 1u];
        barrier();
    }
    if (lane() == 0u) sums.at[group] = before;
}
