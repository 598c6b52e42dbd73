// Counts, for each group of a grid in three directions, how often it ran.
#version 450
layout(local_size_x = 1) in;
layout(set = 0, binding = 0) buffer Y { uint y[]; };
layout(push_constant) uniform Args { uint width; uint height; };

void main() { y[gl_WorkGroupID.x + width * (gl_WorkGroupID.y + height * gl_WorkGroupID.z)] += 1u; }
