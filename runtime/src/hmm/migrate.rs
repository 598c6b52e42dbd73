//! Migration: collect, unmap, copy, commit, map (`migrate_vma`).
//!
//! **Guarantee.** A page is in one place before and in one place after, with the same bytes and the same permission, whatever
//! fails in between; every store that completed before the move is in the bytes that moved. Failure is by page: pages that
//! cannot move stay where they were and the rest moves.
//!
//! **Order**, and why no other is right:
//! 1. *collect*: under the block's lock, the pages that can move are marked `busy`. From here on nobody else changes them.
//! 2. *unmap*: a window is opened, devices lose their entries, then the host's window loses its mapping. Stores that came
//!    before are in memory; later ones fault, find `busy`, and wait. Copying before this loses writes.
//! 3. *copy*: with no lock held; reaches its point.
//! 4. *map*: the destination's entries are made while the pages are still busy, so nothing can have overtaken them.
//! 5. *commit*: under the block's lock the masks change, `busy` is cleared, and whoever waits is woken.
//!
//! A type stands for each phase ([`Collected`], [`Unmapped`], [`Copying`]); dropping one before the commit puts every page
//! back: its `busy` bit goes, and since a fault restores what a window took away, that is all there is to undo.
//!
//! **Waiting.** Nothing is held over a copy, an edit or another batch; frames are reserved before the first lock. Pages that
//! another batch has are skipped and reported, and the caller waits for them when it holds none of its own.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use sterna_hal::{Access, CopyRun, DevRange, DeviceError, Edit, HostAt, Place, Point, Target};

use super::addr::{BLOCK, BlockId, Mask, PAGE, PAGES_PER_BLOCK, Pages, Span, runs_of};
use super::block::{Block, Body, MAX_DEVICES};
use super::devmem::{Reserved, push_frame};
use super::lock::Free;
use super::mirror::{Action, DeviceMirror};
use super::os;
use super::segment::Segment;
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

/// Blocks a batch: 64 MiB, so that a copy is long enough for the fastest way of copying, and the table work of one batch
/// overlaps the copy of the one before.
const BATCH_BLOCKS: u64 = 32;

/// What a migration did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Moved {
    /// Pages whose bytes were brought to the destination.
    pub(crate) moved: u64,
    /// Pages that were there already and stayed.
    pub(crate) resident: u64,
    /// Pages that could not move: pinned, lost, or without room.
    pub(crate) refused: u64,
    /// Grains of device memory that were freed.
    pub(crate) released: u32,
    /// A page that another batch had, for the caller to wait for.
    pub(crate) blocked: Option<(BlockId, u32)>,
    /// Pages that another device alone has: they come home first.
    pub(crate) foreign: bool,
    /// A page that a guard keeps at home.
    pub(crate) pinned: bool,
    /// A page of which no copy is left.
    pub(crate) lost: bool,
    /// There was no room for everything.
    pub(crate) full: bool,
}

impl Moved {
    fn add(&mut self, o: Self) {
        self.moved += o.moved;
        self.resident += o.resident;
        self.refused += o.refused;
        self.released += o.released;
        self.blocked = self.blocked.or(o.blocked);
        self.foreign |= o.foreign;
        self.pinned |= o.pinned;
        self.lost |= o.lost;
        self.full |= o.full;
    }
}

/// Phase: pages are marked busy and still mapped.
#[derive(Debug)]
pub(crate) struct Collected;
/// Phase: nobody can touch the pages; their contents are stable.
#[derive(Debug)]
pub(crate) struct Unmapped;
/// Phase: the bytes are on their way.
#[derive(Debug)]
pub(crate) struct Copying;

/// Pages on their way, in one phase of a migration (`migrate_vma`). Dropped before the commit, every page is put back.
#[doc(alias = "migrate_vma")]
pub(crate) struct Batch<Phase> {
    core: Core,
    phase: PhantomData<Phase>,
}

