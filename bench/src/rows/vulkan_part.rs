//! **Question.** A kernel writes 1 GiB on a Vulkan device and the host reads one hundredth of it: how much faster is that than reading all
//! of it back?
//!
//! **Floor.** All of it copied by plain calls of the driver, imported or staged as the device's own copies are (imported on page table
//! *mmu*), without a look at the bytes. The host reads by plain loads, so every page comes by a fault. One hundredth in one piece has a
//! target; the same in 164 granules far from each other, and all of it by plain loads, have none.

use std::sync::Arc;

use anyhow::Result;
use sterna::hmm::GRANULE;
use sterna::kernels::fill;
use sterna::vulkan::{Copies, PageTable};
use sterna::{Runtime, human};

use super::Row;
use crate::floor::Mapping;
use crate::floor::vulkan_copies::PlainCopies;
use crate::measure::{Runs, Unit, seconds};
use crate::rows::vulkan::{first, opened};
use crate::table::Sheet;

pub(super) const ROW: Row = Row {
    name: "vulkan-part",
    question: "how long does the host need for one hundredth of 1 GiB that a Vulkan device wrote?",
    variants: &[""],
    run,
};

const BYTES: usize = 1 << 30;
const LEN: usize = BYTES / 8;
const PER: usize = GRANULE as usize / 8;
const GRANULES: usize = BYTES / 100 / GRANULE as usize + 1;
const ROUNDS: u64 = 3;

fn run(sheet: &mut Sheet) -> Result<()> {
    let Some(gpu) = first(sheet, ROW.name) else { return Ok(()) };
    let host = Mapping::in_folios(BYTES)?;
    for copies in [Copies::Imported, Copies::Staged] {
        let mut plain = PlainCopies::new(&gpu.name, host, copies == Copies::Imported)?;
        for kind in [PageTable::Sparse, PageTable::Fixed, PageTable::Mmu] {
            let (name, copies) = match (kind, copies) {
                (PageTable::Mmu, Copies::Staged) => continue,
                (PageTable::Mmu, _) => (kind.to_string(), None),
                _ => (format!("{kind}, {copies}"), Some(copies)),
            };
            let Some(device) = opened(sheet, &gpu, kind, copies, (BYTES + BYTES / 8) as u64)? else { continue };
            let rt = Runtime::builder().open_device(Arc::clone(&device) as _).build()?;
            let mut y = rt.shared::<u64>(LEN)?;
            let (mut piece, mut spread, mut all, mut floor) =
                (Runs::default(), Runs::default(), Runs::default(), Runs::default());
            let (mut home, mut wrong) = ([0; 2], false);
            for round in 0..ROUNDS {
                let mut read = |runs: &mut Runs, value: u64, parts: &mut dyn Iterator<Item = usize>, len: usize| {
                    rt.launch(&fill(value), (&mut y,))?.wait()?;
                    let before = rt.stats().to_host();
                    let mut sum = 0_u64;
                    let mut count = 0;
                    runs.push(seconds(|| {
                        for first in parts {
                            sum += y[first..first + len].iter().sum::<u64>();
                            count += len as u64;
                        }
                    }));
                    wrong |= sum != value * count;
                    anyhow::Ok(rt.stats().to_host() - before)
                };
                home[0] = read(&mut piece, 3 * round + 1, &mut std::iter::once(LEN / 3), GRANULES * PER)?;
                home[1] =
                    read(&mut spread, 3 * round + 2, &mut (0..GRANULES).map(|i| i * (LEN / GRANULES / PER) * PER), PER)?;
                if round == 0 {
                    read(&mut all, 3 * round + 3, &mut std::iter::once(0), LEN)?;
                }
                let mut copied = Ok(());
                floor.push(seconds(|| copied = plain.copy(false)));
                copied?;
            }
            sheet.at_most(&format!("in one piece, {name}"), Unit::Time, &piece, &floor, Some(0.05));
            sheet.at_most(&format!("  in {GRANULES} granules, {name}"), Unit::Time, &spread, &floor, None);
            sheet.at_most(&format!("  all of it, {name}"), Unit::Time, &all, &floor, None);
            sheet.note("  came home", home.map(human).join(" and "));
            if wrong {
                sheet.exact("  contents", "wrong", "right", false);
            }
        }
    }
    Ok(())
}
