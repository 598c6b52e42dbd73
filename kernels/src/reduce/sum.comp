// A partial sum of x for each group.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(F32, x) BUFFER(F32, sums) };

void main() {
    uint group;
    if (!this_group(group)) return;
    if (group >= sums_len) {
        complain(TOO_FEW_SUMS, sums_len, group)
        return;
    }
    Sum s = Sum(0.0, 0.0);
    uint end = part_end(group, x_chunk, x_len);
    for (uint i = part_start(group, x_chunk, x_len) + lane(); i < end; i += LANES) s = plus(s, x.at[i]);
    s = over_group(s);
    if (lane() == 0u) sums.at[group] = rounded(s);
}
