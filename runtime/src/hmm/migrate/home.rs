//! Migration to the host.

use std::sync::Arc;
use std::time::Duration;

use sterna_host::room::Grant;

use smallvec::SmallVec;
use sterna_hal::Access;

use super::super::addr::{BlockId, Mask, PAGE, PAGES_PER_BLOCK, Pages, Span};
use super::super::block::{Block, Body};
use super::super::devmem::push_frame;
use super::super::host::coherent::resident;
use super::super::lock::Free;
use super::super::mirror::DeviceMirror;
use super::super::os;
use super::super::segment::Segment;
use super::super::source::{self, How};
use super::super::space::Space;
use super::{Batch, BatchState, Collected, Copying, Home, Moved, Pace, end_busy};
use crate::Error;
use crate::stats::Cause;

/// Brings the bytes of `pages` home, as `home` says.
pub(crate) fn bring_home(
    free: &mut Free,
    seg: &Arc<Segment>,
    pages: &Pages,
    home: Home,
    cause: Cause,
) -> Result<Moved, Error> {
    bring_home_paced(free, seg, pages, home, cause, Pace::ALL).map(|(moved, _)| moved)
}

/// As [`bring_home`], at this pace; says also up to which page it went.
pub(crate) fn bring_home_paced(
    free: &mut Free,
    seg: &Arc<Segment>,
    pages: &Pages,
    home: Home,
    cause: Cause,
    pace: Pace<'_>,
) -> Result<(Moved, u64), Error> {
    let mut total = Moved::default();
    // Each with the memory that was granted for it.
    let mut under_way: Option<(Batch<Copying>, Grant)> = None;
    let step = pace.blocks * PAGES_PER_BLOCK as u64;
    let mut at = pages.0.start;
    while at < pages.0.end && (at == pages.0.start || (pace.go_on)()) {
        let end = ((at / step + 1) * step).min(pages.0.end);
        let part = Pages(at..end);
        // Who maps pages on the host lets it write them.
        if home.map
            && let Some(blocked) =
                source::fetch_for(free, seg, &part, Access::ReadWrite, How { wait: home.wait, asks: home.asks })?
        {
            total.blocked = total.blocked.or(Some(blocked));
            at = end;
            continue;
        }
        let (batch, storage) = collect_home(free, seg, &part, home, cause);
        // The batch puts back what it took.
        let granted = home.asks.for_storage(storage)?;
        let blocked = batch.core.result.blocked;
        let batch = batch.start(free)?;
        if let Some((before, _granted)) = under_way.replace((batch, granted)) {
            total.add(before.finalize_and_map(free)?);
        }
        if home.wait
            && let Some((id, epoch)) = blocked
        {
            // Nothing of ours may be busy while we wait for somebody else.
            if let Some((b, _granted)) = under_way.take() {
                total.add(b.finalize_and_map(free)?);
            }
            seg.space().block(id).wait_epoch(epoch, Some(Duration::from_millis(10)));
            continue; // the same part again: what has come is skipped
        }
        at = end;
    }
    if let Some((b, _granted)) = under_way {
        total.add(b.finalize_and_map(free)?);
    }
    if home.wait {
        total.blocked = None;
    }
    Ok((total, at))
}

