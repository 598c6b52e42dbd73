//! Kernels of one's own: the Mandelbrot set, coloured by a histogram of itself.
//!
//! Three kernels, each with another statement of what a workgroup gets of its buffers:
//!
//! | kernel | buffers | mapping |
//! |---|---|---|
//! | `escape` | counts, written | each group has 16 rows of its own |
//! | `tally` | counts, read; histogram, changed | each group has a chunk; all groups add to the histogram atomically |
//! | `shade` | counts, read; palette, read; pixels, written | each group has a chunk; all see the whole palette |
//!
//! The statement is all that is needed for safe code to run in parallel: `escape` gets `&mut [u32]` with its own rows, and no
//! other group can have them.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use image::RgbImage;
use sterna::bytemuck::{Pod, Zeroable};
use sterna::kernel::{Each, EachOut, Group, Kernel, Scatter, Whole, each, each_out, rows_out, scatter, whole};
use sterna::{Runtime, Shared};

use crate::moved::Moved;
use crate::{forms, picture, places, report};

/// Rows a group of `escape`.
const ROWS: usize = 16;
/// Elements a group of `tally` and `shade`: 64 KiB of counts, so that no two groups need the same page.
const CHUNK: usize = 16 * 1024;

/// The part of the plane to look at. A kernel's value is any plain struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[bytemuck(crate = "sterna::bytemuck")]
pub struct Frame {
    /// Real part of the first column.
    pub left: f64,
    /// Imaginary part of the first row.
    pub top: f64,
    /// Distance of two pixels.
    pub step: f64,
    /// Columns.
    pub width: u32,
    /// Where counting ends.
    pub limit: u32,
}

impl Frame {
    /// The whole set, `width` pixels wide, with four columns to three rows.
    #[must_use]
    pub fn whole_set(width: usize, limit: u32) -> Self {
        Self { left: -2.3, top: -1.2, step: 3.2 / width as f64, width: width as u32, limit }
    }

    fn height(&self) -> usize {
        self.width as usize * 3 / 4
    }
}

/// How many steps of `z ← z² + c` stay within the circle of radius 2, at most `limit`.
fn steps_inside(c: (f64, f64), limit: u32) -> u32 {
    let (mut re, mut im) = (0.0_f64, 0.0_f64);
    for n in 0..limit {
        let (re2, im2) = (re * re, im * im);
        if re2 + im2 > 4.0 {
            return n;
        }
        (re, im) = (re2 - im2 + c.0, 2.0 * re * im + c.1);
    }
    limit
}

fn escape(frame: Frame) -> Kernel<(EachOut<u32>,)> {
    fn body(group: Group, f: Frame, counts: &mut [u32]) {
        let width = f.width as usize;
        for (row, counts) in counts.chunks_exact_mut(width).enumerate() {
            let im = f.top + (group.index() * ROWS + row) as f64 * f.step;
            for (column, n) in counts.iter_mut().enumerate() {
                *n = steps_inside((f.left + column as f64 * f.step, im), f.limit);
            }
        }
    }
    let kernel = Kernel::new("escape", frame, (rows_out(frame.width as usize, ROWS),), body);
    forms::with(kernel, include_bytes!("glsl/escape.spv"))
}

fn tally() -> Kernel<(Each<u32>, Scatter<u32>)> {
    fn body(_: Group, (): (), counts: &[u32], histogram: &[AtomicU32]) {
        // Added up for the group first: one atomic operation a group and bin, not one a pixel.
        let mut own = vec![0_u32; histogram.len()];
        counts.iter().for_each(|n| own[*n as usize] += 1);
        for (all, own) in histogram.iter().zip(own).filter(|(_, own)| *own > 0) {
            all.fetch_add(own, Ordering::Relaxed);
        }
    }
    forms::with(Kernel::new("tally", (), (each(CHUNK), scatter()), body), include_bytes!("glsl/tally.spv"))
}

fn shade() -> Kernel<(Each<u32>, Whole<u32>, EachOut<u32>)> {
    fn body(_: Group, (): (), counts: &[u32], palette: &[u32], pixels: &mut [u32]) {
        for (pixel, n) in pixels.iter_mut().zip(counts) {
            *pixel = palette[*n as usize];
        }
    }
    let kernel = Kernel::new("shade", (), (each(CHUNK), whole(), each_out(CHUNK)), body);
    forms::with(kernel, include_bytes!("glsl/shade.spv"))
}

/// The picture with all that led to it.
#[derive(Debug)]
pub struct Fractal {
    frame: Frame,
    counts: Shared<u32>,
    histogram: Shared<u32>,
    pixels: Shared<u32>,
    palette: Vec<u32>,
    /// What moved.
    pub moved: Moved,
    /// Where the pages of counts and pixels were at the end.
    pub places: [String; 2],
}

