//! Device memory: frames taken in advance, and eviction.
//!
//! **Guarantee.** Every grain is in exactly one place: free in the device, in a [`Reserved`], or in one block's frame table.
//! Frames are taken before any block lock; what a batch does not use goes back when its `Reserved` is dropped.
//!
//! **Eviction** brings the blocks with the lowest rank home, one block lock at a time, and skips what is busy. The policy
//! writes the ranks; least recently used by launch and fault means that a rank is the clock's tick at that launch or fault.
//! A launch gives its rank to what it has there before it takes frames, and evicts lower ranks only: never its own. What
//! submitted launches use goes last: a launch waits for the oldest of them first, a fault, which may not wait, takes it.
//! On devices that cannot fault it is not taken at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_hal::{Absent, DevAddr, DeviceError, Frames};

use super::addr::{BLOCK, BlockId, Mask, PAGES_PER_BLOCK, Pages, Span, runs_of};
use super::block::{Body, DevPages};
use super::lock::Free;
use super::migrate::{self, Home, Want};
use super::mirror::DeviceMirror;
use super::segment::{Segment, overlap};
use crate::Error;
use crate::stats::Cause;

/// How long to wait for memory that is on its way back, and how long between two looks at it.
const PATIENCE: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_micros(100);

/// Appends one grain to a list of stretches.
pub(crate) fn push_frame(frames: &mut Vec<Frames>, grain: u32) {
    match frames.last_mut() {
        Some(f) if f.first + f.grains == grain => f.grains += 1,
        _ => frames.push(Frames { first: grain, grains: 1 }),
    }
}

/// Frames that nobody uses yet. What is not taken goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    mirror: Arc<DeviceMirror>,
    frames: Vec<Frames>,
    next: usize,
    left: u32,
    /// Where frames belong to addresses: the frame of the first.
    placed: Option<u32>,
}

impl Reserved {
    /// Takes `grains` grains for the segment at `place`, evicting blocks of a rank below `want.rank` if need be. Waits for copies, and for a
    /// launch waits for earlier ones when everything else is in use.
    pub(crate) fn take(
        free: &mut Free,
        mirror: &Arc<DeviceMirror>,
        place: DevAddr,
        grains: u32,
        want: Want,
    ) -> Result<Self, Error> {
        let mut frames = Vec::new();
        if mirror.caps().placed {
            mirror.device().alloc(place, 1, &mut frames).map_err(|e| mirror.noticed(e))?;
            let placed = frames.pop().map(|f| f.first);
            return Ok(Self { mirror: Arc::clone(mirror), frames, next: 0, left: grains, placed });
        }
        let start = Instant::now();
        loop {
            let left = mirror.left();
            if grains == 0 {
                break;
            }
            match mirror.device().alloc(place, grains, &mut frames) {
                Ok(()) => break,
                Err(e @ DeviceError::OutOfMemory { .. }) => {
                    let memory = mirror.device().memory();
                    let free_now = memory.budget.saturating_sub(memory.in_use) / mirror.caps().grain;
                    let short = u64::from(grains).saturating_sub(free_now).max(1);
                    let short = short as u32;
                    if evict(free, mirror, short, want.rank, false)? > 0
                        || want.cause == Cause::Launch && wait_for_oldest(free, mirror)
                    {
                        continue;
                    }
                    let pins = mirror.caps().absent == Absent::Undefined || want.cause == Cause::Prefetch;
                    // A fault's own block may be all there is: its other grains go, or the fault would never be served.
                    let below = want.rank + u64::from(want.cause == Cause::DeviceFault);
                    if pins || evict(free, mirror, short, below, true)? == 0 {
                        // Whoever serves faults does not wait: it is asked again.
                        if want.cause == Cause::DeviceFault
                            || start.elapsed() > PATIENCE
                            || !passes(free, mirror, want, left)
                        {
                            return Err(mirror.noticed(e));
                        }
                        std::thread::sleep(MOMENT);
                    }
                }
                Err(e) => return Err(mirror.noticed(e)),
            }
        }
        Ok(Self { mirror: Arc::clone(mirror), frames, next: 0, left: grains, placed: None })
    }

