//! Looking pages up for a device: snapshot, fault, and the retry check (`hmm_vma_get_pfns`, `hmm_vma_fault`,
//! `hmm_vma_range_done`).
//!
//! **Guarantee.** What [`Range::done`] confirms, under the driver's lock, is the state of the pages at that instant: no window
//! over them was opened since the look-up began. What it does not confirm is worth nothing and is thrown away.
//!
//! A driver with a page table of its own populates it like this:
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex};
//! use sterna::hmm::{Action, Mirror, MirrorOps, Pages, Pfn, Range};
//!
//! /// The driver: its lock and, under it, its page table.
//! #[derive(Clone, Default)]
//! struct Driver(Arc<Mutex<HashMap<u64, Pfn>>>);
//!
//! impl MirrorOps for Driver {
//!     fn update(&self, _why: Action, pages: &Pages) {
//!         let mut table = self.0.lock().unwrap();
//!         table.retain(|page, _| !pages.0.contains(page));
//!     }
//! }
//!
//! fn driver_populate_range(driver: &Driver, mirror: &Arc<Mirror>, pages: &Pages, write: bool) -> Result<(), sterna::Error> {
//!     loop {
//!         let mut range = Range::new(mirror, pages.clone())?;
//!         range.fault(write, true)?;
//!         let mut table = driver.0.lock().unwrap();
//!         if range.done() {
//!             table.extend(range.pfns());
//!             return Ok(());
//!         }
//!         // A window opened meanwhile: start over.
//!     }
//! }
//!
//! let rt = sterna::Runtime::new()?;
//! let x = rt.shared_from(&[1_u32, 2, 3])?;
//! let driver = Driver::default();
//! let mirror = Mirror::register(rt.space(), driver.clone());
//! driver_populate_range(&driver, &mirror, &x.pages(), true)?;
//! let table = driver.0.lock().unwrap();
//! assert!(x.pages().0.clone().all(|page| table[&page].is_writable()));
//! # Ok::<(), sterna::Error>(())
//! ```
//!
//! The engine does the same for the devices that it drives: [`populate`] is what a launch does. For pages that it migrates, the
//! entry is made while the page is `busy`, which is stronger than a retry check; for pages that a device maps where they are, it
//! is made under the driver lock after the check.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_hal::{Absent, Access, DeviceError, Edit, HostAt, Target};
use sterna_host::mappings;

use super::addr::{BlockId, Mask, PAGE, Pages, Span, runs_of};
use super::block::Body;
use super::fork;
use super::lock::Free;
use super::migrate::{self, Asks, Home, Moved, Want};
use super::mirror::{DeviceMirror, Mirror};
use super::notifier::Seq;
use super::os;
use super::pfn::{Pfn, PfnFlags};
use super::prot;
use super::segment::Segment;
use super::source;
use super::space::Space;
use crate::Error;
use crate::policy::Place;
use crate::stats::Cause;

/// How long a look-up may be overtaken before it says [`Busy`](Error::Busy): the kernel's default.
const BUDGET: Duration = Duration::from_millis(1000);

/// Entries of fewer bytes than this can always be had.
const LITTLE: u64 = 16 << 20;

/// One look-up of a range of pages (`hmm_range`).
#[derive(Debug)]
pub struct Range {
    mirror: Arc<Mirror>,
    pages: Pages,
    seq: Seq,
    pfns: Vec<Pfn>,
}

/// Whether a look-up of pages can be made: they are in the arena, and there is memory for an entry for each.
pub(crate) fn check(space: &Space, pages: &Pages) -> Result<(), Error> {
    fork::check()?;
    if pages.is_empty() || pages.0.end > space.bytes() / PAGE {
        return Err(Error::Invalid { what: "a range of pages that is empty or outside the arena" });
    }
    let entry = size_of::<Pfn>() as u64;
    // What the system says could be had without swapping.
    if pages.len() * entry > LITTLE && pages.len() * entry > os::groups::most() / 16 {
        let (requested, limit) = (pages.bytes(), os::groups::most() / 16 / entry * PAGE);
        return Err(Error::TooBig { requested, limit, what: "what the host has memory to look up at once" });
    }
    Ok(())
}

