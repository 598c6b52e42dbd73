//! Awaited launches: told at once whatever else is pending, one entry each, none after drop; whose waker blocks or panics harms
//! nobody else; threads that come with who awaits and go with them.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use common::*;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Error, Pending, Shared};

/// When it was called, and how often.
#[derive(Default)]
struct Told(Mutex<Option<Instant>>, AtomicU32);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = Some(Instant::now());
        self.1.fetch_add(1, SeqCst);
    }
}

impl Told {
    fn at(&self) -> Instant {
        eventually("it is told", || self.0.lock().unwrap().is_some());
        self.0.lock().unwrap().unwrap()
    }

    fn times(&self) -> u32 {
        self.1.load(SeqCst)
    }
}

fn poll(p: &mut Pending, waker: &Waker) -> Poll<Result<(), Error>> {
    Pin::new(p).poll(&mut Context::from_waker(waker))
}

/// Polls it once, and says how it is told.
fn awaited(p: &mut Pending) -> Arc<Told> {
    let told = Arc::new(Told::default());
    assert!(poll(p, &Waker::from(Arc::clone(&told))).is_pending());
    told
}

type Change = Kernel<(EachMut<u32>,)>;

/// A kernel that waits for `hold`.
macro_rules! held {
    ($hold:ident) => {{
        fn body(_: Group, (): (), _: &mut [u32]) {
            $hold.wait();
        }
        let kernel: Change = Kernel::new("held", (), (each_mut(4096),), body);
        kernel
    }};
}

fn sleeps(ms: u32) -> Change {
    fn body(_: Group, ms: u32, y: &mut [u32]) {
        std::thread::sleep(Duration::from_millis(u64::from(ms)));
        y[0] = ms;
    }
    Kernel::new("sleeps", ms, (each_mut(4096),), body)
}

/// Sleeps and notes when it has ended; for one test.
fn timed() -> Change {
    fn body(_: Group, (): (), _: &mut [u32]) {
        std::thread::sleep(Duration::from_millis(5));
        ENDED.store(since_start(), SeqCst);
    }
    Kernel::new("timed", (), (each_mut(4096),), body)
}

static ENDED: AtomicU64 = AtomicU64::new(0);

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn since_start() -> u64 {
    start().elapsed().as_nanos() as u64
}

/// Threads of this process whose name begins with `name`.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let comm = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm")).unwrap_or_default();
    tasks.filter(|t| !t.path().as_os_str().is_empty()).map(comm).filter(|c| c.starts_with(name)).count()
}

fn median(mut of: Vec<Duration>) -> Duration {
    of.sort_unstable();
    of[of.len() / 2]
}

#[test]
fn a_future_is_told_as_soon_as_who_waits_whatever_else_is_pending() {
    let (_limit, _alone) = (limit(), alone());
    static HOLD: Hold = Hold::new();
    let (rt, other) = (runtime(small(8 * MIB)), runtime_of(&[small(8 * MIB), rigid(8 * MIB)]));
    // Awaited and not ended; awaited, dropped and not ended; both on other devices than the one that counts.
    let mut x = [other.shared::<u32>(10).unwrap(), other.shared::<u32>(10).unwrap()];
    let [a, b] = &mut x;
    let mut slow = other.on(&other.devices()[0]).launch(&held!(HOLD), (a,)).unwrap();
    let slow_told = awaited(&mut slow);
    let mut gone = other.on(&other.devices()[1]).launch(&held!(HOLD), (b,)).unwrap();
    let gone_told = awaited(&mut gone);
    drop(gone);
    let mut y = rt.shared::<u32>(1000).unwrap();
    rt.launch(&timed(), (&mut y,)).unwrap().wait().unwrap();
    let (mut by_wait, mut by_future) = (Vec::new(), Vec::new());
    for _ in 0..25 {
        rt.launch(&timed(), (&mut y,)).unwrap().wait().unwrap();
        by_wait.push(Duration::from_nanos(since_start() - ENDED.load(SeqCst)));
        let mut p = rt.launch(&timed(), (&mut y,)).unwrap();
        let told = awaited(&mut p).at() - start();
        by_future.push(told - Duration::from_nanos(ENDED.load(SeqCst)));
        assert!(matches!(poll(&mut p, Waker::noop()), Poll::Ready(Ok(()))));
    }
    let (by_wait, by_future) = (median(by_wait), median(by_future));
    println!("told after the kernel's end: by `wait` {by_wait:?}, by a future {by_future:?}");
    assert!(by_future <= by_wait + Duration::from_millis(1), "by `wait` {by_wait:?}, by a future {by_future:?}");
    assert_eq!(slow_told.times(), 0);
    HOLD.release();
    slow_told.at();
    slow.wait().unwrap();
    other.sync().unwrap();
    assert_eq!(gone_told.times(), 0, "nobody is told of what was dropped");
}

