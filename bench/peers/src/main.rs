//! One program written in several ways: the host computes two inputs, a Vulkan device computes `y = a x + y`, the host sums the
//! result. Buffers are made once. Each way is the one that its library's documentation shows; each result is compared; each says
//! on which device it ran, and all must name the same.

mod peer;
mod raw;
mod unified;
#[cfg(feature = "cubecl")]
mod with_cubecl;
#[cfg(feature = "vulkano")]
mod with_vulkano;
#[cfg(feature = "wgpu")]
mod with_wgpu;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use peer::{Peer, Turn, expected};

/// The same program in raw Vulkan, wgpu, vulkano, cubecl and sterna, in turns.
#[derive(Parser)]
struct Options {
    /// The device: a part of its name.
    #[arg(long, default_value = "llvmpipe")]
    device: String,
    /// Elements of each input, in Mi (2^20).
    #[arg(long, default_value_t = 16)]
    mi: usize,
    /// Rounds that count; one more comes before.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let n = options.mi << 20;
    let device = options.device.as_str();
    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(raw::Raw::new(device, n, raw::Memory::Mapped)?),
        Box::new(raw::Raw::new(device, n, raw::Memory::Staged)?),
    ];
    #[cfg(feature = "vulkano")]
    peers.push(Box::new(with_vulkano::Vulkano::new(device, n)?));
    #[cfg(feature = "wgpu")]
    peers.push(Box::new(with_wgpu::Wgpu::new(device, n)?));
    #[cfg(feature = "cubecl")]
    peers.push(Box::new(with_cubecl::Cubecl::new(device, n)?));
    for table in unified::tables(device)? {
        peers.push(Box::new(unified::Unified::new(device, n, &table)?));
    }
    for p in &peers {
        ensure!(p.device().contains(device), "{} runs on {:?}, not on {device:?}", p.name(), p.device());
    }
    println!("{} Mi elements of f32, {} rounds after one, on {}", options.mi, options.rounds, peers[0].device());

    let mut turns: Vec<Vec<Turn>> = peers.iter().map(|_| Vec::new()).collect();
    for round in 0..=options.rounds {
        eprint!("\rround {round} of {} ", options.rounds);
        for (p, turns) in peers.iter_mut().zip(&mut turns) {
            let seed = round as u32 * 37 + 11;
            let turn = p.round(seed).with_context(|| p.name())?;
            ensure!(turn.sum == expected(n, seed), "{} says {}, right is {}", p.name(), turn.sum, expected(n, seed));
            if round > 0 {
                turns.push(turn);
            }
        }
    }
    eprintln!();
    report(&peers, &turns);
    Ok(())
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

fn report(peers: &[Box<dyn Peer>], turns: &[Vec<Turn>]) {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!("| | inputs ms | kernel ms | result ms | whole ms (least – most) | of raw, mapped | of raw, staged |");
    println!("|---|---|---|---|---|---|---|");
    let whole = |i: usize| turns[i].iter().map(Turn::whole).collect::<Vec<_>>();
    // Ratios round by round: what disturbs one program disturbs its neighbours.
    let ratio = |i: usize, of: usize| {
        let mut r: Vec<f64> = whole(i).iter().zip(whole(of)).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
        r.sort_unstable_by(f64::total_cmp);
        r[r.len() / 2]
    };
    for (i, p) in peers.iter().enumerate() {
        let part = |f: fn(&Turn) -> Duration| ms(median(turns[i].iter().map(f).collect()));
        let all = whole(i);
        println!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} ({:.1} – {:.1}) | {:.2} | {:.2} |",
            p.name(),
            part(|t| t.inputs),
            part(|t| t.kernel),
            part(|t| t.result),
            ms(median(all.clone())),
            ms(all.iter().copied().min().unwrap_or_default()),
            ms(all.iter().copied().max().unwrap_or_default()),
            ratio(i, 0),
            ratio(i, 1),
        );
    }
    println!("every result is right");
}
