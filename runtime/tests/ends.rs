//! What ends, ends, on whichever thread its last handle is dropped, and with no thread to be had: runtimes, devices, parts of allocations;
//! and what was asked for where there was no thread is carried out. Fails by a hang, or by a device that stays in use.

mod common;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use common::*;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hmm::{Action, Attached, Mirror, MirrorOps, Pages, Segment, Space};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::policy::{FaultRule, LaunchEvent, Place, Policy};
use sterna::{Error, Runtime, Shared};

/// What a kernel, a policy, a callback or a waker drops last.
type Last = Box<dyn Send>;

static LAST: Mutex<Option<Last>> = Mutex::new(None);
static GONE: AtomicBool = AtomicBool::new(false);
static ONE: Mutex<()> = Mutex::new(());

fn hand_over(last: impl Send + 'static) {
    GONE.store(false, SeqCst);
    *LAST.lock().unwrap() = Some(Box::new(last));
}

/// Waits until something was handed over, and drops it.
fn drop_last() {
    eventually("something to drop", || LAST.lock().unwrap().is_some());
    let last = LAST.lock().unwrap().take();
    drop(last);
    GONE.store(true, SeqCst);
}

fn gone() {
    eventually("it was dropped", || GONE.load(SeqCst));
}

/// One test at a time: they share what is handed over.
fn alone_here() -> impl Drop {
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Drops what is handed over, and runs on for so many milliseconds.
fn drops(then: u64) -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, then: u64, y: &mut [u32]) {
        drop_last();
        std::thread::sleep(Duration::from_millis(then));
        y.iter_mut().for_each(|y| *y += 1);
    }
    Kernel::new("drops", then, (each_mut(1 << 20),), body)
}

/// Whether the system has threads for this process. Not for a privileged user, so the process gives that up.
fn threads(there: bool) {
    // SAFETY: changes this process's user and limit only.
    unsafe {
        if libc::geteuid() == 0 {
            libc::setgroups(0, std::ptr::null());
            libc::setgid(65534);
            libc::setuid(65534);
        }
        let mut l = std::mem::zeroed::<libc::rlimit>();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NPROC, &mut l), 0);
        l.rlim_cur = if there { l.rlim_max } else { 0 };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &l), 0);
    }
    let spawned = std::thread::Builder::new().spawn(|| ());
    assert_eq!(spawned.map(|t| t.join().unwrap()).is_ok(), there);
}

/// The device can be had, and works.
#[track_caller]
fn can_be_had(cpu: &Arc<CpuDevice>, how: &str) {
    let opened = Runtime::builder().open_device(cpu.clone() as _).build();
    let rt = opened.unwrap_or_else(|e| panic!("{how}: {e}"));
    let mut y = rt.shared::<u32>(1000).unwrap();
    rt.launch(&add(2), (&mut y,)).unwrap();
    assert_eq!(y[999], 2, "{how}");
}

#[test]
fn a_device_that_a_kernel_gave_up_can_be_had_at_once() {
    let (_limit, _alone) = (limit(), alone_here());
    for (how, config) in [("faulting", small(8 * MIB)), ("rigid", rigid(8 * MIB))] {
        let cpu = device(config.clone());
        let rt = over(&cpu);
        let mut y = rt.shared::<u32>(1000).unwrap();
        rt.launch(&drops(100), (&mut y,)).unwrap();
        hand_over((rt, y));
        gone();
        can_be_had(&cpu, how);
        // A driver's attachment, whose pages take a while to come home.
        let cpu = device(config.clone());
        let rt = runtime(config);
        let attached = Attached::new(rt.space(), cpu.clone()).unwrap();
        let seg = Segment::new(rt.space(), 1 << 20).unwrap();
        attached.migrate(&seg.pages()).unwrap();
        cpu.inject().delay_copies(Duration::from_millis(30));
        let mut y = rt.shared::<u32>(1000).unwrap();
        let p = rt.launch(&drops(0), (&mut y,)).unwrap();
        hand_over(attached);
        gone();
        can_be_had(&cpu, how);
        p.wait().unwrap();
    }
}