impl Range {
    /// Begins a look-up: waits until no window over the pages is open.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for an empty range; [`TooBig`](Error::TooBig) where its entries would take more than a 16th of the
    /// host's memory; [`Busy`](Error::Busy) if windows stay open for a second.
    pub fn new(mirror: &Arc<Mirror>, pages: Pages) -> Result<Self, Error> {
        check(mirror.space(), &pages)?;
        let mut free = super::entry::enter()?;
        let seq = mirror.notifier().read_begin(&mut free, &pages, BUDGET).ok_or(Error::Busy { budget: BUDGET })?;
        Ok(Self { mirror: Arc::clone(mirror), pages, seq, pfns: Vec::new() })
    }

    /// Looks every page up without changing anything: what is not mapped on the host now is *none*.
    #[doc(alias = "hmm_vma_get_pfns")]
    pub fn get_pfns(&mut self) {
        if fork::forked() {
            return self.pfns.clear();
        }
        let mut free = Free::at_entry();
        self.pfns = look_up(&mut free, &self.mirror, &self.pages);
    }

    /// Makes every page present for reading, or for writing, and looks it up. Pages that a device has come home.
    ///
    /// With `block` it waits for pages that are being moved; without, it says [`Busy`](Error::Busy) at once.
    ///
    /// # Errors
    /// [`Fault`](Error::Fault) for a page without a segment, without a copy, or that may not be read;
    /// [`Permission`](Error::Permission) for one that may not be written; [`Busy`](Error::Busy) after a second;
    /// [`InsideKernel`](Error::InsideKernel) in a kernel.
    #[doc(alias = "hmm_vma_fault")]
    pub fn fault(&mut self, write: bool, block: bool) -> Result<(), Error> {
        self.fault_within(write, Some(if block { BUDGET } else { Duration::ZERO }))
    }

    /// As [`fault`](Self::fault), waiting at most `budget` without progress; `None` waits for as long as it takes.
    ///
    /// # Errors
    /// As [`fault`](Self::fault).
    #[doc(alias = "hmm_range_fault_unlocked_timeout")]
    pub fn fault_within(&mut self, write: bool, budget: Option<Duration>) -> Result<(), Error> {
        let mut free = super::entry::enter()?;
        let space = self.mirror.space();
        let access = if write { Access::ReadWrite } else { Access::Read };
        let mut since = Instant::now();
        loop {
            let mut blocked = None;
            for (seg, part) in space.segments_in(&self.pages)? {
                prot::allowed(&mut free, &seg, &part, access)?;
                let home = Home { wait: false, ..if write { Home::EXCLUSIVE } else { Home::SHARED } };
                let moved = migrate::bring_home(&mut free, &seg, &part, home, Cause::Mirror)?.unrefused()?;
                if moved.moved > 0 {
                    since = Instant::now();
                }
                blocked = blocked.or(moved.blocked);
                space.host.populate(space, &mut free, &seg, &part)?;
            }
            self.pfns = look_up(&mut free, &self.mirror, &self.pages);
            let enough = |p: &Pfn| p.is_valid() && (!write || p.is_writable());
            if let Some(i) = self.pfns.iter().position(|p| p.is_error()) {
                return Err(Error::Fault { page: self.pages.0.start + i as u64 });
            }
            if self.pfns.iter().all(enough) {
                return Ok(());
            }
            if let Some(budget) = budget.filter(|b| since.elapsed() >= *b) {
                return Err(Error::Busy { budget });
            }
            if let Some(blocked) = blocked {
                migrate::wait_blocked(&mut free, space, blocked);
            }
        }
    }

    /// Whether what was looked up still holds (`hmm_vma_range_done`). Called once, with the driver's lock held, right before
    /// the entries are installed; false means: drop the lock and begin again.
    #[doc(alias = "hmm_vma_range_done")]
    #[must_use]
    pub fn done(&self) -> bool {
        !fork::forked() && !self.mirror.notifier().read_retry(&self.pages, self.seq)
    }

    /// The entries by page number.
    pub fn pfns(&self) -> impl Iterator<Item = (u64, Pfn)> + '_ {
        (self.pages.0.start..).zip(self.pfns.iter().copied())
    }
}

