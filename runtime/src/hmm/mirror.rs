//! Mirrors: a device's view of the space, and the driver lock.
//!
//! **Guarantee.** When a window is open over a range, no mirror has an entry for it that it had before, and none installs one
//! until the window ends. A launch is submitted only under the driver lock, after the same lock has shown that everything it
//! needs is as it must be.
//!
//! **Two kinds.** A [`DeviceMirror`] is the engine's own for a [`Device`]: its page table is the `dev` masks of the blocks.
//! A [`Mirror`] is anybody's: a driver writer registers [`MirrorOps`], looks pages up with a [`Range`](super::range::Range)
//! and keeps a table of its own.
//!
//! **Locks.** The driver lock of a device is its slot's `lock` (rank 3): masks of that device in every block (with the
//! block's lock), its `ready` words, submissions. `views`, `order`, `live`: leaves, held for look-ups.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use sterna_hal::kernel::{Code, KernelId};
use sterna_hal::{Absent, Access, Arg, Caps, Device, DeviceError, Edit, Launch, RegionId, Target};

use super::addr::{BLOCK, BlockId, Mask, PAGE, PAGES_PER_BLOCK, Page, Pages, Span, runs_of};
use super::block::{Block, Body};
use super::hold;
use super::inflight::{InFlight, Touch};
use super::lock::Free;
use super::migrate::Home;
use super::notifier::Notifier;
use super::os;
use super::pin;
use super::seat::Addresses;
use super::segment::Segment;
use super::space::{Slot, Space};
use crate::Error;
use crate::stats::Cause;

/// Why entries go away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The range is unmapped or its contents are dropped.
    Invalidate,
    /// Access is reduced.
    Protect,
    /// Pages move; `to` is the device they move to (`None`: the host).
    Migrate {
        /// Destination.
        to: Option<usize>,
    },
    /// A device gets pages to itself, for atomic operations.
    Exclusive {
        /// Which.
        by: usize,
    },
    /// The mirror is being unregistered.
    Release,
}

/// What a driver does when the host side changes (`hmm_mirror_ops`).
#[doc(alias = "hmm_mirror_ops")]
pub trait MirrorOps: Send + Sync {
    /// Removes every entry for `pages`, under the driver's own lock, and has the device stop using them. Called with a window
    /// open over the range and no engine lock held. It may return before the device has stopped if
    /// [`finish`](Self::finish) waits for that: first every mirror starts, then every mirror finishes.
    #[doc(alias = "sync_cpu_device_pagetables")]
    fn update(&self, action: Action, pages: &Pages);
    /// Returns when the device can no longer use what `update` removed.
    fn finish(&self, action: Action, pages: &Pages) {
        let _ = (action, pages);
    }
}

/// A driver's view of the space (`hmm_mirror`). When its last clone is dropped no callback begins any more, but one may still be
/// running: [`unregister`](Self::unregister) waits for it.
pub struct Mirror {
    space: &'static Space,
    notifier: Notifier,
    ops: Box<dyn MirrorOps>,
    windows: Mutex<Windows>,
    /// Told when the last window has ended.
    quiet: Condvar,
}

/// Windows that call a mirror's callbacks.
#[derive(Debug, Default)]
struct Windows {
    open: usize,
    /// None may join them.
    closed: bool,
}

impl Mirror {
    /// Registers a mirror of the whole space.
    #[doc(alias = "hmm_mirror_register")]
    #[must_use]
    pub fn register(space: &'static Space, ops: impl MirrorOps + 'static) -> Arc<Self> {
        space.lock().register(ops)
    }

    pub(crate) fn unregistered(space: &'static Space, ops: impl MirrorOps + 'static) -> Arc<Self> {
        let (notifier, windows) = (Notifier::default(), Mutex::default());
        Arc::new(Self { space, notifier, ops: Box::new(ops), windows, quiet: Condvar::new() })
    }

