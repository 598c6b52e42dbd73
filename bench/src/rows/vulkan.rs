//! **Question.** What does a launch on a Vulkan device cost when everything is resident?
//!
//! **Floor.** The same shader by plain calls of the driver: record, with the barrier that lets the host read what was written, submit,
//! wait for a timeline semaphore; and a hundred of those with one wait. All on one processor, where the driver's threads are woken
//! without an interrupt: unpinned, the figure is mostly that of waking a processor. And all in one arena of the C library's allocator:
//! lavapipe's threads allocate and free memory for every group, and in arenas of their own that cost one device some 0.5 us a launch more
//! than another (3500 instructions, by callgrind).

use std::sync::Arc;

use anyhow::Result;
use sterna::kernel::{EachMut, Kernel, Spirv, each_mut};
use sterna::vulkan::{Copies, Gpu, PageTable, VulkanConfig, VulkanDevice, VulkanError};
use sterna::{Runtime, Shared};

use super::Row;
use crate::floor::vulkan::Plain;
use crate::measure::{Pinned, Runs, Unit, median, one_arena, seconds};
use crate::table::{Line, Sheet, Verdict};

pub(super) const ROW: Row = Row {
    name: "vulkan",
    question: "what does a launch cost on a Vulkan device, everything resident?",
    variants: &[""],
    run,
};

const GROUPS: usize = 64;
const ROUNDS: usize = 31;
const EACH: usize = 200;
const QUEUED: usize = 100;
static CODE: &[u8] = include_bytes!("../glsl/empty.spv");

fn empty(len: usize) -> Kernel<(EachMut<u32>,)> {
    // SAFETY: the module touches nothing.
    unsafe { Kernel::from_spirv("empty", (), (each_mut(len / GROUPS),), Spirv::new(CODE)) }
}

fn run(sheet: &mut Sheet) -> Result<()> {
    // Before the devices are opened, so that both are for the drivers' threads, too.
    let _pinned = Pinned::to(Pinned::first_cpu());
    one_arena();
    let Some(gpu) = first(sheet, "launch and wait") else { return Ok(()) };
    for kind in [PageTable::Mmu, PageTable::Sparse, PageTable::Fixed] {
        let Some(device) = opened(sheet, &gpu, kind, None, 256 << 20)? else { continue };
        let rt = Runtime::builder().open_device(device).build()?;
        // A pool is reset whole, so that each floor has one with as many command buffers as it uses.
        let mut plain = Plain::new(&gpu.name, CODE, 1)?;
        let mut plain_queued = Plain::new(&gpu.name, CODE, QUEUED as u32)?;
        let (mut y, mut large) = (rt.shared::<u32>(1 << 18)?, rt.shared::<u32>(32 << 20)?);
        let (kernel, for_large) = (empty(y.len()), empty(large.len()));
        launch(&rt, &kernel, &mut y, 1)?;
        launch(&rt, &for_large, &mut large, 1)?;
        let mut runs: [Runs; 5] = Default::default();
        for _ in 0..ROUNDS {
            runs[0].push(p50(EACH, || launch(&rt, &kernel, &mut y, 1))?);
            runs[1].push(p50(EACH, || plain.launch_and_wait(1, GROUPS as u32, &push()))?);
            runs[2].push(p50(EACH, || launch(&rt, &for_large, &mut large, 1))?);
            runs[3].push(p50(EACH / QUEUED, || launch(&rt, &kernel, &mut y, QUEUED))?);
            runs[4].push(p50(EACH / QUEUED, || plain_queued.launch_and_wait(QUEUED, GROUPS as u32, &push()))?);
        }
        let [one, floor, large, queued, queued_floor] = &runs;
        sheet.above(&format!("launch and wait, {kind}"), Unit::Time, one, floor, 1e-6);
        sheet.at_most(&format!("  on 128 MiB beside 1 MiB, {kind}"), Unit::Time, large, one, Some(1.1));
        sheet.at_most(&format!("{QUEUED} launches and one wait, {kind}"), Unit::Time, queued, queued_floor, Some(1.05));
    }
    Ok(())
}

/// The first device that the loader lists; without one it is said what is not measured.
pub(super) fn first(sheet: &mut Sheet, what: &str) -> Option<Gpu> {
    match sterna::vulkan::devices() {
        Ok(all) => {
            let gpu = all.into_iter().next()?;
            sheet.add(&Line::new(Verdict::Info, "device").figure(gpu.name.clone()));
            Some(gpu)
        }
        Err(e) => {
            sheet.add(&Line::new(Verdict::Skipped, what).figure(e.to_string()));
            None
        }
    }
}

/// The device with this page table and these copies; where it does not have them it is said so.
pub(super) fn opened(
    sheet: &mut Sheet,
    gpu: &Gpu,
    kind: PageTable,
    copies: Option<Copies>,
    memory: u64,
) -> Result<Option<Arc<VulkanDevice>>> {
    let config = VulkanConfig { memory: Some(memory), page_table: Some(kind), copies, ..VulkanConfig::default() };
    match VulkanDevice::open(&gpu.index.to_string(), &config) {
        Ok(device) => Ok(Some(Arc::new(device))),
        Err(e @ (VulkanError::NoPageTable { .. } | VulkanError::Settings(_))) => {
            let what = copies.map_or(format!("page table {kind}"), |c| format!("page table {kind}, copies {c}"));
            sheet.add(&Line::new(Verdict::Skipped, what).figure(e.to_string()));
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Launches so many times, and waits for the last.
fn launch(rt: &Runtime, kernel: &Kernel<(EachMut<u32>,)>, y: &mut Shared<u32>, times: usize) -> Result<()> {
    for _ in 1..times {
        rt.launch(kernel, (&mut *y,))?;
    }
    Ok(rt.launch(kernel, (y,))?.wait()?)
}

/// Push constants of the same length: groups 0 to 63, and a buffer that is not used.
fn push() -> [u8; 40] {
    let mut push = [0; 40];
    push[4] = GROUPS as u8;
    push
}

/// The median of so many calls.
fn p50(calls: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let mut ended = Ok(());
        times.push(seconds(|| ended = f()));
        ended?;
    }
    Ok(median(&mut times))
}
