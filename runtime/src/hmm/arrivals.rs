//! What has just come to a device whose accesses fault: who asked for it, and in which order it came.
//!
//! **Guarantee.** While a launch runs, eviction leaves alone the last four grains that each of the device's threads asked for, whoever
//! wants memory and whatever their rank. In a small memory everything else leaves in the order in which it came.
//!
//! **Progress**, from which it follows that every launch ends on every budget that a device accepts:
//!
//! 1. *An instruction needs four grains at most*: it has two operands at most (a string move), and each may lie across one border.
//!    Where an instruction touches more (a gather), it goes on where it stopped, so that what it needs at once is less. A string
//!    move with a count is one instruction for each step. (Gathers of SVE begin anew; no kernel of this engine has them.)
//! 2. *What an instruction got stays until it has ended.* All its faults are for its own grains; so among the last four that its thread
//!    asked for are all that this instruction asked for, and it asks for each once for loading and once for storing: eight faults at
//!    most, then it has ended. What another thread or the thread before asked for is not counted against it.
//! 3. *There is always room for one more.* A device has `min_frames` grains or more: four for each worker, and four over. When a
//!    thread asks, its grain is among its last four already, so of what is in memory one grain less than four for each worker is
//!    kept; five are free, or can leave, or are in somebody's hands for a copy or an edit, which end.
//! 4. *What is in somebody's hands comes back.* While a fault finds no room ([`starve`](Arrivals::starve)), nobody else is given any:
//!    then batches end and none begins, and what they held is free or can leave.
//! 5. *More threads than that*, which only a driver with threads of its own could have, take turns: so many are served as there is
//!    room for four grains each. A thread's place is another's when its launch has ended, or when it has not asked for a while.
//!    Those that have a place get on by the above, and so all do: a launch is a finite number of instructions.
//!
//! On a lost device nothing of this matters: its workers run out on scratch memory. Time slices put a fault off for 10 ms at most.
//!
//! **States.** A thread's grains are kept from when it asks until it has asked for four others, or its launch has ended. Changed by
//! the thread that serves device faults only. A grain's place in the order is that of its last arrival.
//!
//! **Locks**: two mutexes, leaves, for look-ups. The order's is taken inside a block lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use sterna_hal::Point;

use super::addr::{BLOCK, BlockId, Mask, Span};
use super::os;

/// Grains that one instruction needs at once.
const AT_ONCE: usize = 4;
/// For how long a thread that does not ask keeps its place while another waits for one.
const PLACE_NS: u64 = 20_000_000;
/// For how long nobody else is given room after a fault found none. It asks again earlier than that.
const STARVED_NS: u64 = 2_000_000;
/// A page that was not asked for again for so long was of use.
const VAIN_NS: u64 = 1_000_000_000;
/// How often the same page is asked for within [`LONG_NS`] before that is worth a word.
const OFTEN: u64 = 50;
/// A fault that could not be served for so long, or was served in vain, is told of.
pub(crate) const LONG_NS: u64 = 5_000_000_000;

/// A grain of a block, by its number there.
pub(crate) type Grain = (BlockId, u16);

/// A thread that asks for pages.
#[derive(Debug)]
struct Asker {
    thread: i32,
    /// Latest first.
    last: [Option<Grain>; AT_ONCE],
    /// The launch that was running; `None`: not known yet.
    launch: Option<Point>,
    at: u64,
    vain: Vain,
}

/// Whether a thread asks for the same page again and again.
#[derive(Debug, Default)]
struct Vain {
    /// Number of the page.
    page: u64,
    since: u64,
    at: u64,
    times: u64,
    told: bool,
}

impl Vain {
    /// Counts a fault; says how often this page was asked for, when that is to be told.
    fn count(&mut self, page: u64, now: u64) -> Option<u64> {
        if self.page == page && self.times > 0 {
            (self.at, self.times) = (now, self.times + 1);
            if now - self.since > LONG_NS && self.times >= OFTEN && !self.told {
                self.told = true;
                return Some(self.times);
            }
        } else if self.times == 0 || now.saturating_sub(self.at) > VAIN_NS {
            *self = Self { page, since: now, at: now, times: 1, told: false };
        }
        None
    }
}