/// The entries of pages as a mirror of host storage sees them.
fn look_up(free: &mut Free, mirror: &Mirror, pages: &Pages) -> Vec<Pfn> {
    let space = mirror.space();
    let mut out = Vec::with_capacity(pages.len() as usize);
    for (id, mask) in pages.blocks() {
        let Some(seg) = space.segment_of(id) else {
            out.extend(std::iter::repeat_n(Pfn::ERROR, mask.count() as usize));
            continue;
        };
        let limit = seg.limit(id.0 - seg.first().0);
        let block = seg.claim(id);
        let holes = space.host.holes(space, id, limit);
        let body = block.lock(free);
        for p in mask.runs().flatten() {
            let entry = if !limit.has(p) || body.lost.has(p) || body.unreadable.has(p) {
                Pfn::ERROR
            } else if (body.busy | body.gone | body.unread | body.exclusive(None) | holes).has(p) {
                Pfn::NONE
            } else {
                let shared = (body.replicated() | body.readonly | body.lent).has(p);
                let flags = if shared { PfnFlags::VALID } else { PfnFlags::VALID | PfnFlags::WRITE };
                Pfn::new(block.storage(id, p) / PAGE, flags)
            };
            out.push(entry);
        }
    }
    out
}

/// Makes `pages` usable by a device as `place` says (`driver_populate_range`): what a launch does for each of its arguments.
/// Waits for other batches' pages and brings other devices' pages home first.
///
/// What there is no room for is left out and reported in [`Moved::full`].
pub(crate) fn populate(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    place: Place,
    want: Want,
) -> Result<Moved, Error> {
    populate_within(free, mirror, seg, pages, place, want, None)
}

/// As [`populate`], but says [`Busy`](Error::Busy) when other batches keep pages away for longer than `budget` without any
/// progress.
pub(crate) fn populate_within(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    place: Place,
    want: Want,
    budget: Option<Duration>,
) -> Result<Moved, Error> {
    // What keeps a page away may lie beside it: pages come by whole grains, where a device can fault.
    let per = mirror.rec().pages_per_grain() as u64;
    let along = if mirror.is_rigid() { 1 } else { per };
    let mut since = Instant::now();
    loop {
        let mut moved = match place {
            Place::Demand if mirror.caps().absent == Absent::Faults => {
                mirror.view(seg)?;
                mirror.flush_stale(free, seg)?;
                return Ok(Moved::default());
            }
            Place::Remote if mirror.may_alias() => use_in_place(free, mirror, seg, pages, want)?,
            // Nothing comes by demand to a device that cannot fault, and nothing is used in place by one that cannot.
            _ => migrate::to_device(free, mirror, seg, pages, want)?,
        };
        if moved.moved > 0 {
            since = Instant::now();
        }
        if moved.lost {
            return Err(seg.loss(pages));
        }
        if moved.denied {
            // Where a grain is larger than a page, what is forbidden beside the pages counts: an entry is for whole grains.
            prot::allowed(free, seg, &pages.widened(per), want.access)?;
        }
        if moved.pinned {
            if mirror.may_alias() {
                // A guard keeps pages at home: the device uses those there.
                let mut pinned = Vec::new();
                for (block, mask) in pages.widened(per).blocks() {
                    let mask = mask & kept_pages(free, seg, block, mirror.slot());
                    pinned.push(Span { block, mask });
                }
                for run in runs_of(&pinned) {
                    let mapped = map_remote(free, mirror, seg, &run, want)?;
                    moved.blocked = moved.blocked.or(mapped.blocked);
                }
            } else if want.cause != Cause::Launch {
                wait_for_keeper(free, seg, &pages.widened(per), want, &mut since, budget)?;
                continue;
            } // else the launch gets copies of its own
        }
        if moved.foreign {
            let home = Home { map: false, asks: want.asks(), ..Home::SHARED };
            match migrate::bring_home(free, seg, &pages.widened(along), home, want.cause).and_then(Moved::unrefused) {
                Ok(moved) if moved.pinned => {}
                // Nobody needs what went with the device that had it.
                Err(e) if want.access.reads() || mirror.is_lost() || !e.is_loss() => return Err(e),
                _ => continue,
            }
            // A short pin keeps a page on a coherent device, for one operation.
            if since.elapsed() > BUDGET {
                return Err(Error::Pinned);
            }
            std::thread::sleep(Duration::from_micros(100));
        } else if let Some(blocked) = moved.blocked {
            if let Some(budget) = budget.filter(|b| since.elapsed() >= *b) {
                return Err(Error::Busy { budget });
            }
            migrate::wait_blocked(free, seg.space(), blocked);
        } else if moved.denied {
            // Allowed again meanwhile.
        } else {
            return Ok(moved);
        }
    }
}

