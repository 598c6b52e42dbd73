//! Which of a segment's bytes belong to somebody.
//!
//! **Guarantee.** What is nobody's stays nobody's: no handle, view or guard has it any more, so no reference to it lives and none will
//! be made. Launches that were asked for before may still use it. **Lock:** `vacant`, a leaf, for one look or change.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The bytes of a segment that are in use.
#[derive(Debug, Default)]
pub(crate) struct Extent {
    /// From its start: nothing lies behind them. Less than the segment has once the allocation was truncated.
    used: AtomicU64,
    /// Before that: what parts had that were shortened, or went. In order, no two of them touch.
    vacant: Mutex<Vec<Range<u64>>>,
}

impl Extent {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { used: AtomicU64::new(bytes), vacant: Mutex::default() }
    }

    /// Bytes in use, from the start: what lies behind them is nobody's.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// What lies behind `to` is nobody's from now on, and no launch uses it.
    pub(crate) fn shorten(&self, to: u64) {
        self.used.fetch_min(to, Ordering::AcqRel);
    }

    /// These bytes are nobody's from now on; others, behind them, may be somebody's.
    pub(crate) fn vacate(&self, bytes: &Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let mut vacant = self.vacant.lock();
        // Those that it touches become one with it.
        let first = vacant.partition_point(|v| v.end < bytes.start);
        let last = vacant.partition_point(|v| v.start <= bytes.end);
        let all = vacant[first..last].iter().fold(bytes.clone(), |a, v| a.start.min(v.start)..a.end.max(v.end));
        vacant.splice(first..last, [all]);
    }

    /// Whether the first and the last grain of `bytes` have nobody else's.
    pub(crate) fn has_whole_grains(&self, bytes: &Range<u64>, grain: u64) -> bool {
        let before = bytes.start / grain * grain..bytes.start;
        let behind = bytes.end..bytes.end.next_multiple_of(grain).min(self.used());
        if before.is_empty() && behind.is_empty() {
            return true;
        }
        let vacant = self.vacant.lock();
        let is_nobodys = |r: &Range<u64>| r.is_empty() || vacant.iter().any(|v| v.start <= r.start && r.end <= v.end);
        is_nobodys(&before) && is_nobodys(&behind)
    }
}

/// Whether two ranges have a byte in common.
pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_by_others_and_what_lies_behind_the_end_are_in_nobodys_way() {
        let e = Extent::new(1000);
        assert!(e.has_whole_grains(&(0..1000), 64) && e.has_whole_grains(&(64..128), 64));
        assert!(!e.has_whole_grains(&(0..100), 64) && !e.has_whole_grains(&(100..128), 64));
        e.vacate(&(110..128));
        assert!(!e.has_whole_grains(&(0..100), 64), "10 bytes are somebody's");
        e.vacate(&(100..110));
        assert!(e.has_whole_grains(&(0..100), 64) && e.has_whole_grains(&(128..1000), 64));
        assert!(!e.has_whole_grains(&(0..90), 64) && !e.has_whole_grains(&(129..1000), 64));
        e.shorten(900);
        assert!(e.has_whole_grains(&(128..900), 64));
    }

    #[test]
    fn vacant_ranges_join() {
        let e = Extent::new(1000);
        for r in [10..20, 40..50, 20..30, 90..95, 45..60, 30..40, 0..0] {
            e.vacate(&r);
        }
        assert_eq!(*e.vacant.lock(), [10..60, 90..95]);
        e.vacate(&(0..1000));
        assert_eq!(e.vacant.lock().as_slice(), std::slice::from_ref(&(0..1000)));
    }
}
