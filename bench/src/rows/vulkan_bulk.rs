//! **Question.** How fast do 256 MiB move to a Vulkan device and home again, with each way of copies that the device makes itself?
//!
//! **Floor.** The same bytes by plain calls of the driver, right before each move: imported memory of the host in one `vkCmdCopyBuffer`,
//! with regions of 64 MiB, as long as what sterna imports at a time; four staging buffers in turn. One region is shown, too: software
//! drivers copy it by one `memcpy`, which where a processor has a large cache stores past it only from some 100 MiB a call on. As in `bulk`, both sides have their memory already, the host stores to every page before the way to
//! the device, and a launch writes every element before the way home.

use std::sync::Arc;

use anyhow::Result;
use sterna::Runtime;
use sterna::vulkan::{Copies, PageTable};

use super::Row;
use super::bulk::{BYTES, Bench};
use crate::floor::Mapping;
use crate::floor::vulkan_copies::PlainCopies;
use crate::measure::{Runs, Unit, seconds};
use crate::rows::vulkan::{first, opened};
use crate::table::Sheet;

pub(super) const ROW: Row = Row {
    name: "vulkan-bulk",
    question: "how fast do 256 MiB move to a Vulkan device when a program asks for them?",
    variants: &[""],
    run,
};

fn run(sheet: &mut Sheet) -> Result<()> {
    let Some(gpu) = first(sheet, ROW.name) else { return Ok(()) };
    let host = Mapping::in_folios(BYTES)?;
    // Without import there is nothing to show; the rows say so.
    let mut plain = PlainCopies::new(&gpu.name, host, true).ok();
    for (way, there) in [("there", true), ("home", false)] {
        let Some(plain) = &mut plain else { break };
        let (mut regions, mut one) = (Runs::default(), Runs::default());
        for _ in 0..5 {
            regions.push(speed(|| plain.copy(there))?);
            one.push(speed(|| plain.copy_in_one(there))?);
        }
        sheet.at_least(&format!("floor alone, {way}: 64 MiB a region beside one region"), Unit::Speed, &regions, &one, None);
    }
    for copies in [Copies::Imported, Copies::Staged] {
        for kind in [PageTable::Sparse, PageTable::Fixed] {
            let Some(device) = opened(sheet, &gpu, kind, Some(copies), (BYTES + (64 << 20)) as u64)? else { continue };
            let mut plain = PlainCopies::new(&gpu.name, host, copies == Copies::Imported)?;
            let rt = Runtime::builder().open_device(Arc::clone(&device) as _).build()?;
            let mut bench = Bench { rt: &rt, floor: Box::new(move |there| plain.copy(there)) };
            bench.in_folios(sheet, &format!("{kind}, {copies}"), 17)?;
            if let Some(why) = device.staged_because() {
                sheet.exact("  copies", why, "all by import", false);
            }
        }
    }
    Ok(())
}

fn speed(copy: impl FnOnce() -> Result<()>) -> Result<f64> {
    let mut copied = Ok(());
    let time = seconds(|| copied = copy());
    copied.map(|()| BYTES as f64 / time)
}
