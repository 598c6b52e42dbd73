//! Pages of one block that nobody else may move, map or unmap: what every change of the space itself begins with.
//!
//! **Guarantee.** While a [`Lease`] lives its pages are `busy`: faults on them are parked, migrations skip them, and a launch that
//! was submitted before has ended. When it is dropped, whoever waited goes on.
//!
//! **Waiting.** For other batches, and for launches, with nothing held. One block at a time.

use std::sync::Arc;
use std::time::Duration;

use super::addr::{BlockId, Mask, Pages, Span};
use super::lock::Free;
use super::migrate;
use super::segment::{Segment, overlap};

/// Pages that are ours. See the module.
pub(crate) struct Lease {
    seg: Arc<Segment>,
    pub(crate) span: Span,
}

impl Lease {
    /// Takes pages `mask` of a block, widened to whole grains of every device: entries are for whole grains.
    pub(crate) fn take(free: &mut Free, seg: &Arc<Segment>, id: BlockId, mask: Mask) -> Self {
        let mask = mask.widened(widest(seg));
        let block = seg.claim(id);
        loop {
            // A launch that lacks pages may be waiting for these: it has to end before they are ours.
            wait_launches(free, seg, id);
            let blocked = {
                let mut body = block.lock(free);
                if body.busy.meets(mask) {
                    Some(block.epoch())
                } else {
                    body.busy |= mask;
                    None
                }
            };
            if let Some(epoch) = blocked {
                block.wait_epoch(epoch, Some(Duration::from_millis(10)));
                continue;
            }
            let lease = Self { seg: Arc::clone(seg), span: Span { block: id, mask } };
            if running(seg, id).is_none() {
                return lease;
            }
        }
    }
}

impl Lease {
    /// As [`take`](Self::take), if that needs no waiting.
    pub(crate) fn try_take(free: &mut Free, seg: &Arc<Segment>, id: BlockId, mask: Mask) -> Option<Self> {
        let block = seg.claim(id);
        if running(seg, id).is_some() {
            return None;
        }
        let mask = mask.widened(widest(seg));
        {
            let mut body = block.lock(free);
            if body.busy.meets(mask) {
                return None;
            }
            body.busy |= mask;
        }
        let lease = Self { seg: Arc::clone(seg), span: Span { block: id, mask } };
        running(seg, id).is_none().then_some(lease)
    }
}

/// Pages of the largest grain.
fn widest(seg: &Segment) -> usize {
    seg.space().devices().iter().map(|m| m.pods().pages_per_grain()).max().unwrap_or(1)
}

impl Drop for Lease {
    fn drop(&mut self) {
        migrate::release(self.seg.space(), &mut Free::at_entry(), self.span);
    }
}

/// A launch that some device has, and has not finished, on bytes of the block.
fn running(seg: &Segment, id: BlockId) -> Option<Arc<super::inflight::InFlight>> {
    let first = id.first_page().0;
    let pages = Pages(first..first + super::addr::PAGES_PER_BLOCK as u64);
    let start = id.offset() - seg.offset();
    let bytes = start..start + pages.bytes();
    let uses = seg.uses.lock();
    let found = uses.iter().find(|u| overlap(&u.bytes, &bytes) && u.launch.is_submitted() && !u.launch.poll_only());
    found.map(|u| Arc::clone(&u.launch))
}

fn wait_launches(free: &mut Free, seg: &Segment, id: BlockId) {
    while let Some(l) = running(seg, id) {
        l.wait(free, None);
    }
}
