// What each node hands to each of its successors, and what nodes without any hold.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args {
    LAUNCH BUFFER(F32, rank) BUFFER(U32, degree) BUFFER(F32, contribution) BUFFER(F32, dangling)
};

void main() {
    uint group;
    if (!this_group(group)) return;
    uint count = part_len(group, rank_chunk, rank_len);
    same_len(count, part_len(group, degree_chunk, degree_len))
    same_len(count, part_len(group, contribution_chunk, contribution_len))
    if (group >= dangling_len) {
        complain(TOO_FEW_SUMS, dangling_len, group)
        return;
    }
    Sum s = Sum(0.0, 0.0);
    uint first = part_start(group, rank_chunk, rank_len);
    for (uint i = first + lane(); i < first + count; i += LANES) {
        float r = rank.at[i];
        uint d = degree.at[i];
        contribution.at[i] = d == 0u ? 0.0 : r / float(d);
        if (d == 0u) s = plus(s, r);
    }
    s = over_group(s);
    if (lane() == 0u) dangling.at[group] = rounded(s);
}