/// Has a device use pages where they are: its own memory for those that it holds, host storage for all others.
pub(crate) fn use_in_place(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
) -> Result<Moved, Error> {
    let mut moved = map_remote(free, mirror, seg, pages, want)?;
    for run in pages_there(free, mirror, seg, pages) {
        moved.add(migrate::to_device(free, mirror, seg, &run, want)?);
    }
    Ok(moved)
}

/// The runs of pages that a device holds itself.
fn pages_there(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages) -> Vec<Pages> {
    let mut spans = Vec::new();
    for (block, mask) in pages.blocks() {
        let body = seg.claim(block).lock(free);
        spans.push(Span { block, mask: mask & body.dev[mirror.slot()].valid & !body.kept_from(mirror.slot()) });
    }
    runs_of(&spans)
}

/// Waits a moment for whoever keeps some of the pages where they are, or for a launch that does, where that will let go: a short pin is
/// for one operation, and a launch ends; a guard or a long pin may stay for good.
fn wait_for_keeper(
    free: &mut Free,
    seg: &Segment,
    pages: &Pages,
    want: Want,
    since: &mut Instant,
    budget: Option<Duration>,
) -> Result<(), Error> {
    let meets =
        |free: &mut Free, of: fn(&Body) -> Mask| pages.blocks().any(|(id, mask)| of(&seg.claim(id).lock(free)).meets(mask));
    if meets(free, |body| body.pinned) {
        return Err(Error::Pinned);
    }
    // Who only wants a hint carried out does not wait for a launch.
    if meets(free, |body| body.bordered) && want.cause != Cause::Prefetch {
        let left = budget.map(|budget| budget.saturating_sub(since.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Error::Busy { budget: budget.unwrap_or_default() });
        }
        migrate::wait_for_borders(free, seg, pages, left);
        if budget.is_none() {
            *since = Instant::now();
        }
        return Ok(());
    }
    if since.elapsed() > BUDGET || meets(free, |body| body.bordered) {
        return Err(Error::Pinned);
    }
    std::thread::sleep(Duration::from_micros(100));
    Ok(())
}

/// The pages of a block that a guard or a pin keeps from device `slot`.
fn kept_pages(free: &mut Free, seg: &Segment, id: BlockId, slot: usize) -> Mask {
    seg.claim(id).lock(free).kept_from(slot)
}

