//! How what is known of a block's pages changes: named transitions, and no other way.
//!
//! **Guarantee.** For every page there is at most one copy that may be written, or any number that may be read. Whoever has a
//! [`Body`] can read its [`State`]; only the transitions below change it.
//!
//! **Transitions**, in the order of a page's way (`docs/page-states.md` draws it):
//!
//! | transition | from | to |
//! |---|---|---|
//! | [`take`](Body::take), [`let_go`](Body::let_go) | any | `busy`, and back |
//! | [`revoke`](Body::revoke), [`restore`](Body::restore), [`duplicate`](Body::duplicate), [`admit_stores`](Body::admit_stores) | the window's side | the window's side |
//! | [`commit_out`](Body::commit_out) | busy, no entry of others | a replica, or the device's alone |
//! | [`commit_home`](Body::commit_home) | busy, bytes in the storage | the host's, with or without replicas |
//! | [`end_copies`](Body::end_copies), [`adopt_copies`](Body::adopt_copies) | `valid` | none; or from another place of the arena |
//! | [`entries_leave`](Body::entries_leave), [`entries_gone`](Body::entries_gone) | `mapped` | `leaving` or `hidden`, then no entry |
//! | [`alias_made`](Body::alias_made), [`share_alone`](Body::share_alone) | no entry | an entry for the host's storage |
//! | [`drop_contents`](Body::drop_contents) | busy, no entry | never touched |
//! | [`write_off`](Body::write_off), [`lose`](Body::lose), [`forgive`](Body::forgive) | on a device that is gone | `lost`, or the host's |
//!
//! No lock and no operating system: whoever calls holds the block's lock, and for masks of a device its driver lock (see
//! [`block`](super)). Between transitions of one step the invariants of [`state`](super::state) may not hold for pages that the caller
//! has; they hold when it lets go.

use std::ops::{Deref, IndexMut};

use super::super::addr::Mask;
use super::super::parts::Parts;
#[cfg(feature = "planted")]
use super::super::planted;
use super::Grow;
use super::state::{Carried, DevPages, Parked, Permissions, State};

/// What a block's lock protects: a [`State`] to read, and its transitions.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Body<P = Parts>(State<P>);

impl<P> Deref for Body<P> {
    type Target = State<P>;
    fn deref(&self) -> &State<P> {
        &self.0
    }
}

/// What a device's own page table has once pages have come to it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entries {
    /// For the pages, for stores or for loads alone: on a device that faults.
    Exact,
    /// Writable ones for whole grains, those of these pages made just now: on a device that cannot fault.
    Whole(Mask),
}

fn masks(dev: &mut DevPages) -> [&mut Mask; 9] {
    let DevPages { valid, dirty, mapped, writable, alias, leaving, hidden, atomic, private, .. } = dev;
    [valid, dirty, mapped, writable, alias, leaving, hidden, atomic, private]
}

/// Whose turn it is: busy pages, and who waits for them.
impl<P: IndexMut<usize, Output = DevPages>> Body<P> {
    /// The caller has `pages`, which nobody else has: until [`let_go`](Self::let_go) they are neither mapped, moved nor unmapped by others.
    pub(crate) fn take(&mut self, pages: Mask) {
        debug_assert!(!self.busy.meets(pages), "pages of somebody else's batch");
        self.0.busy |= pages;
    }

    /// The caller has `pages` no longer; gives those that host faults are parked on, which it wakes.
    pub(crate) fn let_go(&mut self, pages: Mask) -> Mask {
        self.0.busy &= !pages;
        self.served(pages)
    }

    /// A host fault is parked on `pages`.
    pub(crate) fn want(&mut self, pages: Mask) {
        self.0.wanted |= pages;
    }

    /// Faults parked on `pages` are to try again; gives those on which there were some.
    pub(crate) fn served(&mut self, pages: Mask) -> Mask {
        let wanted = self.wanted & pages;
        self.0.wanted &= !pages;
        wanted
    }

