//! **Question.** Does memory cost by what is touched, not by what is allocated?
//!
//! **Floor.** None: the targets are absolute. Time and memory for 1 TiB that nobody touches, and for a launch over 64 KiB of it; then
//! what the engine keeps for each 2 MiB block that two devices have touched.
//!
//! Memory is the growth of what `smaps` calls anonymous: heap, stacks and the engine's tables. Data lies in memory files, of the arena
//! and of the CPU devices, and does not count there. The system's page tables come beside it: they grow with mappings, and the
//! data's own are among them. Threads and buffers that come with the first use are made before, on another allocation.

use std::time::Instant;

use anyhow::Result;
use sterna::Runtime;
use sterna::hmm::BLOCK;
use sterna::kernels::{fill, reduce_sum_len, reduce_sum_u64};

use super::Row;
use crate::measure::{Resident, Runs, Unit};
use crate::table::Sheet;

pub(super) const ROW: Row = Row {
    name: "allocation",
    question: "does memory cost by what is touched, not by what is allocated?",
    variants: &[""],
    run,
};

const TIB: usize = 1 << 40;
const BLOCKS: u64 = 256;
const MOST_RESIDENT: f64 = 16.0 * 1_048_576.0;
const MOST_A_BLOCK: f64 = 10.0 * 1024.0;

fn run(sheet: &mut Sheet) -> Result<()> {
    terabyte(sheet)?;
    metadata(sheet)
}

fn terabyte(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().memory(64 << 20).build()?;
    let (mut made, mut grown, mut launched, mut dropped) =
        (Runs::default(), Runs::default(), Runs::default(), Runs::default());
    let mut right = true;
    for _ in 0..5 {
        let before = Resident::now();
        let t = Instant::now();
        let mut x = rt.shared::<u8>(TIB)?;
        made.push(t.elapsed().as_secs_f64());
        grown.push(Resident::now().all.saturating_sub(before.all) as f64);
        let t = Instant::now();
        let mut part = x.range_mut(TIB / 2..TIB / 2 + (64 << 10))?;
        rt.launch(&fill(3_u8), (&mut part,))?.wait()?;
        launched.push(t.elapsed().as_secs_f64());
        right &= x[TIB / 2 + 9] == 3 && x[TIB / 2 - 1] == 0 && x[TIB - 1] == 0;
        let t = Instant::now();
        drop(x);
        dropped.push(t.elapsed().as_secs_f64());
    }
    sheet.value("1 TiB: allocate", Unit::Time, &made, Some(10e-3));
    sheet.value("1 TiB: resident memory it adds", Unit::Bytes, &grown, Some(MOST_RESIDENT));
    sheet.value("1 TiB: launch over 64 KiB of it, and wait", Unit::Time, &launched, None);
    sheet.exact("1 TiB: contents", if right { "right" } else { "wrong" }, "right", right);
    sheet.value("1 TiB: drop", Unit::Time, &dropped, None);
    Ok(())
}

fn metadata(sheet: &mut Sheet) -> Result<()> {
    let bytes = BLOCKS * BLOCK;
    let rt = Runtime::builder().device("cpu:0").device("cpu:1").memory(bytes + (64 << 20)).build()?;
    // Records are by place in the arena and stay resident: what was touched once is covered, so that nothing is measured twice.
    let mut covers = Vec::new();
    for (what, writes) in [("read by two devices", false), ("written by two devices in turn", true)] {
        for blocks in [8, BLOCKS] {
            let mut sums = rt.shared::<u64>(reduce_sum_len((bytes / 8) as usize))?;
            let mut x = rt.shared::<u64>((blocks * BLOCK / 8) as usize)?;
            let before = Resident::now();
            for d in rt.devices() {
                if writes {
                    rt.on(&d).launch(&fill(1_u64), (&mut x,))?.wait()?;
                } else {
                    let mut sums = sums.range_mut(..reduce_sum_len(x.len()))?;
                    rt.on(&d).launch(&reduce_sum_u64(), (&x, &mut sums))?.wait()?;
                }
            }
            let after = Resident::now();
            drop(x);
            let dropped = Resident::now();
            covers.push(rt.shared::<u8>((blocks * BLOCK) as usize)?);
            if blocks == BLOCKS {
                let each = |a: u64, b: u64| Runs::one(a.saturating_sub(b) as f64 / BLOCKS as f64);
                let anonymous = each(after.anonymous, before.anonymous);
                sheet.value(&format!("metadata a block, {what}"), Unit::Bytes, &anonymous, Some(MOST_A_BLOCK));
                sheet.value("  once it is dropped", Unit::Bytes, &each(dropped.anonymous, before.anonymous), None);
                sheet.value("  the system's page tables", Unit::Bytes, &each(after.page_tables, before.page_tables), None);
            }
        }
    }
    Ok(())
}
