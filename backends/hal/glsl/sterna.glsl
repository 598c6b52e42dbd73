// How a kernel in GLSL gets its arguments; the layout is that of the module `kernel::spirv` of sterna-hal.
//
//     #version 460
//     #include "sterna.glsl"
//     layout(local_size_x = 256) in;
//     layout(push_constant) uniform Args { LAUNCH BUFFER(F32, x) BUFFER(F32, y) float a; };
//     void main() {
//         uint group;
//         if (!this_group(group)) return;
//         for (uint i = group * y_chunk + lane(); i < part_end(group, y_chunk, y_len); i += LANES) ...
//     }
//
// A buffer `x` is `x.at[i]`, with `x_len` elements, of which a group owns `x_chunk`. Lengths are below 2^31.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_GOOGLE_include_directive : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer U32 { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer I32 { int at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer F32 { float at[]; };
// 64-bit values as two words, the low one first: no shader needs 64-bit integers to pass them on.
layout(buffer_reference, std430, buffer_reference_align = 8) buffer U64 { uvec2 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer SternaStatus { uint code; uint a; uint b; };

#define LAUNCH uint sterna_first; uint sterna_end; uint sterna_grid_x; uint sterna_grid_yz; SternaStatus sterna_status;
#define BUFFER(type, name) type name; uint name##_len; uint name##_chunk;

// A buffer of a block in memory, where arguments do not fit push constants: `U32(x_at)` is the buffer. As a word pair, since
// glslang takes a pointer in memory to be aligned as what it points to.
#define BUFFER_AT(name) uvec2 name##_at; uint name##_len; uint name##_chunk;

#define LANES (gl_WorkGroupSize.x)
#define lane() (gl_LocalInvocationID.x)

// The linear number of this workgroup's group, if it has one.
#define this_group(group) \
    ((group = sterna_first + gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x) < sterna_end)

// The number of groups in the launch's whole grid.
#define grid_count() (sterna_grid_x * (sterna_grid_yz & 0xFFFFu) * (sterna_grid_yz >> 16))

// Where a group's own part begins and ends. The product may not overflow: there are no more groups than parts.
#define part_start(group, chunk, len) min(group * chunk, len)
#define part_end(group, chunk, len) (group * chunk + min(chunk, len - min(len, group * chunk)))

// Says once what is wrong with the arguments; the launch fails.
#define complain(number, detail_a, detail_b) \
    { \
        if (atomicCompSwap(sterna_status.code, 0u, uint(number)) == 0u) { \
            sterna_status.a = uint(detail_a); \
            sterna_status.b = uint(detail_b); \
        } \
    }
