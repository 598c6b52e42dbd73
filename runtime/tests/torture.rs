//! Writers, devices and movers on the same pages, each on elements of its own: nothing may be lost.
//!
//! `STERNA_TORTURE_SECONDS` sets the time for each mechanism, `STERNA_SEED` repeats a run. With the feature `planted` the
//! negative controls show that the tests see the losses which they are there to see.

#[path = "torture/comers.rs"]
mod comers;
#[path = "torture/leaving.rs"]
mod leaving;
#[path = "torture/limits.rs"]
mod limits;
mod support;
#[path = "common/vulkan.rs"]
mod vulkan;
#[path = "torture/workers.rs"]
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sterna::Mechanism;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Absent, Device};
use sterna::hmm::{Action, Mirror, MirrorOps, Pages};
use sterna::kernel::{Group, Kernel, each_mut};
use support::{duration, plain, runtime, seed, smallest, tick, under_each};
use workers::{Setting, Tally, round};

const SETTINGS: usize = 13;

fn seconds() -> Duration {
    duration("STERNA_TORTURE_SECONDS", Duration::from_secs(3))
}

fn cpu(index: u32, config: &CpuConfig) -> Arc<dyn Device> {
    Arc::new(CpuDevice::new(index, config.clone()).unwrap())
}

/// As little as a launch and its neighbours need, where an access to an absent page is a crash.
fn rigid(grain: u64) -> CpuConfig {
    CpuConfig { absent: Absent::Undefined, memory: 256 << 10, grain, workers: 2, ..CpuConfig::default() }
}

/// The rounds of a run: what differs are the grain, whether launches declare or fault, the room, and the size.
fn setting(n: usize) -> Setting {
    let roomy = |grain| CpuConfig { memory: 64 << 20, grain, workers: 2, ..CpuConfig::default() };
    let (policy, config, bytes) = match n % SETTINGS {
        0 => ("declared", roomy(64 << 10), 64 << 10),
        1 => ("demand", roomy(4 << 10), 16 << 10),
        2 => ("demand", CpuConfig { workers: 2, ..smallest(64 << 10) }, 256 << 10),
        3 => ("declared", CpuConfig { host_readable: false, map_host: false, ..roomy(64 << 10) }, 128 << 10),
        4 => ("declared", roomy(2 << 20), 2 << 20),
        5 => ("declared", CpuConfig { coherent: true, ..roomy(16 << 10) }, 64 << 10),
        6 => ("demand", CpuConfig { coherent: true, workers: 2, ..smallest(4 << 10) }, 256 << 10),
        // An access to an absent page is a crash on this one.
        7 => ("declared", CpuConfig { absent: Absent::Undefined, ..roomy(16 << 10) }, 64 << 10),
        8 => ("demand", CpuConfig { workers: 2, ..smallest(4 << 10) }, 64 << 10),
        9 => ("declared", CpuConfig { workers: 2, ..smallest(64 << 10) }, 256 << 10),
        10 => ("declared", rigid(4 << 10), 64 << 10),
        11 => ("declared", CpuConfig { host_readable: false, workers: 2, ..smallest(4 << 10) }, 128 << 10),
        _ => {
            let devices = [cpu(0, &CpuConfig { workers: 2, ..smallest(4 << 10) }), cpu(1, &rigid(4 << 10))];
            return Setting { policy: "demand", devices, bytes: 64 << 10 };
        }
    };
    Setting { policy, devices: [0, 1].map(|i| cpu(i, &config)), bytes }
}

