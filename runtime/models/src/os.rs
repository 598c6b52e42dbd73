//! Futexes as the kernel keeps them: the look at the word and falling asleep are one step, behind a full barrier.

use std::time::Duration;

use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Condvar, Mutex};

loom::lazy_static! {
    /// One bucket for all words: a waker wakes whoever sleeps, and those who were not meant look again.
    static ref BUCKET: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
}

/// Sleeps while `*word == expected`. Time does not pass in a model: whoever is never woken sleeps for ever, which the checker tells.
pub fn futex_wait(word: &AtomicU32, expected: u32, _: Option<Duration>) {
    fence(Ordering::SeqCst);
    let held = BUCKET.0.lock().unwrap();
    if word.load(Ordering::Relaxed) == expected {
        drop(BUCKET.1.wait(held).unwrap());
    }
}

/// No thread here runs a kernel.
pub fn in_kernel() -> bool {
    false
}

/// As [`futex_wait`]; who is woken for nothing looks again.
pub fn futex_wait_for(word: &AtomicU32, expected: u32, timeout: Option<Duration>, _: u32) {
    futex_wait(word, expected, timeout);
}

/// As [`futex_wake`].
pub fn futex_wake_for(word: &AtomicU32, _: u32) {
    futex_wake(word, i32::MAX);
}

/// Wakes every sleeper.
pub fn futex_wake(_: &AtomicU32, _: i32) {
    let held = BUCKET.0.lock().unwrap();
    BUCKET.1.notify_all();
    drop(held);
}