    /// `pages` are asked for in queue `which`, to be stored to or not; says whether the block is in the queue already, where it is from
    /// now on.
    pub(crate) fn ask(&mut self, which: usize, pages: Mask, store: bool) -> bool {
        let asked = &mut self.0.asked[which];
        asked.pages |= pages;
        if store {
            asked.to_store |= pages;
        }
        std::mem::replace(&mut asked.queued, true)
    }

    /// Takes the block out of queue `which`: what was asked for, and which of that to be stored to.
    pub(crate) fn take_asked(&mut self, which: usize) -> (Mask, Mask) {
        let asked = &mut self.0.asked[which];
        let taken = (asked.pages, asked.to_store);
        *asked = Parked { pages: Mask::EMPTY, to_store: Mask::EMPTY, queued: false };
        taken
    }

    /// Device `slot` gets a part in the block.
    pub(crate) fn admit(&mut self, slot: usize) {
        self.0.known |= 1 << slot;
    }
}

/// The window's side.
impl<P: IndexMut<usize, Output = DevPages>> Body<P> {
    /// Touches of `pages` fault from now on; gives those that could be loaded beside replicas.
    pub(crate) fn revoke(&mut self, pages: Mask) -> Mask {
        let duplicated = self.duplicated & pages;
        self.0.revoked |= pages;
        self.0.duplicated &= !pages;
        duplicated
    }

    /// The window may map `pages`, whose bytes are in place.
    pub(crate) fn restore(&mut self, pages: Mask) {
        self.0.revoked &= !pages;
    }

    /// The window may map `pages` for loads, beside replicas.
    pub(crate) fn duplicate(&mut self, pages: Mask) {
        debug_assert!(!self.gone.meets(pages), "duplicated where the host has nothing");
        self.0.revoked &= !pages;
        self.0.duplicated |= pages;
    }

    /// Stores to `pages`, of which no replica is left, are welcome.
    pub(crate) fn admit_stores(&mut self, pages: Mask) {
        self.0.duplicated &= !pages;
    }

    /// The window maps `pages` in the memory of the coherent device that alone has them.
    pub(crate) fn frame(&mut self, pages: Mask) {
        self.0.framed |= pages;
        self.0.was_framed = true;
    }

    /// … and lets the program in.
    pub(crate) fn show(&mut self, pages: Mask) {
        debug_assert!(self.framed.covers(pages), "in use in place without a mapping");
        self.0.shown |= pages;
    }

    /// … and is about to let it in no more; gives the pages where it did.
    pub(crate) fn hide(&mut self, pages: Mask) -> Mask {
        let shown = self.shown & pages;
        self.0.shown &= !pages;
        shown
    }

    /// The window maps `pages` in a device's memory no more.
    pub(crate) fn unframe(&mut self, pages: Mask) {
        self.0.framed &= !pages;
        self.0.shown &= !pages;
    }

    /// Framed pages are in so many mappings; gives in how many they were.
    pub(crate) fn set_mappings(&mut self, now: u16) -> u16 {
        std::mem::replace(&mut self.0.mappings, now)
    }

    /// Touches of pages without storage are reported.
    pub(crate) fn watch_missing(&mut self) {
        self.0.missing = true;
    }

    /// Stores to pages that the window maps are reported.
    pub(crate) fn watch_stores(&mut self) {
        self.0.stores_watched = true;
    }

    /// What may be done with `pages`: nothing is there, or loads and stores as said.
    pub(crate) fn permit(&mut self, pages: Mask, mapped: bool, reads: bool, writes: bool) {
        let State { unmapped, unreadable, readonly, .. } = &mut self.0;
        for (set, free) in [(unmapped, mapped), (unreadable, mapped && reads), (readonly, mapped && reads && writes)] {
            *set = if free { *set & !pages } else { *set | pages };
        }
    }

