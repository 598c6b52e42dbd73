// One step of bodies under their own gravity; positions pass through shared memory in tiles.
#version 460
#include "stock.glsl"
layout(local_size_x = 256) in;
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Bodies { vec4 at[]; };
layout(push_constant) uniform Args {
    LAUNCH BUFFER(Bodies, old) BUFFER(Bodies, velocity) BUFFER(Bodies, new) float dt; float softening;
};

shared vec4 tile[256];

void main() {
    uint group;
    if (!this_group(group)) return;
    uint first = part_start(group, new_chunk, new_len), count = part_len(group, new_chunk, new_len);
    same_len(part_len(group, velocity_chunk, velocity_len), count)
    if (first + count > old_len) {
        complain(OF_DIFFERENT_LENGTH, old_len, first + count)
        return;
    }
    float soft = softening * softening;
    for (uint base = 0u; base < count; base += LANES) {
        uint i = first + base + lane();
        bool mine = base + lane() < count;
        vec4 here = mine ? old.at[i] : vec4(0.0);
        vec3 pull = vec3(0.0);
        for (uint begin = 0u; begin < old_len; begin += LANES) {
            tile[lane()] = begin + lane() < old_len ? old.at[begin + lane()] : vec4(0.0);
            barrier();
            uint many = min(LANES, old_len - begin);
            for (uint j = 0u; j < many; j++) {
                vec3 r = tile[j].xyz - here.xyz;
                float d = dot(r, r) + soft;
                if (d > 0.0) pull += tile[j].w / (d * sqrt(d)) * r;
            }
            barrier();
        }
        if (mine) {
            vec4 v = velocity.at[i];
            v.xyz += dt * pull;
            velocity.at[i] = v;
            new.at[i] = vec4(here.xyz + dt * v.xyz, here.w);
        }
    }
}
