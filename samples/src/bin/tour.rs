//! The tour: finds the devices, runs a short form of every sample, says what moved and why, and checks everything.
//!
//! `cargo run --release`, or with pictures: `cargo run --release -- --out out`

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sterna_samples::tour::Tour;

/// Runs a short form of every sample, says what moved and why, and checks everything.
#[derive(Parser)]
struct Options {
    /// Folder for pictures, made if it does not exist; without it none are written
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let tour = Tour { out: Options::parse().out };
    Ok(if tour.run()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
