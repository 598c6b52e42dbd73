//! What stays where it is, and who is held back, while everybody wants a device's memory: the page that a kernel's thread was given last,
//! frames of a launch on a device that cannot fault, and launches without end beside a host fault on their page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Absent;
use sterna::hmm::{Attached, Operand, Pages, Segment, Space};
use sterna::kernel::{Group, Kernel, each_mut};
use sterna::policy::Place;
use sterna::{Mechanism, Shared};

use crate::support::{runtime, tick, under_each};

static ENTERED: AtomicBool = AtomicBool::new(false);
static LET_GO: AtomicBool = AtomicBool::new(false);

/// Whether `what` holds within so many seconds.
fn within(seconds: u64, what: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !what() && Instant::now() < end {
        sleep(Duration::from_micros(200));
    }
    what()
}

/// Touches its first element and stands until it is let go.
fn stands(_: Group, _: u32, y: &mut [u64]) {
    y[0] += 1;
    ENTERED.store(true, SeqCst);
    within(20, || LET_GO.load(SeqCst));
}

fn enter() {
    assert!(within(20, || ENTERED.load(SeqCst)), "no kernel runs");
}

fn begin() {
    ENTERED.store(false, SeqCst);
    LET_GO.store(false, SeqCst);
}

/// Whether the page that a kernel has just faulted on is still there when others have taken all the memory that there is to be had.
fn what_was_just_brought_stays(m: Mechanism) -> bool {
    begin();
    let space = Space::process(Some(m)).unwrap();
    let config = CpuConfig { memory: 4 << 20, workers: 1, window: 64 << 30, ..CpuConfig::default() };
    let dev = Attached::new(space, Arc::new(CpuDevice::new(0, config).unwrap())).unwrap();
    let (seg, others) = (Segment::new(space, 64 << 10).unwrap(), Segment::new(space, 4 << 20).unwrap());
    let kernel = Kernel::new("stands", 0_u32, (each_mut(8192),), stands);
    scope(|s| {
        let operand = Operand { segment: Arc::clone(&seg), bytes: 0..64 << 10 };
        let dev = &dev;
        // SAFETY: nobody else touches the bytes.
        s.spawn(move || unsafe { dev.run(&kernel, &[operand], Place::Demand, None) }.unwrap());
        enter();
        // As much as the memory, so that all that may go has to.
        dev.migrate(&others.pages()).unwrap();
        let first = seg.pages().0.start;
        let stays = dev.mapped(&Pages(first..first + 1), true).unwrap()[0];
        LET_GO.store(true, SeqCst);
        stays
    })
}

/// Fails if eviction takes what a kernel's thread was just given.
#[test]
fn the_page_that_a_kernel_was_given_last_stays() {
    under_each("leaving::the_page_that_a_kernel_was_given_last_stays", Duration::from_secs(60), |m| {
        assert!(what_was_just_brought_stays(m));
    });
}

/// Whether a move gets the memory of what is idle, while a launch on a device that cannot fault runs on what was used before that.
fn idle_memory_is_taken_first() -> bool {
    begin();
    let config =
        CpuConfig { memory: 8 << 20, absent: Absent::Undefined, workers: 1, window: 64 << 30, ..CpuConfig::default() };
    let rt = runtime("declared", [config]);
    let device = &rt.devices()[0];
    let mib = |n: usize| rt.shared_with(n << 17, |i| i as u64).unwrap();
    let (mut x, idle, new) = (mib(4), mib(3), mib(3));
    let there = |y: &Shared<u64>| y.residency().devices[0].pages == y.residency().pages;
    let p = rt.launch(&Kernel::new("stands", 0_u32, (each_mut(4 << 17),), stands), (&mut x,)).unwrap();
    enter();
    idle.prefetch_to(device);
    assert!(within(20, || there(&idle)), "there is room for it");
    new.prefetch_to(device);
    let came = within(5, || there(&new));
    LET_GO.store(true, SeqCst);
    p.wait().unwrap();
    rt.sync().unwrap();
    assert_eq!((x[0], x[1], idle[7], new[7]), (1, 1, 7, 7));
    came
}

/// Fails if a move waits for a launch that has nothing to do with it, for the sake of its frames.
#[test]
fn frames_of_a_running_launch_are_left_alone() {
    under_each("leaving::frames_of_a_running_launch_are_left_alone", Duration::from_secs(60), |_| {
        assert!(idle_memory_is_taken_first());
    });
}

