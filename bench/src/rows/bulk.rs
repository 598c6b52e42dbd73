//! **Question.** How fast do 256 MiB move to the device and home again when a program asks for them?
//!
//! **Floor.** The same bytes between two buffers in 2 MiB folios, one `memcpy` a thread on as many threads as there are
//! processors. Both sides of the move have their memory already: the first rounds do not count. The host stores to every page
//! before the way to the device, a launch writes every element before the way home, so that all bytes have to travel.
//!
//! Beside it, without a target: allocations in 4 KiB folios, as a host that fills memory page by page leaves them, on their
//! first journey (later ones make folios of them).

use anyhow::Result;
use sterna::kernels::fill;
use sterna::{Device, Runtime, Shared};

use super::Row;
use crate::floor::{Copiers, Mapping};
use crate::measure::{Runs, Unit, processors, seconds};
use crate::table::Sheet;

pub(super) const ROW: Row =
    Row { name: "bulk", question: "how fast do 256 MiB move when a program asks for them?", variants: &[""], run };

const BYTES: usize = 256 << 20;
const PAGE: usize = 4096 / 8;
const WARM: usize = 2;
const ROUNDS: usize = 9;
const LEAST: Option<f64> = Some(0.95);

/// Speeds of one kind of allocation.
#[derive(Default)]
struct Ways {
    there: Runs,
    home: Runs,
    floor: Runs,
    wrong: Vec<String>,
}

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().memory(2 * BYTES as u64).build()?;
    let device = &rt.devices()[0];
    let copiers = Copiers::new(processors())?;
    let (from, to) = (Mapping::in_folios(BYTES)?, Mapping::in_folios(BYTES)?);

    let mut folios = Ways::default();
    let mut x = rt.shared_with(BYTES / 8, |i| i as u64)?;
    for round in 0..WARM + ROUNDS {
        one_round(&rt, device, &mut x, round, &mut folios)?;
        folios.floor.push(speed(|| copiers.copy(from, to)));
    }
    drop(x);
    let mut small = Ways::default();
    for round in 0..WARM + ROUNDS {
        let mut x = rt.shared::<u64>(BYTES / 8)?;
        one_round(&rt, device, &mut x, round, &mut small)?;
        small.floor.push(speed(|| copiers.copy(from, to)));
    }
    for (name, w, least) in [("2 MiB folios", &mut folios, LEAST), ("4 KiB folios, first journey", &mut small, None)] {
        for runs in [&mut w.there, &mut w.home, &mut w.floor] {
            runs.skip(WARM);
        }
        sheet.at_least(&format!("{name}, to the device"), Unit::Speed, &w.there, &w.floor, least);
        sheet.at_least(&format!("{name}, home"), Unit::Speed, &w.home, &w.floor, least);
        let is = if w.wrong.is_empty() { "so in every round".to_string() } else { w.wrong.join("; ") };
        sheet.exact(&format!("{name}: bytes moved, contents"), is, "256 MiB each way, right", w.wrong.is_empty());
    }
    Ok(())
}

fn one_round(rt: &Runtime, device: &Device, x: &mut Shared<u64>, round: usize, ways: &mut Ways) -> Result<()> {
    for first in x[..].iter_mut().step_by(PAGE) {
        *first = round as u64;
    }
    let before = rt.stats();
    ways.there.push(speed(|| {
        x.prefetch_to(device);
        // Only fails with an error of a launch, of which there is none.
        let _ = rt.sync();
    }));
    let there = rt.stats();
    rt.launch(&fill(round as u64 + 1), (&mut *x,))?.wait()?;
    ways.home.push(speed(|| {
        x.prefetch_to_host();
        let _ = rt.sync();
    }));
    let home = rt.stats();
    let moved = (there.to_device() - before.to_device(), home.to_host() - there.to_host());
    if moved != (BYTES as u64, BYTES as u64) {
        ways.wrong.push(format!("round {round}: {} there, {} home", sterna::human(moved.0), sterna::human(moved.1)));
    }
    if x.iter().step_by(PAGE).any(|v| *v != round as u64 + 1) {
        ways.wrong.push(format!("round {round}: contents"));
    }
    Ok(())
}

/// Bytes a second that `f` moves.
fn speed(f: impl FnOnce()) -> f64 {
    BYTES as f64 / seconds(f)
}
