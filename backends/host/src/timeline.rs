//! One queue's timeline: a number that grows, and threads that wait for it.
//!
//! **Guarantee:** what happened before [`reach`](Timeline::reach) is visible to who sees the value reached. A waiter is woken
//! when its value is reached or the device is lost, and nobody is woken otherwise.
//!
//! **States:** `reached` is written by the queue that owns the timeline, in order. `wanted` is the lowest value that a sleeping
//! thread waits for: lowered by waiters, reset by whoever wakes them, both under `lock`.
//!
//! **Locks:** `lock`, around `wanted` and the sleep; taken by `reach` only if somebody sleeps.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*, fence};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waited {
    /// The value is reached.
    Reached,
    /// The time is over.
    TimedOut,
    /// The device is gone.
    Lost,
}

/// A number that grows, and threads that wait for it.
#[derive(Debug, Default)]
pub struct Timeline {
    reached: AtomicU64,
    wanted: Wanted,
    lock: Mutex<()>,
    wake: Condvar,
}

#[derive(Debug)]
struct Wanted(AtomicU64);

impl Default for Wanted {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

/// Looks at the value this often before it sleeps: some microseconds, for what is nearly done.
const SPINS: u32 = 200;
/// Then it lets others run this often: a worker that shares this processor needs it.
const YIELDS: u32 = 8;

impl Timeline {
    /// The value now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.reached.load(Acquire)
    }

    /// Whether `value` is reached.
    #[must_use]
    pub fn is_reached(&self, value: u64) -> bool {
        self.value() >= value
    }

    /// Publishes that `value` is reached.
    pub fn reach(&self, value: u64) {
        debug_assert!(self.reached.load(Relaxed) < value);
        self.reached.store(value, Release);
        // Either this thread sees the waiter's wish, or the waiter sees the value.
        fence(SeqCst);
        if self.wanted.0.load(Relaxed) <= value {
            self.wake_all();
        }
    }

    /// Wakes every sleeper, to look again.
    pub fn wake_all(&self) {
        let _guard = self.lock.lock();
        self.wanted.0.store(u64::MAX, Relaxed);
        self.wake.notify_all();
    }

    /// Waits for `value`, at most `timeout`. `None` waits for as long as it takes.
    pub fn wait(&self, value: u64, timeout: Option<Duration>, lost: &AtomicBool) -> Waited {
        for i in 0..SPINS + YIELDS {
            if self.is_reached(value) {
                return Waited::Reached;
            }
            if timeout == Some(Duration::ZERO) {
                return if lost.load(Acquire) { Waited::Lost } else { Waited::TimedOut };
            }
            if i < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.sleep(value, timeout, lost)
    }

    #[cold]
    fn sleep(&self, value: u64, timeout: Option<Duration>, lost: &AtomicBool) -> Waited {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut guard = self.lock.lock();
        loop {
            // Registered anew on every round: whoever wakes us resets it.
            self.wanted.0.fetch_min(value, Relaxed);
            fence(SeqCst);
            if self.is_reached(value) {
                return Waited::Reached;
            }
            if lost.load(SeqCst) {
                return Waited::Lost;
            }
            match deadline {
                None => self.wake.wait(&mut guard),
                Some(d) => {
                    if self.wake.wait_until(&mut guard, d).timed_out() {
                        return if self.is_reached(value) { Waited::Reached } else { Waited::TimedOut };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_of_different_values_all_wake() {
        let (t, lost) = (Timeline::default(), AtomicBool::new(false));
        std::thread::scope(|s| {
            for v in 1..=8 {
                let (t, lost) = (&t, &lost);
                s.spawn(move || assert_eq!(t.wait(v, None, lost), Waited::Reached));
            }
            for v in 1..=8 {
                std::thread::sleep(Duration::from_millis(1));
                t.reach(v);
            }
        });
        assert_eq!(t.wait(9, Some(Duration::from_millis(5)), &lost), Waited::TimedOut);
    }

    #[test]
    fn a_loss_ends_every_wait() {
        let (t, lost) = (Timeline::default(), AtomicBool::new(false));
        std::thread::scope(|s| {
            let (t, lost) = (&t, &lost);
            let waiter = s.spawn(move || t.wait(1, None, lost));
            std::thread::sleep(Duration::from_millis(2));
            lost.store(true, SeqCst);
            t.wake_all();
            assert_eq!(waiter.join().unwrap(), Waited::Lost);
        });
    }
}
