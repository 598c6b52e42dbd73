//! `spmv_csr`: a sparse matrix times a vector.

mod rust;

pub(crate) use rust::{Rows, at};

use sterna_hal::kernel::{EachOut, Kernel, Whole, each_out, whole};

use crate::SPARSE_ROWS;
use crate::forms::spirv;

/// `y = A · x`, with `A` in compressed sparse rows.
///
/// Launched with `(&row_ptr, &col, &val, &x, &mut y)` for a matrix of *m* rows, *n* columns and *z* entries:
///
/// | buffer | elements | holds |
/// |---|---|---|
/// | `row_ptr: u32` | *m* + 1 | row *r* has entries `row_ptr[r] .. row_ptr[r + 1]`; never falls |
/// | `col: u32` | *z* | the column of each entry |
/// | `val: f32` | *z* | its value |
/// | `x: f32` | *n* | the vector |
/// | `y: f32` | *m* | the product; what it held is not read |
///
/// Entries of a row may come in any order and may repeat (they add up); a row without entries gives 0. A row is summed in `f64`
/// and rounded once, so that a row of a million entries is as exact as one of ten. 32-bit row pointers hold up to 2³² − 1
/// entries.
///
/// A malformed matrix fails the launch: `row_ptr` of another length than *m* + 1, one that falls, one that points beyond `col`
/// or `val`, a column index of *n* or more.
///
/// # Why `row_ptr` is whole
/// A group that owns rows `r .. s` reads `row_ptr[r ..= s]`, which looks like a chunk with a reach of one. But `row_ptr` has
/// *m* + 1 elements, and where the chunk divides *m*, covering those takes one group more than covering `y`; the numbers of
/// groups would not agree. It costs little: the entries that a group reads are known only from `row_ptr`'s contents, so `col`,
/// `val` and `x` are whole in any case, and larger.
///
/// ```
/// use sterna_kernels::{reference, spmv_csr};
/// assert_eq!(spmv_csr().params().len(), 5);
///
/// // | 1 2 |
/// // | 0 3 |
/// let y = reference::spmv_csr(&[0, 2, 3], &[0, 1, 1], &[1.0, 2.0, 3.0], &[10.0, 100.0]);
/// assert_eq!(y, [210.0, 300.0]);
/// ```
#[must_use]
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
pub fn spmv_csr() -> Kernel<(Whole<u32>, Whole<u32>, Whole<f32>, Whole<f32>, EachOut<f32>)> {
    let params = (whole(), whole(), whole(), whole(), each_out(SPARSE_ROWS));
    spirv!(Kernel::new("spmv_csr", (), params, rust::body), "spmv_csr")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, lens, run};

    fn product(row_ptr: &[u32], col: &[u32], val: &[f32], x: &[f32], rows: usize, seed: u64) -> Vec<f32> {
        let mut y = vec![0.0_f32; rows];
        let bufs = [Buf::read(row_ptr), Buf::read(col), Buf::read(val), Buf::read(x), Buf::write(&mut y)];
        run(&spmv_csr(), seed, &bufs);
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_reference(rows in lens(SPARSE_ROWS), columns in 1_usize..5000, seed: u64) {
            let (row_ptr, col) = Random(seed).graph(rows, columns);
            let (val, x) = (Random(seed).noise(col.len()), Random(!seed).noise(columns));
            let y = product(&row_ptr, &col, &val, &x, rows, seed);
            for (y, expect) in y.iter().zip(reference::spmv_csr(&row_ptr, &col, &val, &x)) {
                prop_assert!((f64::from(*y) - expect).abs() <= 1e-6 * expect.abs().max(1e-3), "{y} for {expect}");
            }
        }
    }

    #[test]
    fn a_matrix_without_entries() {
        assert_eq!(product(&[0, 0, 0], &[], &[], &[], 2, 0), [0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "column 7 of 2")]
    fn a_column_out_of_range_fails() {
        product(&[0, 1], &[7], &[1.0], &[1.0, 2.0], 1, 0);
    }

    #[test]
    #[should_panic(expected = "entries 0..5 of row 0")]
    fn entries_beyond_the_buffers_fail() {
        product(&[0, 5], &[0], &[1.0], &[1.0], 1, 0);
    }

    #[test]
    #[should_panic(expected = "entries 2..1 of row 1")]
    fn a_falling_row_ptr_fails() {
        product(&[0, 2, 1], &[0, 0], &[1.0, 1.0], &[1.0], 2, 0);
    }

    #[test]
    #[should_panic(expected = "row_ptr has 2 elements")]
    fn a_short_row_ptr_fails() {
        product(&[0, 1], &[0], &[1.0], &[1.0], 2, 0);
    }

    #[test]
    #[should_panic(expected = "row_ptr has 4 elements")]
    fn a_long_row_ptr_fails() {
        product(&[0, 1, 1, 1], &[0], &[1.0], &[1.0], 2, 0);
    }
}
