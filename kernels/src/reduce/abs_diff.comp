// A partial sum of |x − y| for each group.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(F32, x) BUFFER(F32, y) BUFFER(F32, sums) };

void main() {
    uint group;
    if (!this_group(group)) return;
    if (group >= sums_len) {
        complain(TOO_FEW_SUMS, sums_len, group)
        return;
    }
    same_len(part_len(group, x_chunk, x_len), part_len(group, y_chunk, y_len))
    Sum s = Sum(0.0, 0.0);
    uint end = part_end(group, x_chunk, x_len);
    for (uint i = part_start(group, x_chunk, x_len) + lane(); i < end; i += LANES) s = plus(s, abs(x.at[i] - y.at[i]));
    s = over_group(s);
    if (lane() == 0u) sums.at[group] = rounded(s);
}