/// The same over Vulkan devices with a page table: two of them, or one and a CPU device, with room for all and for a part. `None` where
/// there is no such device.
fn vulkan_setting(table: &str, n: usize) -> Option<Setting> {
    let open = |memory| vulkan::vulkan(table, memory, None).ok().map(|d| Arc::new(d) as Arc<dyn Device>);
    let other = |memory| cpu(0, &CpuConfig { memory, workers: 2, ..CpuConfig::default() });
    // With little room: what one launch needs, what is pinned by others, and what an allocation that comes and goes takes.
    let little = 2 << 20;
    Some(match n % 4 {
        0 => Setting { policy: "declared", devices: [open(64 << 20)?, open(64 << 20)?], bytes: 64 << 10 },
        1 => Setting { policy: "declared", devices: [open(64 << 20)?, other(64 << 20)], bytes: 128 << 10 },
        2 => Setting { policy: "demand", devices: [open(little)?, open(little)?], bytes: 256 << 10 },
        _ => Setting { policy: "declared", devices: [open(little)?, other(little)], bytes: 256 << 10 },
    })
}

/// Rounds of `time` in all, the first of them drawn by the seed. `None` where a setting cannot be had.
fn torture(
    what: &str,
    time: Duration,
    seed: u64,
    m: Mechanism,
    setting: impl Fn(usize) -> Option<Setting>,
) -> Option<Tally> {
    let (start, mut total, mut n) = (Instant::now(), Tally::default(), seed as usize % SETTINGS);
    let rounds = (time.as_secs() as usize).clamp(3, SETTINGS);
    for _ in 0..rounds {
        let setting = setting(n)?;
        let said = setting.to_string();
        let t = round(m, setting, time / rounds as u32, seed + n as u64);
        println!("{m} {said}: {t}");
        total += t;
        n += 1;
    }
    println!("{what}, {m}, seed {seed}, {:.1?}: {total}", start.elapsed());
    Some(total)
}

fn over_cpu_devices(m: Mechanism, seed: u64) -> Tally {
    torture("CPU devices", seconds(), seed, m, |n| Some(setting(n))).expect("CPU devices")
}

/// Fails if a store of the host or of a device is lost, appears twice, or lands on a neighbour's element: if bytes are copied
/// while somebody can still write them, a mapping outlives its page, or two parties believe that they own a page.
#[test]
fn nothing_is_lost() {
    under_each("nothing_is_lost", seconds() + Duration::from_secs(60), |m| {
        let seed = seed();
        println!("{m}: STERNA_SEED={seed}");
        let t = over_cpu_devices(m, seed);
        assert_eq!(t.lost, 0, "{t}");
        assert!(t.increments > 0 && t.launches > 0 && t.pages_moved > 0, "somebody did nothing: {t}");
    });
}

/// As `nothing_is_lost`, over Vulkan devices with each page table, or the one that `STERNA_PAGE_TABLE` names, for a third of the time
/// each.
#[test]
fn nothing_is_lost_on_vulkan() {
    under_each("nothing_is_lost_on_vulkan", seconds() + Duration::from_secs(60), |m| {
        // Under the others it is the host's side that differs.
        if !matches!(m, Mechanism::Transparent | Mechanism::Signal) {
            return;
        }
        let seed = seed();
        println!("{m}: STERNA_SEED={seed}");
        let forced = std::env::var("STERNA_PAGE_TABLE").ok();
        for table in vulkan::TABLES.into_iter().filter(|t| forced.as_deref().is_none_or(|f| f == *t)) {
            let run = torture(table, seconds() / 3, seed, m, |n| vulkan_setting(table, n));
            if let Some(t) = run {
                assert_eq!(t.lost, 0, "{table}: {t}");
                assert!(t.increments > 0 && t.launches > 0 && t.pages_moved > 0, "somebody did nothing: {t}");
            }
        }
    });
}

static STAGE: AtomicU32 = AtomicU32::new(0);

/// Waits for the host between two stores, at most three seconds.
fn two_stores(_: Group, _: u32, y: &mut [u32]) {
    y[0] = 1;
    STAGE.store(1, Ordering::SeqCst);
    let start = Instant::now();
    while STAGE.load(Ordering::SeqCst) != 2 && start.elapsed() < Duration::from_secs(3) {
        std::hint::spin_loop();
    }
    y[1] = 2;
}

