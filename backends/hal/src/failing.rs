//! Calls of the operating system that fail on demand: what a system short of memory, or a signal at the wrong moment, does. Whoever
//! makes such calls asks here before each; a test has one of them fail. Exists only with the feature `planted`.
//!
//! **States:** each `Calls` counts those of one maker, on all threads. At most one call fails after each [`fail`](Calls::fail).

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};

/// The calls of one maker.
#[derive(Debug)]
pub struct Calls {
    /// Calls until the one that fails; negative: none will.
    left: AtomicI64,
    code: AtomicI32,
    made: AtomicU64,
}

impl Calls {
    /// None fails.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "made as a static")]
    pub const fn new() -> Self {
        Self { left: AtomicI64::new(-1), code: AtomicI32::new(0), made: AtomicU64::new(0) }
    }

    /// Has call number `n` from now, from 0, fail with `code`.
    pub fn fail(&self, n: u64, code: i32) {
        self.code.store(code, Ordering::SeqCst);
        self.made.store(0, Ordering::SeqCst);
        self.left.store(n as i64, Ordering::SeqCst);
    }

    /// No call fails any more; says how many were made since [`fail`](Self::fail), and whether one has failed.
    pub fn stop(&self) -> (u64, bool) {
        let left = self.left.swap(-1, Ordering::SeqCst);
        (self.made.load(Ordering::SeqCst), left < 0)
    }

    /// The error of the call that is about to be made, if it is to fail. Signal-safe.
    pub fn due(&self) -> Option<i32> {
        self.made.fetch_add(1, Ordering::SeqCst);
        let due = self.left.load(Ordering::SeqCst) >= 0 && self.left.fetch_sub(1, Ordering::SeqCst) == 0;
        due.then(|| self.code.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_fails_and_no_more() {
        let calls = Calls::new();
        assert_eq!(calls.due(), None);
        calls.fail(1, 5);
        assert_eq!([calls.due(), calls.due(), calls.due()], [None, Some(5), None]);
        assert_eq!(calls.stop(), (3, true));
        calls.fail(1, 5);
        assert_eq!((calls.due(), calls.stop(), calls.due()), (None, (1, false), None));
    }
}
