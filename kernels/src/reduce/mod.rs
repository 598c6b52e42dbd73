//! Reductions: many numbers to one number a group.
//!
//! A kernel cannot pass a value from group to group, so a reduction leaves one partial result a group, and whoever wants the
//! total adds those up: the host, in a handful of instructions, or the same kernel again.

mod rust;

pub(crate) use rust::{LANES, Lanes, put};

use sterna_hal::kernel::{Each, EachOut, Kernel, each, each_out};

use crate::REDUCE_CHUNK;
use crate::forms::spirv;

/// How many partial results a reduction over `len` elements leaves: the length of its output.
///
/// ```
/// use sterna_kernels::{REDUCE_CHUNK, reduce_sum_len};
/// assert_eq!(reduce_sum_len(0), 0);
/// assert_eq!(reduce_sum_len(REDUCE_CHUNK), 1);
/// assert_eq!(reduce_sum_len(REDUCE_CHUNK + 1), 2);
/// ```
#[must_use]
pub const fn reduce_sum_len(len: usize) -> usize {
    len.div_ceil(REDUCE_CHUNK)
}

/// Partial sums: `sums[g]` is the sum of the [`REDUCE_CHUNK`] elements of `x` from `g · REDUCE_CHUNK` on.
///
/// Launched with `(&x, &mut sums)`, where `sums` has [`reduce_sum_len(x.len())`](reduce_sum_len) elements. The total is
///
/// ```
/// # let sums = [0.5_f32, 1.5];
/// let total: f64 = sums.iter().copied().map(f64::from).sum();
/// # assert_eq!(total, 2.0);
/// ```
///
/// Each partial sum is carried in `f64` over sixteen interleaved parts and rounded to `f32` once: its error is half a unit in
/// the last place, and as good as independent of the length. (Adding one after the other in `f32` stops counting at 2²⁴ ones.)
/// A partial sum beyond the largest `f32` is an infinity.
///
/// ```
/// use sterna_kernels::{reduce_sum, reduce_sum_len};
/// let groups = reduce_sum().params()[0].mapping.groups(1_000_000);
/// assert_eq!(groups, Some(reduce_sum_len(1_000_000) as u64));
/// ```
#[must_use]
pub fn reduce_sum() -> Kernel<(Each<f32>, EachOut<f32>)> {
    spirv!(Kernel::new("reduce_sum", (), (each(REDUCE_CHUNK), each_out(1)), rust::sum), "sum")
}

/// Partial sums of `u64`, modulo 2⁶⁴: exact, and with them the total if it fits.
///
/// Launched with `(&x, &mut sums)`, where `sums` has [`reduce_sum_len(x.len())`](reduce_sum_len) elements. The same kernel
/// launched with the partial sums as its input goes on adding.
///
/// ```
/// use sterna_kernels::reduce_sum_u64;
/// assert_eq!(reduce_sum_u64().params()[1].elem, 8);
/// ```
#[must_use]
pub fn reduce_sum_u64() -> Kernel<(Each<u64>, EachOut<u64>)> {
    spirv!(Kernel::new("reduce_sum_u64", (), (each(REDUCE_CHUNK), each_out(1)), rust::sum_u64), "sum_u64")
}

/// Partial sums of `abs(x[i] − y[i])`: how far an iteration is from standing still.
///
/// Launched with `(&x, &y, &mut sums)`; `x` and `y` have the same length, `sums` has
/// [`reduce_sum_len(x.len())`](reduce_sum_len) elements. Carried and rounded as [`reduce_sum`] is. A solver that stops at a
/// tolerance brings home these few numbers in each round instead of two whole vectors.
///
/// ```
/// use sterna_kernels::reduce_abs_diff;
/// assert_eq!(reduce_abs_diff().params().len(), 3);
/// ```
#[must_use]
pub fn reduce_abs_diff() -> Kernel<(Each<f32>, Each<f32>, EachOut<f32>)> {
    let params = (each(REDUCE_CHUNK), each(REDUCE_CHUNK), each_out(1));
    spirv!(Kernel::new("reduce_abs_diff", (), params, rust::abs_diff), "abs_diff")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, lens, run};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn sums_equal_the_reference(len in lens(REDUCE_CHUNK), seed: u64) {
            let x = Random(seed).noise(len);
            let mut sums = vec![0.0_f32; reduce_sum_len(len)];
            run(&reduce_sum(), seed, &[Buf::read(&x), Buf::write(&mut sums)]);
            for (part, sum) in x.chunks(REDUCE_CHUNK).zip(&sums) {
                let (expect, size) = (reference::sum(part), part.iter().map(|v| v.abs()).sum::<f32>());
                // Half a unit in the last place of the sum, and what 64 Ki additions in f64 lose.
                let bound = expect.abs() * f64::from(f32::EPSILON) / 2.0 + f64::from(size) * 1e-11;
                prop_assert!((f64::from(*sum) - expect).abs() <= bound, "{sum} for {expect}");
            }
        }

        #[test]
        fn integer_sums_are_exact(len in lens(REDUCE_CHUNK), seed: u64) {
            let x: Vec<u64> = (0..len as u64).map(|i| seed.wrapping_mul(i | 1).rotate_left(17)).collect();
            let mut sums = vec![0_u64; reduce_sum_len(len)];
            run(&reduce_sum_u64(), seed, &[Buf::read(&x), Buf::write(&mut sums)]);
            let total = sums.iter().fold(0_u64, |a, b| a.wrapping_add(*b));
            prop_assert_eq!(total, reference::sum_u64(&x));
        }

        #[test]
        fn distances_equal_the_reference(len in lens(REDUCE_CHUNK), seed: u64) {
            let (x, y) = (Random(seed).noise(len), Random(!seed).noise(len));
            let mut sums = vec![0.0_f32; reduce_sum_len(len)];
            run(&reduce_abs_diff(), seed, &[Buf::read(&x), Buf::read(&y), Buf::write(&mut sums)]);
            let (total, expect) = (reference::sum(&sums), reference::abs_diff(&x, &y));
            prop_assert!((total - expect).abs() <= expect * 1e-7, "{total} for {expect}");
        }
    }

    #[test]
    fn counts_beyond_the_integers_of_f32() {
        // Added in f32, the ones behind the first element would all be lost.
        let mut x = vec![1.0_f32; REDUCE_CHUNK];
        x[0] = 16_777_216.0;
        let mut sums = [0.0_f32];
        run(&reduce_sum(), 1, &[Buf::read(&x), Buf::write(&mut sums)]);
        assert_eq!(f64::from(sums[0]), 16_777_216.0 + 65_536.0);
    }

    #[test]
    #[should_panic(expected = "do not agree on the number of groups")]
    fn too_many_partial_sums_are_no_launch() {
        run(&reduce_sum(), 0, &[Buf::read(&[1.0_f32; 9]), Buf::write(&mut [0.0_f32; 2])]);
    }
}