/// Launches that are let pass a fault, at most: those that are on their way, and as many again on a busy machine.
const PASSES: u32 = 80;

/// How many launches without a gap on one half of a page, on a device that cannot fault, go before a store to the other half; also
/// `beside` a thread whose stores to another page are served at once, again and again.
fn launches_before_a_store(beside: bool) -> u32 {
    fn slow(_: Group, _: u32, y: &mut [u64]) {
        sleep(Duration::from_millis(2));
        y[0] += 1;
    }
    let config = CpuConfig { absent: Absent::Undefined, workers: 1, window: 64 << 30, ..CpuConfig::default() };
    let rt = runtime("declared", [CpuConfig { memory: 8 << 20, ..config }]);
    let mut pages = rt.shared::<u64>(64 * 512).unwrap();
    let (mut page, mut far) = pages.split_at_mut(32 * 512).unwrap();
    let (mut a, mut b) = page.split_at_mut(256).unwrap();
    let kernel = Kernel::new("slow", 0_u32, (each_mut(256),), slow);
    // So that the page is the device's.
    rt.launch(&kernel, (&mut a,)).unwrap().wait().unwrap();
    let (asked, stored) = (AtomicU32::new(0), AtomicBool::new(false));
    scope(|s| {
        let (asked, stored, rt) = (&asked, &stored, &rt);
        s.spawn(move || {
            let mut ahead = VecDeque::new();
            while !stored.load(SeqCst) && asked.load(SeqCst) < 5 * PASSES {
                ahead.push_back(rt.launch(&kernel, (&mut a,)).unwrap());
                asked.fetch_add(1, SeqCst);
                if ahead.len() > 8 {
                    ahead.pop_front().unwrap().wait().unwrap();
                }
            }
            rt.sync().unwrap();
            assert_eq!(u64::from(asked.load(SeqCst)) + 1, a[0]);
        });
        if beside {
            s.spawn(move || {
                while !stored.load(SeqCst) {
                    rt.launch(&tick(1 << 20), (&mut far,)).unwrap().wait().unwrap();
                    far[9] += 1;
                }
            });
        }
        assert!(within(20, || asked.load(SeqCst) > 8));
        let before = asked.load(SeqCst);
        b[7] = 1;
        let passed = asked.load(SeqCst) - before;
        stored.store(true, SeqCst);
        passed
    })
}

/// Fails if a program that launches without a gap keeps a fault from being served.
#[test]
fn a_store_goes_before_launches_without_end() {
    under_each("leaving::a_store_goes_before_launches_without_end", Duration::from_secs(60), |m| {
        if m != Mechanism::None {
            for beside in [false, true] {
                let passed = launches_before_a_store(beside);
                assert!(passed < PASSES, "{passed} launches went before a store, beside others: {beside}");
            }
        }
    });
}

#[cfg(feature = "planted")]
mod planted {
    use sterna::hmm::planted;

    use super::*;

    fn with<R>(defect: &AtomicBool, body: impl FnOnce() -> R) -> R {
        defect.store(true, SeqCst);
        let done = body();
        defect.store(false, SeqCst);
        done
    }

    #[test]
    fn a_page_that_leaves_at_once_is_seen() {
        under_each("leaving::planted::a_page_that_leaves_at_once_is_seen", Duration::from_secs(60), |m| {
            assert!(!with(&planted::ARRIVALS_LEAVE, || what_was_just_brought_stays(m)));
        });
    }

    #[test]
    fn frames_that_are_taken_from_a_launch_are_seen() {
        under_each("leaving::planted::frames_that_are_taken_from_a_launch_are_seen", Duration::from_secs(60), |_| {
            assert!(!with(&planted::FRAMES_IN_USE_LEAVE, idle_memory_is_taken_first));
        });
    }

    #[test]
    fn launches_that_are_not_held_back_are_seen() {
        under_each("leaving::planted::launches_that_are_not_held_back_are_seen", Duration::from_secs(60), |m| {
            if m != Mechanism::None {
                // More than once: a device may have a moment without launches.
                let starves = |_| with(&planted::HOLD_IGNORED, || launches_before_a_store(false)) >= PASSES;
                assert!((0..20).any(starves), "a store that waits for ever went unseen");
            }
        });
    }
}
