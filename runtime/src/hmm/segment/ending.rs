//! How a segment ends.
//!
//! **Guarantee.** A segment ends when its last handle is dropped, and never on a thread that runs a kernel. From then on its devices know
//! that memory is coming back, however long that takes. **Locks:** those of [`Space::retire`](super::super::space::Space::retire).

use std::sync::Arc;

use super::super::mirror::DeviceMirror;
use super::super::{fork, reaper};
use super::{Kind, Segment};

impl Segment {
    /// The devices on which it has addresses.
    pub(crate) fn seats(&self) -> Vec<Arc<DeviceMirror>> {
        self.views.read().iter().map(|(.., m)| Arc::clone(m)).collect()
    }

    /// It is on its way out.
    fn leave(&mut self) {
        self.seats().iter().for_each(|m| m.segment_begins_to_end());
        self.dropped = true;
    }

    /// All of it: what is left behind has nothing to end.
    fn take(&mut self) -> Self {
        let Self { space, slot, first, blocks, bytes, .. } = *self;
        Self {
            space,
            slot,
            first,
            blocks,
            bytes,
            kind: std::mem::replace(&mut self.kind, Kind::Private),
            queued: std::mem::take(&mut self.queued),
            extent: std::mem::take(&mut self.extent),
            views: std::mem::take(&mut self.views),
            uses: std::mem::take(&mut self.uses),
            taints: std::mem::take(&mut self.taints),
            has_taints: std::mem::take(&mut self.has_taints),
            pins: std::mem::take(&mut self.pins),
            has_pins: std::mem::take(&mut self.has_pins),
            claimed: std::mem::take(&mut self.claimed),
            rule: std::mem::take(&mut self.rule),
            hints: std::mem::take(&mut self.hints),
            altered: std::mem::take(&mut self.altered),
            bare: std::mem::take(&mut self.bare),
            remapped: std::mem::take(&mut self.remapped),
            lossy: std::mem::take(&mut self.lossy),
            dropped: std::mem::take(&mut self.dropped),
            sources: std::mem::take(&mut self.sources),
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if fork::forked() {
            return;
        }
        if sterna_hal::in_kernel() {
            // Who wants memory meanwhile is to know that some is coming.
            self.leave();
            let taken = self.take();
            return reaper::end(move || drop(taken));
        }
        if !self.dropped {
            self.leave();
        }
        self.space.retire(self);
        self.sources.end();
    }
}
