//! Taints: bytes that a failed launch would have written, or that were lost with a device.
//!
//! **Guarantee.** While a taint stands the segment's gate is up, so that whoever looks comes by here; it ends when its bytes are
//! written whole, by the host or by a launch that was asked for after the one that failed.
//!
//! **Lock**: `taints` of the segment, held for word operations.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::addr::{PAGE, Pages};
use super::lock::Free;
use super::segment::{Segment, without};
use crate::Error;

/// Bytes that failed launches would have written, from the number under which it stands to its end. No two overlap.
#[derive(Clone, Debug)]
pub(crate) struct Taint {
    end: u64,
    /// The first failure.
    error: Arc<Error>,
    /// The number of the last launch that failed to write them; 0 for what was lost with a device.
    by: u64,
}

type Taints = std::collections::BTreeMap<u64, Taint>;

/// The starts of those that overlap `bytes`.
fn within<'a>(taints: &'a Taints, bytes: &Range<u64>) -> impl Iterator<Item = u64> + use<'a> {
    let first = taints.range(..=bytes.start).next_back().map_or(bytes.start, |(start, _)| *start);
    let start = bytes.start;
    taints.range(first..bytes.end.max(first)).filter(move |(_, t)| t.end > start).map(|(start, _)| *start)
}

impl Segment {
    pub(crate) fn has_taints(&self) -> bool {
        self.has_taints.load(Ordering::Acquire)
    }

    /// The error of a failed launch that would have written some of `bytes`, shared.
    pub(crate) fn tainted(&self, bytes: &Range<u64>) -> Option<Arc<Error>> {
        let taints = self.taints.lock();
        let first = within(&taints, bytes).next();
        first.map(|start| Arc::clone(&taints[&start].error))
    }

    /// The error of a failed launch that would have written some of `bytes`.
    pub(crate) fn taint(&self, bytes: &Range<u64>) -> Option<Error> {
        self.tainted(bytes).map(|e| Error::clone(&e))
    }

    /// The error of pages that were lost with their device.
    pub(crate) fn loss(&self, pages: &Pages) -> Error {
        let known = self.taint(&self.bytes_in(pages));
        known.unwrap_or_else(|| Error::Lost { device: "a device".into() })
    }

    /// Marks what a failed launch would have written. The gate stays up until it is healed. Where an earlier failure stands already,
    /// that remains what is told of.
    pub(crate) fn add_taint(&self, bytes: &Range<u64>, error: &Arc<Error>, by: u64) {
        debug_assert!(bytes.start < bytes.end, "{bytes:?} could not be healed");
        let mut taints = self.taints.lock();
        let before = taints.len();
        let mut at = bytes.start;
        for start in within(&taints, bytes).collect::<Vec<_>>() {
            let Some(old) = taints.remove(&start) else { continue };
            let both = start.max(bytes.start)..old.end.min(bytes.end);
            for outside in without(&(start..old.end), bytes) {
                taints.insert(outside.start, Taint { end: outside.end, ..old.clone() });
            }
            if at < both.start {
                taints.insert(at, Taint { end: both.start, error: Arc::clone(error), by });
            }
            at = both.end;
            taints.insert(both.start, Taint { end: both.end, by: old.by.max(by), ..old });
        }
        if at < bytes.end {
            taints.insert(at, Taint { end: bytes.end, error: Arc::clone(error), by });
        }
        self.count(before, taints.len());
    }

    /// `bytes` have been written whole: what was tainted there no longer is.
    pub(crate) fn heal(&self, bytes: &Range<u64>) {
        self.heal_before(bytes, u64::MAX);
    }

    /// As [`heal`](Self::heal), of what launches before number `by` have tainted: launches do not retire in the order in which they
    /// were asked for, and one that is refused does so at once.
    fn heal_before(&self, bytes: &Range<u64>, by: u64) {
        let mut taints = self.taints.lock();
        let before = taints.len();
        for start in within(&taints, bytes).collect::<Vec<_>>() {
            if taints[&start].by >= by {
                continue;
            }
            let Some(old) = taints.remove(&start) else { continue };
            for part in without(&(start..old.end), bytes) {
                taints.insert(part.start, Taint { end: part.end, ..old.clone() });
            }
        }
        self.count(before, taints.len());
    }

    /// Each taint keeps the gate up once. Under the mutex of the taints.
    fn count(&self, before: usize, now: usize) {
        // Before the gate is raised: who finds it open need not look.
        self.has_taints.store(now > 0, Ordering::Release);
        let gate = &self.rec().gate;
        (before..now).for_each(|_| gate.raise(true));
        (now..before).for_each(|_| gate.lower(true));
    }

    /// As [`heal`](Self::heal), for launch number `by`, which has ended: what it wrote may have been lost since, with its device or
    /// with one that wrote it later, and a later launch may have failed to write it.
    pub(crate) fn heal_but_lost(&self, bytes: &Range<u64>, by: u64) {
        if !self.has_taints() {
            return;
        }
        let mut whole = vec![bytes.clone()];
        if self.lossy.load(Ordering::Acquire) {
            let free = &mut Free::at_entry();
            for (id, mask) in self.pages_of(bytes).blocks() {
                let lost = self.claim(id).lock(free).lost & mask;
                for r in lost.runs() {
                    let at = |page: usize| id.offset() - self.offset() + page as u64 * PAGE;
                    whole = whole.iter().flat_map(|w| without(w, &(at(r.start)..at(r.end)))).collect();
                }
            }
        }
        whole.iter().for_each(|w| self.heal_before(w, by));
    }
}
