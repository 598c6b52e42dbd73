// One step of heat flow: each inner cell goes towards the mean of its neighbours, the border stays.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(F32, old) BUFFER(F32, new) uint width; float k; };

void main() {
    uint group;
    if (!this_group(group)) return;
    same_len(part_len(group, old_chunk, old_len), part_len(group, new_chunk, new_len))
    if (old_len % width != 0u) {
        complain(NO_PLANE, old_len, width)
        return;
    }
    uint last = old_len / width - 1u;
    uint end = part_end(group, new_chunk, new_len);
    for (uint i = part_start(group, new_chunk, new_len) + lane(); i < end; i += LANES) {
        uint row = i / width, column = i % width;
        float v = old.at[i];
        if (row > 0u && row < last && column > 0u && column < width - 1u)
            v += k * (old.at[i - width] + old.at[i + width] + old.at[i - 1u] + old.at[i + 1u] - 4.0 * v);
        new.at[i] = v;
    }
}