/// What became of a thread's request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// Its grain is kept from now on.
    Kept,
    /// The same, and this page has been asked for so often, in vain.
    InVain(u64),
    /// Other threads go first.
    Waits,
}

/// In which order grains came.
#[derive(Debug, Default)]
struct Order {
    next: u64,
    by_time: BTreeMap<u64, Grain>,
    /// Of a frame, when a grain last came to it.
    of_frame: FxHashMap<u32, u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// A block is a large part of the memory: single grains leave.
    small: bool,
    places: usize,
    askers: Mutex<Vec<Asker>>,
    order: Mutex<Order>,
    starved_until: AtomicU64,
}

impl Arrivals {
    /// For a device with `budget` bytes in grains of `grain`, which says that it needs `min_frames`; 0: one that cannot fault.
    pub(crate) fn new(budget: u64, grain: u64, min_frames: u32) -> Self {
        let small = budget < u64::from(min_frames) * BLOCK;
        let units = budget / if small { grain } else { BLOCK };
        let places = (units.saturating_sub(AT_ONCE as u64) / AT_ONCE as u64).clamp(1, 1 << 16) as usize;
        let (askers, order) = (Mutex::default(), Mutex::default());
        Self { small, places, askers, order, starved_until: AtomicU64::new(0) }
    }

    /// Whether single grains leave, in the order in which they came.
    pub(crate) fn by_grain(&self) -> bool {
        self.small
    }

    /// Thread `thread` asks for a page, for the launch that runs. `ended` says whether one has; `again`: it has asked already, and waits.
    pub(crate) fn ask(
        &self,
        thread: i32,
        (grain, page): (Grain, u64),
        launch: Option<Point>,
        ended: impl Fn(Option<Point>) -> bool,
        again: bool,
    ) -> Asked {
        let now = os::now_ns();
        let mut askers = self.askers.lock();
        let mine = askers.iter().position(|a| a.thread == thread);
        let Some(place) = mine.or_else(|| self.place(&mut askers, now, ended)) else { return Asked::Waits };
        let a = &mut askers[place];
        if a.thread != thread {
            *a = Asker { thread, ..Asker::nobody() };
        }
        if a.launch != launch {
            a.vain = Vain::default(); // another launch asks for its own
        }
        (a.launch, a.at) = (launch, now);
        // To the front, in place of itself or of the one that was asked for longest ago.
        let i = a.last.iter().position(|g| *g == Some(grain)).unwrap_or(AT_ONCE - 1);
        a.last[..=i].rotate_right(1);
        a.last[0] = Some(grain);
        if again {
            return Asked::Kept;
        }
        a.vain.count(page, now).map_or(Asked::Kept, Asked::InVain)
    }

    /// A place for one more thread.
    fn place(&self, askers: &mut Vec<Asker>, now: u64, ended: impl Fn(Option<Point>) -> bool) -> Option<usize> {
        if let Some(i) = askers.iter().position(|a| ended(a.launch)) {
            return Some(i);
        }
        if askers.len() < self.places {
            askers.push(Asker::nobody());
            return Some(askers.len() - 1);
        }
        let (i, longest) = askers.iter().enumerate().min_by_key(|(_, a)| a.at)?;
        (now.saturating_sub(longest.at) > PLACE_NS).then_some(i)
    }

    /// What nobody takes away, as pages by block; `per` pages a grain.
    pub(crate) fn kept(&self, per: usize, ended: impl Fn(Option<Point>) -> bool) -> SmallVec<[Span; 8]> {
        let mut kept: SmallVec<[Span; 8]> = SmallVec::new();
        let askers = self.askers.lock();
        for (block, g) in askers.iter().filter(|a| !ended(a.launch)).flat_map(|a| a.last).flatten() {
            let g = usize::from(g);
            let mask = Mask::range(g * per..(g + 1) * per);
            match kept.iter_mut().find(|s| s.block == block) {
                Some(s) => s.mask |= mask,
                None => kept.push(Span { block, mask }),
            }
        }
        kept
    }

    /// A grain has come to a frame.
    pub(crate) fn came(&self, frame: u32, grain: Grain) {
        if !self.small {
            return;
        }
        let Order { next, by_time, of_frame } = &mut *self.order.lock();
        *next += 1;
        if let Some(before) = of_frame.insert(frame, *next) {
            by_time.remove(&before);
        }
        by_time.insert(*next, grain);
    }