/// Computes the picture of `frame`.
///
/// # Errors
/// Those of the runtime.
pub fn run(rt: &Runtime, frame: Frame) -> Result<Fractal> {
    let before = rt.stats();
    let len = frame.width as usize * frame.height();
    let mut counts = rt.shared::<u32>(len)?;
    let mut histogram = rt.shared::<u32>(frame.limit as usize + 1)?;
    let mut pixels = rt.shared::<u32>(len)?;

    rt.launch(&escape(frame), (&mut counts,))?;
    rt.launch(&tally(), (&counts, &mut histogram))?;
    let palette = rt.shared_from(&colours(&histogram))?; // waits for both, and the histogram's page comes home
    rt.launch(&shade(), (&counts, &palette, &mut pixels))?.wait()?;

    let places = [places::bar(&counts, 16)?, places::bar(&pixels, 16)?];
    Ok(Fractal { frame, palette: palette.to_vec(), moved: Moved::since(rt, &before), places, counts, histogram, pixels })
}

/// A colour for each count, so that every colour gets as many pixels as the others: the histogram, added up.
fn colours(histogram: &[u32]) -> Vec<u32> {
    let outside = &histogram[..histogram.len() - 1];
    let all: u64 = outside.iter().map(|n| u64::from(*n)).sum();
    let mut seen = 0;
    let mut list: Vec<u32> = outside
        .iter()
        .map(|n| {
            seen += u64::from(*n);
            colour(seen as f64 / all.max(1) as f64)
        })
        .collect();
    list.push(0); // the set itself is black
    list
}

/// Night blue, sea green, sand, white.
fn colour(t: f64) -> u32 {
    let stops = [[8.0, 12.0, 48.0], [20.0, 110.0, 130.0], [235.0, 190.0, 110.0], [255.0, 252.0, 240.0]];
    let at = t.clamp(0.0, 1.0) * 3.0;
    let (i, part) = ((at as usize).min(2), at - f64::from((at as u32).min(2)));
    (0..3).fold(0, |rgb, c| rgb << 8 | (stops[i][c] + (stops[i + 1][c] - stops[i][c]) * part) as u32)
}

impl Fractal {
    /// Compares everything with plain loops on the host, and says what was compared.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self) -> Result<String> {
        let f = self.frame;
        let width = f.width as usize;
        let mut tally = vec![0_u32; self.histogram.len()];
        for (i, n) in self.counts.iter().enumerate() {
            let (x, y) = (i % width, i / width);
            let expect = steps_inside((f.left + x as f64 * f.step, f.top + y as f64 * f.step), f.limit);
            ensure!(*n == expect, "column {x}, row {y}: {n} steps, and a plain loop says {expect}");
            tally[expect as usize] += 1;
        }
        ensure!(self.histogram[..] == tally[..], "the histogram is not that of the counts");
        ensure!(self.palette == colours(&tally), "the palette is not that of the histogram");
        let shaded = self.counts.iter().map(|n| self.palette[*n as usize]);
        ensure!(self.pixels.iter().copied().eq(shaded), "a pixel has another colour than its count");
        Ok(format!("{} pixels and the histogram equal a plain loop's", report::count(self.counts.len())))
    }

    /// The picture.
    #[must_use]
    pub fn picture(&self) -> RgbImage {
        picture::packed(self.frame.width as usize, &self.pixels)
    }

    /// The picture in characters, `columns` wide; a character is twice as high as wide.
    #[must_use]
    pub fn sketch(&self, columns: usize) -> Vec<String> {
        let (width, cell) = (self.frame.width as usize, self.frame.width as usize / columns.max(1));
        let ink = |n: u32| match n {
            n if n >= self.frame.limit => '#',
            n => *[' ', '.', ':', '-', '=', '+', '*'].get(n.max(2).ilog2() as usize - 1).unwrap_or(&'*'),
        };
        let counts: &[u32] = &self.counts;
        let line = |y: usize| (0..columns).map(|x| ink(counts[y * 2 * cell * width + x * cell])).collect();
        (0..self.frame.height() / (2 * cell).max(1)).map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_points() {
        assert_eq!(steps_inside((0.0, 0.0), 50), 50);
        assert_eq!(steps_inside((-1.0, 0.0), 50), 50);
        assert_eq!(steps_inside((2.0, 2.0), 50), 1);
    }

    #[test]
    fn palette_has_a_colour_for_each_count() {
        let p = colours(&[5, 0, 5, 9]);
        assert_eq!(p.len(), 4);
        assert_eq!((p[3], p[0]), (0, p[1]));
        assert_eq!(p[2], 0x00ff_fcf0);
        assert_eq!(colours(&[0, 0, 4]).len(), 3);
    }

    #[test]
    fn a_width_that_fits_no_chunk() {
        let rt = crate::devices::open(Some(64 << 20)).unwrap();
        let f = run(&rt, Frame::whole_set(332, 40)).unwrap();
        f.check().unwrap();
        assert_eq!(f.picture().dimensions(), (332, 249));
        assert!(f.sketch(40).iter().any(|l| l.contains('#')));
    }
}
