// How many steps of z ← z² + c stay within the circle of radius 2.
#version 460
#include "sterna.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Args {
    LAUNCH BUFFER(U32, counts) double left; double top; double step_; uint width; uint limit;
};

void main() {
    uint group;
    if (!this_group(group)) return;
    uint end = part_end(group, counts_chunk, counts_len);
    for (uint i = part_start(group, counts_chunk, counts_len) + lane(); i < end; i += LANES) {
        // Rounded as in Rust: a product that is contracted with a sum would end elsewhere near the set's edge.
        precise double dx = double(i % width) * step_, dy = double(i / width) * step_;
        precise double cx = left + dx, cy = top + dy;
        double re = 0.0, im = 0.0;
        uint n = 0u;
        for (; n < limit; n++) {
            precise double re2 = re * re, im2 = im * im;
            precise double size = re2 + im2;
            if (size > 4.0) break;
            precise double twice = 2.0 * re;
            precise double cross_ = twice * im;
            precise double next_im = cross_ + cy;
            precise double difference = re2 - im2;
            precise double next_re = difference + cx;
            re = next_re;
            im = next_im;
        }
        counts.at[i] = n;
    }
}
