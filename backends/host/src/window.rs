//! The device's address space and page table: a reservation in which edits are mappings.
//!
//! **Guarantee:** an address inside the window is always mapped to exactly one of: nothing, device memory, host storage, and
//! after a loss, scratch memory. A range that `reserve` hands out is absent throughout. Replacing a mapping is one system call,
//! so no access ever sees a hole, and when the call has returned no access goes through the old entry.
//!
//! **States:** a range is free or reserved; changed by `reserve` and `unreserve`. Entries are changed by `edit` and `unreserve`
//! until the window is *ruined*; after that by nobody.
//!
//! **Locks:** `free` around the list of free ranges, never over a system call; `ruined`, shared by edits and exclusive to
//! `ruin`, so that no edit lands on top of the scratch memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use sterna_hal::{DevAddr, DevRange, DeviceError};

use crate::mappings;
use crate::sys::{self, BLOCK, Backing, Mapped};

/// The smallest window worth having.
const LEAST: u64 = 64 << 30;

/// What the windows of the process's first devices may have of its addresses together (a process has 128 TiB) …
const LARGE: u64 = 32 << 40;
/// … and how much each further one gets, so that there is enough for 64 devices and the rest of the program.
const FURTHER: u64 = 512 << 30;

/// Bytes of windows in the process.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// A window's part in what is [`TAKEN`].
#[derive(Debug)]
struct Share(u64);

impl Share {
    /// `bytes`, or less where others have much already.
    fn take(bytes: u64) -> Self {
        let granted = |taken: u64| if taken.saturating_add(bytes) <= LARGE { bytes } else { bytes.min(FURTHER) };
        let add = |taken: u64| Some(taken.saturating_add(granted(taken)));
        let (Ok(taken) | Err(taken)) = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        Self(granted(taken))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::AcqRel);
    }
}

#[derive(Debug)]
pub(crate) struct Window {
    free: Mutex<FreeRanges>,
    /// Whether all of it is scratch memory.
    ruined: RwLock<bool>,
    map: Mapped,
    _share: Share,
}

/// What an entry names, resolved to a file.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// Nothing.
    Absent,
    /// A part of a file.
    File {
        /// The file.
        fd: BorrowedFd<'a>,
        /// Bytes from its start.
        offset: u64,
        /// Whether stores are allowed.
        writable: bool,
        /// Whether its pages are entered in the page table at once.
        populate: bool,
    },
}

impl Entry<'_> {
    /// Whether `next` continues this entry after `bytes` bytes, so that one mapping shows both.
    fn continues(&self, bytes: u64, next: &Entry<'_>) -> bool {
        use std::os::fd::AsRawFd;
        match (self, next) {
            (Entry::Absent, Entry::Absent) => true,
            (
                Entry::File { fd: a, offset: x, writable: v, populate: p },
                Entry::File { fd: b, offset: y, writable: w, populate: q },
            ) => a.as_raw_fd() == b.as_raw_fd() && x + bytes == *y && v == w && p == q,
            _ => false,
        }
    }
}

impl Window {
    pub(crate) fn new(bytes: u64) -> Result<Self, DeviceError> {
        let share = Share::take(bytes.max(BLOCK).next_multiple_of(BLOCK));
        let mut bytes = share.0;
        let map = loop {
            match Mapped::new(bytes, Backing::Nothing) {
                Ok(map) => break map,
                Err(_) if bytes / 2 >= LEAST => bytes = (bytes / 2).next_multiple_of(BLOCK),
                Err(e) => return Err(e),
            }
        };
        let base = map.base().addr().get() as u64;
        Ok(Self { free: Mutex::new(FreeRanges::new(base, map.bytes())), ruined: RwLock::new(false), map, _share: share })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.map.bytes()
    }

    pub(crate) fn addresses(&self) -> Range<usize> {
        let base = self.map.base().addr().get();
        base..base + sys::to_usize(self.map.bytes())
    }

    /// The pointer to a range, if the range lies in the window.
    pub(crate) fn pointer(&self, call: &'static str, range: DevRange) -> Result<NonNull<u8>, DeviceError> {
        let base = self.map.base().addr().get() as u64;
        let offset = range.at.0.checked_sub(base);
        offset
            .filter(|o| o.checked_add(range.bytes).is_some_and(|end| end <= self.map.bytes()))
            .map(|o| self.map.at(o))
            .ok_or_else(|| sys::invalid(call, format!("{range:x?} is outside the device's addresses")))
    }

