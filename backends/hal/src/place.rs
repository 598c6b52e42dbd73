//! Addresses, frames, and the places where bytes can be.

/// An address in one device's own space, in bytes. Never a host pointer, even where the numbers agree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DevAddr(pub u64);

impl DevAddr {
    /// The address `bytes` further on; behind the last address come the first ones.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// A stretch of one device's address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DevRange {
    /// First byte.
    pub at: DevAddr,
    /// Length in bytes.
    pub bytes: u64,
}

impl DevRange {
    /// The part that starts `offset` bytes into this range and is `bytes` long.
    #[must_use]
    pub fn part(self, offset: u64, bytes: u64) -> Self {
        debug_assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes));
        Self { at: self.at.plus(offset), bytes }
    }

    /// First address behind the range.
    #[must_use]
    pub fn end(self) -> DevAddr {
        self.at.plus(self.bytes)
    }
}

/// A stretch of device memory, counted in grains ([`Caps::grain`](crate::Caps::grain)).
///
/// A device numbers all its memory in one sequence, however many driver allocations lie beneath; numbers are stable while
/// the frames are allocated. The engine may cut a stretch at grain borders and gives every grain back exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frames {
    /// Number of the first grain.
    pub first: u32,
    /// How many grains follow each other.
    pub grains: u32,
}

/// A piece of host storage announced by [`Device::attach_host`](crate::Device::attach_host).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegionId(pub u32);

/// Host storage by region and byte offset: the runtime's own view of it, never the window where the program's pointers live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostAt {
    /// Which region.
    pub region: RegionId,
    /// Bytes from the region's base.
    pub offset: u64,
}

/// One end of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyEnd {
    /// Device memory: `offset` bytes behind the start of frame `first` (counted in grains).
    Frames {
        /// Number of the grain.
        first: u32,
        /// Bytes behind its start; may exceed a grain where the frames follow each other.
        offset: u64,
    },
    /// Host storage.
    Host(HostAt),
    /// Zeros. A source only.
    Zero,
}

/// What an access may do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Loads only.
    Read,
    /// Stores that replace every byte: what was there before is not needed.
    Write,
    /// Loads and stores.
    ReadWrite,
}

impl Access {
    /// Whether stores are allowed.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::Read
    }

    /// Whether the bytes that were there before matter.
    #[must_use]
    pub fn reads(self) -> bool {
        self != Self::Write
    }
}

/// What a page-table entry names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Device memory, starting with this grain.
    Frames {
        /// Number of the first grain; the following grains are mapped behind it.
        first: u32,
    },
    /// Host storage (only where [`Caps::map_host`](crate::Caps::map_host)).
    Host(HostAt),
    /// Nothing: an access does what [`Caps::absent`](crate::Caps::absent) says.
    Absent,
}

/// One change of a device's page table. `at` begins and ends on grain borders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edit {
    /// The addresses whose entries change.
    pub at: DevRange,
    /// What they name afterwards.
    pub to: Target,
    /// [`Access::Read`] forbids stores where the device can ([`Caps::read_only`](crate::Caps::read_only)).
    pub access: Access,
}

/// One stretch of bytes to copy. Source and destination do not overlap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRun {
    /// Where the bytes are.
    pub from: CopyEnd,
    /// Where they go.
    pub to: CopyEnd,
    /// How many.
    pub bytes: u64,
}
