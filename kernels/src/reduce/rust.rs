//! The Rust forms.

use sterna_hal::kernel::Group;

use crate::chunks::same_len;

/// How many sums advance side by side.
pub(crate) const LANES: usize = 16;

/// Sums that advance side by side: what the compiler turns into vector additions (one running sum is a chain that it may
/// not reorder), and shorter sums lose less.
#[derive(Default)]
pub(crate) struct Lanes([f64; LANES]);

impl Lanes {
    /// Adds one number to each sum.
    #[inline(always)]
    pub(crate) fn add(&mut self, block: [f32; LANES]) {
        for (lane, v) in self.0.iter_mut().zip(block) {
            *lane += f64::from(v);
        }
    }

    /// Adds fewer numbers than there are sums: the end of a slice.
    pub(crate) fn add_rest(&mut self, rest: impl Iterator<Item = f32>) {
        for (lane, v) in self.0.iter_mut().zip(rest) {
            *lane += f64::from(v);
        }
    }

    /// The sum of the sums, rounded once.
    pub(crate) fn total(&self) -> f32 {
        self.0.iter().sum::<f64>() as f32
    }
}

/// Puts a group's result where it belongs.
///
/// A grid may be a little larger than the buffers ask for, where a device wants it rectangular; a group with neither input nor
/// output has nothing to do.
///
/// # Panics
/// If there is input and no room for its sum.
pub(crate) fn put<T>(kernel: &str, inputs: usize, sums: &mut [T], total: T) {
    match sums {
        [sum] => *sum = total,
        _ => assert!(inputs == 0, "{kernel}: fewer partial sums than reduce_sum_len gives"),
    }
}

pub(super) fn sum(_: Group, (): (), x: &[f32], sums: &mut [f32]) {
    let mut lanes = Lanes::default();
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        lanes.add(*block);
    }
    lanes.add_rest(rest.iter().copied());
    put("reduce_sum", x.len(), sums, lanes.total());
}

pub(super) fn sum_u64(_: Group, (): (), x: &[u64], sums: &mut [u64]) {
    put("reduce_sum_u64", x.len(), sums, x.iter().fold(0, |a: u64, b| a.wrapping_add(*b)));
}

pub(super) fn abs_diff(_: Group, (): (), x: &[f32], y: &[f32], sums: &mut [f32]) {
    same_len("reduce_abs_diff", x.len(), y.len());
    let mut lanes = Lanes::default();
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        lanes.add(std::array::from_fn(|i| (x[i] - y[i]).abs()));
    }
    lanes.add_rest(x_rest.iter().zip(y_rest).map(|(x, y)| (x - y).abs()));
    put("reduce_abs_diff", x.len(), sums, lanes.total());
}