#[test]
fn polled_ever_so_often_a_launch_has_one_entry_and_dropped_none() {
    let _limit = limit();
    static HOLD: Hold = Hold::new();
    let rt = runtime(small(8 * MIB));
    let mut y = rt.shared::<u32>(10).unwrap();
    let mut p = rt.launch(&held!(HOLD), (&mut y,)).unwrap();
    let (first, second) = (Arc::new(Told::default()), Arc::new(Told::default()));
    let wakers = [Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&second))];
    for i in 0..10_000 {
        assert!(poll(&mut p, &wakers[i % 2]).is_pending());
        assert!(Arc::strong_count(&first) + Arc::strong_count(&second) <= 5, "each has its own, and one has the entry");
    }
    assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 3), "who polls last is told");
    let mut dropped = rt.launch(&add(1), (&mut y,)).unwrap();
    let told = awaited(&mut dropped);
    assert_eq!(Arc::strong_count(&told), 2);
    drop(dropped);
    assert_eq!(Arc::strong_count(&told), 1, "nothing is left of it");
    HOLD.release();
    second.at();
    rt.sync().unwrap();
    assert_eq!((first.times(), second.times(), told.times()), (0, 1, 0));
}

#[test]
fn launches_awaited_in_the_wrong_order_are_told_in_theirs() {
    let _limit = limit();
    static GATES: [Hold; 6] = [const { Hold::new() }; 6];
    fn body(_: Group, n: u32, _: &mut [u32]) {
        GATES[n as usize].wait();
    }
    let gate = |n: u32| -> Change { Kernel::new("gate", n, (each_mut(4096),), body) };
    let rt = runtime(small(8 * MIB));
    let mut y: Vec<Shared<u32>> = (0..6).map(|_| rt.shared(10).unwrap()).collect();
    let mut all: Vec<Pending> = y.iter_mut().zip(0..).map(|(y, n)| rt.launch(&gate(n), (y,)).unwrap()).collect();
    GATES[0].entered();
    eventually("all are submitted", || rt.stats().devices[0].launches == 6);
    let mut told: Vec<Arc<Told>> = all.iter_mut().rev().map(awaited).collect();
    told.reverse();
    for (n, gate) in GATES.iter().enumerate() {
        assert_eq!(told[n].times(), 0);
        gate.release();
        told[n].at();
        assert!(told[n + 1..].iter().all(|t| t.times() == 0), "{n}");
    }
}

#[test]
fn a_waker_that_blocks_keeps_back_its_own_runtime_alone() {
    let _limit = limit();
    static LET_GO: AtomicBool = AtomicBool::new(false);
    struct Blocks;
    impl Wake for Blocks {
        fn wake(self: Arc<Self>) {
            eventually("it is let go", || LET_GO.load(SeqCst));
        }
    }
    let (rt, other) = (runtime(small(8 * MIB)), runtime(small(8 * MIB)));
    let (mut x, mut y) = (rt.shared::<u32>(10).unwrap(), other.shared::<u32>(10).unwrap());
    let mut p = rt.launch(&sleeps(20), (&mut x,)).unwrap();
    assert!(poll(&mut p, &Waker::from(Arc::new(Blocks))).is_pending());
    p.wait().unwrap();
    let mut own = rt.launch(&sleeps(1), (&mut x,)).unwrap();
    let own_told = awaited(&mut own);
    for _ in 0..3 {
        awaited(&mut other.launch(&sleeps(20), (&mut y,)).unwrap()).at();
    }
    own.wait().unwrap();
    assert_eq!(own_told.times(), 0, "it is behind the one that blocks");
    LET_GO.store(true, SeqCst);
    own_told.at();
}

