// target: vulkan1.0
// y = 2·x with buffers as the first version of Vulkan had them, in sets of their own, with a gap between them.
#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 1) buffer X { float x[]; };
layout(set = 2, binding = 0) buffer Y { float y[]; };

float twice(float v) { return v + v; }

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < x.length() && i < y.length()) y[i] = twice(x[i]);
}
