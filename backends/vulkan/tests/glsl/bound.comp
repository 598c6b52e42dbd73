// y += a·K·x, as a program with descriptors has it: two bindings, push constants, two specialisation constants.
#version 450
layout(local_size_x_id = 3) in;
layout(constant_id = 7) const float K = 1.0;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };
layout(push_constant) uniform Args { uint n; float a; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < n) y[i] += a * K * x[i];
}
