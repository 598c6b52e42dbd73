//! The device's own memory: one memory file of the budget's size, mapped once at a fixed base.
//!
//! **Guarantee:** grain `n` is the bytes `n · grain ..` of the file and of the base mapping, always. What a grain holds when it
//! is handed out is whatever its last user left there. Memory is taken from the host when a chunk of 2 MiB is first handed out,
//! in one physically contiguous piece where the kernel can, and given back when it was free for a second or two, but for [`KEPT`].
//!
//! **States:** those of [`FrameTable`]; nobody but this module changes them. Grains whose storage is being given back are taken
//! meanwhile, a chunk at a time; an allocation that does not find enough waits for that chunk.
//!
//! The base mapping can be accessed up to the highest chunk that was ever handed out: a program that locks all its memory
//! (`mlockall`) has no more than that filled.
//!
//! **Locks:** one mutex around the table, held for word operations only: never over a system call. `opening`, while the end of what can
//! be accessed is moved, over that call. `stripping`, above both, over the system call that gives a chunk's storage back; who holds
//! it waits for nothing.
//!
//! **Thread:** `sterna-strip`, from when more than that is free until it is not; at most one a device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sterna_hal::{DeviceError, Frames, Memory};

use crate::frames::{FrameTable, Fresh};
use crate::sys::{self, BLOCK, Backing, Mapped};
use crate::{files, room};

/// By how much the end of what can be accessed moves.
const STEP: u64 = 16 << 20;

/// Storage of free memory that is kept for the next allocation, in bytes.
const KEPT: u64 = 4 << 20;
/// How long a round takes: what was free for one at least, and two at most, is given back.
const ROUND: Duration = Duration::from_millis(700);

#[derive(Debug)]
pub(crate) struct DeviceMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<FrameTable>,
    stripping: Mutex<()>,
    /// Whether there is a thread that strips.
    stripped: AtomicBool,
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
        Ok(Self(Arc::new(Inner {
            table,
            stripping: Mutex::new(()),
            stripped: AtomicBool::new(false),
            base,
            fd,
            grain,
            bytes,
            open: AtomicU64::new(0),
            opening: Mutex::new(()),
            assured,
        })))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.0.base.base()
    }

    pub(crate) fn state(&self) -> Memory {
        Memory { budget: self.0.bytes, in_use: u64::from(self.0.table.lock().in_use()) * self.0.grain }
    }

    pub(crate) fn exhausted(&self, grains: u32) -> DeviceError {
        let Memory { budget, in_use } = self.state();
        DeviceError::OutOfMemory { requested: u64::from(grains) * self.0.grain, in_use, budget }
    }

    pub(crate) fn alloc(&self, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        let (mut fresh, start) = (Fresh::new(), out.len());
        let taken = self.0.table.lock().alloc(grains, out, &mut fresh) || {
            let _none = self.0.stripping.lock();
            self.0.table.lock().alloc(grains, out, &mut fresh)
        };
        if !taken {
            return Err(self.exhausted(grains));
        }
        let in_use = self.state().in_use;
        let end = out[start..].iter().map(|f| u64::from(f.first + f.grains) * self.0.grain).max().unwrap_or(0);
        let plenty = room::is_plenty(0);
        let given = self.give(&fresh, if plenty { &[] } else { &out[start..] }, in_use, end).inspect_err(|_| {
            let mut table = self.0.table.lock();
            out.drain(start..).for_each(|f| table.free(f));
            fresh.iter().for_each(|(chunk, count)| table.untouched(*chunk, *count));
        });
        match given {
            // Making one piece of many takes as much again for a moment.
            Ok(()) if plenty => fresh.into_iter().for_each(|(chunk, count)| self.collapse_chunks(chunk, count)),
            Ok(()) => {}
            Err(Some(e)) => return Err(e),
            Err(None) => return Err(self.exhausted(grains)),
        }
        Ok(())
    }

    /// Makes what lies before `end` accessible, and sees to it that there is memory for what was handed out: chunks that have none yet,
    /// and, where little is left, grains whose storage may have been given back. `None` says that the machine has no memory.
    fn give(&self, fresh: &Fresh, frames: &[Frames], in_use: u64, end: u64) -> Result<(), Option<DeviceError>> {
        // Of every alloc, also where others took the chunk first and are about to do this.
        if end > self.0.open.load(Ordering::Acquire) {
            let _opening = self.0.opening.lock();
            if end > self.0.open.load(Ordering::Acquire) {
                let end = end.next_multiple_of(STEP).min(self.0.base.bytes());
                self.0.base.open(end).map_err(Some)?;
                self.0.open.store(end, Ordering::Release);
            }
        }
        if in_use <= self.0.assured {
            return Ok(());
        }
        let have =
            |at: u64, bytes: u64| room::give(self.0.base.at(at), bytes.min(self.0.base.bytes() - at)).map_err(|_| None);
        for (chunk, count) in fresh {
            have(u64::from(*chunk) * BLOCK, u64::from(*count) * BLOCK)?;
        }
        frames.iter().try_for_each(|f| have(u64::from(f.first) * self.0.grain, u64::from(f.grains) * self.0.grain))
    }

    pub(crate) fn free(&self, frames: &[Frames]) {
        let kept = {
            let mut table = self.0.table.lock();
            for f in frames {
                table.free(*f);
            }
            table.kept()
        };
        if u64::from(kept) * self.0.grain > KEPT && !self.0.stripped.swap(true, Ordering::AcqRel) {
            let memory = Arc::downgrade(&self.0);
            // Without a thread storage is kept.
            if sys::spawn("sterna-strip".into(), move || strip(&memory)).is_err() {
                self.0.stripped.store(false, Ordering::Release);
            }
        }
    }

    /// Asks for chunks in one piece each. Somebody else may use another part of a chunk meanwhile: its bytes do not change.
    fn collapse_chunks(&self, chunk: u32, count: u32) {
        for c in u64::from(chunk)..u64::from(chunk) + u64::from(count) {
            // A chunk without any page is passed over, so give it one by a look at it.
            // SAFETY: inside the base mapping, aligned, accessed atomically.
            let word = unsafe { self.0.base.at(c * BLOCK).cast::<AtomicU32>().as_ref() };
            std::hint::black_box(word.load(Ordering::Relaxed));
        }
        // If it fails, pages come one by one when they are touched.
        self.0.base.advise(u64::from(chunk) * BLOCK, u64::from(count) * BLOCK, sys::MADV_COLLAPSE);
    }

    /// Offset in the file of `bytes` bytes that begin `offset` bytes behind grain `first`.
    pub(crate) fn offset(&self, call: &'static str, first: u32, offset: u64, bytes: u64) -> Result<u64, DeviceError> {
        let at = u64::from(first) * self.0.grain;
        at.checked_add(offset).filter(|at| at.checked_add(bytes).is_some_and(|end| end <= self.0.bytes)).ok_or_else(|| {
            sys::invalid(call, format!("{bytes} bytes at {offset} behind grain {first}: memory ends at {}", self.0.bytes))
        })
    }

    /// The same as a pointer.
    pub(crate) fn pointer(&self, first: u32, offset: u64, bytes: u64) -> Result<NonNull<u8>, DeviceError> {
        self.offset("copy", first, offset, bytes).map(|at| self.0.base.at(at))
    }
}

