//! The smallest program: `y = 2·x + y` on the device, with plain slices on the host.
//!
//! `cargo run --release --bin 01_hello`

#![forbid(unsafe_code)]

use std::time::Instant;

use sterna::Runtime;
use sterna::kernels::saxpy;
use sterna_samples::say;

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let samples: Vec<f32> = (0..1_000_000).map(|i| i as f32).collect();

    let rt = Runtime::new()?; // best device; STERNA_DEVICE chooses
    let x = rt.shared_from(&samples)?; // Shared<f32>, derefs to [f32]
    let mut y = rt.shared::<f32>(x.len())?; // zero-filled, costs nothing until touched
    y[0] = 1.0; // ordinary host code
    rt.launch(&saxpy(2.0), (&x, &mut y))?; // returns at once; pages move to the device as needed
    say!("y[7] = {}", y[7]); // waits for the kernel; that page comes home, only that one

    let right = |(i, y): (usize, &f32)| *y == 2.0 * samples[i] + if i == 0 { 1.0 } else { 0.0 };
    anyhow::ensure!(y.iter().enumerate().all(right), "y is not 2·x + y");
    say!("✓ {} elements are right ({:.1?})", y.len(), start.elapsed());
    Ok(())
}
