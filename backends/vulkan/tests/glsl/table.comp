// y[i] = table[i % 2048]: a plain value of 8 KiB, in a uniform buffer.
#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) writeonly buffer Y { uint y[]; };
layout(set = 1, binding = 4) uniform Table { uvec4 row[512]; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < y.length()) y[i] = row[i / 4u % 512u][i & 3u];
}
