//! The same program in plain Vulkan, wgpu, vulkano and sterna, on one device, in turns: the host computes both inputs of 16 Mi
//! `f32`, the device adds `a · x` to `y`, the host sums `y`. Buffers are made once.
//!
//! ```text
//! cd bench/peers && cargo run --release -- llvmpipe
//! ```
//!
//! The argument is a part of the device's name; without one it is the first device of the loader. Every result is compared with what
//! it must be, and every program has to say that it is on that device, by Vulkan. Prints medians and ratios.

mod plain;
mod saxpy;
mod shared;
mod vulkano;
mod wgpu;

use std::time::Instant;

use anyhow::{Result, ensure};

/// Elements of each buffer.
pub const N: usize = 16 << 20;
/// Workgroups of 256 invocations, in two rows: many devices take 65 535 in one.
pub const GROUPS: [u32; 3] = [(N / 256 / 2) as u32, 2, 1];
pub const A: f32 = 2.0;
/// Rounds that count, after one that does not.
const ROUNDS: usize = 5;

/// One way of writing the program.
pub trait Peer {
    /// One round: inputs by [`inputs`], the launch, the sum of `y`.
    fn round(&mut self, round: usize) -> Result<f64>;
}

/// What the host computes: whole numbers, so that every sum is exact.
pub fn inputs(round: usize, x: &mut [f32], y: &mut [f32]) {
    for (i, (x, y)) in x.iter_mut().zip(y).enumerate() {
        *x = ((i & 1023) + round) as f32;
        *y = (i & 255) as f32;
    }
}

/// What the host makes of the result.
pub fn sum(y: &[f32]) -> f64 {
    // Sixteen sums side by side, which is as fast as memory.
    let (blocks, rest) = y.as_chunks::<16>();
    let mut sums = [0.0_f64; 16];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(s, v)| *s += f64::from(*v));
    }
    sums.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

fn expected(round: usize) -> f64 {
    (0..N).map(|i| (i & 255) as f64 + f64::from(A) * ((i & 1023) + round) as f64).sum()
}

fn main() -> Result<()> {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let device = plain::name(&wanted)?;
    println!("{device}: {N} f32, median of {ROUNDS} rounds after one, in turns");
    let mut peers: Vec<(&str, Box<dyn Peer>)> = vec![
        ("plain Vulkan, mapped", Box::new(plain::Plain::new(&device, false)?)),
        ("plain Vulkan, staging", Box::new(plain::Plain::new(&device, true)?)),
        ("wgpu", Box::new(wgpu::Wgpu::new(&device)?)),
        ("vulkano", Box::new(vulkano::Vulkano::new(&device)?)),
    ];
    for (name, kind) in shared::KINDS {
        match shared::Shared::new(&device, kind) {
            Ok(peer) => peers.push((name, Box::new(peer))),
            Err(e) => println!("SKIP {name}: {e:#}"),
        }
    }
    let mut times = vec![Vec::new(); peers.len()];
    for round in 0..=ROUNDS {
        let want = expected(round);
        for ((name, peer), times) in peers.iter_mut().zip(&mut times) {
            let begin = Instant::now();
            let got = peer.round(round)?;
            let time = begin.elapsed().as_secs_f64();
            ensure!(got == want, "{name}, round {round}: {got} instead of {want}");
            if round > 0 {
                times.push(time);
            }
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 2]
        })
        .collect();
    println!("{:<24} {:>9} {:>17} {:>10} {:>10}", "", "median", "least–greatest", "÷ mapped", "÷ staging");
    for (((name, _), times), median) in peers.iter().zip(&times).zip(&medians) {
        println!(
            "{name:<24} {:>6.1} ms {:>7.1}–{:<6.1} ms {:>10.2} {:>10.2}",
            median * 1e3,
            times[0] * 1e3,
            times[times.len() - 1] * 1e3,
            median / medians[0],
            median / medians[1]
        );
    }
    Ok(())
}
