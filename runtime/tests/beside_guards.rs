//! Programs that launch beside guards, some of which were forgotten, from several threads and on several devices: nobody waits for
//! ever, nobody is refused for what a launch keeps, and every byte is right.

mod common;
#[path = "common/placed.rs"]
mod placed;
#[path = "support/mod.rs"]
mod support;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::vulkan::{TABLES, vulkan};
use common::{Hold, MIB, add, copy_add, eventually, faults, rigid, small};
use placed::Placed;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Access, Device};
use sterna::hmm::{Attached, Operand, Page, Pages};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::policy::Place;
use sterna::{Mechanism, Runtime, Shared};
use support::{Random, seed, under_each};

/// Threads, each with a side of one allocation.
const SIDES: usize = 4;
/// Elements of a side, about. Sides meet within pages, but where no fault tells apart what a grain holds.
const SIDE: usize = 45_000;
/// Elements of the longest grain of these tests' devices.
const GRAIN: usize = (64 << 10) / 4;
/// Guards that a side forgets at most, and elements of one.
const FORGOTTEN: usize = 3;
const OF_ONE: usize = 9_000;

const LIMIT: Duration = Duration::from_secs(100);

/// A side, and what it must hold.
struct Side {
    x: Shared<u32>,
    want: Vec<u32>,
    scratch: Shared<u32>,
    forgotten: usize,
}

impl Side {
    /// Some of its elements: any, or whole grains.
    fn part(&self, r: &mut Random, any: bool) -> Range<usize> {
        let n = self.want.len();
        let (a, b) = (r.below(n), r.below(n));
        let (a, b) = (a.min(b), a.max(b) + 1);
        if any { a..b } else { a / GRAIN * GRAIN..b.next_multiple_of(GRAIN).min(n) }
    }

    #[track_caller]
    fn check(&self, how: &str) {
        let wrong = self.x.iter().zip(&self.want).position(|(x, want)| x != want);
        assert_eq!(wrong.map(|i| (i, self.x[i], self.want[i])), None, "{how}: of {} elements", self.want.len());
    }

    /// One thing that a program does.
    fn step(&mut self, rt: &Runtime, r: &mut Random, forgets: bool, how: &str) {
        let any = faults(rt);
        let device = &rt.devices()[r.below(rt.devices().len())];
        let range = self.part(r, any);
        let (len, what) = (range.len(), r.below(14));
        match what {
            0 if forgets && self.forgotten < FORGOTTEN => {
                self.forgotten += 1;
                let range = range.start..range.end.min(range.start + 1 + r.below(OF_ONE));
                let mut guard = self.x.host_mut(range.clone()).unwrap();
                guard.iter_mut().for_each(|v| *v = v.wrapping_add(3));
                std::mem::forget(guard);
                self.want[range].iter_mut().for_each(|v| *v = v.wrapping_add(3));
            }
            // A guard beside a launch on its other side, whose holder waits for the launch.
            0..=3 => {
                let mid = range.start;
                let (mut a, mut b) = self.x.split_at_mut(mid).unwrap();
                if mid == 0 || what == 1 && !any {
                    return;
                }
                let near = 0..b.len().min(2_000);
                let mut guard = b.host_mut(near.clone()).unwrap();
                let p = rt.on(device).launch(&add(5), (&mut a,)).unwrap();
                guard.iter_mut().for_each(|v| *v = v.wrapping_add(1));
                p.wait().unwrap_or_else(|e| panic!("{how}, beside a guard: {e}"));
                drop(guard);
                self.want[..mid].iter_mut().for_each(|v| *v = v.wrapping_add(5));
                self.want[mid..mid + near.end].iter_mut().for_each(|v| *v = v.wrapping_add(1));
            }
            4..=7 => {
                let mut view = self.x.range_mut(range.clone()).unwrap();
                let p = rt.on(device).launch(&add(7), (&mut view,)).unwrap();
                if r.below(2) == 0 {
                    p.wait().unwrap_or_else(|e| panic!("{how}, a launch: {e}"));
                }
                self.want[range].iter_mut().for_each(|v| *v = v.wrapping_add(7));
            }
            8 => {
                let view = self.x.range(range.clone()).unwrap();
                let mut out = self.scratch.range_mut(..len).unwrap();
                let p = rt.on(device).launch(&copy_add(0), (&view, &mut out)).unwrap();
                p.wait().unwrap_or_else(|e| panic!("{how}, a copy: {e}"));
                assert!(*out == self.want[range], "{how}: a launch read something else");
            }
            9 => {
                self.x.discard(range.clone()).unwrap();
                self.want[range].fill(0);
            }
            10 => {
                let i = range.start;
                self.x[i] = self.x[i].wrapping_add(11);
                self.want[i] = self.want[i].wrapping_add(11);
            }
            11 => assert_eq!(self.x[range.end - 1], self.want[range.end - 1], "{how}: a load"),
            12 if r.below(2) == 0 => self.x.prefetch_to(device),
            12 => self.x.prefetch_to_host(),
            _ => self.check(how),
        }
    }
}

