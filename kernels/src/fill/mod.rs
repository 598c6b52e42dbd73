//! `fill`: one value everywhere.

use bytemuck::Pod;
use sterna_hal::kernel::{EachOut, Group, Kernel, each_out};

use crate::{STREAM_CHUNK, forms};

/// `y[i] = value`, for elements of any plain type; on Vulkan devices of up to 64 bytes.
///
/// Launched with `(&mut y,)`. What `y` held is not read, so none of it moves to the device.
///
/// ```
/// use sterna_kernels::{fill, fill_chunk};
/// let zero_points = fill([0.0_f32; 4]);
/// assert_eq!(zero_points.params()[0].elem, 16);
/// assert_eq!(fill_chunk::<[f32; 4]>(), 4096);
/// ```
#[must_use]
pub fn fill<T: Pod + Send + Sync>(value: T) -> Kernel<(EachOut<T>,)> {
    let kernel = Kernel::new("fill", value, (each_out(fill_chunk::<T>()),), body);
    forms::with_sized::<T, _>(kernel, include_bytes!("words.spv"), Some(include_bytes!("bytes.spv")))
}

/// Elements a group of [`fill`]: as many as fill one 64 KiB granule, and at least one.
///
/// An element whose size does not divide 64 KiB (12 bytes, say) leaves chunks a little smaller than a granule, and neighbours
/// then share a page: right, if a little slower.
#[must_use]
pub const fn fill_chunk<T>() -> usize {
    let granule = STREAM_CHUNK * size_of::<f32>();
    match size_of::<T>() {
        0 => granule,
        size if size > granule => 1,
        size => granule / size,
    }
}

fn body<T: Pod>(_: Group, value: T, y: &mut [T]) {
    y.fill(value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Buf, lens, run};

    fn check<T: Pod + Send + Sync + PartialEq + std::fmt::Debug>(len: usize, seed: u64, value: T) {
        let mut y = vec![T::zeroed(); len];
        run(&fill(value), seed, &[Buf::write(&mut y)]);
        assert!(y.iter().all(|v| *v == value), "every element of {len}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_element_gets_the_value(len in lens(fill_chunk::<f32>()), seed: u64, value: u32) {
            check(len, seed, value);
        }

        #[test]
        fn elements_of_other_sizes(len in lens(fill_chunk::<[u32; 3]>()), seed: u64, value: [u32; 3]) {
            check(len, seed, value);
            check(len, seed, value[0] as u8);
        }
    }

    #[test]
    fn huge_elements_are_one_a_group() {
        assert_eq!(fill_chunk::<[u8; 100_000]>(), 1);
        assert_eq!(fill_chunk::<u8>(), 65_536);
    }
}
