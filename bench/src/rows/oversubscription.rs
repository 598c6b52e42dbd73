//! **Question.** When a program uses four times the device's memory, does exactly what has to move, move?
//!
//! **Floor.** A model of eviction by block, least recently launched first ([`lru`]), fed with the same launches: the bytes moved each
//! way must equal it, or the result is wrong. Beside it what Belady's rule, which knows the future, would have moved ([`belady`]).
//!
//! Each launch reads and writes one chunk of an array that the host has filled. One worker, and a wait after every launch, so that
//! nothing depends on timing; what happens without the waits is reported without a target.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hmm::BLOCK;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Cause, Runtime};

use super::Row;
use crate::measure::{Runs, Unit};
use crate::table::Sheet;

pub(super) const ROW: Row = Row {
    name: "oversubscription",
    question: "at four times the device's memory, does exactly what has to move, move?",
    variants: &[""],
    run,
};

/// Blocks that the device has room for, and blocks of the array.
const ROOM: u32 = 32;
const ARRAY: u32 = 4 * ROOM;
const ELEMENTS: usize = (BLOCK / 8) as usize;

fn step() -> Kernel<(EachMut<u64>,)> {
    Kernel::new("step", (), (each_mut(8192),), |_: Group, (), y: &mut [u64]| {
        for v in y {
            *v = v.wrapping_mul(3).wrapping_add(1);
        }
    })
}

fn run(sheet: &mut Sheet) -> Result<()> {
    // There and back again, and the first chunk once more after every fourth: some chunks are still there when they are due.
    let sequence = |chunk: u32| {
        let chunks: Vec<Range<u32>> = (0..ARRAY).step_by(chunk as usize).map(|b| b..(b + chunk).min(ARRAY)).collect();
        let forth = chunks.iter().chain(chunks.iter().rev()).chain(&chunks);
        let often = forth.enumerate().flat_map(|(i, c)| [Some(c), (i % 4 == 3).then_some(&chunks[0])]);
        often.flatten().cloned().collect::<Vec<_>>()
    };
    one(sheet, "chunks of 8 blocks", &sequence(8), true)?;
    one(sheet, "chunks of 5 blocks", &sequence(5), true)?;
    one(sheet, "chunks of 8 blocks, no waits", &sequence(8), false)
}

fn one(sheet: &mut Sheet, what: &str, launches: &[Range<u32>], wait: bool) -> Result<()> {
    let memory = u64::from(ROOM) * BLOCK;
    let device = CpuDevice::new(0, CpuConfig { memory, workers: 1, ..CpuConfig::default() })?;
    let rt = Runtime::builder().open_device(Arc::new(device)).policy("declared")?.build()?;
    let mut x = rt.shared_with(ARRAY as usize * ELEMENTS, |i| i as u64)?;
    let t = Instant::now();
    for blocks in launches {
        let mut part = x.range_mut(blocks.start as usize * ELEMENTS..blocks.end as usize * ELEMENTS)?;
        let pending = rt.launch(&step(), (&mut part,))?;
        if wait {
            pending.wait()?;
        }
    }
    rt.sync()?;
    let time = t.elapsed().as_secs_f64();
    let moved = &rt.stats().devices[0];
    let is = Traffic { there: moved.to_device.total(), home: moved.to_host.by(Cause::Eviction) };
    if wait {
        let should = lru(launches);
        sheet.exact(&format!("{what}: bytes moved"), is.show(), should.show(), is == should);
        sheet.note("  faults of the device", moved.device_faults.to_string());
        sheet.note("  Belady's rule would move", belady(launches).show());
    } else {
        sheet.note(&format!("{what}: bytes moved"), is.show());
        sheet.note("  faults of the device", moved.device_faults.to_string());
    }
    sheet.value("  time of the launches", Unit::Time, &Runs::one(time), None);
    let mut times = vec![0; ARRAY as usize];
    launches.iter().flat_map(Clone::clone).for_each(|b| times[b as usize] += 1);
    let expected = |i: usize| (0..times[i / ELEMENTS]).fold(i as u64, |v, _| v.wrapping_mul(3).wrapping_add(1));
    let right = x.host(..)?.iter().enumerate().all(|(i, v)| *v == expected(i));
    sheet.exact("  contents", if right { "right" } else { "wrong" }, "right", right);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Default)]
struct Traffic {
    there: u64,
    home: u64,
}

impl Traffic {
    fn show(self) -> String {
        format!("{} there, {} home", sterna::human(self.there), sterna::human(self.home))
    }
}

/// What moves if a launch's blocks come in order, and the block whose last launch is longest ago makes room. Every block that
/// leaves was written.
fn lru(launches: &[Range<u32>]) -> Traffic {
    let mut held: BTreeMap<u32, usize> = BTreeMap::new();
    let mut t = Traffic::default();
    for (now, blocks) in launches.iter().enumerate() {
        held.iter_mut().filter(|h| blocks.contains(h.0)).for_each(|h| *h.1 = now);
        for b in blocks.clone().filter(|b| !held.contains_key(b)).collect::<Vec<_>>() {
            if held.len() as u32 == ROOM {
                let oldest = held.iter().map(|(b, last)| (*last, *b)).min().map_or(0, |o| o.1);
                held.remove(&oldest);
                t.home += BLOCK;
            }
            held.insert(b, now);
            t.there += BLOCK;
        }
    }
    t
}

/// The same, if the block whose next launch is furthest ahead makes room.
fn belady(launches: &[Range<u32>]) -> Traffic {
    let mut held: Vec<u32> = Vec::new();
    let mut t = Traffic::default();
    for (now, blocks) in launches.iter().enumerate() {
        let next = |b: u32| launches[now..].iter().position(|l| l.contains(&b)).unwrap_or(usize::MAX);
        for b in blocks.clone() {
            if held.contains(&b) {
                continue;
            }
            if held.len() as u32 == ROOM {
                let furthest = (0..held.len()).max_by_key(|i| next(held[*i])).unwrap_or(0);
                held.swap_remove(furthest);
                t.home += BLOCK;
            }
            held.push(b);
            t.there += BLOCK;
        }
    }
    t
}
