// Reads far behind the end of x, which the device has to notice.
#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) readonly buffer X { uint x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { uint y[]; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < y.length()) y[i] = 7u + x[i + 16384u];
}
