//! Launches carried out: placed, populated, submitted. And parts of allocations that were dropped.
//!
//! **Guarantee.** A launch comes here when nothing that it has to come behind is left: see [`waits_for`]. It is submitted or refused here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use sterna_hal::panics::caught_inside;
use sterna_hal::{Absent, Access};
use sterna_host::room::{self, Grant};

use super::moves::running_on_rigid;
use super::queue::Part;
use crate::Error;
use crate::cut::Cut;
use crate::hmm::devmem::set_ranks;
use crate::hmm::discard::discard;
use crate::hmm::hold;
use crate::hmm::inflight::{InFlight, Touch};
use crate::hmm::lock::Free;
use crate::hmm::migrate::{Asks, Borders, Want};
use crate::hmm::mirror::{By, DeviceMirror, NotYet};
use crate::hmm::range::populate;
use crate::hmm::uses::Of;
use crate::hmm::{PAGE, Pages};
use crate::launch::{Prepared, at_edges, may_fault};
use crate::policy::{ArgEvent, Hints, LaunchEvent, Place, Policy};
use crate::stats::Cause;

/// An earlier launch of another device that conflicts with this one, and has not ended.
pub(super) fn waits_for(p: &Prepared, record: &InFlight) -> Option<Arc<InFlight>> {
    #[cfg(feature = "planted")]
    if crate::hmm::planted::on(&crate::hmm::planted::NO_ORDER_BETWEEN_DEVICES) {
        return None;
    }
    let slot = record.mirror().slot();
    // The newest, since a device ends its launches in order.
    p.touches.iter().zip(record.numbers()).find_map(|(t, before)| {
        t.seg.uses.lock().newest(Of::Others(slot), &t.bytes, t.access.writes(), before).map(Arc::clone)
    })
}

/// A launch that has to end before a part of an allocation goes: one that uses it, or, where entries go between launches only, one on
/// the same grains that was there when the part was dropped. Those that came later are not awaited here: there may always be one.
pub(super) fn keeps_from_dropping(part: &Part) -> Option<Arc<InFlight>> {
    let used = part.seg.uses.lock().newest(Of::Any, &part.bytes, true, u64::MAX).map(Arc::clone);
    used.or_else(|| running_on_rigid(&part.seg, &part.pages, Of::Any, true, part.latest))
}

/// Drops a part of an allocation, which nobody uses.
pub(super) fn discard_part(free: &mut Free, part: &Part) {
    if Arc::strong_count(&part.seg) == 1 {
        return; // it goes as a whole
    }
    // What cannot be given back now goes with the rest of the allocation.
    let _ = discard(free, &part.seg, &part.pages);
    part.seg.heal(&part.bytes);
}

