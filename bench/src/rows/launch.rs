//! **Question.** What does a launch of 64 groups cost when everything is resident, and does the size of the memory matter?
//!
//! **Floors.** For launch and wait: 64 empty items on a rayon pool of as many threads, called from outside. For the launch alone: the
//! device's own `submit`, without an engine; with the device idle both have to wake a worker, with the device busy neither has.
//!
//! The kernel does nothing, so what is timed is the way there and back. The 4 GiB segment is used in place (policy `remote`), which
//! makes it resident without storage: compare it with the 1 MiB segment under the same policy. In the last lines the host
//! reads one element between any two launches: with memory of its own the device has to give a granule back each time.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rayon::prelude::*;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{self, Access, Arg, Device as _, Groups};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Runtime, Shared};

use super::Row;
use crate::measure::{Runs, Unit, median, processors};
use crate::table::Sheet;

pub(super) const ROW: Row =
    Row { name: "launch", question: "what does a launch of 64 empty groups cost on resident memory?", variants: &[""], run };

const GROUPS: u32 = 64;
const RUNS: usize = 3;
const EACH: usize = 3000;
const TURN: usize = 50;
const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(10);

type Empty = Kernel<(EachMut<u32>,)>;

fn empty(len: usize) -> Empty {
    Kernel::new("empty", (), (each_mut(len / GROUPS as usize),), |_: Group, (), _: &mut [u32]| {})
}

/// Keeps the device busy for as long as it is told, so that what is launched behind it queues.
fn busy(ms: u32) -> Empty {
    Kernel::new("busy", ms, (each_mut(64),), |_: Group, ms: u32, _: &mut [u32]| {
        let t = Instant::now();
        while t.elapsed() < Duration::from_millis(ms.into()) {
            std::hint::spin_loop();
        }
    })
}

fn run(sheet: &mut Sheet) -> Result<()> {
    let device = |n| CpuDevice::new(n, CpuConfig { memory: 64 << 20, ..CpuConfig::default() }).map(Arc::new);
    let own = Runtime::builder().open_device(device(0)?).policy("declared")?.build()?;
    let remote = Runtime::builder().open_device(device(1)?).policy("remote")?.build()?;
    let third = device(2)?;
    let raw = Raw::new(&third)?;
    let mut x = Launched::new(&own, MIB)?;
    let mut small = Launched::new(&remote, MIB)?;
    let mut large = Launched::new(&remote, 4096 * MIB)?;

    let pool = rayon::ThreadPoolBuilder::new().num_threads(processors()).build()?;
    let items = || {
        pool.install(|| {
            (0..GROUPS).into_par_iter().for_each(|n| {
                black_box(n);
            });
        });
    };
    for (name, l) in [("1 MiB, device memory", &mut x), ("1 MiB, in place", &mut small), ("4 GiB, in place", &mut large)] {
        let (ours, floor) = interleaved(|| timed(|| l.launch_and_wait()), || timed(items));
        sheet.above(&format!("launch and wait, {name}"), Unit::Time, &ours, &floor, 2e-6);
    }
    let (ours, floor) = interleaved(|| timed(|| large.launch_and_wait()), || timed(|| small.launch_and_wait()));
    sheet.at_most("launch and wait, 4 GiB beside 1 MiB", Unit::Time, &ours, &floor, Some(1.1));

    let (ours, floor) = interleaved(|| x.launch_alone(), || raw.submit_alone());
    sheet.within("launch alone, device idle", Unit::Time, &ours, &floor, Some(1e-6));
    let (ours, floor) = interleaved(|| large.launch_alone(), || small.launch_alone());
    sheet.at_most("launch alone, 4 GiB beside 1 MiB", Unit::Time, &ours, &floor, Some(1.1));

    let mut blocker = Launched::new(&own, MIB)?;
    for (n, most) in [(64, Some(1e-6)), (1024, None)] {
        let (mut ours, mut floor) = (Runs::default(), Runs::default());
        for _ in 0..9 {
            ours.push(x.behind(&mut blocker, n)?);
            floor.push(raw.behind(n));
        }
        sheet.within(&format!("launch alone, {n} behind a busy one"), Unit::Time, &ours, &floor, most);
    }
    for (name, l, rt) in [("device memory", &mut x, &own), ("in place", &mut small, &remote)] {
        let before = rt.stats();
        let mut runs = Runs::default();
        for _ in 0..RUNS {
            runs.push(p50(EACH / 3, || {
                timed(|| {
                    l.launch_and_wait();
                    black_box(l.memory[5]);
                })
            }));
        }
        sheet.value(&format!("launch, wait, read one element, {name}"), Unit::Time, &runs, None);
        let moved = rt.stats().to_host() - before.to_host();
        let each = Runs::one(moved as f64 / (RUNS * (EACH / 3)) as f64);
        sheet.value("  bytes home each time", Unit::Bytes, &each, Some(65536.0));
    }
    Ok(())
}

