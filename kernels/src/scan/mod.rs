//! `scan`: running sums, in two launches.

use sterna_hal::kernel::{Each, EachMut, EachOut, Group, Kernel, Whole, each, each_mut, each_out, whole};

use crate::REDUCE_CHUNK;
use crate::chunks::same_len;
use crate::forms::spirv;

/// Running sums within each chunk, and the sum of each chunk: the first half of a scan. All sums are modulo 2³².
///
/// Launched with `(&x, &mut y, &mut sums)`; `x` and `y` have the same length, `sums` has
/// [`reduce_sum_len(x.len())`](crate::reduce_sum_len) elements. `y[i]` becomes the sum of the elements of `x` from the begin of its
/// chunk up to and including `i`. [`scan_add`] with the same buffers makes a scan of the whole of it:
///
/// ```text
/// rt.launch(&scan(), (&x, &mut y, &mut sums))?;
/// rt.launch(&scan_add(), (&sums, &mut y))?;
/// ```
///
/// ```
/// use sterna_kernels::{REDUCE_CHUNK, reference, scan};
/// assert_eq!(scan().params()[2].mapping.groups(3), Some(3));
/// assert_eq!(reference::scan(&[3, 0, u32::MAX, 5]), [3, 3, 2, 7]);
/// ```
#[must_use]
pub fn scan() -> Kernel<(Each<u32>, EachOut<u32>, EachOut<u32>)> {
    spirv!(Kernel::new("scan", (), (each(REDUCE_CHUNK), each_out(REDUCE_CHUNK), each_out(1)), within), "scan")
}

/// Adds to each element the sums of the chunks before its own: the second half of a [`scan`].
///
/// Launched with `(&sums, &mut y)`. Each group adds the sums before it anew: one number a chunk of 65 536 elements, so that a
/// gigabyte of `u32` costs 4096 groups a few thousand additions each.
///
/// ```
/// use sterna_hal::Access;
/// assert_eq!(sterna_kernels::scan_add().params()[1].access, Access::ReadWrite);
/// ```
#[must_use]
pub fn scan_add() -> Kernel<(Whole<u32>, EachMut<u32>)> {
    spirv!(Kernel::new("scan_add", (), (whole(), each_mut(REDUCE_CHUNK)), add), "add")
}

fn within(_: Group, (): (), x: &[u32], y: &mut [u32], sums: &mut [u32]) {
    same_len("scan", x.len(), y.len());
    let mut sum = 0_u32;
    for (y, x) in y.iter_mut().zip(x) {
        sum = sum.wrapping_add(*x);
        *y = sum;
    }
    crate::reduce::put("scan", x.len(), sums, sum);
}

fn add(group: Group, (): (), sums: &[u32], y: &mut [u32]) {
    // A grid may be a little larger than the buffers ask for, where a device wants it rectangular.
    if y.is_empty() {
        return;
    }
    let before = sums.get(..group.index());
    let before = before.unwrap_or_else(|| panic!("scan_add: fewer partial sums ({}) than reduce_sum_len gives", sums.len()));
    let before = before.iter().fold(0_u32, |a, b| a.wrapping_add(*b));
    y.iter_mut().for_each(|y| *y = y.wrapping_add(before));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Buf, lens, run};
    use crate::{reduce_sum_len, reference};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn both_halves_equal_the_reference(len in lens(REDUCE_CHUNK), seed: u64) {
            let x: Vec<u32> = (0..len as u64).map(|i| (seed.wrapping_mul(i | 1) >> 13) as u32).collect();
            let (mut y, mut sums) = (vec![0_u32; len], vec![0_u32; reduce_sum_len(len)]);
            run(&scan(), seed, &[Buf::read(&x), Buf::write(&mut y), Buf::write(&mut sums)]);
            run(&scan_add(), seed, &[Buf::read(&sums), Buf::write(&mut y)]);
            prop_assert_eq!(y, reference::scan(&x));
        }
    }

    #[test]
    #[should_panic(expected = "fewer partial sums (1)")]
    fn sums_that_are_missing_fail() {
        run(&scan_add(), 0, &[Buf::read(&[1_u32]), Buf::write(&mut vec![0_u32; 2 * REDUCE_CHUNK + 1])]);
    }
}
