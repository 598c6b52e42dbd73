//! **Question.** What does the host's first touch of 64 KiB cost whose bytes are in a file, in memory or on a disk, with the file in the
//! system's cache?
//!
//! **Floor.** The best of three ways to bring the same bytes into shared memory by plain calls ([`Way`]), without a fault, followed by
//! what maps them: `UFFDIO_CONTINUE`, or with guards the load's own page fault. Each round has new memory of both kinds and touches every
//! piece of the file once, out of order.
//!
//! **The mechanism alone.** A floor without a fault says nothing of what a fault costs: beside it stands the raw mechanism
//! ([`RawFaults`]) on pages that are there, one of which is mapped, with no file and nothing copied, touched by as many threads. The last
//! line of each has both taken together. A thread that stays on its processor is served by the reader there; one that does not is
//! mostly woken on another that sleeps, since the reader still runs on its own.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use sterna::hmm::Grow;
use sterna::{Mechanism, Runtime};

use super::Row;
use super::host_fault::{Reach, out_of_order};
use crate::floor::{Contents, Empty, How, PIECE, RawFaults, Way, system_of};
use crate::measure::{Pinned, Runs, Unit, cpus, median};
use crate::table::{Line, Sheet, Verdict};

pub(super) const ROW: Row = Row {
    name: "file-fault",
    question: "what does the first touch of 64 KiB of a file cost?",
    variants: &["transparent", "signal", "guard"],
    run,
};

const BYTES: usize = 64 << 20;
const PIECES: usize = BYTES / PIECE;
const ROUNDS: usize = 5;
const MOST: f64 = 1.4;
/// Of a piece, the byte that is looked at.
const AT: usize = 8 * 13;

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().device("cpu:0").memory(64 << 20).custom_policy(Reach(Grow::GRANULE)).build()?;
    let raw = match rt.stats().mechanism {
        Mechanism::Transparent => Some(RawFaults::start(How::Message, BYTES, &cpus()[..cpus().len().min(4)], false)?),
        Mechanism::Signal => Some(RawFaults::start(How::Signal, BYTES, &[], false)?),
        _ => None,
    };
    for folder in [PathBuf::from("/dev/shm"), on_a_disk()?] {
        let system = system_of(&folder).context("a file system without a name")?;
        if folder.starts_with("/dev/shm") && system != "tmpfs" {
            sheet.add(&Line::new(Verdict::Skipped, "tmpfs").figure(format!("/dev/shm is on {system}")));
            continue;
        }
        one_system(sheet, (&rt, raw), (&folder, &system))?;
    }
    Ok(())
}

/// A folder that is not in memory: the one for passing files, or that of this program.
fn on_a_disk() -> Result<PathBuf> {
    let program = std::env::current_exe()?.parent().map(Path::to_path_buf);
    let mut folders = [Some(std::env::temp_dir()), program].into_iter().flatten();
    folders.find(|f| system_of(f).is_some_and(|s| s != "tmpfs")).context("all folders are in memory: set TMPDIR")
}