/// Has each thread do things with its side for a while, and looks at every byte.
fn program(rt: &Runtime, time: Duration, forgets: bool, how: &str) {
    let first = seed();
    let how = &format!("{how}, seed {first}");
    let mut r = Random::new(first);
    let any = faults(rt);
    let at = |side: usize| side * SIDE + if any { 101 * side } else { 0 };
    let at = |side: usize| if any { at(side) } else { at(side).next_multiple_of(GRAIN) };
    let begin: Vec<u32> = (0..at(SIDES) as u32).collect();
    let mut rest = rt.shared_from(&begin).unwrap();
    let mut sides = Vec::new();
    for side in (0..SIDES).rev() {
        let x =
            if side == 0 { std::mem::replace(&mut rest, rt.shared(1).unwrap()) } else { rest.split_off(at(side)).unwrap() };
        let want = begin[at(side)..at(side) + x.len()].to_vec();
        let scratch = rt.shared(x.len()).unwrap();
        sides.push((Side { x, want, scratch, forgotten: 0 }, Random::new(first ^ r.below(1 << 30) as u64)));
    }
    let until = Instant::now() + time;
    std::thread::scope(|s| {
        for (side, r) in &mut sides {
            s.spawn(move || {
                while Instant::now() < until {
                    side.step(rt, r, forgets, how);
                }
                side.check(how);
            });
        }
    });
    rt.sync().unwrap_or_else(|e| panic!("{how}: {e}"));
}

type Open = Box<dyn Fn(u32) -> Arc<dyn Device>>;

fn cpu(config: CpuConfig) -> Open {
    Box::new(move |i| Arc::new(CpuDevice::new(i, config.clone()).unwrap()))
}

/// Runs the program over these devices in one runtime.
fn over(devices: Vec<Arc<dyn Device>>, time: Duration, forgets: bool, how: &str) {
    let open = |b: sterna::Builder, d| b.open_device(d);
    let rt = devices.into_iter().fold(Runtime::builder(), open).build().unwrap();
    program(&rt, time, forgets, how);
}

/// Fails by its limit if a launch or a device's fault waits for a guard that nobody holds any more, on devices that differ in what they
/// can do beside it.
#[test]
fn forgotten_guards_are_in_nobodys_way_on_devices_of_two_kinds() {
    under_each("forgotten_guards_are_in_nobodys_way_on_devices_of_two_kinds", LIMIT, |m| {
        // Little enough that copies, and what else launches use, have to make room for each other.
        let memory = 3 * MIB / 2;
        let kinds: Vec<(&str, Open)> = vec![
            ("faulting", cpu(small(memory))),
            ("faulting, no aliases", cpu(CpuConfig { map_host: false, ..small(memory) })),
            ("coherent, no aliases", cpu(CpuConfig { map_host: false, coherent: true, ..small(memory) })),
            ("faulting, no aliases, page grain", cpu(CpuConfig { map_host: false, grain: 4096, ..small(memory) })),
            ("rigid", cpu(rigid(memory))),
            ("rigid, no aliases", cpu(CpuConfig { map_host: false, host_readable: false, ..rigid(memory) })),
            ("fixed", Box::new(move |_| Arc::new(Placed::new(rigid(memory))))),
        ];
        let time = support::duration("STERNA_BESIDE_GUARDS", Duration::from_millis(400));
        for (i, (one, a)) in kinds.iter().enumerate() {
            for (two, b) in &kinds[i..] {
                over(vec![a(0), b(1)], time, true, &format!("{m}: {one} and {two}"));
            }
        }
    });
}

