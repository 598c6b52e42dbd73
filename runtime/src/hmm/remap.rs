//! Moving pages to other addresses of their segment (`mremap`): whole granules, without a copy.
//!
//! **Guarantee.** The bytes of the old place are those of the new one, wherever they are: in storage, which the window shows at
//! the new place, or in device memory, whose frames go along. What was at the new place is gone. No side uses the old place any
//! more when the call returns. The two places exchange their storage, so that a segment always has its own. A call that fails leaves
//! both places as they were.
//!
//! **Order.** Everything of both places is leased, and nothing there is pinned; devices lose their entries; then granule by granule
//! the window's mappings and the books are exchanged, with what is at both places, so that an exchange undoes an exchange; then the
//! old place gets its permissions; and last, where nothing can fail any more, what is at the old place by now is dropped. A touch in
//! between finds *busy*.
//!
//! A device whose grain is larger than a granule gives the pages back first: a frame cannot be cut. So does one whose frames
//! belong to addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sterna_hal::Access;

use super::addr::{BlockId, GRANULE, Mask, PAGE, PAGES_PER_GRANULE, Page, Pages, Span};
use super::block::{Body, Carried, Permissions};
use super::discard;
use super::lease::Lease;
use super::lock::Free;
use super::migrate::{self, Home};
use super::mirror::Action;
use super::pin;
use super::segment::{Kind, Segment};
use super::source::{self, How};
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

/// Of what is known of a granule, what goes along.
struct Granule {
    pages: Carried,
    storage: u64,
    /// For each device: its slot, `valid`, `dirty`, and its frames.
    devices: Vec<(usize, Mask, Mask, Vec<Option<u32>>)>,
}

impl Space {
    /// Moves `from` to `to`, of the same segment and equally long: granules of 64 KiB. What is at `to` is dropped. With
    /// `keep_old` the old place is empty afterwards and reads as zeros; otherwise it is unmapped.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for ranges that overlap, differ in length, are not whole granules of one segment, or belong to
    /// one that is a file's or imported; [`Fault`](Error::Fault) where `from` is unmapped; [`Pinned`](Error::Pinned) by a guard or a
    /// long pin, or by a short one for more than a second; [`Busy`](Error::Busy) where others change the pages for as long; what
    /// system or device refuse. Nothing has moved then, and nothing was dropped.
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
        // Leases of many blocks are held at once, which only this does.
        let _one = ONE_AT_A_TIME.lock();
        let _leases = lease_both(&mut free, seg, from, to)?;
        exchange(&mut free, seg, from, to, keep_old)
    }
}

/// Why pages cannot be exchanged now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Long,
    Short,
    /// By a launch that has copies of its own.
    Launch,
    Changed,
}

