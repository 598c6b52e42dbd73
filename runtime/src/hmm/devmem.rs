//! Device memory: frames taken in advance, and eviction.
//!
//! **Guarantee.** Every grain is in exactly one place: free in the device, in a [`Reserved`], or in one block's frame table.
//! Frames are taken before any block lock; what a batch does not use goes back when its `Reserved` is dropped.
//!
//! **Eviction** brings the blocks with the lowest rank home, one block lock at a time, and skips what is busy. The policy
//! writes the ranks; least recently used by launch and fault means that a rank is the clock's tick at that launch or fault.
//! Four things are left alone whatever their rank, by page: what the threads of a device that faults were just given
//! ([`arrivals`](super::arrivals)), what the launch that asks and earlier ones gather ([`gathering`](super::gathering)), what a
//! pin keeps there, and, as long as anything else is left, what submitted launches use. A launch waits for the oldest of those
//! first; a fault, which may not wait, takes from them; on devices that cannot fault nothing is taken from them at all.
//!
//! **No room** is said when nothing can leave, no submitted or earlier launch will give anything back, and nothing has come
//! back of what was in somebody's hands for a second. Whoever serves a fault, or holds busy pages, is told at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use sterna_hal::{Absent, DevAddr, DeviceError, Frames, in_kernel};
use sterna_host::mappings;

use super::addr::{BlockId, Mask, Pages, Span, runs_of};
use super::arrivals::Grain;
use super::lock::Free;
use super::migrate::{self, Asks, Home, Want};
use super::mirror::DeviceMirror;
use super::running;
use super::segment::Segment;
use super::uses::Of;
use crate::Error;
use crate::stats::Cause;

/// How long to wait for memory that is on its way back, and how long between two looks at it.
const PATIENCE: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_micros(100);
/// How often nothing must have been on its way back before there is no room.
const LOOKS: u32 = 3;

/// Appends one grain to a list of stretches.
pub(crate) fn push_frame(frames: &mut Vec<Frames>, grain: u32) {
    match frames.last_mut() {
        Some(f) if f.first + f.grains == grain => f.grains += 1,
        _ => frames.push(Frames { first: grain, grains: 1 }),
    }
}

/// Grains that leave at once where there are too many mappings, since finding out how many are left takes as long as moving some.
const MANY: u32 = 2048;

/// Frames that nobody uses yet. What is not taken goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    mirror: Arc<DeviceMirror>,
    frames: Vec<Frames>,
    next: usize,
    spare: u32,
    /// Where frames belong to addresses: the frame of the first.
    placed: Option<u32>,
}

impl Reserved {
    /// Takes `grains` grains for the segment at `place`, evicting blocks of a rank below `want.rank` if need be, for a launch that
    /// gathers of any rank. Waits for copies; with `waits`, for which nothing of the caller's may be busy, also for launches that are to
    /// end, when everything else is in use.
    pub(crate) fn take(
        free: &mut Free,
        mirror: &Arc<DeviceMirror>,
        place: DevAddr,
        grains: u32,
        want: Want,
        waits: bool,
    ) -> Result<Self, Error> {
        let mut frames = Vec::new();
        if mirror.caps().placed {
            mirror.device().alloc(place, 1, &mut frames).map_err(|e| mirror.noticed(e))?;
            let placed = frames.pop().map(|f| f.first);
            mirror.reserved.fetch_add(1, Ordering::SeqCst);
            return Ok(Self { mirror: Arc::clone(mirror), frames, next: 0, spare: grains, placed });
        }
        let (mut since, mut looks) = (Instant::now(), 0);
        let mut short = None;
        let mapped = mirror.device().frames_base().is_some();
        loop {
            // Entries for frames that are there already may be mappings, too.
            if grains == 0 && (!mapped || mappings::room(2)) {
                break;
            }
            let before = mirror.ended_segments();
            if grains == 0 {
                short = Some(mappings::exhausted());
            // A fault that has found no room goes first.
            } else if want.cause == Cause::DeviceFault || !mirror.arrivals.starves() {
                match mirror.device().alloc(place, grains, &mut frames) {
                    Ok(()) => break,
                    Err(DeviceError::OutOfMemory { .. }) => short = None,
                    Err(e @ DeviceError::TooManyMappings { .. }) => short = Some(e),
                    Err(e) => return Err(mirror.noticed(e)),
                }
            }
            let lacks = if short.is_some() { grains.max(MANY) } else { grains };
            match make_room(free, mirror, (lacks, short.is_some()), want, waits, before)? {
                Room::Made => (since, looks) = (Instant::now(), 0),
                Room::Soon if waits && since.elapsed() <= PATIENCE => std::thread::sleep(MOMENT),
                // What is left for what has been begun may do.
                Room::Soon | Room::None if grains == 0 => break,
                // What came back between the one look and the other is seen at the next.
                Room::None if waits && want.cause != Cause::DeviceFault && looks < LOOKS => {
                    looks += 1;
                    std::thread::sleep(MOMENT);
                }
                Room::Soon | Room::None => {
                    return Err(short.map_or_else(|| exhausted(mirror, grains), |e| mirror.noticed(e)));
                }
            }
        }
        mirror.reserved.fetch_add(1, Ordering::SeqCst);
        Ok(Self { mirror: Arc::clone(mirror), frames, next: 0, spare: grains, placed: None })
    }

