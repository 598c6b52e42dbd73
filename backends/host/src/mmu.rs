//! A page table made of this process's mappings, with device memory in a file: what devices of kind *mmu* are made of.
//!
//! **Guarantee:** numbers that make no sense (places outside memory, ranges outside the window) give a typed error and touch
//! nothing. **States and locks:** those of the parts; none is held across two of them but the regions around a mapping.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use sterna_hal::{CopyRun, DevRange, DeviceError, Edit, Frames, Memory, Target};

use crate::copy::Pieces;
use crate::mappings;
use crate::memory::DeviceMemory;
use crate::regions::{Look, Regions};
use crate::sys;
use crate::window::{Entry, Window};

/// An edit with its place and what it names resolved.
pub type Resolved<'a> = (DevRange, Entry<'a>);

/// A window of addresses, the entries in it, the memory that they name, and host storage.
#[derive(Debug)]
pub struct Mmu {
    window: Window,
    memory: DeviceMemory,
    regions: Regions,
    grain: u64,
    map_host: bool,
}

impl Mmu {
    /// A window of `window` bytes, or less where a limit forbids that much, and `memory` bytes of memory in grains of `grain`. The first
    /// `least` grains are given also where the machine seems to have no memory left: without them nobody goes on.
    ///
    /// # Errors
    /// A configuration that makes no sense, or limits of the system; the text says which.
    pub fn new(window: u64, memory: u64, grain: u64, least: u32, map_host: bool) -> Result<Self, DeviceError> {
        let page = sys::page_size().max(4096);
        if !grain.is_power_of_two() || grain < page || grain > sys::BLOCK {
            let text = format!("a grain of {grain} bytes; it is a power of two from {page} to {}", sys::BLOCK);
            return Err(sys::invalid("grain", text));
        }
        let memory = DeviceMemory::new(memory, grain, u64::from(least) * grain)?;
        Ok(Self { window: Window::new(window)?, memory, regions: Regions::default(), grain, map_host })
    }

    /// Host storage.
    #[must_use]
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Bytes of the window.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// The addresses of the window.
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        self.window.addresses()
    }

    /// As [`sterna_hal::Device::reserve`].
    ///
    /// # Errors
    /// As there.
    pub fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        self.window.reserve(bytes)
    }

    /// # Safety
    /// As [`sterna_hal::Device::unreserve`].
    pub unsafe fn unreserve(&self, range: DevRange) {
        // SAFETY: the caller's.
        unsafe { self.window.unreserve(range) }
    }

    /// The pointer to a range of the window.
    ///
    /// # Errors
    /// It is outside.
    pub fn pointer(&self, call: &'static str, range: DevRange) -> Result<NonNull<u8>, DeviceError> {
        self.window.pointer(call, range)
    }

    /// Puts scratch memory behind every address, for good.
    ///
    /// # Errors
    /// No memory or descriptors are left.
    pub fn ruin(&self) -> Result<(), DeviceError> {
        self.window.ruin()
    }

    /// Memory now.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory.state()
    }

    /// What to say when so many grains are not to be had.
    #[must_use]
    pub fn exhausted(&self, grains: u32) -> DeviceError {
        self.memory.exhausted(grains)
    }

    /// Where frame 0 starts.
    #[must_use]
    pub fn frames_base(&self) -> NonNull<u8> {
        self.memory.base()
    }

    /// The file that the frames are, frame 0 at its start.
    #[must_use]
    pub fn frames_file(&self) -> i32 {
        self.memory.fd().as_raw_fd()
    }

    /// As [`sterna_hal::Device::alloc`].
    ///
    /// # Errors
    /// As there.
    pub fn alloc(&self, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        if grains == 0 {
            return Ok(());
        }
        // An entry for them cuts the stretch around it in three.
        if !mappings::room(2) {
            return Err(mappings::exhausted());
        }
        self.memory.alloc(grains, out)
    }

    /// Gives frames back.
    ///
    /// # Safety
    /// As [`sterna_hal::Device::free`].
    pub unsafe fn free(&self, frames: &[Frames]) {
        self.memory.free(frames);
    }

    /// The places of a copy.
    ///
    /// # Errors
    /// Some place is outside everything.
    pub fn pieces(&self, runs: &[CopyRun]) -> Result<Pieces, DeviceError> {
        self.regions.look().pieces(runs, |first, offset, bytes| self.memory.pointer(first, offset, bytes))
    }

    /// Makes edits in order. `via` is handed the resolving of each, and may refuse it; `done` is told of each system call.
    ///
    /// # Errors
    /// An edit makes no sense, or a limit of the system. Edits before it may have been made.
    ///
    /// # Safety
    /// As [`sterna_hal::Device::edit`].
    pub unsafe fn edit(
        &self,
        edits: &[Edit],
        via: impl for<'x> Fn(&dyn Fn() -> Result<Resolved<'x>, DeviceError>) -> Result<Resolved<'x>, DeviceError>,
        done: impl FnMut(),
    ) -> Result<(), DeviceError> {
        let regions = self.regions.look();
        let entries = edits.iter().map(|edit| via(&|| self.entry(&regions, edit)));
        // SAFETY: the caller's.
        unsafe { self.window.edit(entries, done) }
    }

    fn entry<'a>(&'a self, regions: &'a Look<'_>, edit: &Edit) -> Result<Resolved<'a>, DeviceError> {
        let Edit { at, to, access } = *edit;
        self.window.pointer("edit", at)?;
        let uneven = |n: u64| !n.is_multiple_of(self.grain);
        if at.bytes == 0 || uneven(at.at.0) || uneven(at.bytes) {
            return Err(sys::invalid("edit", format!("{at:x?} is not made of grains of {}", self.grain)));
        }
        let writable = access.writes();
        let entry = match to {
            Target::Absent => Entry::Absent,
            Target::Frames { first } => {
                let offset = self.memory.offset("edit", first, 0, at.bytes)?;
                Entry::File { fd: self.memory.fd(), offset, writable, populate: true }
            }
            Target::Host(_) if !self.map_host => {
                return Err(sys::invalid("edit", "this device cannot map host storage"));
            }
            Target::Host(host) => {
                regions.host("edit", host, at.bytes)?;
                if !host.offset.is_multiple_of(sys::page_size()) {
                    return Err(sys::invalid("edit", format!("{host:?} is not at the start of a page")));
                }
                // Not populated: that would give host memory to every page of the range, touched or not.
                let fd = regions.region(host).fd.as_fd();
                Entry::File { fd, offset: host.offset, writable, populate: false }
            }
        };
        Ok((at, entry))
    }
}

/// Grains that must be free so that every worker can finish the instruction it is at.
///
/// An instruction with two memory operands (a string move) can need four pages at once: its source and its destination may each
/// straddle a border. That many must be present together, or workers evict each other's pages forever. It is a matter of borders
/// and not of bytes, so it is the same for grains of every size. (Gathers need more, but go on where they stopped.) Four more keep
/// an eviction from having to take what was just brought in.
#[must_use]
pub fn min_frames(workers: usize) -> u32 {
    u32::try_from(workers).unwrap_or(u32::MAX / 8) * 4 + 4
}
