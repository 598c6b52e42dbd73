//! The address space (mm): one arena a process, its blocks, segments, devices and mirrors.
//!
//! **Guarantee.** There is one space a process, made by the first runtime and kept until the process ends. The [arena](super::arena)
//! is one sparse file in memory, mapped twice: as the *window*, where the program's pointers live and faults happen, and as the
//! *view*, always readable and writable, which is the only side the runtime touches. A space that could not be started is kept for
//! the next attempt: its threads cannot be taken back.
//!
//! **Locks.** `segments` (rank 1): read to find a segment, written to add or remove one; never held over anything that waits.
//! `ranges`: the allocator of blocks, a leaf. Each device slot's `lock` is that device's *driver lock* (rank 3).

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use sterna_hal::HostAt;

use super::addr::{BLOCK, BlockId, Mask, PAGE, Page, Pages};
use super::arena::Arena;
use super::block::Block;
use super::claim::Claims;
use super::device_fault::DeviceFaults;
use super::host::{Host, Mechanism};
use super::lock::{Free, Futex};
use super::mirror::{Action, DeviceMirror, Mirror, MirrorOps};
use super::os;
use super::parts::{MAX_DEVICES, Slots, Tables};
use super::segment::{SegRec, Segment};
use crate::Error;
use crate::stats::Counters;

/// What a signal handler may read of a device.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The driver lock: the device's page table and its masks in every block, `ready` words, submissions.
    pub(crate) lock: Futex,
    /// Where the device's frames can be read by plain loads; null if they cannot.
    pub(crate) frames: AtomicPtr<u8>,
    /// The file of the device's memory, where the host uses that in place; else -1.
    pub(crate) frames_fd: AtomicI32,
    /// Bytes a grain.
    pub(crate) grain: AtomicU64,
    /// The device's counters; shared with whoever reads them.
    pub(crate) counters: Counters,
    /// The device's part of every block, and its view of every segment.
    pub(super) tables: Tables,
}

impl Slot {
    fn new() -> Self {
        Self {
            lock: Futex::new(),
            frames: AtomicPtr::new(ptr::null_mut()),
            frames_fd: AtomicI32::new(-1),
            grain: AtomicU64::new(PAGE),
            counters: Counters::default(),
            tables: Tables::new(),
        }
    }

    /// Descriptor of the file of the device's memory. Only where [`is_coherent`](Self::is_coherent).
    pub(crate) fn frames_fd(&self) -> i32 {
        self.frames_fd.load(Ordering::Acquire)
    }

    /// Whether the host uses the device's memory in place.
    pub(crate) fn is_coherent(&self) -> bool {
        self.frames_fd() >= 0
    }

    /// Pages a grain.
    pub(crate) fn pages_per_grain(&self) -> usize {
        (self.grain.load(Ordering::Relaxed) / PAGE) as usize
    }
}

#[derive(Debug, Default)]
struct Ranges {
    /// Free stretches of blocks: first block to count.
    free: BTreeMap<u32, u32>,
    slots: Vec<u32>,
    next_slot: u32,
}

/// The process's shared address space.
#[derive(Debug)]
pub struct Space {
    arena: Arena,
    pub(crate) slots: [Slot; MAX_DEVICES],
    /// Bit `d`: slot `d` is some device's.
    taken: AtomicU64,
    /// … and whoever had that device has let go of it, so that the slot is free in a moment.
    freeing: AtomicU64,
    ranges: Mutex<Ranges>,
    segments: RwLock<BTreeMap<u32, (u32, Weak<Segment>)>>,
    devices: RwLock<[Option<Weak<DeviceMirror>>; MAX_DEVICES]>,
    mirrors: RwLock<Vec<Weak<Mirror>>>,
    pub(crate) host: Host,
    pub(crate) device_faults: DeviceFaults,
    pub(crate) claims: Claims,
    clock: AtomicU64,
    live: AtomicU32,
}

