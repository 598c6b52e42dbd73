// What the stock kernels share: the numbers of their complaints (`forms.rs` has the texts), and sums in two floats.
#include "sterna.glsl"

#define OF_DIFFERENT_LENGTH 1
#define NO_PLANE 2
#define NO_ROW_PTR 3
#define NO_ROW 4
#define NO_COLUMN 5
#define TOO_FEW_SUMS 6
#define TOO_LONG 7
#define NO_ELEMENT 8
#define NO_BIN 9

#define part_len(group, chunk, len) (part_end(group, chunk, len) - part_start(group, chunk, len))

// Parts of different length: the buffers of this launch do not belong together.
#define same_len(a, b) \
    { \
        if ((a) != (b)) { \
            complain(OF_DIFFERENT_LENGTH, a, b) \
            return; \
        } \
    }

// A sum carried in two floats, about 48 bits, on devices with and without 64-bit floats: D. E. Knuth, The Art of Computer
// Programming, vol. 2, 4.2.2, theorem B. `x` alone is the ordinary sum, which counts where that is infinite or no number.
struct Sum { float x; float rest; };

Sum plus(Sum s, float v) {
    precise float t = s.x + v;
    precise float b = t - s.x;
    precise float lost = (s.x - (t - b)) + (v - b);
    precise float rest = s.rest + lost;
    return Sum(t, rest);
}

Sum plus(Sum s, Sum v) {
    Sum t = plus(s, v.x);
    precise float rest = t.rest + v.rest;
    return Sum(t.x, rest);
}

float rounded(Sum s) {
    bool odd = isnan(s.rest) || isinf(s.rest);
    return odd ? s.x : s.x + s.rest;
}

// The sum over a workgroup of 256, for its first lane.
shared float sum_x[256];
shared float sum_rest[256];

Sum over_group(Sum s) {
    for (uint half_way = 128u; half_way > 0u; half_way >>= 1) {
        sum_x[lane()] = s.x;
        sum_rest[lane()] = s.rest;
        barrier();
        if (lane() < half_way) s = plus(s, Sum(sum_x[lane() + half_way], sum_rest[lane() + half_way]));
        barrier();
    }
    return s;
}
