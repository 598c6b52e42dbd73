//! A block: 2 MiB of the arena, what is known of each of its pages ([`Body`]), and the lock over that.
//!
//! **Guarantee.** Whoever reads or changes what is known of a page holds the block's lock. What launches need of it is shown beside
//! the body, for whoever holds a device's driver lock ([`Block::refresh_usable`]). States and transitions: [`body`].
//!
//! **Who may change it.** Whoever holds the block's lock; masks of a device (`dev[d]`, see [`parts`](super::parts)) and its
//! `ready` words need that device's driver lock as well. **Lock**: rank 2, a [`Futex`] that fault handlers take too.

mod body;
mod state;

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::addr::{BlockId, GRANULE, GRANULES_PER_BLOCK, Mask, PAGE, PAGES_PER_BLOCK, PAGES_PER_GRANULE};
use super::lock::{Free, Futex};
use super::park;
use super::parts;
use super::space::Space;
use super::walk::Walk;

pub(crate) use body::{Body, Entries};
pub(crate) use state::{Carried, DevPages, Permissions, QUEUES};

/// A block's record. Plain data in a lazily populated table that never moves, so that a signal handler can walk it.
#[repr(C, align(64))]
pub(crate) struct Block {
    lock: Futex,
    /// Bumped when `busy` shrinks; whoever waits for that sleeps here, without a lock.
    epoch: AtomicU32,
    /// Threads that sleep there.
    sleepers: AtomicU32,
    /// The next block in each queue of parked faults (see `host/queue`).
    pub(crate) asked_next: [AtomicU32; QUEUES],
    /// Segment slot plus one; 0: no segment.
    seg: AtomicU32,
    /// Pages that belong to the segment, whole granules; above [`HOLDS`], those of them that hold bytes of it.
    limit: AtomicU32,
    /// For each granule, the number of its storage in the arena's file less its own in the window, wrapping: all zero is where a
    /// segment is made, so that a fault handler finds the storage of a block that the engine has not looked at yet. Changed
    /// while the pages are busy.
    moved: [AtomicU32; GRANULES_PER_BLOCK],
    /// The last fault of the host here, for the next one.
    pub(crate) walk: Walk,
    body: UnsafeCell<Body>,
}

/// What one device's kernels may touch without a fault or a change of state: the sum of its masks, for whoever holds the driver
/// lock and not the block's.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Usable {
    /// Whether the block counts in its view's `ready` words (bit 0 read, bit 1 write).
    ready: AtomicU32,
    readable: [AtomicU64; PAGES_PER_BLOCK / 64],
    owned: [AtomicU64; PAGES_PER_BLOCK / 64],
}

// SAFETY: `body` is only touched through a guard, which holds the lock; the rest is atomic.
unsafe impl Sync for Block {}

/// Where in [`Block::limit`] the second number begins.
const HOLDS: u32 = 16;

const _: () = assert!(std::mem::offset_of!(Block, body) + state::DEV_AT < size_of::<Block>());

/// How far a fault reaches around its page: percent for the density rule (`addr::grow`), offset so that zeroed memory is the
/// default.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct Grow(u8);

impl Grow {
    /// The density rule at 51 %: the default. Faults of the host that go on where another stopped reach as far again as they came,
    /// up to a whole block.
    pub const DENSITY: Self = Self(0);
    /// The granule alone.
    pub const GRANULE: Self = Self(1);
    /// The whole block.
    pub const BLOCK: Self = Self(2);

    pub(crate) fn percent(self) -> u32 {
        match self {
            Self::GRANULE => 101,
            Self::BLOCK => 0,
            _ => 51,
        }
    }
}

