//! Windows of a device: how its entries go away.
//!
//! **Guarantee.** After [`zap_finish`](DeviceMirror::zap_finish) no access of the device goes through an entry that was removed, and
//! the books say so. Until then the books have the entry, marked as *leaving*: a launch that faults asks there, and no launch is
//! submitted on its strength.
//!
//! **States of an entry:** made ([`install`](DeviceMirror::install)), leaving, gone; or *stale*, where a page came home without an edit:
//! then it goes before the next launch that could use it ([`flush_stale`](DeviceMirror::flush_stale)).
//!
//! **A device that cannot fault** has entries for whole grains of its frames, for loads and stores, and what is valid is by page. There
//! a page that moves leaves its entry and its frame where they are: it is *hidden* from launches to come while its batch has it, and
//! not valid afterwards, and no launch is submitted on the strength of an entry alone. So a launch that has been submitted keeps what
//! it was given until its point, and whoever takes a page away waits for those only that write it, since their stores are to be in
//! what is copied. An entry goes when its frame is wanted, when it names host storage, or when the space itself changes; then the
//! launches that use the grain are waited for. Nobody copies into a page that a launch uses: see [`migrate`](super::migrate).
//!
//! **Locks:** a block's, with the driver's inside, for word operations; edits and waits with none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::SmallVec;
use sterna_hal::{Access, DeviceError, Edit, Point, Target};

use super::addr::{BlockId, Mask, PAGE, Page, Pages, Span};
use super::block::DevPages;
use super::extent::overlap;
use super::inflight::InFlight;
use super::lock::Free;
use super::mirror::{Action, DeviceMirror};
use super::park::Pauses;
use super::running;
use super::schedule;
use super::segment::Segment;
use super::uses::{Of, Use};
use crate::Error;

/// Entries that a window removes, between its two passes.
#[derive(Debug, Default)]
pub(crate) struct Zap {
    edits: Vec<Edit>,
    leaving: Vec<(Arc<Segment>, Span)>,
    /// Pages whose entries stay, and which are to be read.
    hidden: Vec<(Arc<Segment>, Span)>,
    after: SmallVec<[Arc<InFlight>; 4]>,
}

impl DeviceMirror {
    /// First pass of a window: marks the entries of `runs` as leaving, so that no launch counts on them. They stay in the books
    /// until they are gone: a launch that faults asks there for entries that name bytes out of date. The launches that may be
    /// using them are noted for devices that cannot fault. With `frees` the frames behind them are wanted, so that no entry stays.
    pub(crate) fn zap_start(&self, free: &mut Free, action: Action, frees: bool, runs: &[Pages]) -> Zap {
        let mut zap = Zap::default();
        for run in runs {
            let Some(seg) = self.space().segment_of(Page(run.0.start).block()) else { continue };
            self.zap_segment(free, action, frees, &seg, run, &mut zap);
        }
        zap
    }

    /// What of `mask` loses its entries, and what keeps them and is hidden.
    fn parts(&self, dev: &DevPages, action: Action, frees: bool, mask: Mask) -> (Mask, Mask) {
        let per = self.rec().pages_per_grain();
        let there = dev.mapped & mask;
        let named = dev.alias | dev.atomic;
        let (gone, hidden) = match action {
            // Pages that come to this device: its own entries may stay, except those that name host storage.
            Action::Migrate { to } if to == Some(self.slot()) => (there & dev.alias, Mask::EMPTY),
            Action::Migrate { .. } if self.is_rigid() && !frees => (there & named, there & !named & dev.valid),
            // A grain of which a part is dropped keeps its entry for what is left.
            Action::Invalidate if self.is_rigid() => {
                let parts = ((dev.valid | dev.private) & dev.mapped & !mask).widened(per) & !named;
                (there & !parts, there & parts & dev.valid)
            }
            _ => (there, Mask::EMPTY),
        };
        let gone = gone.widened(per) & dev.mapped & !self.own(dev, action, mask);
        (gone, hidden & !gone)
    }

    /// Grains that a launch has copies of, on a device that faults, and that stay: nothing in them is anybody else's there, and the
    /// launch would not have its copies back by a fault. Who changes what may be done with a page has waited for the launches on its
    /// grain: one that is about to be submitted finds that its copies have no entry, and has others.
    fn own(&self, dev: &DevPages, action: Action, mask: Mask) -> Mask {
        if self.is_rigid() {
            return Mask::EMPTY; // its entries go by page
        }
        let own = match action {
            Action::Migrate { .. } => dev.private,
            Action::Invalidate => dev.private & !mask,
            Action::Protect | Action::Exclusive { .. } | Action::Release => Mask::EMPTY,
        };
        own.widened(self.rec().pages_per_grain())
    }

