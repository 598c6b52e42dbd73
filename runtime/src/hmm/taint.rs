//! Taints: bytes that a failed launch would have written, or that were lost with a device.
//!
//! **Guarantee.** While a taint stands the segment's gate is up, so that whoever looks comes by here; it ends when its bytes are
//! written whole, by the host or by a launch that was asked for after the one that failed.
//!
//! **Lock**: `taints` of the segment, held for word operations.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::addr::{PAGE, Pages};
use super::lock::Free;
use super::segment::{Segment, overlap, without};

/// Bytes that a failed launch would have written.
#[derive(Clone, Debug)]
pub(crate) struct Taint {
    pub(crate) bytes: Range<u64>,
    pub(crate) error: crate::Error,
    /// The launch's number; 0 for what was lost with a device.
    pub(crate) by: u64,
}

impl Segment {
    pub(crate) fn has_taints(&self) -> bool {
        !self.taints.lock().is_empty()
    }

    /// The error of a failed launch that would have written some of `bytes`.
    pub(crate) fn taint(&self, bytes: &Range<u64>) -> Option<crate::Error> {
        self.taints.lock().iter().find(|t| overlap(&t.bytes, bytes)).map(|t| t.error.clone())
    }

    /// The error of pages that were lost with their device.
    pub(crate) fn loss(&self, pages: &Pages) -> crate::Error {
        let at = |page: u64| (page * PAGE).saturating_sub(self.offset());
        let known = self.taint(&(at(pages.0.start)..at(pages.0.end)));
        known.unwrap_or_else(|| crate::Error::Lost { device: "a device".into() })
    }

    /// Marks what a failed launch would have written. The gate stays up until it is healed.
    pub(crate) fn add_taint(&self, bytes: Range<u64>, error: crate::Error, by: u64) {
        debug_assert!(bytes.start < bytes.end, "{bytes:?} could not be healed");
        let gate = &self.rec().gate;
        gate.raise(true);
        self.taints.lock().push(Taint { bytes, error, by });
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
        let mut left = Vec::new();
        for t in taints.drain(..) {
            if t.by >= by {
                left.push(t);
                continue;
            }
            left.extend(without(&t.bytes, bytes).map(|part| Taint { bytes: part, error: t.error.clone(), by: t.by }));
        }
        *taints = left;
        let gate = &self.rec().gate;
        for _ in taints.len()..before {
            gate.lower(true);
        }
        for _ in before..taints.len() {
            gate.raise(true);
        }
    }

    /// As [`heal`](Self::heal), for launch number `by`, which has ended: what it wrote may have been lost since, with its device or
    /// with one that wrote it later, and a later launch may have failed to write it.
    pub(crate) fn heal_but_lost(&self, bytes: &Range<u64>, by: u64) {
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
