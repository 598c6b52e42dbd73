//! Launches that need more at once than a device has that cannot fault: cut along their grid.
//!
//! **Guarantee.** A launch is carried out as parts, each some of its groups, in the order of the groups. A part is submitted when all
//! that its groups may touch is on the device, by what the kernel's parameters say of them. To everybody else it is one launch: its
//! gates are up and its uses stand from its recording until its last part has ended, a failed part fails all of it, and what it
//! writes is tainted as a whole. No part is submitted behind one that is known to have failed.
//!
//! **States of a part:** populated, submitted with a record of its own, which keeps its pages where they are until it has ended;
//! the last part is submitted as the launch itself, once all others have ended. Where there is room for two, the next part's pages
//! come while a part runs.
//!
//! **What can be cut:** parameters of kind `each`, `rows` and `halo` shrink with the number of groups. `whole` and `scatter` are there
//! throughout, all of them. If not even one group fits, the launch is refused with the numbers.
//!
//! **Locks:** none of its own; on the scheduler's thread, which may wait.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use sterna_hal::Groups;
use sterna_hal::kernel::Mapping;

use crate::Error;
use crate::hmm::addr::{Span, runs_of};
use crate::hmm::devmem::set_ranks;
use crate::hmm::extent::overlap;
use crate::hmm::hold;
use crate::hmm::inflight::{InFlight, Touch};
use crate::hmm::lock::Free;
use crate::hmm::migrate::{self, Asks, Borders, Home};
use crate::hmm::mirror::{By, DeviceMirror, NotYet};
use crate::hmm::{Mask, PAGE, Segment};
use crate::launch::Prepared;
use crate::policy::Place;
use crate::sched::populate_touch;
use crate::stats::Cause;

/// A launch, seen as something to be cut.
pub(crate) struct Cut<'a> {
    prepared: &'a Prepared,
    mirror: &'a Arc<DeviceMirror>,
    /// Where the policy wants the arguments, which may differ from part to part of one.
    placed: &'a [(Touch, Place)],
    budget: u64,
}

/// What a stretch of groups needs of one segment.
struct Need {
    seg: Arc<Segment>,
    /// Bytes of the segment that get addresses.
    addresses: Range<u64>,
    /// Whole grains of device memory, by bytes of the segment.
    memory: SmallVec<[Range<u64>; 4]>,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(prepared: &'a Prepared, mirror: &'a Arc<DeviceMirror>, placed: &'a [(Touch, Place)]) -> Self {
        Self { prepared, mirror, placed, budget: mirror.device().memory().budget }
    }

    /// Whether it cannot be launched as it is: it needs more memory than there is, or has arguments whose segments cannot have
    /// addresses as a whole.
    pub(crate) fn is_needed(&self) -> bool {
        let limit = self.mirror.caps().max_reservation;
        let long = |t: &Touch| self.mirror.reserved_for(&(0..t.seg.bytes())).end > limit;
        self.prepared.touches.iter().any(long) || !self.fits(&(0..self.prepared.groups), self.budget)
    }

    /// What these groups touch of each argument.
    fn touches(&self, groups: &Range<u32>) -> SmallVec<[Touch; 4]> {
        let part = |(t, param): (&Touch, &sterna_hal::kernel::ParamDesc)| {
            let elem = param.elem.max(1);
            let len = (t.bytes.end - t.bytes.start) / elem;
            let touched = |group: u32| param.mapping.touched(u64::from(group), len);
            let (first, last) = (touched(groups.start).start, touched(groups.end - 1).end);
            let bytes = match param.mapping {
                Mapping::Whole | Mapping::Scatter => t.bytes.clone(),
                // What lies behind the last whole element goes with the last group.
                _ if last == len => t.bytes.start + first * elem..t.bytes.end,
                _ => t.bytes.start + first * elem..t.bytes.start + last * elem,
            };
            Touch { seg: Arc::clone(&t.seg), bytes, access: t.access }
        };
        self.prepared.touches.iter().zip(&self.prepared.params).map(part).collect()
    }

    /// The pieces of a touch by where they are to be.
    fn placed(&self, t: &Touch) -> impl Iterator<Item = (Touch, Place)> {
        let of = move |(p, _): &&(Touch, Place)| {
            p.seg.first() == t.seg.first() && p.access == t.access && overlap(&p.bytes, &t.bytes)
        };
        self.placed.iter().filter(of).map(|(p, place)| {
            let bytes = p.bytes.start.max(t.bytes.start)..p.bytes.end.min(t.bytes.end);
            (Touch { bytes, ..p.clone() }, *place)
        })
    }

