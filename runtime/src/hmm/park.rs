//! Sleeping until a word has changed, for nothing where nobody sleeps.
//!
//! **Guarantee.** A thread in [`wait`] returns once the word differs from what it expected, if whoever changed it calls [`wake`] with
//! the same counter afterwards. `wake` makes no system call where nobody sleeps.
//!
//! **Why it holds.** The sleeper counts itself and then has the kernel look at the word, with a full barrier between; the waker changes
//! the word and then looks at the counter, with a full barrier between. One of the two sees the other. Signal-safe, no lock.
//!
//! Where a word stands for several things, each sleeper says by a bit which of them it waits for ([`wait_for`]), and only those are
//! woken whose bit the waker names ([`wake_for`]): a thousand that wait for other things sleep on.

use std::time::Duration;

use super::os;
use super::sync::{AtomicU32, Ordering, fence};

/// Sleeps while `*word == expected`, until woken, interrupted or `timeout` has passed. `sleepers` belongs to the word, or to a family
/// of words.
pub(crate) fn wait(word: &AtomicU32, expected: u32, sleepers: &AtomicU32, timeout: Option<Duration>) {
    wait_for(word, expected, sleepers, timeout, ANY);
}

/// Every bit: waits for, or wakes, whatever the others said.
pub(crate) const ANY: u32 = u32::MAX;

/// As [`wait`], until one of `bits`, of which there is at least one, is woken.
pub(crate) fn wait_for(word: &AtomicU32, expected: u32, sleepers: &AtomicU32, timeout: Option<Duration>, bits: u32) {
    sleepers.fetch_add(1, Ordering::SeqCst);
    os::futex_wait_for(word, expected, timeout, bits);
    sleepers.fetch_sub(1, Ordering::SeqCst);
}

/// Wakes whoever sleeps on `word`, which the caller has changed.
pub(crate) fn wake(word: &AtomicU32, sleepers: &AtomicU32) {
    wake_for(word, sleepers, ANY);
}

/// As [`wake`], but only who waits for one of `bits`.
pub(crate) fn wake_for(word: &AtomicU32, sleepers: &AtomicU32, bits: u32) {
    fence(Ordering::SeqCst);
    if bits != 0 && sleepers.load(Ordering::Relaxed) > 0 {
        os::futex_wake_for(word, bits);
    }
}

/// For whoever cannot sleep where it would like to: pauses that grow from 20 µs to 5 ms.
#[derive(Debug, Default)]
pub(crate) struct Pauses(u32);

impl Pauses {
    /// The next one, at most `left`.
    pub(crate) fn pause(&mut self, left: Option<Duration>) {
        let next = Duration::from_micros(20 << self.0).min(Duration::from_millis(5));
        self.0 = (self.0 + 1).min(8);
        std::thread::sleep(left.map_or(next, |l| l.min(next)));
    }
}
