//! `stencil5`: heat flow on a plane, one explicit step.

use bytemuck::{Pod, Zeroable};
use sterna_hal::kernel::{EachOut, Group, Halo, HaloPart, Kernel, halo_rows, rows_out};

use crate::chunks::{plane_width, same_len};
use crate::forms::spirv;
use crate::tile_rows;

/// The plain value.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Heat {
    width: u32,
    k: f32,
}

/// One step of heat flow: `new = old + k · (up + down + left + right − 4 · old)`, and the border of the plane stays as it is
/// (Dirichlet condition).
///
/// Launched with `(&old, &mut new)`: planes of `width` columns, row after row, of the same length, which is a multiple of
/// `width`; the height follows from it. If it is not, or the lengths differ, the launch fails. A plane of one or two rows or
/// columns is all border.
///
/// `k` is *α·Δt/Δx²*, without unit. The scheme is stable for `k` of 0 to 0.25; other values are accepted, and what they compute
/// grows without limit.
///
/// ```
/// use sterna_kernels::{reference, stencil5, tile_rows};
/// let step = stencil5(4096, 0.2);
/// assert_eq!(step.params()[0].mapping.groups(4096 * 4096), Some((4096 / tile_rows(4096, 1)) as u64));
///
/// let new = reference::stencil5(3, 0.25, &[0.0, 4.0, 0.0, 4.0, 8.0, 4.0, 0.0, 4.0, 0.0]);
/// assert_eq!(new, [0.0, 4.0, 0.0, 4.0, 4.0, 4.0, 0.0, 4.0, 0.0]);
/// ```
///
/// # Panics
/// If `width` is 0 or does not fit 32 bits, or `k` is not finite.
#[must_use]
pub fn stencil5(width: usize, k: f32) -> Kernel<(Halo<f32>, EachOut<f32>)> {
    assert!(k.is_finite(), "k is {k}");
    let value = Heat { width: plane_width(width), k };
    let rows = tile_rows(width, 1);
    spirv!(Kernel::new("stencil5", value, (halo_rows(width, rows, 1), rows_out(width, rows)), body), "stencil5")
}

fn body(_: Group, Heat { width, k }: Heat, old: HaloPart<'_, f32>, new: &mut [f32]) {
    let (width, own, all) = (width as usize, old.own(), old.as_slice());
    same_len("stencil5", own.len(), new.len());
    assert!(all.len().is_multiple_of(width), "stencil5: the length of the plane is no multiple of its width {width}");
    for (i, new) in new.chunks_exact_mut(width).enumerate() {
        let start = own.start + i * width;
        let row = &all[start..start + width];
        // A row that the group cannot see does not exist: this one is the plane's first or last.
        if start == 0 || start + width == all.len() || width < 3 {
            new.copy_from_slice(row);
            continue;
        }
        let (up, down) = (&all[start - width..start], &all[start + width..start + 2 * width]);
        new[0] = row[0];
        new[width - 1] = row[width - 1];
        // Slices of one length, so that the compiler drops the bounds checks and makes vector code.
        let inner = width - 2;
        let (up, down) = (&up[1..][..inner], &down[1..][..inner]);
        let (left, old, right) = (&row[..inner], &row[1..][..inner], &row[2..][..inner]);
        for (c, new) in new[1..][..inner].iter_mut().enumerate() {
            *new = old[c] + k * (up[c] + down[c] + left[c] + right[c] - 4.0 * old[c]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, close, heights, run};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_reference((width, height) in heights(1), seed: u64, k in 0.0_f32..0.25) {
            let old = Random(seed).noise(width * height);
            let mut new = vec![0.0; old.len()];
            run(&stencil5(width, k), seed, &[Buf::read(&old), Buf::write(&mut new)]);
            close(&new, &reference::stencil5(width, k, &old), 1e-6);
        }
    }

    #[test]
    fn a_level_plane_and_its_border_stay() {
        let (old, mut new) = (vec![3.0_f32; 300 * 400], vec![0.0; 300 * 400]);
        run(&stencil5(300, 0.2), 5, &[Buf::read(&old), Buf::write(&mut new)]);
        assert_eq!(new, old);
    }

    #[test]
    #[should_panic(expected = "no multiple of its width 4")]
    fn a_ragged_plane_fails() {
        run(&stencil5(4, 0.2), 0, &[Buf::read(&[0.0_f32; 10]), Buf::write(&mut [0.0_f32; 10])]);
    }

    #[test]
    #[should_panic(expected = "at least one column")]
    fn a_width_of_0_is_refused() {
        let _ = stencil5(0, 0.2);
    }
}
