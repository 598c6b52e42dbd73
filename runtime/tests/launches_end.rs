//! Every launch ends: on every budget that a device accepts, whatever its instructions need at once, whoever else wants the memory.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Absent;
use sterna::hmm::{Attached, Operand, Segment, Space};
use sterna::kernel::{Each, EachMut, Group, Kernel, each, each_mut};
use sterna::policy::{LaunchEvent, Place, Policy};
use sterna::{Mechanism, Runtime, Shared};
use support::{runtime, smallest, under_each};

const PAGE: usize = 4096;

/// Moves eight bytes with one instruction that loads from one place and stores to another.
fn move8(from: &[u8], to: &mut [u8]) {
    assert!(from.len() == 8 && to.len() == 8);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both are eight bytes, which the instruction moves; it changes the two registers and nothing else.
    unsafe {
        let (from, to) = (from.as_ptr(), to.as_mut_ptr());
        std::arch::asm!("movsq", inout("rsi") from => _, inout("rdi") to => _, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Copies what lies across each page border, by instructions that need four pages at once; then all of the part.
fn across(_: Group, _: u32, x: &[u8], y: &mut [u8]) {
    let first = x.as_ptr().addr().next_multiple_of(PAGE) - x.as_ptr().addr();
    for at in (first..x.len()).step_by(PAGE).filter(|at| *at >= 4 && at + 4 <= x.len()) {
        move8(&x[at - 4..at + 4], &mut y[at - 4..at + 4]);
    }
    y.copy_from_slice(x);
}

fn across_kernel(chunk: usize) -> Kernel<(Each<u8>, EachMut<u8>)> {
    Kernel::new("across", 0_u32, (each(chunk), each_mut(chunk)), across)
}

fn sum4(_: Group, _: u32, a: &[u64], b: &[u64], c: &[u64], y: &mut [u64]) {
    for (i, y) in y.iter_mut().enumerate() {
        *y = a[i] + b[i] + c[i];
    }
}

fn sum3(_: Group, _: u32, a: &[u64], b: &[u64], y: &mut [u64]) {
    for (i, y) in y.iter_mut().enumerate() {
        *y = a[i] + b[i];
    }
}

fn add1(_: Group, _: u32, y: &mut [u64]) {
    y.iter_mut().for_each(|y| *y += 1);
}

/// Launches over four operands, three, two (across borders) and one, each over more than the memory.
fn all_end(rt: &Runtime, memory: usize) {
    let n = memory / 8 + 600;
    let number = |k: u64| move |i: usize| i as u64 * k + k;
    let (a, b, c) = (
        rt.shared_with(n, number(1)).unwrap(),
        rt.shared_with(n, number(2)).unwrap(),
        rt.shared_with(n, number(3)).unwrap(),
    );
    let mut y = rt.shared::<u64>(n).unwrap();
    let k4 = Kernel::new("sum4", 0_u32, (each(700), each(700), each(700), each_mut(700)), sum4);
    let k3 = Kernel::new("sum3", 0_u32, (each(700), each(700), each_mut(700)), sum3);
    rt.launch(&k4, (&a, &b, &c, &mut y)).unwrap().wait().unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == 6 * (i as u64 + 1)), "{:?}", rt.stats());
    rt.launch(&k3, (&a, &b, &mut y)).unwrap();
    rt.launch(&Kernel::new("add1", 0_u32, (each_mut(900),), add1), (&mut y,)).unwrap().wait().unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == 3 * (i as u64 + 1) + 1), "{:?}", rt.stats());
    let bytes = 8 * n;
    let x = rt.shared_with(bytes, |i| (i / 5) as u8).unwrap();
    let mut z = rt.shared::<u8>(bytes).unwrap();
    rt.launch(&across_kernel(3 * PAGE + 100), (&x, &mut z)).unwrap().wait().unwrap();
    assert!(z.iter().enumerate().all(|(i, v)| *v == (i / 5) as u8), "{:?}", rt.stats());
}

/// Fails if workers take from each other what their instructions need.
#[test]
fn on_every_budget_with_every_number_of_operands() {
    under_each("on_every_budget_with_every_number_of_operands", Duration::from_secs(120), |_| {
        for workers in 1..=4 {
            for (grain, times) in [(4 << 10, 1), (4 << 10, 3), (16 << 10, 1), (64 << 10, 1), (64 << 10, 2)] {
                for policy in ["demand", "auto", "declared"] {
                    let config = CpuConfig { workers, window: 64 << 30, ..smallest(grain) };
                    let least = least_frames(&config) * grain;
                    let rt = runtime(policy, [CpuConfig { memory: least * times, ..config }]);
                    all_end(&rt, (least * times) as usize);
                }
            }
        }
    });
}

fn least_frames(config: &CpuConfig) -> u64 {
    use sterna::hal::Device as _;
    let config = CpuConfig { memory: 1 << 30, ..config.clone() };
    u64::from(CpuDevice::new(0, config).unwrap().caps().min_frames)
}

