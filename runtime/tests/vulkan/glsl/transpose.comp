// A tile of 8 × 8 elements a workgroup, as programs with grids of two dimensions have it.
#version 450
layout(local_size_x = 8, local_size_y = 8) in;
layout(set = 0, binding = 0) readonly buffer From { float from[]; };
layout(set = 0, binding = 1) writeonly buffer To { float to[]; };
layout(push_constant) uniform Args { uint width; uint height; };

void main() {
    uvec2 at = gl_GlobalInvocationID.xy;
    if (at.x < width && at.y < height) to[at.x * height + at.y] = from[at.y * width + at.x];
}
