//! Migration to a device.

use std::sync::Arc;

use smallvec::SmallVec;
use sterna_hal::{Access, Edit, Target};

use super::super::addr::{BlockId, Mask, PAGE, PAGES_PER_BLOCK, Pages, Span};
use super::super::block::Body;
use super::super::devmem::{Reserved, keep};
use super::super::lock::Free;
use super::super::mirror::DeviceMirror;
use super::super::os;
use super::super::seat::Addresses;
use super::super::segment::Segment;
use super::super::source;
use super::copy::by_grain;
use super::{BATCH_BLOCKS, Batch, Collected, Copying, Core, Home, Moved, release};
use crate::Error;
use crate::stats::Cause;

/// What a device wants pages for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) access: Access,
    /// The tick of the launch or fault: the place in the eviction order that the pages get. Blocks of a lower rank may be
    /// evicted for them.
    pub(crate) rank: u64,
    pub(crate) cause: Cause,
    /// Into the device's own memory: an entry that names host storage will not do.
    pub(crate) own: bool,
}

/// Brings `pages` of `seg` to a device as `want` says, in batches; what is there already stays. Evicts blocks of a rank below
/// `want.rank`, which the blocks that come get.
///
/// Does not wait for other batches' pages: see [`Moved::blocked`].
pub(crate) fn to_device(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
) -> Result<Moved, Error> {
    let (_seat, view) = match mirror.seat(free, seg, pages, want.rank) {
        Ok(seated) => seated,
        // Where addresses are memory, there is room for all of the segment or for none.
        Err(Error::OutOfDeviceMemory { .. }) => {
            return Ok(Moved { full: true, refused: pages.len(), ..Moved::default() });
        }
        Err(e) => return Err(e),
    };
    // Before any frame is taken: what is there already must not make room for the rest.
    keep(free, mirror, seg, pages, want.rank);
    let mut total = Moved::default();
    let mut under_way: Option<Batch<Copying>> = None;
    let step = BATCH_BLOCKS * PAGES_PER_BLOCK as u64;
    let mut at = pages.0.start;
    while at < pages.0.end {
        let end = ((at / step + 1) * step).min(pages.0.end);
        let part = Pages(at..end);
        at = end;
        let per = mirror.pods().pages_per_grain() as u64;
        let access = if moves(mirror, seg, want) { Access::ReadWrite } else { want.access };
        if let Some(blocked) = source::prepare(free, seg, &part.widened(per), access, false)? {
            total.blocked = total.blocked.or(Some(blocked));
            total.refused += part.len();
            continue;
        }
        let grains = missing_grains(free, mirror, seg, &part, want);
        let reserved = Reserved::take(free, mirror, view.at.at, grains, want, under_way.is_none());
        let reserved = match (reserved, under_way.take()) {
            (Err(Error::OutOfDeviceMemory { .. }), Some(b)) => {
                // A launch that is to end, or a fault that goes first, may need what we have busy.
                total.add(b.finalize_and_map(free)?);
                Reserved::take(free, mirror, view.at.at, grains, want, true)
            }
            (reserved, before) => {
                under_way = before;
                reserved
            }
        };
        let mut reserved = match reserved {
            Ok(r) => r,
            Err(Error::OutOfDeviceMemory { .. }) => {
                // What fits goes; one block at a time finds out how much that is.
                total.add(trickle(free, mirror, seg, &part, want)?);
                continue;
            }
            Err(e) => return Err(e),
        };
        let batch = collect(free, (mirror, view), seg, &part, want, &mut reserved);
        let batch = batch.start(free)?;
        if let Some(before) = under_way.replace(batch) {
            total.add(before.finalize_and_map(free)?);
        }
    }
    if let Some(b) = under_way {
        total.add(b.finalize_and_map(free)?);
    }
    Ok(total)
}

/// [`to_device`] block by block, until there is no room.
fn trickle(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
) -> Result<Moved, Error> {
    let (_seat, view) = mirror.seat(free, seg, pages, want.rank)?;
    let mut total = Moved::default();
    for (id, mask) in pages.blocks() {
        let part = pages_of(id, mask);
        let grains = missing_grains(free, mirror, seg, &part, want);
        match Reserved::take(free, mirror, view.at.at, grains, want, true) {
            Ok(mut reserved) => {
                let batch = collect(free, (mirror, view), seg, &part, want, &mut reserved);
                total.add(batch.start(free)?.finalize_and_map(free)?);
            }
            Err(Error::OutOfDeviceMemory { .. }) => {
                total.full = true;
                total.refused += part.len();
            }
            Err(e) => return Err(e),
        }
    }
    Ok(total)
}

