//! `copy` and `gather`: elements to other places.

use bytemuck::Pod;
use sterna_hal::kernel::{Each, EachOut, Group, Kernel, Whole, each, each_out, whole};

use crate::chunks::same_len;
use crate::{fill_chunk, forms};

/// `y[i] = x[i]`, for elements of any plain type; on Vulkan devices of up to 64 bytes, and of whole words or of bytes where the device
/// has 8-bit storage.
///
/// Launched with `(&x, &mut y)`, of the same length. If they differ, the launch fails. What `y` held is not read.
///
/// ```
/// use sterna_kernels::{copy, fill_chunk};
/// assert_eq!(copy::<f32>().params()[1].mapping.groups(1 << 20), Some((1 << 20) / fill_chunk::<f32>() as u64));
/// ```
#[must_use]
pub fn copy<T: Pod + Send + Sync>() -> Kernel<(Each<T>, EachOut<T>)> {
    let chunk = fill_chunk::<T>();
    let kernel = Kernel::new("copy", (), (each(chunk), each_out(chunk)), copy_body);
    forms::with_sized::<T, _>(kernel, include_bytes!("words.spv"), Some(include_bytes!("bytes.spv")))
}

/// `y[i] = x[index[i]]`, for elements of any plain type; on Vulkan devices of whole 32-bit words, up to 64 bytes.
///
/// Launched with `(&index, &x, &mut y)`; `index` and `y` have the same length. An index may repeat. One beyond `x` fails the
/// launch, as do different lengths.
///
/// ```
/// use sterna_kernels::{gather, reference};
/// assert_eq!(gather::<[f32; 3]>().params()[1].elem, 12);
/// assert_eq!(reference::gather(&[2, 0, 2], &[10, 20, 30]), [30, 10, 30]);
/// ```
#[must_use]
pub fn gather<T: Pod + Send + Sync>() -> Kernel<(Each<u32>, Whole<T>, EachOut<T>)> {
    let chunk = fill_chunk::<T>();
    let kernel = Kernel::new("gather", (), (each(chunk), whole(), each_out(chunk)), gather_body);
    forms::with_sized::<T, _>(kernel, include_bytes!("gather.spv"), None)
}

fn copy_body<T: Pod>(_: Group, (): (), x: &[T], y: &mut [T]) {
    same_len("copy", x.len(), y.len());
    y.copy_from_slice(x);
}

fn gather_body<T: Pod>(_: Group, (): (), index: &[u32], x: &[T], y: &mut [T]) {
    same_len("gather", index.len(), y.len());
    for (y, i) in y.iter_mut().zip(index) {
        match x.get(*i as usize) {
            Some(v) => *y = *v,
            None => beyond(*i, x.len()),
        }
    }
}

#[cold]
#[inline(never)]
fn beyond(index: u32, len: usize) -> ! {
    panic!("gather: element {index} of {len}");
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
        fn every_element_is_copied(len in lens(fill_chunk::<[u8; 3]>()), seed: u64) {
            let x: Vec<[u8; 3]> = (0..len as u64).map(|i| [i as u8, (i >> 8) as u8, seed as u8]).collect();
            let mut y = vec![[0_u8; 3]; len];
            run(&copy::<[u8; 3]>(), seed, &[Buf::read(&x), Buf::write(&mut y)]);
            prop_assert_eq!(&y, &x);
            let (x, mut y) = (Random(seed).noise(len), vec![0.0_f32; len]);
            run(&copy::<f32>(), seed, &[Buf::read(&x), Buf::write(&mut y)]);
            prop_assert_eq!(y, x);
        }

        #[test]
        fn gathered_elements_equal_the_reference(len in lens(fill_chunk::<[f32; 2]>()), of in 1_usize..5000, seed: u64) {
            let x: Vec<[f32; 2]> = Random(seed).noise(of).iter().map(|v| [*v, -v]).collect();
            let index: Vec<u32> = Random(!seed).noise(len).iter().map(|v| ((v + 1.0) * 0.5 * of as f32) as u32 % of as u32).collect();
            let mut y = vec![[0.0_f32; 2]; len];
            run(&gather::<[f32; 2]>(), seed, &[Buf::read(&index), Buf::read(&x), Buf::write(&mut y)]);
            prop_assert_eq!(y, reference::gather(&index, &x));
        }
    }

    #[test]
    #[should_panic(expected = "copy: buffers of different length")]
    fn different_lengths_fail() {
        run(&copy::<u32>(), 0, &[Buf::read(&[1_u32; 3]), Buf::write(&mut [0_u32; 4])]);
    }

    #[test]
    #[should_panic(expected = "element 3 of 3")]
    fn an_index_beyond_the_buffer_fails() {
        run(&gather::<u32>(), 0, &[Buf::read(&[0_u32, 3]), Buf::read(&[1_u32; 3]), Buf::write(&mut [0_u32; 2])]);
    }
}
