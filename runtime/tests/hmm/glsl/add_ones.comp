// Adds one to the first number of each page, from every group.
#version 460
#include "sterna.glsl"
layout(local_size_x = 16) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, words) };

const uint PAGE = 1024u;

void main() {
    uint group;
    if (!this_group(group)) return;
    for (uint i = lane() * PAGE; i < words_len; i += LANES * PAGE) atomicAdd(words.at[i], 1u);
}