/// What the host sees of two stores of a kernel when it touches an element beside them between the two.
fn stores_beside_a_host_fault() -> (u32, u32) {
    let rt = plain();
    let mut all = rt.shared_with(1024, |i| i as u32).unwrap();
    let (mut mine, theirs) = all.split_at_mut(8).unwrap();
    STAGE.store(0, Ordering::SeqCst);
    let kernel = Kernel::new("two_stores", 0_u32, (each_mut(8),), two_stores);
    let pending = rt.launch(&kernel, (&mut mine,)).unwrap();
    while STAGE.load(Ordering::SeqCst) != 1 {
        std::thread::yield_now();
    }
    let mut theirs = theirs;
    theirs[0] += 1;
    STAGE.store(2, Ordering::SeqCst);
    pending.wait().unwrap();
    assert_eq!(theirs[0], 9);
    (mine[0], mine[1])
}

/// Fails if a page comes home while a kernel can still write to the device's copy: its later stores are then lost.
#[test]
fn a_host_fault_beside_a_running_kernel_loses_none_of_its_stores() {
    under_each("a_host_fault_beside_a_running_kernel_loses_none_of_its_stores", Duration::from_secs(20), |m| {
        if m != Mechanism::None {
            assert_eq!(stores_beside_a_host_fault(), (1, 2));
        }
    });
}

/// A driver that takes its time, between the moment when a device's entries start to leave and the moment when they are gone.
struct Slow;

impl MirrorOps for Slow {
    fn update(&self, _: Action, _: &Pages) {}

    fn finish(&self, why: Action, _: &Pages) {
        if matches!(why, Action::Migrate { to: Some(_) }) {
            std::thread::sleep(Duration::from_millis(80));
        }
    }
}

/// Fails if a launch is submitted while an entry that names bytes out of date is on its way out: its stores are then lost.
#[test]
fn an_entry_out_of_date_is_not_used_while_it_leaves() {
    under_each("an_entry_out_of_date_is_not_used_while_it_leaves", Duration::from_secs(20), |m| {
        if m == Mechanism::None {
            return; // nobody shares a page there
        }
        let rt = runtime("demand", vec![CpuConfig { memory: 16 << 20, ..CpuConfig::default() }; 2]);
        let devices = rt.devices();
        let mut all = rt.shared::<u64>(200).unwrap();
        let (mut a, mut b) = all.split_at_mut(100).unwrap();
        rt.on(&devices[0]).launch(&tick(10), (&mut a,)).unwrap().wait().unwrap();
        // The page comes home inside the fault: the first device's entry stays behind.
        assert!(a.iter().all(|v| *v == 1));
        let _slow = Mirror::register(rt.space(), Slow);
        let second = rt.on(&devices[1]).launch(&tick(10), (&mut b,)).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        rt.on(&devices[0]).launch(&tick(10), (&mut a,)).unwrap().wait().unwrap();
        second.wait().unwrap();
        assert!(a.iter().all(|v| *v == 2) && b.iter().all(|v| *v == 1), "{:?} {:?}", &a[..], &b[..]);
    });
}

/// What the host reads of pages that only a device has ever written.
fn never_touched_by_the_host() -> u64 {
    let rt = plain();
    let mut y = rt.shared::<u64>(1 << 18).unwrap();
    rt.launch(&tick(4096), (&mut y,)).unwrap();
    y.iter().filter(|v| **v != 1).count() as u64
}

/// Fails if a touch of a page without storage of its own is not noticed: it then reads as zeros.
#[test]
fn pages_that_only_a_device_wrote_are_not_zero() {
    under_each("pages_that_only_a_device_wrote_are_not_zero", Duration::from_secs(20), |_| {
        assert_eq!(never_touched_by_the_host(), 0);
    });
}