/// The same where a grain is a block.
#[test]
fn on_the_least_budget_in_grains_of_two_mebibytes() {
    under_each("on_the_least_budget_in_grains_of_two_mebibytes", Duration::from_secs(120), |_| {
        let config = CpuConfig { workers: 1, window: 64 << 30, ..smallest(2 << 20) };
        let memory = least_frames(&config) * config.grain;
        all_end(&runtime("demand", [CpuConfig { memory, ..config }]), memory as usize);
    });
}

/// Fails if launches from several threads starve each other: each copies between its own parts.
#[test]
fn from_several_threads() {
    under_each("from_several_threads", Duration::from_secs(120), |_| {
        for (grain, frames) in [(4 << 10, 12), (4 << 10, 24), (16 << 10, 64)] {
            for policy in ["declared", "demand"] {
                let config =
                    CpuConfig { memory: frames * grain, grain, workers: 2, window: 64 << 30, ..CpuConfig::default() };
                let rt = runtime(policy, [config]);
                let part = 16 * grain as usize;
                let mut y = rt.shared::<u8>(part * 3).unwrap();
                std::thread::scope(|s| {
                    for (t, mut mine) in y.chunks_mut(part).enumerate() {
                        let rt = &rt;
                        s.spawn(move || {
                            let x = rt.shared_with(part, |i| (i / 9 + t) as u8).unwrap();
                            for _ in 0..4 {
                                mine.fill(0);
                                rt.launch(&across_kernel(PAGE + 100), (&x, &mut mine)).unwrap().wait().unwrap();
                                assert!(mine.iter().enumerate().all(|(i, v)| *v == (i / 9 + t) as u8));
                            }
                        });
                    }
                });
            }
        }
    });
}

/// Fails if somebody is told that there is no memory while others hold it for a moment, or waits for them for ever.
#[test]
fn calls_from_several_threads_take_turns() {
    under_each("calls_from_several_threads_take_turns", Duration::from_secs(120), |m| {
        let space = Space::process(Some(m)).unwrap();
        for (absent, map_host) in [(Absent::Faults, false), (Absent::Faults, true), (Absent::Undefined, false)] {
            if absent == Absent::Undefined && m == Mechanism::None {
                continue; // nobody shares a block there
            }
            // Each needs 32 pages; there is room for one and a half of them.
            let config = CpuConfig {
                memory: 48 << 12,
                grain: 4 << 10,
                workers: 2,
                window: 64 << 30,
                absent,
                map_host,
                ..CpuConfig::default()
            };
            let dev = Attached::new(space, Arc::new(CpuDevice::new(0, config).unwrap())).unwrap();
            let all = Segment::new(space, 1 << 20).unwrap();
            std::thread::scope(|s| {
                for t in 0..3 {
                    let (dev, all) = (&dev, &all);
                    s.spawn(move || {
                        let own = Segment::new(space, 64 << 10).unwrap();
                        for round in 0..30_u64 {
                            let part = (t + 3 * round) % 15 * (64 << 10);
                            let operands = [
                                Operand { segment: Arc::clone(&own), bytes: 0..64 << 10 },
                                Operand { segment: Arc::clone(all), bytes: part..part + (64 << 10) },
                            ];
                            // SAFETY: nobody else uses this thread's segment, and everybody writes the same to the other.
                            unsafe { dev.run(&across_kernel(PAGE), &operands, Place::Migrate, None) }.unwrap_or_else(|e| {
                                panic!("{absent:?}, map_host {map_host}, thread {t}, round {round}: {e}")
                            });
                        }
                    });
                }
            });
        }
    });
}

/// Fails if a launch that can never fit is waited for, or told something else.
#[test]
fn a_call_that_never_fits_says_so() {
    under_each("a_call_that_never_fits_says_so", Duration::from_secs(60), |m| {
        let space = Space::process(Some(m)).unwrap();
        let config =
            CpuConfig { memory: 1 << 20, workers: 2, window: 64 << 30, absent: Absent::Undefined, ..CpuConfig::default() };
        let dev = Attached::new(space, Arc::new(CpuDevice::new(0, config).unwrap())).unwrap();
        let (x, y) = (Segment::new(space, 1 << 20).unwrap(), Segment::new(space, 1 << 20).unwrap());
        let operands = [&x, &y].map(|s| Operand { segment: Arc::clone(s), bytes: 0..1 << 20 });
        // SAFETY: nobody else uses the segments.
        let done = unsafe { dev.run(&across_kernel(PAGE), &operands, Place::Migrate, None) };
        assert!(matches!(done, Err(sterna::Error::OutOfDeviceMemory { .. })), "{done:?}");
        // By demand it fits, and what fits is still welcome.
        // SAFETY: as above.
        unsafe { dev.run(&Kernel::new("add1", 0_u32, (each_mut(512),), add1), &operands[..1], Place::Migrate, None) }
            .unwrap();
    });
}

