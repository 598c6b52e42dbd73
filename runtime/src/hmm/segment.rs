//! One mapping of the space: a segment (`vm_area_struct`), its records, and the gate.
//!
//! **Guarantee.** A segment covers whole blocks of its own, so that two allocations never share a page, a granule or a lock.
//! It has a place in the window and a place in the arena's storage, each with its own offset: nobody computes one from the
//! other. Its storage and its device memory are given back exactly once, when the last user (the handle, a view, an
//! unfinished launch) lets go.
//!
//! **Two records.** [`Segment`] is for code that may allocate and lock. [`SegRec`] is plain words in a table that never
//! moves: the gate, which `deref` reads, and the `ready` words, which the fast path of a launch reads.
//!
//! **Who may change what.** `ready` words: whoever holds the block's lock and the device's driver lock. The gate's counters:
//! [`InFlight`](super::inflight::InFlight) when it is recorded and when it retires. `uses`, `taints`, `pins`: under their mutex,
//! held for word operations.

mod ending;

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use sterna_host::mappings;

use super::addr::{BLOCK, BlockId, GRANULE, Mask, PAGE, Pages, Span};
use super::backing::Backing;
use super::block::{Block, Grow};
use super::extent::Extent;
use super::gate::Gate;
use super::lock::Free;
use super::mirror::DeviceMirror;
use super::os;
use super::parts::{Slots, Views};
use super::pin::{Keeper, PinKind};
use super::seat::Addresses;
use super::source::Sources;
use super::space::Space;
use super::taint::Taint;
use super::uses::{Of, Uses};
use crate::policy::{FaultRule, HintMap, Hints, Side};

/// The part of a segment that lives in a table and never moves. All zero: no segment.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct SegRec {
    /// First: where it stands says which record's it is, and behind the last field begins the next record.
    pub(crate) view: Views,
    pub(crate) gate: Gate,
    /// Blocks of the segment.
    pub(crate) blocks: AtomicU32,
    /// The file behind it, for faults that read it (see `host/read`); null: none.
    pub(crate) backing: AtomicPtr<Backing>,
    /// Byte of the window that it begins with, where there is a file.
    pub(crate) start: AtomicU64,
    /// Pages that have not been fetched from where its bytes come from.
    pub(crate) unread: AtomicU64,
    /// Faults that are reading the file.
    pub(crate) reading: AtomicU32,
    /// Bit `d`: device `d` has, or had, addresses for it or launches that use it. The views of others are all zero.
    known: AtomicU64,
}

const _: () = assert!(std::mem::offset_of!(SegRec, view) < size_of::<SegRec>());

impl SegRec {
    /// Back to 'no segment'. Nobody uses it meanwhile.
    pub(crate) fn reset(&self) {
        self.gate.reset();
        self.blocks.store(0, Ordering::Relaxed);
        self.backing.store(ptr::null_mut(), Ordering::Relaxed);
        self.unread.store(0, Ordering::Relaxed);
        for v in self.devices().map(|d| &self.view[d]) {
            for word in [&v.ready_read, &v.ready_write, &v.active, &v.stale, &v.hold, &v.seated] {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.known.store(0, Ordering::Relaxed);
    }

    /// Device `slot` gets a view.
    pub(crate) fn admit(&self, slot: usize) {
        if self.known.load(Ordering::Acquire) >> slot & 1 == 0 {
            self.known.fetch_or(1 << slot, Ordering::AcqRel);
        }
    }

    /// Devices that have, or had, a view.
    pub(crate) fn devices(&self) -> Slots {
        Slots(self.known.load(Ordering::Acquire))
    }
}

/// One device's view of a segment, for the fast path.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct ViewRec {
    /// Blocks that a kernel may read throughout without a fault or a change of state.
    pub(crate) ready_read: AtomicU32,
    /// … or write.
    pub(crate) ready_write: AtomicU32,
    /// Launches that use the segment there and have not retired.
    pub(crate) active: AtomicU32,
    /// Whether some entry may name bytes out of date.
    pub(crate) stale: AtomicU32,
    /// Who holds launches back; see [`hold`](super::hold).
    pub(crate) hold: AtomicU32,
    /// Batches that are moving pages to its addresses there. Raised under the driver lock.
    pub(super) seated: AtomicU32,
}

/// What a segment's bytes are.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The process's own.
    Private,
    /// Meant for others too: they do not migrate.
    Shared,
    /// A file's; `shared`: stores are written back, and its pages do not migrate for good.
    File { shared: bool },
    /// Given when the segment was made, and read-only for good.
    Imported,
}