fn pages_of(id: BlockId, mask: Mask) -> Pages {
    let first = id.first_page().0;
    let (a, b) = mask.runs().fold((PAGES_PER_BLOCK, 0), |(a, b), r| (a.min(r.start), b.max(r.end)));
    Pages(first + a.min(b) as u64..first + b as u64)
}

/// Whether the device gets the pages for itself: to write them, or by a move to a coherent device, where the host uses them too.
/// What is only read otherwise is a copy beside the host's, which survives the device.
fn moves(mirror: &DeviceMirror, seg: &Segment, want: Want) -> bool {
    want.access.writes() || want.own && mirror.pods().is_coherent() && seg.migrates()
}

/// Pages of a block that have to change for `want`, by whole grains.
fn needy(body: &Body, slot: usize, pages: Mask, want: Want, per: usize) -> Mask {
    let dev = &body.dev[slot];
    let ready = if want.access.writes() { dev.owned() } else { dev.readable() };
    let ready = if want.own { ready & dev.valid } else { ready };
    (pages & !ready).widened(per)
}

/// How many grains of device memory the pages lack. A look without commitment, so that frames are taken before any lock.
fn missing_grains(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages, want: Want) -> u32 {
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    let mut n = 0;
    for (id, mask) in pages.blocks() {
        let body = seg.claim(id).lock(free);
        let fix = needy(&body, slot, mask, want, per);
        n += (0..PAGES_PER_BLOCK / per).filter(|g| body.dev[slot].frames[*g] == 0 && fix.has(g * per)).count() as u32;
    }
    n
}

/// Marks the pages that can move and gives them frames.
fn collect(
    free: &mut Free,
    (mirror, view): (&Arc<DeviceMirror>, Addresses),
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
    reserved: &mut Reserved,
) -> Batch<Collected> {
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    let Want { access, rank, cause, .. } = want;
    let mut spans = Vec::new();
    let mut result = Moved::default();
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        let mut body = block.lock(free);
        let mut fix = needy(&body, slot, mask, want, per);
        result.resident += u64::from((mask & !fix).count());
        if body.busy.meets(fix) {
            result.blocked = result.blocked.or(Some((id, block.epoch())));
            fix &= !(body.busy & fix).widened(per);
        }
        // Copied by somebody since it was prepared.
        let yet = if moves(mirror, seg, want) { body.unread | body.lent } else { body.unread };
        if yet.meets(fix) {
            result.blocked = result.blocked.or(Some((id, block.epoch())));
            result.refused += u64::from((fix & (yet & fix).widened(per)).count());
            fix &= !(yet & fix).widened(per);
        }
        let mut refuse = |set: Mask, flag: &mut bool| {
            if set.meets(fix) {
                *flag = true;
                let set = (set & fix).widened(per);
                result.refused += u64::from((fix & set).count());
                fix &= !set;
            }
        };
        let elsewhere = body.devices().filter(|d| *d != slot).fold(Mask::EMPTY, |m, d| m | body.dev[d].dirty);
        #[cfg(feature = "planted")]
        let (elsewhere, pinned) = {
            let unless = |defect, mask| if super::super::planted::on(defect) { Mask::EMPTY } else { mask };
            use super::super::planted::{FOREIGN_STOLEN, PINS_IGNORED};
            (unless(&FOREIGN_STOLEN, elsewhere), unless(&PINS_IGNORED, body.kept_from(slot)))
        };
        #[cfg(not(feature = "planted"))]
        let pinned = body.kept_from(slot);
        refuse(elsewhere, &mut result.foreign);
        refuse(pinned, &mut result.pinned);
        refuse(body.denied(access), &mut result.denied);
        if access.reads() {
            refuse(body.lost & mask, &mut result.lost);
            // The rest of a grain comes along, whatever is in it.
            let along = body.lost & fix;
            body.forgive(along);
        }
        for g in 0..PAGES_PER_BLOCK / per {
            if fix.has(g * per) && body.dev[slot].frames[g] == 0 {
                if reserved.left() == 0 {
                    // Somebody took frames of this block away since `missing_grains` looked.
                    result.full = true;
                    fix &= !Mask::range(g * per..(g + 1) * per);
                    continue;
                }
                body.admit(slot);
                let number = (seg.view_offset(id, g * per) - view.from) / (per as u64 * PAGE);
                let frame = reserved.pop(number as u32);
                body.dev[slot].frames[g] = frame + 1;
                mirror.arrivals.came(frame, (id, g as u16));
            }
        }
        if body.dev[slot].has_frames(per) {
            mirror.set_rank(id, &mut body, rank);
        }
        if fix.is_empty() {
            continue;
        }
        body.admit(slot);
        body.busy |= fix;
        spans.push(Span { block: id, mask: fix });
    }
    let to = Some((Arc::clone(mirror), view));
    let (home, points, moves) = (Home::SHARED, SmallVec::new(), moves(mirror, seg, want));
    Core { seg: Arc::clone(seg), to, access, moves, spans, home, points, result, cause }.into()
}

