//! Moving pages to other addresses of their segment (`mremap`): whole granules, without a copy.
//!
//! **Guarantee.** The bytes of the old place are those of the new one, wherever they are: in storage, which the window shows at
//! the new place, or in device memory, whose frames go along. What was at the new place is gone. No side uses the old place any
//! more when the call returns. The two places exchange their storage, so that a segment always has its own.
//!
//! **Order.** Both places are leased; devices lose their entries; the window's new mapping is made and registered, and only then
//! do the books say what is there: a touch in between finds *busy*.
//!
//! A device whose grain is larger than a granule gives the pages back first: a frame cannot be cut. So does one whose frames
//! belong to addresses.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sterna_hal::Access;

use super::addr::{BlockId, GRANULE, Mask, PAGE, PAGES_PER_GRANULE, Page, Pages};
use super::block::Body;
use super::discard;
use super::lease::Lease;
use super::lock::Free;
use super::migrate::{self, Home};
use super::mirror::Action;
use super::segment::{Kind, Segment};
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

/// Of what is known of a granule, what goes along.
struct Granule {
    revoked: Mask,
    gone: Mask,
    lost: Mask,
    hole: Mask,
    unreadable: Mask,
    readonly: Mask,
    storage: u64,
    /// For each device: its slot, `valid`, `dirty`, and its frames.
    devices: Vec<(usize, Mask, Mask, Vec<u32>)>,
}

impl Space {
    /// Moves `from` to `to`, of the same segment and equally long: granules of 64 KiB. What is at `to` is dropped first. With
    /// `keep_old` the old place is empty afterwards and reads as zeros; otherwise it is unmapped.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for ranges that overlap, differ in length, are not whole granules of one segment, or belong to
    /// one that is a file's or imported; [`Fault`](Error::Fault) where `from` is unmapped; [`Pinned`](Error::Pinned); what system
    /// or device refuse. Granules before the failing one have moved.
    ///
    /// # Safety
    /// Nobody uses either place through a reference, and no launch that may fault touches them.
    #[doc(alias = "mremap")]
    pub unsafe fn remap(&'static self, from: &Pages, to: &Pages, keep_old: bool) -> Result<(), Error> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let mut free = super::entry::enter()?;
        let wrong = |what| Err(Error::Invalid { what });
        let uneven = |p: &Pages| *p != p.widened(PAGES_PER_GRANULE as u64);
        let (old, new) = (self.segments_in(from)?, self.segments_in(to)?);
        let [(seg, _)] = &old[..] else { return wrong("remapping pages of several segments") };
        if new.len() != 1 || !Arc::ptr_eq(&new[0].0, seg) {
            return wrong("remapping to another segment");
        }
        if !matches!(seg.kind(), Kind::Private | Kind::Shared) {
            return wrong("remapping imported pages or a file's");
        }
        if from.len() != to.len() || from.intersects(to) || uneven(from) || uneven(to) {
            return wrong("remapping ranges that overlap, differ in length, or are not whole granules");
        }
        super::prot::present(&mut free, seg, from)?;
        // A copy finds its pages by where they are.
        super::source::prepare(&mut free, seg, from, Access::ReadWrite, true)?;
        // Two leases are held at once, which only this does.
        let _one = ONE_AT_A_TIME.lock();
        discard::discard(&mut free, seg, to)?;
        if self.devices().iter().any(|m| m.caps().grain > GRANULE || m.caps().placed) {
            migrate::bring_home(&mut free, seg, from, Home { map: false, ..Home::EXCLUSIVE }, Cause::Mirror)?;
        }
        let n = PAGES_PER_GRANULE as u64;
        for i in (0..from.len()).step_by(PAGES_PER_GRANULE) {
            let place = |p: &Pages| (Page(p.0.start + i).block(), Page(p.0.start + i).in_block() / PAGES_PER_GRANULE);
            let runs = [from, to].map(|p| Pages(p.0.start + i..p.0.start + i + n));
            exchange(&mut free, seg, place(from), place(to), &runs, keep_old)?;
        }
        Ok(())
    }
}

fn mask_of(granule: usize) -> Mask {
    Mask::range(granule * PAGES_PER_GRANULE..(granule + 1) * PAGES_PER_GRANULE)
}

/// Bits of one granule at the place of another.
fn shifted(mask: Mask, from: usize, to: usize) -> Mask {
    let mut out = Mask::EMPTY;
    for r in (mask & mask_of(from)).runs() {
        let at = |p: usize| p - from * PAGES_PER_GRANULE + to * PAGES_PER_GRANULE;
        out |= Mask::range(at(r.start)..at(r.end));
    }
    out
}

type At = (BlockId, usize);

fn exchange(free: &mut Free, seg: &Arc<Segment>, from: At, to: At, runs: &[Pages; 2], keep_old: bool) -> Result<(), Error> {
    let space = seg.space();
    let leases = both(free, seg, from, to);
    for at in [from, to] {
        let body = space.block(at.0).lock(free);
        if (body.pinned | body.held).meets(mask_of(at.1)) {
            return Err(Error::Pinned);
        }
    }
    let window = space.window(free, Action::Invalidate, runs)?;
    seg.note_altered();
    seg.note_remapped();
    let storage = |at: At| space.block(at.0).storage(at.0, at.1 * PAGES_PER_GRANULE);
    let (old, new) = (storage(from), storage(to));
    let watched = |free: &mut Free, at: At| space.block(at.0).lock(free).stores_watched;
    let stores = [watched(free, from), watched(free, to)];
    space.host.remap(space, &runs[1], old, stores[1])?;
    #[cfg(feature = "planted")]
    let forgotten = super::planted::on(&super::planted::REMAP_LEAVES_OLD);
    #[cfg(not(feature = "planted"))]
    let forgotten = false;
    if !forgotten && let Err(e) = space.host.remap(space, &runs[0], new, stores[0]) {
        // As it was: joining mappings needs no new one.
        let _ = space.host.remap(space, &runs[1], new, stores[1]);
        return Err(e);
    }
    let mut body = space.block(from.0).lock(free);
    let granule = take(seg, from, &mut body, old, !keep_old);
    space.block(from.0).set_storage(from.0, from.1, new);
    let done = space.host.protect(space, from.0, &body, mask_of(from.1));
    drop(body);
    let mut body = space.block(to.0).lock(free);
    put(seg, from, to, &mut body, granule);
    let done = done.and(space.host.reenter(space, to.0, &body, mask_of(to.1)));
    debug_assert_eq!(body.check(space.host.faults()), Ok(()));
    drop(body);
    drop(window);
    drop(leases);
    done
}

