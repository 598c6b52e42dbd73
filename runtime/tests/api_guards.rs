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
            let e = launched.wait().unwrap_err();
            assert!(matches!(e, Error::Pinned), "{how}: {e:?}");
            assert!(matches!(y.try_read(), Err(Error::Pinned)), "{how}");
            drop(guard);
            rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
        }
    }
}

#[test]
fn a_guard_beside_a_launch_that_changes_its_neighbour() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        if !config.map_host {
            continue; // refused as `Pinned`, or away from the guard's grains: above
        }
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

/// Fails if a launch waits for a page that a guard keeps, while the guard's holder waits for the launch.
#[test]
fn a_guard_and_a_launch_that_cannot_share_its_pages_do_not_wait_for_each_other() {
    use sterna::kernel::{Group, Kernel, each_mut};
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
            // The guard first: the launch is refused, by the pages that are missing and by those that it has.
            let guard = b.host_mut(..).unwrap();
            assert!(matches!(rt.launch(&add(1), (&mut a,)).unwrap().wait(), Err(Error::Pinned)), "{policy}");
            drop(guard);
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

#[test]
fn guards_overlap_and_let_go_one_by_one() {
    let _limit = limit();
    let rt = runtime(CpuConfig { map_host: false, ..small(8 * MIB) });
    let x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(100_000).unwrap();
    let (a, b, c) = (x.host(..50_000).unwrap(), x.host(40_000..).unwrap(), x.host(..50_000).unwrap());
    drop(a);
    assert!(matches!(rt.launch(&copy_add(1), (&x, &mut y)).unwrap().wait(), Err(Error::Pinned)));
    drop(b);
    assert!(matches!(rt.launch(&copy_add(1), (&x, &mut y)).unwrap().wait(), Err(Error::Pinned)));
    assert_eq!(c[7], 7);
    drop(c);
    rt.launch(&copy_add(1), (&x, &mut y)).unwrap().wait().unwrap();
    assert_eq!(y[99_999], 100_000);
}
