//! `matmul`: a dense matrix times a dense matrix, in tiles.

use bytemuck::{Pod, Zeroable};
use sterna_hal::kernel::{Each, EachOut, Group, Kernel, Whole, rows, rows_out, whole};

use crate::chunks::plane_width;
use crate::forms::spirv;

/// Rows of the product a group.
pub const MATMUL_ROWS: usize = 16;

/// The plain value.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sizes {
    inner: u32,
    columns: u32,
}

/// `C = A · B`, for matrices of `f32` that lie row after row.
///
/// Launched with `(&a, &b, &mut c)`: `a` has *m* rows of `inner` elements, `b` has `inner` rows of `columns`, `c` has *m* rows of
/// `columns`; *m* follows from the lengths. Lengths that do not belong together fail the launch.
///
/// A group computes [`MATMUL_ROWS`] rows. Sums are carried in `f32`, tile after tile along the inner dimension: the error of an element is
/// at most about `inner` · 2⁻²⁴ · Σ|a·b|.
///
/// ```
/// use sterna_kernels::{matmul, reference};
/// assert_eq!(matmul(512, 256).params()[0].mapping.groups(64 * 512), Some(4));
/// let c = reference::matmul(2, 1, &[1.0, 2.0, 3.0, 4.0], &[10.0, 100.0]);
/// assert_eq!(c, [210.0, 430.0]);
/// ```
///
/// # Panics
/// If `inner` or `columns` is 0 or does not fit 32 bits.
#[must_use]
pub fn matmul(inner: usize, columns: usize) -> Kernel<(Each<f32>, Whole<f32>, EachOut<f32>)> {
    let value = Sizes { inner: plane_width(inner), columns: plane_width(columns) };
    let params = (rows(inner, MATMUL_ROWS), whole(), rows_out(columns, MATMUL_ROWS));
    spirv!(Kernel::new("matmul", value, params, body), "matmul")
}

/// Elements of a row of `c` that are worked on at a time: with as many of `b`'s rows they stay in the nearest cache.
const STRIP: usize = 512;

fn body(_: Group, Sizes { inner, columns }: Sizes, a: &[f32], b: &[f32], c: &mut [f32]) {
    let (inner, columns) = (inner as usize, columns as usize);
    // A grid may be a little larger than the buffers ask for, where a device wants it rectangular.
    if a.is_empty() && c.is_empty() {
        return;
    }
    let whole = a.len().is_multiple_of(inner) && c.len().is_multiple_of(columns);
    assert!(whole, "matmul: {} and {} elements are no rows of {inner} and {columns}", a.len(), c.len());
    let (m, n) = (a.len() / inner, c.len() / columns);
    assert!(m == n, "matmul: {m} rows of the first matrix and {n} of the product");
    assert!(b.len() == inner * columns, "matmul: the second matrix has {} elements, not {inner}·{columns}", b.len());
    c.fill(0.0);
    for begin in (0..columns).step_by(STRIP) {
        let end = (begin + STRIP).min(columns);
        for (a, c) in a.chunks_exact(inner).zip(c.chunks_exact_mut(columns)) {
            let c = &mut c[begin..end];
            for (a, b) in a.iter().zip(b.chunks_exact(columns)) {
                for (c, b) in c.iter_mut().zip(&b[begin..end]) {
                    *c += a * b;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, run};

    fn product(m: usize, inner: usize, columns: usize, seed: u64) -> (Vec<f32>, Vec<f64>) {
        let (a, b) = (Random(seed).noise(m * inner), Random(!seed).noise(inner * columns));
        let mut c = vec![0.0_f32; m * columns];
        run(&matmul(inner, columns), seed, &[Buf::read(&a), Buf::read(&b), Buf::write(&mut c)]);
        (c, reference::matmul(inner, columns, &a, &b))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_reference(m in 0_usize..70, inner in 1_usize..90, columns in prop_oneof![1_usize..80, 500_usize..530], seed: u64) {
            let (c, expect) = product(m, inner, columns, seed);
            for (c, e) in c.iter().zip(&expect) {
                prop_assert!((f64::from(*c) - e).abs() <= inner as f64 * inner as f64 * 6e-8, "{c} for {e}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "the second matrix has 5 elements, not 2·3")]
    fn a_second_matrix_of_another_size_fails() {
        run(&matmul(2, 3), 0, &[Buf::read(&[0.0_f32; 4]), Buf::read(&[0.0_f32; 5]), Buf::write(&mut [0.0_f32; 6])]);
    }

    #[test]
    #[should_panic(expected = "2 rows of the first matrix and 3 of the product")]
    fn rows_that_do_not_agree_fail() {
        run(&matmul(2, 3), 0, &[Buf::read(&[0.0_f32; 4]), Buf::read(&[0.0_f32; 6]), Buf::write(&mut [0.0_f32; 9])]);
    }

    #[test]
    #[should_panic(expected = "at least one column")]
    fn an_inner_size_of_0_is_refused() {
        let _ = matmul(0, 1);
    }
}
