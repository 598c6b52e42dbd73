// Each invocation writes the number of its workgroup and how many there are.
#version 450
layout(local_size_x = 4) in;
layout(set = 0, binding = 0) writeonly buffer Y { uvec2 y[]; };

void main() { y[gl_GlobalInvocationID.x] = uvec2(gl_WorkGroupID.x, gl_NumWorkGroups.x); }
