// y[i] = x[index[i]], for elements of whole words.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
// Words an element; at most 16.
layout(constant_id = 0) const uint WORDS = 1;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, index) BUFFER(U32, x) BUFFER(U32, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    same_len(part_len(group, index_chunk, index_len), part_len(group, y_chunk, y_len))
    if (max(x_len, y_len) > 0x7FFFFFFFu / WORDS) {
        complain(TOO_LONG, max(x_len, y_len), 4u * WORDS)
        return;
    }
    uint end = part_end(group, y_chunk, y_len);
    for (uint i = part_start(group, y_chunk, y_len) + lane(); i < end; i += LANES) {
        uint from = index.at[i];
        if (from >= x_len) {
            complain(NO_ELEMENT, from, x_len)
            return;
        }
        for (uint w = 0u; w < WORDS; w++) y.at[i * WORDS + w] = x.at[from * WORDS + w];
    }
}
