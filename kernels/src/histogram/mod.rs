//! `histogram`: how often each value occurs.

use std::sync::atomic::{AtomicU32, Ordering};

use sterna_hal::kernel::{Each, Group, Kernel, Scatter, each, scatter};

use crate::REDUCE_CHUNK;
use crate::forms::spirv;

/// Up to so many bins are counted for each group on its own before they are added to the result.
const OWN: usize = 1024;

/// `counts[x[i]] += 1`, for every element of `x`.
///
/// Launched with `(&x, &mut counts)`. There are as many bins as `counts` has elements; what it held is added to, modulo 2³², so that
/// several launches count together. A value that is no bin fails the launch.
///
/// A group counts by itself first and adds what it found to `counts` at the end, if there are at most 1024 bins; with more of
/// them each element is an atomic addition to memory.
///
/// ```
/// use sterna_kernels::{histogram, reference};
/// assert_eq!(histogram().params().len(), 2);
/// assert_eq!(reference::histogram(3, &[2, 0, 2]), [1, 0, 2]);
/// ```
#[must_use]
pub fn histogram() -> Kernel<(Each<u32>, Scatter<u32>)> {
    spirv!(Kernel::new("histogram", (), (each(REDUCE_CHUNK), scatter()), body), "histogram")
}

fn body(_: Group, (): (), x: &[u32], counts: &[AtomicU32]) {
    if counts.len() > OWN {
        for v in x {
            counts.get(*v as usize).unwrap_or_else(|| no_bin(*v, counts.len())).fetch_add(1, Ordering::Relaxed);
        }
        return;
    }
    let mut own = [0_u32; OWN];
    let own = &mut own[..counts.len()];
    for v in x {
        match own.get_mut(*v as usize) {
            Some(n) => *n += 1,
            None => no_bin(*v, counts.len()),
        }
    }
    for (n, count) in own.iter().zip(counts).filter(|c| *c.0 > 0) {
        count.fetch_add(*n, Ordering::Relaxed);
    }
}

#[cold]
#[inline(never)]
fn no_bin(value: u32, bins: usize) -> ! {
    panic!("histogram: value {value}, and there are {bins} bins");
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
        fn counts_equal_the_reference(len in lens(REDUCE_CHUNK), bins in prop_oneof![1..40_usize, 1000..1050_usize, 5000..9000_usize], seed: u64) {
            let x: Vec<u32> = Random(seed).noise(len).iter().map(|v| ((v + 1.0) * 0.5 * bins as f32) as u32 % bins as u32).collect();
            let mut counts = vec![7_u32; bins];
            run(&histogram(), seed, &[Buf::read(&x), Buf::write(&mut counts)]);
            let expect: Vec<u32> = reference::histogram(bins, &x).iter().map(|n| n + 7).collect();
            prop_assert_eq!(counts, expect);
        }
    }

    #[test]
    #[should_panic(expected = "value 3, and there are 3 bins")]
    fn a_value_that_is_no_bin_fails() {
        run(&histogram(), 0, &[Buf::read(&[0_u32, 3]), Buf::write(&mut [0_u32; 3])]);
    }
}
