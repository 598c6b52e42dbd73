//! Stock kernels: ready to launch, safe, and the pattern to copy for kernels of your own.
//!
//! A program uses them as `sterna::kernels`:
//!
//! ```text
//! rt.launch(&saxpy(2.0), (&x, &mut y))?;
//! ```
//!
//! Each constructor gives a [`Kernel`](sterna_hal::kernel::Kernel): a name, one plain value, the parameter list, and the code.
//! The number of workgroups follows from the buffers that are launched with it. Below, `&` is a buffer that is read, `&mut` one
//! that is written, in the order in which a launch takes them; *n* is a length in elements.
//!
//! | kernel | computes | buffers | elements a group |
//! |---|---|---|---|
//! | [`fill(value)`](fill) | `y[i] = value` | `&mut y: T` | [`fill_chunk::<T>()`](fill_chunk) |
//! | [`copy()`](copy) | `y[i] = x[i]` | `&x, &mut y: T` | [`fill_chunk::<T>()`](fill_chunk) |
//! | [`gather()`](gather) | `y[i] = x[index[i]]` | `&index: u32, &x, &mut y: T` | [`fill_chunk::<T>()`](fill_chunk) |
//! | [`saxpy(a)`](saxpy) | `y[i] += a·x[i]` | `&x, &mut y: f32` | [`STREAM_CHUNK`] |
//! | [`reduce_sum()`](reduce_sum) | partial sums of `x` | `&x: f32`, `&mut sums: f32` ([`reduce_sum_len(n)`](reduce_sum_len)) | [`REDUCE_CHUNK`], 1 |
//! | [`reduce_sum_u64()`](reduce_sum_u64) | partial sums of `x`, modulo 2⁶⁴ | `&x: u64`, `&mut sums: u64` ([`reduce_sum_len(n)`](reduce_sum_len)) | [`REDUCE_CHUNK`], 1 |
//! | [`reduce_abs_diff()`](reduce_abs_diff) | partial sums of `abs(x[i] − y[i])` | `&x, &y: f32`, `&mut sums: f32` ([`reduce_sum_len(n)`](reduce_sum_len)) | [`REDUCE_CHUNK`], 1 |
//! | [`scan()`](scan()) | running sums within chunks, modulo 2³² | `&x, &mut y: u32`, `&mut sums: u32` ([`reduce_sum_len(n)`](reduce_sum_len)) | [`REDUCE_CHUNK`], 1 |
//! | [`scan_add()`](scan_add) | the sums of earlier chunks added | `&sums, &mut y: u32` | [`REDUCE_CHUNK`] |
//! | [`histogram()`](histogram()) | how often each value occurs | `&x: u32`, `&mut counts: u32` | [`REDUCE_CHUNK`] of `x` |
//! | [`spmv_csr()`](spmv_csr) | `y = A·x`, sparse rows | `&row_ptr, &col: u32`, `&val, &x, &mut y: f32` | [`SPARSE_ROWS`] of `y` |
//! | [`pagerank_contributions()`](pagerank_contributions) | what each node hands each successor, and what dangling nodes hold | `&rank: f32`, `&out_degree: u32`, `&mut contribution: f32`, `&mut dangling: f32` ([`reduce_sum_len(n)`](reduce_sum_len)) | [`REDUCE_CHUNK`], 1 |
//! | [`pagerank_step(damping)`](pagerank_step) | the next rank of each node | `&row_ptr, &source: u32`, `&contribution, &dangling, &mut next: f32` | [`SPARSE_ROWS`] of `next` |
//! | [`bfs_step(depth)`](bfs_step) | one level of a breadth-first search | `&row_ptr, &source, &level, &mut next: u32`, `&mut found: u32` ([`bfs_step_len(n)`](bfs_step_len)) | [`SPARSE_ROWS`] of `next`, 1 |
//! | [`matmul(inner, columns)`](matmul()) | `C = A·B`, dense | `&a, &b, &mut c: f32` | [`MATMUL_ROWS`] rows of `a` and `c` |
//! | [`nbody_step(dt, softening)`](nbody_step) | one step of bodies under gravity | `&old, &mut velocity, &mut new: [f32; 4]` | [`BODIES`] |
//! | [`stencil5(width, k)`](stencil5) | one step of heat flow on a plane | `&old, &mut new: f32` | [`tile_rows(width, 1)`](tile_rows) rows |
//! | [`blur_rows(width, &g)`](blur_rows) | Gaussian blur along rows | `&src, &mut dst: f32` | [`tile_rows(width, 0)`](tile_rows) rows |
//! | [`blur_cols(width, &g)`](blur_cols) | Gaussian blur along columns | `&src, &mut dst: f32` | [`tile_rows(width, radius)`](tile_rows) rows |
//!
//! # What a wrong launch does
//!
//! A constructor panics on a value that can never be launched (a plane of width 0) and says so under *Panics*. What only the
//! launch knows, the groups check: buffers whose lengths do not belong together, or a column index beyond the vector, make the
//! group panic, which the runtime reports as a failed launch. Every access is an ordinary slice access, so a malformed matrix
//! can spoil a launch and never memory. A launch with the lengths stated here, an empty one included, never panics.
//!
//! # Accuracy
//!
//! Values are `f32`; sums over many elements are carried in `f64` and rounded once, and in SPIR-V forms in two `f32`, which is
//! nearly as much and runs on devices without 64-bit floats. A partial sum depends on its input alone,
//! not on the order in which groups run. Element-wise kernels may differ in the last bit between devices, since some contract
//! `a·b + c` to one rounding. [`reference`](mod@reference) has plain sequential versions to compare with.

#![deny(unsafe_code)]

mod bfs;
mod chunks;
mod copy;
mod fill;
mod forms;
mod gaussian;
mod histogram;
mod matmul;
mod nbody;
mod pagerank;
mod reduce;
pub mod reference;
mod saxpy;
mod scan;
mod spmv_csr;
mod stencil5;

#[cfg(test)]
mod testing;

pub use bfs::{UNREACHED, bfs_step, bfs_step_len};
pub use chunks::{REDUCE_CHUNK, SPARSE_ROWS, STREAM_CHUNK, TILE, tile_rows};
pub use copy::{copy, gather};
pub use fill::{fill, fill_chunk};
pub use gaussian::{Gaussian, blur_cols, blur_rows};
pub use histogram::histogram;
pub use matmul::{MATMUL_ROWS, matmul};
pub use nbody::{BODIES, nbody_step};
pub use pagerank::{pagerank_contributions, pagerank_step};
pub use reduce::{reduce_abs_diff, reduce_sum, reduce_sum_len, reduce_sum_u64};
pub use saxpy::saxpy;
pub use scan::{scan, scan_add};
pub use spmv_csr::spmv_csr;
pub use stencil5::stencil5;
