// y = x, for elements of whole words.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
// Words an element; at most 16.
layout(constant_id = 0) const uint WORDS = 1;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, x) BUFFER(U32, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    same_len(part_len(group, x_chunk, x_len), part_len(group, y_chunk, y_len))
    if (y_len > 0x7FFFFFFFu / WORDS) {
        complain(TOO_LONG, y_len, 4u * WORDS)
        return;
    }
    uint end = part_end(group, y_chunk, y_len) * WORDS;
    for (uint i = part_start(group, y_chunk, y_len) * WORDS + lane(); i < end; i += LANES) y.at[i] = x.at[i];
}
