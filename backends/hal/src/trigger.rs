//! A call that fails when a test says so.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed, Ordering::SeqCst};

/// Counts calls down to the one that is to fail: what a device needs for each kind of call that fails on demand.
///
/// It is off until it is armed, fires once, and turns itself off. Anyone may arm it at any time; a look at one that is off costs a
/// relaxed load.
///
/// ```
/// use sterna_hal::Trigger;
///
/// let trigger = Trigger::off();
/// assert!(!trigger.fires());
/// trigger.arm(1);
/// assert_eq!([trigger.fires(), trigger.fires(), trigger.fires()], [false, true, false]);
/// ```
#[derive(Debug)]
pub struct Trigger(
    /// Calls until the one that fails; negative: none will.
    AtomicI64,
);

impl Trigger {
    /// No call fails.
    #[must_use]
    pub const fn off() -> Self {
        Self(AtomicI64::new(-1))
    }

    /// The `n`-th next call fails; 0 is the very next one.
    pub fn arm(&self, n: u64) {
        self.0.store(i64::try_from(n).unwrap_or(i64::MAX), SeqCst);
    }

    /// Whether this call is the one.
    pub fn fires(&self) -> bool {
        self.0.load(Relaxed) >= 0 && self.0.fetch_update(SeqCst, SeqCst, |left| (left >= 0).then(|| left - 1)) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_once_at_its_number() {
        let t = Trigger::off();
        assert!(!t.fires());
        t.arm(2);
        assert_eq!([(); 5].map(|()| t.fires()), [false, false, true, false, false]);
        t.arm(0);
        assert!(t.fires() && !t.fires());
    }
}
