//! **Question.** A kernel writes 1 GiB and the host reads one element of it: what moves?
//!
//! **Floor.** The bytes themselves: one granule (64 KiB) or one block (2 MiB), whichever the engine brings at a fault, and
//! nothing to the device, since the kernel replaces everything. More is a wrong result.

use anyhow::Result;
use sterna::Runtime;
use sterna::hmm::{BLOCK, GRANULE};
use sterna::kernels::fill;

use super::Row;
use crate::measure::{Runs, Unit, seconds};
use crate::table::Sheet;

pub(super) const ROW: Row =
    Row { name: "one-element", question: "how much moves when the host reads one element of 1 GiB?", variants: &[""], run };

const GIB: u64 = 1 << 30;

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().memory(GIB + GIB / 4).build()?;
    let mut x = rt.shared::<u64>((GIB / 8) as usize)?;
    rt.launch(&fill(7_u64), (&mut x,))?.wait()?;
    let before = rt.stats();
    let mut value = 0;
    let time = seconds(|| value = x[77_777_777]);
    let after = rt.stats();
    let home = after.to_host() - before.to_host();
    sheet.exact("bytes home", sterna::human(home), "64 KiB or 2 MiB", home == GRANULE || home == BLOCK);
    sheet.exact("bytes to the device", sterna::human(after.to_device()), "0 B", after.to_device() == 0);
    sheet.exact("value", value.to_string(), "7", value == 7);
    sheet.value("time of that read", Unit::Time, &Runs::one(time), None);
    Ok(())
}