struct Core {
    seg: Arc<Segment>,
    /// `None`: the host.
    to: Option<(Arc<DeviceMirror>, DevRange)>,
    access: Access,
    spans: Vec<Span>,
    /// For a batch to the host: what to do beside bringing bytes.
    home: Home,
    points: SmallVec<[(Arc<DeviceMirror>, Point); 2]>,
    result: Moved,
    cause: Cause,
}

/// How pages come home.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home {
    /// Also ends clean replicas: on this device, or everywhere (`MAX_DEVICES`). `None` keeps them.
    pub(crate) exclusive_from: Option<usize>,
    /// Frees the frames on this device.
    pub(crate) release: Option<usize>,
    /// Maps the pages in the window at once instead of at the next touch.
    pub(crate) map: bool,
    /// Waits for pages that another batch has.
    pub(crate) wait: bool,
}

impl Home {
    /// The host gets the bytes and everything else loses them.
    pub(crate) const EXCLUSIVE: Self = Self { exclusive_from: Some(MAX_DEVICES), release: None, map: true, wait: true };
    /// The host gets the bytes; devices keep clean copies.
    pub(crate) const SHARED: Self = Self { exclusive_from: None, release: None, map: true, wait: true };

    fn ends_on(&self, slot: usize) -> bool {
        self.exclusive_from.is_some_and(|e| e == MAX_DEVICES || e == slot)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Before the commit this puts every page back; after it, `spans` is empty.
        let mut free = Free::at_entry();
        for (m, p) in std::mem::take(&mut self.points) {
            // A copy that is still running uses the pages; if its device is lost it has stopped.
            let _ = m.reach(&mut free, p);
        }
        for s in std::mem::take(&mut self.spans) {
            release(self.seg.space(), &mut free, s);
        }
    }
}

/// Ends `busy` on a span and wakes whoever waits for it.
fn release(space: &Space, free: &mut Free, s: Span) {
    let block = space.block(s.block);
    let mut body = block.lock(free);
    body.busy &= !s.mask;
    let wanted = body.wanted & s.mask;
    body.wanted &= !s.mask;
    drop(body);
    block.bump();
    if !wanted.is_empty() {
        space.host.wake(space, s.block, wanted);
    }
    space.device_faults.retry();
}

impl<P> Batch<P> {
    fn into<Q>(self) -> Batch<Q> {
        Batch { core: self.core, phase: PhantomData }
    }

    fn space(&self) -> &'static Space {
        self.core.seg.space()
    }
}

// ───────────────────────────── to a device ─────────────────────────────

