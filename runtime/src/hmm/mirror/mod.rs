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

mod endings;
mod kernels;
mod launches;
mod ops;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use sterna_hal::{Absent, Caps, Device, DeviceError, RegionId};

use super::addr::{BLOCK, BlockId, PAGE, Page, Pages};
use super::arrivals::Arrivals;
use super::block::{Block, Body};
use super::claim::Claim;
use super::gathering::Gathering;
use super::inflight::InFlight;
use super::lock::Free;
use super::notifier::Notifier;
use super::seat::Addresses;
use super::segment::Segment;
use super::space::{Slot, Space};
use super::watch::Watch;
use crate::Error;
use kernels::Kernels;

pub(crate) use endings::give_up;
pub(crate) use kernels::Loaded;
pub(crate) use launches::{By, Call, NotYet};
pub use ops::{Action, Mirror, MirrorOps};

/// The order of eviction: lowest rank first, ties by block.
#[derive(Debug, Default)]
pub(crate) struct Order(pub(crate) BTreeSet<(u64, BlockId)>);

/// The engine's mirror of the space on a [`Device`].
pub(crate) struct DeviceMirror {
    space: &'static Space,
    slot: usize,
    device: ManuallyDrop<Arc<dyn Device>>,
    region: RegionId,
    /// What sets its memory budget.
    setting: &'static str,
    notifier: Notifier,
    pub(super) views: RwLock<BTreeMap<u64, (Addresses, Weak<Segment>)>>,
    kernels: Kernels,
    pub(crate) order: Mutex<Order>,
    live: Mutex<VecDeque<Arc<InFlight>>>,
    /// How many are in `live`, for whoever only wants to know whether there are many, or any.
    under_way: AtomicUsize,
    watch: Watch,
    /// Uses by launches that found everything resident: ranks that have not been written yet. First block, blocks, tick.
    used: Mutex<Vec<(BlockId, u32, u64)>>,
    /// What has just come, on a device that faults.
    pub(crate) arrivals: Arrivals,
    /// How many batches have frames that they took in advance.
    pub(crate) reserved: AtomicU32,
    /// Grains that are launches' own copies, on a device that faults.
    pub(crate) own_grains: AtomicU32,
    /// Launches that gather what they need.
    pub(crate) gathering: Gathering,
    lost: AtomicBool,
    ended: Arc<AtomicBool>,
    /// Given back when the device has ended.
    claim: Option<Claim>,
    /// Held while what was lost with the device is written off.
    ending: Mutex<()>,
    /// Segments that began to end, and those that have ended.
    ending_segments: AtomicU64,
    ended_segments: AtomicU64,
}

impl fmt::Debug for DeviceMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMirror").field("slot", &self.slot).field("device", self.device.info()).finish_non_exhaustive()
    }
}

impl DeviceMirror {
    /// Attaches a device to the space, whose memory budget `setting` sets.
    ///
    /// # Errors
    /// All slots are taken; the device cannot be driven by this engine (it says which property), is driven already, or refuses the
    /// arena.
    pub(crate) fn new(space: &'static Space, device: Arc<dyn Device>, setting: &'static str) -> Result<Arc<Self>, Error> {
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
                setting,
            });
        }
        let claim = space.claims.claim(&*device)?;
        let base = space.direct_at(0);
        // SAFETY: the view is a shared mapping of the whole file, leaked with the space and touched by the engine only.
        let region =
            unsafe { device.attach_host(base, space.bytes(), space.raw_fd()) }.map_err(|e| Error::device(&device, e))?;
        let slot = space.take_slot()?;
        let s = &space.slots[slot];
        s.grain.store(caps.grain, Ordering::Relaxed);
        s.frames.store(device.frames_base().map_or(ptr::null_mut(), ptr::NonNull::as_ptr), Ordering::Release);
        // Without faults nothing would stop the host's stores to a page that leaves the device.
        let file = device.frames_file().filter(|_| caps.coherent && space.host.faults() && device.frames_base().is_some());
        s.frames_fd.store(file.unwrap_or(-1), Ordering::Release);
        let arrivals = Arrivals::new(memory.budget, device.caps().grain, device.caps().min_frames);
        let this = Arc::new(Self {
            space,
            slot,
            device: ManuallyDrop::new(device),
            region,
            setting,
            notifier: Notifier::default(),
            views: RwLock::default(),
            kernels: Kernels::default(),
            order: Mutex::default(),
            live: Mutex::default(),
            under_way: AtomicUsize::new(0),
            watch: Watch::default(),
            used: Mutex::default(),
            arrivals,
            reserved: AtomicU32::new(0),
            own_grains: AtomicU32::new(0),
            gathering: Gathering::default(),
            lost: AtomicBool::new(false),
            ended: Arc::default(),
            claim: Some(claim),
            ending: Mutex::new(()),
            ending_segments: AtomicU64::new(0),
            ended_segments: AtomicU64::new(0),
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

    /// Whether its launches cannot fault: what they use stays until their points.
    pub(crate) fn is_rigid(&self) -> bool {
        self.caps().absent == Absent::Undefined
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

    pub(crate) fn rec(&self) -> &'static Slot {
        &self.space.slots[self.slot]
    }

    pub(crate) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Whoever used the device has given it up, be it that it goes on for a while: who wants it, or a place for another, waits a moment.
    pub(crate) fn ends(&self) {
        self.claim.iter().for_each(Claim::ends);
        self.space.let_go(self.slot);
    }

    /// Its launches that are awaited.
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
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
        match Error::device(&self.device, error) {
            Error::OutOfDeviceMemory { device, requested, in_use, budget, .. } => {
                Error::OutOfDeviceMemory { device, requested, in_use, budget, setting: self.setting }
            }
            e => e,
        }
    }

    /// `requested` bytes are more than its memory has left.
    pub(crate) fn exhausted(&self, requested: u64) -> Error {
        let (memory, device) = (self.device.memory(), self.device.info().id.clone());
        Error::OutOfDeviceMemory { device, requested, in_use: memory.in_use, budget: memory.budget, setting: self.setting }
    }

    /// What sets its memory budget, as users know it.
    pub(crate) fn setting(&self) -> &'static str {
        self.setting
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
        let (was, now) = block.refresh_usable(body, slot);
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
        let _driver = self.rec().lock.hold();
        let r = f(body);
        Self::refresh_ready(self.space, seg.slot(), self.space.block(id), body, self.slot);
        r
    }

    /// Puts a block into the eviction order at `rank`, or takes it out (0).
    pub(crate) fn set_rank(&self, id: BlockId, body: &mut Body, rank: u64) {
        let old = body.set_rank(self.slot, rank);
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
    /// written when somebody asks for them. Says whether so many are noted that writing them is due.
    pub(crate) fn note_use(&self, pages: &Pages, tick: u64) -> bool {
        if pages.is_empty() {
            return false;
        }
        let (first, last) = (Page(pages.0.start).block(), Page(pages.0.end - 1).block());
        let (id, n) = (first, last.0 - first.0 + 1);
        let mut used = self.used.lock();
        match used.iter_mut().find(|u| (u.0, u.1) == (id, n)) {
            Some(u) => u.2 = tick,
            None => used.push((id, n, tick)),
        }
        used.len() > 64
    }

    /// Writes the ranks of uses that were only noted.
    pub(crate) fn write_ranks(&self, free: &mut Free) {
        let mut used = std::mem::take(&mut *self.used.lock());
        used.sort_unstable_by_key(|u| u.2);
        let per = self.rec().pages_per_grain();
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
}
