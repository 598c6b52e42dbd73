//! The device's own memory: one memory file of the budget's size, mapped once at a fixed base.
//!
//! **Guarantee:** grain `n` is the bytes `n · grain ..` of the file and of the base mapping, always. What a grain holds when it
//! is handed out is whatever its last user left there. Memory is taken from the host when a chunk of 2 MiB is first handed out,
//! in one physically contiguous piece where the kernel can.
//!
//! **States:** those of [`FrameTable`]; nobody but this module changes them.
//!
//! The base mapping can be accessed up to the highest chunk that was ever handed out: a program that locks all its memory
//! (`mlockall`) has no more than that filled.
//!
//! **Locks:** one mutex around the table, held for word operations only: never over a system call. `opening`, while the end of what can
//! be accessed is moved, over that call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use sterna_hal::{DeviceError, Frames, Memory};

use crate::frames::{FrameTable, Fresh};
use crate::sys::{self, BLOCK, Backing, Mapped};
use crate::{files, room};

/// By how much the end of what can be accessed moves.
const STEP: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct DeviceMemory {
    table: Mutex<FrameTable>,
    base: Mapped,
    fd: OwnedFd,
    grain: u64,
    bytes: u64,
    /// Bytes of the base mapping that can be accessed.
    open: AtomicU64,
    opening: Mutex<()>,
    /// Bytes that are given without asking whether the machine has them.
    assured: u64,
}

impl DeviceMemory {
    pub(crate) fn new(budget: u64, grain: u64, assured: u64) -> Result<Self, DeviceError> {
        let grains = u32::try_from((budget / grain).max(1))
            .ok()
            .filter(|n| *n < u32::MAX)
            .ok_or_else(|| sys::invalid("device memory", format!("{budget} bytes of memory in grains of {grain}")))?;
        let bytes = u64::from(grains) * grain;
        let file = bytes.next_multiple_of(BLOCK);
        let fd = files::memory(c"sterna-device", file)?;
        let base = Mapped::new(file, Backing::Closed(fd.as_fd()))?;
        let table = Mutex::new(FrameTable::new(grains, u32::try_from(BLOCK / grain).expect("at most 512")));
        Ok(Self { table, base, fd, grain, bytes, open: AtomicU64::new(0), opening: Mutex::new(()), assured })
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
        let (mut fresh, start) = (Fresh::new(), out.len());
        if !self.table.lock().alloc(grains, out, &mut fresh) {
            return Err(self.exhausted(grains));
        }
        let in_use = self.state().in_use;
        let end = out[start..].iter().map(|f| u64::from(f.first + f.grains) * self.grain).max().unwrap_or(0);
        let given = self.give(&fresh, in_use, end).inspect_err(|_| {
            let mut table = self.table.lock();
            out.drain(start..).for_each(|f| table.free(f));
            fresh.iter().for_each(|(chunk, count)| table.untouched(*chunk, *count));
        });
        match given {
            Ok(()) => fresh.into_iter().for_each(|(chunk, count)| self.settle(chunk, count)),
            Err(Some(e)) => return Err(e),
            Err(None) => return Err(self.exhausted(grains)),
        }
        Ok(())
    }

    /// Asks for the memory of chunks that have none yet, and makes what lies before `end` accessible. `None` says that the machine has
    /// no memory.
    fn give(&self, fresh: &Fresh, in_use: u64, end: u64) -> Result<(), Option<DeviceError>> {
        let bytes: u64 = fresh.iter().map(|(_, count)| u64::from(*count) * BLOCK).sum();
        if bytes > 0 && in_use > self.assured {
            room::take(bytes).map_err(|_| None)?;
        }
        // Of every alloc, also where others took the chunk first and are about to do this.
        if end > self.open.load(Ordering::Acquire) {
            let _opening = self.opening.lock();
            if end > self.open.load(Ordering::Acquire) {
                let end = end.next_multiple_of(STEP).min(self.base.bytes());
                self.base.open(end).map_err(Some)?;
                self.open.store(end, Ordering::Release);
            }
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
        self.base.advise(u64::from(chunk) * BLOCK, u64::from(count) * BLOCK, sys::MADV_COLLAPSE);
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
