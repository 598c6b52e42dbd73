// Does nothing, with the arguments of a kernel that has one buffer.
#version 460
#include "sterna.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args { LAUNCH BUFFER(U32, y) };

void main() {
    uint group;
    if (!this_group(group)) return;
    // Never true, and the compiler cannot know: the arguments are used.
    if (y_len == 0xFFFFFFFFu) y.at[group] = 0u;
}