    fn needs(&self, groups: &Range<u32>) -> SmallVec<[Need; 4]> {
        let grain = self.mirror.caps().grain.max(PAGE);
        let mut all: SmallVec<[Need; 4]> = SmallVec::new();
        for t in self.touches(groups) {
            let addresses = self.mirror.reserved_for(&t.bytes);
            let i = all.iter().position(|n| n.seg.first() == t.seg.first()).unwrap_or_else(|| {
                all.push(Need { seg: Arc::clone(&t.seg), addresses: addresses.clone(), memory: SmallVec::new() });
                all.len() - 1
            });
            let need = &mut all[i];
            need.addresses = need.addresses.start.min(addresses.start)..need.addresses.end.max(addresses.end);
            for (piece, place) in self.placed(&t) {
                if place != Place::Remote || !self.mirror.may_alias() {
                    need.memory.push(piece.bytes.start / grain * grain..piece.bytes.end.next_multiple_of(grain));
                }
            }
        }
        all
    }

    /// Bytes of device memory that these groups need at once.
    fn bytes(&self, groups: &Range<u32>) -> u64 {
        let sum = |mut need: Need| {
            if self.mirror.caps().placed {
                return need.addresses.end - need.addresses.start;
            }
            need.memory.sort_by_key(|r| r.start);
            let mut end = 0;
            let mut fresh = |r: &Range<u64>| {
                let n = r.end.saturating_sub(r.start.max(end));
                end = end.max(r.end);
                n
            };
            need.memory.iter().map(&mut fresh).sum()
        };
        self.needs(groups).into_iter().map(sum).sum()
    }

    /// Bytes of the longest stretch of addresses that these groups need and the device cannot reserve in one piece.
    fn too_long(&self, groups: &Range<u32>) -> Option<u64> {
        let limit = self.mirror.caps().max_reservation;
        // Where a whole segment can be had it is had, unless addresses are memory.
        let whole = |n: &Need| !self.mirror.caps().placed && n.seg.bytes() <= limit;
        let long = self.needs(groups).iter().filter(|n| !whole(n)).map(|n| n.addresses.end - n.addresses.start).max();
        long.filter(|n| *n > limit)
    }

    fn fits(&self, groups: &Range<u32>, room: u64) -> bool {
        self.too_long(groups).is_none() && self.bytes(groups) <= room
    }

    /// The end of the longest part from group `first` on with at most `most` groups and `room` bytes; `first` if there is none.
    fn longest(&self, first: u32, most: u32, room: u64) -> u32 {
        let (mut good, mut bad) = (0, most.min(self.prepared.groups - first) + 1);
        while bad - good > 1 {
            let n = good + (bad - good) / 2;
            if self.fits(&(first..first + n), room) { good = n } else { bad = n }
        }
        first + good
    }

    /// The part from group `first` on: what leaves room for the next one, if there is such, or else what fits.
    fn next(&self, first: u32, most: u32) -> Result<Range<u32>, Error> {
        let throughout = self.bytes(&(first..first + 1));
        let half = throughout + self.budget.saturating_sub(throughout) / 2;
        // Where addresses are memory, a part takes the place of the one before.
        let end = if self.mirror.caps().placed { first } else { self.longest(first, most, half) };
        let end = if end > first { end } else { self.longest(first, most, self.budget) };
        if end > first { Ok(first..end) } else { Err(self.refusal(&(first..first + 1))) }
    }

    fn refusal(&self, groups: &Range<u32>) -> Error {
        let limit = self.mirror.caps().max_reservation;
        match self.too_long(groups) {
            Some(requested) if limit < self.budget || !self.mirror.caps().placed => {
                Error::TooBig { requested, limit, what: "what the device can reserve in one piece" }
            }
            _ => {
                let (device, needs, budget) = (self.mirror.device().info().id.clone(), self.bytes(groups), self.budget);
                let setting = self.mirror.setting();
                if needs > budget {
                    return Error::WorkingSet { kernel: self.prepared.kernel.name, device, needs, budget, setting };
                }
                // The budget would do: what there is of it is taken, or the driver has less.
                let in_use = self.mirror.device().memory().in_use;
                Error::OutOfDeviceMemory { device, requested: needs, in_use, budget, setting }
            }
        }
    }

    /// Carries the launch out, in parts of at most `most` groups. The last part is submitted as `record`.
    pub(crate) fn run(&self, free: &mut Free, record: &Arc<InFlight>, most: u32) -> Result<(), Error> {
        let mut parts = Vec::new();
        let done = self.submit(free, record, most, &mut parts);
        if done.is_err() {
            // What it would have written is the host's to look at as soon as it is refused.
            for part in &parts {
                part.wait(free, None);
            }
        }
        done
    }

    fn submit(
        &self,
        free: &mut Free,
        record: &Arc<InFlight>,
        most: u32,
        parts: &mut Vec<Arc<InFlight>>,
    ) -> Result<(), Error> {
        let (mut first, mut most) = (0, most.max(1));
        while first < self.prepared.groups {
            let groups = self.next(first, most)?;
            let last = groups.end == self.prepared.groups;
            self.mirror.reap();
            reap_parts(free, parts, last)?;
            let own = if last {
                Arc::clone(record)
            } else {
                InFlight::part(&self.prepared.kernel, Arc::clone(self.mirror), self.touches(&groups))
            };
            let by = if last { By::Scheduler } else { By::Caller };
            let mut there = self.part(free, record, &own, &groups, parts, by)?;
            if !there && !parts.is_empty() {
                reap_parts(free, parts, true)?;
                there = self.part(free, record, &own, &groups, parts, by)?;
            }
            if there {
                self.mirror.rec().counters.parts.fetch_add(1, Ordering::Relaxed);
                first = groups.end;
                if !last {
                    parts.push(own);
                }
            } else if groups.end - groups.start > 1 {
                // Something else takes room: other launches' pages that stay, or pieces that do not fit the driver's memory.
                most = (groups.end - groups.start) / 2;
            } else {
                return Err(self.refusal(&groups));
            }
        }
        Ok(())
    }