    fn zap_segment(&self, free: &mut Free, action: Action, frees: bool, seg: &Arc<Segment>, run: &Pages, zap: &mut Zap) {
        let Some(view) = seg.view(self.slot()) else { return };
        let (edits, first) = (zap.edits.len(), zap.leaving.len());
        for (id, mask) in run.blocks() {
            let block = self.space().block(id);
            let mut body = block.lock(free);
            let (gone, hidden) = self.parts(&body.dev[self.slot()], action, frees, mask);
            #[cfg(feature = "planted")]
            let (gone, hidden) = if super::planted::on(&super::planted::REPLICA_KEPT_AT_UPGRADE) {
                (gone & !body.dev[self.slot()].valid, hidden & !body.dev[self.slot()].valid)
            } else {
                (gone, hidden)
            };
            if (gone | hidden).is_empty() {
                continue;
            }
            self.change(seg, id, &mut body, |body| {
                body.entries_leave(self.slot(), gone, hidden);
            });
            if !hidden.is_empty() {
                zap.hidden.push((Arc::clone(seg), Span { block: id, mask: hidden }));
            }
            if !gone.is_empty() {
                zap.leaving.push((Arc::clone(seg), Span { block: id, mask: gone }));
            }
            for r in gone.runs() {
                zap.edits.push(Edit { at: view.run(seg, id, &r), to: Target::Absent, access: Access::Read });
            }
        }
        if zap.edits.len() == edits {
            return;
        }
        // What moves comes back by a fault where a launch can fault; what is taken away for good does not. Launches on other
        // bytes that lose a page by the way have it brought back, and may be waiting for that.
        if !self.is_rigid() && matches!(action, Action::Migrate { .. } | Action::Exclusive { .. }) {
            return;
        }
        let start = run.0.start * PAGE - seg.offset();
        let bytes = start..start + run.bytes();
        // Entries go by whole grains, and who cannot fault loses what lies beside the run.
        let gone = &zap.leaving[first..];
        let loses = |u: &Use| match self.is_rigid() {
            true => gone.iter().any(|(_, s)| seg.pages_of(&u.bytes).part_of(s.block).meets(s.mask)),
            false => overlap(&u.bytes, &bytes),
        };
        let uses = seg.uses.lock();
        let near = run.widened(self.rec().pages_per_grain() as u64);
        let near = seg.bytes_in(&near);
        let mine = uses.overlapping(Of::Slot(self.slot()), &near, true).filter(|u| u.launch.is_submitted());
        zap.after.extend(mine.filter(|u| loses(u)).map(|u| Arc::clone(&u.launch)));
    }

    /// Second pass: waits for the launches noted and for those that write what is hidden, removes the entries, and waits until the
    /// device has let go.
    pub(crate) fn zap_finish(&self, free: &mut Free, zap: Zap) -> Result<(), Error> {
        #[cfg(feature = "planted")]
        let waits = !super::planted::on(&super::planted::RIGID_NOT_AWAITED);
        #[cfg(not(feature = "planted"))]
        let waits = true;
        if waits {
            for l in &zap.after {
                l.wait(free, None);
            }
            for (seg, s) in &zap.hidden {
                while let Some(l) = running::user(seg, s.block, self.slot(), s.mask, true) {
                    l.wait(free, None);
                }
            }
        }
        #[cfg(feature = "planted")]
        let flush = !super::planted::on(&super::planted::MISSING_FLUSH);
        #[cfg(not(feature = "planted"))]
        let flush = true;
        if flush {
            self.remove(free, &zap.edits)?;
        }
        for (seg, s) in &zap.leaving {
            let mut body = self.space().block(s.block).lock(free);
            self.change(seg, s.block, &mut body, |body| body.entries_gone(self.slot(), s.mask));
        }
        Ok(())
    }

