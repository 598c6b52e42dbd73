// target: vulkan1.1
// y = a x + y, as somebody writes it who binds two buffers. Four elements an invocation, so that 16 Mi elements need no more groups
// than every device has.
#version 450

layout(local_size_x = 256) in;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) buffer Y { float y[]; };
layout(push_constant) uniform Parameters { float a; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    uint step = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    for (; i < n; i += step) {
        y[i] = a * x[i] + y[i];
    }
}