    /// Ends the mirror, whoever else has a clone of it: when this returns no callback is running and none will. Waits for changes of
    /// the host side that are under way, so it is called neither in a callback nor with a lock held that callbacks take.
    #[doc(alias = "hmm_mirror_unregister")]
    pub fn unregister(&self) {
        let mut windows = self.windows.lock();
        windows.closed = true;
        while windows.open > 0 {
            self.quiet.wait(&mut windows);
        }
    }

    /// A window begins, unless the mirror has ended.
    pub(crate) fn enter(&self) -> bool {
        let mut windows = self.windows.lock();
        windows.open += usize::from(!windows.closed);
        !windows.closed
    }

    /// A window that began has ended.
    pub(crate) fn leave(&self) {
        let mut windows = self.windows.lock();
        windows.open -= 1;
        if windows.open == 0 {
            self.quiet.notify_all();
        }
    }

    /// Its windows.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The space it mirrors.
    #[must_use]
    pub fn space(&self) -> &'static Space {
        self.space
    }

    pub(crate) fn ops(&self) -> &dyn MirrorOps {
        &*self.ops
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

/// The order of eviction: lowest rank first, ties by block.
#[derive(Debug, Default)]
pub(crate) struct Order(pub(crate) BTreeSet<(u64, BlockId)>);

/// The engine's mirror of the space on a [`Device`].
pub(crate) struct DeviceMirror {
    space: &'static Space,
    slot: usize,
    device: ManuallyDrop<Arc<dyn Device>>,
    region: RegionId,
    notifier: Notifier,
    pub(super) views: RwLock<BTreeMap<u64, (Addresses, Weak<Segment>)>>,
    kernels: RwLock<HashMap<Code, KernelId>>,
    pub(crate) order: Mutex<Order>,
    live: Mutex<VecDeque<Arc<InFlight>>>,
    /// Uses by launches that found everything resident: ranks that have not been written yet. First block, blocks, tick.
    used: Mutex<Vec<(BlockId, u32, u64)>>,
    /// Where in a block the next grain is taken from that leaves alone.
    pub(crate) hand: AtomicU32,
    lost: AtomicBool,
    ended: Arc<AtomicBool>,
    /// Held while what was lost with the device is written off.
    ending: Mutex<()>,
}

impl fmt::Debug for DeviceMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMirror").field("slot", &self.slot).field("device", self.device.info()).finish_non_exhaustive()
    }
}

/// Who submits a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By<'a> {
    /// The thread that launches; the launch is recorded with it.
    Caller,
    /// The scheduler, whose count of what it has still to do is lowered with it.
    Scheduler(&'a AtomicUsize),
}

/// Why a launch was not submitted.
#[derive(Debug)]
pub(crate) enum NotYet {
    /// Something it needs is not resident, or some entry is stale.
    Populate,
    /// A fault waits for a moment without launches; see [`hold`].
    Held,
    /// A long pin keeps at home what the device cannot use there.
    Pinned,
    /// The device refused it.
    Failed(DeviceError),
}

