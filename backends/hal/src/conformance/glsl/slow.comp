// Takes its time: at least a tenth of so many milliseconds on any device there is. Then fills.
#version 460
#include "sterna.glsl"
layout(local_size_x = 1) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, y) uint millis; };

#define STEP x = (x * 1664525u + 1013904223u) ^ (x >> 7);
#define STEPS8(s) s s s s s s s s

void main() {
    uint group;
    if (!this_group(group)) return;
    // Each step needs the one before, so that it cannot be shortened; the outcome is looked at, so that it cannot be left out.
    uint x = millis;
    // Many steps a round: there are drivers that end a shader after 65535 rounds of its loops.
    for (uint i = 0u; i < millis * 200u; i++) {
        STEPS8(STEPS8(STEPS8(STEP)))
    }
    uint value = x == 0xFFFFFFFFu && y_len == 0u ? x : millis;
    for (uint i = part_start(group, y_chunk, y_len); i < part_end(group, y_chunk, y_len); i++) y.at[i] = value;
}
