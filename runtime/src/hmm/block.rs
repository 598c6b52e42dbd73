//! A block: 2 MiB of the arena, what is known of each of its pages, and the lock over that.
//!
//! **Guarantee.** For every page there is at most one copy that may be written, or any number that may be read.
//!
//! **States of a page**, by its bits in the masks below (all zero: never touched, the host owns it):
//!
//! | host | devices | meaning |
//! |---|---|---|
//! | not `gone`, not `revoked` | no `valid` | the host's; it may be mapped in the window. `alias` entries name the same bytes |
//! | not `gone`, `revoked` | `valid`, not `dirty`, on any number | replicas: equal bytes everywhere, the host faults first |
//! | not `gone`, `duplicated` | `valid`, not `dirty`, on any number | the same, and the host may load: a store faults first |
//! | `gone`, `revoked` | `valid` and `dirty` on exactly one | the device's alone |
//! | the same, and `shown` | the same, on a coherent device | the device's, and the host uses it there |
//! | `lost` | none | the only copy died with its device |
//!
//! `busy` lies over any of them between *unmap* and *commit*: the page may be neither mapped, moved nor unmapped by anyone but
//! the batch that set the bit (the kernel's migration entry). `wanted` says that a fault is parked; whoever ends `busy` serves it.
//!
//! Invariants, checked by [`Body::check`] in tests and debug builds: `gone ⇒ revoked` · `dirty ⇒ valid ∧ gone` · a page is
//! dirty on one device at most, and then valid nowhere else · `duplicated ⇒ neither revoked nor gone` (what was duplicated may have
//! no replica left) · `valid ⇒ (revoked ∨ duplicated) ∧ no alias` (mechanism *none* excepted: there
//! the gate stands in for the missing fault, and `revoked` is not used) · `writable ⇒ mapped` · `mapped` on a page that is
//! neither `valid` nor `alias`, or `writable` on a page that is `valid` and not `dirty`, is *stale*: removed or refreshed before the
//! next launch that could use it · `shown ⇒ framed ⇒ dirty` on a coherent device.
//!
//! **Who may change them.** Whoever holds the block's lock; masks of a device (`dev[d]`, see [`parts`](super::parts)) and its
//! `ready` words need that device's driver lock as well. **Lock**: rank 2, a [`Futex`] that fault handlers take too.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use sterna_hal::Access;

use super::addr::{BlockId, GRANULE, GRANULES_PER_BLOCK, Mask, PAGE, PAGES_PER_BLOCK, PAGES_PER_GRANULE};
use super::host::{Parked, QUEUES};
use super::lock::{Free, Futex};
use super::park;
use super::parts::{self, Parts, Slots};
use super::space::Space;
use super::walk::Walk;

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
pub(super) struct Shown {
    /// Whether the block counts in its view's `ready` words (bit 0 read, bit 1 write).
    ready: AtomicU32,
    readable: [AtomicU64; PAGES_PER_BLOCK / 64],
    owned: [AtomicU64; PAGES_PER_BLOCK / 64],
}

// SAFETY: `body` is only touched through a guard, which holds the lock; the rest is atomic.
unsafe impl Sync for Block {}