    /// The first grains for which `pick` says yes, in the order in which they came, at most `n`. Some may have left since.
    pub(crate) fn earliest(&self, n: usize, mut pick: impl FnMut(Grain) -> bool) {
        let order = self.order.lock();
        order.by_time.values().filter(|g| pick(**g)).take(n).for_each(drop);
    }

    /// A fault has found no room: nobody else is given any until it has asked again.
    pub(crate) fn starve(&self) {
        self.starved_until.store(os::now_ns() + STARVED_NS, Ordering::Release);
    }

    /// Whether a fault waits for room.
    pub(crate) fn starves(&self) -> bool {
        let until = self.starved_until.load(Ordering::Acquire);
        until != 0 && os::now_ns() < until
    }
}

impl Asker {
    const fn nobody() -> Self {
        let vain = Vain { page: 0, since: 0, at: 0, times: 0, told: false };
        Self { thread: 0, last: [None; AT_ONCE], launch: None, at: 0, vain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: Option<Point> = Some(Point { queue: 0, value: 2 });

    fn ended(launch: Option<Point>) -> bool {
        launch.is_none_or(|p| p.value < 2)
    }

    fn ask(a: &Arrivals, thread: i32, grain: u16) -> Asked {
        a.ask(thread, ((BlockId(7), grain), u64::from(grain)), RUNS, ended, false)
    }

    fn kept(a: &Arrivals) -> Vec<usize> {
        a.kept(1, ended).iter().flat_map(|s| s.mask.runs().flatten()).collect()
    }

    #[test]
    fn the_last_four_grains_of_each_thread_are_kept() {
        let a = Arrivals::new(12 * 4096, 4096, 12);
        for g in [1, 2, 3, 4, 5, 3] {
            assert_eq!(ask(&a, 1, g), Asked::Kept);
        }
        assert_eq!(kept(&a), [2, 3, 4, 5]);
        ask(&a, 2, 9);
        ask(&a, 1, 6);
        assert_eq!(kept(&a), [3, 4, 5, 6, 9]);
    }

    #[test]
    fn nothing_is_kept_for_a_launch_that_has_ended() {
        let a = Arrivals::new(12 * 4096, 4096, 12);
        ask(&a, 1, 1);
        assert_eq!(a.kept(1, |_| true).len(), 0);
        assert_eq!(a.kept(1, |_| false).len(), 1);
    }

    #[test]
    fn as_many_threads_are_served_as_there_is_room_for() {
        // Two workers: twice four grains, and four.
        let a = Arrivals::new(12 * 4096, 4096, 12);
        assert_eq!((ask(&a, 1, 1), ask(&a, 2, 2), ask(&a, 3, 3)), (Asked::Kept, Asked::Kept, Asked::Waits));
        std::thread::sleep(std::time::Duration::from_nanos(PLACE_NS + 1_000_000));
        ask(&a, 1, 4);
        assert_eq!(ask(&a, 3, 3), Asked::Kept, "the other has not asked for long");
        assert_eq!(kept(&a), [1, 3, 4]);
    }

    #[test]
    fn grains_leave_in_the_order_in_which_they_came() {
        let a = Arrivals::new(12 * 4096, 4096, 12);
        for (frame, grain) in [(0, 5), (1, 6), (2, 7), (0, 8)] {
            a.came(frame, (BlockId(1), grain));
        }
        let mut seen = Vec::new();
        a.earliest(2, |(_, g)| {
            seen.push(g);
            g != 6
        });
        assert_eq!(seen, [6, 7, 8], "frame 0 was given to another");
    }

    #[test]
    fn a_page_asked_for_again_and_again_is_told_of_once() {
        let (mut v, second) = (Vain::default(), 1_000_000_000);
        let told: Vec<u64> = (0..200).filter_map(|i| v.count(5, i * second / 10)).collect();
        assert_eq!(told, [52]);
        // Others in between do not count, and after a while without it they do.
        assert_eq!(v.count(6, 200 * second / 10), None);
        assert_eq!(v.page, 5);
        v.count(6, 22 * second);
        assert_eq!((v.page, v.times), (6, 1));
    }
}