/// The pages that are to come, busy from now on, and for how many bytes of them the host has no storage yet.
fn collect_home(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, home: Home, cause: Cause) -> (Batch<Collected>, u64) {
    let space = seg.space();
    let devices = grains(space);
    let mut spans = Vec::new();
    let mut result = Moved::default();
    let mut storage = 0;
    for (id, mask) in pages.blocks() {
        let block: &Block = space.block(id);
        if block.segment().is_none() {
            result.resident += u64::from(mask.count());
            continue; // never left
        }
        let mut body = block.lock(free);
        result.lost |= body.lost.meets(mask);
        let mut fix = taken(&devices, &body, mask, home);
        if home.map && space.host.faults() {
            let kept = if home.duplicates(&body) { Mask::EMPTY } else { valid_anywhere(&body, home) };
            fix |= mask & block.limit() & body.revoked & !body.lost & !kept;
            if home.exclusive_from.is_some() && !home.duplicates(&body) {
                fix |= mask & body.duplicated; // replicas or none: stores are welcome from now on
            }
            fix &= !body.unread & !body.lent;
        }
        let there = resident(space, &body);
        if home.leave_coherent {
            fix &= !(there & !body.exclusive(None));
        }
        let held = there & body.held & !body.exclusive(None) & fix;
        if !held.is_empty() {
            // A pin keeps them there: with the whole grain, whose entry stands or falls with them.
            let widest = devices.iter().map(|g| g.per).max().unwrap_or(1);
            let held = held.widened(widest) & fix;
            result.refused += u64::from(held.count());
            result.pinned = true;
            fix &= !held;
        }
        if let Some(grain) = home.frees_on.and_then(|slot| devices.iter().find(|g| g.slot == slot)) {
            // A launch has copies of its own there: until it has ended.
            fix &= !body.dev[grain.slot].private.widened(grain.per);
        }
        if body.busy.meets(fix) {
            result.blocked = result.blocked.or(Some((id, block.epoch())));
            // An entry is removed by whoever has the whole grain of it.
            let per = home.frees_on.and_then(|slot| devices.iter().find(|g| g.slot == slot)).map_or(1, |g| g.per);
            fix &= !(body.busy & fix).widened(per);
        }
        result.resident += u64::from((mask & !fix).count());
        let frames_only =
            fix.is_empty() && home.frees_on.is_some_and(|s| body.dev[s].has_frames(space.slots[s].pages_per_grain()));
        if frames_only
            && body.busy.is_empty()
            && let Some(m) = home.frees_on.and_then(|s| space.device(s))
        {
            result.released += free_frames(&m, id, &mut body, Mask::EMPTY);
        }
        if fix.is_empty() {
            continue;
        }
        body.take(fix);
        // Pages that are mapped at once get storage, whether bytes come or not.
        let filled = if home.map { fix } else { fix & body.gone };
        storage += u64::from((filled & body.hole).count()) * PAGE;
        spans.push(Span { block: id, mask: fix });
    }
    let (to, access, points) = (None, Access::Read, SmallVec::new());
    let made = Vec::new();
    (BatchState { seg: Arc::clone(seg), to, access, moves: false, spans, made, home, points, result, cause }.into(), storage)
}

/// How a device maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grain {
    slot: usize,
    /// Pages.
    per: usize,
    /// Its entries stay when pages come home.
    rigid: bool,
}

pub(crate) type Grains = SmallVec<[Grain; 4]>;

pub(crate) fn grains(space: &Space) -> Grains {
    let grain = |m: &Arc<DeviceMirror>| Grain { slot: m.slot(), per: m.rec().pages_per_grain(), rigid: m.is_rigid() };
    space.devices().iter().map(grain).collect()
}

/// What devices lose for pages `mask` to come home as `home` says: entries go by whole grains, where they go.
pub(crate) fn taken(devices: &Grains, body: &Body, mask: Mask, home: Home) -> Mask {
    let concerned = devices.iter().filter(|g| home.frees_on.is_none_or(|only| only == g.slot));
    concerned.fold(Mask::EMPTY, |taken, &Grain { slot, per, rigid }| {
        let dev = &body.dev[slot];
        let ends = home.ends_on(slot, body);
        if rigid && home.frees_on.is_none() {
            let named = if ends { dev.alias | dev.atomic } else { dev.atomic };
            let all = if ends { dev.valid } else { Mask::EMPTY };
            return taken | (mask & (dev.dirty | all)) | (mask & named).widened(per) & (dev.valid | dev.mapped);
        }
        let all = if ends { dev.valid | dev.mapped } else { Mask::EMPTY };
        // What a launch has a copy of stays, entry and all.
        let own = if rigid { Mask::EMPTY } else { dev.private.widened(per) };
        taken | (mask & (dev.dirty | dev.atomic | all)).widened(per) & (dev.valid | dev.mapped) & !own
    })
}

