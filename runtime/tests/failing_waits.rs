//! Waits that fail: a launch ends by its point or with its device, and by nothing else.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::*;
use sterna::Runtime;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Injected;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};

static RUNS: AtomicBool = AtomicBool::new(false);
static BEGUN: AtomicU32 = AtomicU32::new(0);

/// Runs for 60 ms and stores all the time.
fn busy() -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, (): (), y: &mut [u32]) {
        RUNS.store(true, SeqCst);
        BEGUN.fetch_add(1, SeqCst);
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            y.iter_mut().for_each(|y| *y = y.wrapping_add(1));
            std::hint::black_box(&mut *y);
        }
        y.fill(9);
        RUNS.store(false, SeqCst);
    }
    Kernel::new("busy", (), (each_mut(1 << 20),), body)
}

fn injected(config: CpuConfig) -> (Arc<Injected>, Runtime) {
    let device = Arc::new(Injected::new(device(config), CpuDevice::lose));
    let rt = over(&device);
    (device, rt)
}

#[test]
fn a_wait_that_fails_ends_no_launch() {
    let (_limit, _alone) = (limit(), alone());
    for (how, config) in kinds(8 * MIB) {
        let (device, rt) = injected(config);
        let mut y = rt.shared::<u32>(1000).unwrap();
        type Look = fn(&Runtime, &mut sterna::Shared<u32>, sterna::Pending);
        let looks: [(&str, Look); 6] = [
            ("wait", |_, _, p| p.wait().unwrap()),
            ("wait_timeout", |_, _, p| {
                assert!(!p.wait_timeout(Duration::from_millis(5)).unwrap() || !RUNS.load(SeqCst));
                assert!(p.wait_timeout(Duration::from_secs(30)).unwrap());
            }),
            ("sync", |rt, _, _| rt.sync().unwrap()),
            ("deref", |_, y, _| assert_eq!(y[0], 9)),
            ("fill_with", |_, y, _| y.fill_with(|_| 9).unwrap()),
            ("host_mut", |_, y, _| drop(y.host_mut(..).unwrap())),
        ];
        for (what, look) in looks {
            y.fill_with(|_| 0).unwrap();
            let begun = BEGUN.load(SeqCst);
            let p = rt.launch(&busy(), (&mut y,)).unwrap();
            eventually("it runs", || BEGUN.load(SeqCst) > begun);
            device.fail_waits(40);
            look(&rt, &mut y, p);
            assert!(!RUNS.load(SeqCst), "{how}, {what}: the kernel still runs");
            device.fail_waits(0);
            assert!(y.iter().all(|v| *v == 9), "{how}, {what}");
        }
        // Nothing was lost over it.
        rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
        assert!(y.iter().all(|v| *v == 10), "{how}");
    }
}

#[test]
fn copies_and_edits_whose_waits_fail_are_waited_for_all_the_same() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let (device, rt) = injected(config);
        device.delay_copies(Duration::from_millis(2));
        let mut x = rt.shared_with(700_000, |i| i as u32).unwrap();
        for round in 0..4 {
            device.fail_waits(25);
            rt.launch(&add(1), (&mut x,)).unwrap();
            x.prefetch_to_host();
            assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + round + 1), "{how}");
        }
        device.fail_waits(0);
        rt.sync().unwrap();
    }
}

/// Dropping everything beside it waits, too.
#[test]
fn a_runtime_ends_behind_its_launches_whatever_waits_say() {
    let (_limit, _alone) = (limit(), alone());
    let (device, rt) = injected(small(8 * MIB));
    let mut y = rt.shared::<u32>(1000).unwrap();
    let begun = BEGUN.load(SeqCst);
    let p = rt.launch(&busy(), (&mut y,)).unwrap();
    eventually("it runs", || BEGUN.load(SeqCst) > begun);
    device.fail_waits(40);
    drop((y, rt));
    assert!(!RUNS.load(SeqCst), "the kernel still runs");
    p.wait().unwrap();
}

#[test]
fn a_loss_still_ends_one() {
    let _limit = limit();
    static HOLD: Hold = Hold::new();
    fn body(_: Group, (): (), _: &mut [u32]) {
        HOLD.wait();
    }
    let (device, rt) = injected(small(8 * MIB));
    let mut y = rt.shared::<u32>(1000).unwrap();
    let held: Kernel<(EachMut<u32>,)> = Kernel::new("held", (), (each_mut(4096),), body);
    let p = rt.launch(&held, (&mut y,)).unwrap();
    HOLD.entered();
    device.fail_waits(10);
    device.lose();
    // A group that runs is run to its end before the loss comes.
    HOLD.release();
    let ended = p.wait();
    assert!(matches!(&ended, Err(e) if e.to_string().contains("taken away")), "{ended:?}");
}
