//! The same program in plain Vulkan, wgpu, vulkano, cubecl and sterna, on one device, in turns: the host computes both inputs of 16 Mi
//! `f32`, the device adds `a · x` to `y`, the host sums `y`. Once with buffers that are made before, once with buffers that are made in
//! each round, whose making, first touch and freeing count; what a library or driver keeps of freed memory is its own affair.
//!
//! ```text
//! cd bench/peers && cargo run --release -- llvmpipe
//! ```
//!
//! The argument is a part of the device's name; without one it is the first device of the loader. Every result is compared with what
//! it must be, and every program has to say that it is on that device, by Vulkan. Prints medians and ratios.

mod cubecl;
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
    /// Frees the buffers, if there are any, and makes others: where the host computes, and where the device does.
    fn renew(&mut self) -> Result<()>;

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
        ("cubecl", Box::new(cubecl::Cubecl::new(&device)?)),
    ];
    for (name, kind, policy) in shared::KINDS {
        match shared::Shared::new(&device, kind, policy) {
            Ok(peer) => peers.push((name, Box::new(peer))),
            Err(e) => println!("SKIP {name}: {e:#}"),
        }
    }
    table("buffers made once", &mut peers, false)?;
    table("buffers made anew in each round", &mut peers, true)
}

/// Measures all peers, one round each in turn, and prints medians beside those of plain Vulkan.
fn table(title: &str, peers: &mut [(&str, Box<dyn Peer>)], fresh: bool) -> Result<()> {
    let mut times = vec![Vec::new(); peers.len()];
    if !fresh {
        peers.iter_mut().try_for_each(|(_, peer)| peer.renew())?;
    }
    for round in 0..=ROUNDS {
        let want = expected(round);
        for ((name, peer), times) in peers.iter_mut().zip(&mut times) {
            let begin = Instant::now();
            if fresh {
                peer.renew()?;
            }
            let got = peer.round(round)?;
            let time = begin.elapsed().as_secs_f64();
            ensure!(got == want, "{name}, round {round}: {got} instead of {want}");
            if round > 0 {
                times.push(time);
            }
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    let median = |i: usize| times[i][times[i].len() / 2];
    println!("\n| {title} | median | least–greatest | ÷ mapped | ÷ staging |\n|---|---|---|---|---|");
    for (i, ((name, _), times)) in peers.iter().zip(&times).enumerate() {
        println!(
            "| {name} | {:.1} ms | {:.1}–{:.1} ms | {:.3} | {:.3} |",
            median(i) * 1e3,
            times[0] * 1e3,
            times[times.len() - 1] * 1e3,
            median(i) / median(0),
            median(i) / median(1)
        );
    }
    Ok(())
}