    /// What may be done with the pages is as it was.
    pub(crate) fn set_permissions(&mut self, to: Permissions) {
        (self.0.unmapped, self.0.unreadable, self.0.readonly) = (to.unmapped, to.unreadable, to.readonly);
    }

    /// Of `pages` these are kept by guards and long pins, by short pins, and by launches.
    pub(crate) fn keep(&mut self, pages: Mask, pinned: Mask, held: Mask, bordered: Mask) {
        let State { pinned: p, held: h, bordered: b, .. } = &mut self.0;
        for (set, now) in [(p, pinned), (h, held), (b, bordered)] {
            *set = (*set & !pages) | (now & pages);
        }
    }
}

/// Bytes and storage of the host.
impl<P: IndexMut<usize, Output = DevPages>> Body<P> {
    /// The bytes of `unread` are still with a source; where touches are noticed, those of `away` are, and have no storage.
    pub(crate) fn begin_unread(&mut self, unread: Mask, away: Mask) {
        (self.0.unread, self.0.revoked, self.0.hole) = (unread, self.revoked | away, self.hole | away);
    }

    /// The bytes of `pages` have come from the source, which has given those of `filled` storage.
    pub(crate) fn fetched(&mut self, pages: Mask, filled: Mask) {
        self.0.unread &= !pages;
        self.0.hole = (self.hole | pages) & !filled;
    }

    /// The source is read no more: the segment ends, and nobody looks for what was not fetched.
    pub(crate) fn forget_source(&mut self) {
        self.0.unread = Mask::EMPTY;
    }

    /// A copy has yet to fetch `pages`.
    pub(crate) fn lend(&mut self, pages: Mask) {
        self.0.lent |= pages;
    }

    /// No copy has yet to fetch `pages`.
    pub(crate) fn given_back(&mut self, pages: Mask) {
        self.0.lent &= !pages;
    }

    /// `pages` have storage, as far as they have none already.
    pub(crate) fn stored(&mut self, pages: Mask) {
        self.0.hole &= !pages;
    }

    /// Of `pages` those of `holes` have no storage; `all`: they are all of the block's.
    pub(crate) fn surveyed(&mut self, pages: Mask, holes: Mask, all: bool) {
        self.0.hole = (self.hole & !pages) | (holes & pages);
        self.0.full |= all && holes.is_empty();
    }

    /// If no page that was looked at lacks storage, none does.
    pub(crate) fn note_full(&mut self) {
        if self.missing && self.hole.is_empty() {
            self.0.full = true;
        }
    }

    /// The storage has become one huge folio.
    pub(crate) fn promoted(&mut self) {
        self.0.huge = true;
    }

    /// The storage was made as one huge folio, or not.
    pub(crate) fn made_huge(&mut self, huge: bool) {
        self.0.huge = huge;
        self.0.full |= huge;
    }

    /// Nothing is in `pages` any more, and they have no storage; nobody has a copy.
    pub(crate) fn drop_contents(&mut self, pages: Mask) {
        for mask in [&mut self.0.unread, &mut self.0.gone, &mut self.0.lost] {
            *mask &= !pages;
        }
        self.0.hole |= pages;
        (self.0.full, self.0.huge) = (false, false);
    }

    /// What was lost of `pages` need not be found again: what the host's storage has counts from now on. Who is kept from reading it
    /// is the segment's business.
    pub(crate) fn forgive(&mut self, pages: Mask) {
        let lost = self.lost & pages;
        self.0.lost &= !lost;
        self.0.gone &= !lost;
    }

    /// The only copies of `pages` died with their device.
    pub(crate) fn lose(&mut self, pages: Mask) {
        self.0.lost |= pages;
    }
}