/// What the lock protects.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Body {
    /// First: where it stands says which block's it is, and behind the last field begins the next record.
    pub(crate) dev: Parts,
    /// The window does not map these pages; a touch faults.
    pub(crate) revoked: Mask,
    /// The window lets these pages be loaded, and reports stores to them: devices may have replicas.
    pub(crate) duplicated: Mask,
    /// The host's bytes are out of date.
    pub(crate) gone: Mask,
    /// Being moved.
    pub(crate) busy: Mask,
    /// A host fault is parked here.
    pub(crate) wanted: Mask,
    /// What is asked for in each queue of parked faults.
    pub(crate) asked: [Parked; QUEUES],
    /// No copy is left.
    pub(crate) lost: Mask,
    /// No storage behind these pages (exact only while `missing`).
    pub(crate) hole: Mask,
    /// Pages that a `host` or `host_mut` guard, or a long pin, keeps at home.
    pub(crate) pinned: Mask,
    /// Pages that a launch with copies of its own keeps at home until it has ended (see [`Borders`](super::migrate::Borders)).
    pub(crate) bordered: Mask,
    /// Pages that a short pin keeps where they are: at home, or in the memory of a coherent device.
    pub(crate) held: Mask,
    /// The window's mapping is of the memory of the coherent device that alone has these pages (see `host/coherent`).
    pub(crate) framed: Mask,
    /// … and lets the program in.
    pub(crate) shown: Mask,
    /// Pages that were unmapped from the segment.
    pub(crate) unmapped: Mask,
    /// Pages that may not be read; includes `unmapped`.
    pub(crate) unreadable: Mask,
    /// Pages that may not be written; includes `unreadable`.
    pub(crate) readonly: Mask,
    /// The bytes are still with the segment's source (see [`source`](super::source)).
    pub(crate) unread: Mask,
    /// A copy of the segment may have yet to fetch these pages: nobody may write them.
    pub(crate) lent: Mask,
    /// When the pages last changed sides, in nanoseconds of the monotonic clock, and to which side (device + 1, host 0).
    pub(crate) arrived: u64,
    pub(crate) side: u8,
    /// The time slice is 100 µs shifted left by this.
    pub(crate) slice: u8,
    /// The window reports missing pages of this block.
    pub(crate) missing: bool,
    /// Every page has storage.
    pub(crate) full: bool,
    /// The storage is one huge folio, as far as is known.
    pub(crate) huge: bool,
    /// Some page was framed.
    pub(crate) was_framed: bool,
    /// Mappings that the framed pages are in.
    pub(crate) mappings: u16,
    /// How often pages left for a device, up to 255.
    pub(crate) moves: u8,
    /// Decided beforehand: the host's loads leave devices their replicas.
    pub(crate) read_mostly: bool,
    /// The window can report stores to pages that it maps.
    pub(crate) stores_watched: bool,
    /// How often a store of the host has ended replicas, up to 255.
    pub(crate) collapses: u8,
    /// Decided beforehand: bit `d`: faults of device `d` map pages that are at home where they are.
    pub(crate) in_place: u64,
    /// Bit `d`: device `d` has, or had, a part in the block. What is not set has never been written in `dev`, so that a record
    /// costs memory for the devices that used it only.
    pub(crate) known: u64,
    /// Decided beforehand by the policy: how far a host fault, and a device fault, grows (see [`Grow`]).
    pub(crate) host_grow: Grow,
    pub(crate) device_grow: Grow,
}

/// Where in [`Block::limit`] the second number begins.
const HOLDS: u32 = 16;

const _: () = assert!(std::mem::offset_of!(Block, body) + std::mem::offset_of!(Body, dev) < size_of::<Block>());

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

/// One device's side of a block.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct DevPages {
    /// The device's own frame holds the page's bytes.
    pub(crate) valid: Mask,
    /// … and nobody else does.
    pub(crate) dirty: Mask,
    /// The device's page table has an entry.
    pub(crate) mapped: Mask,
    /// … that allows stores.
    pub(crate) writable: Mask,
    /// … and names host storage.
    pub(crate) alias: Mask,
    /// … and is on its way out: it may still be used until the edit is done, and no launch is submitted on its strength.
    pub(crate) leaving: Mask,
    /// … and a batch has the page and may be taking its bytes elsewhere: entry and frame stay for the launches that use them, and
    /// none is submitted on their strength before the batch lets go of the page. Devices that cannot fault only.
    pub(crate) hidden: Mask,
    /// … and the device has the page to itself, for atomic operations: the host's touch of it is noticed. The bytes are the host's
    /// storage where the entry names that.
    pub(crate) atomic: Mask,
    /// The frame holds a launch's own copy of a page that stays at home; see [`Borders`](super::migrate::Borders).
    pub(crate) private: Mask,
    /// Eviction order: the block with the lowest rank goes first. 0: not in the order.
    pub(crate) rank: u64,
    /// Grain number plus one by grain of the block; 0: none.
    pub(crate) frames: [u32; PAGES_PER_BLOCK],
}