impl Batch<Copying> {
    pub(super) fn map_on_device(&mut self, free: &mut Free, m: &Arc<DeviceMirror>, view: Addresses) -> Result<(), Error> {
        let (space, slot, per) = (self.space(), m.slot(), m.pods().pages_per_grain());
        let core = &mut self.core;
        let writes = core.access.writes();
        let mut edits: Vec<Edit> = Vec::new();
        for s in &core.spans {
            let body = space.block(s.block).lock(free);
            let dev = &body.dev[slot];
            // An entry left over that allows stores would let a clean page become dirty without a fault.
            let enough = dev.mapped & !dev.leaving & !dev.alias & if writes { dev.writable } else { !dev.writable };
            for (g, r) in by_grain((s.mask & !enough).widened(per), per) {
                edits.push(Edit {
                    at: view.run(&core.seg, s.block, &r),
                    to: Target::Frames { first: dev.frames[g] - 1 },
                    access: if writes { Access::ReadWrite } else { Access::Read },
                });
            }
        }
        if let Err(e) = m.install(free, &edits) {
            // What stood there before is gone too: the books must not say that it is mapped.
            for s in &core.spans {
                let mut body = space.block(s.block).lock(free);
                m.change(&core.seg, s.block, &mut body, |body| {
                    let dev = &mut body.dev[slot];
                    let gone = s.mask.widened(per);
                    dev.mapped &= !gone;
                    dev.writable &= !gone;
                    dev.alias &= !gone;
                    dev.atomic &= !gone;
                });
            }
            return Err(e);
        }
        let now = os::now_ns();
        for s in std::mem::take(&mut core.spans) {
            let block = space.block(s.block);
            let mut body = block.lock(free);
            if m.is_lost() {
                // Its pages have been written off already; these never left the host.
                drop(body);
                release(space, free, s);
                continue;
            }
            let travelled = !body.dev[slot].valid.covers(s.mask);
            // Copies that others have are left to them where nobody writes.
            let others = body.devices().filter(|d| *d != slot).fold(Mask::EMPTY, |m, d| m | body.dev[d].valid);
            let moves = match core.moves {
                true if writes => s.mask,
                true => s.mask & !others,
                false => Mask::EMPTY,
            };
            m.change(&core.seg, s.block, &mut body, |body| {
                let dev = &mut body.dev[slot];
                dev.valid |= s.mask;
                dev.mapped |= s.mask;
                dev.alias &= !s.mask;
                dev.dirty |= moves;
                if writes {
                    dev.writable |= s.mask;
                } else {
                    // Each was mapped for reading already or has just been.
                    dev.writable &= !s.mask;
                }
            });
            if !moves.is_empty() {
                body.gone |= moves;
                body.lost &= !moves;
                #[cfg(feature = "planted")]
                let kept = super::super::planted::on(&super::super::planted::REPLICA_KEPT_AT_UPGRADE);
                #[cfg(not(feature = "planted"))]
                let kept = false;
                for d in body.devices().filter(|d| *d != slot && !kept) {
                    // Their entries went with the window; only the books are left.
                    body.dev[d].valid &= !moves;
                }
            }
            if travelled {
                body.moves = body.moves.saturating_add(1);
            }
            body.arrive(slot + 1, now);
            debug_assert_eq!(body.check(space.host.faults()), Ok(()));
            drop(body);
            release(space, free, s);
        }
        Ok(())
    }
}