    /// Removes entries; a lost device has none. The books say already that they are gone, and frames behind them will be
    /// reused: a device that keeps refusing cannot be trusted with anything and counts as lost.
    pub(super) fn remove(&self, free: &mut Free, edits: &[Edit]) -> Result<(), Error> {
        const TRIES: usize = 4;
        for left in (0..TRIES).rev() {
            match self.edit(free, edits) {
                Ok(()) => break,
                Err(_) if self.is_lost() => break,
                Err(e) if left == 0 => {
                    let lost = DeviceError::Lost(format!("it does not remove page-table entries: {e}"));
                    return Err(self.noticed(lost));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Makes entries, all or none: what was made of them before one failed is removed again.
    pub(crate) fn install(&self, free: &mut Free, edits: &[Edit]) -> Result<(), Error> {
        self.edit(free, edits).inspect_err(|_| {
            let undo: Vec<Edit> = edits.iter().map(|e| Edit { to: Target::Absent, access: Access::Read, ..*e }).collect();
            // A failure here is a lost device, which the next call says.
            let _ = self.remove(&mut Free::at_entry(), &undo);
        })
    }

    /// Page-table edits, until they are done.
    pub(crate) fn edit(&self, free: &mut Free, edits: &[Edit]) -> Result<(), Error> {
        if edits.is_empty() {
            return Ok(());
        }
        // SAFETY: ranges are views that live as long as their segments; frames are the blocks'; launches that cannot fault
        // have been waited for.
        let point = unsafe { self.device().edit(edits, &[]) }.map_err(|e| self.noticed(e))?;
        self.reach(free, point)
    }

    /// Waits for a point of a copy or an edit, never of a kernel.
    pub(crate) fn reach(&self, _free: &mut Free, point: Point) -> Result<(), Error> {
        schedule::until(|| self.device().reached(point));
        let mut refused = Pauses::default();
        while !self.device().reached(point) {
            match self.device().wait(point, Duration::from_secs(3600)) {
                Ok(_) => {}
                Err(e @ DeviceError::Lost(_)) => return Err(self.noticed(e)),
                // It goes on, whatever keeps this thread from sleeping in the driver.
                Err(_) => refused.pause(None),
            }
        }
        Ok(())
    }

    /// Removes the entries of `seg` that name bytes out of date, so that a launch that faults may run. One that cannot fault is
    /// submitted on the strength of what is valid.
    pub(crate) fn flush_stale(&self, free: &mut Free, seg: &Arc<Segment>) -> Result<(), Error> {
        if self.is_rigid() {
            return Ok(());
        }
        let rec = &seg.rec().view[self.slot()];
        while rec.stale.swap(0, Ordering::AcqRel) != 0 {
            #[cfg(feature = "planted")]
            if super::planted::on(&super::planted::STALE_LEFT) {
                return Ok(());
            }
            if let Some(blocked) = self.flush_once(free, seg)? {
                rec.stale.store(1, Ordering::Release);
                super::migrate::wait_blocked(free, self.space(), blocked);
            }
        }
        Ok(())
    }

    /// One pass over the segment; says which block had stale entries on busy pages, which only their batch may change.
    fn flush_once(&self, free: &mut Free, seg: &Arc<Segment>) -> Result<Option<(BlockId, u32)>, Error> {
        let Some(view) = seg.view(self.slot()) else { return Ok(None) };
        let per = self.rec().pages_per_grain();
        let mut edits = Vec::new();
        let mut spans = Vec::new();
        let mut blocked = None;
        for id in seg.claimed() {
            let block = self.space().block(id);
            let mut body = block.lock(free);
            let dev = &body.dev[self.slot()];
            let stale = (dev.stale() & !dev.private.widened(per)).widened(per);
            if stale.meets(body.busy) {
                blocked = Some((id, block.epoch()));
            }
            let stale = stale & !(stale & body.busy).widened(per);
            if stale.is_empty() {
                continue;
            }
            // Busy until the entries are gone: a page that came back before that would lose its new entry.
            body.take(stale);
            spans.push(Span { block: id, mask: stale });
            self.change(seg, id, &mut body, |body| body.stale_gone(self.slot(), stale));
            for r in stale.runs() {
                edits.push(Edit { at: view.run(seg, id, &r), to: Target::Absent, access: Access::Read });
            }
        }
        let removed = self.remove(free, &edits);
        for s in spans {
            if removed.is_err() {
                let mut body = self.space().block(s.block).lock(free);
                // Nobody knows which are left: as stale ones they are removed by the next that looks.
                self.change(seg, s.block, &mut body, |body| body.stale_left(self.slot(), s.mask));
                seg.rec().view[self.slot()].stale.store(1, Ordering::Release);
            }
            super::migrate::end_busy(self.space(), free, s);
        }
        removed.map(|()| blocked)
    }
}
