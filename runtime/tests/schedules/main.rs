//! Launches, host faults and eviction in every order that a seed can give.
//!
//! Two devices and a host thread have a part each of the same two pages. One thread runs at a time; the seed decides at each lock,
//! sleep, edit, copy and access who goes next, so that a run can be repeated: `STERNA_SEED` begins with that seed,
//! `STERNA_SCHEDULES` says how many there are for each scenario. Each planted defect must be found by the same scenarios.
//!
//! The engine is the real one, over the kernel's own userfaultfd; only who goes next is not left to chance.
#![cfg(feature = "planted")]

#[path = "../support/mod.rs"]
mod support;

mod stepped;

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sterna::cpu::CpuConfig;
use sterna::hal::{Absent, Device};
use sterna::hmm::{planted, schedule};
use sterna::kernel::{Each, EachMut, Group, Kernel, each, each_mut};
use sterna::{Advice, Mechanism, Runtime, ViewMut};

use stepped::Stepped;
use support::under_each;

/// Elements of a party's part: an eighth of a page each, so that all three share both pages.
const PART: usize = 2;
const ROUNDS: u64 = 3;
/// What the host adds at the end.
const AFTERWARDS: u64 = 1000;

/// Adds `v` to each element, with a moment between load and store.
fn slowly(_: Group, v: u64, y: &mut [u64]) {
    for (i, y) in y.iter_mut().enumerate() {
        if i < PART { add(y, v) } else { *y += v }
    }
}

fn add(y: &mut u64, v: u64) {
    let at = &raw mut *y;
    // SAFETY: a reference. Volatile, since the points between are where others may go on.
    unsafe {
        let old = at.read_volatile();
        schedule::point();
        at.write_volatile(old + v);
    }
}

fn copied(_: Group, (): (), x: &[u64], y: &mut [u64]) {
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        // SAFETY: references; volatile as above.
        unsafe {
            let v = (&raw const *x).read_volatile();
            if i < PART {
                schedule::point();
            }
            (&raw mut *y).write_volatile(v);
        }
    }
}

fn copy(chunk: usize) -> Kernel<(Each<u64>, EachMut<u64>)> {
    Kernel::new("copied", (), (each(chunk), each_mut(chunk)), copied)
}

fn slow(v: u64, chunk: usize) -> Kernel<(EachMut<u64>,)> {
    Kernel::new("slowly", v, (each_mut(chunk),), slowly)
}

/// One setting of the devices.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    name: &'static str,
    policy: &'static str,
    absent: [Absent; 2],
    /// Grains of memory of each device.
    frames: u32,
    host_readable: bool,
    /// Devices can use host pages in place; those that cannot have copies beside a guard.
    map_host: bool,
    /// The pages are advised so: the host may load them beside devices' copies.
    mostly_read: bool,
    /// The host uses the devices' memory in place.
    coherent: bool,
}

const SCENARIOS: [Scenario; 14] = {
    use Absent::{Faults, Undefined};
    let (absent, frames) = ([Faults, Faults], 64);
    let (policy, host_readable, map_host, mostly_read, coherent) = ("declared", true, true, false, false);
    let s = Scenario { name: "declared", policy, absent, frames, host_readable, map_host, mostly_read, coherent };
    [
        s,
        Scenario { name: "demand", policy: "demand", ..s },
        Scenario { name: "demand, hardly any memory", policy: "demand", frames: 0, ..s },
        Scenario { name: "rigid", absent: [Undefined, Undefined], ..s },
        Scenario { name: "rigid, no aliases", absent: [Undefined, Undefined], map_host: false, host_readable: false, ..s },
        Scenario { name: "no aliases", map_host: false, ..s },
        Scenario { name: "no aliases, by demand", policy: "demand", map_host: false, host_readable: false, ..s },
        Scenario { name: "in place beside a rigid one", policy: "remote", absent: [Faults, Undefined], ..s },
        Scenario { name: "unreadable frames", host_readable: false, ..s },
        Scenario { name: "mostly read", mostly_read: true, ..s },
        Scenario { name: "mostly read, by demand", policy: "demand", mostly_read: true, ..s },
        Scenario { name: "coherent", coherent: true, ..s },
        Scenario { name: "coherent, hardly any memory", policy: "demand", frames: 0, coherent: true, ..s },
        Scenario { name: "coherent, mostly read", policy: "demand", mostly_read: true, coherent: true, ..s },
    ]
};