/// Without threads a kernel's drops are left to whoever comes next.
#[test]
fn what_a_kernel_dropped_without_threads_is_ended_by_who_waits_for_it() {
    let name = "what_a_kernel_dropped_without_threads_is_ended_by_who_waits_for_it";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let cpu = device(small(16 * MIB));
    let rt = over(&cpu);
    let mut x = rt.shared_with(1 << 20, |i| i as u32).unwrap();
    let high = x.split_off(1 << 19).unwrap();
    let mut y = rt.shared::<u32>(1000).unwrap();
    rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
    threads(false);
    let before = storage();
    hand_over(high);
    rt.launch(&drops(0), (&mut y,)).unwrap().wait().unwrap();
    gone();
    rt.sync().unwrap();
    assert!(storage() + (1 << 20) < before, "{} of {before} bytes are left", storage());
    // The same, with a runtime that ends instead.
    let high = x.split_off(1 << 18).unwrap();
    hand_over(high);
    rt.launch(&drops(0), (&mut y,)).unwrap().wait().unwrap();
    gone();
    drop((x, y, rt));
    can_be_had(&cpu, "after a part");
    // And the runtime itself.
    let rt = over(&cpu);
    let mut y = rt.shared::<u32>(1000).unwrap();
    rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
    rt.launch(&drops(20), (&mut y,)).unwrap();
    hand_over((rt, y));
    gone();
    can_be_had(&cpu, "after a runtime");
}

/// Who has no thread carries out its own jobs, and those before; what it sets aside of another's it gives back.
#[test]
fn launches_from_several_threads_end_where_no_other_thread_is_to_be_had() {
    let name = "launches_from_several_threads_end_where_no_other_thread_is_to_be_had";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    fn body(g: Group, (): (), y: &mut [u32]) {
        if g.index() == 0 {
            std::thread::sleep(Duration::from_micros(150));
        }
        y.iter_mut().for_each(|y| *y += 1);
    }
    let slow: Kernel<(EachMut<u32>,)> = Kernel::new("slow", (), (each_mut(1024),), body);
    let (rt, begin) = (runtime_of(&[small(8 * MIB), small(8 * MIB)]), AtomicBool::new(false));
    let devices = rt.devices();
    std::thread::scope(|s| {
        for t in 0..3 {
            let (rt, devices, slow, begin) = (&rt, &devices, &slow, &begin);
            s.spawn(move || {
                let mut y = rt.shared::<u32>(3000).unwrap();
                eventually("all are there", || begin.load(SeqCst));
                for round in 0..400 {
                    for d in 0..2 {
                        rt.on(&devices[(d + t) % 2]).launch(slow, (&mut y,)).unwrap();
                    }
                    assert_eq!((y[0], y[2999]), (2 * round + 2, 2 * round + 2));
                }
            });
        }
        threads(false);
        begin.store(true, SeqCst);
    });
}

/// A policy that does this when it is asked about a launch.
struct Does<F>(F);

impl<F: FnMut() + Send> Policy for Does<F> {
    fn name(&self) -> &'static str {
        "does"
    }

    fn launch(&mut self, _: &LaunchEvent<'_>, _: &mut Vec<Place>) {
        self.0();
    }
}

#[test]
fn a_policy_may_drop_the_last_runtime() {
    let (_limit, _alone) = (limit(), alone_here());
    let cpus = [device(small(8 * MIB)), device(small(8 * MIB))];
    let mut first = true;
    let policy = Does(move || {
        if std::mem::take(&mut first) {
            // The other device's launch stands before this policy by then.
            std::thread::sleep(Duration::from_millis(50));
            drop_last();
        }
    });
    let open = |b: sterna::Builder, cpu: &Arc<CpuDevice>| b.open_device(cpu.clone() as _);
    let rt = cpus.iter().fold(Runtime::builder(), open).custom_policy(policy).build().unwrap();
    // Both are there before the first launch: an allocation asks the policy, and this one waits for what is handed over.
    let mut both = [0, 1].map(|_| rt.shared::<u32>(1000).unwrap());
    let [a, b] = &mut both;
    let p = rt.on(&rt.devices()[0]).launch(&add(1), (a,)).unwrap();
    let q = rt.on(&rt.devices()[1]).launch(&add(1), (b,)).unwrap();
    hand_over((both, rt));
    p.wait().unwrap();
    q.wait().unwrap();
    drop((p, q));
    cpus.iter().for_each(|cpu| can_be_had(cpu, "after a policy"));
}