/// Leases a granule of two blocks; nothing is held while waiting for either.
fn both(free: &mut Free, seg: &Arc<Segment>, from: At, to: At) -> (Lease, Option<Lease>) {
    if from.0 == to.0 {
        return (Lease::take(free, seg, from.0, mask_of(from.1) | mask_of(to.1)), None);
    }
    loop {
        let a = Lease::take(free, seg, from.0, mask_of(from.1));
        if let Some(b) = Lease::try_take(free, seg, to.0, mask_of(to.1)) {
            return (a, Some(b));
        }
        drop(a);
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Takes a granule out of its block's books, and leaves one that was never touched, or none.
fn take(seg: &Segment, at: At, body: &mut Body, storage: u64, unmap: bool) -> Granule {
    let (id, g) = at;
    let (space, mask) = (seg.space(), mask_of(g));
    let mut out = Granule {
        // The new place shows nothing yet: its first touch is noticed.
        revoked: (body.revoked | body.duplicated) & mask,
        gone: body.gone & mask,
        lost: body.lost & mask,
        hole: body.hole & mask,
        unreadable: body.unreadable & mask,
        readonly: body.readonly & mask,
        storage,
        devices: Vec::new(),
    };
    // Both places were mapped anew; at the new one a touch shows what is a coherent device's.
    space.host.forget_frames(space, body, mask);
    for m in space.devices() {
        let (slot, per) = (m.slot(), m.pods().pages_per_grain());
        let (valid, dirty) = (body.dev[slot].valid & mask, body.dev[slot].dirty & mask);
        let mut frames = Vec::new();
        if per <= PAGES_PER_GRANULE {
            for f in &mut body.dev[slot].frames[g * PAGES_PER_GRANULE / per..(g + 1) * PAGES_PER_GRANULE / per] {
                let frame = std::mem::take(f);
                // Nothing is in it, and the other place has its own.
                frames.push(if m.caps().placed { 0 } else { frame });
            }
        }
        m.change(seg, id, body, |body| {
            body.dev[slot].valid &= !mask;
            body.dev[slot].dirty &= !mask;
        });
        if !body.dev[slot].has_frames(per) {
            m.set_rank(id, body, 0);
        }
        out.devices.push((slot, valid, dirty, frames));
    }
    body.revoked &= !mask;
    body.duplicated &= !mask;
    body.gone &= !mask;
    body.lost &= !mask;
    body.hole |= mask;
    (body.full, body.huge) = (false, false);
    if unmap {
        body.unmapped |= mask;
        body.unreadable |= mask;
        body.readonly |= mask;
    } else {
        body.unreadable &= !mask;
        body.readonly &= !mask;
    }
    out
}

/// Enters a granule into the books of a block in which its place is empty.
fn put(seg: &Arc<Segment>, from: At, to: At, body: &mut Body, granule: Granule) {
    let (id, g) = to;
    let (space, mask) = (seg.space(), mask_of(g));
    let moved = |m: Mask| shifted(m, from.1, g);
    space.block(id).set_storage(id, g, granule.storage);
    let body: &mut Body = &mut *body; // one borrow for all its masks
    for (set, with) in [
        (&mut body.revoked, granule.revoked),
        (&mut body.gone, granule.gone),
        (&mut body.lost, granule.lost),
        (&mut body.hole, granule.hole),
        (&mut body.unmapped, Mask::EMPTY),
        (&mut body.unreadable, granule.unreadable),
        (&mut body.readonly, granule.readonly),
    ] {
        *set = (*set & !mask) | moved(with);
    }
    (body.full, body.huge) = (false, false);
    for (slot, valid, dirty, frames) in granule.devices {
        let Some(m) = space.device(slot) else { continue };
        let per = m.pods().pages_per_grain();
        body.admit(slot);
        for (i, f) in frames.iter().enumerate().filter(|(_, f)| **f != 0) {
            let grain = g * PAGES_PER_GRANULE / per + i;
            body.dev[slot].frames[grain] = *f;
            m.arrivals.came(*f - 1, (id, grain as u16));
        }
        m.change(seg, id, body, |body| {
            body.dev[slot].valid |= moved(valid);
            body.dev[slot].dirty |= moved(dirty);
        });
        if body.dev[slot].rank == 0 && body.dev[slot].has_frames(per) {
            m.set_rank(id, body, space.tick());
        }
    }
}

/// The window over a segment that is going away shows its own storage again.
pub(crate) fn straighten(space: &Space, seg: &Segment) -> Result<(), Error> {
    let pages = seg.offset() / PAGE..seg.offset() / PAGE + u64::from(seg.blocks()) * super::addr::BLOCK / PAGE;
    space.host.remap(space, &Pages(pages), seg.offset(), false)
}
