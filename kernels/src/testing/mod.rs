//! What the tests of the kernels share.

#![allow(unsafe_code, reason = "hands raw arguments to Rust forms, as a backend does")]

mod random;
mod simple;

use proptest::prelude::*;
use sterna_hal::Access;
use sterna_hal::kernel::{Kernel, Params};

pub(crate) use random::Random;
pub(crate) use simple::{Buf, launch};

use crate::tile_rows;

/// Launches `kernel` with `bufs`. What is to be replaced entirely is filled with rubbish first.
pub(crate) fn run<P: Params>(kernel: &Kernel<P>, seed: u64, bufs: &[Buf<'_>]) {
    for (buf, desc) in bufs.iter().zip(&kernel.params()) {
        if desc.access == Access::Write && buf.writable {
            // SAFETY: made from an exclusive slice of so many bytes, whose elements are plain.
            unsafe { buf.at.write_bytes(0xA5, buf.len * buf.elem) };
        }
    }
    launch(kernel, seed, bufs);
}

/// Lengths that try a chunk of `chunk` elements: none, one, about one chunk, anything up to three.
pub(crate) fn lens(chunk: usize) -> impl Strategy<Value = usize> {
    let border = (0_usize..=3, 0_usize..=2).prop_map(move |(n, d)| (n * chunk + d).saturating_sub(1));
    prop_oneof![Just(0_usize), Just(1), border, 0..3 * chunk]
}

/// Width and height of planes that try the tiles of a kernel that looks `reach` rows up and down: no row, few rows, about one
/// tile, about two.
pub(crate) fn heights(reach: usize) -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![1_usize..4, 1_usize..80, 500_usize..3000].prop_flat_map(move |width| {
        let tile = tile_rows(width, reach);
        let about = move |n: usize| (n * tile).saturating_sub(1)..=n * tile + 1;
        (Just(width), prop_oneof![0_usize..4, about(1), about(2)])
    })
}

/// Asserts that no two elements differ by more than `tolerance`.
#[track_caller]
pub(crate) fn close(got: &[f32], expect: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expect.len());
    for (i, (g, e)) in got.iter().zip(expect).enumerate() {
        assert!((g - e).abs() <= tolerance, "element {i} is {g} and should be {e}");
    }
}
