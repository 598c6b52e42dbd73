//! Kernels: their code in up to three forms, their parameters, and how workgroups map to elements.
//!
//! A [`Kernel`] is a name, one plain value, a list of buffer parameters and the code. Each buffer parameter states which
//! elements a group gets; that statement makes the Rust form safe to write and to launch, and tells the engine what a group
//! needs:
//!
//! | parameter | group `g` gets | the Rust form sees |
//! |---|---|---|
//! | [`each`], [`rows`] | its own chunk, to read | `&[T]` |
//! | [`each_mut`], [`rows_mut`] | its own chunk, to read and write | `&mut [T]` |
//! | [`each_out`], [`rows_out`] | its own chunk, to replace entirely | `&mut [T]` |
//! | [`halo`], [`halo_rows`] | its own chunk and some elements on either side, to read | [`Halo<T>`](HaloPart) |
//! | [`whole`] | everything, to read | `&[T]` |
//! | [`scatter`] | everything, to change by atomic operations | `&[T::Cell]` |
//!
//! ```
//! use sterna_hal::kernel::{Group, Kernel, each, each_mut, Each, EachMut};
//!
//! fn body(_group: Group, a: f32, x: &[f32], y: &mut [f32]) {
//!     for (y, x) in y.iter_mut().zip(x) {
//!         *y += a * x;
//!     }
//! }
//! let saxpy: Kernel<(Each<f32>, EachMut<f32>)> = Kernel::new("saxpy", 2.0_f32, (each(4096), each_mut(4096)), body);
//! assert_eq!(saxpy.name(), "saxpy");
//! ```
//!
//! The body is an `fn` item (or a closure that captures nothing): a kernel keeps no state of the host program.
//!
//! ```compile_fail
//! use sterna_hal::kernel::{Group, Kernel, each_mut};
//! let factor = 3.0_f32;
//! let k = Kernel::new("captures", (), (each_mut(64),), move |_: Group, _: (), y: &mut [f32]| y[0] = factor);
//! ```
//!
//! A kernel's thread is marked while it runs a group ([`in_kernel`]), one that makes a [call](crate::panics::caught_inside) while it does, and
//! a device may mark those that run nothing else for good ([`runs_kernels`]); the mark is nobody's to make in another way, or to take off:
//!
//! ```compile_fail,E0432
//! use sterna_hal::kernel::InKernel;
//! ```

mod body;
mod code;
mod group;
mod held;
mod param;
pub mod spirv;

pub use body::{Body, Kernel, MOST_VALUE};
pub use code::{Code, Contents, Form, KernelId, MOST_BUFFERS, RawArg, RustForm, Takes};
pub(crate) use group::InKernel;
pub use group::{Group, in_kernel, runs_kernels};
pub use held::{Held, Watch};
pub use param::{
    Each, EachMut, EachOut, Halo, HaloPart, Mapping, Param, ParamDesc, Params, Scatter, ScatterElem, Whole, each, each_mut,
    each_out, halo, halo_rows, rows, rows_mut, rows_out, scatter, whole,
};
pub use spirv::Spirv;
