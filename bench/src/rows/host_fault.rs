//! **Question.** What does the host's first touch of pages that a device wrote cost, for a granule (64 KiB) and a block (2 MiB)?
//!
//! **Floor.** The raw mechanism without an engine ([`RawFaults`]): the same bytes copied between memory of the same kind, the same
//! system calls, served on the faulting processor. Both run over 512 MiB, written anew before each round and touched out of
//! order, so that no buffer is in a cache; the faulting thread stays on one processor.
//!
//! Run once for each mechanism, in a process of its own.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hmm::{BLOCK, GRANULE, Grow};
use sterna::kernels::fill;
use sterna::policy::{FaultRule, LaunchEvent, Place, Policy};
use sterna::{Cause, Mechanism, Runtime};

use super::Row;
use crate::floor::{How, RawFaults};
use crate::measure::{Pinned, Runs, Unit, median};
use crate::table::{Line, Sheet, Verdict};

pub(super) const ROW: Row = Row {
    name: "host-fault",
    question: "what does the first touch of pages that a device wrote cost?",
    variants: &["transparent", "signal"],
    run,
};

const BYTES: u64 = 512 << 20;
const ROUNDS: u8 = 5;
const MOST: Option<f64> = Some(1.3);

/// Brings what launches declare; host faults reach as far as `host` says.
pub(super) struct Reach(pub(super) Grow);

impl Policy for Reach {
    fn name(&self) -> &'static str {
        "reach"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        places.extend(event.args.iter().map(|_| Place::Migrate));
    }

    fn allocated(&mut self, _: u64) -> FaultRule {
        FaultRule { host: self.0, device: Grow::DENSITY }
    }
}

fn run(sheet: &mut Sheet) -> Result<()> {
    let cpu = Pinned::first_cpu();
    let mut raw = None;
    for (name, chunk, grow) in [("granule", GRANULE, Grow::GRANULE), ("block", BLOCK, Grow::BLOCK)] {
        let device = CpuDevice::new(0, CpuConfig { memory: BYTES, ..CpuConfig::default() })?;
        let rt = Runtime::builder().open_device(Arc::new(device)).custom_policy(Reach(grow)).build()?;
        let mechanism = rt.stats().mechanism;
        let raw = match raw {
            Some(r) => r,
            None => {
                let how = if mechanism == Mechanism::Signal { How::Signal } else { How::Message };
                *raw.insert(RawFaults::start(how, BYTES as usize, &[cpu], true)?)
            }
        };
        one_size(sheet, &rt, raw, &format!("{mechanism}, {name}"), chunk)?;
    }
    Ok(())
}

fn one_size(sheet: &mut Sheet, rt: &Runtime, raw: &RawFaults, what: &str, chunk: u64) -> Result<()> {
    let mut x = rt.shared_with((BYTES / 8) as usize, |i| i as u64)?;
    let (mut ours, mut floor, mut copy) = (Runs::default(), Runs::default(), Runs::default());
    let faults = BYTES / chunk;
    let mut right = true;
    let before = rt.stats();
    for round in 1..=ROUNDS {
        let bytes = u64::from_ne_bytes([round; 8]);
        rt.launch(&fill(bytes), (&mut x,))?.wait()?;
        let _here = Pinned::to(Pinned::first_cpu());
        ours.push(touch_all(&x, chunk, bytes, &mut right));
        floor.push(raw.round(chunk as usize, round, |w| {
            // SAFETY: the window, whose every page is there or comes when it is touched.
            let slice = unsafe { std::slice::from_raw_parts(w.at.cast::<u64>(), w.bytes / 8) };
            touch_all(slice, chunk, bytes, &mut right)
        })?);
        copy.push(copies(raw, chunk as usize));
    }
    let after = rt.stats();
    sheet.at_most(what, Unit::Time, &ours, &floor, MOST);
    sheet.add(&Line::new(Verdict::Info, format!("{what}: the copy alone")).floor(Unit::Time.spread(&copy)));
    let moved = after.devices[0].to_host.by(Cause::HostFault) - before.devices[0].to_host.by(Cause::HostFault);
    let count = after.devices[0].host_faults - before.devices[0].host_faults;
    let expected = (faults * u64::from(ROUNDS), BYTES * u64::from(ROUNDS));
    sheet.exact(
        &format!("{what}: faults, bytes, contents"),
        format!("{count}, {}, {}", sterna::human(moved), if right { "right" } else { "wrong" }),
        format!("{}, {}, right", expected.0, sterna::human(expected.1)),
        right && (count, moved) == expected,
    );
    Ok(())
}

/// Touches every chunk once, out of order, and gives the median time of a touch.
fn touch_all(x: &[u64], chunk: u64, expected: u64, right: &mut bool) -> f64 {
    let elements = (chunk / 8) as usize;
    let n = x.len() / elements;
    let mut times = Vec::with_capacity(n);
    for i in out_of_order(n) {
        let t = Instant::now();
        let value = black_box(x[black_box(i * elements + 5)]);
        times.push(t.elapsed().as_secs_f64());
        *right &= value == expected;
    }
    median(&mut times)
}

/// The median time of copying a chunk as the floor does, without a fault.
fn copies(raw: &RawFaults, chunk: usize) -> f64 {
    let n = raw.window.bytes / chunk;
    let one = |i: usize| {
        let t = Instant::now();
        raw.copy(i * chunk, chunk);
        t.elapsed().as_secs_f64()
    };
    median(&mut out_of_order(n).map(one).collect::<Vec<_>>())
}

/// The numbers below `n`, a power of two, each once.
pub(super) fn out_of_order(n: usize) -> impl Iterator<Item = usize> {
    assert!(n.is_power_of_two(), "an odd step visits each number once");
    (0..n).map(move |i| i.wrapping_mul(0x9E37_79B1) & (n - 1))
}