    /// Grains that are left.
    pub(crate) fn spare(&self) -> u32 {
        self.spare
    }

    /// The next grain, for grain `number` behind the place. There must be one left.
    pub(crate) fn pop(&mut self, number: u32) -> u32 {
        if let Some(first) = self.placed {
            self.spare -= 1;
            return first + number;
        }
        let f = &mut self.frames[self.next];
        let grain = f.first;
        f.first += 1;
        f.grains -= 1;
        self.spare -= 1;
        if f.grains == 0 {
            self.next += 1;
        }
        grain
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let rest: Vec<Frames> =
            self.frames[self.next.min(self.frames.len())..].iter().copied().filter(|f| f.grains > 0).collect();
        if !rest.is_empty() {
            // SAFETY: allocated by `take`, handed to nobody.
            unsafe { self.mirror.device().free(&rest) };
        }
        self.mirror.reserved.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes another segment of a rank below `below` off a device that cannot fault, whose addresses are memory or have run out: the one
/// whose last use is longest ago, and no one that submitted launches use. Waits for one of those if there is no other, or for one that is
/// on its way out. False if none is left, and none has gone since `before`; those on which somebody sits for the moment are waited for,
/// until the caller, who began `since`, has tried long enough.
pub(crate) fn unseat_another(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    wants: &Segment,
    below: u64,
    (before, since): (u64, Instant),
) -> Result<bool, Error> {
    if mirror.caps().absent != Absent::Undefined {
        return Ok(false);
    }
    mirror.write_ranks(free);
    let (slot, number) = (mirror.slot(), below);
    // What this launch and earlier ones gather is left alone; what later ones do is not.
    let below = if mirror.gathering.has(number) { u64::MAX } else { below };
    let rank = |free: &mut Free, seg: &Segment| {
        let blocks = seg.claimed();
        blocks.into_iter().map(|id| mirror.space().block(id).lock(free).dev[slot].rank).max().unwrap_or(0)
    };
    let others: Vec<_> = mirror.seated().into_iter().filter(|s| s.first() != wants.first()).collect();
    let mut ranked: Vec<_> = others.into_iter().map(|s| (rank(free, &s), s)).filter(|(r, _)| *r < below).collect();
    ranked.sort_by_key(|(r, s)| (*r, s.first()));
    let (mut used, mut sat_on) = (false, false);
    for (_, seg) in ranked {
        if mirror.gathering.is_kept(number, &seg.pages()) {
            continue;
        }
        let all = 0..seg.pages().bytes();
        let in_use = seg.uses.lock().overlapping(Of::Slot(slot), &all, true).any(|u| u.launch.is_running());
        let seated = {
            let _driver = mirror.rec().lock.hold();
            seg.is_seated(slot)
        };
        used |= in_use;
        sat_on |= seated && !in_use;
        if in_use || seated {
            continue;
        }
        let home = Home { asks: mirror.asks(), ..Home::off(slot, true) };
        migrate::bring_home(free, &seg, &seg.pages(), home, Cause::Eviction)?;
        if mirror.unseat(free, &seg) {
            let counters = &mirror.rec().counters;
            counters.evictions.fetch_add(u64::from(seg.blocks()), Ordering::Relaxed);
            // Where addresses are memory this is how memory is given to others.
            counters.unseated.fetch_add(u64::from(!mirror.caps().placed), Ordering::Relaxed);
            return Ok(true);
        }
    }
    if wait_for_oldest(free, mirror) {
        return Ok(true);
    }
    let is_moment = sat_on && since.elapsed() < PATIENCE;
    if is_moment || mirror.some_ended_since(before) || mirror.gathering.is_behind(number) {
        std::thread::sleep(MOMENT);
        return Ok(true);
    }
    // What was in use a moment ago may not be any more, with nothing left to wait for.
    Ok(used)
}

/// Waits for the oldest launch that has not retired. False if there is none, or in a kernel, which may be it.
pub(super) fn wait_for_oldest(free: &mut Free, mirror: &Arc<DeviceMirror>) -> bool {
    if in_kernel() {
        return false;
    }
    mirror.reap();
    let Some(oldest) = mirror.oldest() else { return false };
    oldest.wait(free, None);
    mirror.reap();
    true
}

/// Gives the blocks of `pages` that are on the device the rank of a launch or fault that uses them.
pub(crate) fn set_ranks(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages, rank: u64) {
    let per = mirror.rec().pages_per_grain();
    for (id, _) in pages.blocks() {
        let mut body = seg.claim(id).lock(free);
        if body.dev[mirror.slot()].has_frames(per) {
            mirror.set_rank(id, &mut body, rank);
        }
    }
}

/// Whether there may be room.
enum Room {
    /// Try again.
    Made,
    /// Perhaps in a moment.
    Soon,
    None,
}

/// Sees to it that `grains` grains can be had, with `all` that so many leave, as far as they can; see [`Reserved::take`] for the rest.
fn make_room(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    (grains, all): (u32, bool),
    want: Want,
    waits: bool,
    before: u64,
) -> Result<Room, Error> {
    let fault = want.cause == Cause::DeviceFault;
    if !fault && mirror.arrivals.starves() {
        return Ok(Room::Soon);
    }
    let memory = mirror.device().memory();
    let free_now = memory.budget.saturating_sub(memory.in_use) / mirror.caps().grain;
    let short = u64::from(grains).saturating_sub(if all { 0 } else { free_now }).max(1) as u32;
    // What a launch gathers is left alone by page, and not by the rank of what lies beside it.
    let below = if mirror.gathering.has(want.rank) { u64::MAX } else { want.rank };
    if evict(free, mirror, short, (want, below), false)? > 0 {
        return Ok(Room::Made);
    }
    if !waits && !fault {
        return Ok(Room::None);
    }
    let faults = mirror.caps().absent == Absent::Faults;
    let hint = want.cause == Cause::Prefetch;
    if !hint && !fault && (want.cause == Cause::Launch || !faults) && wait_for_oldest(free, mirror) {
        return Ok(Room::Made);
    }
    // A fault's own block may be all there is: its other grains go, or the fault would never be served.
    if faults && !hint && evict(free, mirror, short, (want, below.saturating_add(u64::from(fault))), true)? > 0 {
        return Ok(Room::Made);
    }
    if fault {
        return Ok(Room::None);
    }
    if !faults && !hint && mirror.gathering.is_behind(want.rank) {
        // The earliest of them lacks nothing that will not come back, so it is submitted, and then ends.
        std::thread::sleep(MOMENT);
        return Ok(Room::Made);
    }
    Ok(if passes(free, mirror, (want, below), before) { Room::Soon } else { Room::None })
}

fn exhausted(mirror: &DeviceMirror, grains: u32) -> Error {
    mirror.exhausted(u64::from(grains) * mirror.caps().grain)
}

impl DeviceMirror {
    /// The blocks that have something here, in the order in which they leave.
    pub(crate) fn ranked(&self) -> Vec<BlockId> {
        self.order.lock().0.iter().map(|(_, id)| *id).collect()
    }
}

/// Frees at least `grains` grains if blocks with a rank below that given hold that many, those that submitted launches use only
/// with `in_use`; says how many it freed.
fn evict(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    grains: u32,
    (want, below): (Want, u64),
    in_use: bool,
) -> Result<u32, Error> {
    mirror.write_ranks(free);
    let keep = Spared::new(mirror, want, in_use);
    let candidates: Vec<BlockId> = mirror.order.lock().0.range(..(below, BlockId(0))).map(|(_, id)| *id).collect();
    let victims = if mirror.arrivals.by_grain() {
        earliest(free, &keep, candidates, grains)
    } else {
        lowest(free, &keep, candidates, grains)
    };
    let fault = want.cause == Cause::DeviceFault;
    let freed = evict_victims(free, mirror, &victims, if fault { Asks::Once } else { Asks::Patiently });
    // A kernel's touch is refused as little as the host's: the kernel could be told nothing.
    let refused = matches!(freed, Err(Error::OutOfHostMemory { .. }));
    if refused && fault { evict_victims(free, mirror, &victims, Asks::Not) } else { freed }
}

/// Has victims leave the device, and says how many grains that has freed. Where the host has no storage for some, others go; an error if
/// none went. `asks` as in [`Home`].
fn evict_victims(free: &mut Free, mirror: &Arc<DeviceMirror>, victims: &[Span], asks: Asks) -> Result<u32, Error> {
    let counters = &mirror.rec().counters;
    let (mut freed, mut refused) = (0, None);
    let mut rest = victims;
    while let Some(first) = rest.first() {
        // A segment on its way out frees its own frames.
        let Some(seg) = mirror.space().segment_of(first.block) else {
            rest = &rest[1..];
            continue;
        };
        let mine = |s: &&Span| s.block.0 < seg.first().0 + seg.blocks();
        let (of_segment, others) = rest.split_at(rest.iter().take_while(mine).count().max(1));
        rest = others;
        // Neighbours go together, so that their bytes are one copy.
        for pages in runs_of(of_segment) {
            let home = Home { asks, ..Home::off(mirror.slot(), false) };
            match migrate::bring_home(free, &seg, &pages, home, Cause::Eviction) {
                Err(e @ Error::OutOfHostMemory { .. }) => {
                    refused = Some(e);
                    continue;
                }
                moved => freed += moved?.released,
            }
            counters.evictions.fetch_add(pages.blocks().count() as u64, Ordering::Relaxed);
        }
    }
    refused.filter(|_| freed == 0).map_or(Ok(freed), Err)
}

/// What eviction leaves alone.
struct Spared<'m> {
    mirror: &'m DeviceMirror,
    want: Want,
    in_use: bool,
    just_come: SmallVec<[Span; 8]>,
}

impl<'m> Spared<'m> {
    fn new(mirror: &'m DeviceMirror, want: Want, in_use: bool) -> Self {
        let just_come = mirror.arrivals.kept(mirror.rec().pages_per_grain(), |launch| mirror.is_over(launch));
        #[cfg(feature = "planted")]
        let just_come = if super::planted::on(&super::planted::ARRIVALS_LEAVE) { SmallVec::new() } else { just_come };
        #[cfg(feature = "planted")]
        let in_use = in_use || super::planted::on(&super::planted::FRAMES_IN_USE_LEAVE);
        Self { mirror, want, in_use, just_come }
    }

