//! What is kept for each device: its part of every block, and its view of every segment.
//!
//! **Guarantee.** The records of a device lie in tables of its slot's own, which are mapped when the slot is first taken and never
//! go away, so that a signal handler finds a record by plain loads. They cost memory where they were written only, and a slot that
//! nobody ever took costs nothing. The records of a free slot are all zero, which is where its next device begins.
//!
//! **States of a slot**: never taken, without tables → taken ⇄ free, with tables of zeros.
//!
//! **Who may change them.** The tables: whoever takes or gives back the slot. A part's pages: whoever holds the block's lock (see
//! [`block`](super::block)); what is shown of them: with the driver lock as well; a view: see [`segment`](super::segment).
//! **Lock**: none. Slots are taken and given back by changing one word.

use std::ops::{Index, IndexMut};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use sterna_hal::DeviceError;

use super::block::{DevPages, Usable};
use super::os;
use super::segment::ViewRec;
use super::space::Space;

/// Devices that can be attached to the process's space at once: a bit each in a word.
pub const MAX_DEVICES: usize = u64::BITS as usize;

/// One device's part of a block. All zero: none.
#[repr(C, align(64))]
pub(crate) struct Part {
    usable: Usable,
    pages: DevPages,
}

/// A slot's tables; null until it is first taken.
#[derive(Debug)]
pub(super) struct Tables {
    /// By block.
    parts: AtomicPtr<Part>,
    /// By segment, in the same mapping.
    views: AtomicPtr<ViewRec>,
    /// That, and for how many blocks it is.
    mapping: OnceLock<(os::Mapping, usize)>,
}

impl Tables {
    pub(super) const fn new() -> Self {
        Self { parts: AtomicPtr::new(ptr::null_mut()), views: AtomicPtr::new(ptr::null_mut()), mapping: OnceLock::new() }
    }

    fn bytes(blocks: usize) -> usize {
        blocks * (size_of::<Part>() + size_of::<ViewRec>())
    }

    /// Maps the tables for so many blocks, unless that was done before, accessible as far as the arena reaches in blocks and records.
    /// For whoever has just taken the slot, while the arena does not grow.
    pub(super) fn make(&self, blocks: usize, reached: (usize, usize)) -> Result<(), DeviceError> {
        if self.parts.load(Ordering::Acquire).is_null() {
            let mapping = os::Mapping::table(Self::bytes(blocks))?;
            let parts = mapping.base().cast::<Part>();
            // Records of few blocks are not to cost two MiB a device.
            // SAFETY: mapped just now.
            unsafe { os::no_huge_pages(parts.as_ptr().addr(), Self::bytes(blocks)) };
            // SAFETY: the views lie behind the parts; see `bytes`.
            let views = unsafe { parts.add(blocks) }.cast::<ViewRec>();
            Self::open_both(&mapping, blocks, (0, 0), reached)?;
            let _ = self.mapping.set((mapping, blocks)); // and stays: a handler may look at any time
            self.views.store(views.as_ptr(), Ordering::Release);
            self.parts.store(parts.as_ptr(), Ordering::Release);
        }
        Ok(())
    }

    /// The arena reaches further, in blocks and records.
    pub(super) fn open(&self, from: (usize, usize), to: (usize, usize)) -> Result<(), DeviceError> {
        self.mapping.get().map_or(Ok(()), |(mapping, blocks)| Self::open_both(mapping, *blocks, from, to))
    }

    fn open_both(mapping: &os::Mapping, blocks: usize, from: (usize, usize), to: (usize, usize)) -> Result<(), DeviceError> {
        mapping.open(from.0 * size_of::<Part>()..to.0 * size_of::<Part>())?;
        let views = blocks * size_of::<Part>();
        mapping.open(views + from.1 * size_of::<ViewRec>()..views + to.1 * size_of::<ViewRec>())
    }