impl DevPages {
    /// Whether the block has frames there; `per` pages a grain. Only as much of the table is looked at as grains of that size
    /// need: the rest is never touched.
    pub(crate) fn has_frames(&self, per: usize) -> bool {
        self.count_frames(per) > 0
    }

    /// How many grains of `per` pages the block has there.
    pub(crate) fn count_frames(&self, per: usize) -> u32 {
        self.frames[..PAGES_PER_BLOCK / per].iter().filter(|f| **f != 0).count() as u32
    }

    /// The pages whose grains have frames there.
    pub(crate) fn with_frames(&self, per: usize) -> Mask {
        let held = (0..PAGES_PER_BLOCK / per).filter(|g| self.frames[*g] != 0);
        held.fold(Mask::EMPTY, |m, g| m | Mask::range(g * per..(g + 1) * per))
    }

    /// Entries that a launch may count on.
    fn staying(&self) -> Mask {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::LEAVING_IGNORED) {
            return self.mapped;
        }
        self.mapped & !self.leaving & !self.hidden
    }

    /// Entries that name the device's own frames, and stay: whole grains of them.
    pub(crate) fn framed(&self) -> Mask {
        self.mapped & !self.leaving & !self.alias
    }

    /// Pages a kernel may read without a fault or a table change.
    pub(crate) fn readable(&self) -> Mask {
        self.staying() & (self.valid | self.alias | self.private)
    }

    /// Pages a kernel may write without a fault, a table change, or a change of state.
    pub(crate) fn owned(&self) -> Mask {
        self.staying() & (self.writable & (self.dirty | self.alias) | self.private)
    }

    /// Entries that name bytes out of date, or would let a replica be written without a fault.
    pub(crate) fn stale(&self) -> Mask {
        self.mapped & !self.alias & (!self.valid | (self.writable & !self.dirty))
    }
}

impl Body {
    /// What was lost of `pages` need not be found again: what the host's storage has counts from now on. Who is kept from reading it
    /// is the segment's business.
    pub(crate) fn forgive(&mut self, pages: Mask) {
        let lost = self.lost & pages;
        self.lost &= !lost;
        self.gone &= !lost;
    }

    /// Device `slot` gets a part in the block.
    pub(crate) fn admit(&mut self, slot: usize) {
        self.known |= 1 << slot;
    }

    /// Devices that have, or had, a part in the block.
    pub(crate) fn devices(&self) -> impl DoubleEndedIterator<Item = usize> + Clone + use<> {
        Slots(self.known)
    }

    /// Pages that are valid on some device.
    pub(crate) fn replicated(&self) -> Mask {
        self.devices().fold(Mask::EMPTY, |m, d| m | self.dev[d].valid)
    }

