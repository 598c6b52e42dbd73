//! Everybody gets on: pages that several parties want, and devices with hardly any memory.
//!
//! `STERNA_PROGRESS_SECONDS` sets how long the parties fight over one page.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sterna::Mechanism;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Absent;
use sterna::hmm::Attached;
use sterna::kernel::{Group, Kernel, each, each_mut};
use support::{Random, duration, runtime, smallest, tick, under_each};

/// A device adds to its part many times within one launch, so that it loses the page while it runs.
fn add_slowly(_: Group, times: u32, y: &mut [u64]) {
    for _ in 0..times {
        for y in &mut *y {
            // SAFETY: a reference. Volatile, so that each round is a load and a store of its own.
            unsafe { (&raw mut *y).write_volatile((&raw const *y).read_volatile() + 1) };
        }
    }
}

/// Fails if one of the parties starves: if a page is taken away again before its owner has used it, or a fault is forgotten.
#[test]
fn two_devices_and_the_host_on_one_page() {
    const TIMES: u32 = 500;
    let time = duration("STERNA_PROGRESS_SECONDS", Duration::from_secs(3));
    under_each("two_devices_and_the_host_on_one_page", time + Duration::from_secs(30), |m| {
        let config = CpuConfig { memory: 16 << 20, workers: 1, ..CpuConfig::default() };
        let grain = config.grain as usize / 8;
        let rt = runtime("declared", [config.clone(), config]);
        let devices = rt.devices();
        // Without host faults nobody shares a grain with the host.
        let part = if m == Mechanism::None { grain } else { 16 };
        let mut all = rt.shared::<u64>(3 * part).unwrap();
        let mut parts: Vec<_> = all.chunks_mut(part).collect();
        let (mut host, on_devices) = (parts.remove(0), parts);
        let (start, stop) = (Instant::now(), AtomicBool::new(false));
        let (counts, mine) = std::thread::scope(|s| {
            let (rt, stop) = (&rt, &stop);
            let threads: Vec<_> = on_devices
                .into_iter()
                .zip(&devices)
                .map(|(mut view, device)| {
                    s.spawn(move || {
                        let kernel = Kernel::new("add_slowly", TIMES, (each_mut(16),), add_slowly);
                        let mut launches = 0_u64;
                        while !stop.load(Ordering::Relaxed) {
                            rt.on(device).launch(&kernel, (&mut view,)).unwrap().wait().unwrap();
                            launches += 1;
                        }
                        assert!(
                            view.iter().all(|v| *v == launches * u64::from(TIMES)),
                            "{launches} launches, {:?}",
                            &view[..]
                        );
                        launches
                    })
                })
                .collect();
            let mut mine = 0_u64;
            while start.elapsed() < time {
                for v in host.iter_mut() {
                    // SAFETY: a reference; volatile as above.
                    unsafe { (&raw mut *v).write_volatile((&raw const *v).read_volatile() + 1) };
                }
                mine += 1;
            }
            stop.store(true, Ordering::Relaxed);
            (threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>(), mine)
        });
        assert!(host.iter().all(|v| *v == mine), "{mine} rounds, {:?}", &host[..]);
        println!("{m}, {time:?}: host {mine} rounds, devices {counts:?} launches\n{}", rt.stats());
        let least = time.as_secs().max(1) * 5;
        assert!(counts.iter().chain([&mine]).all(|n| *n >= least), "host {mine}, devices {counts:?}");
    });
}

fn add(_: Group, v: u64, x: &[u64], y: &mut [u64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x + v;
    }
}

/// `y += x + 1` by demand faults, twice, over `n` elements of each.
fn adds_by_demand(config: CpuConfig, n: usize) {
    let rt = runtime("demand", [config]);
    let x = rt.shared_with(n, |i| i as u64).unwrap();
    let mut y = rt.shared::<u64>(n).unwrap();
    let kernel = Kernel::new("add", 1_u64, (each(1000), each_mut(1000)), add);
    rt.launch(&kernel, (&x, &mut y)).unwrap();
    rt.launch(&kernel, (&x, &mut y)).unwrap().wait().unwrap();
    for (i, v) in y.iter().enumerate() {
        assert_eq!(*v, 2 * (i as u64 + 1), "element {i}");
    }
    let s = &rt.stats().devices[0];
    assert!(s.device_faults > 0 && s.evictions > 0, "nothing was faulted in or evicted: {s:?}");
}

/// Fails if workers evict each other's pages for ever, or the page that an instruction needs beside another.
#[test]
fn a_kernel_ends_on_the_smallest_legal_budget() {
    under_each("a_kernel_ends_on_the_smallest_legal_budget", Duration::from_secs(60), |_| {
        for grain in [4 << 10, 64 << 10] {
            let c = smallest(grain);
            adds_by_demand(c.clone(), 2 * c.memory as usize / 8 + 77);
        }
    });
}

/// Fails if what was evicted comes back with other bytes than it left with.
#[test]
fn four_times_the_memory_by_demand() {
    under_each("four_times_the_memory_by_demand", Duration::from_secs(120), |_| {
        adds_by_demand(CpuConfig { memory: 8 << 20, ..CpuConfig::default() }, 2 << 20);
    });
}