/// Gives the storage of what stays free back, until little is kept or the device has gone.
fn strip(memory: &Weak<Inner>) {
    loop {
        std::thread::sleep(ROUND);
        let Some(memory) = memory.upgrade() else { return };
        memory.table.lock().begin_round();
        let mut from = 0;
        while let Some(chunk) = memory.strip_next(from) {
            from = chunk + 1;
        }
        if memory.is_lean() {
            memory.stripped.store(false, Ordering::Release);
            // Somebody may have given much back and found this thread still there.
            if memory.is_lean() || memory.stripped.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

impl Inner {
    /// Whether little storage of free memory is kept.
    fn is_lean(&self) -> bool {
        u64::from(self.table.lock().kept()) * self.grain <= KEPT
    }

    /// Strips the next chunk from number `from` on that was left alone; says which.
    fn strip_next(&self, from: usize) -> Option<usize> {
        let _stripping = self.stripping.lock();
        if self.is_lean() {
            return None;
        }
        let (chunk, frames) = self.table.lock().idle(from)?;
        let gone = frames.iter().all(|f| {
            let (at, bytes) = (u64::from(f.first) * self.grain, u64::from(f.grains) * self.grain);
            sys::punch(self.fd.as_fd(), at, bytes)
        });
        self.table.lock().stripped(chunk, &frames, gone);
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use super::*;

    fn stored(memory: &DeviceMemory) -> u64 {
        // SAFETY: plain old data for which all bits zero is a value; the descriptor is open.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            assert_eq!(libc::fstat(memory.fd().as_raw_fd(), &raw mut stat), 0);
            u64::try_from(stat.st_blocks).unwrap() * 512
        }
    }

    #[test]
    fn what_stays_free_gives_its_storage_back_and_what_is_in_use_keeps_its_bytes() {
        const GRAIN: u64 = 64 << 10;
        let memory = DeviceMemory::new(64 << 20, GRAIN, 64 << 20).unwrap();
        let mut all = Vec::new();
        memory.alloc(1024, &mut all).unwrap();
        assert_eq!(all.len(), 1);
        for g in 0..1024 {
            // SAFETY: a grain that was handed out, aligned.
            unsafe { memory.pointer(g, 0, GRAIN).unwrap().cast::<u32>().write(g + 1) };
        }
        assert_eq!(stored(&memory), 64 << 20);
        // All but each 40th grain.
        let away: Vec<_> = (0..1024).filter(|g| g % 40 != 0).map(|first| Frames { first, grains: 1 }).collect();
        memory.free(&away);
        let end = Instant::now() + Duration::from_secs(30);
        while stored(&memory) > KEPT + 26 * GRAIN {
            assert!(Instant::now() < end, "{} bytes are kept", stored(&memory));
            // All of what is free can be had at any time.
            let mut some = Vec::new();
            memory.alloc(1024 - 26, &mut some).unwrap();
            memory.free(&some);
            std::thread::sleep(ROUND * 3);
        }
        for g in (0..1024).step_by(40) {
            // SAFETY: as above.
            assert_eq!(unsafe { memory.pointer(g, 0, GRAIN).unwrap().cast::<u32>().read() }, g + 1);
        }
        assert_eq!(memory.state().in_use, 26 * GRAIN);
    }
}