/// Brings `pages` of `seg` to a device for `access`, in batches; what is there already stays. Evicts blocks of a rank below
/// `rank`, which the blocks that come get.
///
/// Does not wait for other batches' pages: see [`Moved::blocked`].
pub(crate) fn to_device(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    access: Access,
    rank: u64,
    cause: Cause,
) -> Result<Moved, Error> {
    let view = mirror.view(seg)?;
    let mut total = Moved::default();
    let mut under_way: Option<Batch<Copying>> = None;
    let step = BATCH_BLOCKS * PAGES_PER_BLOCK as u64;
    let mut at = pages.0.start;
    while at < pages.0.end {
        let end = ((at / step + 1) * step).min(pages.0.end);
        let part = Pages(at..end);
        at = end;
        let grains = missing_grains(free, mirror, seg, &part, access);
        let mut reserved = match Reserved::take(free, mirror, view.at, grains, rank) {
            Ok(r) => r,
            Err(Error::OutOfDeviceMemory { .. }) => {
                // What fits goes; one block at a time finds out how much that is.
                if let Some(b) = under_way.take() {
                    total.add(b.finalize_and_map(free)?);
                }
                total.add(trickle(free, mirror, seg, &part, access, rank, cause)?);
                continue;
            }
            Err(e) => return Err(e),
        };
        let batch = collect(free, mirror, view, seg, &part, access, rank, &mut reserved, cause);
        let batch = batch.unmap(free)?.alloc_and_copy(free)?;
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
    access: Access,
    rank: u64,
    cause: Cause,
) -> Result<Moved, Error> {
    let view = mirror.view(seg)?;
    let mut total = Moved::default();
    for (id, mask) in pages.blocks() {
        let part = pages_of(id, mask);
        let grains = missing_grains(free, mirror, seg, &part, access);
        match Reserved::take(free, mirror, view.at, grains, rank) {
            Ok(mut reserved) => {
                let batch = collect(free, mirror, view, seg, &part, access, rank, &mut reserved, cause);
                total.add(batch.unmap(free)?.alloc_and_copy(free)?.finalize_and_map(free)?);
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

/// Pages of a block that have to change for `access`, by whole grains.
fn needy(body: &Body, slot: usize, want: Mask, access: Access, per: usize) -> Mask {
    let dev = &body.dev[slot];
    let ready = if access.writes() { dev.owned() } else { dev.readable() };
    (want & !ready).widened(per)
}

/// How many grains of device memory the pages lack. A look without commitment, so that frames are taken before any lock.
fn missing_grains(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages, access: Access) -> u32 {
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    let mut n = 0;
    for (id, mask) in pages.blocks() {
        let body = seg.claim(id).lock(free);
        let want = needy(&body, slot, mask, access, per);
        n += (0..PAGES_PER_BLOCK / per).filter(|g| body.dev[slot].frames[*g] == 0 && want.has(g * per)).count() as u32;
    }
    n
}

/// Marks the pages that can move and gives them frames.
#[expect(clippy::too_many_arguments, reason = "one phase of one call; a struct would only move the list")]
fn collect(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    view: DevRange,
    seg: &Arc<Segment>,
    pages: &Pages,
    access: Access,
    rank: u64,
    reserved: &mut Reserved,
    cause: Cause,
) -> Batch<Collected> {
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    let mut spans = Vec::new();
    let mut result = Moved::default();
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        let mut body = block.lock(free);
        let mut fix = needy(&body, slot, mask, access, per);
        result.resident += u64::from((mask & !fix).count());
        if body.busy.meets(fix) {
            result.blocked = result.blocked.or(Some((id, block.epoch())));
            fix &= !(body.busy & fix).widened(per);
        }
        let mut refuse = |set: Mask, flag: &mut bool| {
            if set.meets(fix) {
                *flag = true;
                let set = (set & fix).widened(per);
                result.refused += u64::from((fix & set).count());
                fix &= !set;
            }
        };
        let elsewhere = (0..MAX_DEVICES).filter(|d| *d != slot).fold(Mask::EMPTY, |m, d| m | body.dev[d].dirty);
        refuse(elsewhere, &mut result.foreign);
        refuse(body.pinned, &mut result.pinned);
        if access.reads() {
            refuse(body.lost, &mut result.lost);
        }
        for g in 0..PAGES_PER_BLOCK / per {
            if fix.has(g * per) && body.dev[slot].frames[g] == 0 {
                if reserved.left() == 0 {
                    // Somebody took frames of this block away since `missing_grains` looked.
                    result.full = true;
                    fix &= !Mask::range(g * per..(g + 1) * per);
                    continue;
                }
                body.dev[slot].frames[g] = reserved.pop() + 1;
            }
        }
        if !body.dev[slot].frames.iter().all(|f| *f == 0) {
            mirror.set_rank(id, &mut body, rank);
        }
        if fix.is_empty() {
            continue;
        }
        body.busy |= fix;
        spans.push(Span { block: id, mask: fix });
    }
    let to = Some((Arc::clone(mirror), view));
    let core = Core { seg: Arc::clone(seg), to, access, spans, home: Home::SHARED, points: SmallVec::new(), result, cause };
    Batch { core, phase: PhantomData }
}

impl Batch<Collected> {
    /// Takes the pages away from everyone: devices first, then the host.
    pub(crate) fn unmap(self, free: &mut Free) -> Result<Batch<Unmapped>, Error> {
        let space = self.space();
        let c = &self.core;
        if c.spans.is_empty() {
            return Ok(self.into());
        }
        let runs = runs_of(&c.spans);
        let to = c.to.as_ref().map(|(m, _)| m.slot());
        // The window ends when the device entries and the host mapping are gone: from there on `busy` keeps the pages.
        let window = space.window(free, Action::Migrate { to }, &runs)?;
        if c.to.is_some() {
            space.host.revoke(space, free, &c.seg, &c.spans, &runs)?;
        }
        drop(window);
        Ok(self.into())
    }
}

impl Batch<Unmapped> {
    /// Starts the copies, in as few runs as the places allow. A run that fails alone is put back and the rest goes on.
    pub(crate) fn alloc_and_copy(mut self, free: &mut Free) -> Result<Batch<Copying>, Error> {
        let core = &mut self.core;
        let work = match core.to.clone() {
            Some((m, _)) => {
                let runs = runs_to_device(free, core, &m);
                vec![(m, runs)]
            }
            None => runs_to_host(free, core),
        };
        for (m, runs) in work {
            if runs.is_empty() {
                continue;
            }
            let plain: Vec<CopyRun> = runs.iter().map(|r| r.1).collect();
            // SAFETY: the pages are busy and unmapped on every side, so nobody else touches source or destination.
            match unsafe { m.device().copy(&plain, &[]) } {
                Ok(p) => core.points.push((m, p)),
                Err(e @ DeviceError::Lost(_)) => return Err(m.noticed(e)),
                Err(_) => {
                    for (pages, run) in runs {
                        // SAFETY: as above.
                        match unsafe { m.device().copy(&[run], &[]) } {
                            Ok(p) => core.points.push((Arc::clone(&m), p)),
                            Err(e @ DeviceError::Lost(_)) => return Err(m.noticed(e)),
                            Err(_) => put_back(free, core, &m, &pages),
                        }
                    }
                }
            }
        }
        Ok(self.into())
    }
}

/// Takes pages whose copy failed out of the batch: they stay where they were.
fn put_back(free: &mut Free, core: &mut Core, mirror: &DeviceMirror, pages: &Pages) {
    let per = mirror.pods().pages_per_grain();
    for (id, mask) in pages.blocks() {
        for s in core.spans.iter_mut().filter(|s| s.block == id) {
            let out = mask.widened(per) & s.mask;
            s.mask &= !out;
            core.result.refused += u64::from(out.count());
            release(core.seg.space(), free, Span { block: id, mask: out });
        }
    }
    core.spans.retain(|s| !s.mask.is_empty());
}

/// A copy and the pages it serves.
type PageRun = (Pages, CopyRun);

/// Appends a copy, joining it to the one before where both sides continue.
fn push_run(out: &mut Vec<PageRun>, pages: Pages, from: Place, to: Place, grain: u64) {
    let bytes = pages.bytes();
    if let Some((last, run)) = out.last_mut() {
        let follows = |a: Place, b: Place| match (a, b) {
            (Place::Host(a), Place::Host(b)) => a.region == b.region && a.offset + run.bytes == b.offset,
            (Place::Frames { first: a, offset: x }, Place::Frames { first: b, offset: y }) => {
                u64::from(a) * grain + x + run.bytes == u64::from(b) * grain + y
            }
            (Place::Zero, Place::Zero) => true,
            _ => false,
        };
        if last.0.end == pages.0.start && follows(run.from, from) && follows(run.to, to) {
            run.bytes += bytes;
            last.0.end = pages.0.end;
            return;
        }
    }
    out.push((pages, CopyRun { from, to, bytes }));
}

/// Cuts `mask` of a block into runs of pages inside one grain each, with the grain's number.
fn by_grain(mask: Mask, per: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    mask.runs().flat_map(move |r| {
        (r.start / per..r.end.div_ceil(per)).map(move |g| (g, r.start.max(g * per)..r.end.min((g + 1) * per)))
    })
}

fn runs_to_device(free: &mut Free, core: &mut Core, mirror: &Arc<DeviceMirror>) -> Vec<PageRun> {
    let space = core.seg.space();
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    let grain = per as u64 * PAGE;
    let mut out = Vec::new();
    let mut moved = 0;
    for s in &core.spans {
        let block = space.block(s.block);
        let body = block.lock(free);
        let first = s.block.first_page().0;
        // Valid there already: only the entry or the ownership changes.
        let copy = s.mask & !body.dev[slot].valid;
        // Bytes that the launch replaces need not travel; but frames come with somebody's old bytes, so they are cleared.
        let zero = if core.access.reads() { copy & body.hole } else { copy };
        moved += u64::from(copy.count());
        for (part, is_zero) in [(copy & !zero, false), (zero, true)] {
            for (g, r) in by_grain(part, per) {
                let pages = Pages(first + r.start as u64..first + r.end as u64);
                let from = if is_zero {
                    Place::Zero
                } else {
                    Place::Host(HostAt { region: mirror.region(), offset: block.backing(s.block) + r.start as u64 * PAGE })
                };
                let offset = (r.start - g * per) as u64 * PAGE;
                let to = Place::Frames { first: body.dev[slot].frames[g] - 1, offset };
                push_run(&mut out, pages, from, to, grain);
            }
        }
    }
    let counters = &mirror.pods().counters;
    let bytes: u64 = out.iter().filter(|(_, r)| r.from != Place::Zero).map(|(_, r)| r.bytes).sum();
    counters.moved_in(core.cause, bytes);
    core.result.moved += moved;
    out
}

fn runs_to_host(free: &mut Free, core: &mut Core) -> Vec<(Arc<DeviceMirror>, Vec<PageRun>)> {
    let space = core.seg.space();
    let mut work = Vec::new();
    for m in space.devices() {
        let (slot, per) = (m.slot(), m.pods().pages_per_grain());
        let mut out = Vec::new();
        for s in &core.spans {
            let block = space.block(s.block);
            let body = block.lock(free);
            let first = s.block.first_page().0;
            for (g, r) in by_grain(s.mask & body.dev[slot].dirty, per) {
                let pages = Pages(first + r.start as u64..first + r.end as u64);
                let offset = (r.start - g * per) as u64 * PAGE;
                let from = Place::Frames { first: body.dev[slot].frames[g] - 1, offset };
                let to = Place::Host(HostAt { region: m.region(), offset: block.backing(s.block) + r.start as u64 * PAGE });
                push_run(&mut out, pages, from, to, per as u64 * PAGE);
            }
        }
        let bytes: u64 = out.iter().map(|(_, r)| r.bytes).sum();
        if bytes > 0 {
            m.pods().counters.moved_out(core.cause, bytes);
            core.result.moved += bytes / PAGE;
            work.push((m, out));
        }
    }
    work
}

impl Batch<Copying> {
    /// Reaches the copies' points, makes the destination's entries, and commits.
    pub(crate) fn finalize_and_map(mut self, free: &mut Free) -> Result<Moved, Error> {
        for (m, p) in std::mem::take(&mut self.core.points) {
            m.reach(free, p)?;
        }
        match self.core.to.clone() {
            Some((m, view)) => self.map_on_device(free, &m, view)?,
            None => self.commit_home(free),
        }
        let result = self.core.result;
        Ok(result)
    }

    fn map_on_device(&mut self, free: &mut Free, m: &Arc<DeviceMirror>, view: DevRange) -> Result<(), Error> {
        let (space, slot, per) = (self.space(), m.slot(), m.pods().pages_per_grain());
        let core = &mut self.core;
        let writes = core.access.writes();
        let mut edits: Vec<Edit> = Vec::new();
        for s in &core.spans {
            let body = space.block(s.block).lock(free);
            let dev = &body.dev[slot];
            // An entry left over that allows stores would let a clean page become dirty without a fault.
            let enough = dev.mapped & !dev.alias & if writes { dev.writable } else { !dev.writable };
            for (g, r) in by_grain((s.mask & !enough).widened(per), per) {
                edits.push(Edit {
                    at: m.addresses(&core.seg, view, s.block, &r),
                    to: Target::Frames { first: dev.frames[g] - 1 },
                    access: if writes { Access::ReadWrite } else { Access::Read },
                });
            }
        }
        m.edit(free, &edits)?;
        let now = os::now_ns();
        for s in std::mem::take(&mut core.spans) {
            let block = space.block(s.block);
            let mut body = block.lock(free);
            m.change(&core.seg, s.block, &mut body, |body| {
                let dev = &mut body.dev[slot];
                dev.valid |= s.mask;
                dev.mapped |= s.mask;
                dev.alias &= !s.mask;
                if writes {
                    dev.writable |= s.mask;
                    dev.dirty |= s.mask;
                } else {
                    // Each was mapped for reading already or has just been.
                    dev.writable &= !s.mask;
                }
            });
            if writes {
                body.gone |= s.mask;
                body.lost &= !s.mask;
                for d in (0..MAX_DEVICES).filter(|d| *d != slot) {
                    // Their entries went with the window; only the books are left.
                    body.dev[d].valid &= !s.mask;
                }
            }
            body.moves = body.moves.saturating_add(1);
            body.arrive(slot + 1, now);
            debug_assert_eq!(body.check(space.host.faults()), Ok(()));
            drop(body);
            release(space, free, s);
        }
        Ok(())
    }

    fn commit_home(&mut self, free: &mut Free) {
        let space = self.space();
        let core = &mut self.core;
        let devices = space.devices();
        for s in std::mem::take(&mut core.spans) {
            let block = space.block(s.block);
            let mut body = block.lock(free);
            for m in &devices {
                let (slot, home) = (m.slot(), core.home);
                m.change(&core.seg, s.block, &mut body, |body| {
                    let dev = &mut body.dev[slot];
                    let dirty = dev.dirty & s.mask;
                    dev.dirty &= !s.mask;
                    body.gone &= !dirty;
                    body.hole &= !dirty;
                    if home.ends_on(slot) {
                        body.dev[slot].valid &= !s.mask;
                    }
                });
                if home.release == Some(slot) {
                    core.result.released += free_frames(m, s.block, &mut body, s.mask);
                }
            }
            if body.missing && body.hole.is_empty() {
                body.full = true;
            }
            body.arrive(0, os::now_ns());
            let map = core.home.map && (0..MAX_DEVICES).all(|d| !body.dev[d].valid.meets(s.mask));
            if map {
                space.host.restore(space, block, &mut body, s);
            }
            debug_assert_eq!(body.check(space.host.faults()), Ok(()));
            drop(body);
            release(space, free, s);
        }
    }
}

/// Frees the frames of a block's grains that hold nothing valid, are not mapped, and belong to no batch but the one that has
/// `mine` busy: another batch may be copying into its frames.
fn free_frames(m: &DeviceMirror, id: BlockId, body: &mut Body, mine: Mask) -> u32 {
    let (slot, per) = (m.slot(), m.pods().pages_per_grain());
    let mut frames = Vec::new();
    let mut n = 0;
    for g in 0..PAGES_PER_BLOCK / per {
        let pages = Mask::range(g * per..(g + 1) * per);
        let others = body.busy & !mine;
        let dev = &mut body.dev[slot];
        if dev.frames[g] != 0 && !others.meets(pages) && !(dev.valid | dev.mapped).meets(pages) {
            push_frame(&mut frames, dev.frames[g] - 1);
            dev.frames[g] = 0;
            n += 1;
        }
    }
    if body.dev[slot].frames.iter().all(|f| *f == 0) {
        m.set_rank(id, body, 0);
    }
    // SAFETY: taken out of the block's table just now; no entry names them.
    unsafe { m.device().free(&frames) };
    n
}

// ───────────────────────────── to the host ─────────────────────────────

/// Brings the bytes of `pages` home, as `home` says.
pub(crate) fn bring_home(
    free: &mut Free,
    seg: &Arc<Segment>,
    pages: &Pages,
    home: Home,
    cause: Cause,
) -> Result<Moved, Error> {
    let mut total = Moved::default();
    let mut under_way: Option<Batch<Copying>> = None;
    let step = BATCH_BLOCKS * PAGES_PER_BLOCK as u64;
    let mut at = pages.0.start;
    while at < pages.0.end {
        let end = ((at / step + 1) * step).min(pages.0.end);
        let part = Pages(at..end);
        let batch = collect_home(free, seg, &part, home, cause);
        let blocked = batch.core.result.blocked;
        let batch = batch.unmap(free)?.alloc_and_copy(free)?;
        if let Some(before) = under_way.replace(batch) {
            total.add(before.finalize_and_map(free)?);
        }
        if home.wait
            && let Some((id, epoch)) = blocked
        {
            // Nothing of ours may be busy while we wait for somebody else.
            if let Some(b) = under_way.take() {
                total.add(b.finalize_and_map(free)?);
            }
            seg.space().block(id).wait_epoch(epoch, Some(Duration::from_millis(10)));
            continue; // the same part again: what has come is skipped
        }
        at = end;
    }
    if let Some(b) = under_way {
        total.add(b.finalize_and_map(free)?);
    }
    if home.wait {
        total.blocked = None;
    }
    Ok(total)
}

fn collect_home(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, home: Home, cause: Cause) -> Batch<Collected> {
    let space = seg.space();
    let devices: SmallVec<[(usize, usize); 4]> =
        space.devices().iter().map(|m| (m.slot(), m.pods().pages_per_grain())).collect();
    let mut spans = Vec::new();
    let mut result = Moved::default();
    for (id, mask) in pages.blocks() {
        let block: &Block = space.block(id);
        if block.segment().is_none() {
            result.resident += u64::from(mask.count());
            continue; // never left
        }
        let mut body = block.lock(free);
        let mut fix = Mask::EMPTY;
        for &(slot, per) in devices.iter().filter(|(slot, _)| home.release.is_none_or(|only| only == *slot)) {
            let dev = &body.dev[slot];
            let mut take = dev.dirty & mask;
            if home.ends_on(slot) {
                take |= (dev.valid | dev.mapped) & mask;
            }
            fix |= take.widened(per) & (dev.valid | dev.mapped);
        }
        if home.release.is_some() {
            // The whole block goes, or some frames could not be freed.
            fix |= home.release.map_or(Mask::EMPTY, |s| body.dev[s].valid | body.dev[s].mapped);
        }
        if home.map && space.host.faults() {
            fix |= mask & block.limit() & body.revoked & !body.lost & !valid_anywhere(&body, home);
        }
        if body.busy.meets(fix) {
            result.blocked = result.blocked.or(Some((id, block.epoch())));
            fix &= !body.busy;
        }
        result.resident += u64::from((mask & !fix).count());
        let frames_only = fix.is_empty() && home.release.is_some_and(|s| body.dev[s].frames.iter().any(|f| *f != 0));
        if frames_only && body.busy.is_empty() {
            if let Some(m) = home.release.and_then(|s| space.device(s)) {
                result.released += free_frames(&m, id, &mut body, Mask::EMPTY);
            }
        }
        if fix.is_empty() {
            continue;
        }
        body.busy |= fix;
        spans.push(Span { block: id, mask: fix });
    }
    let core =
        Core { seg: Arc::clone(seg), to: None, access: Access::Read, spans, home, points: SmallVec::new(), result, cause };
    Batch { core, phase: PhantomData }
}

/// Pages that would still be valid on some device after `home`.
fn valid_anywhere(body: &Body, home: Home) -> Mask {
    (0..MAX_DEVICES).filter(|d| !home.ends_on(*d)).fold(Mask::EMPTY, |m, d| m | body.dev[d].valid)
}

/// Waits until another batch has let go of the page that blocked us.
pub(crate) fn wait_blocked(_free: &mut Free, space: &Space, blocked: (BlockId, u32)) {
    space.block(blocked.0).wait_epoch(blocked.1, Some(Duration::from_millis(10)));
}

const _: () = assert!(BLOCK / PAGE == PAGES_PER_BLOCK as u64);