    /// Grains that are left.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// The next grain, for grain `number` behind the place. There must be one left.
    pub(crate) fn pop(&mut self, number: u32) -> u32 {
        if let Some(first) = self.placed {
            self.left -= 1;
            return first + number;
        }
        let f = &mut self.frames[self.next];
        let grain = f.first;
        f.first += 1;
        f.grains -= 1;
        self.left -= 1;
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
    }
}

/// Takes another segment of a rank below `below` off a device that cannot fault, whose addresses are memory or have run out: the one
/// whose last use is longest ago, and no one that submitted launches use. Waits for one of those if there is no other, or for one that is
/// on its way out. False if none is left, and none has gone since `left`.
pub(crate) fn unseat_another(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    wants: &Segment,
    below: u64,
    left: u64,
) -> Result<bool, Error> {
    if mirror.caps().absent != Absent::Undefined {
        return Ok(false);
    }
    mirror.settle_ranks(free);
    let slot = mirror.slot();
    let rank = |free: &mut Free, seg: &Segment| {
        let blocks = seg.claimed();
        blocks.into_iter().map(|id| mirror.space().block(id).lock(free).dev[slot].rank).max().unwrap_or(0)
    };
    let others: Vec<_> = mirror.seated().into_iter().filter(|s| s.first() != wants.first()).collect();
    let mut ranked: Vec<_> = others.into_iter().map(|s| (rank(free, &s), s)).filter(|(r, _)| *r < below).collect();
    ranked.sort_by_key(|(r, s)| (*r, s.first()));
    let mut used = false;
    for (_, seg) in ranked {
        let in_use = seg.uses.lock().iter().any(|u| {
            let l = &u.launch;
            l.mirror().slot() == slot && l.is_submitted() && !l.poll_only()
        });
        let seated = {
            let _driver = mirror.pods().lock.hold();
            seg.is_seated(slot)
        };
        used |= in_use;
        if in_use || seated {
            continue;
        }
        let home = Home::off(slot, true);
        migrate::bring_home(free, &seg, &seg.pages(), home, Cause::Eviction)?;
        if mirror.unseat(free, &seg) {
            mirror.pods().counters.evictions.fetch_add(u64::from(seg.blocks()), Ordering::Relaxed);
            return Ok(true);
        }
    }
    if wait_for_oldest(free, mirror) {
        return Ok(true);
    }
    if mirror.is_left_since(left) {
        std::thread::sleep(MOMENT);
        return Ok(true);
    }
    // What was in use a moment ago may not be any more, with nothing left to wait for.
    Ok(used)
}

/// Waits for the oldest launch that has not retired. False if there is none.
fn wait_for_oldest(free: &mut Free, mirror: &Arc<DeviceMirror>) -> bool {
    mirror.reap();
    let Some(oldest) = mirror.oldest() else { return false };
    oldest.wait(free, None);
    mirror.reap();
    true
}

/// Gives the blocks of `pages` that are on the device the rank of a launch or fault that uses them.
pub(crate) fn keep(free: &mut Free, mirror: &DeviceMirror, seg: &Segment, pages: &Pages, rank: u64) {
    let per = mirror.pods().pages_per_grain();
    for (id, _) in pages.blocks() {
        let mut body = seg.claim(id).lock(free);
        if body.dev[mirror.slot()].has_frames(per) {
            mirror.set_rank(id, &mut body, rank);
        }
    }
}

/// Frees at least `grains` grains if blocks with a rank below `below` hold that many, those that submitted launches use only
/// with `in_use`; says how many it freed.
fn evict(free: &mut Free, mirror: &Arc<DeviceMirror>, grains: u32, below: u64, in_use: bool) -> Result<u32, Error> {
    mirror.settle_ranks(free);
    let victims = choose(free, mirror, grains, below, in_use);
    let counters = &mirror.pods().counters;
    let mut freed = 0;
    let mut rest = &victims[..];
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
            let home = Home::off(mirror.slot(), false);
            freed += migrate::bring_home(free, &seg, &pages, home, Cause::Eviction)?.released;
            counters.evictions.fetch_add(pages.blocks().count() as u64, Ordering::Relaxed);
        }
    }
    Ok(freed)
}