/// Runs one schedule; the error says what was lost.
fn schedule(s: Scenario, m: Mechanism, seed: u64) -> Result<schedule::Report, String> {
    let page = 4096 / 8;
    let device = |i: usize| {
        let config = CpuConfig {
            grain: 4096,
            workers: 1,
            absent: s.absent[i],
            host_readable: s.host_readable,
            map_host: s.map_host,
            coherent: s.coherent,
            window: 1 << 30,
            ..CpuConfig::default()
        };
        let least = Stepped::new(0, CpuConfig { memory: 64 << 12, ..config.clone() }).caps().min_frames;
        Arc::new(Stepped::new(i as u32, CpuConfig { memory: u64::from(s.frames.max(least).max(2)) << 12, ..config }))
    };
    let (a, b) = (device(0), device(1));
    let builder = Runtime::builder().open_device(Arc::clone(&a) as _).open_device(Arc::clone(&b) as _);
    let rt = builder.policy(s.policy).unwrap().build().unwrap();
    // In mode none parties share no grain.
    let part = if m == Mechanism::None { page } else { PART };
    let mut outs = rt.shared::<u64>(2 * part).unwrap();
    let mut all = rt.shared_with(4 * page, |i| i as u64).unwrap();
    if s.mostly_read {
        all.advise(Advice::ReadMostly);
    }
    let (right, end, report) = {
        let (mut out, mut out2) = outs.split_at_mut(part).unwrap();
        let mut rest = all.range_mut(if m == Mechanism::None { 0 } else { page - 3 * PART / 2 }..).unwrap();
        let (mut mine, mut rest) = rest.split_at_mut(part).unwrap();
        let (mut theirs, mut rest) = rest.split_at_mut(part).unwrap();
        let (mut third, _) = rest.split_at_mut(part).unwrap();
        // Everything that is made once, and by a thread of its own, is there before.
        rt.launch(&slow(0, part / 2), (&mut mine,)).unwrap().wait().unwrap();
        rt.on(&rt.devices()[1]).launch(&slow(0, part / 2), (&mut theirs,)).unwrap().wait().unwrap();
        rt.sync().unwrap();
        assert!(third.iter().all(|v| *v > 0 || m == Mechanism::None));

        let left = AtomicUsize::new(3);
        let over = || left.load(Ordering::SeqCst) == 0;
        let begin: Vec<u64> = [&mine, &theirs, &third].iter().flat_map(|v| v.iter().copied()).collect();
        let launches = |view: &mut ViewMut<'_, u64>, out: &mut ViewMut<'_, u64>, n: usize| {
            for round in 1..=ROUNDS {
                let p = rt.on(&rt.devices()[n]).launch(&slow(round, part / 2), (&mut *view,)).unwrap();
                if round == 2 {
                    p.wait().unwrap();
                }
            }
            // What another device reads is awaited, and not stored over before it has been read.
            rt.on(&rt.devices()[1 - n]).launch(&copy(part / 2), (&*view, out)).unwrap();
            view.iter_mut().for_each(|v| *v += AFTERWARDS);
            rt.sync().unwrap();
            left.fetch_sub(1, Ordering::SeqCst);
        };
        let report = schedule::run(
            seed,
            vec![
                Box::new(|| a.work(over)),
                Box::new(|| b.work(over)),
                Box::new(|| launches(&mut mine, &mut out, 0)),
                Box::new(|| launches(&mut theirs, &mut out2, 1)),
                Box::new(|| {
                    for round in 1..=ROUNDS {
                        slowly(Group::nth(0, [1; 3]), round, &mut third);
                        // Fetched by this thread itself, not by the one that serves faults. What is used in place stays there.
                        if !s.coherent || s.mostly_read {
                            drop(third.host(..).unwrap());
                        }
                        schedule::point();
                    }
                    left.fetch_sub(1, Ordering::SeqCst);
                }),
            ],
        );
        let sum = ROUNDS * (ROUNDS + 1) / 2;
        let parts = [&mine, &theirs, &third, &out, &out2];
        let end: Vec<u64> = parts.iter().flat_map(|v| v.iter().copied()).collect();
        let added = |i: usize| if i < 2 * part { sum + AFTERWARDS } else { sum };
        let mut right: Vec<u64> = begin.iter().enumerate().map(|(i, b)| b + added(i)).collect();
        right.extend(begin[..2 * part].iter().map(|b| b + sum));
        (right, end, report)
    };
    drop((all, outs));
    // A thread that serves faults may be the last to let go.
    let in_use = || a.memory().in_use + b.memory().in_use;
    let end_of_patience = Instant::now() + Duration::from_secs(5);
    while in_use() != 0 && Instant::now() < end_of_patience {
        std::thread::yield_now();
    }
    if let Some(i) = end.iter().zip(&right).position(|(e, r)| e != r) {
        return Err(format!("element {i} is {} instead of {}", end[i], right[i]));
    }
    if in_use() != 0 {
        return Err(format!("{} bytes of device memory are still in use", in_use()));
    }
    Ok(report)
}