/// Fails if a host thread sees anything but its own elements' values while a device faults in the pages that they lie on.
#[test]
fn host_threads_read_beside_a_kernel_that_faults() {
    under_each("host_threads_read_beside_a_kernel_that_faults", Duration::from_secs(60), |m| {
        let config = CpuConfig { memory: 16 << 20, ..CpuConfig::default() };
        let per = if m == Mechanism::None { config.grain as usize / 8 } else { 100 };
        let rt = runtime("demand", [config]);
        let mut all = rt.shared::<u64>(per * 200).unwrap();
        let (mut host, mut device): (Vec<_>, Vec<_>) = all.chunks_mut(per).enumerate().partition(|(i, _)| i % 2 == 0);
        for (i, view) in &mut host {
            view.fill(*i as u64);
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            for t in 0..2 {
                let (host, done) = (&host, &done);
                s.spawn(move || {
                    let mut random = Random::new(t);
                    while !done.load(Ordering::Relaxed) {
                        let (i, view) = &host[random.below(host.len())];
                        assert!(view.iter().all(|v| *v == *i as u64), "view {i}: {:?}", &view[..]);
                    }
                });
            }
            for _ in 0..10 {
                for (_, view) in &mut device {
                    rt.launch(&tick(32), (view,)).unwrap();
                }
                rt.sync().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        for (i, view) in &device {
            assert!(view.iter().all(|v| *v == 10), "view {i}: {:?}", &view[..]);
        }
    });
}

/// Fails if a device that cannot fault keeps a page beyond the launches that use it, however closely the next ones follow.
#[test]
fn the_host_gets_a_page_from_a_device_that_cannot_fault() {
    under_each("the_host_gets_a_page_from_a_device_that_cannot_fault", Duration::from_secs(30), |m| {
        if m == Mechanism::None {
            return; // nobody shares a page there
        }
        let config = CpuConfig { memory: 16 << 20, absent: Absent::Undefined, ..CpuConfig::default() };
        let rt = runtime("declared", [config]);
        let mut all = rt.shared::<u64>(1000).unwrap();
        let (mut host, mut device) = all.split_at_mut(500).unwrap();
        let stop = AtomicBool::new(false);
        let (launches, rounds) = std::thread::scope(|s| {
            let (rt, stop, device) = (&rt, &stop, &mut device);
            let t = s.spawn(move || {
                let kernel = Kernel::new("add_slowly", 2000, (each_mut(500),), add_slowly);
                let mut pending = Vec::new();
                let mut launches = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    pending.push(rt.launch(&kernel, (&mut *device,)).unwrap());
                    launches += 1;
                    if pending.len() > 8 {
                        // Never a moment without a launch.
                        pending.drain(..4).for_each(|p: sterna::Pending| p.wait().unwrap());
                    }
                }
                launches
            });
            let (start, mut rounds) = (Instant::now(), 0_u64);
            while start.elapsed() < Duration::from_secs(2) {
                host[0] += 1;
                rounds += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
            (t.join().unwrap(), rounds)
        });
        assert!(device.iter().all(|v| *v == launches * 2000));
        println!("{m}: {launches} launches, {rounds} rounds of the host");
        assert!(rounds >= 20, "{rounds} rounds beside {launches} launches");
    });
}

/// Fails if a kernel may wait for a page for ever without anybody being told why.
#[test]
fn a_kernel_that_waits_for_long_is_told_of() {
    const INSIDE: &str = "STERNA_TEST_LONG_WAIT";
    let name = "a_kernel_that_waits_for_long_is_told_of";
    if std::env::var_os(INSIDE).is_some() {
        let _watch = support::watchdog(name, Duration::from_secs(60));
        // Another device takes its time over the page.
        let config = CpuConfig { memory: 16 << 20, ..CpuConfig::default() };
        let rt = runtime("demand", [config.clone()]);
        let mut x = rt.shared_with(100, |_| 0_u64).unwrap();
        let slow = Arc::new(CpuDevice::new(1, config).unwrap());
        slow.inject().delay_copies(Duration::from_secs(8));
        let taker = Attached::new(rt.space(), Arc::clone(&slow) as _).unwrap();
        let pages = x.pages();
        std::thread::scope(|s| {
            s.spawn(|| taker.migrate(&pages).unwrap());
            while slow.inject().copies() == 0 {
                std::thread::yield_now();
            }
            let pending = rt.launch(&tick(100), (&mut x,)).unwrap();
            assert!(!pending.wait_timeout(Duration::from_secs(6)).unwrap());
            slow.inject().delay_copies(Duration::ZERO); // for the way back
            pending.wait().unwrap();
        });
        assert!(x.iter().all(|v| *v == 1));
        return;
    }
    let mechanism = std::env::var("STERNA_HOST_FAULTS");
    if mechanism.as_deref() == Ok("none") {
        return; // nobody shares a page there
    }
    let out = support::child(name).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let line = said.lines().filter(|l| l.contains("has waited 5 s for the page at byte 0")).count();
    assert!(line == 1 && said.contains("it is being moved"), "{said}");
}
