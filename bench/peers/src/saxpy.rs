//! The shader, in the forms that the programs take.

/// SPIR-V with two storage buffers and push constants.
pub const SPIRV: &[u8] = include_bytes!("saxpy.spv");

/// The same in WGSL, which has no push constants everywhere: a uniform buffer in their place.
pub const WGSL: &str = "
struct Args { a: f32, n: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<uniform> args: Args;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i < args.n) { y[i] += args.a * x[i]; }
}
";

/// The words of the module.
pub fn words() -> Vec<u32> {
    SPIRV.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect()
}

/// Push constants.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Args {
    pub a: f32,
    pub n: u32,
}

// SAFETY: two words without padding; every pattern is a value.
unsafe impl bytemuck::Zeroable for Args {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Args {}

pub const ARGS: Args = Args { a: crate::A, n: crate::N as u32 };