    /// Zeros again, which cost nothing. For whoever is about to give the slot back: nobody has anything to look for there.
    pub(super) fn clear(&self) {
        if let Some((mapping, blocks)) = self.mapping.get() {
            // SAFETY: the slot's own table, of private memory.
            unsafe { os::forget_memory(mapping.base().as_ptr().addr(), Self::bytes(*blocks)) };
        }
    }

    /// Where the first `recs` views are, address and bytes, if there are any.
    pub(super) fn views(&self, recs: usize) -> Option<(usize, usize)> {
        NonNull::new(self.views.load(Ordering::Acquire)).map(|at| (at.as_ptr().addr(), recs * size_of::<ViewRec>()))
    }

    /// Whether they are there.
    pub(super) fn are_made(&self) -> bool {
        !self.parts.load(Ordering::Acquire).is_null()
    }
}

fn part(space: &Space, slot: usize, block: usize) -> NonNull<Part> {
    let table = space.slots[slot].tables.parts.load(Ordering::Acquire);
    let table = NonNull::new(table).expect("a slot that some device has, or had");
    // SAFETY: the table has a part for every block that the arena reaches; see `Space::number_of_block`.
    unsafe { table.add(block) }
}

/// What launches may know of device `slot`'s part of the block whose record is at address `at`, for whoever holds the driver lock.
pub(super) fn usable(at: usize, slot: usize) -> &'static Usable {
    let (space, block) = Space::number_of_block(at);
    // SAFETY: made of atomics, zeros at first, never unmapped; apart from the pages, which others may have a reference to.
    unsafe { &(*part(space, slot, block).as_ptr()).usable }
}

/// The devices' parts of a block: `dev[slot]`, of a slot that some device has, or had. There is nothing in it; where it stands
/// says which block's they are.
#[repr(transparent)]
pub(crate) struct Parts(());

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

impl Index<usize> for Parts {
    type Output = DevPages;
    fn index(&self, slot: usize) -> &DevPages {
        let (space, block) = Space::number_of_block(ptr::from_ref(self).addr());
        // SAFETY: zeros at first, which are pages of nobody. Each is found through the one `Parts` of its block, so a borrow of that,
        // which takes the block's lock, is a borrow of it.
        unsafe { &(*part(space, slot, block).as_ptr()).pages }
    }
}

impl IndexMut<usize> for Parts {
    fn index_mut(&mut self, slot: usize) -> &mut DevPages {
        let (space, block) = Space::number_of_block(ptr::from_ref(self).addr());
        // SAFETY: as `index`.
        unsafe { &mut (*part(space, slot, block).as_ptr()).pages }
    }
}

/// The devices' views of a segment: `view[slot]`, of a slot that some device has, or had. As [`Parts`].
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Views(());

impl std::fmt::Debug for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Views")
    }
}

impl Index<usize> for Views {
    type Output = ViewRec;
    fn index(&self, slot: usize) -> &ViewRec {
        let (space, rec) = Space::number_of_record(ptr::from_ref(self).addr());
        let table = space.slots[slot].tables.views.load(Ordering::Acquire);
        let table = NonNull::new(table).expect("a slot that some device has, or had");
        // SAFETY: the table has a view for every segment that there is; made of atomics, zeros at first, never unmapped.
        unsafe { table.add(rec).as_ref() }
    }
}

/// The slots whose bits are set in a word, in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Slots(pub(crate) u64);

impl Iterator for Slots {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        let slot = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (slot < MAX_DEVICES).then_some(slot)
    }
}

impl DoubleEndedIterator for Slots {
    fn next_back(&mut self) -> Option<usize> {
        let slot = self.0.checked_ilog2()?;
        self.0 &= !(1 << slot);
        Some(slot as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_told_from_both_ends() {
        let word = 1 << 63 | 1 << 17 | 1;
        assert_eq!(Slots(word).collect::<Vec<_>>(), [0, 17, 63]);
        assert_eq!(Slots(word).rev().collect::<Vec<_>>(), [63, 17, 0]);
        assert_eq!(Slots(0).next(), None);
        assert_eq!(Slots(u64::MAX).count(), MAX_DEVICES);
    }
}
