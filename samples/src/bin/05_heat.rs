//! Heat flow with four times more data than the device has memory. The right result, and what it cost to move.
//!
//! `cargo run --release --bin 05_heat -- --memory 64MiB --steps 8`; try `STERNA_POLICY=demand` and `STERNA_POLICY=remote`.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use sterna::human;
use sterna_samples::say;
use sterna_samples::{devices, heat, picture, report};

/// Lets heat flow on a plate that is larger than the device's memory, and checks the temperatures.
#[derive(Parser)]
struct Options {
    /// Device memory; the data are four times as large. Default: STERNA_DEVICE_MEMORY, or 64MiB
    #[arg(long, value_parser = sterna::parse_bytes)]
    memory: Option<u64>,
    /// Steps of heat flow
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Folder for heat.png, made if it does not exist
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let (options, start) = (Options::parse(), Instant::now());
    let named = std::env::var_os("STERNA_DEVICE_MEMORY").is_some_and(|v| !v.is_empty());
    let rt = devices::open(options.memory.or(if named { None } else { Some(64 << 20) }))?;
    let computing = Instant::now();
    let heat = heat::run(&rt, options.steps as usize)?;
    let took = computing.elapsed();

    let grid = human(4 * heat.now.len() as u64);
    say!(
        "2 grids of {} × {} ({grid} each) on a device with {}",
        heat.plate.width,
        heat.plate.height,
        human(devices::budget(&rt))
    );
    say!("{} steps in {}, filling included", options.steps, report::time(took));
    say!("moved: {}", heat.moved);
    say!("{} moved / {} used: {:.2} for each", human(heat.moved.total()), human(heat.used), heat.amplification());
    say!("read  {}\nwrote {}  ({})", heat.places[0], heat.places[1], sterna_samples::places::LEGEND);
    let what = heat.check()?;
    let picture = picture::glow(heat.plate.width, &heat.now, 1024);
    say!("wrote {}", picture::write(&picture, &options.out, "heat.png")?.display());
    report::checked(&what, start);
    Ok(())
}