/// What to evict, in ascending order of blocks: the blocks with the lowest ranks that together hold enough grains.
///
/// Whole blocks, since a block leaves in one copy and its neighbours are seldom needed longer. Not where a block is a large part
/// of the memory: there the workers' instructions need grains of a few blocks only, and each fault would take what another
/// instruction has just been given. Such a device gives up single grains, in turn.
fn choose(free: &mut Free, mirror: &Arc<DeviceMirror>, grains: u32, below: u64, in_use: bool) -> Vec<Span> {
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    let small = mirror.device().memory().budget < u64::from(mirror.caps().min_frames) * BLOCK;
    let candidates: Vec<(u64, BlockId)> = mirror.order.lock().0.range(..(below, BlockId(0))).copied().collect();
    let mut victims = Vec::new();
    let mut have = 0;
    for (_, id) in candidates {
        if have >= grains {
            break;
        }
        let block = mirror.space().block(id);
        if !in_use && mirror.space().segment_of(id).is_some_and(|seg| is_used(&seg, id, slot)) {
            continue;
        }
        let Some(body) = block.try_lock(free) else { continue };
        let held = body.dev[slot].count_frames(per);
        if held == 0 || !body.busy.is_empty() {
            continue;
        }
        let short = grains - have;
        let mask = if small && held > short { in_turn(mirror, &body.dev[slot], per, short) } else { Mask::FULL };
        have += held.min(if small { short } else { held });
        victims.push(Span { block: id, mask });
    }
    victims.sort_unstable_by_key(|s| s.block);
    victims
}

/// Whether memory may be there in a moment: a segment is on its way out, or has gone since `left`; a block that could be evicted is in
/// somebody's hands; a launch that used one has just been reaped by somebody else.
fn passes(free: &mut Free, mirror: &DeviceMirror, want: Want, left: u64) -> bool {
    if mirror.is_left_since(left) {
        return true;
    }
    let (slot, per) = (mirror.slot(), mirror.pods().pages_per_grain());
    // Elsewhere what launches use is taken, too.
    let waits = mirror.caps().absent == Absent::Undefined && want.cause == Cause::Launch;
    let candidates: Vec<BlockId> = mirror.order.lock().0.range(..(want.rank, BlockId(0))).map(|(_, id)| *id).collect();
    let soon = |body: &Body| !body.busy.is_empty() || waits && body.dev[slot].has_frames(per);
    candidates.into_iter().any(|id| mirror.space().block(id).try_lock(free).is_none_or(|body| soon(&body)))
}

/// Whether a launch that the device has, and has not finished, uses a block.
fn is_used(seg: &Segment, id: BlockId, slot: usize) -> bool {
    if seg.rec().view[slot].active.load(Ordering::Acquire) == 0 {
        return false;
    }
    let start = id.offset() - seg.offset();
    let bytes = start..start + BLOCK;
    let uses = seg.uses.lock();
    uses.iter().any(|u| {
        let l = &u.launch;
        l.mirror().slot() == slot && overlap(&u.bytes, &bytes) && l.is_submitted() && !l.poll_only()
    })
}

/// The next `n` grains of a block that have frames, going round.
fn in_turn(mirror: &DeviceMirror, dev: &DevPages, per: usize, n: u32) -> Mask {
    let grains = PAGES_PER_BLOCK / per;
    let hand = mirror.hand.load(Ordering::Relaxed) as usize;
    let held = (0..grains).map(|i| (hand + i) % grains).filter(|g| dev.frames[*g] != 0);
    let mut mask = Mask::EMPTY;
    for g in held.take(n as usize) {
        mask |= Mask::range(g * per..(g + 1) * per);
        mirror.hand.store(g as u32 + 1, Ordering::Relaxed);
    }
    mask
}