#[test]
fn a_policy_that_uses_its_own_runtime_is_refused_or_answered() {
    let (_limit, _alone) = (limit(), alone_here());
    let mine: Arc<Mutex<Option<Runtime>>> = Arc::default();
    let (theirs, asked) = (Arc::clone(&mine), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&asked);
    let policy = Does(move || {
        let Some(rt) = theirs.lock().unwrap().clone() else { return };
        let mut x = rt.shared::<u32>(100_000).unwrap();
        x[5] = 5;
        assert_eq!((x[5], x[99_999]), (5, 0));
        assert!(matches!(rt.sync(), Err(Error::InsideKernel)));
        assert!(matches!(rt.launch(&add(1), (&mut x,)), Err(Error::InsideKernel)));
        let _ = (rt.stats(), x.residency());
        x.prefetch_to(&rt.devices()[0]);
        count.fetch_add(1, SeqCst);
    });
    let rt = Runtime::builder().open_device(device(small(8 * MIB))).custom_policy(policy).build().unwrap();
    *mine.lock().unwrap() = Some(rt.clone());
    for n in 1..4 {
        let mut y = rt.shared::<u32>(100_000).unwrap();
        rt.launch(&add(n), (&mut y,)).unwrap().wait().unwrap();
        assert_eq!((y[99_999], asked.load(SeqCst)), (n, n));
    }
    mine.lock().unwrap().take();
}

/// A policy that allocates when it is asked about an allocation.
#[test]
fn a_policy_that_allocates_is_not_asked_about_that() {
    let _limit = limit();
    struct Grows(Arc<Mutex<Option<Runtime>>>);
    impl Policy for Grows {
        fn name(&self) -> &'static str {
            "grows"
        }
        fn launch(&mut self, _: &LaunchEvent<'_>, _: &mut Vec<Place>) {}
        fn allocated(&mut self, bytes: u64) -> FaultRule {
            let rt = self.0.lock().unwrap().clone();
            if let Some(rt) = rt {
                assert_eq!(rt.shared::<u8>(bytes as usize).unwrap()[0], 0);
            }
            FaultRule::default()
        }
    }
    let mine: Arc<Mutex<Option<Runtime>>> = Arc::default();
    let rt = Runtime::builder().open_device(device(small(8 * MIB))).custom_policy(Grows(Arc::clone(&mine))).build().unwrap();
    *mine.lock().unwrap() = Some(rt.clone());
    assert_eq!(rt.shared::<u32>(1000).unwrap()[999], 0);
    mine.lock().unwrap().take();
}

/// Called when pages move to a device.
struct Callback(Arc<AtomicU32>);

impl MirrorOps for Callback {
    fn update(&self, action: Action, _: &Pages) {
        if matches!(action, Action::Migrate { to: Some(_) }) && self.0.fetch_add(1, SeqCst) == 0 {
            drop_last();
        }
    }
}

/// On the thread that moves the very pages.
#[test]
fn a_callback_may_drop_what_is_being_moved_and_the_last_runtime() {
    let (_limit, _alone) = (limit(), alone_here());
    for of_runtime in [false, true] {
        let cpu = device(small(64 * MIB));
        let rt = over(&cpu);
        let calls = Arc::new(AtomicU32::new(0));
        let mut x = rt.shared_with(4 << 20, |i| i as u32).unwrap();
        let high = x.split_off(2 << 20).unwrap();
        let mirror = Mirror::register(rt.space(), Callback(Arc::clone(&calls)));
        high.prefetch_to(&rt.devices()[0]);
        if of_runtime {
            hand_over((high, x, rt));
        } else {
            hand_over(high);
            rt.sync().unwrap();
            assert!(x.iter().enumerate().all(|(i, x)| *x == i as u32));
            drop((x, rt));
        }
        gone();
        mirror.unregister();
        can_be_had(&cpu, "after a callback");
    }
}