#[cfg(feature = "planted")]
mod planted {
    use std::sync::atomic::AtomicBool;

    use sterna::hmm::planted;

    use super::*;

    fn with(defect: &AtomicBool, body: impl FnOnce()) {
        defect.store(true, Ordering::SeqCst);
        body();
        defect.store(false, Ordering::SeqCst);
    }

    /// Fails if `nothing_is_lost` could not see a copy taken too early.
    #[test]
    fn copies_before_the_unmap_are_seen() {
        under_each("planted::copies_before_the_unmap_are_seen", Duration::from_secs(60), |m| {
            if m == Mechanism::None {
                return; // nothing is unmapped there
            }
            with(&planted::COPY_BEFORE_UNMAP, || {
                let (start, mut lost) = (Instant::now(), 0);
                while lost == 0 && start.elapsed() < Duration::from_secs(5) {
                    lost += round(m, setting(0), Duration::from_millis(500), seed()).lost;
                }
                println!("{m}: {lost} lost after {:?}", start.elapsed());
                assert!(lost > 0, "a copy taken before the unmap went unseen");
            });
        });
    }

    /// The same on Vulkan devices with each page table.
    #[test]
    fn copies_before_the_unmap_are_seen_on_vulkan() {
        under_each("planted::copies_before_the_unmap_are_seen_on_vulkan", Duration::from_secs(90), |m| {
            if !matches!(m, Mechanism::Transparent | Mechanism::Signal) {
                return;
            }
            for table in vulkan::TABLES {
                with(&planted::COPY_BEFORE_UNMAP, || {
                    let (start, mut lost) = (Instant::now(), 0);
                    while lost == 0 && start.elapsed() < Duration::from_secs(10) {
                        let Some(setting) = vulkan_setting(table, 0) else { return };
                        lost += round(m, setting, Duration::from_millis(500), seed()).lost;
                    }
                    println!("{m}, {table}: {lost} lost after {:?}", start.elapsed());
                    assert!(lost > 0, "a copy taken before the unmap went unseen on {table}");
                });
            }
        });
    }

    /// Fails if something is lost where mechanism `guard` has to protect pages, as on kernels without guard markers.
    #[test]
    fn without_guard_markers() {
        under_each("planted::without_guard_markers", seconds() + Duration::from_secs(60), |m| {
            if m != Mechanism::Guard {
                return;
            }
            with(&planted::NO_MARKERS, || {
                let t = over_cpu_devices(m, seed());
                assert_eq!(t.lost, 0, "{t}");
                assert_eq!(never_touched_by_the_host(), 0);
                let rt = plain();
                let mut y = rt.shared::<u64>(1 << 18).unwrap();
                rt.launch(&tick(4096), (&mut y,)).unwrap().wait().unwrap();
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                let protected = maps.lines().filter(|l| l.contains("sterna-arena") && l.contains("---s")).count();
                assert!(protected > 0, "nothing is protected:\n{maps}");
            });
        });
    }

    /// Fails if the test of the same name without this defect could not see it.
    #[test]
    fn inline_home_coming_beside_a_kernel_is_seen() {
        under_each("planted::inline_home_coming_beside_a_kernel_is_seen", Duration::from_secs(20), |m| {
            if m != Mechanism::None {
                // More than once: a page that is fetched the long way round, since a lock was held, is fetched right.
                with(&planted::INLINE_WHILE_ACTIVE, || assert!((0..50).any(|_| stores_beside_a_host_fault() != (1, 2))));
            }
        });
    }

    /// Fails if the test of the same name without this defect could not see it.
    #[test]
    fn unwatched_holes_are_seen() {
        under_each("planted::unwatched_holes_are_seen", Duration::from_secs(20), |m| {
            // Guards notice a page without storage as any other; with the defect they are left out.
            if m != Mechanism::None {
                with(&planted::NO_MISSING, || assert_ne!(never_touched_by_the_host(), 0));
            }
        });
    }
}
