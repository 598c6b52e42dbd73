//! Heat flow on a plate with four times more data than the device has memory.
//!
//! Two grids of twice the device's memory each: every step reads one and writes the other, so no step can find its data in
//! place. The program does not know: it allocates, launches and looks.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use sterna::kernels::{reference, stencil5};
use sterna::{Pending, Runtime, Shared};

use crate::moved::Moved;
use crate::{devices, places, progress, report};

/// How fast heat flows: stable up to 0.25.
const K: f32 = 0.2;
/// How far device and reference may differ; temperatures are from 0 to 1.
const TOLERANCE: f32 = 1e-5;
/// Up to this many elements times steps the whole plate is computed again to check it; above, only some rows.
const CHECK_ALL: usize = 1 << 29;
/// How many launches may be on their way: enough that the device never waits for the host.
const AHEAD: usize = 4;

/// Hot spots: column and row of the middle, radius (all in heights of the plate), temperature.
const SPOTS: [(f32, f32, f32, f32); 5] = [
    (0.35, 0.4, 0.36, 1.0),
    (0.95, 0.65, 0.45, 0.8),
    (1.55, 0.35, 0.4, 0.95),
    (0.3, 0.85, 0.2, 0.6),
    (1.75, 0.8, 0.25, 0.7),
];

/// A plate's form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plate {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Plate {
    /// A plate of twice `memory` bytes, so that two of them are four times that; about twice as wide as high.
    ///
    /// # Errors
    /// Less memory than a plate makes sense for.
    pub fn twice(memory: u64) -> Result<Self> {
        let elements = usize::try_from(2 * memory / 4)?;
        ensure!(elements >= 1 << 12, "{memory} bytes of device memory are too few for a plate; take at least 64KiB");
        let width = elements.isqrt().next_power_of_two();
        Ok(Self { width, height: elements / width })
    }

    /// The temperature to begin with: a cold plate with hot spots, a hot upper edge and fine warm wires.
    fn initial(self, x: usize, y: usize) -> f32 {
        if y == 0 {
            return 1.0;
        }
        let (px, py) = (x as f32 / self.height as f32, y as f32 / self.height as f32);
        let wire = if (x % 97 < 3) != (y % 89 < 3) { 0.3 } else { 0.0 };
        SPOTS.iter().fold(wire, |t: f32, (cx, cy, r, peak)| {
            let far = ((px - cx).powi(2) + (py - cy).powi(2)) / r.powi(2);
            t.max(peak * (1.0 - far.min(1.0)).powi(2))
        })
    }
}

/// A plate after some steps.
#[derive(Debug)]
pub struct Heat {
    /// Its form.
    pub plate: Plate,
    steps: usize,
    /// The temperatures.
    pub now: Shared<f32>,
    /// What moved.
    pub moved: Moved,
    /// Bytes that the steps used: each reads a grid and writes the other.
    pub used: u64,
    /// Where the pages of both grids were at the end: the one read last and the one written last.
    pub places: [String; 2],
}

/// Lets heat flow for `steps` steps on a plate of twice the device's memory.
///
/// # Errors
/// Those of the runtime.
pub fn run(rt: &Runtime, steps: usize) -> Result<Heat> {
    let plate = Plate::twice(devices::budget(rt))?;
    let len = plate.width * plate.height;
    let mut now = rt.shared_with(len, |i| plate.initial(i % plate.width, i / plate.width))?;
    let mut next = rt.shared::<f32>(len)?;
    let before = rt.stats();

    let bar = progress::bar("heat flows", steps as u64);
    let step = stencil5(plate.width, K);
    let mut ahead: VecDeque<Pending> = VecDeque::new();
    for _ in 0..steps {
        ahead.push_back(rt.launch(&step, (&now, &mut next))?);
        std::mem::swap(&mut now, &mut next);
        if ahead.len() > AHEAD {
            ahead.pop_front().map_or(Ok(()), |p| p.wait())?;
            bar.inc(1);
        }
    }
    for launch in ahead {
        launch.wait()?;
        bar.inc(1);
    }
    bar.finish_and_clear();

    let places = [places::bar(&next, 16)?, places::bar(&now, 16)?];
    let used = 2 * 4 * len as u64 * steps as u64;
    Ok(Heat { plate, steps, now, moved: Moved::since(rt, &before), used, places })
}

impl Heat {
    /// Bytes moved for each byte used.
    #[must_use]
    pub fn amplification(&self) -> f64 {
        self.moved.total() as f64 / self.used.max(1) as f64
    }

    /// Compares with a plain computation, and says how much was compared: everything, or some rows of a large plate.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self) -> Result<String> {
        let Plate { width, height } = self.plate;
        if self.now.len().saturating_mul(self.steps) <= CHECK_ALL {
            self.check_rows(0..height)?;
            return Ok(format!(
                "all {} temperatures equal a plain computation to {TOLERANCE:.0e}",
                report::count(self.now.len())
            ));
        }
        let rows: Vec<usize> = (0..=15).map(|i| i * (height - 1) / 15).collect();
        for row in &rows {
            self.check_rows(*row..row + 1)?;
        }
        ensure!(self.now.iter().all(|t| (0.0..=1.0 + TOLERANCE).contains(t)), "a temperature that no part of the plate had");
        Ok(format!(
            "{} rows of {width} temperatures equal a plain computation to {TOLERANCE:.0e}; all lie between the first ones",
            rows.len()
        ))
    }

    /// Computes `rows` again. Heat flows one row a step, so `steps` rows on either side are enough to start from.
    fn check_rows(&self, rows: std::ops::Range<usize>) -> Result<()> {
        let Plate { width, height } = self.plate;
        let first = rows.start.saturating_sub(self.steps + 1);
        let last = (rows.end + self.steps + 1).min(height);
        let mut expect: Vec<f32> = (first * width..last * width).map(|i| self.plate.initial(i % width, i / width)).collect();
        for _ in 0..self.steps {
            expect = reference::stencil5(width, K, &expect);
        }
        let expect = &expect[(rows.start - first) * width..][..rows.len() * width];
        for (i, (a, b)) in self.now[rows.start * width..rows.end * width].iter().zip(expect).enumerate() {
            let (x, y) = (i % width, rows.start + i / width);
            ensure!((a - b).abs() <= TOLERANCE, "column {x}, row {y}: {a}, and a plain computation says {b}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plates_are_twice_the_memory() {
        assert_eq!(Plate::twice(64 << 20).unwrap(), Plate { width: 8192, height: 4096 });
        for memory in [64 << 10, 1 << 20, 3 << 20, 100_000_000] {
            let p = Plate::twice(memory).unwrap();
            let bytes = 4 * (p.width * p.height) as u64;
            assert!(bytes <= 2 * memory && bytes + 4 * p.width as u64 > 2 * memory, "{p:?}");
        }
        assert!(Plate::twice(1000).is_err());
    }

    #[test]
    fn some_rows_and_all_rows_agree() {
        let rt = devices::small(2 << 20).unwrap();
        let heat = run(&rt, 5).unwrap();
        heat.check().unwrap();
        for row in [0, 1, 7, heat.plate.height / 2, heat.plate.height - 1] {
            heat.check_rows(row..row + 1).unwrap();
        }
    }

    #[test]
    fn a_wrong_temperature_is_noticed() {
        let rt = devices::small(2 << 20).unwrap();
        let mut heat = run(&rt, 2).unwrap();
        heat.now[12_345] += 0.01;
        assert!(heat.check().unwrap_err().to_string().contains("a plain computation says"));
    }
}
