//! A segment's addresses on a device: of all of it, or of the part that a launch was cut to.
//!
//! **Guarantee.** A segment has one stretch of addresses on a device at most. Every entry and every frame that the books name for
//! it there lies inside. While a [`Seat`] lives, or a launch that was submitted over them, the addresses stay.
//!
//! **States.** None → all, where the device can reserve that in one piece → none. On a device that cannot fault also none → a part →
//! none → another part: a kernel gets the address where byte 0 *would* be, so it never learns. Addresses are given back when the
//! device has nothing of the segment.
//!
//! **Locks.** `views` of the segment and of the mirror, for look-ups. Addresses are compared, taken by a seat and given up under the
//! driver lock.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sterna_hal::{Absent, DevAddr, DevRange};

use super::addr::{BLOCK, BlockId, GRANULE, PAGE, Page, Pages};
use super::devmem::unseat_another;
use super::lock::Free;
use super::migrate::{self, Asks, Home};
use super::mirror::DeviceMirror;
use super::segment::Segment;
use crate::Error;
use crate::stats::Cause;

/// Where bytes of a segment are on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Addresses {
    pub(crate) at: DevRange,
    /// The segment's byte that is at their start: 0, but for a part.
    pub(crate) from: u64,
}

impl Addresses {
    pub(crate) fn covers(&self, bytes: &Range<u64>) -> bool {
        self.from <= bytes.start && bytes.end <= self.from + self.at.bytes
    }

    /// The address of the segment's byte `offset`. For one outside it is where that byte would be.
    pub(crate) fn of(&self, offset: u64) -> DevAddr {
        DevAddr(self.at.at.0.wrapping_sub(self.from).wrapping_add(offset))
    }

    /// The addresses of pages `run` of a block.
    pub(crate) fn run(&self, seg: &Segment, block: BlockId, run: &Range<usize>) -> DevRange {
        let bytes = run.len() as u64 * PAGE;
        debug_assert!(self.covers(&(seg.view_offset(block, run.start)..seg.view_offset(block, run.start) + bytes)));
        DevRange { at: self.of(seg.view_offset(block, run.start)), bytes }
    }
}

/// Keeps a segment's addresses on a device while pages move there.
#[derive(Debug)]
pub(crate) struct Seat {
    seg: Arc<Segment>,
    slot: usize,
}

impl Seat {
    /// Under the driver lock.
    pub(super) fn take(seg: &Arc<Segment>, slot: usize) -> Self {
        seg.rec().view[slot].seated.fetch_add(1, Ordering::AcqRel);
        Self { seg: Arc::clone(seg), slot }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seg.rec().view[self.slot].seated.fetch_sub(1, Ordering::AcqRel);
    }
}

impl DeviceMirror {
    /// Addresses are reserved in these units: entries are made by whole grains, and a fault may bring in a granule.
    fn unit(&self) -> u64 {
        self.caps().grain.max(GRANULE)
    }

    /// What the device's addresses for a segment, where its byte 0 is or would be, are a multiple of.
    pub(crate) fn alignment(&self, seg: &Segment) -> u64 {
        let caps = self.caps();
        let whole = seg.bytes().max(1).next_multiple_of(self.unit());
        match caps.absent {
            _ if caps.placed => caps.grain,
            // It may get addresses in parts, which begin at any unit.
            Absent::Undefined if whole > caps.max_reservation => self.unit(),
            _ => BLOCK,
        }
    }

    /// The device's addresses for all of `seg`, reserved at first use.
    pub(crate) fn view(self: &Arc<Self>, seg: &Arc<Segment>) -> Result<Addresses, Error> {
        match seg.view(self.slot()) {
            Some(v) => Ok(v),
            None => self.reserve(seg, &(0..seg.bytes().max(1).next_multiple_of(self.unit()))),
        }
    }

    fn reserve(self: &Arc<Self>, seg: &Arc<Segment>, bytes: &Range<u64>) -> Result<Addresses, Error> {
        let at = self.device().reserve(bytes.end - bytes.start).map_err(|e| self.noticed(e))?;
        let made = Addresses { at, from: bytes.start };
        let got = seg.set_view(self, made);
        if got == made {
            self.views.write().insert(at.at.0, (made, Arc::downgrade(seg)));
        } else {
            // SAFETY: reserved just now; another thread's reservation is the one in use.
            unsafe { self.device().unreserve(at) };
        }
        Ok(got)
    }

    /// The device's addresses for `pages` of `seg`, kept while the seat lives. Where addresses are memory, other segments of a rank
    /// below `below` leave the device for them, whole.
    pub(crate) fn seat(
        self: &Arc<Self>,
        free: &mut Free,
        seg: &Arc<Segment>,
        pages: &Pages,
        below: u64,
    ) -> Result<(Seat, Addresses), Error> {
        self.seat_bytes(free, seg, &seg.bytes_in(pages), false, below)
    }

