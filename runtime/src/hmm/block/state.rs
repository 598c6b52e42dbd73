//! What is known of each of a block's 512 pages, to read: the masks, what they mean together, and what must hold of them.
//!
//! **States of a page**, by its bits in the masks (all zero: never touched, the host owns it):
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
//! **Invariants**, checked by [`Body::check`] in tests and debug builds: `gone ⇒ revoked` · `dirty ⇒ valid ∧ gone` · a page is
//! dirty on one device at most, and then valid nowhere else · `duplicated ⇒ neither revoked nor gone` (what was duplicated may have
//! no replica left) · `valid ⇒ (revoked ∨ duplicated) ∧ no alias` (mechanism *none* excepted: there
//! the gate stands in for the missing fault, and `revoked` is not used) · `writable ⇒ mapped` · `mapped` on a page that is
//! neither `valid` nor `alias`, or `writable` on a page that is `valid` and not `dirty`, is *stale*: removed or refreshed before the
//! next launch that could use it · `shown ⇒ framed ⇒ dirty` on a coherent device.
//!
//! Who has a [`Body`](super::Body) changes it, by transitions. No lock and no operating system; how devices' parts are found is `P`'s
//! business: tests have them in an array.

use std::ops::Index;

use sterna_hal::Access;

use super::super::addr::{Mask, PAGES_PER_BLOCK};
use super::super::parts::{Parts, Slots};
#[cfg(feature = "planted")]
use super::super::planted;
use super::Grow;

/// How many queues of parked faults a block can stand in (see `host/queue`).
pub(crate) const QUEUES: usize = 1;

/// The state of a block, to read. Which fields there are is explained in the head; who has a [`Body`] changes them.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct State<P = Parts> {
    /// First: where it stands says which block's it is, and behind the last field begins the next record.
    pub(crate) dev: P,
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
    pub(super) asked: [Parked; QUEUES],
    /// No copy is left.
    pub(crate) lost: Mask,
    /// No storage behind these pages (exact only while `missing`).
    pub(crate) hole: Mask,
    /// Pages that a `host` or `host_mut` guard, or a long pin, keeps at home.
    pub(crate) pinned: Mask,
    /// Pages that a launch with copies of its own keeps at home until it has ended (see `migrate::Borders`).
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
    /// The bytes are still with the segment's source (see `source`).
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
    pub(super) mappings: u16,
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

/// Where the devices' parts begin in a body.
pub(super) const DEV_AT: usize = std::mem::offset_of!(State, dev);

/// What of a block was asked for in a queue of parked faults, and not noted yet.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Parked {
    pub(super) pages: Mask,
    /// For which of them a thread waits that stores.
    pub(super) to_store: Mask,
    /// The block is in the queue, where it stays when its segment ends: there is nothing asked then.
    pub(super) queued: bool,
}

/// What may be done with a block's pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permissions {
    pub(super) unmapped: Mask,
    pub(super) unreadable: Mask,
    pub(super) readonly: Mask,
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
    /// The frame holds a launch's own copy of a page that stays at home; see `migrate::Borders`.
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
        if planted::on(&planted::LEAVING_IGNORED) {
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

impl<P: Index<usize, Output = DevPages>> State<P> {
    /// Devices that have, or had, a part in the block.
    pub(crate) fn devices(&self) -> impl DoubleEndedIterator<Item = usize> + Clone + use<P> {
        Slots(self.known)
    }

    /// Pages that are valid on some device.
    pub(crate) fn replicated(&self) -> Mask {
        self.devices().fold(Mask::EMPTY, |m, d| m | self.dev[d].valid)
    }

    /// Pages that `access` is forbidden on.
    pub(crate) fn denied(&self, access: Access) -> Mask {
        #[cfg(feature = "planted")]
        if planted::on(&planted::PROTECTION_NOT_ASKED) {
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

    /// What may be done with the pages now.
    pub(crate) fn permissions(&self) -> Permissions {
        Permissions { unmapped: self.unmapped, unreadable: self.unreadable, readonly: self.readonly }
    }

    /// Until when the pages stay where they came to: 100 µs, doubled on each refault, at most 10 ms.
    pub(crate) fn stays_until(&self) -> u64 {
        self.arrived + (100_000_u64 << self.slice).min(10_000_000)
    }

    /// The first invariant that does not hold; `faults`: the host's touches of absent pages are noticed.
    pub(super) fn check_masks(&self, faults: bool) -> Result<(), &'static str> {
        let claim = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        let mut valid = Mask::EMPTY;
        let mut dirty = Mask::EMPTY;
        let mut alias = Mask::EMPTY;
        let mut own = Mask::EMPTY;
        for i in self.devices() {
            let d = &self.dev[i];
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

/// What is known of pages on their way from one place of the arena to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried {
    pub(super) revoked: Mask,
    pub(super) gone: Mask,
    pub(super) lost: Mask,
    pub(super) hole: Mask,
    pub(super) permissions: Permissions,
}

impl Carried {
    /// What `state` says of `pages`. The new place shows nothing yet: its first touch is noticed.
    pub(crate) fn of<P>(state: &State<P>, pages: Mask) -> Self {
        Self {
            revoked: (state.revoked | state.duplicated) & pages,
            gone: state.gone & pages,
            lost: state.lost & pages,
            hole: state.hole & pages,
            permissions: Permissions {
                unmapped: state.unmapped & pages,
                unreadable: state.unreadable & pages,
                readonly: state.readonly & pages,
            },
        }
    }

    /// The same with each mask put where `to` says.
    pub(crate) fn shifted(self, to: impl Fn(Mask) -> Mask) -> Self {
        let Permissions { unmapped, unreadable, readonly } = self.permissions;
        Self {
            revoked: to(self.revoked),
            gone: to(self.gone),
            lost: to(self.lost),
            hole: to(self.hole),
            permissions: Permissions { unmapped: to(unmapped), unreadable: to(unreadable), readonly: to(readonly) },
        }
    }
}
