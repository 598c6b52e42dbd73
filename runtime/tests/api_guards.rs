//! Guards that keep pages at home: system calls on their slices, and launches that need those pages.

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use sterna::Error;
use sterna::bytemuck::cast_slice_mut;
use sterna::cpu::CpuConfig;
use sterna::hal::Device as _;
use sterna::kernel::{Each, EachMut, EachOut, Group, Kernel, each, each_mut, each_out};

fn file() -> File {
    // SAFETY: a new descriptor of our own.
    unsafe { File::from_raw_fd(libc::memfd_create(c"guards".as_ptr(), libc::MFD_CLOEXEC)) }
}

fn bytes(x: &[u32]) -> &[u8] {
    sterna::bytemuck::cast_slice(x)
}

#[test]
fn system_calls_work_on_guards_wherever_the_pages_were() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        for n in [10_usize, 5_000, 400_000] {
            let mut f = file();
            // Never touched.
            let x = rt.shared::<u32>(n).unwrap();
            f.write_all(bytes(&x.host(..).unwrap())).unwrap_or_else(|e| panic!("{how}, {n}, untouched: {e}"));
            // Filled by the runtime, never touched by the program.
            let x = rt.shared_with(n, |i| i as u32).unwrap();
            f.write_all(bytes(&x.host(..).unwrap())).unwrap_or_else(|e| panic!("{how}, {n}, filled: {e}"));
            // On the device alone.
            let mut x = rt.shared_with(n, |i| i as u32).unwrap();
            rt.launch(&add(1), (&mut x,)).unwrap();
            f.write_all(bytes(&x.host(..).unwrap())).unwrap_or_else(|e| panic!("{how}, {n}, away: {e}"));
            // On both sides.
            rt.launch(&copy_add(0), (&x, &mut rt.shared::<u32>(n).unwrap())).unwrap();
            f.write_all(bytes(&x.host(1..n).unwrap())).unwrap_or_else(|e| panic!("{how}, {n}, both: {e}"));
            let len = f.stream_position().unwrap();
            assert_eq!(len, 4 * (4 * n as u64 - 1));
            // And back in, into pages that a device has.
            f.seek(SeekFrom::Start(0)).unwrap();
            let mut y = rt.shared::<u32>(4 * n - 1).unwrap();
            rt.launch(&sterna::kernels::fill(9_u32), (&mut y,)).unwrap();
            f.read_exact(cast_slice_mut(&mut y.host_mut(..).unwrap())).unwrap_or_else(|e| panic!("{how}, {n}, read: {e}"));
            let expect = |i: usize| match i / n {
                0 => 0,
                1 => (i - n) as u32,
                2 => (i - 2 * n) as u32 + 1,
                _ => (i - 3 * n + 1) as u32 + 1,
            };
            rt.launch(&add(1), (&mut y,)).unwrap();
            assert!(y.iter().enumerate().all(|(i, v)| *v == expect(i) + 1), "{how}, {n}");
        }
    }
}

#[test]
fn stores_through_a_guard_reach_the_device() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        for round in 0..10_u32 {
            rt.launch(&add(1), (&mut x,)).unwrap();
            let mut g = x.host_mut(20_000..30_000).unwrap();
            assert_eq!((g.len(), g[0]), (10_000, 20_001 + 2 * round), "{how}");
            g.iter_mut().for_each(|v| *v += 1);
        }
        rt.launch(&add(0), (&mut x,)).unwrap();
        let twice = |i: usize| if (20_000..30_000).contains(&i) { 20 } else { 10 };
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + twice(i)), "{how}");
        assert_eq!(x.host(5..5).unwrap().len(), 0);
        assert!(matches!(x.host(5..100_001), Err(Error::Range { start: 5, end: 100_001, len: 100_000 })));
        assert!(matches!(x.host_mut(6..=100_000), Err(Error::Range { .. })));
    }
}

#[test]
fn a_launch_uses_guarded_pages_in_place_where_the_device_can() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        // Where it cannot use them there it gets copies of its own.
        let able = config.map_host;
        let rt = runtime(config);
        let n = 300_000;
        let x = rt.shared_with(n, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(n).unwrap();
        let guard = x.host(100_000..101_000).unwrap();
        let launched = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        let bytes = rt.devices()[0].caps().grain;
        if able {
            launched.wait().unwrap();
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
            let r = x.residency();
            assert!(r.devices[0].in_place > 0 && r.devices[0].in_place * 4096 <= bytes.max(4096) * 2, "{how}: {r}");
            assert_eq!(guard[0], 100_000);
        } else {
            launched.wait().unwrap();
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
            let r = x.residency();
            assert_eq!(r.devices[0].in_place, 0, "{how}: {r}");
            assert_eq!(guard[0], 100_000);
            // Once the guard has gone the pages move again.
            drop(guard);
            rt.launch(&copy_add(2), (&x, &mut y)).unwrap();
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 2), "{how}");
            assert_eq!(x.residency().devices[0].pages, x.residency().pages, "{how}");
        }
    }
}