/// What a device has: copies.
impl<P: IndexMut<usize, Output = DevPages>> Body<P> {
    /// `pages`, which the caller has, have arrived on device `slot`; of `alone` it has the only copies from now on, and the others'
    /// entries are gone. `writes`: what the caller wants them for.
    pub(crate) fn commit_out(&mut self, slot: usize, pages: Mask, alone: Mask, entries: Entries, writes: bool) {
        debug_assert!(self.busy.covers(pages), "pages of nobody's batch");
        debug_assert!(pages.covers(alone));
        let dev = &mut self.0.dev[slot];
        dev.valid |= pages;
        dev.dirty |= alone;
        match entries {
            Entries::Whole(made) => {
                // An entry that others have made may have gone meanwhile: then the pages wait for the next.
                dev.mapped |= made;
                dev.alias &= !made;
                dev.writable &= !pages | dev.dirty;
                dev.writable |= if writes { pages & dev.mapped } else { Mask::EMPTY };
            }
            Entries::Exact => {
                dev.mapped |= pages;
                dev.alias &= !pages;
                // For loads each was mapped so already or has just been.
                dev.writable = if writes { dev.writable | pages } else { dev.writable & !pages };
            }
        }
        if alone.is_empty() {
            return;
        }
        self.0.gone |= alone;
        self.0.lost &= !alone;
        #[cfg(feature = "planted")]
        if planted::on(&planted::REPLICA_KEPT_AT_UPGRADE) {
            return;
        }
        for d in self.devices().filter(|d| *d != slot) {
            self.0.dev[d].valid &= !alone;
        }
    }

    /// What device `slot` alone has of `pages`, which the caller has, is in the host's storage, too; `ends`: the device keeps no copy. Nor does
    /// it of what the window shows in its memory.
    pub(crate) fn commit_home(&mut self, slot: usize, pages: Mask, ends: bool) {
        let dev = &mut self.0.dev[slot];
        let come = dev.dirty & pages;
        dev.dirty &= !pages;
        dev.valid &= !(self.0.framed & come);
        if ends {
            dev.valid &= !pages;
        }
        self.came_home(come);
    }

    /// `pages` are in the host's storage, to which the one copy of them was brought.
    pub(crate) fn came_home(&mut self, pages: Mask) {
        self.0.gone &= !pages;
        self.0.hole &= !pages;
    }

    /// Device `slot` has no copy of `ended` any more, and of `shared` not the only one.
    pub(crate) fn end_copies(&mut self, slot: usize, ended: Mask, shared: Mask) {
        let dev = &mut self.0.dev[slot];
        dev.valid &= !ended;
        dev.dirty &= !shared;
    }

    /// Device `slot` has copies of pages that come from another place of the arena with their frames; of `alone` the only ones.
    pub(crate) fn adopt_copies(&mut self, slot: usize, pages: Mask, alone: Mask) {
        let dev = &mut self.0.dev[slot];
        dev.valid |= pages;
        dev.dirty |= alone;
    }

    /// Nothing of `pages` is here any more, but where the device's copies were: they go to another place of the arena.
    pub(crate) fn carried_off(&mut self, pages: Mask) {
        for mask in [&mut self.0.revoked, &mut self.0.duplicated, &mut self.0.gone, &mut self.0.lost] {
            *mask &= !pages;
        }
        self.0.hole |= pages;
        (self.0.full, self.0.huge) = (false, false);
    }

    /// `pages` are what these say of them, which was so at another place of the arena.
    pub(crate) fn carried_in(&mut self, pages: Mask, from: &Carried) {
        let s = &mut self.0;
        for (set, with) in [
            (&mut s.revoked, from.revoked),
            (&mut s.gone, from.gone),
            (&mut s.lost, from.lost),
            (&mut s.hole, from.hole),
            (&mut s.unmapped, from.permissions.unmapped),
            (&mut s.unreadable, from.permissions.unreadable),
            (&mut s.readonly, from.permissions.readonly),
        ] {
            *set = (*set & !pages) | with;
        }
        (s.full, s.huge) = (false, false);
    }

