//! Nobody waits for launches that have nothing to do with his pages: devices that cannot fault, whose launches keep what they were
//! given until they have ended.
//!
//! Each test holds a kernel back until it has seen that the other side goes on: who waits fails by the limit.

mod common;

use std::thread::{scope, sleep};
use std::time::Duration;

use common::*;
use sterna::Advice;
use sterna::cpu::CpuConfig;
use sterna::hal::Device as _;
use sterna::kernel::{Each, EachMut, EachOut, Group, Kernel, Whole, each, each_mut, each_out, whole};
use sterna::kernels::fill;

/// A kernel each that is held back: tests have six numbers each, in their order here.
const HOLDS: usize = 30;
static HOLD: [Hold; HOLDS] = [const { Hold::new() }; HOLDS];

/// `y[i] += 1`, once it is let go.
fn adds(n: usize) -> (&'static Hold, Kernel<(EachMut<u32>,)>) {
    fn body(_: Group, n: u32, y: &mut [u32]) {
        HOLD[n as usize].wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    (&HOLD[n], Kernel::new("adds", n as u32, (each_mut(1 << 30),), body))
}

/// `y[0] = Σ x`, once it is let go.
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
fn sums(n: usize) -> (&'static Hold, Kernel<(Whole<u32>, EachOut<u64>)>) {
    fn body(_: Group, n: u32, x: &[u32], y: &mut [u64]) {
        HOLD[n as usize].wait();
        y[0] = x.iter().map(|x| u64::from(*x)).sum();
    }
    (&HOLD[n], Kernel::new("sums", n as u32, (whole(), each_out(1)), body))
}

/// Devices that cannot fault, by their grains, with frames that the host can read and without.
fn rigids() -> Vec<(String, CpuConfig)> {
    let mut all = Vec::new();
    for grain in [4 << 10, 64 << 10, 2 << 20] {
        for readable in [true, false] {
            let config = CpuConfig { grain, host_readable: readable, map_host: readable, workers: 3, ..rigid(64 * MIB) };
            all.push((format!("grain {grain}, readable {readable}"), config));
        }
    }
    all
}

/// Where two sides of an allocation of 4 MiB may meet: on a page, on a granule, on a block. Without faults on grains only.
fn borders(rt: &sterna::Runtime, grain: u64) -> Vec<usize> {
    let all = [101 * PAGE_ELEMS, 160 * PAGE_ELEMS, 512 * PAGE_ELEMS];
    all.into_iter().filter(|mid| faults(rt) || (4 * *mid as u64).is_multiple_of(grain)).collect()
}

const N: usize = 4 * MIB / 4;

/// Fails by its limit if a load, a store, a guard or a move home waits for a launch on other pages.
#[test]
fn the_host_uses_other_pages_of_an_allocation_beside_a_launch() {
    let _limit = limit();
    for (i, (how, config)) in rigids().into_iter().enumerate() {
        let rt = runtime(config.clone());
        let (hold, kernel) = adds(i);
        for (j, mid) in borders(&rt, config.grain).into_iter().enumerate() {
            let mut x = rt.shared_with(N, |i| i as u32).unwrap();
            rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap(); // all of it is the device's alone
            let (mut a, mut b) = x.split_at_mut(mid).unwrap();
            let p = if j == 0 { rt.launch(&kernel, (&mut a,)) } else { rt.launch(&add(1), (&mut a,)) }.unwrap();
            if j == 0 {
                hold.entered();
            }
            assert_eq!(b[7], mid as u32 + 8, "{how}, {mid}");
            b[70_000] = 1;
            assert_eq!(b.host(300_000..310_000).unwrap()[5], mid as u32 + 300_006, "{how}, {mid}");
            b.host_mut(400_000..400_010).unwrap()[3] = 2;
            b.prefetch_to_host();
            assert!(b.iter().enumerate().skip(500_000).all(|(i, v)| *v == (mid + i) as u32 + 1), "{how}, {mid}");
            if j == 0 {
                assert!(!p.is_done(), "{how}: it was held");
                hold.release();
            }
            p.wait().unwrap();
            // And the device's next launch finds what the host has done.
            rt.launch(&add(1), (&mut x,)).unwrap();
            let want = |i: usize| match i {
                i if i < mid => i as u32 + 3,
                i if i == mid + 70_000 => 2,
                i if i == mid + 400_003 => 3,
                i => i as u32 + 2,
            };
            let wrong = x.iter().enumerate().find(|(i, v)| **v != want(*i));
            assert_eq!(wrong, None, "{how}, {mid}");
        }
    }
}

/// Fails by its limit if the host waits for a launch that only reads what it reads; fails if the launch sees what is stored beside its
/// bytes later as its own, or its frame is filled again while it reads.
#[test]
fn the_host_reads_what_a_launch_reads_and_stores_beside_it() {
    let _limit = limit();
    for (i, (how, config)) in rigids().into_iter().enumerate() {
        let rt = runtime(config.clone());
        let (hold, kernel) = sums(6 + i);
        // On a page, if that can be shared.
        let mid = if faults(&rt) { 100 * PAGE_ELEMS + 500 } else { 512 * PAGE_ELEMS };
        let mut x = rt.shared_with(N, |i| i as u32 % 100).unwrap();
        let mut y = rt.shared::<u64>(1).unwrap();
        let sum = |n: usize, more: u64| (0..n as u64).map(|i| i % 100 + more).sum::<u64>();
        let (a, mut b) = x.split_at_mut(mid).unwrap();
        let p = rt.launch(&kernel, (&a, &mut y)).unwrap();
        hold.entered();
        assert_eq!((a[3], a[mid - 1]), (3, (mid as u32 - 1) % 100), "{how}");
        b[0] = 1000;
        b[1] += 1;
        assert_eq!(a[mid - 2], (mid as u32 - 2) % 100, "{how}");
        assert!(!p.is_done(), "{how}: it was held");
        // The next one needs the page with what was stored: it comes, and its neighbour's bytes are right for both.
        let q = rt.launch(&add(1), (&mut b,)).unwrap();
        sleep(Duration::from_millis(20));
        hold.release();
        p.wait().unwrap();
        q.wait().unwrap();
        assert_eq!(y[0], sum(mid, 0), "{how}");
        assert_eq!((b[0], b[1], b[2]), (1001, (mid as u32 + 1) % 100 + 2, (mid as u32 + 2) % 100 + 1), "{how}");
        drop((a, b));
        rt.launch(&sum_of(), (&x, &mut y)).unwrap();
        let extra = 1001 - u64::from(mid as u32 % 100) + 1 + (N - mid - 1) as u64;
        assert_eq!(y[0], sum(N, 0) + extra, "{how}");
    }
}

fn sum_of() -> Kernel<(Whole<u32>, EachOut<u64>)> {
    fn body(_: Group, (): (), x: &[u32], y: &mut [u64]) {
        y[0] = x.iter().map(|x| u64::from(*x)).sum();
    }
    Kernel::new("sum_of", (), (whole(), each_out(1)), body)
}

/// Fails by its limit if a device's launch waits for another's on other pages; fails if what either of them wrote is lost.
#[test]
fn another_device_takes_other_pages_beside_a_launch() {
    let _limit = limit();
    for (i, (how, config)) in rigids().into_iter().enumerate() {
        let rt = runtime_of(&[config.clone(), config.clone()]);
        let [one, two] = [0, 1].map(|d| rt.devices()[d].clone());
        let mid = borders(&rt, config.grain)[0];
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        rt.on(&one).launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        let (mut a, mut b) = x.split_at_mut(mid).unwrap();
        let (hold, kernel) = adds(12 + i);
        let p = rt.on(&one).launch(&kernel, (&mut a,)).unwrap();
        hold.entered();
        rt.on(&two).launch(&add(5), (&mut b,)).unwrap().wait().unwrap();
        assert_eq!(b[9], mid as u32 + 15, "{how}");
        assert!(!p.is_done(), "{how}: it was held");
        hold.release();
        p.wait().unwrap();
        rt.on(&one).launch(&add(1), (&mut x,)).unwrap();
        let wrong = x.iter().enumerate().find(|(i, v)| **v != *i as u32 + if *i < mid { 3 } else { 7 });
        assert_eq!(wrong, None, "{how}");
    }
}

/// Fails if a frame that a launch reads is given to somebody else because its page has come home meanwhile.
#[test]
fn a_launch_keeps_its_frames_although_its_pages_have_come_home() {
    let _limit = limit();
    static OWN: [Hold; 6] = [const { Hold::new() }; 6];
    fn body(_: Group, n: u32, x: &[u32], y: &mut [u32]) {
        OWN[n as usize].wait();
        y.copy_from_slice(x);
    }
    for (i, (how, config)) in rigids().into_iter().enumerate() {
        // Room for three operands of 2 MiB.
        let device = device(CpuConfig { memory: 6 * MIB as u64, ..config });
        let rt = over(&device);
        let n = MIB / 4;
        let kernel: Kernel<(Each<u32>, EachOut<u32>)> =
            Kernel::new("held copy", i as u32, (each(1 << 30), each_out(1 << 30)), body);
        let x = rt.shared_with(n, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(n).unwrap();
        let p = rt.launch(&kernel, (&x, &mut y)).unwrap();
        OWN[i].entered();
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32), "{how}"); // home, with the frames still there
        scope(|s| {
            let rt = &rt;
            // What others want comes beside them, or behind.
            let t = s.spawn(move || {
                for _ in 0..3 {
                    let mut z = rt.shared::<u32>(n).unwrap();
                    rt.launch(&fill(77_u32), (&mut z,)).unwrap().wait().unwrap();
                    assert_eq!(z[n - 1], 77);
                }
            });
            sleep(Duration::from_millis(50));
            OWN[i].release();
            t.join().unwrap();
        });
        p.wait().unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32), "{how}");
        drop((x, y, rt));
        eventually("everything is given back", || device.memory().in_use == 0);
    }
}