static SPACE: AtomicPtr<Space> = AtomicPtr::new(ptr::null_mut());
/// Held while a space is made; one that could not be started.
static MAKING: Mutex<Option<&'static Space>> = Mutex::new(None);

impl Space {
    /// The process's space, if a runtime has made it. Signal-safe.
    #[must_use]
    pub fn existing() -> Option<&'static Self> {
        // SAFETY: either null or a leaked box.
        unsafe { SPACE.load(Ordering::Acquire).as_ref() }
    }

    /// The process's space, made if need be with the host-fault mechanism `wanted` (or the best there is).
    ///
    /// # Errors
    /// The system refuses what the arena needs, or a mechanism that was asked for; the message says what to do.
    /// [`MechanismInUse`](Error::MechanismInUse) if the space exists with another mechanism.
    pub fn process(wanted: Option<Mechanism>) -> Result<&'static Self, Error> {
        super::fork::check()?;
        super::fork::watch();
        let mut making = MAKING.lock();
        let in_use = |space: &'static Self| match wanted {
            Some(asked) if asked != space.host.mechanism() => {
                Err(Error::MechanismInUse { asked, in_use: space.host.mechanism() })
            }
            _ => Ok(space),
        };
        if let Some(space) = Self::existing() {
            return in_use(space);
        }
        let space = match *making {
            Some(space) => in_use(space)?,
            None => Box::leak(Box::new(Self::new(wanted)?)),
        };
        *making = Some(space);
        space.host.start(space)?;
        space.device_faults.start(space)?;
        // Only a space that can serve faults is anybody's: nothing can touch the window before this.
        SPACE.store(ptr::from_ref(space).cast_mut(), Ordering::Release);
        Ok(space)
    }

    fn new(wanted: Option<Mechanism>) -> Result<Self, Error> {
        let slots = std::array::from_fn(|_| Slot::new());
        // Of one device, so that the arena is not larger than what one needs with it.
        let arena = Arena::new(&slots[0].tables)?;
        let host = Host::new(wanted, arena.window())?;
        let n = arena.most() as u32;
        Ok(Self {
            arena,
            slots,
            taken: AtomicU64::new(0),
            freeing: AtomicU64::new(0),
            ranges: Mutex::new(Ranges { free: BTreeMap::from([(0, n)]), ..Ranges::default() }),
            segments: RwLock::default(),
            devices: RwLock::new([const { None }; MAX_DEVICES]),
            mirrors: RwLock::default(),
            host,
            device_faults: DeviceFaults::new(),
            claims: Claims::default(),
            clock: AtomicU64::new(1),
            live: AtomicU32::new(0),
        })
    }

    /// Bytes of address space that allocations can have in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.arena.bytes()
    }

    /// How the host's own accesses are served.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.host.mechanism()
    }

    /// Segments that exist now.
    #[must_use]
    pub fn segments(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// The next tick of the space's clock: orders launches and faults.
    pub(crate) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// The arena's file.
    pub(crate) fn file(&self) -> &OwnedFd {
        self.arena.fd()
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.file().as_raw_fd()
    }

    /// Window address of byte `offset`.
    pub(crate) fn window_at(&self, offset: u64) -> NonNull<u8> {
        self.arena.window_at(offset)
    }

    /// Addresses of the window.
    pub(crate) fn window_addresses(&self) -> Range<usize> {
        self.arena.window()
    }

    /// The runtime's own address of byte `offset` of the storage.
    pub(crate) fn direct_at(&self, offset: u64) -> NonNull<u8> {
        self.arena.direct_at(offset)
    }

    /// The page at a window address, if it lies in the part of the window that was ever used. Signal-safe.
    pub(crate) fn page_at(&self, at: usize) -> Option<Page> {
        self.arena.page_at(at)
    }

    /// A block's record. Signal-safe.
    pub(crate) fn block(&self, id: BlockId) -> &'static Block {
        self.arena.block(id)
    }

    /// The block before or behind one of the same segment, if that has such a block. Signal-safe.
    pub(crate) fn neighbour(&self, id: BlockId, block: &Block, behind: bool) -> Option<&'static Block> {
        let n = if behind { id.0.checked_add(1)? } else { id.0.checked_sub(1)? };
        let other = self.arena.reaches(n).then(|| self.block(BlockId(n)))?;
        (other.segment().is_some() && other.segment() == block.segment()).then_some(other)
    }

    /// A segment's record. Signal-safe.
    pub(crate) fn rec(&self, slot: u32) -> &'static SegRec {
        self.arena.rec(slot)
    }

    /// The space, and the number of the block whose record holds address `at`. Signal-safe.
    pub(super) fn number_of_block(at: usize) -> (&'static Self, usize) {
        let this = Self::existing().expect("records are of a space");
        (this, this.arena.number_of_block(at))
    }

    /// The same for a segment's record.
    pub(super) fn number_of_record(at: usize) -> (&'static Self, usize) {
        let this = Self::existing().expect("records are of a space");
        (this, this.arena.number_of_record(at))
    }

    /// Where the records of segments are, and the devices' views of them: address and bytes.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let (_, recs) = self.arena.reached();
        let views = move |s: &Slot| s.tables.views(recs);
        std::iter::once(self.arena.records()).chain(self.slots.iter().filter_map(views))
    }

    /// Whether an allocation of so many bytes could ever have storage for all of them. Stores of the program take it without asking, and
    /// beyond a control group's limit the kernel ends the process.
    pub(crate) fn check_limits(&self, requested: u64) -> Result<(), Error> {
        const LEAST: u64 = 1 << 20; // no process lives in less, so small allocations cost no look
        if requested < LEAST {
            return Ok(());
        }
        let file_system = self
            .arena
            .storage_limit()
            .map(|limit| (limit, "/dev/shm, which holds shared memory where memfd_create is forbidden"));
        let group = (os::groups::group_limit(), crate::error::CONTROL_GROUP);
        match file_system.into_iter().chain([group]).find(|(limit, _)| requested > *limit) {
            Some((limit, what)) => Err(Error::TooBig { requested, limit, what }),
            None => Ok(()),
        }
    }

    pub(crate) fn too_big(&self, requested: u64) -> Error {
        let largest = self.ranges.lock().free.values().copied().max().unwrap_or(0);
        Error::TooBig { requested, limit: u64::from(largest) * BLOCK, what: "the arena's longest free stretch" }
    }

    // ── segments ──

    /// A slot and blocks for a new segment, which are its own until [`retire`](Self::retire).
    pub(crate) fn take_blocks(&self, n: u32) -> Result<Option<(u32, BlockId)>, Error> {
        let (slot, first) = {
            let mut r = self.ranges.lock();
            let Some((&first, &len)) = r.free.iter().find(|(_, len)| **len >= n) else { return Ok(None) };
            r.free.remove(&first);
            if len > n {
                r.free.insert(first + n, len - n);
            }
            let slot = r.slots.pop().unwrap_or_else(|| {
                r.next_slot += 1;
                r.next_slot - 1
            });
            (slot, first)
        };
        if let Err(e) = self.arena.reach(first + n, slot + 1, || self.slots.iter().map(|s| &s.tables)) {
            self.give_blocks(slot, first, n);
            return Err(Error::System(e));
        }
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(Some((slot, BlockId(first))))
    }

    fn give_blocks(&self, slot: u32, mut first: u32, mut len: u32) {
        let mut r = self.ranges.lock();
        if let Some((&f, &l)) = r.free.range(..first).next_back()
            && f + l == first
        {
            r.free.remove(&f);
            (first, len) = (f, len + l);
        }
        if let Some(l) = r.free.remove(&(first + len)) {
            len += l;
        }
        r.free.insert(first, len);
        r.slots.push(slot);
    }

    /// Makes a new segment findable.
    pub(crate) fn publish(&self, seg: &Arc<Segment>) {
        self.segments.write().insert(seg.first().0, (seg.blocks(), Arc::downgrade(seg)));
    }

    /// The segment that a page belongs to. None in a forked child.
    #[must_use]
    pub fn find(&self, page: Page) -> Option<Arc<Segment>> {
        if super::fork::forked() || page.0 >= self.bytes() / PAGE {
            return None;
        }
        self.segment_of(page.block())
    }

    pub(crate) fn segment_of(&self, id: BlockId) -> Option<Arc<Segment>> {
        let map = self.segments.read();
        let (first, (blocks, seg)) = map.range(..=id.0).next_back()?;
        if id.0 - first < *blocks { seg.upgrade() } else { None }
    }

    /// Frees the storage of a range of the file, which nobody uses, and has devices let go of what they hold of it. Only here: the
    /// pages that come there next are others. Afterwards and not before, since copies of neighbouring pages may have a device
    /// take hold of a whole stretch at any time.
    pub(crate) fn free_storage(&self, range: Range<u64>) -> io::Result<()> {
        let done = os::punch_hole(self.file(), range.clone());
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::FREED_UNTOLD) {
            return done;
        }
        for m in self.devices() {
            let at = HostAt { region: m.region(), offset: range.start };
            // SAFETY: a part of the arena, which the device was told of; nobody uses the range, by this function's own condition.
            unsafe { m.device().host_freed(at, range.end - range.start) };
        }
        done
    }

    /// The end of a dropped segment, which its devices know to be leaving: mirrors are told, then device entries, frames and addresses
    /// go, then storage, then records. Nobody uses it any more.
    pub(crate) fn retire(&self, seg: &Segment) {
        if crate::hmm::fork::forked() {
            return;
        }
        let mut free = Free::at_entry();
        self.segments.write().remove(&seg.first().0);
        // The engine's own devices find no segment there: what they have goes below, in one piece.
        let mirrored = !self.mirrors.read().is_empty();
        let told = mirrored.then(|| self.invalidate(&mut free, Action::Invalidate, &[seg.pages()]));
        seg.stop_reading(&mut free);
        // Before the frames are anybody's again.
        for id in seg.claimed() {
            let block = self.block(id);
            let mut body = block.lock(&mut free);
            self.host.unframe(self, (id, block), &mut body, Mask::FULL);
        }
        for m in seg.seats() {
            m.forget(&mut free, seg);
        }
        let mut away = seg.is_altered();
        for id in seg.claimed() {
            let block = self.block(id);
            let mut body = block.lock(&mut free);
            away |= self.host.marks(&body);
            let known = body.devices();
            body.reset();
            for d in known {
                block.refresh_usable(&body, d);
            }
            drop(body);
            block.assign(None);
        }
        let (at, bytes) = (seg.offset(), u64::from(seg.blocks()) * BLOCK);
        // Storage first: a failure here (which only a broken kernel gives) must not leave old bytes for the next owner.
        if let Err(e) = self.free_storage(at..at + bytes) {
            os::die(&format!("sterna: cannot free shared memory: {e}\n"));
        }
        if seg.is_remapped()
            && let Err(e) = super::remap::straighten(self, seg)
        {
            os::die(&format!("sterna: cannot make freed shared memory usable again: {e}\n"));
        }
        if seg.is_altered() {
            // Before the marks go: where protection stands for marks, that is all there is.
            let pages = Pages(at / PAGE..(at + bytes) / PAGE);
            if let Err(e) = self.host.unprotect(self, &pages) {
                os::die(&format!("sterna: cannot make freed shared memory usable again: {e}\n"));
            }
        }
        if away {
            self.host.vacate(self, &Pages(at / PAGE..(at + bytes) / PAGE));
        }
        let rec = self.rec(seg.slot());
        debug_assert!(rec.devices().all(|d| rec.view[d].active.load(Ordering::Relaxed) == 0));
        rec.reset();
        drop(told);
        self.give_blocks(seg.slot(), seg.first().0, seg.blocks());
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    // ── devices and mirrors ──

    /// A slot for a device, with records that are all zero.
    ///
    /// # Errors
    /// All are taken; no address space for the records.
    pub(crate) fn take_slot(&self) -> Result<usize, Error> {
        /// How long threads of the engine may still have a device in hand that nobody else has; and in all, while others come and go.
        const LEAVING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
        let begin = Instant::now();
        let (mut since, mut last) = (begin, 0);
        let free = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
        let slot = loop {
            match self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, free) {
                Ok(taken) => break taken.trailing_ones() as usize,
                Err(_) => {
                    // Read after the slots were found taken: one that was given back since counts as leaving still.
                    let leaving = self.freeing.load(Ordering::Acquire);
                    if leaving != last {
                        (since, last) = (Instant::now(), leaving);
                    }
                    if leaving == 0 || since.elapsed() > LEAVING.0 || begin.elapsed() > LEAVING.1 {
                        return Err(Error::TooManyDevices { limit: MAX_DEVICES });
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        };
        self.freeing.fetch_and(!(1 << slot), Ordering::AcqRel);
        self.arena.make(&self.slots[slot].tables).map_err(|e| {
            self.taken.fetch_and(!(1 << slot), Ordering::AcqRel);
            Error::System(e)
        })?;
        Ok(slot)
    }

    /// Slots that have, or had, a device: the others have no records.
    pub(super) fn with_records(&self) -> impl Iterator<Item = usize> + '_ {
        (0..MAX_DEVICES).filter(|slot| self.slots[*slot].tables.are_made())
    }

    /// The slots that are some device's. Signal-safe.
    pub(crate) fn taken(&self) -> Slots {
        Slots(self.taken.load(Ordering::Acquire))
    }

    /// Whoever had the device in `slot` has let go of it.
    pub(crate) fn let_go(&self, slot: usize) {
        self.freeing.fetch_or(1 << slot, Ordering::AcqRel);
    }

    pub(crate) fn give_slot(&self, slot: usize) {
        let s = &self.slots[slot];
        s.frames.store(ptr::null_mut(), Ordering::Release);
        s.frames_fd.store(-1, Ordering::Release);
        self.devices.write()[slot] = None;
        s.counters.reset();
        s.tables.clear();
        // It counts as leaving until somebody takes it: who finds all taken, and then none leaving, was not overtaken in between.
        self.taken.fetch_and(!(1 << slot), Ordering::AcqRel);
    }

    pub(crate) fn add_device(&self, m: &Arc<DeviceMirror>) {
        self.devices.write()[m.slot()] = Some(Arc::downgrade(m));
    }

    /// Whether the host uses some device's memory in place.
    pub(crate) fn has_coherent(&self) -> bool {
        self.taken().any(|slot| self.slots[slot].is_coherent())
    }

    pub(crate) fn devices(&self) -> Vec<Arc<DeviceMirror>> {
        let all = self.devices.read();
        self.taken().filter_map(|slot| all[slot].as_ref()).filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn device(&self, slot: usize) -> Option<Arc<DeviceMirror>> {
        self.devices.read()[slot].as_ref().and_then(Weak::upgrade)
    }

    /// Holds up windows: while the returned value lives none is opened, so nothing moves, and mirrors can be added. For a moment, in which
    /// its owner touches no shared memory: a page that had to move would wait for him.
    #[must_use]
    pub fn lock(&'static self) -> Locked {
        // In a forked child nothing moves, and whoever held the lock is not there.
        let mirrors = if super::fork::forked() { None } else { Some(self.mirrors.write()) };
        Locked { space: self, mirrors: ManuallyDrop::new(mirrors) }
    }

    /// The mirrors that a window calls, each of which it enters.
    fn mirrors(&self) -> Vec<Arc<Mirror>> {
        let mut all: Vec<_> = self.mirrors.read().iter().filter_map(Weak::upgrade).collect();
        all.retain(|m| m.enter()); // without the lock: the last clone may go, and what its driver holds
        all
    }

    /// Brackets a change of the host side over `runs`: opens windows, has every mirror remove its entries, and reaches the
    /// points that takes. The change may be made until the returned value is dropped, which ends the windows.
    pub(crate) fn invalidate(&self, free: &mut Free, action: Action, runs: &[Pages]) -> Result<Invalidation, Error> {
        self.invalidate_freeing(free, action, None, runs)
    }

    /// As [`window`](Self::window); the frames of device `frees` are wanted, so that its entries go even where others stay.
    pub(crate) fn invalidate_freeing(
        &self,
        free: &mut Free,
        action: Action,
        frees: Option<usize>,
        runs: &[Pages],
    ) -> Result<Invalidation, Error> {
        let mut w = Invalidation { mirrors: self.mirrors(), devices: self.devices(), seqs: Vec::new() };
        let notifiers: Vec<_> =
            w.mirrors.iter().map(|m| m.notifier()).chain(w.devices.iter().map(|d| d.notifier())).collect();
        let seqs = runs.iter().flat_map(|r| notifiers.iter().map(|n| n.open(r))).collect();
        drop(notifiers);
        w.seqs = seqs;
        // First pass: everyone starts; second pass: each has finished (the kernel's two-pass form).
        for r in runs {
            for m in &w.mirrors {
                m.call(|ops| ops.update(action, r));
            }
        }
        let zaps: Vec<_> = w.devices.iter().map(|d| d.zap_start(free, action, frees == Some(d.slot()), runs)).collect();
        #[cfg(feature = "planted")]
        let runs = if super::planted::on(&super::planted::CALLBACK_RETURNS_EARLY) { &[] } else { runs };
        for r in runs {
            for m in &w.mirrors {
                m.call(|ops| ops.finish(action, r));
            }
        }
        for (d, zap) in w.devices.iter().zip(zaps) {
            d.zap_finish(free, zap)?;
        }
        Ok(w)
    }
}

/// The space while no window can be opened (the kernel's `mmap_lock`, held for writing). Who holds it waits for nothing, touches
/// no shared memory, and calls nothing of the engine but this.
#[derive(Debug)]
pub struct Locked {
    space: &'static Space,
    /// `None` in a forked child.
    mirrors: ManuallyDrop<Option<RwLockWriteGuard<'static, Vec<Weak<Mirror>>>>>,
}

impl Locked {
    /// Registers a mirror of the whole space, as [`Mirror::register`] does without the lock.
    #[doc(alias = "hmm_mirror_register_locked")]
    #[must_use]
    pub fn register(&mut self, ops: impl MirrorOps + 'static) -> Arc<Mirror> {
        let mirror = Mirror::unregistered(self.space, ops);
        if let Some(mirrors) = &mut *self.mirrors {
            mirrors.retain(|m| m.strong_count() > 0);
            mirrors.push(Arc::downgrade(&mirror));
        }
        mirror
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !super::fork::forked() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.mirrors) };
        }
    }
}

/// An open window over some ranges; dropping it ends the window.
pub(crate) struct Invalidation {
    mirrors: Vec<Arc<Mirror>>,
    devices: Vec<Arc<DeviceMirror>>,
    seqs: Vec<u64>,
}

impl Drop for Invalidation {
    fn drop(&mut self) {
        let notifiers = || self.mirrors.iter().map(|m| m.notifier()).chain(self.devices.iter().map(|d| d.notifier()));
        for (n, seq) in notifiers().cycle().zip(&self.seqs) {
            n.end(*seq);
        }
        self.mirrors.iter().for_each(|m| m.leave());
    }
}
