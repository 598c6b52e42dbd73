// Counts how often each group runs.
#version 460
#include "sterna.glsl"
layout(local_size_x = 1) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, counts) };

void main() {
    uint group;
    if (!this_group(group)) return;
    if (group < counts_len) atomicAdd(counts.at[group], 1u);
}