/// What a panic carries is a value of the program's.
#[test]
fn a_waker_whose_panic_panics_again_harms_nobody() {
    let _limit = limit();
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new(Self));
        }
    }
    struct Nervous;
    impl Wake for Nervous {
        fn wake(self: Arc<Self>) {
            std::panic::resume_unwind(Box::new(Bomb));
        }
    }
    let rt = runtime(small(8 * MIB));
    let mut y = rt.shared::<u32>(10).unwrap();
    for _ in 0..3 {
        let mut p = rt.launch(&sleeps(20), (&mut y,)).unwrap();
        assert!(poll(&mut p, &Waker::from(Arc::new(Nervous))).is_pending());
        awaited(&mut rt.launch(&sleeps(1), (&mut y,)).unwrap()).at();
        p.wait().unwrap();
    }
}

#[test]
fn threads_come_with_who_awaits_and_go_with_them() {
    let name = "threads_come_with_who_awaits_and_go_with_them";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    static HOLD: Hold = Hold::new();
    let (keep, begun) = (runtime(small(8 * MIB)), Instant::now());
    let rt = runtime_of(&[small(8 * MIB), rigid(8 * MIB)]);
    let mut y: Vec<Shared<u32>> = (0..100).map(|_| rt.shared(10).unwrap()).collect();
    let devices = rt.devices();
    let on = |(i, y)| rt.on(&devices[i % 2]).launch(&held!(HOLD), (y,)).unwrap();
    let mut all: Vec<Pending> = y.iter_mut().enumerate().map(on).collect();
    HOLD.entered();
    assert_eq!((threads("sterna-watch"), threads("sterna-wakers")), (0, 0), "nobody awaits anything");
    let told: Vec<_> = all.iter_mut().map(awaited).collect();
    eventually("all are submitted", || rt.stats().devices.iter().all(|d| d.launches == 50));
    eventually("one a queue, one a runtime", || (threads("sterna-watch"), threads("sterna-wakers")) == (2, 1));
    HOLD.release();
    told.iter().for_each(|t| assert!(t.at() > begun));
    eventually("they go", || threads("sterna-watch") + threads("sterna-wakers") == 0);
    // With the runtime, too, and without having told anybody.
    let mut dropped = rt.launch(&sleeps(20), (&mut y[0],)).unwrap();
    let told = awaited(&mut dropped);
    drop((dropped, y, devices, rt));
    eventually("they go", || threads("sterna-watch") + threads("sterna-wakers") == 0);
    assert_eq!((told.times(), Arc::strong_count(&told)), (0, 1));
    drop(keep);
}

/// A launch that the scheduler has is in no queue yet.
#[test]
fn a_launch_that_is_not_submitted_is_told_of_too() {
    let _limit = limit();
    static HOLD: Hold = Hold::new();
    let rt = runtime_of(&[small(8 * MIB), small(8 * MIB)]);
    let started = Instant::now();
    let [first, second] = &rt.devices()[..] else { panic!() };
    let mut y = rt.shared::<u32>(10).unwrap();
    rt.on(first).launch(&held!(HOLD), (&mut y,)).unwrap();
    HOLD.entered();
    // Order between devices: this one waits for the other, and the one behind it in the queue as well.
    let mut p = rt.on(second).launch(&add(1), (&mut y,)).unwrap();
    let mut failed = rt.on(second).launch(&panics(), (&mut y,)).unwrap();
    let mut upstream = rt.on(first).launch(&add(1), (&mut y,)).unwrap();
    let told = [awaited(&mut p), awaited(&mut failed), awaited(&mut upstream)];
    let mut dropped = rt.on(second).launch(&add(1), (&mut y,)).unwrap();
    let never = awaited(&mut dropped);
    drop(dropped);
    HOLD.release();
    told.iter().for_each(|t| assert!(t.at() > started));
    assert!(matches!(poll(&mut p, Waker::noop()), Poll::Ready(Ok(()))));
    assert!(matches!(poll(&mut failed, Waker::noop()), Poll::Ready(Err(Error::Kernel { .. }))));
    assert!(matches!(poll(&mut upstream, Waker::noop()), Poll::Ready(Err(Error::Upstream { .. }))));
    let _ = rt.sync();
    assert_eq!((never.times(), Arc::strong_count(&never)), (0, 1));
}