impl DeviceMirror {
    /// Attaches a device to the space.
    ///
    /// # Errors
    /// All slots are taken; the device cannot be driven by this engine (it says which property); it refuses the arena.
    pub(crate) fn new(space: &'static Space, device: Arc<dyn Device>) -> Result<Arc<Self>, Error> {
        let caps = device.caps();
        let unsupported = |what| Err(Error::Unsupported { device: device.info().id.clone(), what });
        if caps.absent == Absent::Reports {
            return unsupported("its launches report missing pages, which needs kernels rewritten for it");
        }
        if !caps.grain.is_power_of_two() || caps.grain < PAGE || caps.grain > BLOCK {
            return unsupported("its grain is not a power of two from 4 KiB to 2 MiB");
        }
        let memory = device.memory();
        if memory.budget < u64::from(caps.min_frames.max(1)) * caps.grain {
            return Err(Error::BudgetTooSmall {
                device: device.info().id.clone(),
                budget: memory.budget,
                least: u64::from(caps.min_frames.max(1)) * caps.grain,
            });
        }
        let base = space.view_at(0);
        // SAFETY: the view is a shared mapping of the whole file, leaked with the space and touched by the engine only.
        let region =
            unsafe { device.attach_host(base, space.bytes(), space.raw_fd()) }.map_err(|e| Error::device(&device, e))?;
        let slot = space.take_slot().ok_or(Error::TooManyDevices { limit: super::block::MAX_DEVICES })?;
        let s = &space.slots[slot];
        s.grain.store(caps.grain, Ordering::Relaxed);
        s.frames.store(device.frames_base().map_or(ptr::null_mut(), ptr::NonNull::as_ptr), Ordering::Release);
        // Without faults nothing would stop the host's stores to a page that leaves the device.
        let file = device.frames_file().filter(|_| caps.coherent && space.host.faults() && device.frames_base().is_some());
        s.frames_fd.store(file.unwrap_or(-1), Ordering::Release);
        let this = Arc::new(Self {
            space,
            slot,
            device: ManuallyDrop::new(device),
            region,
            notifier: Notifier::default(),
            views: RwLock::default(),
            kernels: RwLock::default(),
            order: Mutex::default(),
            live: Mutex::default(),
            used: Mutex::default(),
            hand: AtomicU32::new(0),
            lost: AtomicBool::new(false),
            ended: Arc::default(),
            ending: Mutex::new(()),
        });
        space.add_device(&this);
        if let Some(window) = this.device.window() {
            space.device_faults.watch(slot, &window);
        }
        Ok(this)
    }

    /// The device.
    #[must_use]
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Its number in the space: the index of its masks in every block.
    #[must_use]
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn caps(&self) -> &Caps {
        self.device.caps()
    }

    /// Whether its entries may name host storage. Such an entry is made in one step with the retry check, so it has to be there
    /// when the edit returns.
    pub(crate) fn may_alias(&self) -> bool {
        self.caps().map_host && !self.caps().queued_edits
    }