#[test]
fn a_guard_beside_a_launch_that_changes_its_neighbour() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        // On a page, on a border of pages, and on a border of grains.
        let parts = [(10_500, 30_000), (10 * PAGE_ELEMS, 30_000), (512 * PAGE_ELEMS, 600 * PAGE_ELEMS)];
        for (mid, n) in if faults(&rt) { &parts[..] } else { &parts[2..] } {
            beside(&rt, *mid, *n, how);
        }
    }
}

fn beside(rt: &sterna::Runtime, mid: usize, n: usize, how: &str) {
    let mut x = rt.shared_with(n, |i| i as u32).unwrap();
    let (mut a, mut b) = x.split_at_mut(mid).unwrap();
    for round in 0..5 {
        let mut g = b.host_mut(..).unwrap();
        let p = rt.launch(&add(1), (&mut a,)).unwrap();
        g.iter_mut().for_each(|v| *v += 2);
        p.wait().unwrap_or_else(|e| panic!("{how}, round {round}: {e}"));
        g[0] += 1;
    }
    let more = |i: usize| if i < mid { 5 } else { 10 + if i == mid { 5 } else { 0 } };
    let wrong = x.iter().enumerate().find(|(i, v)| **v != *i as u32 + more(*i));
    assert_eq!(wrong, None, "{how}, {mid} of {n}");
}

/// Fails if a launch waits for a page that a guard keeps, while the guard's holder waits for the launch; or if a guard takes a page from
/// a launch that may fault for it.
#[test]
fn a_guard_and_a_launch_that_cannot_share_its_pages_do_not_wait_for_each_other() {
    static HOLDS: [Hold; 2] = [Hold::new(), Hold::new()];
    fn held(_: Group, n: u32, y: &mut [u32]) {
        HOLDS[n as usize].wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    let _limit = limit();
    for (n, policy) in ["demand", "declared"].into_iter().enumerate() {
        let device = device(CpuConfig { map_host: false, ..small(8 * MIB) });
        let rt = sterna::Runtime::builder().open_device(device).policy(policy).unwrap().build().unwrap();
        if !faults(&rt) {
            return; // two sides cannot share a page there
        }
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let (mut a, mut b) = x.split_at_mut(20_500).unwrap();
        {
            // The guard first: the launch has a copy of what they share.
            let mut guard = b.host_mut(..).unwrap();
            let p = rt.launch(&add(1), (&mut a,)).unwrap();
            guard[0] += 1;
            p.wait().unwrap();
            guard[0] -= 1;
            drop(guard);
            assert!(a.iter().enumerate().all(|(i, a)| *a == i as u32 + 1), "{policy}");
            a.fill_with(|i| i as u32).unwrap();
        }
        // The launch first: the guard comes behind it.
        let p = rt.launch(&Kernel::new("held", n as u32, (each_mut(1 << 20),), held), (&mut a,)).unwrap();
        HOLDS[n].entered();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut guard = b.host_mut(..).unwrap();
                done.store(true, Ordering::SeqCst);
                guard[0] += 5;
                p.wait().unwrap();
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!done.load(Ordering::SeqCst), "{policy}: the guard did not wait");
            HOLDS[n].release();
        });
        assert_eq!((x[0], x[20_499], x[20_500], x[99_999]), (1, 20_500, 20_505, 99_999), "{policy}");
    }
}

/// A device that can neither fault nor use host pages in place.
fn rigid_without_aliases(grain: u64) -> CpuConfig {
    CpuConfig { grain, map_host: false, host_readable: false, workers: 3, ..rigid(24 * MIB) }
}

/// Devices that cannot use host pages in place: with faults and without, of each grain.
fn without_aliases() -> impl Iterator<Item = (String, CpuConfig)> {
    [4 << 10, 64 << 10, 2 << 20].into_iter().flat_map(|grain| {
        let faulting = CpuConfig { grain, map_host: false, workers: 3, ..small(64 * MIB) };
        [(format!("rigid, grain {grain}"), rigid_without_aliases(grain)), (format!("faulting, grain {grain}"), faulting)]
    })
}