    /// The pages of a block, by whole grains, that can leave; `None` while it is in somebody's hands. None of a segment on its way
    /// out, which frees its own frames.
    fn offers(&self, free: &mut Free, id: BlockId) -> Option<Mask> {
        let (slot, per) = (self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let Some(seg) = self.mirror.space().segment_of(id) else { return Some(Mask::EMPTY) };
        let mut kept = self.just_come.iter().find(|s| s.block == id).map_or(Mask::EMPTY, |s| s.mask);
        if self.want.cause != Cause::DeviceFault {
            kept |= self.mirror.gathering.kept(self.want.rank, id);
        }
        if !self.in_use {
            kept |= running::used(&seg, id, slot).any;
        }
        let body = self.mirror.space().block(id).try_lock(free)?;
        let dev = &body.dev[slot];
        // A pin keeps pages in a coherent device's memory, and a launch's own copies are its own.
        kept |= body.busy | (body.held & dev.dirty) | dev.private;
        Some(dev.with_frames(per) & !kept.widened(per))
    }
}

/// What to evict, in ascending order of blocks: the blocks with the lowest ranks that together hold enough grains. Whole blocks, since
/// a block leaves in one copy and its neighbours are seldom needed longer.
fn lowest(free: &mut Free, keep: &Spared<'_>, candidates: Vec<BlockId>, grains: u32) -> Vec<Span> {
    let per = keep.mirror.rec().pages_per_grain();
    let mut victims = Vec::new();
    let mut have = 0;
    for block in candidates {
        if have >= grains {
            break;
        }
        let Some(mask) = keep.offers(free, block).filter(|m| !m.is_empty()) else { continue };
        have += mask.count() / per as u32;
        victims.push(Span { block, mask });
    }
    victims.sort_unstable_by_key(|s| s.block);
    victims
}

/// The same where a block is a large part of the memory: there the workers' instructions need grains of a few blocks only, and each
/// fault would take what another instruction is about to need. Single grains, in the order in which they came.
fn earliest(free: &mut Free, keep: &Spared<'_>, candidates: Vec<BlockId>, grains: u32) -> Vec<Span> {
    let per = keep.mirror.rec().pages_per_grain();
    let offered = candidates.into_iter().filter_map(|id| Some((id, keep.offers(free, id)?)));
    let mut offered: BTreeMap<BlockId, Mask> = offered.filter(|(_, mask)| !mask.is_empty()).collect();
    let mut victims: BTreeMap<BlockId, Mask> = BTreeMap::new();
    if offered.is_empty() {
        return Vec::new();
    }
    keep.mirror.arrivals.earliest(grains as usize, |(block, g): Grain| {
        let grain = Mask::range(usize::from(g) * per..(usize::from(g) + 1) * per);
        let Some(left) = offered.get_mut(&block).filter(|left| left.meets(grain)) else { return false };
        *left &= !grain;
        *victims.entry(block).or_default() |= grain;
        true
    });
    victims.into_iter().map(|(block, mask)| Span { block, mask }).collect()
}

/// Whether memory may be there in a moment: a segment is on its way out, or has gone since `before`; a block that could be evicted is in
/// somebody's hands; a launch that used one has just been reaped by somebody else; a fault goes first.
fn passes(free: &mut Free, mirror: &DeviceMirror, (want, below): (Want, u64), before: u64) -> bool {
    // Frames that a batch has taken in advance stand in no block yet. None are the caller's.
    let reserved = mirror.reserved.load(Ordering::SeqCst) > 0;
    if reserved || mirror.some_ended_since(before) || mirror.arrivals.starves() {
        return true;
    }
    let keep = Spared::new(mirror, want, false);
    let candidates: Vec<BlockId> = mirror.order.lock().0.range(..(below, BlockId(0))).map(|(_, id)| *id).collect();
    candidates.into_iter().any(|id| {
        let busy = |free: &mut Free| mirror.space().block(id).try_lock(free).is_none_or(|body| !body.busy.is_empty());
        busy(free) || keep.offers(free, id).is_none_or(|m| !m.is_empty())
    })
}