/// A device's slot, a segment's addresses there, and the device.
type View = (usize, Addresses, Arc<DeviceMirror>);

/// One mapping of the space.
#[derive(Debug)]
pub struct Segment {
    space: &'static Space,
    slot: u32,
    first: BlockId,
    blocks: u32,
    bytes: u64,
    kind: Kind,
    /// Which of them are somebody's.
    pub(crate) extent: Extent,
    /// Its addresses on each device, and the device: it stays until the segment has given its memory back, whoever lets go of
    /// the segment last.
    views: RwLock<SmallVec<[View; 1]>>,
    /// Jobs of schedulers that are about it: launches look for what stands before them while there are some.
    queued: AtomicU32,
    pub(crate) uses: Mutex<Uses>,
    pub(crate) taints: Mutex<BTreeMap<u64, Taint>>,
    /// Whether there are any: launches look at them only then.
    pub(super) has_taints: AtomicBool,
    pub(crate) pins: Mutex<Vec<(Pages, Keeper)>>,
    /// Whether there are any: who keeps pages at home looks at them only then.
    pub(super) has_pins: AtomicBool,
    /// Blocks that the engine has looked at: work is proportional to what is touched, never to what is allocated.
    claimed: Mutex<Vec<BlockId>>,
    rule: OnceLock<FaultRule>,
    hints: Mutex<HintMap>,
    /// Some of its pages were protected, unmapped or remapped.
    altered: AtomicBool,
    /// A driver writer made it: there are no references of a program's to its bytes.
    bare: AtomicBool,
    /// Some of its pages were remapped.
    remapped: AtomicBool,
    /// Some of its pages were lost with a device once.
    pub(super) lossy: AtomicBool,
    /// It was dropped, and its devices know.
    dropped: bool,
    pub(super) sources: Sources,
}

impl Segment {
    /// A new segment of `bytes` bytes, all zero, that costs nothing until it is touched.
    ///
    /// # Errors
    /// [`TooBig`](crate::Error::TooBig) if the arena has no such stretch left.
    pub fn new(space: &'static Space, bytes: u64) -> Result<Arc<Self>, crate::Error> {
        Ok(Self::with(space, bytes, Kind::Private)?.bared())
    }

