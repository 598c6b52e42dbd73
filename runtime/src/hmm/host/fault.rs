//! A host fault: one page of the window was touched and is not mapped.
//!
//! **Guarantee.** When a fault is served the page is mapped with the right bytes; when it is parked, whoever ends `busy` or the
//! service thread wakes it. Nothing here allocates, formats, logs, waits, calls a driver or runs code of the program: it runs
//! in a SIGBUS handler, perhaps inside the program's allocator or with standard output locked.
//!
//! **Inline or parked.** A page can be brought home here if its device's frames can be read by plain loads, no launch that may
//! touch its segment there is unfinished, and the driver lock is free at once. The device's entries stay behind as *stale*: the
//! next launch that could use them removes them first. Everything else is parked for the service thread.

use std::ptr;
use std::sync::atomic::Ordering;

use sterna_hal::Access;

use super::super::addr::{BlockId, Mask, PAGE, PAGES_PER_GRANULE, Page, Span};
use super::super::block::{Block, BlockGuard};
use super::super::mirror::DeviceMirror;
use super::super::os;
use super::super::space::Space;
use super::super::walk;
use super::Mechanism;
use super::coherent::resident;
use super::duplicate::CONTRADICTED;
use super::read::read;
use crate::stats::Cause;

/// What became of a fault.
pub(super) enum Served {
    /// The page is mapped.
    Mapped,
    /// Somebody else will wake the thread; the block's epoch as it was then.
    Parked(&'static Block, u32),
    /// Not a page of the window, or one that may not be touched like that.
    Foreign,
}

/// Serves a touch of window address `at`. Signal-safe.
///
/// `access` is what the fault was for, as far as that is known. Bad accesses are looked for with mechanism `guard` alone: elsewhere the
/// kernel tells them apart before it asks.
pub(super) fn serve(space: &'static Space, at: usize, access: Access) -> Served {
    let Some(page) = space.page_at(at) else { return Served::Foreign };
    let (id, p) = (page.block(), page.in_block());
    let block = space.block(id);
    let mut body = block.lock_in_handler();
    let forbids = if space.host.mechanism() == Mechanism::Guard { access } else { Access::Read };
    if body.denied(forbids).has(p) {
        return Served::Foreign;
    }
    if body.lost.has(p) {
        os::die("sterna: a load met a page whose only copy was lost with its device; see `try_read`\n");
    }
    if body.busy.has(p) {
        return park(space, block, body, page, None);
    }
    let granule = Mask::range(p / PAGES_PER_GRANULE * PAGES_PER_GRANULE..(p / PAGES_PER_GRANULE + 1) * PAGES_PER_GRANULE);
    if !body.revoked.has(p) {
        // It is the host's; only its mapping was missing (written through the view, or a neighbour's collateral).
        let mask = granule & !body.revoked & !body.busy;
        if access.writes() && body.stores_watched {
            return store(space, (id, block), body, page, mask);
        }
        space.host.restore(space, block, &mut body, Span { block: id, mask });
        return Served::Mapped;
    }
    // The host's loads leave devices their replicas here.
    let keep = body.read_mostly && !access.writes();
    // A device that has pages to itself has to be told before it loses them, and handlers call no driver.
    let exclusive = body.exclusive(None);
    #[cfg(feature = "planted")]
    let exclusive = if super::super::planted::on(&super::super::planted::EXCLUSIVE_KEPT) { Mask::EMPTY } else { exclusive };
    if body.unread.has(p) && !body.lent.has(p) {
        return read(space, (id, block), body, page, access);
    }
    // Neither do they give a copy its pages.
    let others_work = exclusive | body.unread | body.lent;
    if others_work.has(p) {
        return park(space, block, body, page, Some(access));
    }
    // What a coherent device has is used there.
    if let Some(slot) = space.host.show(space, (id, block), &mut body, p) {
        space.slots[slot].counters.host_faults.fetch_add(1, Ordering::Relaxed);
        debug_assert!(body.check(true).is_ok());
        return Served::Mapped;
    }
    let (region, step) = walk::reach(space, (id, block), &body, p);
    let region = region & body.revoked;
    let stay = body.framed | (body.held & resident(space, &body));
    let region = region & !(body.busy | body.lost | stay) & !others_work;
    if !region.has(p) {
        return park(space, block, body, page, Some(access)); // held where no mapping shows it
    }
    let Some(slot) = block.segment() else {
        // Only the engine revokes, and it fills records in first.
        os::die("sterna: a page without a segment is revoked\n");
    };
    // Pages that other devices alone have are left to faults of their own: bytes are copied from one device.
    let owner = body.devices().find(|d| body.dev[*d].dirty.has(p));
    let known = body.devices();
    let holder = known.clone().find(|d| body.dev[*d].valid.has(p));
    let others = || known.clone().filter(|d| Some(*d) != owner);
    let region = region & !others().fold(Mask::EMPTY, |m, d| m | body.dev[d].dirty);
    let mut copied = Mask::EMPTY;
    // The owner last: where a device has to be waited for, nothing has begun that would have to be undone.
    for d in others().chain(owner) {
        let dirty = body.dev[d].dirty & region;
        let held = if keep { dirty } else { body.dev[d].valid & region };
        if held.is_empty() {
            continue;
        }
        let reachable = dirty.is_empty() || !space.slots[d].frames.load(Ordering::Acquire).is_null();
        let ended = if keep { Mask::EMPTY } else { held };
        if !reachable || !take_from(space, slot, block, &mut body, d, (ended, dirty)) {
            return park(space, block, body, page, Some(access));
        }
        // From here on the pages are nobody's but ours: the lock can go while the bytes are copied.
        body.take(dirty);
        copied |= dirty;
    }
    let counters = &space.slots[owner.or(holder).unwrap_or(0)].counters;
    let owner = owner.unwrap_or(0);
    let mut wanted = Mask::EMPTY;
    if !copied.is_empty() {
        body = copy_home(space, (id, block), body, copied, owner);
        body.came_home(copied);
        wanted = body.let_go(copied);
        body.arrive(0, os::now_ns());
        body.note_full();
        counters.moved_out(Cause::HostFault, u64::from(copied.count()) * PAGE);
    }
    counters.host_faults.fetch_add(1, Ordering::Relaxed);
    let held = body.replicated();
    // The lock was given up for the copy.
    let region = region & !(body.exclusive(None) | body.unread | body.lent | body.lost);
    // A page that somebody has taken meanwhile is not the host's to load.
    let duplicated = if keep { held & region & body.revoked & !body.gone & !body.busy } else { Mask::EMPTY };
    body.duplicate(duplicated);
    let mask = region & (!held | duplicated) & !body.gone & !body.busy;
    step.note(block, &body, mask);
    space.host.restore(space, block, &mut body, Span { block: id, mask });
    debug_assert!(body.check(true).is_ok());
    drop(body);
    if !copied.is_empty() {
        block.bump(copied);
        space.host.wake(space, id, wanted);
        space.device_faults.retry();
    }
    Served::Mapped
}

/// Takes from device `d` the copies `ended`, and of `dirty` that they are the only ones, if its driver lock is free at once and no
/// launch of it that uses the segment is unfinished; else nothing, and false. The entries stay behind as *stale*; one of a copy
/// that the device keeps could let that be written. Signal-safe.
fn take_from(
    space: &'static Space,
    slot: u32,
    block: &Block,
    body: &mut BlockGuard<'_>,
    d: usize,
    (ended, dirty): (Mask, Mask),
) -> bool {
    let (lock, view) = (&space.slots[d].lock, &space.rec(slot).view[d]);
    if !lock.try_lock() {
        return false;
    }
    let idle = view.active.load(Ordering::Acquire) == 0;
    #[cfg(feature = "planted")]
    let idle = idle || super::super::planted::on(&super::super::planted::INLINE_WHILE_ACTIVE);
    if idle {
        body.end_copies(d, ended, dirty);
        view.stale.store(1, Ordering::Release);
        DeviceMirror::refresh_ready(space, slot, block, body, d);
    }
    lock.unlock();
    idle
}

/// A store to a page that is the host's, in a block whose stores are watched: ends the replicas of its neighbourhood `mask`, which
/// was mapped for loads, and lets it be stored to. Signal-safe.
fn store(
    space: &'static Space,
    (id, block): (BlockId, &'static Block),
    mut body: BlockGuard<'_>,
    page: Page,
    mask: Mask,
) -> Served {
    let Some(slot) = block.segment() else {
        // Only the engine watches, and it fills records in first.
        os::die("sterna: stores to a block without a segment are watched\n");
    };
    let ended = body.duplicated & mask;
    #[cfg(feature = "planted")]
    if super::super::planted::on(&super::super::planted::REPLICA_KEPT_AT_STORE) {
        space.host.admit_stores(space, &mut body, Span { block: id, mask });
        body.duplicate(ended); // so that no check of the masks sees it
        return Served::Mapped;
    }
    for d in body.devices() {
        let held = body.dev[d].valid & ended;
        if held.is_empty() {
            continue;
        }
        if !take_from(space, slot, block, &mut body, d, (held, Mask::EMPTY)) {
            return park(space, block, body, page, Some(Access::ReadWrite));
        }
        space.slots[d].counters.host_faults.fetch_add(1, Ordering::Relaxed);
    }
    if !ended.is_empty() {
        body.collapsed(CONTRADICTED);
    }
    // Entries for stores take the place of those for loads, and of none.
    space.host.admit_stores(space, &mut body, Span { block: id, mask });
    space.host.restore(space, block, &mut body, Span { block: id, mask });
    debug_assert!(body.check(true).is_ok());
    Served::Mapped
}

/// Copies pages of device `owner` into the storage, with the block's lock given up meanwhile. Signal-safe.
fn copy_home<'b>(
    space: &'static Space,
    (id, block): (BlockId, &'static Block),
    body: BlockGuard<'b>,
    mask: Mask,
    owner: usize,
) -> BlockGuard<'b> {
    let pods = &space.slots[owner];
    let base = pods.frames.load(Ordering::Acquire).cast_const();
    let per = pods.pages_per_grain();
    let frames = body.dev[owner].frames;
    drop(body);
    let copy = |from: usize, storage: u64, pages: usize| {
        let to = space.direct_at(storage).as_ptr();
        // SAFETY: the frames are the block's and, being busy, are neither freed nor reused; no launch that could write them is
        // unfinished. The storage is the block's, and no mapping of the window leads to it.
        unsafe { ptr::copy_nonoverlapping(base.add(from * PAGE as usize), to, pages * PAGE as usize) };
    };
    for (r, storage) in block.pieces(id, mask) {
        // Pages whose frames follow each other are one copy. Frames are counted in pages here.
        let frame = |p: usize| (frames[p / per] as usize - 1) * per + p % per;
        let (mut start, mut from) = (r.start, frame(r.start));
        for p in r.start + 1..r.end {
            if frame(p) != from + (p - start) {
                copy(from, storage + (start - r.start) as u64 * PAGE, p - start);
                (start, from) = (p, frame(p));
            }
        }
        copy(from, storage + (start - r.start) as u64 * PAGE, r.end - start);
    }
    block.lock_in_handler()
}

/// Notes that a thread waits for the page, and has the service thread fetch it for such an access, unless a batch already has it
/// (`None`).
pub(super) fn park(
    space: &'static Space,
    block: &'static Block,
    mut body: BlockGuard<'_>,
    page: Page,
    fetch: Option<Access>,
) -> Served {
    let mask = Mask::page(page.in_block());
    body.want(mask);
    let epoch = block.epoch();
    if let Some(access) = fetch {
        space.host.service.ask((page.block(), block), body, mask, access.writes());
    }
    Served::Parked(block, epoch)
}
