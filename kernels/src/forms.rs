//! The compiled forms of the stock kernels: what ties a module to its kernel, and what the modules complain of.
//!
//! Each module lies beside the Rust form, as `.comp` (GLSL) and `.spv` (compiled); `tools/spirv.sh` makes one from the other and
//! checks that they match.

#![allow(unsafe_code, reason = "the promise that a module does what its Rust form does is made here, once for all")]

use sterna_hal::kernel::{Kernel, Params, Spirv};

/// By number, as `glsl/stock.glsl` has them.
const COMPLAINTS: &[&str] = &[
    "buffers of different length (a group got {0} elements of one and {1} of the other)",
    "the length of the plane, {0}, is no multiple of its width {1}",
    "row_ptr has {0} elements, which is not one more than there are rows ({1})",
    "the entries of row {0}, up to {1}, are none of the matrix",
    "column {0} of {1}",
    "fewer partial sums ({0}) than reduce_sum_len gives",
    "{0} elements of {1} bytes are too many for one launch",
    "element {0} of {1}",
    "value {0}, and there are {1} bins",
];

/// The kernel with its SPIR-V form.
pub(crate) fn with<P: Params>(kernel: Kernel<P>, form: Spirv) -> Kernel<P> {
    let form = form.complaints(COMPLAINTS);
    // SAFETY: the modules of this crate do what the Rust forms beside them do. Every index is compared with the length of its
    // buffer, each group writes its own part, and every loop ends with the buffers.
    unsafe { kernel.with_spirv(form) }
}

/// The kernel with the form for elements of type `T`, whose constant 0 is how many units an element has: `words` for those of whole
/// 32-bit words, `bytes`, if there is such a form, for others; none for those of more than 64 bytes.
pub(crate) fn with_sized<T, P: Params>(kernel: Kernel<P>, words: &'static [u8], bytes: Option<&'static [u8]>) -> Kernel<P> {
    let (form, units) = match (size_of::<T>(), bytes) {
        (size @ 1..=64, _) if size % 4 == 0 => (words, size / 4),
        (size @ 1..=64, Some(bytes)) => (bytes, size),
        _ => return kernel,
    };
    with(kernel, Spirv::new(form).constant(0, units as u64))
}

/// The module in a file of the calling file's folder.
macro_rules! spirv {
    ($kernel:expr, $file:literal) => {
        crate::forms::with($kernel, sterna_hal::kernel::Spirv::new(include_bytes!(concat!($file, ".spv"))))
    };
}
pub(crate) use spirv;