/// Fails by its limit if the launch waits for the guard, whose holder waits for the launch; fails if more than the launch's bytes come
/// home, or less, or after the launch counts as ended.
#[test]
fn a_guards_holder_stores_beside_a_launch_that_cannot_use_the_page_at_home() {
    static HOLDS: [Hold; 6] = [const { Hold::new() }; 6];
    fn held(_: Group, n: u32, y: &mut [u32]) {
        HOLDS[n as usize].wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    let _limit = limit();
    for (n, (how, config)) in without_aliases().enumerate() {
        let rt = runtime(config);
        if !faults(&rt) {
            return; // two sides cannot share a grain there
        }
        let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("held", n as u32, (each_mut(1 << 20),), held);
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap(); // on the device alone
        let (mut a, mut rest) = x.split_at_mut(20_500).unwrap();
        let (mut b, mut c) = rest.split_at_mut(200).unwrap();
        // Three sides of one page.
        let mut guard = b.host_mut(..).unwrap();
        guard.iter_mut().for_each(|v| *v += 100);
        let p = rt.launch(&kernel, (&mut a,)).unwrap();
        HOLDS[n].entered();
        guard.iter_mut().for_each(|v| *v += 1000);
        assert_eq!(c[0], 20_701, "{how}");
        c[0] = 5;
        drop(guard);
        // The page stays at home for the launch: another one beside it is no harm.
        let mut guard = b.host_mut(50..).unwrap();
        guard[0] += 7;
        HOLDS[n].release();
        p.wait().unwrap();
        guard[1] += 9;
        assert_eq!((a[0], a[20_499]), (2, 20_501), "{how}");
        drop(guard);
        let q = rt.launch(&add(1), (&mut x,)).unwrap();
        q.wait().unwrap();
        let want = |i: usize| match i {
            i if i < 20_500 => i as u32 + 3,
            20_550 => 20_550 + 1 + 1100 + 7 + 1,
            20_551 => 20_551 + 1 + 1100 + 9 + 1,
            i if i < 20_700 => i as u32 + 1 + 1100 + 1,
            20_700 => 6,
            i => i as u32 + 2,
        };
        let wrong = x.iter().enumerate().find(|(i, v)| **v != want(*i));
        assert_eq!(wrong, None, "{how}");
    }
}

/// Launches that follow each other, read and write the same page, and are cut, beside a guard on it.
#[test]
fn launches_follow_each_other_on_a_page_that_a_guard_keeps() {
    let _limit = limit();
    for (how, config) in without_aliases() {
        let rt = runtime(config);
        if !faults(&rt) {
            return;
        }
        let n = 30_000;
        let mut x = rt.shared_with(n, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(n).unwrap();
        let mid = 10_700;
        {
            let (mut a, mut b) = x.split_at_mut(mid).unwrap();
            let (mut ya, mut yb) = y.split_at_mut(mid).unwrap();
            let (mut gx, mut gy) = (b.host_mut(..).unwrap(), yb.host_mut(..).unwrap());
            for round in 0..10 {
                rt.launch(&add(1), (&mut a,)).unwrap();
                rt.launch(&copy_add(round), (&a, &mut ya)).unwrap();
                gx.iter_mut().take(300).for_each(|v| *v += 1);
                gy.iter_mut().take(300).for_each(|v| *v += 2);
            }
            rt.sync().unwrap();
        }
        let more = |i: usize, near| {
            if i < mid {
                10
            } else if i < mid + 300 {
                near
            } else {
                0
            }
        };
        let wrong = x.iter().enumerate().find(|(i, v)| **v != *i as u32 + more(*i, 10));
        assert_eq!(wrong, None, "{how}");
        let want = |i: usize| if i < mid { i as u32 + 19 } else { more(i, 20) };
        let wrong = y.iter().enumerate().find(|(i, v)| **v != want(*i));
        assert_eq!(wrong, None, "{how}");
    }
}

/// A guard whose holder has forgotten it keeps its pages at home for ever: launches have copies, and their results come home.
#[test]
fn a_forgotten_guard_is_in_nobodys_way() {
    let _limit = limit();
    for (how, config) in without_aliases() {
        let rt = runtime(config);
        let n = 50_000;
        let mut x = rt.shared_with(n, |i| i as u32).unwrap();
        std::mem::forget(x.host_mut(20_000..25_000).unwrap());
        for _ in 0..3 {
            rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        }
        x[22_000] += 1;
        rt.launch(&add(1), (&mut x,)).unwrap();
        let wrong = x.iter().enumerate().find(|(i, v)| **v != *i as u32 + 4 + u32::from(*i == 22_000));
        assert_eq!(wrong, None, "{how}");
    }
}

/// A launch that is cut into parts, on a page of a guard and beyond what fits at once.
#[test]
fn a_cut_launch_beside_a_guard() {
    fn body(_: Group, a: u32, x: &[u32], y: &mut [u32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x + a);
    }
    let _limit = limit();
    let kernel: Kernel<(Each<u32>, EachOut<u32>)> = Kernel::new("copy add", 3, (each(5_000), each_out(5_000)), body);
    let rt = runtime(CpuConfig { memory: 2 * MIB as u64, ..rigid_without_aliases(64 << 10) });
    if !faults(&rt) {
        return;
    }
    let n = 600_000;
    let x = rt.shared_with(n, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(n).unwrap();
    let (mut ya, mut yb) = y.split_at_mut(n - 10_000).unwrap();
    let gx = x.host(5_000..400_000).unwrap();
    let mut gy = yb.host_mut(..).unwrap();
    let xa = x.range(..n - 10_000).unwrap();
    let p = rt.launch(&kernel, (&xa, &mut ya)).unwrap();
    gy.fill(1);
    p.wait().unwrap();
    assert_eq!(gx[7], 5_007);
    drop((gx, gy));
    let wrong = y.iter().enumerate().find(|(i, v)| **v != if *i < n - 10_000 { *i as u32 + 3 } else { 1 });
    assert_eq!(wrong, None);
    assert!(rt.stats().devices[0].parts > 1);
}

#[test]
fn guards_overlap_and_let_go_one_by_one() {
    let _limit = limit();
    let rt = runtime(CpuConfig { map_host: false, ..small(8 * MIB) });
    let x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(100_000).unwrap();
    // How many pages the device has after a launch, of those that begin in grains of 16.
    let mut there = || {
        rt.launch(&copy_add(1), (&x, &mut y)).unwrap().wait().unwrap();
        assert_eq!((y[0], y[99_999]), (1, 100_000));
        x.residency().devices[0].pages
    };
    let all = x.residency().pages;
    let (a, b, c) = (x.host(..50_000).unwrap(), x.host(40_000..).unwrap(), x.host(..50_000).unwrap());
    assert_eq!(there(), 0);
    drop(a);
    assert_eq!(there(), 0);
    drop(b);
    assert_eq!(there(), all - 64); // up to the grain that element 50 000 is in
    assert_eq!(c[7], 7);
    drop(c);
    assert_eq!(there(), all);
}

/// Copies leave a device that faults as much memory as its faults need: where that is all that it has, the launch is refused.
#[test]
fn a_launch_is_refused_whose_copies_would_leave_faults_too_little() {
    let _limit = limit();
    let config = CpuConfig { map_host: false, ..small(8 * MIB) };
    let least = u64::from(device(config.clone()).caps().min_frames) * config.grain;
    for (more, fits) in [(0, false), (1, true)] {
        let rt = runtime(CpuConfig { memory: least + more * config.grain, ..config.clone() });
        let n = 4 * MIB / 4;
        let mut x = rt.shared_with(n, |i| i as u32).unwrap();
        {
            let (mut a, mut b) = x.split_at_mut(if faults(&rt) { n / 2 + 100 } else { n / 2 }).unwrap();
            let mut guard = b.host_mut(..).unwrap();
            let done = rt.launch(&add(1), (&mut a,)).unwrap().wait();
            guard[0] += 1;
            drop(guard);
            // Sides that share no grain have nothing to do with each other.
            if faults(&rt) && !fits {
                assert!(matches!(done, Err(Error::Pinned)), "{done:?}");
                a.fill_with(|i| i as u32 + 1).unwrap();
            } else {
                done.unwrap_or_else(|e| panic!("{more} grains more: {e}"));
            }
        }
        rt.launch(&add(1), (&mut x,)).unwrap();
        let mid = if faults(&rt) { n / 2 + 100 } else { n / 2 };
        let wrong = x.iter().enumerate().find(|(i, v)| **v != *i as u32 + 1 + u32::from(*i <= mid));
        assert_eq!(wrong, None, "{more} grains more");
    }
}