/// Fails by its limit if dropping contents waits for a launch on other pages of the grain, and if those take its pages away.
#[test]
fn contents_are_dropped_beside_a_launch() {
    let _limit = limit();
    for (i, (how, config)) in rigids().into_iter().enumerate() {
        let rt = runtime(config.clone());
        let mid = borders(&rt, config.grain)[0];
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        let mut b = x.split_off(mid).unwrap();
        let (hold, kernel) = adds(18 + i);
        let p = rt.launch(&kernel, (&mut x,)).unwrap();
        hold.entered();
        b.discard(..100_000).unwrap();
        assert_eq!((b[5], b[99_999], b[100_000]), (0, 0, mid as u32 + 100_001), "{how}");
        assert!(!p.is_done(), "{how}: it was held");
        hold.release();
        p.wait().unwrap();
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 2), "{how}");
        rt.launch(&add(1), (&mut b,)).unwrap();
        assert_eq!((b[5], b[99_999], b[100_000]), (1, 1, mid as u32 + 100_002), "{how}");
    }
}

/// Fails by its limit if a fault waits for the end of a launch beside a guard, which has copies of its own to bring home, where the
/// thread that faults is the only one that could have looked at the launch.
#[test]
fn the_host_touches_a_page_of_a_launch_beside_a_guard_that_nobody_waits_for() {
    let _limit = limit();
    let grains = [4 << 10, 64 << 10, 2 << 20];
    for (n, (grain, stores)) in grains.into_iter().flat_map(|g| [(g, true), (g, false)]).enumerate() {
        let how = format!("grain {grain}, stores {stores}");
        let rt = runtime(CpuConfig { grain, map_host: false, host_readable: false, workers: 3, ..rigid(64 * MIB) });
        if !faults(&rt) {
            return; // two sides cannot share a grain there
        }
        let (hold, kernel) = adds(24 + n);
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let (mut c, mut rest) = x.split_at_mut(10_500).unwrap();
        let (mut a, mut b) = rest.split_at_mut(10_000).unwrap();
        let guard = b.host_mut(..10).unwrap();
        let p = rt.launch(&kernel, (&mut a,)).unwrap();
        hold.entered();
        scope(|s| {
            s.spawn(|| {
                sleep(Duration::from_millis(20)); // the fault is parked before the launch ends
                hold.release();
            });
            if stores {
                c[10_499] = 1;
            }
            assert_eq!(c[10_499], if stores { 1 } else { 10_499 }, "{how}");
        });
        // And launches are let go on.
        let q = rt.launch(&add(1), (&mut c,)).unwrap();
        q.wait().unwrap();
        drop((guard, p));
        let want = |i: usize| if i == 10_499 && stores { 2 } else { i as u32 + u32::from(i < 20_500) };
        let wrong = x.iter().enumerate().find(|(i, v)| **v != want(*i));
        assert_eq!(wrong, None, "{how}");
    }
}

