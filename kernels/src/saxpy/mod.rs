//! `saxpy`: the *hello, world* of vector machines.

use sterna_hal::kernel::{Each, EachMut, Group, Kernel, each, each_mut};

use crate::forms::spirv;
use crate::{STREAM_CHUNK, chunks::same_len};

/// `y[i] += a · x[i]`.
///
/// Launched with `(&x, &mut y)`, of the same length. If they differ, the launch fails. Any `a` is accepted; a NaN or an infinity
/// goes the way of floating-point arithmetic.
///
/// ```
/// use sterna_hal::Access;
/// use sterna_kernels::{STREAM_CHUNK, saxpy};
/// let kernel = saxpy(2.0);
/// let params = kernel.params();
/// assert_eq!((params[0].access, params[1].access), (Access::Read, Access::ReadWrite));
/// assert_eq!(params[1].mapping.groups(1_000_000), Some(1_000_000_u64.div_ceil(STREAM_CHUNK as u64)));
/// ```
#[must_use]
pub fn saxpy(a: f32) -> Kernel<(Each<f32>, EachMut<f32>)> {
    spirv!(Kernel::new("saxpy", a, (each(STREAM_CHUNK), each_mut(STREAM_CHUNK)), body), "saxpy")
}

fn body(_: Group, a: f32, x: &[f32], y: &mut [f32]) {
    same_len("saxpy", x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, lens, run};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_reference(len in lens(STREAM_CHUNK), seed: u64, a in -4.0_f32..4.0) {
            let (x, mut y) = (Random(seed).noise(len), Random(!seed).noise(len));
            let mut expect = y.clone();
            reference::saxpy(a, &x, &mut expect);
            run(&saxpy(a), seed, &[Buf::read(&x), Buf::write(&mut y)]);
            prop_assert_eq!(y, expect);
        }
    }

    #[test]
    #[should_panic(expected = "saxpy: buffers of different length")]
    fn different_lengths_fail() {
        run(&saxpy(1.0), 0, &[Buf::read(&[1.0_f32; 3]), Buf::write(&mut [0.0_f32; 4])]);
    }
}