    /// A launch gets copies of its own of `pages`, which stay at home; entries for `made` were made.
    pub(crate) fn own_copies(&mut self, slot: usize, pages: Mask, made: Mask) {
        let dev = &mut self.0.dev[slot];
        dev.mapped |= made;
        dev.valid &= !pages;
        dev.private |= pages;
    }

    /// … and has ended.
    pub(crate) fn end_own_copies(&mut self, slot: usize, pages: Mask) {
        self.0.dev[slot].private &= !pages;
    }

    /// Device `slot` is gone with everything it had; gives the pages that it alone had.
    pub(crate) fn write_off(&mut self, slot: usize) -> Mask {
        let dev = &mut self.0.dev[slot];
        let alone = dev.dirty;
        masks(dev).into_iter().for_each(|m| *m = Mask::EMPTY);
        alone
    }
}

/// What a device has: entries, frames, its place in the order of eviction.
impl<P: IndexMut<usize, Output = DevPages>> Body<P> {
    /// Entries for `gone` are on their way out, those of `hidden` as far as somebody has the pages are not counted on.
    pub(crate) fn entries_leave(&mut self, slot: usize, gone: Mask, hidden: Mask) {
        let hidden = hidden & self.busy;
        let dev = &mut self.0.dev[slot];
        dev.leaving |= gone;
        dev.hidden |= hidden;
    }

    /// What was hidden of `pages` is counted on again.
    pub(crate) fn unhide(&mut self, slot: usize, pages: Mask) {
        self.0.dev[slot].hidden &= !pages;
    }

    /// There are no entries for `pages`.
    pub(crate) fn entries_gone(&mut self, slot: usize, pages: Mask) {
        let dev = &mut self.0.dev[slot];
        for mask in [&mut dev.mapped, &mut dev.writable, &mut dev.alias, &mut dev.leaving, &mut dev.atomic] {
            *mask &= !pages;
        }
    }

    /// Entries for `pages` that name bytes out of date are being removed.
    pub(crate) fn stale_gone(&mut self, slot: usize, pages: Mask) {
        let dev = &mut self.0.dev[slot];
        dev.mapped &= !pages;
        dev.writable &= !pages;
    }

    /// … and may still be there.
    pub(crate) fn stale_left(&mut self, slot: usize, pages: Mask) {
        let dev = &mut self.0.dev[slot];
        dev.mapped |= pages;
        dev.writable |= pages & dev.valid;
    }

    /// Entries for `pages` name the host's storage, which the device's accesses make.
    pub(crate) fn alias_made(&mut self, slot: usize, pages: Mask, writes: bool) {
        self.0.hole &= !pages;
        let dev = &mut self.0.dev[slot];
        dev.mapped |= pages;
        dev.alias |= pages;
        dev.writable = if writes { dev.writable | pages } else { dev.writable & !pages };
    }

    /// Some of these entries may have been made, and some not: all count as stale.
    pub(crate) fn alias_failed(&mut self, slot: usize, pages: Mask) {
        let dev = &mut self.0.dev[slot];
        dev.mapped |= pages;
        dev.alias &= !pages;
    }

    /// Entries for `pages` name the host's storage, and the device has them to itself.
    pub(crate) fn share_alone(&mut self, slot: usize, pages: Mask) {
        let dev = &mut self.0.dev[slot];
        for set in [&mut dev.mapped, &mut dev.alias, &mut dev.writable, &mut dev.atomic] {
            *set |= pages;
        }
    }

    /// The device has `pages`, which are its own already, to itself.
    pub(crate) fn have_alone(&mut self, slot: usize, pages: Mask) {
        self.0.dev[slot].atomic |= pages;
    }

    /// Grain `number` of the block has a frame on the device.
    pub(crate) fn give_frame(&mut self, slot: usize, number: usize, frame: u32) {
        debug_assert_eq!(self.dev[slot].frames[number], 0, "a frame would be forgotten");
        self.0.dev[slot].frames[number] = frame + 1;
    }