pub(super) fn launch(
    free: &mut Free,
    p: &Prepared,
    record: &Arc<InFlight>,
    policy: &Mutex<Box<dyn Policy>>,
) -> Result<(), Error> {
    let mirror = record.mirror();
    record.untainted()?;
    // What finds everything as it must be goes without asking anybody, as on the caller's thread.
    match p.submit(mirror, record, false, By::Scheduler) {
        Ok(()) => {
            mirror.rec().counters.resident_launches.fetch_add(1, Ordering::Relaxed);
            let tick = mirror.space().tick();
            let mut due = false;
            for t in &p.touches {
                due |= mirror.note_use(&t.seg.pages_of(&t.bytes), tick);
            }
            if due {
                mirror.write_ranks(free);
            }
            return Ok(());
        }
        Err(NotYet::Failed(e)) => return Err(mirror.noticed(e)),
        Err(NotYet::Populate | NotYet::Held | NotYet::Pinned) => {}
    }
    let now = mirror.space().tick();
    let placed = places(p, mirror, policy, now)?;
    let faults = may_fault(mirror);
    let cut = Cut::new(p, mirror, &placed);
    if !faults && cut.is_needed() {
        return cut.run(free, record, p.groups);
    }
    // Where what lacks comes by demand, copies of its own come before all else: what the launch has there may go for them.
    if faults {
        Borders::give_copies(free, record, &p.touches, now)?;
    }
    for t in &p.touches {
        // No argument makes room for another.
        set_ranks(free, mirror, &t.seg, &t.seg.pages_of(&t.bytes), now);
    }
    let mut gathers = mirror.gather(now, &p.touches);
    let mut attempt = 0;
    loop {
        let mut full = false;
        let mut demand = false;
        for (t, place) in &placed {
            demand |= *place == Place::Demand;
            full |= populate_touch(free, record, t, *place, now)?;
        }
        match if full || faults { Ok(()) } else { Borders::give_copies(free, record, &p.touches, now) } {
            Err(Error::OutOfDeviceMemory { .. }) if !faults => full = true,
            done => done?,
        }
        if full && !faults {
            record.set_borders(None);
            // It would fit, but for something else that stays.
            drop(gathers);
            return cut.run(free, record, p.groups / 2);
        }
        if full && attempt == 0 {
            ask_for_faults(free, mirror, &placed)?;
        }
        // On a device that faults, what was taken away again meanwhile comes by demand.
        attempt += 1;
        let may = faults && (demand || full || attempt > 2);
        match p.submit(mirror, record, may, By::Scheduler) {
            Ok(()) => return Ok(()),
            Err(NotYet::Failed(e)) => return Err(mirror.noticed(e)),
            Err(NotYet::Populate) if mirror.is_lost() => return Err(mirror.loss()),
            // A guard has come meanwhile, or its own copies have lost their entries.
            Err(NotYet::Populate | NotYet::Pinned) if faults => {
                drop(gathers);
                Borders::give_copies(free, record, &p.touches, now)?;
                gathers = mirror.gather(now, &p.touches);
            }
            Err(NotYet::Held) => p.touches.iter().for_each(|t| hold::wait(&t.seg, mirror.slot())),
            Err(NotYet::Populate | NotYet::Pinned) => {}
        }
        if may || mirror.caps().absent != Absent::Faults {
            for t in &p.touches {
                mirror.flush_stale(free, &t.seg)?;
            }
        }
    }
}

/// Asks for the host memory that a launch will take whose arguments did not fit, and come by faults: each makes another page leave, and
/// a fault cannot be refused. Of what the policy leaves to faults nothing is known: the kernel may touch little of it.
fn ask_for_faults(free: &mut Free, mirror: &DeviceMirror, placed: &[(Touch, Place)]) -> Result<(), Error> {
    let declared = || placed.iter().filter(|(_, place)| *place == Place::Migrate).map(|(t, _)| t);
    let all = declared().map(|t| t.bytes.end - t.bytes.start).sum();
    if room::is_plenty(all) {
        return Ok(());
    }
    let space = mirror.space();
    // Pages that come, and those of them and of what is there already that have no storage at home.
    let (mut come, mut bare) = (0, 0);
    for t in declared() {
        for (id, mask) in t.seg.pages_of(&t.bytes).blocks() {
            let mask = mask & !t.seg.claim(id).lock(free).dev[mirror.slot()].valid;
            come += u64::from(mask.count());
            if t.access.writes() {
                bare += u64::from(space.host.holes(space, id, mask).count());
            }
        }
    }
    for id in mirror.ranked() {
        let body = space.block(id).lock(free);
        bare += u64::from((body.dev[mirror.slot()].dirty & body.hole).count());
    }
    Asks::Patiently.for_storage(come.min(bare) * PAGE).map(Grant::lapse)
}

