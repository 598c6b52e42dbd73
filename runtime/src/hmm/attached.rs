//! A device attached to the space, for people who write drivers: what a launch does, one step at a time and by number of page.
//!
//! **Guarantee.** Counts are of pages and of batches, exact where nobody else changes the pages. An operation that fails says at
//! which page, and leaves every page usable.
//!
//! ```
//! use sterna::hmm::{Attached, Segment, Space};
//! use std::sync::Arc;
//!
//! let space = Space::process(None)?;
//! let device = Arc::new(sterna::cpu::CpuDevice::new(0, sterna::cpu::CpuConfig::default()).expect("a device"));
//! let device = Attached::new(space, device)?;
//! let seg = Segment::new(space, 1 << 20)?;
//! let done = device.migrate(&seg.pages())?;
//! assert_eq!((done.moved, done.resident), (256, 0));
//! assert!(device.snapshot(&seg.pages())?.iter().all(|pfn| pfn.is_writable()));
//! # Ok::<(), sterna::Error>(())
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use sterna_hal::kernel::{Kernel, Params};
use sterna_hal::{Absent, Access, Device, Groups};

use super::addr::{Mask, PAGE, PAGES_PER_BLOCK, Pages};
use super::block::Body;
use super::devmem::set_ranks;
use super::inflight::{ErrorSink, InFlight, RAW, Touch};
use super::lock::Free;
use super::migrate::{self, Asks, Home, Want};
use super::mirror::{By, Call, DeviceMirror, Loaded, NotYet};
use super::pfn::{MigrateFlags, Pfn, PfnFlags};
use super::range::{self, populate_within};
use super::segment::{Kind, Segment};
use super::space::Space;
use super::{entry, exclusive, host::coherent, pin, prot, reaper, segment};
use super::{fork, grid, hold};
use crate::policy::Place;
use crate::stats::Cause;
use crate::{Error, config};

/// How often a range is populated before a kernel that may fault is submitted all the same.
const PATIENCE: u32 = 8;

/// A device attached to the space. When it is dropped, what it has comes home first.
pub struct Attached {
    mirror: Arc<DeviceMirror>,
    errors: Arc<ErrorSink>,
}

/// What a migration did, in pages of the range.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Migration {
    /// Pages whose bytes were brought to the destination.
    pub moved: u64,
    /// Pages that were there already.
    pub resident: u64,
    /// Pages that stayed where they were: another device's, pinned, not migratable, or without room.
    pub refused: u64,
}

/// Bytes of a segment that a kernel gets as an argument.
#[derive(Clone, Debug)]
pub struct Operand {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Bytes of it.
    pub bytes: Range<u64>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("mirror", &self.mirror).finish_non_exhaustive()
    }
}

impl Attached {
    /// Attaches a device (`hmm_devmem_add`, `mmu_interval_notifier_insert` and the driver's own table in one).
    ///
    /// # Errors
    /// All slots are taken; the device cannot be driven by this engine; it refuses the arena.
    #[doc(alias = "hmm_devmem_add")]
    pub fn new(space: &'static Space, device: Arc<dyn Device>) -> Result<Self, Error> {
        entry::check()?;
        fork::watch();
        Ok(Self { mirror: DeviceMirror::new(space, device, config::BY_SETTINGS)?, errors: Arc::default() })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        self.mirror.device()
    }

