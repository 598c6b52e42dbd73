//! **Question.** Does an idle runtime do nothing?
//!
//! **Floor.** Zero: in 5 s no thread of the process but the measuring one is switched to or away from. Everything that starts
//! threads is used before: launches that move pages, faults of the host and of a device, moves asked for.

use std::time::Duration;

use anyhow::Result;
use sterna::Runtime;
use sterna::kernels::fill;

use super::Row;
use crate::measure::switches_of_others;
use crate::table::{Line, Sheet, Verdict};

pub(super) const ROW: Row =
    Row { name: "idle", question: "does an idle runtime do nothing?", variants: &["transparent", "signal"], run };

const SETTLE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_secs(5);

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().memory(64 << 20).build()?;
    let demand = Runtime::builder().memory(64 << 20).policy("demand")?.build()?;
    let mut values = Vec::new();
    for rt in [&rt, &demand] {
        let mut x = rt.shared::<u32>(8 << 20)?;
        x[3] = 1;
        rt.launch(&fill(2_u32), (&mut x,))?.wait()?;
        values.push(x[3]);
        x.prefetch_to(&rt.devices()[0]);
        x.prefetch_to_host();
        rt.sync()?;
        values.push(x[5_000_000]);
    }
    anyhow::ensure!(values.iter().all(|v| *v == 2), "wrong contents: {values:?}");
    let kept = rt.shared::<u32>(8 << 20)?;
    std::thread::sleep(SETTLE);
    let before = switches_of_others();
    std::thread::sleep(LOOK);
    let after = switches_of_others();
    drop(kept);
    let sum = |list: &[(String, u64)]| list.iter().map(|t| t.1).sum::<u64>();
    let switches = sum(&after) - sum(&before);
    let verdict = if switches == 0 { Verdict::Pass } else { Verdict::Miss };
    let line = Line::new(verdict, format!("{}: switches of {} threads in 5 s", rt.stats().mechanism, after.len()));
    sheet.add(&line.figure(switches.to_string()).target("0"));
    for (b, a) in before.iter().zip(&after).filter(|(b, a)| b != a) {
        sheet.note(&format!("  {}", a.0), (a.1 - b.1).to_string());
    }
    Ok(())
}