/// Leases both places once nothing keeps pages where they are. Nothing is held while waiting.
fn lease_both(free: &mut Free, seg: &Arc<Segment>, from: &Pages, to: &Pages) -> Result<Vec<Lease>, Error> {
    let whole = seg.space().devices().iter().any(|m| m.caps().grain > GRANULE || m.caps().placed);
    let start = Instant::now();
    loop {
        for place in [from, to] {
            // A copy finds its pages by where they are.
            source::fetch_for(free, seg, place, Access::ReadWrite, How::CALL)?;
            if whole {
                migrate::bring_home(free, seg, place, Home { map: false, ..Home::EXCLUSIVE }, Cause::Mirror)?;
            }
        }
        let leases = all_of(free, seg, from, to);
        let Some(kept) = kept(free, seg, [from, to], whole) else { return Ok(leases) };
        drop(leases);
        match kept {
            Kept::Long => return Err(Error::Pinned),
            Kept::Short if start.elapsed() > pin::BUDGET => return Err(Error::Pinned),
            Kept::Changed if start.elapsed() > pin::BUDGET => return Err(Error::Busy { budget: pin::BUDGET }),
            Kept::Launch => [from, to].into_iter().for_each(|p| migrate::wait_for_borders(free, seg, p, None)),
            Kept::Short | Kept::Changed => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

/// A lease for each block of both places.
fn all_of(free: &mut Free, seg: &Arc<Segment>, from: &Pages, to: &Pages) -> Vec<Lease> {
    let mut masks: BTreeMap<BlockId, Mask> = BTreeMap::new();
    for (id, mask) in from.blocks().chain(to.blocks()) {
        *masks.entry(id).or_default() |= mask;
    }
    'again: loop {
        let mut leases = Vec::with_capacity(masks.len());
        for (id, mask) in &masks {
            match Lease::try_take(free, seg, *id, *mask) {
                Some(lease) => leases.push(lease),
                None => {
                    drop(leases);
                    drop(Lease::take(free, seg, *id, *mask));
                    continue 'again;
                }
            }
        }
        return leases;
    }
}

/// What stands in the way of an exchange of leased pages; `whole`: devices were to give them back first.
fn kept(free: &mut Free, seg: &Segment, places: [&Pages; 2], whole: bool) -> Option<Kept> {
    let space = seg.space();
    let cannot_cut: Vec<usize> =
        space.devices().iter().filter(|m| m.caps().grain > GRANULE || m.caps().placed).map(|m| m.slot()).collect();
    let mut found = None;
    for (id, mask) in places.into_iter().flat_map(Pages::blocks) {
        let body = space.block(id).lock(free);
        if body.pinned.meets(mask) {
            return Some(Kept::Long);
        }
        if body.bordered.meets(mask) {
            found = Some(Kept::Launch);
            continue;
        }
        let there = |slot: &usize| whole && body.dev[*slot].valid.meets(mask);
        if body.held.meets(mask) {
            found = Some(Kept::Short);
        } else if (body.unread | body.lent).meets(mask) || cannot_cut.iter().any(there) {
            found = found.or(Some(Kept::Changed));
        }
    }
    found
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

/// Exchanges two leased places, and drops what was at `to`: all of it or nothing.
fn exchange(free: &mut Free, seg: &Arc<Segment>, from: &Pages, to: &Pages, keep_old: bool) -> Result<(), Error> {
    let space = seg.space();
    let _window = space.invalidate(free, Action::Invalidate, &[from.clone(), to.clone()])?;
    seg.note_altered();
    seg.note_remapped();
    let n = (from.len() as usize) / PAGES_PER_GRANULE;
    let pair = |i: usize| {
        let at = |p: &Pages| {
            let page = Page(p.0.start + (i * PAGES_PER_GRANULE) as u64);
            (page.block(), page.in_block() / PAGES_PER_GRANULE)
        };
        (at(from), at(to))
    };
    let undo = |free: &mut Free, n: usize| {
        for i in (0..n).rev() {
            // As it was: joining mappings needs no new one.
            let _ = swap(free, seg, pair(i));
        }
    };
    for i in 0..n {
        swap(free, seg, pair(i)).inspect_err(|_| undo(free, i))?;
    }
    permit(free, seg, from, keep_old).inspect_err(|_| undo(free, n))?;
    let spans: Vec<Span> = from.blocks().map(|(block, mask)| Span { block, mask }).collect();
    discard::empty(free, seg, &spans);
    Ok(())
}

/// Exchanges two granules: what the window shows, and the books. Doing it again undoes it.
fn swap(free: &mut Free, seg: &Arc<Segment>, (from, to): (At, At)) -> Result<(), Error> {
    map_each_others(free, seg, from, to)?;
    cross(free, seg, from, to);
    enter(free, seg, from, to).inspect_err(|_| {
        if map_each_others(free, seg, from, to).is_ok() {
            cross(free, seg, from, to);
            let _ = enter(free, seg, from, to);
        }
    })
}

/// The window shows at each of two granules the storage of the other.
fn map_each_others(free: &mut Free, seg: &Segment, from: At, to: At) -> Result<(), Error> {
    let space = seg.space();
    let run = |at: At| {
        let first = at.0.first_page().0 + (at.1 * PAGES_PER_GRANULE) as u64;
        Pages(first..first + PAGES_PER_GRANULE as u64)
    };
    let storage = |at: At| space.block(at.0).storage(at.0, at.1 * PAGES_PER_GRANULE);
    let (old, new) = (storage(from), storage(to));
    let mut watched = |at: At| space.block(at.0).lock(free).stores_watched;
    let stores = [watched(from), watched(to)];
    space.host.remap(space, &run(to), old, stores[1])?;
    #[cfg(feature = "planted")]
    let forgotten = super::planted::on(&super::planted::REMAP_LEAVES_OLD);
    #[cfg(not(feature = "planted"))]
    let forgotten = false;
    if !forgotten && let Err(e) = space.host.remap(space, &run(from), new, stores[0]) {
        let _ = space.host.remap(space, &run(to), new, stores[1]);
        let body = space.block(to.0).lock(free);
        let _ = space.host.reenter(space, to.0, &body, mask_of(to.1));
        return Err(e);
    }
    Ok(())
}

/// The books of two granules change places.
fn cross(free: &mut Free, seg: &Arc<Segment>, from: At, to: At) {
    let space = seg.space();
    let storage = |at: At| space.block(at.0).storage(at.0, at.1 * PAGES_PER_GRANULE);
    let (old, new) = (storage(from), storage(to));
    let there = take(seg, from, &mut space.block(from.0).lock(free), old);
    let here = {
        let mut body = space.block(to.0).lock(free);
        let here = take(seg, to, &mut body, new);
        put(seg, from, to, &mut body, there);
        here
    };
    put(seg, to, from, &mut space.block(from.0).lock(free), here);
}

/// The window lets in whom the books let in.
fn enter(free: &mut Free, seg: &Segment, from: At, to: At) -> Result<(), Error> {
    let space = seg.space();
    for at in [from, to] {
        let body = space.block(at.0).lock(free);
        space.host.reenter(space, at.0, &body, mask_of(at.1))?;
        debug_assert_eq!(body.check(space.host.faults()), Ok(()));
    }
    Ok(())
}

/// What may be done with the old place from now on: everything, or as if nothing were there.
fn permit(free: &mut Free, seg: &Segment, from: &Pages, keep_old: bool) -> Result<(), Error> {
    let space = seg.space();
    let mut before: Vec<(BlockId, Mask, Permissions)> = Vec::new();
    let mut failed = None;
    for (id, mask) in from.blocks() {
        let mut body = space.block(id).lock(free);
        before.push((id, mask, body.permissions()));
        body.permit(mask, keep_old, true, true);
        failed = space.host.protect(space, id, &body, mask).err();
        if failed.is_some() {
            break;
        }
    }
    let Some(e) = failed else { return Ok(()) };
    for (id, mask, masks) in before {
        let mut body = space.block(id).lock(free);
        body.set_permissions(masks);
        let _ = space.host.protect(space, id, &body, mask); // as far as it can be undone
    }
    Err(e)
}

/// Takes a granule out of its block's books.
fn take(seg: &Segment, at: At, body: &mut Body, storage: u64) -> Granule {
    let (id, g) = at;
    let (space, mask) = (seg.space(), mask_of(g));
    let mut out = Granule { pages: Carried::of(body, mask), storage, devices: Vec::new() };
    // Both places were mapped anew; at the new one a touch shows what is a coherent device's.
    space.host.forget_frames(space, body, mask);
    for m in space.devices() {
        let (slot, per) = (m.slot(), m.rec().pages_per_grain());
        let (valid, dirty) = (body.dev[slot].valid & mask, body.dev[slot].dirty & mask);
        let mut frames = Vec::new();
        if per <= PAGES_PER_GRANULE {
            for grain in g * PAGES_PER_GRANULE / per..(g + 1) * PAGES_PER_GRANULE / per {
                // Where frames belong to addresses nothing is in it, and the other place has its own.
                frames.push(body.take_frame(slot, grain).filter(|_| !m.caps().placed));
            }
        }
        m.change(seg, id, body, |body| body.end_copies(slot, mask, mask));
        if !body.dev[slot].has_frames(per) {
            m.set_rank(id, body, 0);
        }
        out.devices.push((slot, valid, dirty, frames));
    }
    body.carried_off(mask);
    out
}

/// Enters a granule into the books of a block in which its place is empty.
fn put(seg: &Arc<Segment>, from: At, to: At, body: &mut Body, granule: Granule) {
    let (id, g) = to;
    let (space, mask) = (seg.space(), mask_of(g));
    let moved = |m: Mask| shifted(m, from.1, g);
    space.block(id).set_storage(id, g, granule.storage);
    body.carried_in(mask, &granule.pages.shifted(moved));
    for (slot, valid, dirty, frames) in granule.devices {
        let Some(m) = space.device(slot) else { continue };
        let per = m.rec().pages_per_grain();
        body.admit(slot);
        for (i, frame) in frames.iter().enumerate().filter_map(|(i, f)| Some((i, (*f)?))) {
            let grain = g * PAGES_PER_GRANULE / per + i;
            body.give_frame(slot, grain, frame);
            m.arrivals.came(frame, (id, grain as u16));
        }
        m.change(seg, id, body, |body| body.adopt_copies(slot, moved(valid), moved(dirty)));
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