/// Lets a device use pages where they are: entries that name host storage, for every page that it does not hold itself. Copies
/// that others have come home first; pages of other batches are left to the caller ([`Moved::blocked`]).
pub(crate) fn map_remote(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
) -> Result<Moved, Error> {
    let access = want.access;
    let (space, slot, per) = (seg.space(), mirror.slot(), mirror.rec().pages_per_grain());
    let (asked, pages) = (pages, &pages.widened(per as u64));
    let (_seat, view) = mirror.seat(free, seg, pages, 0)?;
    let mut result = Moved::default();
    let needy = |body: &Body, want: Mask| {
        let dev = &body.dev[slot];
        let ready = dev.mapped & !dev.leaving & dev.alias & if access.writes() { dev.writable } else { Mask::FULL };
        // What it holds it uses there, unless a guard wants it at home.
        (want & !ready & !(dev.valid & !body.kept_from(slot))).widened(per)
    };
    let deadline = Instant::now() + BUDGET;
    // A short pin keeps a page on a coherent device, for one operation.
    let mut kept = false;
    // Entries are made by the last count of mappings. What that refuses is tried again after another one.
    let mut recounted = false;
    let mut asked_for_storage = false;
    loop {
        let _ = mappings::room(0); // counts before the locks, if need be
        if let Some(blocked) = source::fetch_for(free, seg, pages, access, want.how())? {
            result.blocked = result.blocked.or(Some(blocked));
            return Ok(result);
        }
        // An alias and a replica of one page exclude each other. Other devices' aliases stay.
        let mut copied = Vec::new();
        for (block, mask) in pages.blocks() {
            let body = seg.claim(block).lock(free);
            let mask = (needy(&body, mask) & (body.replicated() | body.gone | body.exclusive(Some(slot)))).widened(per);
            copied.push(Span { block, mask });
        }
        for run in runs_of(&copied) {
            let home = Home { map: false, wait: false, asks: want.asks(), ..Home::EXCLUSIVE };
            let moved = migrate::bring_home(free, seg, &run, home, Cause::Launch)?.unrefused()?;
            result.blocked = result.blocked.or(moved.blocked);
            kept |= moved.pinned;
        }
        // Where entries stay behind they go now, with their frames: a grain is all of one kind.
        for run in framed_there(free, mirror, seg, pages, needy) {
            let home = Home { asks: want.asks(), ..Home::off(slot, false) };
            let moved = migrate::bring_home(free, seg, &run, home, Cause::Launch)?.unrefused()?;
            result.blocked = result.blocked.or(moved.blocked);
        }
        if want.asks() != Asks::Not && !std::mem::replace(&mut asked_for_storage, true) {
            // The device's accesses will give holes storage, and cannot be refused.
            let lacking: Vec<_> = pages.blocks().map(|(id, mask)| (id, needy(&seg.claim(id).lock(free), mask))).collect();
            seg.ask_for_pages(asked.bytes(), || lacking.iter().copied())?;
        }
        let Some(seq) = mirror.notifier().read_begin(free, pages, BUDGET) else {
            return Err(Error::Busy { budget: BUDGET });
        };
        let mut again = false;
        for (id, mask) in pages.blocks() {
            let block = seg.claim(id);
            let mut body = block.lock(free);
            let mut fix = needy(&body, mask);
            let mut refuse = |set: Mask| {
                let out = (set & fix).widened(per);
                fix &= !out;
                !out.is_empty()
            };
            result.denied |= refuse(body.denied(access));
            result.lost |= refuse(body.lost & asked.part_of(id));
            if refuse(body.busy) {
                result.blocked = result.blocked.or(Some((id, block.epoch())));
            }
            // The rest of a grain comes along, whatever is in it.
            let along = mask & !asked.part_of(id) & !body.busy;
            body.forgive(along);
            // A copy made since: it comes home in the next round.
            let yet = if access.writes() { body.unread | body.lent } else { body.unread };
            let framed = if mirror.is_rigid() { body.dev[slot].framed() } else { Mask::EMPTY };
            again |= refuse(body.gone | body.replicated() | body.exclusive(Some(slot)) | yet | framed);
            if fix.is_empty() {
                continue;
            }
            let _driver = mirror.rec().lock.hold();
            if mirror.notifier().read_retry(pages, seq) {
                again = true;
                break;
            }
            let edits: smallvec::SmallVec<[Edit; 4]> = block
                .pieces(id, fix)
                .map(|(r, offset)| Edit {
                    at: view.run(seg, id, &r),
                    to: Target::Host(HostAt { region: mirror.region(), offset }),
                    access: if access.writes() { Access::ReadWrite } else { Access::Read },
                })
                .collect();
            // Before its books change, whatever comes of it.
            body.admit(slot);
            // Under the driver lock, since the retry check holds only there: such an edit is one call that waits for nothing.
            // SAFETY: storage of a live segment, which no batch is moving and no device holds a copy of.
            if let Err(e) = mappings::by_last_count(|| unsafe { mirror.device().edit(&edits, &[]) }) {
                // Some may have been made: the books say *stale*, and the next launch removes them first.
                body.alias_failed(slot, fix);
                seg.rec().view[slot].stale.store(1, Ordering::Release);
                DeviceMirror::refresh_ready(space, seg.slot(), block, &body, slot);
                if matches!(e, DeviceError::TooManyMappings { .. }) && !std::mem::replace(&mut recounted, true) {
                    again = true;
                    break;
                }
                return Err(Error::device(mirror.device(), e));
            }
            body.alias_made(slot, fix, access.writes());
            DeviceMirror::refresh_ready(space, seg.slot(), block, &body, slot);
            result.resident += u64::from(fix.count());
        }
        again &= result.blocked.is_none();
        mirror.rec().counters.mapped_remote.fetch_add(std::mem::take(&mut result.resident) * PAGE, Ordering::Relaxed);
        if !again {
            return Ok(result);
        }
        if Instant::now() > deadline {
            return Err(if kept { Error::Pinned } else { Error::Busy { budget: BUDGET } });
        }
        if kept {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// The runs of pages that a device that cannot fault has entries for that name its own frames, of those that need others.
fn framed_there(
    free: &mut Free,
    mirror: &DeviceMirror,
    seg: &Segment,
    pages: &Pages,
    needy: impl Fn(&Body, Mask) -> Mask,
) -> Vec<Pages> {
    if !mirror.is_rigid() {
        return Vec::new();
    }
    let framed = |(block, mask)| {
        let body = seg.claim(block).lock(free);
        Span { block, mask: needy(&body, mask) & body.dev[mirror.slot()].framed() }
    };
    runs_of(&pages.blocks().map(framed).collect::<Vec<_>>())
}
