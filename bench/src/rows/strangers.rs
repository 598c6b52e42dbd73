//! **Question.** What does it cost to drop, to fill or to launch 16 KiB while 256 MiB of something else are on their way to the device?
//!
//! **Floors.** The same with nothing on its way, in the same round. Beside it stands how long the move took: who waited for it would
//! need that. What there is between figure and floor is the processors that the move takes, and for a launch, which has to go by the same
//! thread, the step of the move that is under way.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sterna::kernels::fill;
use sterna::{Runtime, Shared};

use super::Row;
use crate::measure::{Runs, Unit};
use crate::table::Sheet;

pub(super) const ROW: Row = Row {
    name: "strangers",
    question: "what do 16 KiB cost while 256 MiB of something else move?",
    variants: &["transparent", "none"],
    run,
};

const ROUNDS: usize = 9;
const SMALL: usize = 4096;
const BIG: usize = 64 << 20;

type What = fn(&Runtime, &mut Shared<u32>) -> Result<(), sterna::Error>;

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().device("cpu:0").memory(512 << 20).build()?;
    let mechanism = rt.stats().mechanism;
    let mut big = rt.shared_with(BIG, |i| i as u32)?;
    let all: [(&str, What); 3] = [
        ("discard", |_, x| x.discard(..)),
        ("fill_with", |_, x| x.fill_with(|_| 3)),
        ("launch and wait, not resident", |rt, x| rt.launch(&fill(3_u32), (x,))?.wait()),
    ];
    for (name, what) in all {
        let (mut ours, mut floor, mut moves) = (Runs::default(), Runs::default(), Runs::default());
        for _ in 0..ROUNDS {
            let alone = timed(&rt, what)?;
            big[5] = 1;
            big.prefetch_to_host();
            rt.sync()?;
            big.iter_mut().for_each(|v| *v = 7);
            let start = Instant::now();
            big.prefetch_to(&rt.devices()[0]);
            let beside = timed(&rt, what)?;
            rt.sync()?;
            moves.push(start.elapsed().as_secs_f64());
            ours.push(beside.as_secs_f64());
            floor.push(alone.as_secs_f64());
        }
        sheet.at_most(&format!("{mechanism}: {name}, beside a move"), Unit::Time, &ours, &floor, None);
        sheet.at_most(&format!("{mechanism}:   beside the move itself"), Unit::Time, &ours, &moves, Some(0.2));
    }
    Ok(())
}

fn timed(rt: &Runtime, what: What) -> Result<Duration> {
    let mut x = rt.shared_with(SMALL, |i| i as u32)?;
    let start = Instant::now();
    what(rt, &mut x)?;
    let took = start.elapsed();
    ensure!(x.iter().all(|v| *v == 0 || *v == 3), "wrong contents");
    Ok(took)
}