    /// Grain `number` of the block has none any more; gives what it had.
    pub(crate) fn take_frame(&mut self, slot: usize, number: usize) -> Option<u32> {
        // Read first: a part of the table that was never written stays so.
        let frame = self.dev[slot].frames[number].checked_sub(1)?;
        self.0.dev[slot].frames[number] = 0;
        Some(frame)
    }

    /// The block's place in the device's order of eviction; gives the one before.
    pub(crate) fn set_rank(&mut self, slot: usize, rank: u64) -> u64 {
        std::mem::replace(&mut self.0.dev[slot].rank, rank)
    }
}

/// What was decided beforehand, and what was counted.
impl<P: IndexMut<usize, Output = DevPages>> Body<P> {
    /// How far faults reach, and which devices' faults use pages where they are.
    pub(crate) fn decide(&mut self, host: Grow, device: Grow, in_place: u64) {
        (self.0.host_grow, self.0.device_grow, self.0.in_place) = (host, device, in_place);
    }

    /// Whether the host's loads leave devices their replicas.
    pub(crate) fn mostly_read(&mut self, on: bool) {
        self.0.read_mostly = on;
    }

    /// A store of the host has ended replicas; after `most` of them they are not worth their faults.
    pub(crate) fn collapsed(&mut self, most: u8) {
        self.0.collapses = self.collapses.saturating_add(1);
        self.0.read_mostly &= self.collapses < most;
    }

    /// Whatever stores did is forgotten.
    pub(crate) fn forget_collapses(&mut self) {
        self.0.collapses = 0;
    }

    /// Pages have travelled to a device.
    pub(crate) fn travelled(&mut self) {
        self.0.moves = self.moves.saturating_add(1);
    }

    /// Notes that pages changed sides at `now`; a page that goes to and fro gets a longer slice each time.
    pub(crate) fn arrive(&mut self, side: usize, now: u64) {
        const QUIET_NS: u64 = 50_000_000;
        if now.saturating_sub(self.arrived) > QUIET_NS {
            self.0.slice = 0;
        } else if usize::from(self.side) != side {
            self.0.slice = (self.slice + 1).min(7);
        }
        self.0.side = side as u8;
        self.0.arrived = now;
    }

    /// Back to the state of a block that nobody has touched. The devices have taken their frames away.
    pub(crate) fn reset(&mut self) {
        for d in self.devices() {
            let dev = &mut self.0.dev[d];
            masks(dev).into_iter().for_each(|m| *m = Mask::EMPTY);
            dev.rank = 0;
        }
        let s = &mut self.0;
        for mask in [
            &mut s.revoked,
            &mut s.duplicated,
            &mut s.gone,
            &mut s.busy,
            &mut s.wanted,
            &mut s.lost,
            &mut s.hole,
            &mut s.pinned,
            &mut s.held,
            &mut s.bordered,
            &mut s.framed,
            &mut s.shown,
            &mut s.unread,
            &mut s.lent,
            &mut s.unmapped,
            &mut s.unreadable,
            &mut s.readonly,
        ] {
            *mask = Mask::EMPTY;
        }
        // Nobody waits for the pages any more; the block stays in its queues.
        s.asked.iter_mut().for_each(|a| (a.pages, a.to_store) = (Mask::EMPTY, Mask::EMPTY));
        (s.arrived, s.side, s.slice, s.moves, s.known, s.mappings) = (0, 0, 0, 0, 0, 0);
        (s.missing, s.full, s.huge, s.was_framed) = (false, false, false, false);
        (s.read_mostly, s.stores_watched, s.collapses, s.in_place) = (false, false, 0, 0);
        (s.host_grow, s.device_grow) = (Grow::default(), Grow::default());
    }
}

#[cfg(test)]
mod tests;