/// The same with each page table of a Vulkan device, beside the processor, which faults and uses pages in place.
#[test]
fn forgotten_guards_beside_a_vulkan_device_and_the_processor() {
    under_each("forgotten_guards_beside_a_vulkan_device_and_the_processor", LIMIT, |m| {
        let time = support::duration("STERNA_BESIDE_GUARDS", Duration::from_millis(1500));
        for table in TABLES {
            let Ok(device) = vulkan(table, MIB as u64, None) else { continue };
            let processor = cpu(CpuConfig { memory: MIB as u64, ..small(MIB) })(1);
            over(vec![Arc::new(device), processor], time, true, &format!("{m}: {table} and cpu"));
        }
    });
}

/// Fails if a driver is refused for what a launch keeps at home when the guard beside it has gone, or does not wait for the launch.
#[test]
fn drivers_wait_for_what_a_launch_keeps_at_home() {
    static HOLDS: [Hold; 2] = [const { Hold::new() }; 2];
    fn held(_: Group, n: u32, y: &mut [u32]) {
        HOLDS[n as usize].wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    under_each("drivers_wait_for_what_a_launch_keeps_at_home", LIMIT, |m| {
        if m == Mechanism::None {
            return; // two sides share no page, and drivers move nothing of a program's
        }
        let by_page = |config: CpuConfig| CpuConfig { grain: 4096, map_host: false, ..config };
        let rt = common::runtime(by_page(rigid(MIB)));
        let device = Arc::new(CpuDevice::new(1, by_page(small(MIB))).unwrap());
        let driver = Attached::new(rt.space(), device).unwrap();
        let mut x = rt.shared_with(10_000, |i| i as u32).unwrap();
        let pages = x.pages();
        let segment = rt.space().find(Page(pages.0.start)).unwrap();
        let (mut a, mut b) = x.split_at_mut(5_500).unwrap();
        for (n, what) in ["populate", "run"].into_iter().enumerate() {
            let guard = b.host_mut(..10).unwrap();
            let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("held", n as u32, (each_mut(1 << 20),), held);
            let p = rt.launch(&kernel, (&mut a,)).unwrap();
            HOLDS[n].entered();
            drop(guard);
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    let operand = Operand { segment: Arc::clone(&segment), bytes: 4 * 5_500..4 * 10_000 };
                    let border = Pages(pages.0.start + 5..pages.0.start + 6);
                    let did = match what {
                        "populate" => driver.populate(&border, Access::Read, Place::Migrate, None),
                        // SAFETY: nobody else uses these bytes meanwhile.
                        _ => unsafe { driver.run(&add(2), &[operand], Place::Migrate, None) }.map(drop),
                    };
                    did.unwrap_or_else(|e| panic!("{m}, {what}: {e}"));
                    done.store(true, Ordering::SeqCst);
                });
                std::thread::sleep(Duration::from_millis(50));
                assert!(!done.load(Ordering::SeqCst), "{m}, {what}: it did not wait");
                HOLDS[n].release();
            });
            p.wait().unwrap();
        }
        let want = |i: usize| i as u32 + 2;
        let wrong = x.iter().enumerate().find(|(i, v)| **v != want(*i));
        assert_eq!(wrong, None, "{m}");
    });
}