#[test]
fn a_waker_may_drop_the_last_runtime() {
    let (_limit, _alone) = (limit(), alone_here());
    struct Drops;
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            drop_last();
        }
    }
    static HOLD: Hold = Hold::new();
    fn body(_: Group, (): (), _: &mut [u32]) {
        HOLD.wait();
    }
    let cpu = device(small(8 * MIB));
    let rt = over(&cpu);
    let mut y = rt.shared::<u32>(1000).unwrap();
    let held: Kernel<(EachMut<u32>,)> = Kernel::new("held", (), (each_mut(4096),), body);
    {
        let mut p = pin!(rt.launch(&held, (&mut y,)).unwrap());
        assert!(p.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Drops)))).is_pending());
        hand_over((rt, y));
        HOLD.release();
        gone();
    }
    can_be_had(&cpu, "after a waker");
}

/// Launches without a gap on what shares a grain with it.
#[test]
fn a_dropped_part_goes_beside_launches_without_end() {
    let _limit = limit();
    fn body(_: Group, (): (), y: &mut [u32]) {
        std::thread::sleep(Duration::from_millis(4));
        y.iter_mut().for_each(|y| *y += 1);
    }
    let slow: Kernel<(EachMut<u32>,)> = Kernel::new("slow", (), (each_mut(1 << 20),), body);
    for (how, config) in [("faulting", small(16 * MIB)), ("rigid", rigid(16 * MIB))] {
        let cpu = device(config);
        let rt = over(&cpu);
        if !faults(&rt) {
            return; // there a part begins with a grain
        }
        let mut low = rt.shared::<u32>(2 << 20).unwrap();
        rt.launch(&add(1), (&mut low,)).unwrap().wait().unwrap();
        let high = low.split_off(4096).unwrap();
        let in_use = || rt.stats().devices[0].memory.in_use;
        let before = in_use();
        // Enough that one runs whenever somebody looks, on a busy machine, too.
        let mut ahead: VecDeque<_> = (0..8).map(|_| rt.launch(&slow, (&mut low,)).unwrap()).collect();
        drop(high);
        let mut rounds = 8;
        while in_use() + 4 * MIB as u64 > before {
            assert!(rounds < 400, "{how}: {} of {before} bytes are in use after {rounds} launches", in_use());
            ahead.push_back(rt.launch(&slow, (&mut low,)).unwrap());
            ahead.pop_front().unwrap().wait().unwrap();
            rounds += 1;
        }
        println!("{how}: gone after {rounds} launches");
        assert_eq!(low[4095], rounds + 1, "{how}");
    }
}

/// Its end takes a while, since a driver is told first.
#[test]
fn memory_that_a_kernel_gave_back_is_waited_for() {
    let (_limit, _alone) = (limit(), alone_here());
    struct Slow;
    impl MirrorOps for Slow {
        fn update(&self, action: Action, _: &Pages) {
            if action == Action::Invalidate {
                std::thread::sleep(Duration::from_millis(60));
            }
        }
    }
    fn body(_: Group, (): (), y: &mut [u32]) {
        y.iter_mut().for_each(|y| *y += 3);
    }
    // A launch of one group cannot be cut.
    let one: Kernel<(EachMut<u32>,)> = Kernel::new("one", (), (each_mut(1 << 30),), body);
    for map_host in [false, true] {
        let rt = runtime(CpuConfig { map_host, ..rigid(8 * MIB) });
        let n = 5 * MIB / 4;
        let mut big = rt.shared::<u32>(n).unwrap();
        rt.launch(&add(1), (&mut big,)).unwrap().wait().unwrap();
        let mut y = rt.shared::<u32>(1000).unwrap();
        let mut next = rt.shared::<u32>(n).unwrap();
        let mirror = Mirror::register(rt.space(), Slow);
        let p = rt.launch(&drops(0), (&mut y,)).unwrap();
        hand_over((rt.shared::<u32>(1000).unwrap(), big));
        p.wait().unwrap();
        rt.launch(&one, (&mut next,)).unwrap().wait().unwrap_or_else(|e| panic!("{map_host}: {e}"));
        assert_eq!(next[n - 1], 3);
        mirror.unregister();
    }
}