/// Pages that would still be valid on some device after `home`.
fn valid_anywhere(body: &Body, home: Home) -> Mask {
    body.devices().filter(|d| !home.ends_on(*d, body)).fold(Mask::EMPTY, |m, d| m | body.dev[d].valid)
}

impl Batch<Copying> {
    pub(super) fn commit_home(&mut self, free: &mut Free) {
        let space = self.space();
        let core = &mut self.core;
        let devices = space.devices();
        for s in std::mem::take(&mut core.spans) {
            let block = space.block(s.block);
            let mut body = block.lock(free);
            // What the window shows in a device's memory it will show in the host's: no copy may be beside that.
            let framed = body.framed & s.mask;
            for m in &devices {
                let (slot, home) = (m.slot(), core.home);
                m.change(&core.seg, s.block, &mut body, |body| {
                    let ends = home.ends_on(slot, body);
                    body.commit_home(slot, s.mask, ends);
                });
            }
            // Before the frames are anybody's again.
            let come = framed & !body.gone;
            space.host.unframe(space, (s.block, block), &mut body, come);
            if let Some(m) = core.home.frees_on.and_then(|slot| devices.iter().find(|m| m.slot() == slot)) {
                core.result.released += free_frames(m, s.block, &mut body, s.mask);
            }
            body.note_full();
            if core.home.frees_on.is_none() {
                // Eviction brings pages home that the host has not asked for: they have no slice there.
                body.arrive(0, os::now_ns());
            }
            let replicated = body.replicated();
            let map = core.home.map && (core.home.duplicates(&body) || !replicated.meets(s.mask));
            // What was written off meanwhile has not come: its device was lost under this batch.
            core.result.lost |= body.lost.meets(s.mask);
            let come = Span { block: s.block, mask: s.mask & !body.gone & !body.unread & !body.lent };
            if map && core.home.duplicates(&body) {
                let duplicated = come.mask & replicated;
                body.duplicate(duplicated);
            } else if map && body.duplicated.meets(come.mask) {
                let mask = come.mask & body.duplicated;
                space.host.admit_stores(space, &mut body, Span { mask, ..come });
            }
            if map && !come.mask.is_empty() {
                space.host.restore(space, block, &mut body, come);
            }
            debug_assert_eq!(body.check(space.host.faults()), Ok(()));
            drop(body);
            end_busy(space, free, s);
        }
    }
}

/// Frees the frames of a block's grains that hold nothing valid, are not mapped, and belong to no batch but the one that has
/// `mine` busy: another batch may be copying into its frames.
pub(crate) fn free_frames(m: &DeviceMirror, id: BlockId, body: &mut Body, mine: Mask) -> u32 {
    let (slot, per) = (m.slot(), m.rec().pages_per_grain());
    let mut frames = Vec::new();
    let mut n = 0;
    for g in 0..PAGES_PER_BLOCK / per {
        let pages = Mask::range(g * per..(g + 1) * per);
        let others = body.busy & !mine;
        let dev = &body.dev[slot];
        if !others.meets(pages)
            && !(dev.valid | dev.mapped | dev.private).meets(pages)
            && let Some(frame) = body.take_frame(slot, g)
        {
            push_frame(&mut frames, frame);
            n += 1;
        }
    }
    if !body.dev[slot].has_frames(per) {
        m.set_rank(id, body, 0);
    }
    // SAFETY: taken out of the block's table just now; no entry names them.
    unsafe { m.device().free(&frames) };
    #[cfg(feature = "planted")]
    if super::super::planted::on(&super::super::planted::FREED_TWICE) {
        // SAFETY: none: this is the defect.
        unsafe { m.device().free(&frames) };
    }
    n
}