/// Fails by its limit if launches stay held back for a load whose page was not fetched in the end, since the host and a launch came to
/// share it while the thread that serves faults was at another.
#[test]
fn launches_go_on_when_a_page_that_held_them_back_is_shared() {
    const ROUNDS: usize = 3;
    static HOLDS: [Hold; ROUNDS] = [const { Hold::new() }; ROUNDS];
    fn held(_: Group, n: u32, y: &mut [u32]) {
        HOLDS[n as usize].wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    under_each("launches_go_on_when_a_page_that_held_them_back_is_shared", LIMIT, |m| {
        if m == Mechanism::None {
            return; // two sides share no page
        }
        let here = common::device(CpuConfig { map_host: false, ..rigid(MIB) });
        let far = Arc::new(CpuDevice::new(1, CpuConfig { host_readable: false, ..small(4 * MIB) }).unwrap());
        let builder = Runtime::builder().open_device(here).open_device(Arc::clone(&far) as Arc<dyn Device>);
        let rt = builder.policy("declared").unwrap().build().unwrap();
        // In the order in which their faults are looked at.
        let mut x = rt.shared_with(1_000, |i| i as u32).unwrap();
        let mut z = rt.shared_with(1_000, |i| i as u32).unwrap();
        assert!(x.pages().0.start < z.pages().0.start);
        let mut y = rt.shared::<u32>(500).unwrap();
        let (mut a, b) = x.split_at_mut(500).unwrap();
        for (n, hold) in HOLDS.iter().enumerate() {
            rt.on(&rt.devices()[1]).launch(&add(1), (&mut z,)).unwrap().wait().unwrap();
            let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("held", n as u32, (each_mut(1 << 20),), held);
            let p = rt.launch(&kernel, (&mut a,)).unwrap();
            hold.entered();
            let (loads, begun, over) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    begun.store(true, Ordering::SeqCst);
                    while !over.load(Ordering::SeqCst) {
                        // SAFETY: a reference. Volatile, since it is about the load.
                        assert_eq!(unsafe { std::ptr::read_volatile(&raw const b[0]) }, 500);
                        loads.fetch_add(1, Ordering::SeqCst);
                    }
                });
                eventually("it has begun", || begun.swap(false, Ordering::SeqCst));
                std::thread::sleep(Duration::from_millis(30));
                assert_eq!(loads.load(Ordering::SeqCst), 0, "{m}: a launch writes the page");
                // The thread that serves faults has something to do for a while.
                far.inject().delay_copies(Duration::from_millis(400));
                s.spawn(|| {
                    begun.store(true, Ordering::SeqCst);
                    assert_eq!(z[0], 1 + n as u32);
                });
                eventually("it has begun", || begun.load(Ordering::SeqCst));
                std::thread::sleep(Duration::from_millis(30));
                hold.release();
                p.wait().unwrap();
                drop(a.host(..).unwrap());
                eventually("the page is at home", || loads.load(Ordering::SeqCst) > 0);
                // The launch has a replica, and the load of it is parked.
                let q = rt.launch(&copy_add(1), (&a, &mut y)).unwrap();
                eventually("the load waits", || {
                    let before = loads.load(Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(10));
                    q.is_done() || loads.load(Ordering::SeqCst) == before
                });
                q.wait().unwrap();
                over.store(true, Ordering::SeqCst);
            });
            far.inject().delay_copies(Duration::ZERO);
            assert!(y.iter().enumerate().all(|(i, y)| *y == (i + n) as u32 + 2), "{m}");
        }
    });
}

/// Fails by its limit if launches stay held back for a fault that was served in another way than by fetching its page.
#[test]
fn a_small_device_that_cannot_fault_beside_threads_that_do() {
    under_each("a_small_device_that_cannot_fault_beside_threads_that_do", LIMIT, |m| {
        let time = support::duration("STERNA_BESIDE_GUARDS", Duration::from_secs(3));
        for memory in [256 << 10, MIB] {
            let device = cpu(CpuConfig { grain: 4096, ..rigid(memory) })(0);
            over(vec![device], time, false, &format!("{m}: {memory} bytes"));
        }
    });
}

/// An entry of a device is for a whole grain, in its memory or in the host's. A launch that needs pages of both kinds in one gets on.
#[test]
fn a_launch_reads_what_a_guard_keeps_and_writes_beside_it_in_one_grain() {
    const SPLIT: usize = 14_092;
    under_each("a_launch_reads_what_a_guard_keeps_and_writes_beside_it_in_one_grain", LIMIT, |m| {
        if m == Mechanism::None {
            return; // launches have whole grains there
        }
        for config in [small(8 * MIB), CpuConfig { map_host: false, ..rigid(8 * MIB) }, rigid(8 * MIB)] {
            let how = format!("{m}: {config:?}");
            let dev = Arc::new(CpuDevice::new(0, config).unwrap());
            let rt = Runtime::builder().open_device(dev).build().unwrap();
            let mut low = rt.shared_with(3 * SPLIT, |i| i as u32).unwrap();
            let high = low.split_off(SPLIT).unwrap();
            let guard = high.host(2_232..SPLIT + 5_000).unwrap();
            let read = high.range(..SPLIT).unwrap();
            for round in 1..4 {
                let done = rt.launch(&copy_add(round), (&read, &mut low)).unwrap();
                assert!(done.wait_timeout(Duration::from_secs(20)).unwrap(), "{how}: it waits for the guard");
                assert!(low.iter().enumerate().all(|(i, x)| *x == (SPLIT + i) as u32 + round), "{how}");
            }
            assert!(guard.iter().enumerate().all(|(i, x)| *x == (SPLIT + 2_232 + i) as u32), "{how}");
        }
    });
}