/// A device that is on its way out has its place until it is gone: who wants one waits a moment.
#[test]
fn places_of_attachments_that_kernels_dropped_can_be_had_at_once() {
    let (_limit, _alone) = (limit(), alone_here());
    let name = "places_of_attachments_that_kernels_dropped_can_be_had_at_once";
    if !is_child() {
        succeeds(&mut child(name)); // counts the places of the process
        return;
    }
    let rt = runtime(small(8 * MIB));
    let space: &'static Space = rt.space();
    let open = || {
        let cpu = device(CpuConfig { workers: 1, window: 1 << 30, ..small(4 * MIB) });
        Attached::new(space, cpu.clone()).map(|a| (cpu, a))
    };
    let mut all = Vec::new();
    let e = loop {
        match open() {
            Ok(a) => all.push(a),
            Err(e) => break e,
        }
    };
    assert!(matches!(e, Error::TooManyDevices { .. }), "{e}");
    let (cpu, last) = all.pop().unwrap();
    let seg = Segment::new(space, 1 << 20).unwrap();
    last.migrate(&seg.pages()).unwrap();
    cpu.inject().delay_copies(Duration::from_millis(30));
    let mut y: Shared<u32> = rt.shared(1000).unwrap();
    rt.launch(&drops(0), (&mut y,)).unwrap();
    hand_over(last);
    gone();
    drop(open().unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(y[5], 1);
}

/// Copies of more than a mebibyte are made by threads of the device's, which start with the first of them.
#[test]
fn bytes_come_home_where_no_thread_is_to_be_had() {
    let name = "bytes_come_home_where_no_thread_is_to_be_had";
    let _limit = limit();
    if with_each_mechanism(name) {
        return;
    }
    let rt = runtime(CpuConfig { map_host: false, host_readable: false, ..small(64 * MIB) });
    let mut x = rt.shared::<u32>(4 * MIB).unwrap();
    rt.launch(&add(3), (&mut x,)).unwrap().wait().unwrap();
    threads(false);
    assert!(x.iter().all(|v| *v == 3));
    x[1] = 4;
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert_eq!((x[0], x[1], x[4 * MIB - 1]), (4, 5, 4));
}

/// A launch beside a guard, which the device has finished with and nobody looks at, is in the way of a store; the thread that waits for
/// launches sleeps for a later one, which waits for the store.
#[test]
fn a_store_is_served_beside_an_awaited_launch_where_no_thread_is_to_be_had() {
    let name = "a_store_is_served_beside_an_awaited_launch_where_no_thread_is_to_be_had";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    static HOLDS: [Hold; 2] = [const { Hold::new() }; 2];
    static FAULTS: AtomicBool = AtomicBool::new(false);
    fn body(_: Group, n: u32, y: &mut [u32]) {
        HOLDS[n as usize].wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    let held = |n: u32| -> Kernel<(EachMut<u32>,)> { Kernel::new("held", n, (each_mut(1 << 30),), body) };
    let rt = runtime(CpuConfig { map_host: false, host_readable: false, ..rigid(16 * MIB) });
    if !faults(&rt) {
        return; // two sides cannot share a grain there
    }
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(1000).unwrap();
    rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
    let (mut c, mut rest) = x.split_at_mut(10_500).unwrap();
    let (mut a, mut b) = rest.split_at_mut(10_000).unwrap();
    let guard = b.host_mut(..10).unwrap();
    let first = rt.launch(&held(0), (&mut a,)).unwrap();
    HOLDS[0].entered();
    let mut second = pin!(rt.launch(&held(1), (&mut y,)).unwrap());
    assert!(second.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    std::thread::scope(|s| {
        s.spawn(|| {
            eventually("a store", || FAULTS.load(SeqCst));
            std::thread::sleep(Duration::from_millis(20)); // the fault is parked before the launch ends
            HOLDS[0].release();
        });
        threads(false);
        let start = Instant::now();
        FAULTS.store(true, SeqCst);
        c[10_499] = 1;
        HOLDS[1].release();
        assert!(start.elapsed() < Duration::from_secs(30), "the store came after the later launch: {:?}", start.elapsed());
    });
    drop((guard, first));
    second.wait().unwrap();
    assert_eq!((c[10_499], a[0], y[5]), (1, 10_501, 2));
}
