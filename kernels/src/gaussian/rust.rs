//! The Rust forms.
//!
//! Both compute a block of outputs at a time, whose sums stay in registers while the taps go by; a loop over pixels inside a loop
//! over taps would load and store every sum once a tap.

use sterna_hal::kernel::{Group, HaloPart};

use super::Blur;
use crate::chunks::same_len;

/// Outputs computed together: four or more vector registers of sums, enough to hide the latency of an addition.
const BLOCK: usize = 16;

/// `N` outputs: the middle pixels, and for each distance the pixels on both sides, which share a weight.
#[inline(always)]
fn fold<'p, const N: usize>(
    half: &[f32],
    middle: &[f32; N],
    sides: impl Fn(usize) -> (&'p [f32; N], &'p [f32; N]),
) -> [f32; N] {
    let mut sums = middle.map(|v| half[0] * v);
    for (distance, weight) in half.iter().enumerate().skip(1) {
        let (a, b) = sides(distance);
        for i in 0..N {
            sums[i] += weight * (a[i] + b[i]);
        }
    }
    sums
}

/// `N` pixels from `at` on.
#[inline(always)]
fn pixels<const N: usize>(x: &[f32], at: usize) -> &[f32; N] {
    x[at..][..N].first_chunk().expect("N pixels")
}

fn check(kernel: &str, src: usize, dst: usize, width: usize) {
    same_len(kernel, src, dst);
    assert!(src.is_multiple_of(width), "{kernel}: the length of the plane is no multiple of its width {width}");
}

pub(super) fn along_rows(_: Group, Blur { width, taps }: Blur, src: &[f32], dst: &mut [f32]) {
    let width = width as usize;
    check("blur_rows", src.len(), dst.len(), width);
    for (src, dst) in src.chunks_exact(width).zip(dst.chunks_exact_mut(width)) {
        row(taps.half(), src, dst);
    }
}

fn row(half: &[f32], src: &[f32], dst: &mut [f32]) {
    let (radius, width) = (half.len() - 1, src.len());
    // Pixels whose whole neighbourhood lies in the row go in blocks; those near the ends, and the last few, one by one.
    let inner = radius..width.saturating_sub(radius);
    let mut next = inner.start.min(width);
    while next + BLOCK <= inner.end {
        let sides = |k| (pixels(src, next - k), pixels(src, next + k));
        dst[next..][..BLOCK].copy_from_slice(&fold::<BLOCK>(half, pixels(src, next), sides));
        next += BLOCK;
    }
    for i in (0..inner.start.min(width)).chain(next..width) {
        let sides = |k| (pixels(src, i.saturating_sub(k)), pixels(src, (i + k).min(width - 1)));
        [dst[i]] = fold::<1>(half, pixels(src, i), sides);
    }
}

pub(super) fn along_cols(_: Group, Blur { width, taps }: Blur, src: HaloPart<'_, f32>, dst: &mut [f32]) {
    let (width, own, all) = (width as usize, src.own(), src.as_slice());
    check("blur_cols", own.len(), dst.len(), width);
    if dst.is_empty() {
        return;
    }
    let half = taps.half();
    // A row that the group cannot see does not exist, so that clamping to what it sees clamps to the plane.
    let (first, last) = (own.start / width, all.len() / width - 1);
    for (i, dst) in dst.chunks_exact_mut(width).enumerate() {
        let y = first + i;
        let above = |k: usize| y.saturating_sub(k) * width;
        let below = |k: usize| (y + k).min(last) * width;
        let (blocks, rest) = dst.as_chunks_mut::<BLOCK>();
        for (b, dst) in blocks.iter_mut().enumerate() {
            let x = b * BLOCK;
            *dst = fold(half, pixels(all, y * width + x), |k| (pixels(all, above(k) + x), pixels(all, below(k) + x)));
        }
        let done = width - rest.len();
        for (j, dst) in rest.iter_mut().enumerate() {
            let x = done + j;
            [*dst] = fold(half, pixels(all, y * width + x), |k| (pixels(all, above(k) + x), pixels(all, below(k) + x)));
        }
    }
}
