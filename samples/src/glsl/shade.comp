// A colour for each count.
#version 460
#include "sterna.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, counts) BUFFER(U32, palette) BUFFER(U32, pixels) };

void main() {
    uint group;
    if (!this_group(group)) return;
    uint end = min(part_end(group, pixels_chunk, pixels_len), counts_len);
    for (uint i = part_start(group, pixels_chunk, pixels_len) + lane(); i < end; i += LANES) {
        uint n = counts.at[i];
        if (n >= palette_len) complain(1, n, palette_len)
        else pixels.at[i] = palette.at[n];
    }
}
