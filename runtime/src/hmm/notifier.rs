//! Windows and sequence counters: how a snapshot learns that it has been overtaken.
//!
//! **Guarantee.** Between the opening of a window over a range and its end, no driver installs an entry for that range that
//! it looked up before: [`Notifier::read_retry`], called under the driver lock, says so.
//!
//! **Protocol** (hmm-semantics 4.1, 4.2). A change of the host side is bracketed: the window is *opened* (its range and a new
//! sequence number are recorded), then the mirror's `update` callback runs, which takes the driver lock and removes entries,
//! then the points it returned are reached, then the change is made, then the window is *ended*. A driver calls
//! [`read_begin`](Notifier::read_begin), looks pages up, takes its driver lock, calls `read_retry`, and installs entries only
//! if that returned false. If the window opened before the check, the check sees it; if after, `update` comes after the
//! installation and removes it.
//!
//! **States.** A ring of the last windows with their ranges, so that windows elsewhere disturb nobody; a reader so slow that
//! the ring has passed it retries. **Lock**: one mutex, held for word operations, below every other lock; waiting is done on
//! its condition variable and takes `Free`.

use std::time::{Duration, Instant};

use super::addr::Pages;
use super::lock::Free;
use super::os;
use super::schedule;
use super::sync::{Condvar, Mutex};

const REMEMBERED: usize = 64;

#[derive(Debug)]
struct Invalidated {
    seq: u64,
    pages: Pages,
    open: bool,
}

#[derive(Debug, Default)]
struct State {
    seq: u64,
    windows: std::collections::VecDeque<Invalidated>,
    /// Highest sequence number that was forgotten.
    forgotten: u64,
}

/// One mirror's windows.
#[derive(Debug, Default)]
pub struct Notifier {
    state: Mutex<State>,
    ended: Condvar,
}

/// A reader's place in the sequence (`mmu_interval_read_begin`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seq(u64);

impl Notifier {
    /// Waits until no window over `pages` is open and says where the sequence stands, or `None` when `budget` ran out. In a kernel, for
    /// which a window may be waiting, it does not wait.
    #[must_use]
    pub fn read_begin(&self, _free: &mut Free, pages: &Pages, budget: Duration) -> Option<Seq> {
        let deadline = Instant::now().checked_add(budget);
        let mut state = self.state.lock();
        while state.windows.iter().any(|w| w.open && w.pages.intersects(pages)) {
            if os::in_kernel() {
                return None;
            }
            if schedule::gives_way(&mut state) {
                continue;
            }
            match deadline {
                Some(at) => {
                    if self.ended.wait_until(&mut state, at).timed_out() {
                        return None;
                    }
                }
                None => self.ended.wait(&mut state),
            }
        }
        Some(Seq(state.seq))
    }

    /// Whether a window over `pages` was opened since `seen`: then what was looked up is worth nothing. Called with the driver
    /// lock held, right before installing.
    #[must_use]
    pub fn read_retry(&self, pages: &Pages, seen: Seq) -> bool {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::NO_RETRY_CHECK) {
            return false;
        }
        let state = self.state.lock();
        state.forgotten > seen.0 || state.windows.iter().any(|w| (w.open || w.seq > seen.0) && w.pages.intersects(pages))
    }

    /// Opens a window. No lock is held by the caller.
    pub(crate) fn open(&self, pages: &Pages) -> u64 {
        let mut state = self.state.lock();
        state.seq += 1;
        let seq = state.seq;
        state.windows.push_back(Invalidated { seq, pages: pages.clone(), open: true });
        while state.windows.len() > REMEMBERED {
            let Some(at) = state.windows.iter().position(|w| !w.open) else { break };
            if let Some(w) = state.windows.remove(at) {
                state.forgotten = state.forgotten.max(w.seq);
            }
        }
        seq
    }

    /// Ends the window with number `seq`.
    pub(crate) fn end(&self, seq: u64) {
        let mut state = self.state.lock();
        if let Some(w) = state.windows.iter_mut().find(|w| w.seq == seq) {
            w.open = false;
        }
        drop(state);
        self.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_window_over_the_range_makes_the_reader_retry() {
        let (n, mut free) = (Notifier::default(), Free::at_entry());
        let seen = n.read_begin(&mut free, &Pages(0..10), LONG).unwrap();
        assert!(!n.read_retry(&Pages(0..10), seen));
        let w = n.open(&Pages(9..20));
        assert!(n.read_retry(&Pages(0..10), seen));
        assert!(!n.read_retry(&Pages(0..9), seen), "a window elsewhere disturbs nobody");
        n.end(w);
        assert!(n.read_retry(&Pages(0..10), seen), "an ended window still counts");
        let seen = n.read_begin(&mut free, &Pages(0..10), LONG).unwrap();
        assert!(!n.read_retry(&Pages(0..10), seen));
    }

    #[test]
    fn a_reader_waits_for_an_open_window_and_has_a_budget() {
        let (n, mut free) = (Notifier::default(), Free::at_entry());
        let w = n.open(&Pages(0..4));
        assert_eq!(n.read_begin(&mut free, &Pages(3..4), Duration::from_millis(5)), None);
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(Duration::from_millis(10));
                n.end(w);
            });
            assert!(n.read_begin(&mut Free::at_entry(), &Pages(3..4), LONG).is_some());
        });
    }

    #[test]
    fn a_reader_waits_for_every_window_over_its_pages() {
        let (n, mut free) = (Notifier::default(), Free::at_entry());
        let seen = n.read_begin(&mut free, &Pages(0..8), LONG).unwrap();
        let (outer, inner) = (n.open(&Pages(0..8)), n.open(&Pages(2..3)));
        n.end(inner);
        assert_eq!(n.read_begin(&mut free, &Pages(2..3), Duration::from_millis(1)), None, "the outer one is open");
        assert!(n.read_retry(&Pages(2..3), seen));
        n.end(outer);
        assert!(n.read_begin(&mut free, &Pages(2..3), LONG).is_some());
    }

    #[test]
    fn a_reader_the_ring_has_passed_retries() {
        let (n, mut free) = (Notifier::default(), Free::at_entry());
        let seen = n.read_begin(&mut free, &Pages(0..1), LONG).unwrap();
        for _ in 0..=REMEMBERED {
            let w = n.open(&Pages(100..101));
            n.end(w);
        }
        assert!(n.read_retry(&Pages(0..1), seen));
    }
}
