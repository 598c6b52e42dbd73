//! Migration to a device.
//!
//! **By grain or by page.** A device that can fault gets whole grains: an entry stands for all that is in its grain. On one that
//! cannot, launches say what they use, so that pages are filled one by one, and an entry is for a whole grain of frames whether all
//! of it is valid or not. Where a grain has an entry only the pages that are wanted come. Where it has none, whoever makes it has
//! every page of the grain that can come along; what cannot (a guard keeps it at home, another device alone has it, it was lost) stays
//! where it is, and its place in the frame is cleared, since frames come with somebody's old bytes. An entry is made by one batch at
//! a time: it has pages of the grain busy, and another that would make it, or remove it, has to wait for those.
//!
//! **A page that a launch uses is not copied into:** where its bytes in the frame are out of date, those launches are waited for, before
//! anything is busy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use sterna_hal::{Access, Edit, Target};

use super::super::addr::{BlockId, Mask, PAGE, PAGES_PER_BLOCK, Pages, Span};
use super::super::block::{Block, Body, Entries};
use super::super::devmem::{Reserved, set_ranks};
use super::super::inflight::InFlight;
use super::super::lock::Free;
use super::super::mirror::DeviceMirror;
use super::super::os;
use super::super::running;
use super::super::seat::Addresses;
use super::super::segment::Segment;
use super::super::source::{self, How};
use super::super::space::Space;
use super::copy::by_grain;
use super::{Asks, Batch, BatchState, Collected, Copying, Home, Moved, Pace, end_busy};
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

impl Want {
    /// Whether it asks for memory. A kernel's touch cannot be refused: the kernel could be told nothing.
    pub(crate) fn asks(&self) -> Asks {
        if self.cause == Cause::DeviceFault { Asks::Not } else { Asks::Patiently }
    }

    /// How pages are made fit for it.
    pub(crate) fn how(&self) -> How {
        How { wait: false, asks: self.asks() }
    }
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
    to_device_paced(free, mirror, seg, pages, want, Pace::ALL).map(|(moved, _)| moved)
}