/// Fails by its limit if the thread that serves devices' faults waits for a launch that reads a page where it is, on a device that
/// cannot fault, while another device wants other bytes of the page; fails if the launch loses the page.
#[test]
fn faults_of_devices_are_served_beside_a_launch_that_reads_in_place() {
    let _limit = limit();
    static OWN: Hold = Hold::new();
    fn body(_: Group, (): (), x: &[u32], y: &mut [u64]) {
        OWN.wait();
        y[0] = x.iter().map(|x| u64::from(*x)).sum();
    }
    let reads: Kernel<(Whole<u32>, EachOut<u64>)> = Kernel::new("reads in place", (), (whole(), each_out(1)), body);
    let configs = [rigid(16 * MIB), small(16 * MIB), small(16 * MIB)];
    let open = |b: sterna::Builder, (i, c): (usize, &CpuConfig)| {
        b.open_device(std::sync::Arc::new(sterna::cpu::CpuDevice::new(i as u32, c.clone()).unwrap()))
    };
    let rt = configs.iter().enumerate().fold(sterna::Runtime::builder(), open);
    let rt = rt.policy("demand").unwrap().build().unwrap();
    if !faults(&rt) {
        return; // nobody shares a page there
    }
    let [here, one, two] = [0, 1, 2].map(|d| rt.devices()[d].clone());
    let mut x = rt.shared_with(1000, |i| i as u32).unwrap();
    let mut z = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u64>(1).unwrap();
    x.advise(Advice::AccessedBy(here.clone()));
    let (a, mut b) = x.split_at_mut(500).unwrap();
    let p = rt.on(&here).launch(&reads, (&a, &mut y)).unwrap();
    OWN.entered();
    let q = rt.on(&one).launch(&add(1), (&mut b,)).unwrap();
    sleep(Duration::from_millis(50));
    assert!(!q.is_done(), "its page was taken from a launch that reads it");
    rt.on(&two).launch(&add(1), (&mut z,)).unwrap().wait().unwrap();
    assert!(!p.is_done(), "it was held");
    OWN.release();
    p.wait().unwrap();
    q.wait().unwrap();
    assert_eq!((y[0], x[499], x[500], z[7]), (499 * 500 / 2, 499, 501, 8));
    // And launches of the first device go on afterwards.
    rt.on(&here).launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert_eq!((x[499], x[500]), (500, 502));
}
