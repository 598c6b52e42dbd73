//! The kernels' SPIR-V forms, for Vulkan devices. The GLSL is in `src/glsl`; `tools/spirv.sh build` compiles it.
//!
//! A Rust form is safe. A compiled form is a promise that it does the same, so this is the one place of the samples with `unsafe`.

#![allow(unsafe_code, reason = "promises what the compiler cannot check: that each module does what its Rust form does")]

use sterna::kernel::{Kernel, Params, Spirv};

/// The kernel with its SPIR-V form.
pub(crate) fn with<P: Params>(kernel: Kernel<P>, code: &'static [u8]) -> Kernel<P> {
    let form = Spirv::new(code).complaints(&["count {0} of {1}"]);
    // SAFETY: every index is compared with the length of its buffer, each group writes its own part and adds atomically to
    // what is scattered, and every loop ends.
    unsafe { kernel.with_spirv(form) }
}
