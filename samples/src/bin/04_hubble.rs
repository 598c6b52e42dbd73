//! Stars and galaxies of the Hubble deep field: decoded into shared memory, denoised on the device, circled in a picture.
//!
//! `cargo run --release --bin 04_hubble -- --memory 8MiB`

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use sterna_samples::say;
use sterna_samples::{devices, picture, report, sky};

/// Finds the stars and galaxies of a picture, circles them, and checks each.
#[derive(Parser)]
struct Options {
    /// Another picture, JPEG or PNG
    #[arg(long)]
    image: Option<PathBuf>,
    /// Standard deviation of the denoising curve, in pixels
    #[arg(long, default_value_t = 1.5, value_parser = sigma)]
    sigma: f32,
    /// Device memory, such as 8MiB
    #[arg(long, value_parser = sterna::parse_bytes)]
    memory: Option<u64>,
    /// Folder for hubble.png, made if it does not exist
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

fn sigma(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|s| *s > 0.0 && *s <= 5.0).ok_or_else(|| "expected a number above 0, at most 5".into())
}

fn main() -> anyhow::Result<()> {
    let (options, start) = (Options::parse(), Instant::now());
    let picture = options.image.as_deref().map_or_else(sky::hubble, sky::from_file)?;
    let rt = devices::open(options.memory)?;
    let computing = Instant::now();
    let sky = sky::run(&rt, &picture, options.sigma)?;
    say!("{} stars and galaxies in {}; the brightest:", sky.stars.len(), report::time(computing.elapsed()));
    say!("{:>6} {:>6} {:>9} {:>7} {:>7}", "column", "row", "light", "peak", "radius");
    for s in sky.stars.iter().take(8) {
        say!("{:>6} {:>6} {:>9.1} {:>7.3} {:>7}", s.x, s.y, s.flux, s.peak, s.radius);
    }
    say!("moved: {}", sky.moved);
    let what = sky.check()?;
    say!("wrote {}", picture::write(&sky.picture(), &options.out, "hubble.png")?.display());
    report::checked(&what, start);
    Ok(())
}