    pub(crate) fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        let too_big = DeviceError::TooBig { requested: bytes, limit: self.map.bytes() };
        let size = bytes.max(1).checked_next_multiple_of(BLOCK).filter(|s| *s <= self.map.bytes()).ok_or(too_big)?;
        let at = self.free.lock().take(size).ok_or_else(|| DeviceError::Driver {
            call: "reserve",
            code: libc::ENOMEM,
            text: format!("no {size} bytes of device addresses in one piece; release some shared allocations"),
        })?;
        Ok(DevRange { at: DevAddr(at), bytes })
    }

    /// # Safety
    /// As [`sterna_hal::Device::unreserve`].
    pub(crate) unsafe fn unreserve(&self, range: DevRange) {
        let size = range.bytes.max(1).next_multiple_of(BLOCK);
        let Ok(at) = self.pointer("unreserve", DevRange { at: range.at, bytes: size }) else {
            debug_assert!(false, "{range:?} is not of this device");
            return;
        };
        let ruined = self.ruined.read();
        // SAFETY: the caller's range, which nobody uses any more.
        let cleared = *ruined || unsafe { sys::map(Some(at), size, Backing::Nothing) }.is_ok();
        drop(ruined);
        // Where the kernel refuses (too many mappings), the addresses are lost rather than handed out with old entries.
        if cleared {
            mappings::gone(2);
            self.free.lock().give(range.at.0, size);
        }
    }

    /// Makes edits in order, neighbours that continue each other in one mapping. `done` is told of each system call.
    /// An iterator that ends in an error has the edits before it made.
    ///
    /// # Safety
    /// As [`sterna_hal::Device::edit`].
    pub(crate) unsafe fn edit<'a>(
        &self,
        edits: impl Iterator<Item = Result<(DevRange, Entry<'a>), DeviceError>>,
        mut done: impl FnMut(),
    ) -> Result<(), DeviceError> {
        let ruined = self.ruined.read();
        if *ruined {
            return Ok(());
        }
        let mut flush = |pending: &mut Option<(DevRange, Entry<'a>)>| match pending.take() {
            Some((range, entry)) => {
                done();
                // SAFETY: the caller's.
                unsafe { self.set(range, entry) }
            }
            None => Ok(()),
        };
        let mut pending: Option<(DevRange, Entry<'a>)> = None;
        for edit in edits {
            let (range, entry) = match edit {
                Ok(edit) => edit,
                Err(error) => {
                    flush(&mut pending)?;
                    return Err(error);
                }
            };
            match &mut pending {
                Some((p, e)) if p.end() == range.at && e.continues(p.bytes, &entry) => p.bytes += range.bytes,
                _ => {
                    flush(&mut pending)?;
                    pending = Some((range, entry));
                }
            }
        }
        flush(&mut pending)
    }

    /// # Safety
    /// As [`edit`](Self::edit).
    unsafe fn set(&self, range: DevRange, entry: Entry<'_>) -> Result<(), DeviceError> {
        let at = self.pointer("edit", range)?;
        let backing = match entry {
            Entry::Absent => Backing::Nothing,
            Entry::File { fd, offset, writable, populate } => Backing::File { fd, offset, writable, populate },
        };
        match entry {
            Entry::File { .. } if !mappings::reserve(2) => return Err(mappings::exhausted()),
            Entry::File { .. } => {}
            Entry::Absent => mappings::gone(2),
        }
        // SAFETY: inside the window, whose entries the engine owns.
        unsafe { sys::map(Some(at), range.bytes, backing) }.map(|_| ())
    }

    /// Puts scratch memory behind every address, for good: accesses of kernels that still run go there, and those that stopped
    /// at an absent page can be resumed.
    pub(crate) fn ruin(&self) -> Result<(), DeviceError> {
        let mut ruined = self.ruined.write();
        if !*ruined {
            // SAFETY: our own window; no edit is under way, and none will be made. Who comes between the two calls stops there, and is
            // resumed as all others that did.
            unsafe { sys::map(Some(self.map.base()), self.map.bytes(), Backing::Scratch)? };
            self.map.open(self.map.bytes())?;
            *ruined = true;
        }
        Ok(())
    }
}

/// Free ranges, by address and by length. Neighbours are always joined.
#[derive(Debug)]
struct FreeRanges {
    by_start: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
}

impl FreeRanges {
    fn new(start: u64, bytes: u64) -> Self {
        Self { by_start: BTreeMap::from([(start, bytes)]), by_length: BTreeSet::from([(bytes, start)]) }
    }

    fn insert(&mut self, start: u64, bytes: u64) {
        self.by_start.insert(start, bytes);
        self.by_length.insert((bytes, start));
    }

    fn remove(&mut self, start: u64, bytes: u64) {
        self.by_start.remove(&start);
        self.by_length.remove(&(bytes, start));
    }

    /// The shortest free range that is long enough, lowest address first.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let &(length, start) = self.by_length.range((bytes, 0)..).next()?;
        self.remove(start, length);
        if length > bytes {
            self.insert(start + bytes, length - bytes);
        }
        Some(start)
    }

    fn give(&mut self, mut start: u64, mut bytes: u64) {
        if let Some((&before, &length)) = self.by_start.range(..start).next_back() {
            debug_assert!(before + length <= start, "a range was given back twice");
            if before + length == start {
                self.remove(before, length);
                (start, bytes) = (before, length + bytes);
            }
        }
        if let Some(&length) = self.by_start.get(&(start + bytes)) {
            self.remove(start + bytes, length);
            bytes += length;
        }
        self.insert(start, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_leave_addresses_for_as_many_devices_as_there_can_be() {
        let windows: Vec<_> = (0..64).map(|_| Window::new(8 << 40).unwrap()).collect();
        assert!(windows.iter().all(|w| w.bytes() >= FURTHER), "{:?}", windows.iter().map(Window::bytes).collect::<Vec<_>>());
        assert!(windows.iter().map(Window::bytes).sum::<u64>() <= 64 << 40);
        drop(windows);
        assert_eq!(Window::new(8 << 40).unwrap().bytes(), 8 << 40);
    }

    #[test]
    fn free_ranges_join_again() {
        let mut f = FreeRanges::new(0, 100 * BLOCK);
        let a = f.take(10 * BLOCK).unwrap();
        let b = f.take(20 * BLOCK).unwrap();
        let c = f.take(70 * BLOCK).unwrap();
        assert_eq!((a, b, c), (0, 10 * BLOCK, 30 * BLOCK));
        assert!(f.take(BLOCK).is_none());
        f.give(a, 10 * BLOCK);
        f.give(c, 70 * BLOCK);
        assert_eq!(f.by_start.len(), 2);
        // The tighter hole is used first.
        assert_eq!(f.take(10 * BLOCK), Some(0));
        f.give(0, 10 * BLOCK);
        f.give(b, 20 * BLOCK);
        assert_eq!(f.by_start, BTreeMap::from([(0, 100 * BLOCK)]));
        assert_eq!(f.by_length.len(), 1);
    }
}
