//! System calls that fail on demand: what a kernel short of memory, or a signal at the wrong moment, does to the engine. A test asks
//! for the `n`-th call from now to fail; calls are counted on all threads. Exists only with the feature `planted`.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};

/// Calls until the one that fails; negative: none will.
static LEFT: AtomicI64 = AtomicI64::new(-1);
static CODE: AtomicI32 = AtomicI32::new(0);
static MADE: AtomicU64 = AtomicU64::new(0);

/// Has call number `n` from now, from 0, fail with `code`.
pub fn fail(n: u64, code: i32) {
    CODE.store(code, Ordering::SeqCst);
    MADE.store(0, Ordering::SeqCst);
    LEFT.store(n as i64, Ordering::SeqCst);
}

/// No call fails any more; says how many were made since [`fail`], and whether one has failed.
pub fn stop() -> (u64, bool) {
    let left = LEFT.swap(-1, Ordering::SeqCst);
    (MADE.load(Ordering::SeqCst), left < 0)
}

/// The error of the call that is about to be made, if it is to fail. Signal-safe.
pub(super) fn due() -> Option<i32> {
    MADE.fetch_add(1, Ordering::SeqCst);
    let due = LEFT.load(Ordering::SeqCst) >= 0 && LEFT.fetch_sub(1, Ordering::SeqCst) == 0;
    due.then(|| CODE.load(Ordering::SeqCst))
}
