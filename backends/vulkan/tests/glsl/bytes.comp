// Matrices, arrays and a matrix by row, for the sizes of blocks.
#version 450
layout(local_size_x = 8, local_size_y = 4) in;
struct Inner { vec3 v; float w; };
layout(set = 0, binding = 0) buffer Y { float y[]; };
layout(set = 0, binding = 1, std140) uniform Block {
    mat3 m;
    layout(row_major) mat4x2 r;
    Inner inner[3];
    float last[5];
};

void main() { y[0] = m[1][2] + r[3][1] + inner[2].w + last[4]; }
