//! The packed page entry that a snapshot or a fault of a range gives to a driver, and the migration word.
//!
//! | bit | name | meaning |
//! |---|---|---|
//! | 0 | `VALID` | the entry names a frame that may be read |
//! | 1 | `WRITE` | … and written; implies `VALID` |
//! | 2 | `ERROR` | no segment, not readable, or lost; excludes `VALID` |
//! | 3 | `SPECIAL` | a mapping without a frame that a device could use |
//! | 4 | `DEVICE_PRIVATE` | the frame is memory of the asking device, in which the host cannot see it |
//! | 5 | `ZERO` | never written: reads as zeros |
//! | 6 | `DEVICE_COHERENT` | the frame is memory of a device that the host uses in place |
//! | 7 | `REMOTE` | … of another device than the asking one |
//! | 8–12 | order | the entry is part of a mapping of 2^order pages: 9 for a block, else 0 |
//! | 13… | frame | the host page of the backing, or the device's frame in pages |
//!
//! An entry without any bit is *none*: nothing is mapped now, and a fault can change that. None and error stay apart.

use std::fmt;

use bitflags::bitflags;

bitflags! {
    /// The low bits of a [`Pfn`].
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct PfnFlags: u64 {
        /// May be read.
        const VALID = 1;
        /// May be written.
        const WRITE = 1 << 1;
        /// Can never be mapped as things stand.
        const ERROR = 1 << 2;
        /// Mapped, but to nothing a device could use.
        const SPECIAL = 1 << 3;
        /// Memory of the asking device.
        const DEVICE_PRIVATE = 1 << 4;
        /// Reads as zeros.
        const ZERO = 1 << 5;
        /// Memory of a device that the host uses in place.
        const DEVICE_COHERENT = 1 << 6;
        /// Of another device than the asking one.
        const REMOTE = 1 << 7;
    }
}

bitflags! {
    /// What became of a page that was to move (`MIGRATE_PFN_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct MigrateFlags: u64 {
        /// It had bytes; without, it was never written and its frame was cleared.
        const VALID = 1;
        /// It is at its destination.
        const MIGRATE = 1 << 1;
        /// It may be written there.
        const WRITE = 1 << 3;
        /// Its destination is device memory.
        const DEVICE = 1 << 4;
    }
}

const ORDER_SHIFT: u32 = 8;
const ORDER_BITS: u64 = 31;
const SHIFT: u32 = 13;

/// One page's entry (`hmm_pfn_t`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pfn(pub u64);

impl Pfn {
    /// Nothing mapped, but a fault can change that.
    pub const NONE: Self = Self(0);
    /// Can never be mapped as things stand.
    pub const ERROR: Self = Self(PfnFlags::ERROR.bits());

    /// An entry that names a frame.
    #[must_use]
    pub fn new(frame: u64, flags: PfnFlags) -> Self {
        debug_assert!(!flags.contains(PfnFlags::WRITE) || flags.contains(PfnFlags::VALID));
        debug_assert!(!flags.contains(PfnFlags::ERROR) || !flags.contains(PfnFlags::VALID));
        Self(frame << SHIFT | flags.bits())
    }

    /// Its flags.
    #[must_use]
    pub fn flags(self) -> PfnFlags {
        PfnFlags::from_bits_truncate(self.0)
    }

    /// The same entry as part of a mapping of 2^`order` pages.
    #[must_use]
    pub fn with_order(self, order: u32) -> Self {
        Self(self.0 & !(ORDER_BITS << ORDER_SHIFT) | (u64::from(order) & ORDER_BITS) << ORDER_SHIFT)
    }

    /// How many pages the mapping has that it is part of, as a power of two.
    #[must_use]
    pub fn order(self) -> u32 {
        (self.0 >> ORDER_SHIFT & ORDER_BITS) as u32
    }

    /// The frame: a page of the arena's storage (offset / 4 KiB), or with `DEVICE_PRIVATE` or `DEVICE_COHERENT` a page of the
    /// device's memory.
    #[must_use]
    pub fn frame(self) -> Option<u64> {
        self.is_valid().then_some(self.0 >> SHIFT)
    }

    /// May be read.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.flags().contains(PfnFlags::VALID)
    }

    /// May be written.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.flags().contains(PfnFlags::WRITE)
    }

    /// Can never be mapped as things stand.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.flags().contains(PfnFlags::ERROR)
    }

    /// Nothing mapped now.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("Pfn(none)");
        }
        write!(f, "Pfn({:#x} {:?})", self.0 >> SHIFT, self.flags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_and_error_stay_apart() {
        assert!(Pfn::NONE.is_none() && !Pfn::NONE.is_error() && !Pfn::NONE.is_valid());
        assert!(Pfn::ERROR.is_error() && !Pfn::ERROR.is_none() && !Pfn::ERROR.is_valid());
        assert_eq!(Pfn::ERROR.frame(), None);
    }

    #[test]
    fn frame_and_flags_come_back() {
        let p = Pfn::new(0x1234_5678, PfnFlags::VALID | PfnFlags::WRITE);
        assert_eq!(p.frame(), Some(0x1234_5678));
        assert!(p.is_writable() && p.order() == 0);
        let block = p.with_order(9);
        assert_eq!((block.order(), block.frame(), block.flags()), (9, p.frame(), p.flags()));
        assert!(!p.flags().contains(PfnFlags::DEVICE_PRIVATE));
    }
}