impl Body {
    /// The first invariant that does not hold; `faults`: the host's touches of absent pages are noticed.
    pub(crate) fn check(&self, faults: bool) -> Result<(), &'static str> {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::UNCHECKED) {
            return Ok(());
        }
        for i in Space::existing().into_iter().flat_map(Space::with_records) {
            let d = &self.dev[i];
            if self.known >> i & 1 == 0 && !(d.valid | d.mapped | d.leaving).is_empty() {
                return Err("a device has a part that the next owner will not be rid of");
            }
        }
        self.check_masks(faults)
    }
}

impl Block {
    /// Takes the block's lock.
    pub(crate) fn lock<'f>(&'f self, _free: &'f mut Free) -> BlockGuard<'f> {
        self.lock.lock();
        BlockGuard { block: self }
    }

    /// Takes the block's lock in a fault handler, which holds nothing and gives it back before it waits.
    pub(crate) fn lock_in_handler(&self) -> BlockGuard<'_> {
        self.lock.lock();
        BlockGuard { block: self }
    }

    /// Takes the block's lock if it is free.
    pub(crate) fn try_lock<'f>(&'f self, _free: &'f mut Free) -> Option<BlockGuard<'f>> {
        self.lock.try_lock().then(|| BlockGuard { block: self })
    }

    /// The segment's slot.
    pub(crate) fn segment(&self) -> Option<u32> {
        self.seg.load(Ordering::Acquire).checked_sub(1)
    }

    fn usable(&self, slot: usize) -> &Usable {
        parts::usable(std::ptr::from_ref(self).addr(), slot)
    }

    /// Shows what `body` says of device `slot` now; gives the block's bits in its view's `ready` words, before and after. With
    /// the block's lock and the driver lock held.
    pub(crate) fn refresh_usable(&self, body: &Body, slot: usize) -> (u32, u32) {
        let (dev, usable, limit) = (&body.dev[slot], self.usable(slot), self.holding());
        let (readable, owned) = (dev.readable(), dev.owned());
        for (words, mask) in [(&usable.readable, readable), (&usable.owned, owned)] {
            for (word, bits) in words.iter().zip(mask.words()) {
                word.store(bits, Ordering::Relaxed);
            }
        }
        let now = u32::from(readable.covers(limit)) | u32::from(owned.covers(limit)) << 1;
        (usable.ready.swap(now, Ordering::Relaxed), now)
    }

    /// Whether a kernel may read, or with `write` write, pages `mask`, for whoever holds the device's driver lock.
    pub(crate) fn is_ready(&self, slot: usize, mask: Mask, write: bool) -> bool {
        let usable = self.usable(slot);
        if usable.ready.load(Ordering::Relaxed) & if write { 2 } else { 1 } != 0 {
            return true;
        }
        let words = if write { &usable.owned } else { &usable.readable };
        words.iter().zip(mask.words()).all(|(word, bits)| bits & !word.load(Ordering::Relaxed) == 0)
    }

    /// The pages that belong to the segment.
    pub(crate) fn limit(&self) -> Mask {
        Mask::range(0..(self.limit.load(Ordering::Relaxed) & ((1 << HOLDS) - 1)) as usize)
    }

    /// The pages that hold bytes of the segment: what a kernel may touch. Nothing lies behind them, so a device need not have it.
    fn holding(&self) -> Mask {
        Mask::range(0..(self.limit.load(Ordering::Relaxed) >> HOLDS) as usize)
    }

    /// Byte offset of the storage of a page of this block, which is number `id`. Each side is found through the block: nobody
    /// computes one from the other.
    pub(crate) fn storage(&self, id: BlockId, page: usize) -> u64 {
        let (g, rest) = (page / PAGES_PER_GRANULE, (page % PAGES_PER_GRANULE) as u64);
        let own = id.0.wrapping_mul(GRANULES_PER_BLOCK as u32).wrapping_add(g as u32);
        u64::from(own.wrapping_add(self.moved[g].load(Ordering::Relaxed))) * GRANULE + rest * PAGE
    }

    /// The runs of `mask` whose storage lies in one piece, each with its byte offset.
    pub(crate) fn pieces(&self, id: BlockId, mask: Mask) -> impl Iterator<Item = (Range<usize>, u64)> + '_ {
        mask.runs().flat_map(move |r| {
            let mut at = r.start;
            std::iter::from_fn(move || {
                if at >= r.end {
                    return None;
                }
                let (start, first) = (at, self.storage(id, at));
                while at < r.end && self.storage(id, at) == first + (at - start) as u64 * PAGE {
                    at = (at / PAGES_PER_GRANULE + 1) * PAGES_PER_GRANULE;
                }
                at = at.min(r.end);
                Some((start..at, first))
            })
        })
    }

    /// Whether the storage is one piece, aligned as the block is.
    pub(crate) fn is_whole(&self) -> bool {
        let first = self.moved[0].load(Ordering::Relaxed);
        first.is_multiple_of(GRANULES_PER_BLOCK as u32) && self.moved.iter().all(|m| m.load(Ordering::Relaxed) == first)
    }

    /// The storage of a granule of this block, which is number `id`, is now at byte `offset` of the file.
    pub(crate) fn set_storage(&self, id: BlockId, granule: usize, offset: u64) {
        let own = id.0.wrapping_mul(GRANULES_PER_BLOCK as u32).wrapping_add(granule as u32);
        self.moved[granule].store(((offset / GRANULE) as u32).wrapping_sub(own), Ordering::Relaxed);
    }

    /// Gives the block to a segment, with so many pages of which so many hold bytes, or takes it away (`None`). Nobody uses it meanwhile.
    pub(crate) fn assign(&self, to: Option<(u32, usize, usize)>) {
        let (seg, limit) = to.map_or((0, 0), |(s, l, holding)| (s + 1, l as u32 | (holding as u32) << HOLDS));
        self.limit.store(limit, Ordering::Relaxed);
        self.moved.iter().for_each(|m| m.store(0, Ordering::Relaxed));
        self.walk.forget();
        self.seg.store(seg, Ordering::Release);
    }

    /// The value to hand to [`wait_epoch`](Self::wait_epoch); read under the lock.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Sleeps until some `busy` bit was cleared after `seen` was read, or `timeout` has passed. Signal-safe.
    pub(crate) fn wait_epoch(&self, seen: u32, timeout: Option<Duration>) {
        park::wait(&self.epoch, seen, &self.sleepers, timeout);
    }

    /// As [`wait_epoch`](Self::wait_epoch), for a thread that waits for page `p` alone: it sleeps on while other granules come.
    pub(crate) fn wait_for_page(&self, seen: u32, p: usize, timeout: Option<Duration>) {
        park::wait_for(&self.epoch, seen, &self.sleepers, timeout, Mask::page(p).granules());
    }

    /// Tells whoever waits that `busy` shrank by pages of `mask`, or that a fault parked on one of them was served. Signal-safe.
    pub(crate) fn bump(&self, mask: Mask) {
        self.epoch.fetch_add(1, Ordering::Release);
        park::wake_for(&self.epoch, &self.sleepers, mask.granules());
    }
}

/// Holds a block's lock.
pub(crate) struct BlockGuard<'a> {
    block: &'a Block,
}

impl Deref for BlockGuard<'_> {
    type Target = Body;
    fn deref(&self) -> &Body {
        // SAFETY: the lock is held.
        unsafe { &*self.block.body.get() }
    }
}

impl DerefMut for BlockGuard<'_> {
    fn deref_mut(&mut self) -> &mut Body {
        // SAFETY: the lock is held.
        unsafe { &mut *self.block.body.get() }
    }
}

impl Drop for BlockGuard<'_> {
    fn drop(&mut self) {
        self.block.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small_where_it_is_touched() {
        // Of a block with pages on two devices; nothing for devices without.
        let two = size_of::<Block>() + 2 * size_of::<parts::Part>();
        assert!(two <= 8 << 10, "{two}");
    }
}