/// The first launch by demand, every later one as a whole.
struct FirstByDemand(AtomicBool);

impl Policy for FirstByDemand {
    fn name(&self) -> &'static str {
        "first-by-demand"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        let place = if self.0.swap(false, Ordering::Relaxed) { Place::Demand } else { Place::Migrate };
        places.extend(event.args.iter().map(|_| place));
    }
}

/// Fails if the engine waits for a launch while it has pages in hand that the launch faults on.
#[test]
fn a_launch_that_brings_much_does_not_hold_up_the_one_it_waits_for() {
    const MIB: usize = 1 << 20;
    const N: usize = 256 * MIB / 8;
    fn touch(_: Group, _: u32, y: &mut [u64]) {
        std::thread::sleep(Duration::from_millis(2));
        y[0] += 1;
    }
    let name = "a_launch_that_brings_much_does_not_hold_up_the_one_it_waits_for";
    under_each(name, Duration::from_secs(60), |_| {
        let config = CpuConfig { memory: 160 << 20, workers: 1, grain: 64 << 10, window: 64 << 30, ..CpuConfig::default() };
        let device = Arc::new(CpuDevice::new(0, config).unwrap());
        let policy = FirstByDemand(AtomicBool::new(true));
        let rt = Runtime::builder().open_device(device).custom_policy(policy).build().unwrap();
        let mut y = rt.shared::<u64>(N).unwrap();
        let chunk = MIB / 8;
        let kernel = Kernel::new("touch", 0_u32, (each_mut(chunk),), touch);
        rt.launch(&kernel, (&mut y,)).unwrap();
        rt.launch(&kernel, (&mut y,)).unwrap().wait().unwrap();
        assert!((0..256).all(|i| y[i * chunk] == 2));
    });
}

/// Fails if a launch that is cut, or those beside it, do not end.
#[test]
fn on_devices_that_cannot_fault_cut_along_the_grid() {
    under_each("on_devices_that_cannot_fault_cut_along_the_grid", Duration::from_secs(120), |_| {
        for (grain, frames) in [(4_usize << 10, 16_u64), (64 << 10, 12), (64 << 10, 40)] {
            let memory = frames * grain as u64;
            let config = CpuConfig {
                memory,
                grain: grain as u64,
                workers: 2,
                absent: Absent::Undefined,
                window: 64 << 30,
                ..CpuConfig::default()
            };
            let rt = runtime("auto", [config]);
            std::thread::scope(|s| {
                for t in 0..2 {
                    let rt = &rt;
                    s.spawn(move || {
                        let n = 2 * memory as usize;
                        let x: Shared<u8> = rt.shared_with(n, |i| (i / 3 + t) as u8).unwrap();
                        let mut z = rt.shared::<u8>(n).unwrap();
                        for _ in 0..3 {
                            z.fill(0);
                            rt.launch(&across_kernel(grain), (&x, &mut z)).unwrap().wait().unwrap();
                            assert!(z.iter().enumerate().all(|(i, v)| *v == (i / 3 + t) as u8));
                        }
                    });
                }
            });
        }
    });
}

/// Fails if a thread may be given the same page for ever without anybody being told.
#[test]
fn a_page_that_is_taken_away_again_and_again_is_told_of() {
    const INSIDE: &str = "STERNA_TEST_IN_VAIN";
    fn add_for_long(_: Group, _: u32, y: &mut [u64]) {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(6500) {
            // SAFETY: a reference. Volatile, so that each round is a store of its own.
            unsafe { (&raw mut y[0]).write_volatile(1) };
        }
    }
    let name = "a_page_that_is_taken_away_again_and_again_is_told_of";
    if std::env::var_os(INSIDE).is_some() {
        let _watch = support::watchdog(name, Duration::from_secs(60));
        let forced = std::env::var("STERNA_HOST_FAULTS").ok().map(|m| m.parse().unwrap());
        let space = Space::process(forced).unwrap();
        let config = CpuConfig { memory: 16 << 20, workers: 1, window: 64 << 30, ..CpuConfig::default() };
        let dev = Attached::new(space, Arc::new(CpuDevice::new(0, config).unwrap())).unwrap();
        let seg = Segment::new(space, 64 << 10).unwrap();
        let kernel = Kernel::new("add_for_long", 0_u32, (each_mut(8192),), add_for_long);
        let ended = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    dev.migrate_home(&seg.pages()).unwrap();
                }
            });
            let operand = Operand { segment: Arc::clone(&seg), bytes: 0..64 << 10 };
            // SAFETY: nobody else touches the bytes.
            unsafe { dev.run(&kernel, &[operand], Place::Demand, None) }.unwrap();
            ended.store(true, Ordering::Relaxed);
        });
        return;
    }
    let out = support::child(name).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let told =
        |l: &&str| l.contains("a kernel on cpu:0 has asked ") && l.contains("the page at byte 0 of an allocation of 65536");
    assert_eq!(said.lines().filter(told).count(), 1, "{said}");
}
