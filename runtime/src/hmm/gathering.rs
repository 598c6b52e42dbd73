//! Launches that gather what they need on a device, by their numbers.
//!
//! **Guarantee.** What a launch has gathered before it is submitted is taken away by earlier launches only. So the earliest of those that
//! gather at the same time gets all that the others and nobody has, or waits for launches that have been submitted, which end; then
//! it is submitted itself, and the next is the earliest. Faults are no launches: a device that has them takes what it must, and a
//! launch that lacks something is submitted all the same.
//!
//! **States.** A launch gathers from [`gather`](DeviceMirror::gather) until the value is dropped, once it has been submitted (from then on
//! its uses keep its pages) or refused.
//!
//! **Lock**: a mutex, a leaf.

use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::addr::{BlockId, Mask, Pages};
use super::inflight::Touch;
use super::mirror::DeviceMirror;

/// Who gathers on a device: numbers, and pages of the arena.
#[derive(Debug, Default)]
pub(crate) struct Gathering(Mutex<Vec<(u64, SmallVec<[Pages; 4]>)>>);

impl Gathering {
    /// The pages of a block that a request numbered `number` leaves alone: its own, and those of earlier launches.
    pub(crate) fn kept(&self, number: u64, id: BlockId) -> Mask {
        let list = self.0.lock();
        let kept = list.iter().filter(|(n, _)| *n <= number).flat_map(|(_, pages)| pages);
        kept.fold(Mask::EMPTY, |m, p| m | p.part_of(id))
    }

    /// Whether `pages` hold something that a request numbered `number` leaves alone.
    pub(crate) fn is_kept(&self, number: u64, pages: &Pages) -> bool {
        self.0.lock().iter().any(|(n, list)| *n <= number && list.iter().any(|p| p.intersects(pages)))
    }

    /// Whether `number` is a launch that gathers.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.0.lock().iter().any(|(n, _)| *n == number)
    }

    /// Whether an earlier one gathers.
    pub(crate) fn is_behind(&self, number: u64) -> bool {
        self.0.lock().iter().any(|(n, _)| *n < number)
    }
}

/// A launch gathers while this lives.
#[derive(Debug)]
pub(crate) struct Gathers {
    mirror: Arc<DeviceMirror>,
    number: u64,
}

impl DeviceMirror {
    /// A launch numbered `number`, a tick of the space, begins to gather what it touches. Its requests for memory have the number as
    /// their rank.
    pub(crate) fn gather<'t>(self: &Arc<Self>, number: u64, touches: impl IntoIterator<Item = &'t Touch>) -> Gathers {
        let per = self.rec().pages_per_grain() as u64;
        let pages = |t: &Touch| t.seg.pages_of(&t.bytes).widened(per);
        self.gathering.0.lock().push((number, touches.into_iter().map(pages).collect()));
        Gathers { mirror: Arc::clone(self), number }
    }
}

impl Drop for Gathers {
    fn drop(&mut self) {
        self.mirror.gathering.0.lock().retain(|(n, _)| *n != self.number);
    }
}