fn one_system(sheet: &mut Sheet, (rt, raw): (&Runtime, Option<&RawFaults>), (folder, system): (&Path, &str)) -> Result<()> {
    let contents = Contents::new(folder, BYTES, |i| [byte(i); 8])?;
    let mechanism = rt.stats().mechanism;
    let mut right = true;
    let before = rt.stats().devices[0].host_faults;
    let mut rounds = 0;
    for (threads, stay, most) in [(1, false, Some(MOST)), (2, false, Some(MOST)), (1, true, None), (2, true, None)] {
        let (mut ours, mut alone, mut floors) = (Runs::default(), Runs::default(), [const { Runs::new() }; 3]);
        let each = |f: &(dyn Fn(usize) -> u8 + Sync)| each_piece(threads, stay, f);
        for round in 0..=ROUNDS {
            // SAFETY: nobody writes the file.
            let x = unsafe { rt.map_file::<u8>(&contents.path)? };
            let (time, good) = each(&|i| black_box(x[black_box(i * PIECE + AT)]));
            drop(x);
            (right, rounds) = (right && good, rounds + 1);
            ours.push(time);
            for (way, runs) in Way::ALL.into_iter().zip(&mut floors) {
                let memory = Empty::new(&contents, mechanism != Mechanism::Guard)?;
                let (time, good) = each(&|i| memory.bring(way, i, AT).unwrap_or_default());
                right &= good;
                runs.push(time);
            }
            if let Some(raw) = raw {
                // One page of each piece; all of them have the same bytes.
                let touch = |i: usize| {
                    // SAFETY: inside the window, whose every page is there or comes when it is touched.
                    let one = unsafe { raw.window.at.add(i * PIECE).read_volatile() };
                    if one == 1 { byte(i) } else { 0 }
                };
                let (time, good) = raw.round(PAGE, 1, |_| each(&touch))?;
                right &= good;
                alone.push(time);
            }
            if round == 0 {
                // The first has what every later one finds done.
                [&mut ours, &mut alone].into_iter().chain(&mut floors).for_each(|r| r.skip(1));
            }
        }
        let what = format!(
            "{mechanism}, {system}, {threads} thread{}{}",
            if threads > 1 { "s" } else { "" },
            if stay { ", staying" } else { "" }
        );
        report(sheet, &what, (&ours, &alone, &floors), most);
    }
    let faults = rt.stats().devices[0].host_faults - before;
    let expected = (rounds * PIECES) as u64;
    sheet.exact(
        &format!("{mechanism}, {system}: faults, contents"),
        format!("{faults}, {}", if right { "right" } else { "wrong" }),
        format!("{expected}, right"),
        right && faults == expected,
    );
    Ok(())
}

/// A page, as the mechanism alone maps them.
const PAGE: usize = 4096;

/// What is in a piece of the file.
fn byte(piece: usize) -> u8 {
    (piece % 251) as u8 + 1
}

fn report(sheet: &mut Sheet, what: &str, (ours, alone, floors): (&Runs, &Runs, &[Runs; 3]), most: Option<f64>) {
    let Some((way, floor)) = Way::ALL.into_iter().zip(floors).min_by(|a, b| a.1.median().total_cmp(&b.1.median())) else {
        return;
    };
    sheet.at_most(&format!("{what}: {}", way.name()), Unit::Time, ours, floor, most);
    if !alone.is_empty() {
        sheet.add(&Line::new(Verdict::Info, "  the mechanism alone, no file").floor(Unit::Time.spread(alone)));
        sheet.at_most("  both taken together", Unit::Time, ours, &floor.plus(alone), None);
    }
}

/// Calls `bring` for each piece, out of order, from a number of threads at once: the median time of a call, and whether all gave what
/// is in their pieces. With `stay` each thread keeps to a processor of its own.
fn each_piece(threads: usize, stay: bool, bring: &(dyn Fn(usize) -> u8 + Sync)) -> (f64, bool) {
    let (start, right, cpus) = (Barrier::new(threads), AtomicBool::new(true), cpus());
    let one = |me: usize| {
        let _here = stay.then(|| Pinned::to(cpus[me % cpus.len()]));
        let mut times = Vec::with_capacity(PIECES / threads);
        start.wait();
        for i in out_of_order(PIECES).skip(me).step_by(threads) {
            let t = Instant::now();
            let value = bring(i);
            times.push(t.elapsed().as_secs_f64());
            if value != byte(i) {
                right.store(false, Ordering::Relaxed);
            }
        }
        times
    };
    let mut times: Vec<f64> = std::thread::scope(|s| {
        let started: Vec<_> = (0..threads).map(|me| s.spawn(move || one(me))).collect();
        started.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
    });
    (median(&mut times), right.into_inner() && times.len() == PIECES)
}