    /// Pages that `access` is forbidden on.
    pub(crate) fn denied(&self, access: Access) -> Mask {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::PROTECTION_NOT_ASKED) {
            return Mask::EMPTY;
        }
        if access.writes() { self.readonly } else { self.unreadable }
    }

    /// Pages that may not come to device `slot`: a guard, a long pin or a launch keeps them at home, or a short pin elsewhere.
    pub(crate) fn kept_from(&self, slot: usize) -> Mask {
        self.pinned | self.bordered | (self.held & !self.dev[slot].dirty)
    }

    /// Pages that somebody keeps where they are.
    pub(crate) fn stays(&self) -> Mask {
        self.pinned | self.bordered | self.held
    }

    /// Pages that some device has to itself, less those of device `except`.
    pub(crate) fn exclusive(&self, except: Option<usize>) -> Mask {
        self.devices().filter(|d| Some(*d) != except).fold(Mask::EMPTY, |m, d| m | self.dev[d].atomic)
    }

    /// Back to the state of a block that nobody has touched. The devices have taken their frames away.
    pub(crate) fn reset(&mut self) {
        for d in self.devices() {
            let dev = &mut self.dev[d];
            for mask in [
                &mut dev.valid,
                &mut dev.dirty,
                &mut dev.mapped,
                &mut dev.writable,
                &mut dev.alias,
                &mut dev.leaving,
                &mut dev.hidden,
                &mut dev.private,
                &mut dev.atomic,
            ] {
                *mask = Mask::EMPTY;
            }
            dev.rank = 0;
        }
        let masks =
            [&mut self.revoked, &mut self.duplicated, &mut self.gone, &mut self.busy, &mut self.wanted, &mut self.lost];
        let more = [
            &mut self.hole,
            &mut self.pinned,
            &mut self.held,
            &mut self.bordered,
            &mut self.framed,
            &mut self.shown,
            &mut self.unread,
            &mut self.lent,
            &mut self.unmapped,
            &mut self.unreadable,
            &mut self.readonly,
        ];
        for mask in masks.into_iter().chain(more) {
            *mask = Mask::EMPTY;
        }
        self.asked.iter_mut().for_each(Parked::reset);
        (self.arrived, self.side, self.slice, self.moves, self.known, self.mappings) = (0, 0, 0, 0, 0, 0);
        (self.missing, self.full, self.huge, self.was_framed) = (false, false, false, false);
        (self.read_mostly, self.stores_watched, self.collapses, self.in_place) = (false, false, 0, 0);
        (self.host_grow, self.device_grow) = (Grow::default(), Grow::default());
    }

    /// Notes that pages changed sides at `now`; a page that goes to and fro gets a longer slice each time.
    pub(crate) fn arrive(&mut self, side: usize, now: u64) {
        const QUIET_NS: u64 = 50_000_000;
        if now.saturating_sub(self.arrived) > QUIET_NS {
            self.slice = 0;
        } else if usize::from(self.side) != side {
            self.slice = (self.slice + 1).min(7);
        }
        self.side = side as u8;
        self.arrived = now;
    }

    /// Until when the pages stay where they came to: 100 µs, doubled on each refault, at most 10 ms.
    pub(crate) fn stays_until(&self) -> u64 {
        self.arrived + (100_000_u64 << self.slice).min(10_000_000)
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self, faults: bool) -> Result<(), &'static str> {
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::UNCHECKED) {
            return Ok(());
        }
        let claim = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        let mut valid = Mask::EMPTY;
        let mut dirty = Mask::EMPTY;
        let mut alias = Mask::EMPTY;
        let mut own = Mask::EMPTY;
        for i in Space::existing().into_iter().flat_map(Space::with_records) {
            let d = &self.dev[i];
            let empty = (d.valid | d.mapped | d.leaving).is_empty();
            claim(empty || self.known >> i & 1 == 1, "a device has a part that the next owner will not be rid of")?;
            claim(d.valid.covers(d.dirty), "dirty without valid")?;
            claim(d.mapped.covers(d.writable), "writable without mapped")?;
            claim(d.mapped.covers(d.alias), "alias without mapped")?;
            claim(d.mapped.covers(d.atomic), "exclusive without an entry")?;
            claim(!faults || self.revoked.covers(d.atomic), "exclusive beside a host mapping")?;
            claim(self.busy.covers(d.hidden), "hidden from launches by nobody")?;
            claim((self.bordered | self.busy).covers(d.private), "a launch's own copy of a page that may leave home")?;
            claim(!d.private.meets(d.valid | d.alias), "a launch's own copy counts as the page")?;
            claim(!dirty.meets(d.valid) && !d.dirty.meets(valid), "dirty beside another copy")?;
            claim(!self.unreadable.meets(d.readable() & !self.busy), "an entry for what may not be read")?;
            claim(
                !self.readonly.meets(d.owned() & !d.private & !self.busy),
                "a writable entry for what may not be written",
            )?;
            valid |= d.valid;
            dirty |= d.dirty;
            alias |= d.alias;
            own |= d.private;
        }
        claim(!own.meets(valid), "a replica of what a launch will write at home")?;
        claim(self.gone.covers(dirty), "dirty while the host's copy counts")?;
        claim((self.gone & !dirty & !self.lost & !self.busy).is_empty(), "gone but nowhere")?;
        claim(!alias.meets(valid), "alias beside a replica")?;
        claim(
            self.readonly.covers(self.unreadable) && self.unreadable.covers(self.unmapped),
            "permissions that contradict",
        )?;
        claim(!self.unread.meets(valid | alias | self.gone), "somebody has bytes that were never fetched")?;
        claim(!self.lent.meets(dirty), "a device may write what a copy has yet to fetch")?;
        claim(dirty.covers(self.framed), "the window shows a frame that is not the page's")?;
        claim((self.framed & self.revoked).covers(self.shown), "in use in place without a mapping")?;
        if faults {
            claim(self.revoked.covers(self.gone), "gone but mapped")?;
            claim((self.revoked | self.duplicated).covers(valid), "replica beside a host mapping")?;
            claim(!self.duplicated.meets(self.revoked | self.gone), "duplicated where the host has nothing")?;
            claim(
                self.revoked.covers((self.unread | self.lent) & !self.busy),
                "the host may touch what has yet to be fetched",
            )?;
        }
        Ok(())
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

    fn shown(&self, slot: usize) -> &Shown {
        parts::shown(std::ptr::from_ref(self).addr(), slot)
    }

    /// Shows what `body` says of device `slot` now; gives the block's bits in its view's `ready` words, before and after. With
    /// the block's lock and the driver lock held.
    pub(crate) fn show(&self, body: &Body, slot: usize) -> (u32, u32) {
        let (dev, shown, limit) = (&body.dev[slot], self.shown(slot), self.holding());
        let (readable, owned) = (dev.readable(), dev.owned());
        for (words, mask) in [(&shown.readable, readable), (&shown.owned, owned)] {
            for (word, bits) in words.iter().zip(mask.words()) {
                word.store(bits, Ordering::Relaxed);
            }
        }
        let now = u32::from(readable.covers(limit)) | u32::from(owned.covers(limit)) << 1;
        (shown.ready.swap(now, Ordering::Relaxed), now)
    }

    /// Whether a kernel may read, or with `write` write, pages `mask`, for whoever holds the device's driver lock.
    pub(crate) fn is_ready(&self, slot: usize, mask: Mask, write: bool) -> bool {
        let shown = self.shown(slot);
        if shown.ready.load(Ordering::Relaxed) & if write { 2 } else { 1 } != 0 {
            return true;
        }
        let words = if write { &shown.owned } else { &shown.readable };
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

    #[test]
    fn slices_double_only_when_pages_go_to_and_fro() {
        // SAFETY: all zero is the initial state of the table.
        let mut b: Box<Body> = unsafe { Box::<Body>::new_zeroed().assume_init() };
        b.arrive(1, 1_000_000_000);
        assert_eq!(b.stays_until(), 1_000_000_000 + 100_000);
        b.arrive(1, 1_000_100_000);
        assert_eq!(b.slice, 0);
        for i in 0..20 {
            b.arrive(i % 2, 1_001_000_000 + i as u64);
        }
        assert_eq!(b.stays_until() - b.arrived, 10_000_000);
        b.arrive(0, 9_000_000_000);
        assert_eq!(b.stays_until() - b.arrived, 100_000);
    }
}