    /// The space.
    #[must_use]
    pub fn space(&self) -> &'static Space {
        self.mirror.space()
    }

    fn parts(&self, pages: &Pages) -> Result<Vec<(Arc<Segment>, Pages)>, Error> {
        entry::check()?;
        if self.mirror.is_lost() {
            return Err(self.mirror.loss());
        }
        self.space().segments_in(pages)
    }

    /// The parts of a range that is to be moved, or copied.
    fn moving(&self, pages: &Pages) -> Result<Vec<(Arc<Segment>, Pages)>, Error> {
        let parts = self.parts(pages)?;
        parts.iter().try_for_each(|(seg, _)| entry::may_move(seg))?;
        Ok(parts)
    }

    /// Makes pages usable by the device for `access`, as `place` says (`driver_populate_range`), waiting for pages that are on
    /// their way at most `budget` without progress; `None` waits for as long as it takes.
    ///
    /// # Errors
    /// [`Fault`](Error::Fault) for a page that may not be read, [`Permission`](Error::Permission) for one that may not be
    /// written; [`Busy`](Error::Busy); [`OutOfDeviceMemory`](Error::OutOfDeviceMemory); [`Lost`](Error::Lost);
    /// [`Pinned`](Error::Pinned) where a guard or a pin keeps a page, or one of its grain, at home, on a device that cannot use it there;
    /// [`InsideKernel`](Error::InsideKernel) in a kernel; [`Invalid`](Error::Invalid) for a program's allocation with mechanism `none`,
    /// where nothing would notice what the program stores meanwhile.
    pub fn populate(&self, pages: &Pages, access: Access, place: Place, budget: Option<Duration>) -> Result<(), Error> {
        let mut free = Free::at_entry();
        for (seg, part) in self.moving(pages)? {
            if self.populate_part(&mut free, (&seg, &part), access, (place, self.space().tick()), budget)? {
                return Err(self.exhausted(part.bytes()));
            }
        }
        Ok(())
    }

    /// Says whether there was no room for all of it.
    fn populate_part(
        &self,
        free: &mut Free,
        (seg, part): (&Arc<Segment>, &Pages),
        access: Access,
        (place, rank): (Place, u64),
        budget: Option<Duration>,
    ) -> Result<bool, Error> {
        prot::allowed(free, seg, part, access)?;
        let want = Want { access, rank, cause: Cause::Mirror, own: false };
        Ok(populate_within(free, &self.mirror, seg, part, place, want, budget)?.full)
    }

    /// Bytes of device memory that all of it takes at once.
    fn needs(&self, touches: &[Touch]) -> u64 {
        let per = self.mirror.rec().pages_per_grain() as u64;
        let mut all: Vec<Pages> = touches.iter().map(|t| t.seg.pages_of(&t.bytes).widened(per)).collect();
        all.sort_unstable_by_key(|p| p.0.start);
        let mut end = 0;
        let mut fresh = |p: &Pages| {
            let n = p.0.end.saturating_sub(p.0.start.max(end));
            end = end.max(p.0.end);
            n * PAGE
        };
        all.iter().map(&mut fresh).sum()
    }

    fn exhausted(&self, requested: u64) -> Error {
        self.mirror.exhausted(requested)
    }

    /// For each page, whether a kernel may read it, or with `write` write it, without a fault.
    ///
    /// # Errors
    /// As [`Space::protect`] for the range.
    pub fn mapped(&self, pages: &Pages, write: bool) -> Result<Vec<bool>, Error> {
        let mut free = Free::at_entry();
        // Before anything as long as the range is made.
        let parts = self.parts(pages)?;
        let mut out = Vec::with_capacity(pages.len() as usize);
        for (seg, part) in parts {
            for (id, mask) in part.blocks() {
                let body = seg.claim(id).lock(&mut free);
                let dev = &body.dev[self.mirror.slot()];
                let there = if write { dev.owned() } else { dev.readable() };
                out.extend(mask.runs().flatten().map(|p| there.has(p)));
            }
        }
        Ok(out)
    }

    /// Moves pages to the device (`migrate_vma`), as far as they can move: pages of the host only. What may not be written moves
    /// as a copy for reading, beside the host's.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) at the first page that does not exist, may not be read, or belongs to a segment that does not
    /// migrate; what lies before it has moved. With mechanism `none`, for a program's allocation. A device that fails;
    /// [`InsideKernel`](Error::InsideKernel) in a kernel.
    #[doc(alias = "migrate_vma")]
    pub fn migrate(&self, pages: &Pages) -> Result<Migration, Error> {
        let mut free = Free::at_entry();
        let mut total = Migration::default();
        for (seg, part) in self.moving(pages).map_err(invalid)? {
            if matches!(seg.kind(), Kind::Imported) {
                return Err(Error::Invalid { what: "migrating imported pages" });
            }
            if !seg.migrates() {
                total.refused += part.len();
                continue;
            }
            for (run, access, readable) in by_permission(&mut free, &seg, &part) {
                if !readable {
                    return Err(Error::Invalid { what: "migrating pages that may not be read" });
                }
                let done = self.migrate_run(&mut free, &seg, &run, access)?;
                total.moved += done.moved;
                total.resident += done.resident;
                total.refused += done.refused;
            }
        }
        Ok(total)
    }

    /// As [`migrate`](Self::migrate), and says for each page what became of it.
    ///
    /// # Errors
    /// As [`migrate`](Self::migrate).
    pub fn migrate_vma(&self, pages: &Pages) -> Result<Vec<MigrateFlags>, Error> {
        let before = self.snapshot(pages)?;
        self.migrate(pages)?;
        let flags = |(before, after): (&Pfn, Pfn)| {
            let mut f = MigrateFlags::empty();
            f.set(MigrateFlags::VALID, before.is_valid());
            let local = !after.flags().contains(PfnFlags::REMOTE);
            let there = local && after.flags().intersects(PfnFlags::DEVICE_PRIVATE | PfnFlags::DEVICE_COHERENT);
            f.set(MigrateFlags::MIGRATE | MigrateFlags::DEVICE, there);
            f.set(MigrateFlags::WRITE, there && after.is_writable());
            f
        };
        Ok(before.iter().zip(self.snapshot(pages)?).map(flags).collect())
    }

    fn migrate_run(&self, free: &mut Free, seg: &Arc<Segment>, run: &Pages, access: Access) -> Result<Migration, Error> {
        let before = self.resident(free, seg, run);
        loop {
            let want = Want { access, rank: self.space().tick(), cause: Cause::Mirror, own: true };
            let done = migrate::to_device(free, &self.mirror, seg, run, want)?;
            match done.blocked {
                Some(blocked) => migrate::wait_blocked(free, self.space(), blocked),
                None => {
                    let after = self.resident(free, seg, run).max(before);
                    return Ok(Migration { moved: after - before, resident: before, refused: run.len() - after });
                }
            }
        }
    }

    /// How many of the pages are in the device's memory, with an entry.
    fn resident(&self, free: &mut Free, seg: &Segment, pages: &Pages) -> u64 {
        let mut n = 0;
        for (id, mask) in pages.blocks() {
            let body = seg.claim(id).lock(free);
            let dev = &body.dev[self.mirror.slot()];
            n += u64::from((dev.readable() & dev.valid & mask).count());
        }
        n
    }

    /// Brings home what this device has of the pages; `moved` counts the pages whose bytes came.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for pages that do not exist; a device that fails.
    pub fn migrate_home(&self, pages: &Pages) -> Result<Migration, Error> {
        let mut free = Free::at_entry();
        let home = Home { asks: Asks::Patiently, ..Home::off(self.mirror.slot(), true) };
        let mut total = Migration::default();
        for (seg, part) in self.parts(pages).map_err(invalid)? {
            let moved = migrate::bring_home(&mut free, &seg, &part, home, Cause::Mirror)?.moved;
            total.moved += moved;
            total.resident += part.len() - moved.min(part.len());
        }
        Ok(total)
    }

    /// Every page as this device sees it, without changing anything (`hmm_range_fault` with no request): memory of its own, the
    /// host's pages, another coherent device's memory, and for what only another device's private memory has, *none*.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a range that is empty or outside the arena; [`Busy`](Error::Busy) when pages were on
    /// their way for longer than a second; [`TooBig`](Error::TooBig) where the entries would take more than a 16th of the host's
    /// memory. Pages without a segment are entries of their own, [`Pfn::ERROR`].
    pub fn snapshot(&self, pages: &Pages) -> Result<Vec<Pfn>, Error> {
        const BUDGET: Duration = Duration::from_millis(1000);
        entry::check()?;
        range::check(self.space(), pages)?;
        let mut free = Free::at_entry();
        let start = Instant::now();
        loop {
            let left = BUDGET.saturating_sub(start.elapsed());
            let seen = self.mirror.notifier().read_begin(&mut free, pages, left).ok_or(Error::Busy { budget: BUDGET })?;
            let out = self.look(&mut free, pages);
            if !self.mirror.notifier().read_retry(pages, seen) {
                return Ok(out);
            }
        }
    }

    fn look(&self, free: &mut Free, pages: &Pages) -> Vec<Pfn> {
        let space = self.space();
        let mut out = Vec::with_capacity(pages.len() as usize);
        for (id, mask) in pages.blocks() {
            let Some(seg) = space.segment_of(id) else {
                out.extend(std::iter::repeat_n(Pfn::ERROR, mask.count() as usize));
                continue;
            };
            let block = seg.claim(id);
            let limit = seg.limit(id.0 - seg.first().0);
            let holes = space.host.holes(space, id, limit);
            let body = block.lock(free);
            let order = self.order(&body, holes, limit);
            for p in mask.runs().flatten() {
                let storage = block.storage(id, p) / PAGE;
                out.push(if limit.has(p) { self.entry(&body, p, holes, storage).with_order(order) } else { Pfn::ERROR });
            }
        }
        out
    }

    fn entry(&self, body: &Body, p: usize, holes: Mask, storage: u64) -> Pfn {
        let (slot, per) = (self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let dev = &body.dev[slot];
        if body.lost.has(p) || body.unreadable.has(p) {
            return Pfn::ERROR;
        }
        if body.busy.has(p) {
            return Pfn::NONE;
        }
        let write = |may: bool| if may && !body.readonly.has(p) { PfnFlags::WRITE } else { PfnFlags::empty() };
        if dev.valid.has(p) {
            let frame = u64::from(dev.frames[p / per] - 1) * per as u64 + (p % per) as u64;
            let (owned, coherent) = (dev.dirty.has(p), self.mirror.rec().is_coherent());
            // A copy beside the host's is no memory that the host uses.
            let whose = if owned && coherent { PfnFlags::DEVICE_COHERENT } else { PfnFlags::DEVICE_PRIVATE };
            return Pfn::new(frame, PfnFlags::VALID | whose | write(owned));
        }
        if let Some(other) = coherent::owner(self.space(), body, p)
            && !body.exclusive(Some(slot)).has(p)
        {
            let whose = PfnFlags::DEVICE_COHERENT | PfnFlags::REMOTE;
            return Pfn::new(coherent::frame(self.space(), body, other, p), PfnFlags::VALID | whose | write(true));
        }
        if body.gone.has(p) || holes.has(p) || body.unread.has(p) || body.exclusive(Some(slot)).has(p) {
            return Pfn::NONE;
        }
        Pfn::new(storage, PfnFlags::VALID | write(!(body.replicated() | body.lent).has(p)))
    }

    /// 9 where the whole block is in one state under one mapping.
    fn order(&self, body: &Body, holes: Mask, limit: Mask) -> u32 {
        let (slot, per) = (self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let dev = &body.dev[slot];
        let uniform = |m: Mask| m.is_empty() || m == Mask::FULL;
        if limit != Mask::FULL
            || ![body.readonly, body.unreadable, body.busy, body.lost, dev.valid, dev.dirty].into_iter().all(uniform)
        {
            return 0;
        }
        let one = if dev.valid == Mask::FULL {
            (1..PAGES_PER_BLOCK / per).all(|g| dev.frames[g] == dev.frames[0] + g as u32)
        } else {
            body.huge && holes.is_empty() && body.gone.is_empty() && body.replicated().is_empty()
        };
        if one { 9 } else { 0 }
    }

    /// Gives the device pages to itself, for atomic operations on them (`make_device_exclusive`): where its entries may name host
    /// storage the pages stay where they are, else they move to the device. Until somebody else uses a page, the host or another
    /// device, it is this one's alone; whoever does ends that.
    ///
    /// # Errors
    /// As [`populate`](Self::populate) for writing, page by page: those before have been given. [`Pinned`](Error::Pinned).
    #[doc(alias = "make_device_exclusive")]
    pub fn make_exclusive(&self, pages: &Pages) -> Result<(), Error> {
        let mut free = Free::at_entry();
        for (seg, part) in self.moving(pages)? {
            if !matches!(seg.kind(), Kind::Private) {
                let device = self.device().info().id.clone();
                return Err(Error::Unsupported {
                    device,
                    what: "exclusive access to memory that is shared, imported or a file's",
                });
            }
            exclusive::give_exclusive(&mut free, &self.mirror, &seg, &part)?;
        }
        Ok(())
    }

    /// How many of the pages the device has to itself.
    ///
    /// # Errors
    /// As [`Space::protect`] for the range.
    pub fn exclusive(&self, pages: &Pages) -> Result<u64, Error> {
        let mut free = Free::at_entry();
        let mut n = 0;
        for (seg, part) in self.parts(pages)? {
            for (id, mask) in part.blocks() {
                n += u64::from((seg.claim(id).lock(&mut free).dev[self.mirror.slot()].atomic & mask).count());
            }
        }
        Ok(n)
    }

    /// Brings everything home that the device has, and frees all its frames. Launches that have not ended go first.
    ///
    /// # Errors
    /// [`Pinned`](Error::Pinned) where a short pin keeps pages there for more than a second; a device that fails.
    pub fn release_memory(&self) -> Result<(), Error> {
        release(&mut entry::enter()?, &self.mirror)
    }

    /// Runs a kernel to its end over ranges that are populated first, and again whenever one was taken away before the kernel
    /// could be submitted. With [`Place::Demand`] a device that faults takes what it touches while it runs, as it does what there is no
    /// room for beside others; for one that cannot that is [`Place::Migrate`]. Says for each range how many batches that took; 0 for one that was
    /// there. Calls from several threads take turns where there is no room for all of them: who called first goes first.
    ///
    /// Unlike a launch it gets no copies of its own of pages that a guard or a long pin keeps at home. A device that can use them there
    /// does; on another the call fails with [`Pinned`](Error::Pinned), at once and having run nothing, also where the range and what is
    /// kept share a page or a grain and no byte. Pages that a launch keeps at home for its copies are waited for.
    ///
    /// # Errors
    /// As [`populate`](Self::populate), but [`OutOfDeviceMemory`](Error::OutOfDeviceMemory) only where the ranges do not fit into the
    /// device's memory, or, on a device that cannot fault, into what others will give back of it; [`Arguments`](Error::Arguments) where ranges and kernel do not fit; the kernel's failure.
    ///
    /// # Safety
    /// Until it returns nobody else uses the ranges in a way that conflicts with the kernel's accesses.
    pub unsafe fn run<P: Params>(
        &self,
        kernel: &Kernel<P>,
        operands: &[Operand],
        place: Place,
        budget: Option<Duration>,
    ) -> Result<SmallVec<[u64; 4]>, Error> {
        entry::check()?;
        let params = kernel.params();
        let misfit = |what: String| Error::Arguments { kernel: kernel.name(), what };
        if params.len() != operands.len() {
            return Err(misfit(format!("{} ranges for {} parameters", operands.len(), params.len())));
        }
        let mut made = None;
        let mut touches: SmallVec<[Touch; 4]> = SmallVec::new();
        for (p, o) in params.iter().zip(operands) {
            if o.bytes.start >= o.bytes.end || o.bytes.end > o.segment.bytes() {
                return Err(Error::Invalid { what: "bytes that are none, or not in their segment" });
            }
            let limit = self.mirror.caps().max_reservation;
            if o.segment.bytes() > limit {
                let what = "what the device can reserve in one piece";
                return Err(Error::TooBig { requested: o.segment.bytes(), limit, what });
            }
            if !o.bytes.start.is_multiple_of(p.align.max(1)) || p.align > self.mirror.alignment(&o.segment) {
                return Err(misfit(format!("bytes from {} on for elements aligned to {}", o.bytes.start, p.align)));
            }
            made = made.or_else(|| p.mapping.groups((o.bytes.end - o.bytes.start) / p.elem.max(1)));
            touches.push(Touch { seg: Arc::clone(&o.segment), bytes: o.bytes.clone(), access: p.access });
        }
        let (grid, _) = grid::of(kernel.explicit_grid(), made).map_err(misfit)?;
        let loaded = self.mirror.load(kernel.code())?;
        self.run_erased((&loaded, grid), kernel.value(), &params, &touches, place, budget)
    }

    #[inline(never)]
    fn run_erased(
        &self,
        (kernel, grid): (&Arc<Loaded>, [u32; 3]),
        value: &[u8],
        params: &[sterna_hal::kernel::ParamDesc],
        touches: &SmallVec<[Touch; 4]>,
        place: Place,
        budget: Option<Duration>,
    ) -> Result<SmallVec<[u64; 4]>, Error> {
        let mut free = Free::at_entry();
        let mut batches: SmallVec<[u64; 4]> = touches.iter().map(|_| 0).collect();
        let call = Call { kernel: kernel.id, grid, value, params, touches };
        // Its place among the launches that gather at the same time: that of the call, however often it begins anew.
        let number = self.space().tick();
        let gathers = self.mirror.gather(number, touches);
        let mut full = false;
        for attempt in 0_u32.. {
            // What others keep taking away, or there is no room for, comes by demand.
            let faults =
                (full || attempt > PATIENCE || place == Place::Demand) && self.mirror.caps().absent == Absent::Faults;
            self.mirror.reap();
            let record = InFlight::new(RAW, kernel, Arc::clone(&self.mirror), touches.clone(), Arc::clone(&self.errors));
            match self.mirror.try_submit(call, (Groups::All, touches), &record, faults, By::Caller) {
                Ok(()) => {
                    drop(gathers); // its uses keep what it has
                    record.wait(&mut free, None);
                    record.mark_seen();
                    return record.error().map_or(Ok(batches), |e| Err(Error::clone(e)));
                }
                Err(NotYet::Failed(e)) => {
                    let e = self.mirror.noticed(e);
                    record.refuse(e.clone());
                    record.mark_seen();
                    return Err(e);
                }
                // A guard may stay for good; what a launch keeps at home is waited for below.
                Err(NotYet::Pinned) if touches.iter().any(|t| pin::is_pinned(&self.mirror, t)) => {
                    return Err(Error::Pinned);
                }
                Err(NotYet::Pinned) => {
                    let per = self.mirror.rec().pages_per_grain() as u64;
                    for t in touches {
                        migrate::wait_for_borders(&mut free, &t.seg, &t.seg.pages_of(&t.bytes).widened(per), budget);
                    }
                    continue;
                }
                Err(NotYet::Held) => {
                    touches.iter().for_each(|t| hold::wait(&t.seg, self.mirror.slot()));
                    continue;
                }
                Err(NotYet::Populate) if self.mirror.is_lost() => return Err(self.mirror.loss()),
                Err(NotYet::Populate) => {}
            }
            // What is there already of one argument must not make room for another.
            for t in touches {
                set_ranks(&mut free, &self.mirror, &t.seg, &t.seg.pages_of(&t.bytes), number);
            }
            full = false;
            for (t, n) in touches.iter().zip(&mut batches) {
                let ready = {
                    let _driver = self.mirror.rec().lock.hold();
                    self.mirror.ready(&t.seg, &t.bytes, t.access)
                };
                if faults {
                    self.mirror.view(&t.seg)?;
                    self.mirror.flush_stale(&mut free, &t.seg)?;
                } else if !ready {
                    let access = if t.access == Access::Write { Access::ReadWrite } else { t.access };
                    *n += 1;
                    let pages = t.seg.pages_of(&t.bytes);
                    full |= self.populate_part(&mut free, (&t.seg, &pages), access, (place, number), budget)?;
                }
            }
            // What never fits is an error of the call; what would fit without others comes by demand, where there is such.
            let never = || self.needs(touches) > self.device().memory().budget;
            if full && (self.mirror.caps().absent != Absent::Faults || never()) {
                return Err(self.exhausted(touches.iter().map(|t| t.bytes.end - t.bytes.start).sum()));
            }
        }
        unreachable!("it goes on until it returns")
    }
}

/// Brings everything home that a device has, and frees all its frames, once its launches have ended.
fn release(free: &mut Free, mirror: &Arc<DeviceMirror>) -> Result<(), Error> {
    for l in mirror.live() {
        l.wait(free, None);
    }
    mirror.reap();
    let home = Home::off(mirror.slot(), true);
    let mut since = Instant::now();
    loop {
        let first = mirror.order.lock().0.first().copied();
        let Some((_, id)) = first else { break };
        let Some(seg) = mirror.space().segment_of(id) else {
            std::thread::yield_now(); // on its way out: it frees its own
            continue;
        };
        let first = id.first_page().0;
        let pages = Pages(first..first + PAGES_PER_BLOCK as u64);
        let done = migrate::bring_home(free, &seg, &pages, home, Cause::Eviction)?.unrefused()?;
        if !done.pinned || done.released > 0 {
            since = Instant::now();
        } else if since.elapsed() > pin::BUDGET {
            return Err(Error::Pinned);
        }
    }
    // Where addresses are memory, that goes with them.
    if mirror.caps().placed {
        for seg in mirror.seated() {
            mirror.unseat(free, &seg);
        }
    }
    Ok(())
}

impl Drop for Attached {
    fn drop(&mut self) {
        if fork::forked() {
            return;
        }
        let mirror = Arc::clone(&self.mirror);
        mirror.ends();
        reaper::end_alone(move || {
            let mut free = Free::at_entry();
            // A device that fails keeps its segments' addresses until they end; what it does not give back is lost with it.
            let _ = release(&mut free, &mirror).and_then(|()| mirror.detach(&mut free));
        });
    }
}

/// The driver of the kernel's own test says *invalid* where it finds no mapping to move.
fn invalid(e: Error) -> Error {
    if matches!(e, Error::Fault { .. }) { Error::Invalid { what: "pages without a segment" } } else { e }
}

/// Cuts a range where what is allowed changes: each run with the access to move it with, and whether it may be read.
fn by_permission(free: &mut Free, seg: &segment::Segment, pages: &Pages) -> Vec<(Pages, Access, bool)> {
    let mut out: Vec<(Pages, Access, bool)> = Vec::new();
    for (id, mask) in pages.blocks() {
        let body = seg.claim(id).lock(free);
        let first = id.first_page().0;
        for p in mask.runs().flatten() {
            let access = if body.readonly.has(p) { Access::Read } else { Access::ReadWrite };
            let (at, readable) = (first + p as u64, !body.unreadable.has(p));
            match out.last_mut() {
                Some(last) if last.0.0.end == at && last.1 == access && last.2 == readable => last.0.0.end += 1,
                _ => out.push((Pages(at..at + 1), access, readable)),
            }
        }
    }
    out
}
