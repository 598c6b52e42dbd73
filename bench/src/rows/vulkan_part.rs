//! **Question.** A kernel writes 1 GiB on a Vulkan device and the host reads one hundredth of it: how much faster is that than reading all
//! of it back?
//!
//! **Floor.** All of it copied by plain calls of the driver, imported or staged as the device's own copies are (imported on page table
//! *mmu*), without a look at the bytes. The host reads one piece through `host`, which asks for all of it, and by plain loads, so that
//! pages come by faults; that has a target. The same amount in 164 granules far from each other, and all of it, have none. With page
//! table *mmu* pages are used where they are, and nothing comes; policy `declared` moves them.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use sterna::hmm::GRANULE;
use sterna::kernels::fill;
use sterna::vulkan::{Copies, PageTable};
use sterna::{Runtime, Shared, human};

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
const ROUNDS: usize = 3;

/// Adds up elements.
type How = fn(&Shared<u64>, Range<usize>) -> Result<u64>;

fn run(sheet: &mut Sheet) -> Result<()> {
    let Some(gpu) = first(sheet, ROW.name) else { return Ok(()) };
    let host = Mapping::in_folios(BYTES)?;
    for copies in [Copies::Imported, Copies::Staged] {
        let mut plain = PlainCopies::new(&gpu.name, host, copies == Copies::Imported)?;
        let kinds = [PageTable::Sparse, PageTable::Fixed, PageTable::Mmu].map(|kind| (kind, "auto"));
        for (kind, policy) in kinds.into_iter().chain([(PageTable::Mmu, "declared")]) {
            let (name, copies) = match (kind, copies) {
                // Staging is the same on both, and the row has to end in time on a busy machine, too.
                (PageTable::Mmu | PageTable::Sparse, Copies::Staged) => continue,
                (PageTable::Mmu, _) => (format!("{kind}, `{policy}`"), None),
                _ => (format!("{kind}, {copies}"), Some(copies)),
            };
            let Some(device) = opened(sheet, &gpu, kind, copies, (BYTES + BYTES / 8) as u64)? else { continue };
            let rt = Runtime::builder().open_device(Arc::clone(&device) as _).policy(policy)?.build()?;
            let mut y = rt.shared::<u64>(LEN)?;
            let [mut at_once, mut piece, mut spread, mut all, mut floor]: [Runs; 5] = Default::default();
            let (mut home, mut wrong, mut value) = ([(0, 0); 3], false, 0);
            for round in 0..ROUNDS {
                let mut read = |runs: &mut Runs, how: How, parts: &[usize], len: usize| {
                    value += 1;
                    rt.launch(&fill(value), (&mut y,))?.wait()?;
                    let count = || (rt.stats().to_host(), rt.stats().devices[0].host_faults);
                    let before = count();
                    let mut sum = Ok(0);
                    runs.push(seconds(|| sum = parts.iter().map(|first| how(&y, *first..first + len)).sum()));
                    wrong |= sum? != value * (parts.len() * len) as u64;
                    let after = count();
                    anyhow::Ok((after.0 - before.0, after.1 - before.1))
                };
                let granules: Vec<usize> = (0..GRANULES).map(|i| i * (LEN / GRANULES / PER) * PER).collect();
                home[0] = read(&mut at_once, |y, range| Ok(y.host(range)?.iter().sum()), &[LEN / 3], GRANULES * PER)?;
                home[1] = read(&mut piece, |y, range| Ok(y[range].iter().sum()), &[LEN / 3], GRANULES * PER)?;
                home[2] = read(&mut spread, |y, range| Ok(y[range].iter().sum()), &granules, PER)?;
                if round == 0 {
                    read(&mut all, |y, range| Ok(y[range].iter().sum()), &[0], LEN)?;
                }
                let mut copied = Ok(());
                floor.push(seconds(|| copied = plain.copy(false)));
                copied?;
            }
            sheet.at_most(&format!("in one piece, {name}, by `host`"), Unit::Time, &at_once, &floor, Some(0.05));
            sheet.at_most("  by plain loads", Unit::Time, &piece, &floor, Some(0.05));
            sheet.at_most(&format!("  in {GRANULES} granules, by plain loads"), Unit::Time, &spread, &floor, None);
            sheet.at_most("  all of it, by plain loads", Unit::Time, &all, &floor, None);
            sheet.note(
                "  came home, by faults",
                home.map(|(bytes, faults)| format!("{} by {faults}", human(bytes))).join(", "),
            );
            if wrong {
                sheet.exact("  contents", "wrong", "right", false);
            }
        }
    }
    Ok(())
}
