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

mod border;
mod copy;
mod device;
mod home;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use sterna_hal::{Access, Device, DeviceError, Point};

use sterna_host::room::Grant;

use super::addr::{BLOCK, BlockId, PAGE, PAGES_PER_BLOCK, Pages, Span, runs_of};
use super::block::Body;
use super::lock::Free;
use super::mirror::{Action, DeviceMirror};
use super::os;
use super::parts::MAX_DEVICES;
use super::seat::Addresses;
use super::segment::Segment;
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

pub(crate) use border::{Borders, wait_for_borders};
pub(crate) use device::{Want, to_device, to_device_paced};
pub(crate) use home::{bring_home, bring_home_paced, free_frames, grains, taken};

/// Blocks a batch: 128 MiB, so that a copy is long enough for the fastest way of copying, and the table work of one batch
/// overlaps the copy of the one before.
const BATCH_BLOCKS: u64 = 64;

/// How many pages go at once, and whether to go on with the next.
#[derive(Clone, Copy)]
pub(crate) struct Pace<'a> {
    /// Blocks a batch.
    pub(crate) blocks: u64,
    /// Asked between two batches.
    pub(crate) go_on: &'a dyn Fn() -> bool,
}

impl Pace<'_> {
    /// Everything, by long batches.
    const ALL: Self = Self { blocks: BATCH_BLOCKS, go_on: &|| true };
}

/// A copy that a device refused.
pub(crate) struct Refusal {
    device: Arc<dyn Device>,
    error: DeviceError,
}

impl From<Refusal> for Error {
    fn from(r: Refusal) -> Self {
        Self::device(&r.device, r.error)
    }
}

/// What a migration did.
#[derive(Default)]
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
    /// A page that a guard keeps at home, or a pin where it is.
    pub(crate) pinned: bool,
    /// A page of which no copy is left.
    pub(crate) lost: bool,
    /// A page on which the access is forbidden.
    pub(crate) denied: bool,
    /// There was no room for everything.
    pub(crate) full: bool,
    /// A copy that a device refused, the first of them: its pages stayed where they were.
    pub(crate) failed: Option<Refusal>,
}

impl Moved {
    pub(crate) fn add(&mut self, o: Self) {
        self.moved += o.moved;
        self.resident += o.resident;
        self.refused += o.refused;
        self.released += o.released;
        self.blocked = self.blocked.or(o.blocked);
        self.foreign |= o.foreign;
        self.pinned |= o.pinned;
        self.lost |= o.lost;
        self.denied |= o.denied;
        self.full |= o.full;
        self.failed = self.failed.take().or(o.failed);
    }

    /// For who needs the bytes: pages of which no copy is left are an error, and those that stayed away: what is at home in their place
    /// is old. A device may be lost under the batch that fetches them.
    pub(crate) fn complete(self, seg: &Segment, pages: &Pages) -> Result<Self, Error> {
        if self.lost {
            return Err(seg.loss(pages));
        }
        self.unrefused()
    }

    /// For who cannot go on before all has come: a copy that a device refused is an error. The device still has the page.
    pub(crate) fn unrefused(self) -> Result<Self, Error> {
        match self.failed {
            Some(refusal) => Err(refusal.into()),
            None => Ok(self),
        }
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
    core: BatchState,
    phase: PhantomData<Phase>,
}

struct BatchState {
    seg: Arc<Segment>,
    /// `None`: the host.
    to: Option<(Arc<DeviceMirror>, Addresses)>,
    access: Access,
    /// The destination gets the pages for itself.
    moves: bool,
    spans: Vec<Span>,
    /// Grains that get an entry, whole, on a device that cannot fault; of what lies beside `spans` nothing is valid there.
    made: Vec<Span>,
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
    pub(crate) frees_on: Option<usize>,
    /// Maps the pages in the window at once instead of at the next touch.
    pub(crate) map: bool,
    /// Waits for pages that another batch has.
    pub(crate) wait: bool,
    /// The host wants to load them: where that is advised, replicas stay.
    pub(crate) reading: bool,
    /// Leaves pages that a coherent device alone has where they are, unless it has them to itself.
    pub(crate) leave_coherent: bool,
    /// Whether it fails where pages without storage would need more memory than there is.
    pub(crate) asks: Asks,
}

/// Who asks whether the host has memory before pages get storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    /// Where nobody could be told, or the bytes have nowhere else to stay: at a touch, and when a device's addresses or the device
    /// itself go.
    Not,
    /// Who may not wait, and has another way.
    Once,
    /// Who can fail: launches, guards, hints, calls.
    Patiently,
}

impl Asks {
    /// Asks for so many bytes, which are granted until they have storage and this is dropped.
    pub(crate) fn for_storage(self, requested: u64) -> Result<Grant, Error> {
        let granted = match self {
            Self::Not => Ok(Grant::NONE),
            Self::Once => os::room::take(requested),
            Self::Patiently => os::room::wait_to_take(requested),
        };
        granted.map_err(|available| Error::OutOfHostMemory { requested, available })
    }
}