/// Where the policy wants the arguments of a launch that was asked for at tick `now`.
fn places(
    p: &Prepared,
    mirror: &Arc<DeviceMirror>,
    policy: &Mutex<Box<dyn Policy>>,
    now: u64,
) -> Result<Vec<(Touch, Place)>, Error> {
    // An argument of which the program says different things is placed in parts.
    let parts = |t: &Touch| {
        let seg = Arc::clone(&t.seg);
        let part = move |(bytes, hints), access| (Touch { seg: Arc::clone(&seg), bytes, access }, hints);
        let access = t.access;
        t.seg.hinted(&t.bytes).into_iter().map(move |p| part(p, access))
    };
    let (touches, hints): (Vec<Touch>, Vec<Hints>) = p.touches.iter().flat_map(parts).unzip();
    let event = |(t, hints): (&Touch, &Hints)| ArgEvent {
        segment: u64::from(t.seg.slot()),
        bytes: t.bytes.clone(),
        access: t.access,
        hints: *hints,
    };
    let args: Vec<ArgEvent> = touches.iter().zip(&hints).map(event).collect();
    let mut places = Vec::with_capacity(args.len());
    let budget = mirror.device().memory().budget;
    let event = LaunchEvent { now, device: mirror.slot(), caps: mirror.caps(), budget, args: &args };
    let mut asked = policy.lock();
    // A policy is the program's: its panic ends the launch that it was asked about, not the thread of all launches, for which it may
    // not wait either.
    if caught_inside(|| asked.launch(&event, &mut places)).is_err() {
        return Err(Error::Policy { kernel: p.kernel.name });
    }
    drop(asked);
    places.resize(args.len(), Place::Migrate);
    Ok(touches.into_iter().zip(places).collect())
}

/// Populates one argument; says whether something found no room. Pages that are replaced only in part keep the rest of
/// their bytes, so they are brought as for reading and writing.
pub(crate) fn populate_touch(free: &mut Free, record: &InFlight, t: &Touch, place: Place, now: u64) -> Result<bool, Error> {
    match populate_parts(free, record, t, place, now) {
        // Where addresses are memory, they say so.
        Err(Error::OutOfDeviceMemory { .. }) if !may_fault(record.mirror()) => Ok(true),
        done => done,
    }
}

fn populate_parts(free: &mut Free, record: &InFlight, t: &Touch, place: Place, now: u64) -> Result<bool, Error> {
    let mirror = record.mirror();
    let pages = t.seg.pages_of(&t.bytes);
    let want = |access| Want { access, rank: now, cause: Cause::Launch, own: false };
    // An earlier launch that is not done may still fault on what this one replaces: its bytes have to come along.
    if t.access != Access::Write || used_before(t, record) {
        return Ok(populate(free, mirror, &t.seg, &pages, place, want(at_edges(t.access)))?.full);
    }
    // Whole grains are replaced; the segment's end counts as a border, since nothing lies behind it.
    let grain = mirror.rec().pages_per_grain() as u64;
    let base = t.seg.offset();
    let inner_start = (base + t.bytes.start).div_ceil(PAGE * grain) * grain;
    let inner_end =
        if t.bytes.end == t.seg.extent.used() { pages.0.end } else { (base + t.bytes.end) / (PAGE * grain) * grain };
    if inner_start >= inner_end {
        return Ok(populate(free, mirror, &t.seg, &pages, place, want(at_edges(t.access)))?.full);
    }
    let mut full = false;
    for (part, access) in [
        (pages.0.start..inner_start.min(pages.0.end), at_edges(t.access)),
        (inner_start..inner_end, Access::Write),
        (inner_end..pages.0.end, at_edges(t.access)),
    ] {
        if part.start < part.end {
            full |= populate(free, mirror, &t.seg, &Pages(part), place, want(access))?.full;
        }
    }
    Ok(full)
}

/// Whether an earlier launch on the same device uses the bytes and is not done.
fn used_before(t: &Touch, record: &InFlight) -> bool {
    let slot = record.mirror().slot();
    let uses = t.seg.uses.lock();
    uses.overlapping(Of::Slot(slot), &t.bytes, true).any(|u| u.launch.id < record.id && !u.launch.is_finished())
}
