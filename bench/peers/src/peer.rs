//! What every way of writing the program has in common: the arithmetic of the host, and how a round is told.

use std::time::{Duration, Instant};

use anyhow::Result;

/// The factor of `y = a x + y`.
pub const A: f32 = 2.0;
/// Groups of 256 invocations, whatever the length.
pub const GROUPS: u32 = 16_384;

/// One round, in three parts: computing the inputs until the device may read them; the kernel; until the sum is known.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub inputs: Duration,
    pub kernel: Duration,
    pub result: Duration,
    pub sum: u64,
}

impl Turn {
    pub fn whole(&self) -> Duration {
        self.inputs + self.kernel + self.result
    }
}

/// A way of writing the program. Its buffers are made in its constructor.
pub trait Peer {
    fn name(&self) -> &'static str;
    /// The name of the device it runs on, as the device gives it.
    fn device(&self) -> String;
    fn round(&mut self, seed: u32) -> Result<Turn>;
}

/// Tells the parts of a round apart.
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the last call.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

// Small whole numbers: sums and products are exact in f32.
fn x(i: usize, seed: u32) -> f32 {
    (i as u32).wrapping_add(seed).wrapping_mul(40_503) as u16 as f32
}

fn y(i: usize, seed: u32) -> f32 {
    (i as u32 ^ seed) as u8 as f32
}

/// The host's first half: both inputs.
pub fn fill(xs: &mut [f32], ys: &mut [f32], seed: u32) {
    xs.iter_mut().enumerate().for_each(|(i, v)| *v = x(i, seed));
    ys.iter_mut().enumerate().for_each(|(i, v)| *v = y(i, seed));
}

/// The host's second half.
pub fn sum(ys: &[f32]) -> u64 {
    ys.iter().map(|v| *v as u32 as u64).sum()
}

/// What the sum must be.
pub fn expected(n: usize, seed: u32) -> u64 {
    (0..n).map(|i| 2 * x(i, seed) as u64 + y(i, seed) as u64).sum()
}