/// As [`to_device`], at this pace; says also up to which page it went.
pub(crate) fn to_device_paced(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
    pace: Pace<'_>,
) -> Result<(Moved, u64), Error> {
    let (_seat, view) = match mirror.seat(free, seg, pages, want.rank) {
        Ok(seated) => seated,
        // Where addresses are memory, there is room for all of the segment or for none.
        Err(Error::OutOfDeviceMemory { .. }) => {
            return Ok((Moved { full: true, refused: pages.len(), ..Moved::default() }, pages.0.end));
        }
        Err(e) => return Err(e),
    };
    // Before any frame is taken: what is there already must not make room for the rest.
    set_ranks(free, mirror, seg, pages, want.rank);
    let mut total = Moved::default();
    let mut under_way: Option<Batch<Copying>> = None;
    let step = pace.blocks * PAGES_PER_BLOCK as u64;
    let mut at = pages.0.start;
    while at < pages.0.end && (at == pages.0.start || (pace.go_on)()) {
        let end = ((at / step + 1) * step).min(pages.0.end);
        let part = Pages(at..end);
        at = end;
        let per = mirror.rec().pages_per_grain() as u64;
        let access = if moves(mirror, seg, want) { Access::ReadWrite } else { want.access };
        if let Some(blocked) = source::fetch_for(free, seg, &part.widened(per), access, want.how())? {
            total.blocked = total.blocked.or(Some(blocked));
            total.refused += part.len();
            continue;
        }
        while let Some(launch) = user(free, mirror, seg, &part, want) {
            // Nothing of ours is busy while we wait for a kernel.
            if let Some(b) = under_way.take() {
                total.add(b.finalize_and_map(free)?);
            }
            launch.wait(free, None);
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
    Ok((total, at))
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
        let part = Span { block: id, mask }.hull();
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

/// Whether the device gets the pages for itself: to write them, or by a move to a coherent device, where the host uses them too.
/// What is only read otherwise is a copy beside the host's, which survives the device.
fn moves(mirror: &DeviceMirror, seg: &Segment, want: Want) -> bool {
    want.access.writes() || want.own && mirror.rec().is_coherent() && seg.migrates()
}

/// Pages of a block that have to change for `want`: by whole grains, but where a device that cannot fault has an entry already.
fn needy(body: &Body, mirror: &DeviceMirror, pages: Mask, want: Want) -> Mask {
    let per = mirror.rec().pages_per_grain();
    let dev = &body.dev[mirror.slot()];
    let ready = if want.access.writes() { dev.owned() } else { dev.readable() };
    let ready = if want.own { ready & dev.valid } else { ready };
    let lacks = pages & !ready;
    if mirror.is_rigid() { lacks | (lacks & !dev.framed()).widened(per) } else { lacks.widened(per) }
}

/// A launch on a device that cannot fault which uses pages whose bytes are to be copied in. A hint does not wait for it.
fn user(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages, want: Want) -> Option<Arc<InFlight>> {
    if !mirror.is_rigid()
        || want.cause == Cause::Prefetch
        || seg.rec().view[mirror.slot()].active.load(Ordering::Acquire) == 0
    {
        return None;
    }
    pages.blocks().find_map(|(id, mask)| {
        let stale = {
            let body = seg.claim(id).lock(free);
            needy(&body, mirror, mask, want) & !body.dev[mirror.slot()].valid
        };
        running::user(seg, id, mirror.slot(), stale, false)
    })
}

/// How many grains of device memory the pages lack. A look without commitment, so that frames are taken before any lock.
fn missing_grains(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages, want: Want) -> u32 {
    let (slot, per) = (mirror.slot(), mirror.rec().pages_per_grain());
    let mut n = 0;
    for (id, mask) in pages.blocks() {
        let body = seg.claim(id).lock(free);
        let fix = needy(&body, mirror, mask, want);
        let lacks = |g: &usize| body.dev[slot].frames[*g] == 0 && fix.meets(Mask::range(g * per..(g + 1) * per));
        n += (0..PAGES_PER_BLOCK / per).filter(lacks).count() as u32;
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
    let (slot, per) = (mirror.slot(), mirror.rec().pages_per_grain());
    let Want { access, rank, cause, .. } = want;
    let (mut spans, mut made) = (Vec::new(), Vec::new());
    let mut result = Moved::default();
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        let mut body = block.lock(free);
        let mut part = Part { asked: mask, fix: needy(&body, mirror, mask, want), whole: Mask::FULL, per };
        if mirror.is_rigid() {
            part.whole = (part.fix & !body.dev[slot].framed()).widened(per);
        }
        result.resident += u64::from((mask & !part.fix).count());
        choose(&mut part, &body, mirror, seg, want, &mut result, (id, block));
        let fix = &mut part.fix;
        if access.reads() && !mirror.is_rigid() {
            // The rest of a grain comes along, whatever is in it.
            let along = body.lost & *fix;
            body.forgive(along);
        }
        for g in 0..PAGES_PER_BLOCK / per {
            let grain = Mask::range(g * per..(g + 1) * per);
            if fix.meets(grain) && body.dev[slot].frames[g] == 0 {
                if reserved.spare() == 0 {
                    // Somebody took frames of this block away since `missing_grains` looked: whether there is room is not known.
                    result.blocked = result.blocked.or(Some((id, block.epoch())));
                    *fix &= !grain;
                    continue;
                }
                body.admit(slot);
                let number = (seg.view_offset(id, g * per) - view.from) / (per as u64 * PAGE);
                let frame = reserved.pop(number as u32);
                body.give_frame(slot, g, frame);
                mirror.arrivals.came(frame, (id, g as u16));
            }
        }
        if body.dev[slot].has_frames(per) {
            mirror.set_rank(id, &mut body, rank);
        }
        let fix = part.fix;
        if fix.is_empty() {
            continue;
        }
        body.admit(slot);
        body.take(fix);
        spans.push(Span { block: id, mask: fix });
        if mirror.is_rigid() {
            made.push(Span { block: id, mask: (fix & part.whole).widened(per) });
        }
    }
    let to = Some((Arc::clone(mirror), view));
    let (home, points, moves) = (Home::SHARED, SmallVec::new(), moves(mirror, seg, want));
    BatchState { seg: Arc::clone(seg), to, access, moves, spans, made, home, points, result, cause }.into()
}

/// What a batch takes of a block.
struct Part {
    asked: Mask,
    fix: Mask,
    /// Grains that come whole or not at all, or get their entry now.
    whole: Mask,
    per: usize,
}

impl Part {
    /// Leaves pages `set` out, with their grains where those come whole; gives what is out.
    fn drop(&mut self, set: Mask) -> Mask {
        let set = set & self.fix;
        let out = (set | (set & self.whole).widened(self.per)) & self.fix;
        self.fix &= !out;
        out
    }

    /// Leaves pages `set` out, and nothing beside them; gives those that were asked for.
    fn leave(&mut self, set: Mask) -> Mask {
        let out = set & self.fix;
        self.fix &= !out;
        out & self.asked
    }
}

/// Pages that may not come to a device. Where it can use what is kept in place, an entry is of one kind: if it had frames for the rest of such
/// a grain, a launch that needs both would take the one away for the other for ever.
fn kept(body: &Body, mirror: &DeviceMirror) -> Mask {
    let kept = body.kept_from(mirror.slot());
    if mirror.is_rigid() && mirror.may_alias() { kept.widened(mirror.rec().pages_per_grain()) } else { kept }
}

/// Leaves out what cannot move now, and says so.
fn choose(
    part: &mut Part,
    body: &Body,
    mirror: &DeviceMirror,
    seg: &Segment,
    want: Want,
    result: &mut Moved,
    (id, block): (BlockId, &Block),
) {
    let (slot, rigid) = (mirror.slot(), mirror.is_rigid());
    if body.busy.meets(part.fix) {
        result.blocked = result.blocked.or(Some((id, block.epoch())));
        part.drop(body.busy);
    }
    // Copied by somebody since it was prepared.
    let yet = if moves(mirror, seg, want) { body.unread | body.lent } else { body.unread };
    if yet.meets(part.fix) {
        result.blocked = result.blocked.or(Some((id, block.epoch())));
        result.refused += u64::from(part.drop(yet).count());
    }
    if rigid {
        // Nobody copies into what a launch uses. One that came after those which were waited for is waited for next time.
        let used = part.fix & !body.dev[slot].valid & running::used(seg, id, slot).any;
        if !used.is_empty() {
            if want.cause != Cause::Prefetch {
                result.blocked = result.blocked.or(Some((id, block.epoch())));
            }
            result.refused += u64::from(part.drop(used).count());
        }
    }
    let elsewhere = body.devices().filter(|d| *d != slot).fold(Mask::EMPTY, |m, d| m | body.dev[d].dirty);
    #[cfg(feature = "planted")]
    let (elsewhere, pinned) = {
        let unless = |defect, mask| if super::super::planted::on(defect) { Mask::EMPTY } else { mask };
        use super::super::planted::{FOREIGN_STOLEN, PINS_IGNORED};
        (unless(&FOREIGN_STOLEN, elsewhere), unless(&PINS_IGNORED, kept(body, mirror)))
    };
    #[cfg(not(feature = "planted"))]
    let pinned = kept(body, mirror);
    let asked = part.asked;
    let mut refuse = |set: Mask, flag: &mut bool, alone: bool| {
        if set.meets(part.fix) {
            let out = if alone { part.leave(set) } else { part.drop(set) };
            *flag |= !out.is_empty();
            result.refused += u64::from(out.count());
        }
    };
    refuse(elsewhere, &mut result.foreign, rigid);
    refuse(pinned, &mut result.pinned, rigid);
    refuse(body.denied(want.access), &mut result.denied, false);
    if want.access.reads() {
        // Beside what is asked for it does no harm.
        let lost = if rigid { body.lost } else { body.lost & asked };
        refuse(lost, &mut result.lost, rigid);
    }
}

impl Batch<Copying> {
    pub(super) fn map_on_device(&mut self, free: &mut Free, m: &Arc<DeviceMirror>, view: Addresses) -> Result<(), Error> {
        let (space, slot, per) = (self.space(), m.slot(), m.rec().pages_per_grain());
        let core = &mut self.core;
        let writes = core.access.writes();
        if m.is_rigid() {
            // A grain of which no page comes any more gets no entry.
            for e in &mut core.made {
                let coming = core.spans.iter().filter(|s| s.block == e.block).fold(Mask::EMPTY, |m, s| m | s.mask);
                e.mask &= coming.widened(per);
            }
        } else {
            core.made = needing_entries(free, space, slot, &core.spans, writes, per);
        }
        let access = if writes || m.is_rigid() { Access::ReadWrite } else { Access::Read };
        let mut edits: Vec<Edit> = Vec::new();
        for s in &core.made {
            let body = space.block(s.block).lock(free);
            for (g, r) in by_grain(s.mask, per) {
                let to = Target::Frames { first: body.dev[slot].frames[g] - 1 };
                edits.push(Edit { at: view.run(&core.seg, s.block, &r), to, access });
            }
        }
        if let Err(e) = m.install(free, &edits) {
            // What stood there before is gone too: the books must not say that it is mapped.
            for s in &core.made {
                let mut body = space.block(s.block).lock(free);
                m.change(&core.seg, s.block, &mut body, |body| body.entries_gone(slot, s.mask));
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
                end_busy(space, free, s);
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
            let entries = core.made.iter().filter(|e| e.block == s.block).fold(Mask::EMPTY, |m, e| m | e.mask);
            let entries = if m.is_rigid() { Entries::Whole(entries) } else { Entries::Exact };
            m.change(&core.seg, s.block, &mut body, |body| body.commit_out(slot, s.mask, moves, entries, writes));
            if travelled {
                body.travelled();
            }
            body.arrive(slot + 1, now);
            debug_assert_eq!(body.check(space.host.faults()), Ok(()));
            drop(body);
            end_busy(space, free, s);
        }
        Ok(())
    }
}

/// Where a device that can fault needs entries: an entry left over that allows stores would let a clean page become dirty without a
/// fault.
fn needing_entries(free: &mut Free, space: &Space, slot: usize, spans: &[Span], writes: bool, per: usize) -> Vec<Span> {
    let lacks = |s: &Span| {
        let body = space.block(s.block).lock(free);
        let dev = &body.dev[slot];
        let enough = dev.framed() & if writes { dev.writable } else { !dev.writable };
        Span { block: s.block, mask: (s.mask & !enough).widened(per) }
    };
    spans.iter().map(lacks).collect()
}
