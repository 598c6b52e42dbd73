// Binds an image.
#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer Y { float y[]; };
layout(set = 0, binding = 1, r32f) readonly uniform image2D picture;

void main() { y[gl_GlobalInvocationID.x] = imageLoad(picture, ivec2(0)).x; }
