//! Pages of one block that nobody else may move, map or unmap: what every change of the space itself begins with.
//!
//! **Guarantee.** While a [`Lease`] lives its pages are `busy`: faults on them are parked, migrations skip them, and a launch that
//! was submitted before and may touch one of them has ended. When it is dropped, whoever waited goes on.
//!
//! **Waiting.** For other batches, and for launches over these pages, with nothing held. One block at a time.

use std::sync::Arc;
use std::time::Duration;

use super::addr::{BlockId, Mask, PAGE, Span};
use super::inflight::InFlight;
use super::lock::Free;
use super::migrate;
use super::segment::Segment;
use super::uses::Of;

/// Pages that are ours. See the module.
pub(crate) struct Lease {
    seg: Arc<Segment>,
    pub(crate) span: Span,
}

impl Lease {
    /// Takes pages `mask` of a block, widened to whole grains of every device that has addresses for the segment: entries are for
    /// whole grains. Devices of strangers do not widen what is waited for.
    pub(crate) fn take(free: &mut Free, seg: &Arc<Segment>, id: BlockId, pages: Mask) -> Self {
        let block = seg.claim(id);
        loop {
            let grain = widest(seg);
            let mask = pages.widened(grain);
            // A launch that lacks pages may be waiting for these: it has to end before they are ours.
            while let Some(l) = running(seg, id, mask) {
                l.wait(free, None);
            }
            let blocked = {
                let mut body = block.lock(free);
                if body.busy.meets(mask) {
                    Some(block.epoch())
                } else {
                    body.take(mask);
                    None
                }
            };
            if let Some(epoch) = blocked {
                block.wait_epoch(epoch, Some(Duration::from_millis(10)));
                continue;
            }
            let lease = Self { seg: Arc::clone(seg), span: Span { block: id, mask } };
            // A device that has got addresses meanwhile may have made an entry for more.
            if running(seg, id, mask).is_none() && widest(seg) <= grain {
                return lease;
            }
        }
    }
}

impl Lease {
    /// As [`take`](Self::take), if that needs no waiting.
    pub(crate) fn try_take(free: &mut Free, seg: &Arc<Segment>, id: BlockId, pages: Mask) -> Option<Self> {
        let block = seg.claim(id);
        let grain = widest(seg);
        let mask = pages.widened(grain);
        if running(seg, id, mask).is_some() {
            return None;
        }
        {
            let mut body = block.lock(free);
            if body.busy.meets(mask) {
                return None;
            }
            body.take(mask);
        }
        let lease = Self { seg: Arc::clone(seg), span: Span { block: id, mask } };
        (running(seg, id, mask).is_none() && widest(seg) <= grain).then_some(lease)
    }
}

/// Pages of the largest grain of the devices that have addresses for the segment.
fn widest(seg: &Segment) -> usize {
    let devices = seg.space().devices();
    let own = devices.iter().filter(|m| seg.view(m.slot()).is_some());
    own.map(|m| m.rec().pages_per_grain()).max().unwrap_or(1)
}

impl Drop for Lease {
    fn drop(&mut self) {
        migrate::end_busy(self.seg.space(), &mut Free::at_entry(), self.span);
    }
}

/// A launch that some device has, and has not finished, on bytes of these pages.
fn running(seg: &Segment, id: BlockId, mask: Mask) -> Option<Arc<InFlight>> {
    let uses = seg.uses.lock();
    mask.runs().find_map(|r| {
        let bytes = seg.view_offset(id, r.start)..seg.view_offset(id, r.start) + r.len() as u64 * PAGE;
        let found = uses.overlapping(Of::Any, &bytes, true).find(|u| u.launch.is_running());
        found.map(|u| Arc::clone(&u.launch))
    })
}