    pub(crate) fn space(&self) -> &'static Space {
        self.space
    }

    pub(crate) fn region(&self) -> RegionId {
        self.region
    }

    pub(crate) fn pods(&self) -> &'static Slot {
        &self.space.slots[self.slot]
    }

    pub(crate) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Turns a device error into the runtime's, and takes note if the device is gone: whoever gets that error finds everything
    /// marked that was lost.
    pub(crate) fn noticed(&self, error: DeviceError) -> Error {
        if matches!(error, DeviceError::Lost(_)) {
            let ending = self.ending.lock();
            let first = !self.lost.swap(true, Ordering::AcqRel);
            let segs = if first { self.write_off(&mut Free::at_entry()) } else { Vec::new() };
            drop(ending);
            // A segment whose owner has let go of it meanwhile ends here, and takes itself off the device, which comes by here.
            drop(segs);
        }
        Error::device(&self.device, error)
    }

    /// The error of a device that is known to be lost, once everything is marked.
    pub(crate) fn loss(&self) -> Error {
        drop(self.ending.lock());
        Error::Lost { device: self.device.info().id.clone() }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    // ── state of a block; all with the block's lock and the driver lock held ──

    /// Shows a block's masks to launches and recounts it in its view's `ready` words.
    pub(crate) fn refresh_ready(space: &Space, rec: u32, block: &Block, body: &Body, slot: usize) {
        let (was, now) = block.show(body, slot);
        let view = &space.rec(rec).view[slot];
        for (bit, word) in [(1, &view.ready_read), (2, &view.ready_write)] {
            match (was & bit, now & bit) {
                (0, 0) => {}
                (0, _) => {
                    word.fetch_add(1, Ordering::Relaxed);
                }
                (_, 0) => {
                    word.fetch_sub(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }

    /// Changes this device's masks of a block under the driver lock and recounts it.
    pub(crate) fn change<R>(&self, seg: &Segment, id: BlockId, body: &mut Body, f: impl FnOnce(&mut Body) -> R) -> R {
        let _driver = self.pods().lock.hold();
        let r = f(body);
        Self::refresh_ready(self.space, seg.slot(), self.space.block(id), body, self.slot);
        r
    }

    /// Puts a block into the eviction order at `rank`, or takes it out (0).
    pub(crate) fn set_rank(&self, id: BlockId, body: &mut Body, rank: u64) {
        let old = std::mem::replace(&mut body.dev[self.slot].rank, rank);
        if old == rank {
            return;
        }
        let mut order = self.order.lock();
        if old != 0 {
            order.0.remove(&(old, id));
        }
        if rank != 0 {
            order.0.insert((rank, id));
        }
    }

    /// Notes that a launch uses `pages`, for a device with something resident, without looking at a block: the ranks are
    /// written when somebody asks for them.
    pub(crate) fn note_use(&self, pages: &Pages, tick: u64) {
        if pages.is_empty() {
            return;
        }
        let (first, last) = (Page(pages.0.start).block(), Page(pages.0.end - 1).block());
        let (id, n) = (first, last.0 - first.0 + 1);
        let mut used = self.used.lock();
        match used.iter_mut().find(|u| (u.0, u.1) == (id, n)) {
            Some(u) => u.2 = tick,
            None => used.push((id, n, tick)),
        }
    }

    /// Whether so many uses are noted that writing their ranks is due.
    pub(crate) fn ranks_are_due(&self) -> bool {
        self.used.lock().len() > 64
    }

    /// Writes the ranks of uses that were only noted.
    pub(crate) fn settle_ranks(&self, free: &mut Free) {
        let mut used = std::mem::take(&mut *self.used.lock());
        used.sort_unstable_by_key(|u| u.2);
        let per = self.pods().pages_per_grain();
        for (first, n, tick) in used {
            for id in (0..n).map(|i| first.plus(i)) {
                let block = self.space.block(id);
                let mut body = block.lock(free);
                // The blocks may be another segment's by now, or evicted.
                let dev = &body.dev[self.slot];
                if dev.rank != 0 && dev.rank < tick && dev.has_frames(per) {
                    self.set_rank(id, &mut body, tick);
                }
            }
        }
    }

    // ── launches ──

    /// Whether a kernel may touch `bytes` of `seg` without a fault or a change of state. Under the driver lock.
    pub(crate) fn ready(&self, seg: &Segment, bytes: &Range<u64>, access: Access) -> bool {
        let rec = seg.rec();
        let view = &rec.view[self.slot];
        let word = if access.writes() { &view.ready_write } else { &view.ready_read };
        if word.load(Ordering::Relaxed) == seg.blocks() {
            return true;
        }
        if bytes.start == 0 && bytes.end == seg.bytes() {
            return false;
        }
        seg.pages_of(bytes).blocks().all(|(id, mask)| {
            let block = self.space.block(id);
            // A part of a block may be ready when the rest is elsewhere.
            block.segment().is_some() && block.is_ready(self.slot, mask, access.writes())
        })
    }

    /// Submits a launch if the driver lock shows that everything it `needs` is ready, or, with `faults`, that the device may
    /// fault the rest in. `touches` are its arguments; a launch of some of its groups needs a part of each. The check and the submission are one step under that lock, as every revocation is.
    pub(crate) fn try_submit(
        &self,
        launch: &Launch<'_>,
        record: &Arc<InFlight>,
        (touches, needs): (&[Touch], &[Touch]),
        faults: bool,
        by: By<'_>,
    ) -> Result<(), NotYet> {
        let _driver = self.pods().lock.hold();
        let given = launch.args.iter().filter_map(|a| if let Arg::Range { at, .. } = a { Some(at.at) } else { None });
        for ((t, need), given) in touches.iter().zip(needs).zip(given) {
            // Addresses may have been taken away and others given since the arguments were made.
            if t.seg.view(self.slot).is_none_or(|v| v.of(t.bytes.start) != given || !v.covers(&need.bytes)) {
                return Err(NotYet::Populate);
            }
            let ok = if faults {
                t.seg.rec().view[self.slot].stale.load(Ordering::Acquire) == 0
            } else {
                self.ready(&t.seg, &need.bytes, t.access)
            };
            if !ok {
                return Err(NotYet::Populate);
            }
            if hold::held(&t.seg, self.slot) {
                return Err(NotYet::Held);
            }
            if pin::bars(self, &t.seg, &t.bytes) {
                return Err(NotYet::Pinned);
            }
        }
        match by {
            By::Caller => record.record(),
            // From here on a launch that finds everything resident comes behind this one, by the driver lock. Lowered before
            // the device can finish it, so that whoever waits for it and launches again finds the way free.
            By::Scheduler(unscheduled) => {
                unscheduled.fetch_sub(1, Ordering::AcqRel);
            }
        }
        // SAFETY: the arguments were checked against the kernel; their segments live until the launch retires; the gate keeps
        // the host's references away, order between launches keeps other devices away.
        match unsafe { self.device.submit(launch, &[]) } {
            Ok(ticket) => {
                record.submitted(ticket);
                self.live.lock().push_back(Arc::clone(record));
                Ok(())
            }
            Err(e) => {
                if let By::Scheduler(unscheduled) = by {
                    unscheduled.fetch_add(1, Ordering::AcqRel);
                }
                Err(NotYet::Failed(e))
            }
        }
    }

    /// The kernel's number on this device.
    pub(crate) fn load(&self, code: &Code) -> Result<KernelId, Error> {
        if let Some(id) = self.kernels.read().get(code) {
            return Ok(*id);
        }
        let id = self.device.load(code).map_err(|e| self.noticed(e))?;
        self.kernels.write().insert(*code, id);
        Ok(id)
    }

    /// Retires launches that have ended, oldest first. Costs one look when none has.
    pub(crate) fn reap(&self) {
        loop {
            let Some(front) = self.live.lock().front().cloned() else { return };
            if !front.poll() {
                return;
            }
            let mut live = self.live.lock();
            if live.front().is_some_and(|l| Arc::ptr_eq(l, &front)) {
                live.pop_front();
            }
        }
    }

    /// Launches submitted and not retired, oldest first.
    pub(crate) fn live(&self) -> Vec<Arc<InFlight>> {
        self.live.lock().iter().cloned().collect()
    }

    /// The oldest launch that has not retired.
    pub(crate) fn oldest(&self) -> Option<Arc<InFlight>> {
        self.live.lock().front().cloned()
    }

    /// Whether a launch may be running. May be called from the threads that serve faults.
    pub(crate) fn is_idle(&self) -> bool {
        self.live.lock().iter().all(|l| l.point().is_some_and(|p| self.device.reached(p)))
    }

    // ── endings ──

    /// The device is detached: its entries go, and every segment that had addresses on it gives them back. What the device had
    /// has come home, and nobody uses the device any more.
    pub(crate) fn detach(&self, free: &mut Free) -> Result<(), Error> {
        let segs: Vec<Arc<Segment>> = self.views.read().values().filter_map(|(_, s)| s.upgrade()).collect();
        let home = Home::off(self.slot, true);
        for seg in segs {
            for id in seg.claimed() {
                let first = id.first_page().0;
                let pages = Pages(first..first + PAGES_PER_BLOCK as u64);
                super::migrate::bring_home(free, &seg, &pages, home, Cause::Mirror)?;
            }
            if let Some(view) = seg.give_up_view(self) {
                self.views.write().remove(&view.at.at.0);
                // SAFETY: launches have ended, entries are gone.
                unsafe { self.device.unreserve(view.at) };
            }
        }
        Ok(())
    }

    /// A dropped segment: removes its entries, frees its frames, gives its addresses back.
    pub(crate) fn forget(&self, free: &mut Free, seg: &Segment) {
        let Some(view) = seg.view(self.slot) else { return };
        self.views.write().remove(&view.at.at.0);
        let whole = Edit { at: view.at, to: Target::Absent, access: Access::Read };
        // A failure leaves entries that name frames about to be reused; nobody can reach them through a range that is given
        // back, which removes its entries too.
        let _ = self.remove(free, &[whole]);
        let per = self.pods().pages_per_grain();
        let mut frames = Vec::new();
        for id in seg.claimed() {
            let mut body = self.space.block(id).lock(free);
            self.set_rank(id, &mut body, 0);
            for f in &mut body.dev[self.slot].frames[..PAGES_PER_BLOCK / per] {
                if *f != 0 {
                    super::devmem::push_frame(&mut frames, *f - 1);
                    *f = 0;
                }
            }
        }
        // SAFETY: each grain stood in exactly one block's table, from which it was taken just now; no entry names it.
        unsafe { self.device.free(&frames) };
        // SAFETY: the segment is gone, its launches have retired.
        unsafe { self.device.unreserve(view.at) };
    }

    /// The device is gone: pages that only it had are lost; every other page is the host's again. Gives the segments that it held.
    fn write_off(&self, free: &mut Free) -> Vec<Arc<Segment>> {
        let segs: Vec<Arc<Segment>> = self.views.read().values().filter_map(|(_, s)| s.upgrade()).collect();
        for seg in &segs {
            let mut lost = Vec::new();
            seg.note_lost();
            for id in seg.claimed() {
                let block = self.space.block(id);
                let mut body = block.lock(free);
                self.change(seg, id, &mut body, |body| {
                    let dev = &mut body.dev[self.slot];
                    let gone = dev.dirty;
                    dev.valid = Mask::EMPTY;
                    dev.dirty = Mask::EMPTY;
                    dev.mapped = Mask::EMPTY;
                    dev.writable = Mask::EMPTY;
                    dev.alias = Mask::EMPTY;
                    dev.leaving = Mask::EMPTY;
                    dev.atomic = Mask::EMPTY;
                    self.space.host.forsake(self.space, (id, block), body, gone);
                    body.lost |= gone;
                    lost.push(Span { block: id, mask: gone });
                });
                self.set_rank(id, &mut body, 0);
                drop(body);
                block.bump();
            }
            for run in runs_of(&lost) {
                let start = run.0.start * PAGE - seg.offset();
                let bytes = start..(start + run.bytes()).min(seg.bytes());
                seg.add_taint(bytes, Error::Lost { device: self.device.info().id.clone() }, 0);
            }
        }
        segs
    }
}

/// How long to wait for threads of the engine that have a mirror in hand for a moment. Who has it for longer is the program.
const IN_HAND: Duration = Duration::from_millis(20);

/// How long a device may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// Gives mirrors up and waits until their devices have ended, unless the program has them elsewhere.
///
/// A thread that has just served a fault may be the last to let go; the device must not end beside the end of the process, which
/// takes the driver's own state away.
pub(crate) fn give_up(mirrors: Vec<Arc<DeviceMirror>>) {
    let ends: Vec<_> = mirrors.iter().map(|m| (Arc::clone(&m.ended), Arc::downgrade(m))).collect();
    drop(mirrors);
    let begin = Instant::now();
    for (ended, mirror) in ends {
        let most = || if mirror.strong_count() == 0 { ENDING } else { IN_HAND };
        while !ended.load(Ordering::Acquire) && begin.elapsed() < most() {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for DeviceMirror {
    fn drop(&mut self) {
        // SAFETY: taken once, here; nobody can use the mirror any more.
        let device = unsafe { ManuallyDrop::take(&mut self.device) };
        let (space, slot, ended) = (self.space, self.slot, Arc::clone(&self.ended));
        let end = move || {
            // A lost device ends its workers, which may be parked in a fault: faults are answered until it is gone.
            drop(device);
            space.device_faults.unwatch(slot);
            space.give_slot(slot);
            ended.store(true, Ordering::Release);
        };
        if os::serves_faults() {
            // This thread is the one that answers them. If no other can be had, the device stays for ever.
            let _ = std::thread::Builder::new().name("sterna-end".into()).spawn(end);
        } else {
            end();
        }
    }
}
