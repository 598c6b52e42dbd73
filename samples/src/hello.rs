//! The smallest program, and where its pages are after each line. `src/bin/01_hello.rs` is the same without the looking.

#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use sterna::kernels::{reference, saxpy};
use sterna::{Runtime, Shared};

use crate::moved::Moved;
use crate::places;

/// Where the pages are after one line of the program.
#[derive(Debug)]
pub struct Step {
    /// The line.
    pub what: &'static str,
    /// Where the pages of `x` and `y` are.
    pub places: [String; 2],
    /// What moved meanwhile.
    pub moved: Moved,
}

/// Runs the program on `len` elements, checks it, and tells what each line moved.
///
/// # Errors
/// A wrong result, or an error of the runtime.
pub fn run(rt: &Runtime, len: usize) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut before = rt.stats();
    let mut note = |what, x: &Shared<f32>, y: &Shared<f32>| -> Result<()> {
        let places = [places::bar(x, 16)?, places::bar(y, 16)?];
        steps.push(Step { what, places, moved: Moved::since(rt, &before) });
        before = rt.stats();
        Ok(())
    };

    let x = rt.shared_with(len, |i| (i % 1000) as f32)?;
    let mut y = rt.shared_with(len, |i| (i % 7) as f32)?;
    note("filled", &x, &y)?;

    let mut expect: Vec<f32> = y.to_vec();
    reference::saxpy(2.0, &x, &mut expect);

    rt.launch(&saxpy(2.0), (&x, &mut y))?.wait()?;
    note("launched", &x, &y)?;

    let seventh = y[7];
    note("read y[7]", &x, &y)?;

    ensure!(seventh == expect[7] && y[..] == expect[..], "y is not 2·x + y");
    note("read all", &x, &y)?;
    Ok(steps)
}
