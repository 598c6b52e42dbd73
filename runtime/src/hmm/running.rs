//! What the launches that a device has, and has not finished, use of a block: by page.
//!
//! **Guarantee.** On a device that cannot fault a launch is submitted when everything it uses is there, under the driver lock, and
//! from then on until its point is reached its pages stand here. Whoever has hidden pages from launches under the same lock (see
//! [`zap`](super::zap)), or finds them not valid, therefore knows by one look which launches he has to do with: none comes to them.
//!
//! **Why by page.** Entries and frames stay until a launch has ended, whatever moves. So a launch minds nothing but what changes the
//! bytes of its pages in their frames: a copy *into* a page that it uses. And who copies *from* a page minds only those that write it.
//!
//! **Lock**: `uses` of the segment, a leaf, held for the look; it may be taken with a block's lock held.

use std::sync::Arc;

use super::addr::{BlockId, Mask};
use super::inflight::InFlight;
use super::segment::Segment;
use super::uses::Of;

/// Pages of a block that launches use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) any: Mask,
    pub(crate) written: Mask,
}

/// What launches on device `slot` use of a block.
pub(crate) fn used(seg: &Segment, id: BlockId, slot: usize) -> Used {
    let mut used = Used { any: Mask::EMPTY, written: Mask::EMPTY };
    if !is_active(seg, slot) {
        return used;
    }
    for u in seg.uses.lock().overlapping(Of::Slot(slot), &seg.bytes_of(id), true) {
        let pages = seg.pages_of(&u.bytes).part_of(id);
        if u.launch.is_running() {
            used.any |= pages;
            used.written |= if u.writes { pages } else { Mask::EMPTY };
        }
    }
    used
}

/// A launch on device `slot` that uses, or with `writes` that writes, some of `pages` of a block.
pub(crate) fn user(seg: &Segment, id: BlockId, slot: usize, pages: Mask, writes: bool) -> Option<Arc<InFlight>> {
    if pages.is_empty() || !is_active(seg, slot) {
        return None;
    }
    let uses = seg.uses.lock();
    let bytes = seg.bytes_of(id);
    let mut near = uses.overlapping(Of::Slot(slot), &bytes, !writes);
    let found = near.find(|u| seg.pages_of(&u.bytes).part_of(id).meets(pages) && u.launch.is_running());
    found.map(|u| Arc::clone(&u.launch))
}

/// Whether any launch that was asked for has the segment there. Counted before a launch is submitted.
fn is_active(seg: &Segment, slot: usize) -> bool {
    seg.rec().view[slot].active.load(std::sync::atomic::Ordering::Acquire) > 0
}
