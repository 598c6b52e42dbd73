//! **Question.** Does a launch cost more, the more of them are on their way?
//!
//! **Floors.** The same for a thousand launches, in the same round: what a launch costs its caller, and what it costs to have it ended, in
//! time of processors, which another program on the machine hardly changes: of the thread that asks, then of the whole process. All wait behind a launch that does not end before the last was asked for, on the same bytes, on many ranges of one allocation, or behind a
//! launch of another device. And a failure: what it costs each of those behind it that it fails them.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Runtime, Shared};

use super::Row;
use crate::measure::{Runs, Unit, process_seconds, thread_seconds};
use crate::table::Sheet;

pub(super) const ROW: Row =
    Row { name: "backlog", question: "does a launch cost more, the more are on their way?", variants: &[""], run };

const ROUNDS: usize = 3;
/// How many launches, and how often in a round.
const FEW: (usize, usize) = (1000, 10);
const MORE: [usize; 2] = [10_000, 100_000];
const MOST: f64 = 2.0;
const TILE: usize = 32;
const TILES: usize = 1 << 12;

static OPEN: AtomicBool = AtomicBool::new(false);

type Kernel1 = Kernel<(EachMut<u32>,)>;

fn blocker() -> Kernel1 {
    Kernel::new("blocker", (), (each_mut(1 << 20),), |_: Group, (), _: &mut [u32]| {
        while !OPEN.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    })
}

fn one() -> Kernel1 {
    Kernel::new("one", (), (each_mut(TILE),), |_: Group, (), y: &mut [u32]| y[0] += 1)
}

fn fails() -> Kernel1 {
    Kernel::new("fails", (), (each_mut(TILE),), |_: Group, (), _: &mut [u32]| {
        std::panic::resume_unwind(Box::new("as planned"))
    })
}

struct Parts {
    rt: Runtime,
    first: Shared<u32>,
    tiles: Shared<u32>,
}

type Ask = fn(&mut Parts, usize) -> Result<(), sterna::Error>;

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().device("cpu:0").device("cpu:1").memory(64 << 20).build()?;
    let (first, tiles) = (rt.shared::<u32>(TILE)?, rt.shared::<u32>(TILE * TILES)?);
    let mut parts = Parts { rt, first, tiles };
    let all: [(&str, Ask); 4] = [
        ("on the same bytes", |p, _| p.rt.launch(&one(), (&mut p.tiles.range_mut(..TILE)?,)).map(drop)),
        ("on 4096 ranges", |p, i| {
            let at = i * 2_654_435_761 % TILES * TILE;
            p.rt.launch(&one(), (&mut p.tiles.range_mut(at..at + TILE)?,)).map(drop)
        }),
        ("behind another device", |p, _| {
            let second = p.rt.devices()[1].clone();
            p.rt.on(&second).launch(&one(), (&mut p.first,)).map(drop)
        }),
        ("behind a failure", |p, i| {
            if i == 0 {
                p.rt.launch(&fails(), (&mut p.tiles.range_mut(..TILE)?,))?
            } else {
                p.ask()?
            };
            Ok(())
        }),
    ];
    for (name, ask) in all {
        round(&mut parts, MORE[0], ask)?;
        let mut runs: [[Runs; 2]; 3] = Default::default();
        for _ in 0..ROUNDS {
            let mut few = (0.0, 0.0);
            for _ in 0..FEW.1 {
                let (asked, ended) = round(&mut parts, FEW.0, ask)?;
                few = (few.0 + asked / FEW.1 as f64, few.1 + ended / FEW.1 as f64);
            }
            let each = [few, round(&mut parts, MORE[0], ask)?, round(&mut parts, MORE[1], ask)?];
            for (runs, (asked, ended)) in runs.iter_mut().zip(each) {
                runs[0].push(asked);
                runs[1].push(ended);
            }
        }
        let [few, more @ ..] = &runs;
        for (what, i) in [("asking", 0), ("ending", 1)] {
            for (n, many) in MORE.iter().zip(more) {
                sheet.at_most(&format!("{name}: {what}, {n} beside {}", FEW.0), Unit::Time, &many[i], &few[i], Some(MOST));
            }
        }
    }
    Ok(())
}

impl Parts {
    fn ask(&mut self) -> Result<sterna::Pending, sterna::Error> {
        self.rt.launch(&one(), (&mut self.tiles.range_mut(..TILE)?,))
    }
}

/// Seconds of processors a launch, of asking for `n` while the device is held up and of having them ended.
fn round(parts: &mut Parts, n: usize, ask: Ask) -> Result<(f64, f64)> {
    OPEN.store(false, Ordering::Release);
    parts.tiles.fill_with(|_| 0)?;
    let device = parts.rt.devices()[0].clone();
    parts.rt.launch(&one(), (&mut parts.tiles,))?.wait()?; // resident
    let held = parts.rt.on(&device).launch(&blocker(), (&mut parts.first,))?;
    let start = thread_seconds();
    for i in 0..n {
        ask(parts, i)?;
    }
    let asked = thread_seconds() - start;
    ensure!(!held.is_done(), "the device was not held up");
    OPEN.store(true, Ordering::Release);
    let start = process_seconds();
    while let Err(e) = parts.rt.sync() {
        ensure!(matches!(e, sterna::Error::Kernel { .. } | sterna::Error::Upstream { .. }), "{e}");
    }
    let ended = process_seconds() - start;
    parts.first.fill_with(|_| 0)?;
    Ok((asked / n as f64, ended / n as f64))
}