    /// Takes home what the device has beside the pages of a part in the same blocks: eviction is by block, and a block that a part
    /// uses stays. What the parts in `running` use stays too.
    fn leave_beside(&self, free: &mut Free, touches: &[Touch], running: &[Arc<InFlight>]) -> Result<(), Error> {
        let (mirror, slot) = (self.mirror, self.mirror.slot());
        let per = mirror.rec().pages_per_grain();
        let used: Vec<Touch> = running.iter().flat_map(|p| p.touches()).chain(touches.iter().cloned()).collect();
        for t in touches {
            let mut beside = Vec::new();
            for (block, _) in t.seg.pages_of(&t.bytes).blocks() {
                let same = used.iter().filter(|u| u.seg.first() == t.seg.first());
                let needed = same.fold(Mask::EMPTY, |m, u| m | t.seg.pages_of(&u.bytes).part_of(block)).widened(per);
                let mask = t.seg.claim(block).lock(free).dev[slot].with_frames(per) & !needed;
                beside.push(Span { block, mask });
            }
            for run in runs_of(&beside) {
                let home = Home { asks: Asks::Patiently, ..Home::off(slot, true) };
                migrate::bring_home(free, &t.seg, &run, home, Cause::Eviction)?;
                mirror.rec().counters.evictions.fetch_add(run.blocks().count() as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Brings what some groups need and submits them as `own`; false if there is no room beside the parts in `running`.
    fn part(
        &self,
        free: &mut Free,
        record: &Arc<InFlight>,
        own: &Arc<InFlight>,
        groups: &Range<u32>,
        running: &[Arc<InFlight>],
        by: By,
    ) -> Result<bool, Error> {
        let mirror = self.mirror;
        let touches = self.touches(groups);
        loop {
            // Each part has a rank of its own, so that it may take the place of the one before.
            let now = mirror.space().tick();
            let _gathers = mirror.gather(now, &touches);
            // No argument makes room for another.
            for t in &touches {
                set_ranks(free, mirror, &t.seg, &t.seg.pages_of(&t.bytes), now);
            }
            let mut seats = SmallVec::<[_; 4]>::new();
            let mut full = false;
            for need in self.needs(groups) {
                match mirror.seat_part(free, &need.seg, &need.addresses, now) {
                    Ok((seat, _)) => seats.push(seat),
                    Err(Error::OutOfDeviceMemory { .. }) => full = true,
                    Err(e) => return Err(e),
                }
            }
            if !mirror.caps().placed {
                self.leave_beside(free, &touches, running)?;
            }
            for (t, place) in touches.iter().flat_map(|t| self.placed(t)) {
                full = full || populate_touch(free, record, &t, place, now)?;
            }
            match if full { Ok(()) } else { Borders::give_copies(free, own, &touches, now) } {
                Err(Error::OutOfDeviceMemory { .. }) => full = true,
                done => done?,
            }
            if full {
                own.set_borders(None);
                return Ok(false);
            }
            match self.prepared.submit_groups(mirror, own, (Groups::Range(groups.start, groups.end), &touches), false, by) {
                Ok(()) => return Ok(true),
                Err(NotYet::Failed(e)) => {
                    let e = mirror.noticed(e);
                    // It was recorded with its submission: everybody would wait for it.
                    if let By::Caller = by {
                        own.refuse(e.clone());
                    }
                    return Err(e);
                }
                Err(NotYet::Populate) if mirror.is_lost() => {
                    return Err(Error::Lost { device: mirror.device().info().id.clone() });
                }
                Err(NotYet::Held) => touches.iter().for_each(|t| hold::wait(&t.seg, mirror.slot())),
                // A guard has come meanwhile: next time there are copies.
                Err(NotYet::Populate | NotYet::Pinned) => {}
            }
            for t in &touches {
                mirror.flush_stale(free, &t.seg)?;
            }
        }
    }
}

/// Forgets the parts that have ended, or waits for `all` of them; says how one has failed.
fn reap_parts(free: &mut Free, parts: &mut Vec<Arc<InFlight>>, all: bool) -> Result<(), Error> {
    for part in parts.iter().filter(|p| all || p.has_ended()) {
        part.wait(free, None);
        if let Some(e) = part.error() {
            return Err(Error::clone(e));
        }
    }
    parts.retain(|p| !p.has_ended());
    Ok(())
}
