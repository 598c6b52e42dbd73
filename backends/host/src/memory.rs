//! The device's own memory: one memory file of the budget's size, mapped once at a fixed base.
//!
//! **Guarantee:** grain `n` is the bytes `n · grain ..` of the file and of the base mapping, always. What a grain holds when it
//! is handed out is whatever its last user left there. Memory is taken from the host when a chunk of 2 MiB is first handed out,
//! in one physically contiguous piece where the kernel can.
//!
//! **States:** those of [`FrameTable`]; nobody but this module changes them.
//!
//! **Locks:** one mutex around the table, held for word operations only: never over a system call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use sterna_hal::{DeviceError, Frames, Memory};

use crate::frames::{FrameTable, Fresh};
use crate::sys::{self, BLOCK, Backing, Mapped};

#[derive(Debug)]
pub(crate) struct DeviceMemory {
    table: Mutex<FrameTable>,
    base: Mapped,
    fd: OwnedFd,
    grain: u64,
    bytes: u64,
}

impl DeviceMemory {
    pub(crate) fn new(budget: u64, grain: u64) -> Result<Self, DeviceError> {
        let grains = u32::try_from((budget / grain).max(1))
            .ok()
            .filter(|n| *n < u32::MAX)
            .ok_or_else(|| sys::invalid("device memory", format!("{budget} bytes of memory in grains of {grain}")))?;
        let bytes = u64::from(grains) * grain;
        let file = bytes.next_multiple_of(BLOCK);
        let fd = sys::memfd(c"sterna-device", file)?;
        let base = Mapped::new(file, Backing::File { fd: fd.as_fd(), offset: 0, writable: true, populate: false })?;
        // Best effort: it keeps core dumps small, no more.
        base.advise(0, file, libc::MADV_DONTDUMP);
        let table = Mutex::new(FrameTable::new(grains, u32::try_from(BLOCK / grain).expect("at most 512")));
        Ok(Self { table, base, fd, grain, bytes })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base.base()
    }

    pub(crate) fn state(&self) -> Memory {
        Memory { budget: self.bytes, in_use: u64::from(self.table.lock().in_use()) * self.grain }
    }

    pub(crate) fn exhausted(&self, grains: u32) -> DeviceError {
        let Memory { budget, in_use } = self.state();
        DeviceError::OutOfMemory { requested: u64::from(grains) * self.grain, in_use, budget }
    }

    pub(crate) fn alloc(&self, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        let mut fresh = Fresh::new();
        if !self.table.lock().alloc(grains, out, &mut fresh) {
            return Err(self.exhausted(grains));
        }
        for (chunk, count) in fresh {
            self.settle(chunk, count);
        }
        Ok(())
    }

    pub(crate) fn free(&self, frames: &[Frames]) {
        let mut table = self.table.lock();
        for f in frames {
            table.free(*f);
        }
    }

    /// Asks for chunks in one piece each. Somebody else may use another part of a chunk meanwhile: its bytes do not change.
    fn settle(&self, chunk: u32, count: u32) {
        for c in u64::from(chunk)..u64::from(chunk) + u64::from(count) {
            // A chunk without any page is passed over, so give it one by a look at it.
            // SAFETY: inside the base mapping, aligned, accessed atomically.
            let word = unsafe { self.base.at(c * BLOCK).cast::<AtomicU32>().as_ref() };
            std::hint::black_box(word.load(Ordering::Relaxed));
        }
        // If it fails, pages come one by one when they are touched.
        self.base.advise(u64::from(chunk) * BLOCK, u64::from(count) * BLOCK, libc::MADV_COLLAPSE);
    }

    /// Offset in the file of `bytes` bytes that begin `offset` bytes behind grain `first`.
    pub(crate) fn offset(&self, call: &'static str, first: u32, offset: u64, bytes: u64) -> Result<u64, DeviceError> {
        let at = u64::from(first) * self.grain;
        at.checked_add(offset).filter(|at| at.checked_add(bytes).is_some_and(|end| end <= self.bytes)).ok_or_else(|| {
            sys::invalid(call, format!("{bytes} bytes at {offset} behind grain {first}: memory ends at {}", self.bytes))
        })
    }

    /// The same as a pointer.
    pub(crate) fn pointer(&self, first: u32, offset: u64, bytes: u64) -> Result<NonNull<u8>, DeviceError> {
        self.offset("copy", first, offset, bytes).map(|at| self.base.at(at))
    }
}
