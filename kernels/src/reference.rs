//! The same computations, sequential and obviously right: for tests, and for programs that check their own results.
//!
//! Nothing here is fast. Sums are carried in `f64`, in the order of the elements. A function panics where a launch of the kernel
//! of the same name fails.

mod dense;
mod discrete;

pub use dense::{matmul, nbody_step};
pub use discrete::{bfs_step, gather, histogram, scan};

use crate::Gaussian;

/// `y[i] += a · x[i]`, as [`saxpy`](crate::saxpy).
///
/// ```
/// let mut y = [1.0, 2.0];
/// sterna_kernels::reference::saxpy(3.0, &[10.0, 20.0], &mut y);
/// assert_eq!(y, [31.0, 62.0]);
/// ```
pub fn saxpy(a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for i in 0..x.len() {
        y[i] += a * x[i];
    }
}

/// The sum of all elements, as the partial sums of [`reduce_sum`](crate::reduce_sum) add up to it.
///
/// ```
/// assert_eq!(sterna_kernels::reference::sum(&[0.5, 0.25]), 0.75);
/// ```
#[must_use]
pub fn sum(x: &[f32]) -> f64 {
    x.iter().copied().map(f64::from).sum()
}

/// The sum of all elements modulo 2⁶⁴, as [`reduce_sum_u64`](crate::reduce_sum_u64).
///
/// ```
/// assert_eq!(sterna_kernels::reference::sum_u64(&[u64::MAX, 3]), 2);
/// ```
#[must_use]
pub fn sum_u64(x: &[u64]) -> u64 {
    x.iter().fold(0, |a: u64, b| a.wrapping_add(*b))
}

/// The sum of `abs(x[i] − y[i])`, as [`reduce_abs_diff`](crate::reduce_abs_diff).
///
/// ```
/// assert_eq!(sterna_kernels::reference::abs_diff(&[1.0, 5.0], &[2.0, 3.0]), 3.0);
/// ```
#[must_use]
pub fn abs_diff(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).sum()
}

/// `A · x` for a matrix in compressed sparse rows, as [`spmv_csr`](crate::spmv_csr): `row_ptr.len() − 1` numbers.
///
/// ```
/// let y = sterna_kernels::reference::spmv_csr(&[0, 0, 2], &[1, 1], &[2.0, 3.0], &[0.0, 10.0]);
/// assert_eq!(y, [0.0, 50.0]);
/// ```
#[must_use]
pub fn spmv_csr(row_ptr: &[u32], col: &[u32], val: &[f32], x: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; row_ptr.len() - 1];
    for row in 0..y.len() {
        for entry in row_ptr[row] as usize..row_ptr[row + 1] as usize {
            y[row] += f64::from(val[entry]) * f64::from(x[col[entry] as usize]);
        }
    }
    y
}

/// One round of PageRank, in `f64` throughout: what [`pagerank_contributions`](crate::pagerank_contributions) and then
/// [`pagerank_step`](crate::pagerank_step) make of `rank`.
///
/// `row_ptr` and `source` list the incoming edges of each node.
///
/// ```
/// // Two nodes that link to each other.
/// let next = sterna_kernels::reference::pagerank_step(0.5, &[0, 1, 2], &[1, 0], &[1, 1], &[0.75, 0.25]);
/// assert_eq!(next, [0.375, 0.625]);
/// ```
#[must_use]
pub fn pagerank_step(damping: f32, row_ptr: &[u32], source: &[u32], out_degree: &[u32], rank: &[f64]) -> Vec<f64> {
    let (d, n) = (f64::from(damping), rank.len());
    assert!(row_ptr.len() == n + 1 && out_degree.len() == n);
    let mut dangling = 0.0;
    for u in 0..n {
        if out_degree[u] == 0 {
            dangling += rank[u];
        }
    }
    let mut next = vec![(1.0 - d) / n as f64 + d * dangling / n as f64; n];
    for v in 0..n {
        for u in &source[row_ptr[v] as usize..row_ptr[v + 1] as usize] {
            let u = *u as usize;
            next[v] += d * rank[u] / f64::from(out_degree[u]);
        }
    }
    next
}

/// One step of heat flow, as [`stencil5`](crate::stencil5).
///
/// ```
/// // All border: nothing changes.
/// assert_eq!(sterna_kernels::reference::stencil5(2, 0.25, &[1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
/// ```
#[must_use]
pub fn stencil5(width: usize, k: f32, old: &[f32]) -> Vec<f32> {
    let height = height(width, old);
    let at = |x: usize, y: usize| f64::from(old[y * width + x]);
    let mut new = old.to_vec();
    for y in 1..height.saturating_sub(1) {
        for x in 1..width.saturating_sub(1) {
            let around = at(x, y - 1) + at(x, y + 1) + at(x - 1, y) + at(x + 1, y);
            new[y * width + x] = (at(x, y) + f64::from(k) * (around - 4.0 * at(x, y))) as f32;
        }
    }
    new
}

/// A plane blurred along its rows, as [`blur_rows`](crate::blur_rows).
///
/// ```
/// let g = sterna_kernels::Gaussian::new(0.5);
/// let row = sterna_kernels::reference::blur_rows(3, &g, &[0.0, 1.0, 0.0]);
/// assert_eq!(row[1], g.weight(0));
/// ```
#[must_use]
pub fn blur_rows(width: usize, taps: &Gaussian, src: &[f32]) -> Vec<f32> {
    blur(width, taps, src, |offset| (offset, 0))
}

/// A plane blurred along its columns, as [`blur_cols`](crate::blur_cols).
///
/// ```
/// let g = sterna_kernels::Gaussian::new(0.5);
/// let column = sterna_kernels::reference::blur_cols(1, &g, &[0.0, 1.0, 0.0]);
/// assert_eq!(column[1], g.weight(0));
/// ```
#[must_use]
pub fn blur_cols(width: usize, taps: &Gaussian, src: &[f32]) -> Vec<f32> {
    blur(width, taps, src, |offset| (0, offset))
}

fn blur(width: usize, taps: &Gaussian, src: &[f32], direction: impl Fn(i32) -> (i32, i32)) -> Vec<f32> {
    let (height, radius) = (height(width, src), taps.radius() as i32);
    let mut dst = vec![0.0; src.len()];
    for y in 0..height {
        for x in 0..width {
            let mut sum = 0.0;
            for offset in -radius..=radius {
                let (dx, dy) = direction(offset);
                let sx = (x as i64 + i64::from(dx)).clamp(0, width as i64 - 1) as usize;
                let sy = (y as i64 + i64::from(dy)).clamp(0, height as i64 - 1) as usize;
                sum += f64::from(taps.weight(offset)) * f64::from(src[sy * width + sx]);
            }
            dst[y * width + x] = sum as f32;
        }
    }
    dst
}

fn height(width: usize, plane: &[f32]) -> usize {
    assert!(width > 0 && plane.len().is_multiple_of(width));
    plane.len() / width
}
