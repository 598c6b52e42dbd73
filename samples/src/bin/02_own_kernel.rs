//! Three kernels of one's own: the Mandelbrot set, its histogram, and its colours. See `src/fractal.rs` for the kernels.
//!
//! `cargo run --release --bin 02_own_kernel -- --width 2048`

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use sterna_samples::say;
use sterna_samples::{devices, fractal, picture, report};

/// Draws the Mandelbrot set with kernels of one's own, and checks every pixel.
#[derive(Parser)]
struct Options {
    /// Columns of the picture
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=16384))]
    width: u32,
    /// Where counting ends
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=4096))]
    limit: u32,
    /// Device memory, such as 64MiB
    #[arg(long, value_parser = sterna::parse_bytes)]
    memory: Option<u64>,
    /// Folder for fractal.png, made if it does not exist
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let (options, start) = (Options::parse(), Instant::now());
    let rt = devices::open(options.memory)?;
    let computing = Instant::now();
    let fractal = fractal::run(&rt, fractal::Frame::whole_set(options.width as usize, options.limit))?;
    let took = computing.elapsed();
    for line in fractal.sketch(64) {
        say!("{}", line.trim_end());
    }
    say!("moved: {}", fractal.moved);
    say!("computed in {}", report::time(took));
    let what = fractal.check()?;
    say!("wrote {}", picture::write(&fractal.picture(), &options.out, "fractal.png")?.display());
    report::checked(&what, start);
    Ok(())
}
