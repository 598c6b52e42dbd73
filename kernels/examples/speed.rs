//! How fast the Rust forms of the stock kernels are on one thread, beside a plain copy of memory.
//!
//! ```text
//! cargo run --release -p sterna-kernels --example speed
//! ```
//!
//! Prints the best of five runs as bytes of memory traffic a second, and asserts nothing. Figures of a build without
//! `--release` say nothing. What a kernel costs on a device of sterna is measured by `sterna-bench`.

#[path = "../src/testing/random.rs"]
mod random;
#[path = "../src/testing/simple.rs"]
mod simple;

use std::hint::black_box;
use std::time::Instant;

use random::Random;
use simple::{Buf, launch};
use sterna_kernels::{Gaussian, blur_cols, blur_rows, reduce_sum, reduce_sum_len, saxpy, spmv_csr, stencil5};

/// Prints the best of five runs, as bytes of memory traffic a second.
fn rate(what: &str, bytes: usize, mut f: impl FnMut()) {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    });
    let best = best.fold(f64::INFINITY, f64::min);
    println!("{what:<24} {:6.2} GB/s", bytes as f64 / best / 1e9);
}

fn main() {
    const WIDTH: usize = 4096;
    let (x, mut y) = (Random(1).noise(WIDTH * WIDTH), Random(2).noise(WIDTH * WIDTH));
    let size = size_of_val(&*x);
    rate("copy (1 read, 1 write)", 2 * size, || black_box(&mut y).copy_from_slice(&x));
    rate("saxpy", 3 * size, || launch(&saxpy(0.5), 0, &[Buf::read(&x), Buf::write(&mut y)]));
    let mut sums = vec![0.0_f32; reduce_sum_len(x.len())];
    rate("reduce_sum", size, || launch(&reduce_sum(), 0, &[Buf::read(&x), Buf::write(&mut sums)]));
    rate("stencil5", 2 * size, || launch(&stencil5(WIDTH, 0.2), 0, &[Buf::read(&x), Buf::write(&mut y)]));
    for radius in [3, 6, 16] {
        let g = Gaussian::with_radius(radius as f32 / 3.0, radius);
        rate(&format!("blur_rows, radius {radius}"), 2 * size, || {
            launch(&blur_rows(WIDTH, &g), 0, &[Buf::read(&x), Buf::write(&mut y)]);
        });
        rate(&format!("blur_cols, radius {radius}"), 2 * size, || {
            launch(&blur_cols(WIDTH, &g), 0, &[Buf::read(&x), Buf::write(&mut y)]);
        });
    }
    let (row_ptr, col) = Random(3).graph(1 << 20, 1 << 20);
    let (val, x) = (Random(4).noise(col.len()), Random(5).noise(1 << 20));
    let mut y = vec![0.0_f32; 1 << 20];
    rate("spmv_csr, random columns", 8 * col.len() + 12 * y.len(), || {
        let bufs = [Buf::read(&row_ptr), Buf::read(&col), Buf::read(&val), Buf::read(&x), Buf::write(&mut y)];
        launch(&spmv_csr(), 0, &bufs);
    });
}
