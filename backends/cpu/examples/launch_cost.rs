//! What launches, copies and edits of the CPU device cost, each beside its floor, measured in the same run.
//!
//! `cargo run --release -p sterna-cpu --example launch_cost`

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> Result<(), sterna_hal::DeviceError> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::time::{Duration, Instant};

    use rayon::prelude::*;
    use sterna_cpu::{CpuConfig, CpuDevice};
    use sterna_hal::kernel::{Group, Kernel, each_mut};
    use sterna_hal::{Access, Arg, CopyEnd, CopyRun, DevRange, Device, DeviceError, Edit, Groups, Launch, Target};

    const LONG: Duration = Duration::from_secs(10);
    const MIB: u64 = 1 << 20;

    fn percentiles(name: &str, unit: f64, mut times: Vec<Duration>) -> f64 {
        times.sort();
        let at = |p: usize| times[times.len() * p / 100].as_secs_f64() / unit;
        println!("{name:<44} p10 {:9.2}  p50 {:9.2}  p90 {:9.2}", at(10), at(50), at(90));
        at(50)
    }

    fn empty(_: Group, _: (), _: &mut [u32]) {}

    pub(super) fn main() -> Result<(), DeviceError> {
        let device = CpuDevice::new(0, CpuConfig::default())?;
        launches(&device)?;
        edits(&device)?;
        copies(&device)
    }

    fn launches(device: &CpuDevice) -> Result<(), DeviceError> {
        let us = 1e-6;
        let pool = rayon::ThreadPoolBuilder::new().build().expect("a pool");
        let kernel = Kernel::new("empty", (), (each_mut::<u32>(1),), empty);
        // SAFETY: a kernel's code.
        let id = unsafe { device.load(kernel.code()) }?;
        let at = device.reserve(64 * 4)?;
        let args = [
            Arg::Plain(&[]),
            Arg::Range { at, elem: kernel.params()[0].elem, access: Access::ReadWrite, mapping: kernel.params()[0].mapping },
        ];
        let launch = Launch { kernel: id, grid: [64, 1, 1], groups: Groups::All, args: &args };
        for round in 0..3 {
            let (mut floor, mut whole, mut submit, mut spawn) = (vec![], vec![], vec![], vec![]);
            for _ in 0..3000 {
                let t = Instant::now();
                pool.install(|| {
                    (0..64_u32).into_par_iter().for_each(|n| {
                        std::hint::black_box(n);
                    })
                });
                floor.push(t.elapsed());
                let t = Instant::now();
                // SAFETY: the kernel touches nothing of its range.
                let ticket = unsafe { device.submit(&launch, &[])? };
                submit.push(t.elapsed());
                device.wait(ticket.point(), LONG)?;
                whole.push(t.elapsed());
                let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let other = done.clone();
                let t = Instant::now();
                pool.spawn(move || other.store(true, std::sync::atomic::Ordering::Release));
                spawn.push(t.elapsed());
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            println!("-- launches, microseconds, round {round}");
            let f = percentiles("floor: install + 64 empty items", us, floor);
            let w = percentiles("launch + wait, 64 empty groups", us, whole);
            println!("above the floor: {:.2}", w - f);
            percentiles("floor: spawn alone", us, spawn);
            percentiles("submit alone, queue idle", us, submit);
            // With the queue busy no worker needs waking: what is left is the submission itself.
            let n = 20_000;
            let t = Instant::now();
            let mut last = None;
            for _ in 0..n {
                // SAFETY: as above.
                last = Some(unsafe { device.submit(&launch, &[])? });
            }
            let each = t.elapsed().as_secs_f64() / f64::from(n) / us;
            device.wait(last.expect("some").point(), LONG)?;
            let through = t.elapsed().as_secs_f64() / f64::from(n) / us;
            println!("submit, queue busy {each:.2}; through the queue {through:.2} a launch");
        }
        // SAFETY: every launch has ended.
        unsafe { device.unreserve(at) };
        Ok(())
    }

    fn edits(device: &CpuDevice) -> Result<(), DeviceError> {
        let us = 1e-6;
        let range = device.reserve(512 * MIB)?;
        let (mut first, mut again) = (vec![], vec![]);
        let mut frames = Vec::new();
        for _ in 0..20 {
            let t = Instant::now();
            device.alloc(range.at, (256 * MIB / device.caps().grain) as u32, &mut frames)?;
            if first.is_empty() {
                first.push(t.elapsed())
            } else {
                again.push(t.elapsed())
            }
            // SAFETY: nothing names them.
            unsafe { device.free(&frames) };
            frames.clear();
        }
        println!("-- memory and edits, microseconds");
        percentiles("alloc of 256 MiB, first", us, first);
        percentiles("alloc of 256 MiB, again", us, again);
        device.alloc(range.at, (256 * MIB / device.caps().grain) as u32, &mut frames)?;
        for (bytes, apart) in [(64 << 10, 2), (64 << 10, 1), (2 * MIB, 2), (2 * MIB, 1)] {
            let (mut map, mut unmap, mut touch) = (vec![], vec![], vec![]);
            let part = |i: u64| range.part(apart * i * bytes, bytes);
            for i in 0..(64 * MIB / bytes) {
                let first = frames[0].first + (i * bytes / device.caps().grain) as u32;
                let t = Instant::now();
                set(device, part(i), Target::Frames { first })?;
                map.push(t.elapsed());
                let t = Instant::now();
                let p = part(i).at.0 as *mut u8;
                for page in 0..bytes / 4096 {
                    // SAFETY: mapped just now, writable, nobody else uses it.
                    unsafe { p.add((page * 4096) as usize).write_volatile(1) };
                }
                touch.push(t.elapsed());
            }
            for i in 0..(64 * MIB / bytes) {
                let t = Instant::now();
                set(device, part(i), Target::Absent)?;
                unmap.push(t.elapsed());
            }
            let how = if apart == 1 { "beside the last" } else { "by itself" };
            percentiles(&format!("map {} KiB {how}", bytes >> 10), us, map);
            percentiles("  touch each page of it", us, touch);
            percentiles("  make it absent", us, unmap);
        }
        // SAFETY: nothing names them, no launch runs.
        unsafe {
            device.free(&frames);
            device.unreserve(range);
        }
        Ok(())
    }

    fn set(device: &CpuDevice, at: DevRange, to: Target) -> Result<(), DeviceError> {
        // SAFETY: the range is reserved and the frames are allocated; no launch runs.
        unsafe { device.edit(&[Edit { at, to, access: Access::ReadWrite }], &[]).map(drop) }
    }

    fn copies(device: &CpuDevice) -> Result<(), DeviceError> {
        let bytes = 256 * MIB;
        let grains = (bytes / device.caps().grain) as u32;
        let at = device.reserve(bytes)?;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        device.alloc(at.at, grains, &mut a)?;
        device.alloc(at.at, grains, &mut b)?;
        let base = device.frames_base().expect("readable").as_ptr() as usize;
        let grain = device.caps().grain as usize;
        let (from, to) = (base + a[0].first as usize * grain, base + b[0].first as usize * grain);
        let (mut floor, mut ours, mut one) = (vec![], vec![], vec![]);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let run = CopyRun {
            from: CopyEnd::Frames { first: a[0].first, offset: 0 },
            to: CopyEnd::Frames { first: b[0].first, offset: 0 },
            bytes,
        };
        for i in 0..16 {
            let half = bytes as usize / threads;
            let t = Instant::now();
            std::thread::scope(|s| {
                for n in 0..threads {
                    // SAFETY: both stretches are allocated and nobody else uses them.
                    s.spawn(move || unsafe {
                        std::ptr::copy_nonoverlapping((from + n * half) as *const u8, (to + n * half) as *mut u8, half);
                    });
                }
            });
            let f = t.elapsed();
            let t = Instant::now();
            // SAFETY: as above.
            let point = unsafe { device.copy(&[run], &[])? };
            device.wait(point, LONG)?;
            let o = t.elapsed();
            let t = Instant::now();
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes as usize) };
            // The first rounds touch the pages and start the threads.
            if i > 1 {
                floor.push(f);
                ours.push(o);
                one.push(t.elapsed());
            }
        }
        println!("-- 256 MiB, milliseconds");
        percentiles("one memcpy", 1e-3, one);
        let f = percentiles(&format!("floor: {threads} threads, a memcpy each"), 1e-3, floor);
        let o = percentiles("copy + wait", 1e-3, ours);
        println!("speed over the floor's: {:.3}", f / o);
        Ok(())
    }
}