fn how_many() -> u64 {
    std::env::var("STERNA_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

#[test]
fn nothing_is_lost_in_any_order() {
    under_each("nothing_is_lost_in_any_order", Duration::from_secs(3600), |m| {
        if m == Mechanism::Transparent {
            println!(
                "SKIP schedules under {m}: its faults are served by threads that sleep in the kernel, which take no part"
            );
            return;
        }
        let first = support::seed();
        for s in SCENARIOS {
            let (start, mut steps) = (Instant::now(), 0);
            for seed in first..first + how_many() {
                match schedule(s, m, seed) {
                    Ok(r) => steps += r.steps,
                    Err(e) => panic!("{m}, {}: seed {seed}: {e}", s.name),
                }
            }
            println!("{m}, {}: {} schedules, {steps} steps, {:?}", s.name, how_many(), start.elapsed());
        }
    });
}

/// Fails if a seed does not stand for an order.
#[test]
fn a_schedule_can_be_repeated() {
    under_each("a_schedule_can_be_repeated", Duration::from_secs(100), |m| {
        if m == Mechanism::Transparent {
            return;
        }
        for s in SCENARIOS {
            for seed in 0..10 {
                let (one, two) = (schedule(s, m, seed), schedule(s, m, seed));
                assert_eq!(one, two, "{}: seed {seed}", s.name);
            }
        }
    });
}

/// Looks for a schedule in which `defect` does harm: something is lost, or a kernel dies of an access to a page that was taken
/// away. In a process of its own, whose death counts.
fn finds(test: &str, name: &str, defect: &'static AtomicBool) {
    const CHILD: &str = "STERNA_PLANTED";
    if std::env::var_os(CHILD).is_some() {
        let _watch = support::watchdog(test, Duration::from_secs(300));
        defect.store(true, Ordering::SeqCst);
        let m = std::env::var("STERNA_HOST_FAULTS").unwrap().parse().unwrap();
        let (start, seeds) = (Instant::now(), 0..);
        let only_coherent = std::ptr::eq(defect, &planted::FRAMES_NOT_HIDDEN);
        let scenarios = SCENARIOS.iter().filter(|s| s.coherent || !only_coherent);
        for (n, (seed, s)) in seeds.flat_map(|seed| scenarios.clone().map(move |s| (seed, *s))).enumerate() {
            if let Err(e) = schedule(s, m, seed) {
                println!("found after {n} schedules, {:?}: {}, seed {seed}: {e}", start.elapsed(), s.name);
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "unseen in {n} schedules");
        }
    }
    let out = support::child(test).env(CHILD, "1").env("STERNA_HOST_FAULTS", "signal").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    let found = said.lines().find(|l| l.contains("found after")).map(str::to_owned);
    let died = (out.status.signal() == Some(libc::SIGSEGV)).then(|| "a kernel died of it".to_owned());
    match found.or(died) {
        Some(how) => println!("{name}: {how}"),
        None => panic!("{name} went unseen: {}\n{said}", out.status),
    }
}

#[test]
fn finds_copies_before_the_unmap() {
    finds("finds_copies_before_the_unmap", "copy before unmap", &planted::COPY_BEFORE_UNMAP);
}

#[test]
fn finds_inline_home_coming_beside_a_launch() {
    finds("finds_inline_home_coming_beside_a_launch", "inline home-coming beside a launch", &planted::INLINE_WHILE_ACTIVE);
}

#[test]
fn finds_a_store_that_does_not_wait_for_readers() {
    finds(
        "finds_a_store_that_does_not_wait_for_readers",
        "a store that does not wait for readers",
        &planted::GATE_DOWN_FOR_READS,
    );
}

#[test]
fn finds_a_launch_over_entries_on_their_way_out() {
    finds(
        "finds_a_launch_over_entries_on_their_way_out",
        "a launch over entries on their way out",
        &planted::LEAVING_IGNORED,
    );
}

#[test]
fn finds_stale_entries_left_to_a_launch() {
    finds("finds_stale_entries_left_to_a_launch", "stale entries left to a launch", &planted::STALE_LEFT);
}

#[test]
fn finds_copies_that_outlive_a_store() {
    finds("finds_copies_that_outlive_a_store", "copies that outlive a store", &planted::REPLICA_KEPT_AT_STORE);
}

#[test]
fn finds_entries_taken_from_a_running_launch() {
    finds("finds_entries_taken_from_a_running_launch", "entries taken from a running launch", &planted::RIGID_NOT_AWAITED);
}

#[test]
fn finds_more_than_a_launch_has_written_coming_home_beside_a_guard() {
    finds(
        "finds_more_than_a_launch_has_written_coming_home_beside_a_guard",
        "whole pages coming home beside a guard",
        &planted::BORDER_COMES_WHOLE,
    );
}

#[test]
fn finds_a_launch_that_does_not_wait_for_another_device() {
    finds(
        "finds_a_launch_that_does_not_wait_for_another_device",
        "a launch that does not wait for another device",
        &planted::NO_ORDER_BETWEEN_DEVICES,
    );
}

#[test]
fn finds_pages_that_leave_while_the_window_shows_them() {
    finds(
        "finds_pages_that_leave_while_the_window_shows_them",
        "pages that leave while the window shows them",
        &planted::FRAMES_NOT_HIDDEN,
    );
}