    /// As [`seat`](Self::seat), for a launch that was cut: where addresses are memory, exactly those of `bytes` and no more.
    pub(crate) fn seat_part(
        self: &Arc<Self>,
        free: &mut Free,
        seg: &Arc<Segment>,
        bytes: &Range<u64>,
        below: u64,
    ) -> Result<(Seat, Addresses), Error> {
        self.seat_bytes(free, seg, bytes, self.caps().placed, below)
    }

    fn seat_bytes(
        self: &Arc<Self>,
        free: &mut Free,
        seg: &Arc<Segment>,
        bytes: &Range<u64>,
        exactly: bool,
        below: u64,
    ) -> Result<(Seat, Addresses), Error> {
        let (need, since) = (self.reserved_for(bytes), Instant::now());
        loop {
            let seated = {
                let _driver = self.rec().lock.hold();
                seg.view(self.slot()).map(|view| (Seat::take(seg, self.slot()), view))
            };
            if let Some((seat, view)) = seated {
                if view.covers(&need) && (!exactly || view.at.bytes == need.end - need.start) {
                    return Ok((seat, view));
                }
                drop(seat);
                self.vacate(free, seg)?;
                continue;
            }
            let whole = 0..seg.bytes().max(1).next_multiple_of(self.unit());
            // A launch on a device that faults may touch what was not announced.
            let parts = self.caps().absent == Absent::Undefined;
            let part = parts && (exactly || whole.end > self.caps().max_reservation);
            let before = self.ended_segments();
            match self.reserve(seg, if part { &need } else { &whole }) {
                Ok(_) => {}
                Err(Error::OutOfDeviceMemory { .. }) if unseat_another(free, self, seg, below, (before, since))? => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Who makes room for addresses asks for memory: a launch, or, on a device that faults, perhaps a kernel's touch, which cannot be
    /// refused.
    pub(crate) fn asks(&self) -> Asks {
        if self.caps().absent == Absent::Faults { Asks::Not } else { Asks::Patiently }
    }

    /// The bytes of a segment that get addresses when `bytes` are to have some.
    pub(crate) fn reserved_for(&self, bytes: &Range<u64>) -> Range<u64> {
        bytes.start / self.unit() * self.unit()..bytes.end.max(1).next_multiple_of(self.unit())
    }

    /// Takes a segment off the device, addresses and all, once the launches that were submitted over it have ended.
    fn vacate(&self, free: &mut Free, seg: &Arc<Segment>) -> Result<(), Error> {
        let home = Home { asks: self.asks(), ..Home::off(self.slot(), true) };
        loop {
            self.reap();
            let all = 0..seg.pages().bytes();
            let uses = seg.uses.lock();
            let mut mine = uses.overlapping(super::uses::Of::Slot(self.slot()), &all, true).map(|u| &u.launch);
            let running = mine.find(|l| l.is_running()).cloned();
            drop(mine);
            drop(uses);
            if let Some(launch) = running {
                launch.wait(free, None);
                continue;
            }
            let Some(view) = seg.view(self.slot()) else { return Ok(()) };
            let first = (seg.offset() + view.from) / PAGE;
            let there = Pages(first..(first + view.at.bytes / PAGE).min(seg.pages().0.end));
            migrate::bring_home(free, seg, &there, home, Cause::Eviction)?.unrefused()?;
            if self.unseat(free, seg) {
                self.rec().counters.evictions.fetch_add(there.blocks().count() as u64, Ordering::Relaxed);
                return Ok(());
            }
            std::thread::yield_now();
        }
    }

    /// The segments that have addresses here.
    pub(crate) fn seated(&self) -> Vec<Arc<Segment>> {
        self.views.read().values().filter_map(|(_, s)| s.upgrade()).collect()
    }

    /// Gives back the addresses of a segment that has nothing here any more; says whether it had nothing, and nobody who is
    /// bringing something.
    pub(crate) fn unseat(&self, free: &mut Free, seg: &Segment) -> bool {
        let per = self.rec().pages_per_grain();
        for id in seg.claimed() {
            let body = self.space().block(id).lock(free);
            let dev = &body.dev[self.slot()];
            // Busy pages may be on their way from here; entries stay in the books until their edit has been made.
            if dev.has_frames(per) || !dev.mapped.is_empty() || !body.busy.is_empty() {
                return false;
            }
        }
        let view = {
            let _driver = self.rec().lock.hold();
            if seg.is_seated(self.slot()) { None } else { seg.give_up_view(self) }
        };
        if let Some(view) = view {
            self.views.write().remove(&view.at.at.0);
            // SAFETY: nothing of the segment is here, nobody brings anything, and no launch can be submitted over it: the
            // addresses that it was prepared with are compared under the driver lock.
            unsafe { self.device().unreserve(view.at) };
        }
        view.is_some()
    }

    /// The segment and page at a device address.
    pub(crate) fn resolve(&self, at: DevAddr) -> Option<(Arc<Segment>, Page)> {
        let views = self.views.read();
        let (start, (view, seg)) = views.range(..=at.0).next_back()?;
        let offset = at.0 - start;
        if offset >= view.at.bytes {
            return None;
        }
        let seg = seg.upgrade()?;
        Some((Arc::clone(&seg), Page((seg.offset() + view.from + offset) / PAGE)))
    }
}
