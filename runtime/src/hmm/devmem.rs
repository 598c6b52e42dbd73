//! Device memory: frames taken in advance, and eviction.
//!
//! **Guarantee.** Every grain is in exactly one place: free in the device, in a [`Reserved`], or in one block's frame table.
//! Frames are taken before any block lock; what a batch does not use goes back when its `Reserved` is dropped.
//!
//! **Eviction** brings the blocks with the lowest rank home, one block lock at a time, and skips what is busy. The policy
//! writes the ranks; least recently used by launch and fault means that a rank is the clock's tick at that launch or fault.
//! A launch passes its own tick as `below`, so that it never evicts what it has just brought in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sterna_hal::{Absent, DevAddr, DeviceError, Frames};

use super::addr::{BLOCK, BlockId, Mask, PAGE, Pages};
use super::lock::Free;
use super::migrate::{self, Home};
use super::mirror::DeviceMirror;
use crate::Error;
use crate::stats::Cause;

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
}

impl Reserved {
    /// Takes `grains` grains for `place`, evicting blocks of a rank below `below` if need be. Waits only for copies, and, on
    /// devices that cannot fault, for the oldest launch when everything is pinned.
    pub(crate) fn take(
        free: &mut Free,
        mirror: &Arc<DeviceMirror>,
        place: DevAddr,
        grains: u32,
        below: u64,
    ) -> Result<Self, Error> {
        let mut frames = Vec::new();
        loop {
            if grains == 0 {
                break;
            }
            match mirror.device().alloc(place, grains, &mut frames) {
                Ok(()) => break,
                Err(e @ DeviceError::OutOfMemory { .. }) => {
                    let memory = mirror.device().memory();
                    let free_now = memory.budget.saturating_sub(memory.in_use) / mirror.caps().grain;
                    let short = u64::from(grains).saturating_sub(free_now).max(1);
                    if evict(free, mirror, short as u32, below)? == 0 && !wait_for_pins(free, mirror) {
                        return Err(mirror.noticed(e));
                    }
                }
                Err(e) => return Err(mirror.noticed(e)),
            }
        }
        Ok(Self { mirror: Arc::clone(mirror), frames, next: 0, left: grains })
    }

    /// Grains that are left.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// The next grain. There must be one left.
    pub(crate) fn pop(&mut self) -> u32 {
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

/// On devices that cannot fault: waits for the oldest launch, which pins what it uses. False if there is none.
fn wait_for_pins(free: &mut Free, mirror: &Arc<DeviceMirror>) -> bool {
    if mirror.caps().absent != Absent::Undefined {
        return false;
    }
    mirror.reap();
    let Some(oldest) = mirror.oldest() else { return false };
    oldest.wait(free, None);
    mirror.reap();
    true
}

/// Frees at least `grains` grains if blocks with a rank below `below` hold that many; says how many it freed.
pub(crate) fn evict(free: &mut Free, mirror: &Arc<DeviceMirror>, grains: u32, below: u64) -> Result<u32, Error> {
    let victims = choose(free, mirror, grains, below);
    let mut freed = 0;
    let mut i = 0;
    while i < victims.len() {
        // Neighbours go together, so that their bytes are one copy.
        let mut end = i + 1;
        let seg = mirror.space().segment_of(victims[i]);
        while end < victims.len() && victims[end].0 == victims[end - 1].0 + 1 {
            let next = mirror.space().segment_of(victims[end]);
            if next.as_ref().map(|s| s.slot()) != seg.as_ref().map(|s| s.slot()) {
                break;
            }
            end += 1;
        }
        let run = &victims[i..end];
        i = end;
        // A segment on its way out frees its own frames.
        let Some(seg) = seg else { continue };
        let first = run[0].first_page().0;
        let pages = Pages(first..first + run.len() as u64 * (BLOCK / PAGE));
        let home = Home { exclusive_from: Some(mirror.slot()), release: Some(mirror.slot()), map: false, wait: false };
        freed += migrate::bring_home(free, &seg, &pages, home, Cause::Eviction)?.released;
        mirror.pods().counters.evictions.fetch_add(run.len() as u64, Ordering::Relaxed);
    }
    Ok(freed)
}

/// The blocks to evict, in ascending order of blocks: those with the lowest ranks that together hold enough grains.
fn choose(free: &mut Free, mirror: &Arc<DeviceMirror>, grains: u32, below: u64) -> Vec<BlockId> {
    let pinning = mirror.caps().absent == Absent::Undefined;
    let candidates: Vec<(u64, BlockId)> = mirror.order.lock().0.range(..(below, BlockId(0))).copied().collect();
    let mut victims = Vec::new();
    let mut have = 0;
    for (_, id) in candidates {
        if have >= grains {
            break;
        }
        let block = mirror.space().block(id);
        let Some(rec) = block.segment() else { continue };
        if pinning && mirror.space().rec(rec).view[mirror.slot()].active.load(Ordering::Acquire) > 0 {
            continue;
        }
        let Some(body) = block.try_lock(free) else { continue };
        let held = body.dev[mirror.slot()].count_frames(mirror.pods().pages_per_grain());
        if held == 0 || body.busy.meets(Mask::FULL) {
            continue;
        }
        have += held;
        victims.push(id);
    }
    victims.sort_unstable();
    victims
}