    /// As [`new`](Self::new), of memory that others are to share (`MAP_SHARED`): devices may use it, and it does not migrate.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shared(space: &'static Space, bytes: u64) -> Result<Arc<Self>, crate::Error> {
        Ok(Self::with(space, bytes, Kind::Shared)?.bared())
    }

    /// A segment of `contents`, which is copied, for loads only and for good: it neither migrates nor can it be protected
    /// otherwise.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Invalid`](crate::Error::Invalid) for no bytes at all.
    pub fn imported(space: &'static Space, contents: &[u8]) -> Result<Arc<Self>, crate::Error> {
        super::entry::check()?;
        if contents.is_empty() {
            return Err(crate::Error::Invalid { what: "importing nothing" });
        }
        let this = Self::unpublished(space, contents.len() as u64, Kind::Imported)?.bared();
        // SAFETY: the segment's own storage, which nobody finds before it is published.
        unsafe { space.direct_at(this.offset()).as_ptr().copy_from_nonoverlapping(contents.as_ptr(), contents.len()) };
        super::prot::seal(&this)?;
        space.publish(&this);
        Ok(this)
    }

    /// A driver writer's, with no reference of a program's to its bytes.
    pub(super) fn bared(self: Arc<Self>) -> Arc<Self> {
        self.bare.store(true, Ordering::Release);
        self
    }

    /// Whether a driver writer made it, and no program has references to its bytes.
    pub(crate) fn is_bare(&self) -> bool {
        self.bare.load(Ordering::Acquire)
    }

    pub(crate) fn with(space: &'static Space, bytes: u64, kind: Kind) -> Result<Arc<Self>, crate::Error> {
        let this = Self::unpublished(space, bytes, kind)?;
        space.publish(&this);
        Ok(this)
    }

    /// One whose pages nobody looks at before [`Space::publish`]: drivers come by addresses, and the service thread may still have a
    /// fault of the segment that was there before.
    pub(crate) fn unpublished(space: &'static Space, bytes: u64, kind: Kind) -> Result<Arc<Self>, crate::Error> {
        super::fork::check()?;
        space.check_limits(bytes)?;
        let blocks = u32::try_from(bytes.div_ceil(BLOCK)).map_err(|_| space.too_big(bytes))?;
        let (slot, first) = space.take_blocks(blocks.max(1))?.ok_or_else(|| space.too_big(bytes))?;
        let blocks = blocks.max(1);
        let rec = space.rec(slot);
        rec.blocks.store(blocks, Ordering::Relaxed);
        Ok(Arc::new(Self {
            space,
            slot,
            first,
            blocks,
            bytes,
            kind,
            extent: Extent::new(bytes),
            views: RwLock::default(),
            queued: AtomicU32::new(0),
            uses: Mutex::default(),
            taints: Mutex::default(),
            has_taints: AtomicBool::new(false),
            pins: Mutex::default(),
            has_pins: AtomicBool::new(false),
            claimed: Mutex::default(),
            rule: OnceLock::new(),
            hints: Mutex::default(),
            altered: AtomicBool::new(false),
            bare: AtomicBool::new(false),
            remapped: AtomicBool::new(false),
            lossy: AtomicBool::new(false),
            dropped: false,
            sources: Sources::default(),
        }))
    }

    /// The pages it covers: its bytes, rounded up to whole granules.
    #[must_use]
    pub fn pages(&self) -> Pages {
        let first = self.first.first_page().0;
        Pages(first..first + self.bytes.max(1).next_multiple_of(GRANULE) / PAGE)
    }

    /// The pages that hold bytes `range` of the segment; those of bytes that it does not have are another's, or nobody's.
    #[must_use]
    pub fn pages_of(&self, range: &Range<u64>) -> Pages {
        let base = self.first.offset();
        Pages::covering(base.saturating_add(range.start)..base.saturating_add(range.end))
    }

    /// Asks for the memory that filling bytes `range` takes, before anything is begun: what has storage needs none.
    pub(crate) fn ask_for_storage(&self, range: &Range<u64>) -> Result<(), crate::Error> {
        let pages = self.pages_of(range);
        self.ask_for_pages(range.end - range.start, || pages.blocks())
    }

    /// As [`ask_for_storage`](Self::ask_for_storage), for pages by block, on behalf of an operation on `requested` bytes. Where little is
    /// left they get their storage at once: filling them may take any time.
    pub(crate) fn ask_for_pages<I: Iterator<Item = (BlockId, Mask)>>(
        &self,
        requested: u64,
        pages: impl Fn() -> I,
    ) -> Result<(), crate::Error> {
        let space = self.space;
        let refused = |available| crate::Error::OutOfHostMemory { requested, available };
        let all = pages().map(|(_, mask)| u64::from(mask.count()) * PAGE).sum();
        if os::room::is_plenty(all) {
            os::room::take(all).map_err(refused)?.lapse();
            return Ok(());
        }
        // Looking at each page is for what could be there.
        let least = all.saturating_sub(os::stored(space.file()));
        drop(os::room::wait_to_take(least).map_err(refused)?);
        let bare = |(block, mask)| Span { block, mask: space.host.holes(space, block, mask) };
        let bare: Vec<Span> = pages().map(bare).filter(|s| !s.mask.is_empty()).collect();
        let lacks = bare.iter().map(|s| u64::from(s.mask.count()) * PAGE).sum();
        let _until_there = os::room::wait_to_take(lacks).map_err(refused)?;
        bare.iter().try_for_each(|s| space.host.store(space, s.block, s.mask))
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Says what a forked child finds where the segment is; see [`ForkPolicy`](super::ForkPolicy).
    ///
    /// # Errors
    /// [`Forked`](crate::Error::Forked) in a forked child.
    pub fn set_fork_policy(self: &Arc<Self>, policy: super::ForkPolicy) -> Result<(), crate::Error> {
        super::entry::check()?;
        super::fork::plan(self, &(0..self.bytes), policy);
        Ok(())
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether its pages may move for good: the process's own, and a file's where stores stay in memory.
    pub(crate) fn migrates(&self) -> bool {
        match &self.kind {
            Kind::Private => true,
            Kind::File { shared } => !shared,
            Kind::Shared | Kind::Imported => false,
        }
    }

    /// Byte offset of its first byte in the window.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.first.offset()
    }

    /// Where its first byte is for the program. Who uses the pointer does for each access what a handle's borrow and gate do.
    #[must_use]
    pub fn as_host_ptr(&self) -> *mut u8 {
        self.space.window_at(self.offset()).as_ptr()
    }

    /// Gives its whole blocks storage in huge folios, where the system has such and nothing was stored yet. A hint: it changes no byte,
    /// whoever stores at the same time, and passes over blocks that a launch or a move has.
    pub fn prefer_huge(self: &Arc<Self>) {
        if super::fork::forked() {
            return;
        }
        let whole = self.first.first_page().0;
        let pages = Pages(whole..whole + self.bytes / BLOCK * (BLOCK / PAGE));
        self.space.host.make_huge(self.space, &mut Free::at_entry(), self, &pages);
    }

    pub(crate) fn space(&self) -> &'static Space {
        self.space
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    pub(crate) fn first(&self) -> BlockId {
        self.first
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    pub(crate) fn rec(&self) -> &'static SegRec {
        self.space.rec(self.slot)
    }

    /// Pages of block number `n` of the segment that belong to it.
    pub(crate) fn limit(&self, n: u32) -> Mask {
        let pages = self.pages().len() - u64::from(n) * (BLOCK / PAGE);
        Mask::range(0..pages.min(BLOCK / PAGE) as usize)
    }

    /// The device's addresses for it, once [`DeviceMirror::view`](super::mirror::DeviceMirror::view) has reserved them.
    pub(crate) fn view(&self, slot: usize) -> Option<Addresses> {
        self.views.read().iter().find(|v| v.0 == slot).map(|v| v.1)
    }

    pub(crate) fn set_view(&self, mirror: &Arc<DeviceMirror>, range: Addresses) -> Addresses {
        let slot = mirror.slot();
        self.rec().admit(slot);
        let mut views = self.views.write();
        if let Some(there) = views.iter().find(|v| v.0 == slot) {
            return there.1;
        }
        views.push((slot, range, Arc::clone(mirror)));
        range
    }

    /// Whether somebody is bringing pages to its addresses. Under the driver lock.
    pub(crate) fn is_seated(&self, slot: usize) -> bool {
        self.rec().view[slot].seated.load(Ordering::Acquire) > 0
    }

    /// A scheduler has a job more that is about it.
    pub(crate) fn queue(&self) {
        self.queued.fetch_add(1, Ordering::AcqRel);
    }

    /// … or one less.
    pub(crate) fn unqueue(&self) {
        self.queued.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether something asked for, which has to do with it, was not carried out.
    pub(crate) fn is_awaited(&self) -> bool {
        self.queued.load(Ordering::Acquire) > 0
    }

    /// Takes its addresses away: the device is detached, or it has nothing of the segment any more.
    pub(crate) fn give_up_view(&self, mirror: &DeviceMirror) -> Option<Addresses> {
        let mut views = self.views.write();
        let i = views.iter().position(|v| ptr::eq(&*v.2, mirror))?;
        let (slot, range, _) = views.swap_remove(i);
        self.rec().view[slot].stale.store(0, Ordering::Release);
        Some(range)
    }

    /// The bytes of the segment that a block holds.
    pub(crate) fn bytes_of(&self, block: BlockId) -> Range<u64> {
        let start = u64::from(block.0 - self.first.0) * BLOCK;
        start..start + BLOCK
    }

    /// Bytes of the segment that pages hold; none of what lies before it.
    pub(crate) fn bytes_in(&self, pages: &Pages) -> Range<u64> {
        let at = |page: u64| (page * PAGE).saturating_sub(self.offset());
        at(pages.0.start)..at(pages.0.end)
    }

    /// Which byte of the segment a page of a block begins with.
    pub(crate) fn view_offset(&self, block: BlockId, page: usize) -> u64 {
        u64::from(block.0 - self.first.0) * BLOCK + page as u64 * PAGE
    }

    /// Waits for unfinished launches that write bytes of `bytes`, with `write` also for those that read them.
    pub(crate) fn wait_unused(&self, free: &mut Free, bytes: &Range<u64>, write: bool) {
        loop {
            let next = self.uses.lock().overlapping(Of::Any, bytes, write).next().map(|u| Arc::clone(&u.launch));
            match next {
                Some(l) => {
                    l.wait(free, None);
                }
                None => return,
            }
        }
    }

    /// `pages` are about to be replaced by the host, which gives them storage: what was lost of them need not be found again.
    pub(crate) fn forgive(&self, free: &mut Free, pages: &Pages) {
        let mut pages = pages.clone();
        if pages.0.end == self.pages_of(&(0..self.bytes)).0.end {
            pages.0.end = self.pages().0.end; // what lies behind the last byte was lost with it
        }
        for id in self.claimed() {
            let mask = pages.part_of(id);
            let mut body = self.space.block(id).lock(free);
            body.forgive(mask);
            body.stored(mask);
        }
    }

    /// Sets or clears the `pinned`, `bordered` and `held` bits of `pages` from the list of pins, which the caller has changed.
    pub(crate) fn apply_pins(&self, free: &mut Free, pages: &Pages) {
        for (id, mask) in pages.blocks() {
            let block = self.space.block(id);
            let mut body = block.lock(free);
            let (mut pinned, mut held, mut bordered) = (Mask::EMPTY, Mask::EMPTY, Mask::EMPTY);
            for (p, keeper) in self.pins.lock().iter() {
                let kept = match keeper {
                    Keeper::Pin(PinKind::Long) => &mut pinned,
                    Keeper::Pin(PinKind::Short) => &mut held,
                    Keeper::Launch => &mut bordered,
                };
                *kept |= p.part_of(id);
            }
            // Where a pin keeps all of a block, nothing of it leaves.
            let limit = self.limit(id.0 - self.first.0);
            let partly = |kept: Mask| !kept.is_empty() && !kept.covers(limit);
            if partly(pinned | held | bordered) && !partly(body.stays()) {
                self.space.host.before_guard(self.space, id, &body);
            }
            body.keep(mask, pinned, held, bordered);
        }
    }

    /// A block's record, filled in if this is its first use by the engine. An allocation fills in none, so that it costs the
    /// same at every size; a fault handler changes none that is not filled in, since only the engine makes pages that fault.
    pub(crate) fn claim(&self, id: BlockId) -> &'static Block {
        let block = self.space.block(id);
        if block.segment().is_none() {
            let mut claimed = self.claimed.lock();
            if block.segment().is_none() {
                let pages = self.limit(id.0 - self.first.0).count() as usize;
                let holding = (self.bytes.max(1) - self.bytes_of(id).start).min(BLOCK).div_ceil(PAGE) as usize;
                block.assign(Some((self.slot, pages, holding)));
                self.decide(id);
                claimed.push(id);
            }
        }
        block
    }

    /// Writes down what faults on a block do, from the policy's rule and the program's hints.
    fn decide(&self, id: BlockId) {
        let rule = self.rule.get().copied().unwrap_or_default();
        let hints = {
            let hints = self.hints.lock();
            let start = id.offset() - self.offset();
            if hints.is_empty() { Hints::default() } else { hints.any(&(start..start + BLOCK)) }
        };
        let watched = {
            let mut body = self.space.block(id).lock_in_handler();
            let away = matches!(hints.preferred, Some(Side::Device(_)));
            body.decide(if away { Grow::GRANULE } else { rule.host }, rule.device, hints.in_place());
            body.read_mostly != hints.read_mostly
        };
        if watched {
            self.space.host.read_mostly(self.space, id, hints.read_mostly);
        }
    }

    /// Changes what the program says of bytes `bytes`.
    pub(crate) fn hint(&self, bytes: &Range<u64>, change: impl Fn(&mut Hints)) {
        let pages = self.pages_of(bytes);
        let (start, end) = (pages.0.start * PAGE - self.offset(), pages.0.end * PAGE - self.offset());
        let _ = mappings::plenty(0); // counts before the locks, if need be
        // With it, so that a block that is first looked at now gets what is said now.
        let claimed = self.claimed.lock();
        self.hints.lock().change(&(start..end), change);
        for id in claimed.iter().filter(|id| !pages.part_of(**id).is_empty()) {
            self.decide(*id);
        }
    }

    /// The parts of bytes `bytes` of which the program says the same.
    pub(crate) fn hinted(&self, bytes: &Range<u64>) -> Vec<(Range<u64>, Hints)> {
        self.hints.lock().parts(bytes)
    }

    /// The window over it is not as it was when the segment was made.
    pub(crate) fn note_altered(&self) {
        self.altered.store(true, Ordering::Relaxed);
    }

    /// Some of its pages may be lost.
    pub(crate) fn note_lost(&self) {
        self.lossy.store(true, Ordering::Release);
    }

    pub(crate) fn note_remapped(&self) {
        self.remapped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_remapped(&self) -> bool {
        self.remapped.load(Ordering::Relaxed)
    }

    pub(crate) fn is_altered(&self) -> bool {
        self.altered.load(Ordering::Relaxed)
    }

    /// How far faults reach; decided once, before the first use.
    pub(crate) fn set_rule(&self, rule: FaultRule) {
        let _ = self.rule.set(rule);
        // Those of a file or a copy are all looked at when it is made.
        for id in self.claimed() {
            self.decide(id);
        }
    }

    /// The blocks that the engine has looked at, in ascending order.
    pub(crate) fn claimed(&self) -> Vec<BlockId> {
        let mut ids = self.claimed.lock().clone();
        ids.sort_unstable();
        ids
    }
}

/// What is left of `a` without `b`.
pub(crate) fn without(a: &Range<u64>, b: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    [a.start..a.end.min(b.start), a.start.max(b.end)..a.end].into_iter().filter(|part| part.start < part.end)
}