impl Home {
    /// The host gets the bytes and everything else loses them.
    pub(crate) const EXCLUSIVE: Self = Self {
        exclusive_from: Some(MAX_DEVICES),
        frees_on: None,
        map: true,
        wait: true,
        reading: false,
        leave_coherent: false,
        asks: Asks::Patiently,
    };
    /// As [`EXCLUSIVE`](Self::EXCLUSIVE), but in blocks that are mostly read devices keep clean copies.
    pub(crate) const READING: Self = Self { reading: true, ..Self::EXCLUSIVE };
    /// The host gets the bytes; devices keep clean copies.
    pub(crate) const SHARED: Self = Self { exclusive_from: None, ..Self::EXCLUSIVE };

    /// Device `slot` loses its copies and its frames, with `wait` those that another batch has as well. Whether the host has room for
    /// them is not asked: who can leave them where they are asks.
    pub(crate) const fn off(slot: usize, wait: bool) -> Self {
        Self { exclusive_from: Some(slot), frees_on: Some(slot), map: false, wait, asks: Asks::Not, ..Self::EXCLUSIVE }
    }

    fn duplicates(&self, body: &Body) -> bool {
        self.reading && body.read_mostly
    }

    fn ends_on(&self, slot: usize, body: &Body) -> bool {
        !self.duplicates(body) && self.exclusive_from.is_some_and(|e| e == MAX_DEVICES || e == slot)
    }
}

impl Drop for BatchState {
    fn drop(&mut self) {
        // Before the commit this puts every page back; after it, `spans` is empty.
        let mut free = Free::at_entry();
        for (m, p) in std::mem::take(&mut self.points) {
            // A copy that is still running uses the pages; if its device is lost it has stopped.
            let _ = m.reach(&mut free, p);
        }
        for s in std::mem::take(&mut self.spans) {
            end_busy(self.seg.space(), &mut free, s);
        }
    }
}

/// Ends `busy` on a span, shows launches what was hidden from them, and wakes whoever waits for it.
pub(crate) fn end_busy(space: &Space, free: &mut Free, s: Span) {
    let block = space.block(s.block);
    let mut body = block.lock(free);
    for slot in body.devices() {
        if body.dev[slot].hidden.meets(s.mask)
            && let Some(rec) = block.segment()
        {
            let _driver = space.slots[slot].lock.hold();
            body.unhide(slot, s.mask);
            DeviceMirror::refresh_ready(space, rec, block, &body, slot);
        }
    }
    let wanted = body.let_go(s.mask);
    drop(body);
    block.bump(s.mask);
    if !wanted.is_empty() {
        space.host.wake(space, s.block, wanted);
    }
    space.device_faults.retry();
}

impl From<BatchState> for Batch<Collected> {
    fn from(core: BatchState) -> Self {
        Self { core, phase: PhantomData }
    }
}

impl<P> Batch<P> {
    fn into<Q>(self) -> Batch<Q> {
        Batch { core: self.core, phase: PhantomData }
    }

    fn space(&self) -> &'static Space {
        self.core.seg.space()
    }
}

impl Batch<Collected> {
    /// Unmaps the pages and starts the copies, in this order.
    fn start(self, free: &mut Free) -> Result<Batch<Copying>, Error> {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::COPY_BEFORE_UNMAP) {
            let early = self.into::<Unmapped>().alloc_and_copy(free)?;
            return Ok(early.into::<Collected>().unmap(free)?.into());
        }
        self.unmap(free)?.alloc_and_copy(free)
    }

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
        let window = space.invalidate_freeing(free, Action::Migrate { to }, c.home.frees_on, &runs)?;
        match &c.to {
            None => space.host.hide(space, free, &c.spans)?,
            Some((m, _)) => {
                // What the device alone has already stays where it is, and only gets its entry: the host may be using it there.
                let leaves = |s: &Span| {
                    let body = space.block(s.block).lock(free);
                    Span { block: s.block, mask: s.mask & !body.dev[m.slot()].dirty }
                };
                let spans: Vec<Span> = c.spans.iter().map(leaves).filter(|s| !s.mask.is_empty()).collect();
                space.host.revoke(space, free, &c.seg, &spans, &runs_of(&spans))?;
            }
        }
        drop(window);
        Ok(self.into())
    }
}

impl Batch<Copying> {
    /// Reaches the copies' points, makes the destination's entries, and commits.
    pub(crate) fn finalize_and_map(mut self, free: &mut Free) -> Result<Moved, Error> {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::REUSED_BEFORE_ITS_POINT) {
            self.core.points.clear();
        }
        for (m, p) in std::mem::take(&mut self.core.points) {
            m.reach(free, p)?;
        }
        match self.core.to.clone() {
            Some((m, view)) => self.map_on_device(free, &m, view)?,
            None => self.commit_home(free),
        }
        Ok(std::mem::take(&mut self.core.result))
    }
}

/// Waits until another batch has let go of the page that blocked us.
pub(crate) fn wait_blocked(_free: &mut Free, space: &Space, blocked: (BlockId, u32)) {
    space.block(blocked.0).wait_epoch(blocked.1, Some(Duration::from_millis(10)));
}

/// Waits until every page of `pages` that is on its way now has arrived.
pub(crate) fn wait_arrived(free: &mut Free, seg: &Segment, pages: &Pages) {
    for (id, mask) in pages.blocks() {
        let block = seg.space().block(id);
        loop {
            let epoch = {
                let body = block.lock(free);
                if !body.busy.meets(mask) {
                    break;
                }
                block.epoch()
            };
            block.wait_epoch(epoch, Some(Duration::from_millis(10)));
        }
    }
}

const _: () = assert!(BLOCK / PAGE == PAGES_PER_BLOCK as u64);