/// Memory with a kernel for it, resident.
struct Launched<'a> {
    rt: &'a Runtime,
    kernel: Empty,
    memory: Shared<u32>,
}

impl<'a> Launched<'a> {
    fn new(rt: &'a Runtime, bytes: usize) -> Result<Self> {
        let mut this = Self { rt, kernel: empty(bytes / 4), memory: rt.shared(bytes / 4)? };
        this.launch()?.wait()?;
        // Until then a launch may find the scheduler finishing the one before.
        rt.sync()?;
        let before = rt.stats().devices[0].resident_launches;
        this.launch()?.wait()?;
        anyhow::ensure!(rt.stats().devices[0].resident_launches == before + 1, "the second launch was not resident");
        Ok(this)
    }

    fn launch(&mut self) -> Result<sterna::Pending, sterna::Error> {
        self.rt.launch(&self.kernel, (&mut self.memory,))
    }

    fn launch_and_wait(&mut self) {
        let ended = self.launch().and_then(|p| p.wait());
        assert!(ended.is_ok(), "an empty kernel failed: {ended:?}");
    }

    fn launch_alone(&mut self) -> f64 {
        let t = Instant::now();
        let pending = self.launch();
        let time = t.elapsed().as_secs_f64();
        assert!(pending.is_ok_and(|p| p.wait().is_ok()), "an empty kernel failed");
        time
    }

    /// Time of one of `n` launches that queue behind a long one.
    fn behind(&mut self, blocker: &mut Self, n: usize) -> Result<f64> {
        let mut head = blocker.memory.range_mut(..64)?;
        self.rt.launch(&busy(20), (&mut head,))?;
        let t = Instant::now();
        let mut last = None;
        for _ in 0..n {
            last = Some(self.launch()?);
        }
        let time = t.elapsed().as_secs_f64() / n as f64;
        last.map_or(Ok(()), |p| p.wait())?;
        Ok(time)
    }
}

/// A device without a runtime.
struct Raw<'a> {
    device: &'a CpuDevice,
    empty: (hal::KernelId, Empty),
    busy: (hal::KernelId, Empty),
    at: hal::DevRange,
}

impl<'a> Raw<'a> {
    fn new(device: &'a CpuDevice) -> Result<Self> {
        // SAFETY: a kernel's code.
        let load = |k: Empty| unsafe { device.load(k.code()) }.map(|id| (id, k));
        Ok(Self { device, empty: load(empty(MIB / 4))?, busy: load(busy(20))?, at: device.reserve(MIB as u64)? })
    }

    fn submit(&self, (id, kernel): &(hal::KernelId, Empty), groups: u32) -> hal::Ticket {
        let args = [
            Arg::Plain(kernel.value()),
            Arg::Range {
                at: self.at,
                elem: kernel.params()[0].elem,
                access: Access::ReadWrite,
                mapping: kernel.params()[0].mapping,
            },
        ];
        let launch = hal::Launch { kernel: *id, grid: [groups, 1, 1], groups: Groups::All, args: &args };
        // SAFETY: the kernels touch nothing of their range.
        unsafe { self.device.submit(&launch, &[]) }.expect("the device takes launches")
    }

    fn wait(&self, ticket: hal::Ticket) {
        assert!(matches!(self.device.wait(ticket.point(), LONG), Ok(true)), "an empty kernel failed");
    }

    fn submit_alone(&self) -> f64 {
        let t = Instant::now();
        let ticket = self.submit(&self.empty, GROUPS);
        let time = t.elapsed().as_secs_f64();
        self.wait(ticket);
        time
    }

    fn behind(&self, n: usize) -> f64 {
        let mut last = self.submit(&self.busy, 1);
        let t = Instant::now();
        for _ in 0..n {
            last = self.submit(&self.empty, GROUPS);
        }
        let time = t.elapsed().as_secs_f64() / n as f64;
        self.wait(last);
        time
    }
}

fn timed(f: impl FnOnce()) -> f64 {
    crate::measure::seconds(f)
}

fn p50(n: usize, mut f: impl FnMut() -> f64) -> f64 {
    median(&mut (0..n).map(|_| f()).collect::<Vec<_>>())
}

/// The p50 of each run of both, taken in turns of `TURN`: one by one, each pool's threads would still be looking for work while
/// the other's are measured.
fn interleaved(mut a: impl FnMut() -> f64, mut b: impl FnMut() -> f64) -> (Runs, Runs) {
    let mut runs = (Runs::default(), Runs::default());
    for _ in 0..RUNS {
        let mut times = (Vec::with_capacity(EACH), Vec::with_capacity(EACH));
        for _ in 0..EACH / TURN {
            times.0.extend((0..TURN).map(|_| a()));
            times.1.extend((0..TURN).map(|_| b()));
        }
        runs.0.push(median(&mut times.0));
        runs.1.push(median(&mut times.1));
    }
    runs
}
