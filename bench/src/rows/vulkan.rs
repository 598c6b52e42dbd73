//! **Question.** What does a launch on a Vulkan device cost when everything is resident?
//!
//! **Floor.** The same shader by plain calls of the driver: record, submit, wait for a timeline semaphore. Both on one processor,
//! where the driver's thread is woken without an interrupt: unpinned, the figure is mostly that of waking a processor.

use std::sync::Arc;

use anyhow::Result;
use sterna::kernel::{EachMut, Kernel, Spirv, each_mut};
use sterna::vulkan::{PageTable, VulkanConfig, VulkanDevice, VulkanError};
use sterna::{Runtime, Shared};

use super::Row;
use crate::floor::vulkan::Plain;
use crate::measure::{Pinned, Runs, Unit, median, seconds};
use crate::table::{Line, Sheet, Verdict};

pub(super) const ROW: Row = Row {
    name: "vulkan",
    question: "what does a launch cost on a Vulkan device, everything resident?",
    variants: &[""],
    run,
};

const GROUPS: usize = 64;
const ROUNDS: usize = 9;
const EACH: usize = 400;
static CODE: &[u8] = include_bytes!("../glsl/empty.spv");

fn empty(len: usize) -> Kernel<(EachMut<u32>,)> {
    // SAFETY: the module touches nothing.
    unsafe { Kernel::from_spirv("empty", (), (each_mut(len / GROUPS),), Spirv::new(CODE)) }
}

fn run(sheet: &mut Sheet) -> Result<()> {
    let all = match sterna::vulkan::devices() {
        Ok(all) => all,
        Err(e) => {
            sheet.add(&Line::new(Verdict::Skipped, "launch and wait").figure(e.to_string()));
            return Ok(());
        }
    };
    // Before the devices are opened, so that the drivers' threads are pinned too.
    let _pinned = Pinned::to(Pinned::first_cpu());
    let gpu = &all[0];
    sheet.add(&Line::new(Verdict::Info, "device").figure(gpu.name.clone()));
    for kind in [PageTable::Mmu, PageTable::Sparse, PageTable::Fixed] {
        let config = VulkanConfig { memory: Some(256 << 20), page_table: Some(kind), ..VulkanConfig::default() };
        let device = match VulkanDevice::open(&gpu.index.to_string(), &config) {
            Ok(device) => Arc::new(device),
            Err(e @ VulkanError::NoPageTable { .. }) => {
                sheet.add(&Line::new(Verdict::Skipped, format!("page table {kind}")).figure(e.to_string()));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let rt = Runtime::builder().open_device(device).build()?;
        let mut plain = Plain::new(&gpu.name, CODE)?;
        for (name, bytes) in [("1 MiB", 1_usize << 20), ("128 MiB", 128 << 20)] {
            let mut y = rt.shared::<u32>(bytes / 4)?;
            let kernel = empty(y.len());
            rt.launch(&kernel, (&mut y,))?.wait()?;
            rt.sync()?;
            let (mut ours, mut floor) = (Runs::default(), Runs::default());
            for _ in 0..ROUNDS {
                ours.push(p50(|| launch(&rt, &kernel, &mut y))?);
                floor.push(p50(|| plain.launch_and_wait(GROUPS as u32, &push()))?);
            }
            sheet.within(&format!("launch and wait, {kind}, {name}"), Unit::Time, &ours, &floor, Some(1e-6));
        }
    }
    Ok(())
}

fn launch(rt: &Runtime, kernel: &Kernel<(EachMut<u32>,)>, y: &mut Shared<u32>) -> Result<()> {
    Ok(rt.launch(kernel, (y,))?.wait()?)
}

/// Push constants of the same length: groups 0 to 63, and a buffer that is not used.
fn push() -> [u8; 40] {
    let mut push = [0; 40];
    push[4] = GROUPS as u8;
    push
}

fn p50(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(EACH);
    for _ in 0..EACH {
        let mut ended = Ok(());
        times.push(seconds(|| ended = f()));
        ended?;
    }
    Ok(median(&mut times))
}
