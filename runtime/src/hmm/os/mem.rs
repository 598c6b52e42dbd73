//! Mappings and their storage.

use std::convert::Infallible;
use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use sterna_hal::DeviceError;
use sterna_host::sys::MADV_COLLAPSE;
use sterna_host::{files, limits, locked};

use super::file::each_extent;
use super::{again, errno, in_the_end, once, set_errno};
use crate::Error;

/// What mapping gives. Signal-safe.
fn mapped(mut map: impl FnMut() -> Result<*mut libc::c_void, i32>) -> Result<*mut libc::c_void, i32> {
    let mut at = libc::MAP_FAILED;
    again(|| match map() {
        Ok(got) => {
            at = got;
            0
        }
        Err(_) => -1, // and `errno` says it
    })
    .map(|_| at)
}

/// A mapping that is removed when dropped. It is made without access, and never locked: see [`open`](Self::open).
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is plain memory; who may touch it is its user's business.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

impl Mapping {
    /// What mapping without access gives, with what helps where that is nothing.
    fn map(at: usize, bytes: usize, flags: libc::c_int, fd: RawFd) -> Result<Self, DeviceError> {
        // SAFETY: without MAP_FIXED no existing mapping is touched; with it, it is the caller's own.
        let got = mapped(|| unsafe { locked::map(ptr::without_provenance_mut(at), bytes, libc::PROT_NONE, flags, fd, 0) })
            .map_err(|e| refused("mmap", e))?;
        let base = NonNull::new(got.cast()).ok_or_else(|| refused("mmap", libc::EINVAL))?;
        Ok(Self { base, bytes })
    }

    /// For a whole mapping that stays.
    fn set_up(self) -> Result<Self, DeviceError> {
        let at = self.base.as_ptr().cast::<libc::c_void>();
        // A program that locks all that it maps would have it filled when it is opened, and could not have it moved.
        // SAFETY: our own mapping.
        unsafe { unlock(at.addr(), self.bytes) }.map_err(|e| refused("munlock", e))?;
        // A forked child must not see half of a shared memory whose other half is on a device; a core dump of it is useless.
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: our own mapping.
            again(|| unsafe { libc::madvise(at, self.bytes, advice) }).map_err(|e| refused("madvise", e))?;
        }
        Ok(self)
    }

    /// Addresses for zero-filled private memory that costs nothing until touched: for tables.
    pub(crate) fn table(bytes: usize) -> Result<Self, DeviceError> {
        Self::map(0, bytes, ANONYMOUS, -1)?.set_up()
    }

    /// Addresses for all of `fd`'s first `bytes` bytes, shared, aligned to `align`, near `hint`.
    pub(crate) fn shared(fd: &OwnedFd, bytes: usize, align: usize, hint: usize) -> Result<Self, DeviceError> {
        // Reserve more than is needed, then map over the aligned part: mmap aligns to pages only.
        let whole = Self::map(hint, bytes + align, ANONYMOUS, -1)?;
        let at = whole.base.as_ptr().addr().next_multiple_of(align);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let (base, end) = (whole.base.as_ptr().addr(), whole.base.as_ptr().addr() + whole.bytes);
        let this = Self::map(at, bytes, flags, fd.as_raw_fd())?;
        std::mem::forget(whole);
        // SAFETY: the rims of the reservation, unused.
        unsafe {
            if at > base {
                libc::munmap(ptr::without_provenance_mut(base), at - base);
            }
            if end > at + bytes {
                libc::munmap(ptr::without_provenance_mut(at + bytes), end - at - bytes);
            }
        }
        this.set_up()
    }

    /// Lets loads and stores into bytes `range`, to whole pages. Again and again makes no difference.
    pub(crate) fn open(&self, range: Range<usize>) -> Result<(), DeviceError> {
        let (start, end) = (range.start & !4095, range.end.next_multiple_of(4096).min(self.bytes));
        // SAFETY: inside our own mapping.
        let at = unsafe { self.base.as_ptr().add(start) };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: as above.
        again(|| unsafe { libc::mprotect(at.cast(), end - start, prot) }).map(drop).map_err(|e| refused("mprotect", e))
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

/// A mapping that the system refused, with what helps.
fn refused(call: &'static str, code: i32) -> DeviceError {
    const OTHERWISE: &str = "raise vm.max_map_count (sysctl), or end what else uses the process's addresses";
    let text = format!("{}; {}", io::Error::from_raw_os_error(code), limits::for_memory(code, OTHERWISE));
    DeviceError::Driver { call, code, text }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; its user is done with it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Private memory of zeros, which a forked child inherits; its address.
pub(crate) fn private_memory(bytes: usize) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.addr()) }
}

/// Removes a mapping.
///
/// # Safety
/// The caller's own, which nobody uses.
pub(crate) unsafe fn unmap(at: usize, bytes: usize) {
    // SAFETY: the caller's.
    unsafe { libc::munmap(ptr::without_provenance_mut(at), bytes) };
}

/// Maps private zeros at `at`, in place of what is there. A failure leaves nothing there.
///
/// # Safety
/// Nobody uses what is there.
pub(crate) unsafe fn zeros_over(at: usize, bytes: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the caller's.
    unsafe { libc::mmap(ptr::without_provenance_mut(at), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
}

/// Gives private memory back: it reads as zeros from now on.
///
/// # Safety
/// The caller's own, whose contents nobody needs.
pub(crate) unsafe fn forget_memory(at: usize, bytes: usize) {
    // SAFETY: the caller's. What a kernel refuses stays, as with no kernel seen.
    unsafe { locked::discard(ptr::without_provenance_mut(at), bytes) };
}

/// Has memory come in single pages, so that a table costs what is used of it.
///
/// # Safety
/// The caller's own.
pub(crate) unsafe fn no_huge_pages(at: usize, bytes: usize) {
    // A kernel without huge pages refuses, and has none.
    // SAFETY: the caller's; contents stay.
    unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, libc::MADV_NOHUGEPAGE) };
}

/// Moves a mapping to `to`, in place of what is there. A failure leaves nothing there.
///
/// # Safety
/// The mapping is the caller's own; nobody uses what is at `to`.
pub(crate) unsafe fn move_over(at: usize, bytes: usize, to: usize) {
    let (from, to) = (ptr::without_provenance_mut(at), ptr::without_provenance_mut::<libc::c_void>(to));
    // SAFETY: the caller's.
    unsafe { libc::mremap(from, bytes, bytes, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to) };
}

/// A sparse file in memory of `bytes` bytes.
pub(crate) fn memory_file(name: &CStr, bytes: u64) -> Result<OwnedFd, DeviceError> {
    // Where a test has it fail.
    again(|| 0).map_err(|e| refused("memfd_create", e))?;
    files::memory(name, bytes)
}

/// Takes `bytes` bytes at `at` out of this process's page table; the storage keeps its contents. When it returns, no store
/// through the mapping can land any more without a new fault. The program may have locked it. Signal-safe.
///
/// # Safety
/// The range lies in a shared mapping of the engine's.
pub(crate) unsafe fn discard_mapping(at: usize, bytes: usize) -> Result<(), i32> {
    // SAFETY: the caller's; a shared mapping keeps its contents.
    again(|| unsafe { locked::discard(ptr::without_provenance_mut(at), bytes) }).map(drop)
}

/// Takes the lock off memory that the program has locked. Signal-safe.
///
/// # Safety
/// A mapping of the engine's.
pub(crate) unsafe fn unlock(at: usize, bytes: usize) -> Result<(), i32> {
    // SAFETY: the caller's.
    again(|| unsafe { locked::unlocked(ptr::without_provenance_mut(at), bytes) }.map_or(-1, |()| 0)).map(drop)
}

/// Has every access to `bytes` bytes at `at` raise SIGSEGV, until [`unguard`]; the storage keeps its contents. When it returns, no
/// store through the mapping can land any more. Fails with `EINVAL` on kernels without guard markers. Signal-safe.
///
/// # Safety
/// The range lies in a shared mapping of the engine's.
pub(crate) unsafe fn guard(at: usize, bytes: usize) -> Result<(), i32> {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    // SAFETY: the caller's; contents stay.
    again(|| unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, MADV_GUARD_INSTALL) }).map(drop)
}

/// Takes guards away. Where there are none it does nothing. Signal-safe.
///
/// # Safety
/// As [`guard`].
pub(crate) unsafe fn unguard(at: usize, bytes: usize) -> Result<(), i32> {
    const MADV_GUARD_REMOVE: libc::c_int = 103;
    // SAFETY: the caller's; contents stay.
    in_the_end(|| unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, MADV_GUARD_REMOVE) }).map(drop)
}

/// Maps `bytes` bytes of a file from `offset` on at `at`, in place of what is there, in one step: an access meets the one or the
/// other. The program may do with them what `read` and `write` say. Signal-safe.
///
/// # Safety
/// The range lies in a shared mapping of the engine's, the bytes in the file.
pub(crate) unsafe fn map_over(
    fd: RawFd,
    at: usize,
    bytes: usize,
    offset: u64,
    (read, write): (bool, bool),
) -> Result<(), i32> {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the caller's.
    let got = mapped(|| unsafe {
        locked::map(ptr::without_provenance_mut(at), bytes, protection(read, write), flags, fd, offset as libc::off_t)
    })?;
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
        // Until then the range is a mapping of its own: nothing is split, so the call wants no mapping.
        // SAFETY: mapped just now.
        in_the_end(|| unsafe { libc::madvise(got, bytes, advice) })?;
    }
    Ok(())
}

fn protection(read: bool, write: bool) -> libc::c_int {
    let read = if read { libc::PROT_READ } else { libc::PROT_NONE };
    read | if write { libc::PROT_WRITE } else { 0 }
}

/// What the program may do with `bytes` bytes at `at`. When it forbids stores, none can land any more when it returns.
/// Signal-safe.
///
/// # Safety
/// As [`guard`].
pub(crate) unsafe fn protect(at: usize, bytes: usize, read: bool, write: bool) -> Result<(), i32> {
    let prot = protection(read, write);
    // SAFETY: the caller's.
    let call = || unsafe { libc::mprotect(ptr::without_provenance_mut(at), bytes, prot) };
    if read && write { in_the_end(call) } else { again(call) }.map(drop)
}

/// A call that would have split a mapping.
pub(crate) fn too_many_mappings(call: &'static str, code: i32) -> Error {
    let text = "the window could not be split further; raise vm.max_map_count".into();
    Error::System(DeviceError::Driver { call, code, text })
}

/// Turns a 2 MiB range of a shared mapping into one huge folio under one page-table entry; false where the kernel declines.
/// Signal-safe.
///
/// # Safety
/// The range lies in a shared mapping of the engine's.
pub(crate) unsafe fn collapse(at: usize, bytes: usize) -> bool {
    let saved = errno();
    // SAFETY: the caller's; contents stay.
    let ok = once(|| unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, MADV_COLLAPSE) }).is_ok();
    set_errno(saved);
    ok
}

/// Gives every page of a shared mapping's range storage and maps it for writing, so that a copy into it takes no faults.
///
/// # Safety
/// The range lies in a shared mapping of the engine's.
pub(crate) unsafe fn populate_write(at: usize, bytes: usize) -> io::Result<()> {
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    // SAFETY: the caller's.
    again(|| unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, MADV_POPULATE_WRITE) })
        .map(drop)
        .map_err(io::Error::from_raw_os_error)
}

/// As [`populate_write`], for a copy out of it.
///
/// # Safety
/// The range lies in a shared mapping of the engine's.
pub(crate) unsafe fn populate_read(at: usize, bytes: usize) -> io::Result<()> {
    const MADV_POPULATE_READ: libc::c_int = 22;
    // SAFETY: the caller's.
    again(|| unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, MADV_POPULATE_READ) })
        .map(drop)
        .map_err(io::Error::from_raw_os_error)
}

/// Whether any byte of `range` has storage.
pub(crate) fn has_data(fd: &OwnedFd, range: &Range<u64>) -> bool {
    // SAFETY: our own descriptor, whose position nobody uses.
    let next = unsafe { libc::lseek(fd.as_raw_fd(), range.start as i64, libc::SEEK_DATA) };
    next >= 0 && (next as u64) < range.end
}

/// Bytes of storage that a file has.
pub(crate) fn stored(fd: &OwnedFd) -> u64 {
    // SAFETY: plain old data for which all bits zero is a value; the call writes it.
    let s = unsafe {
        let mut s: libc::stat = std::mem::zeroed();
        libc::fstat(fd.as_raw_fd(), &mut s);
        s
    };
    s.st_blocks as u64 * 512
}

/// Frees the storage of `range` (bytes of the file); it reads as zeros afterwards, through every mapping.
pub(crate) fn punch_hole(fd: &OwnedFd, range: Range<u64>) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // Offsets lie within a file whose size fitted `off_t`.
    // SAFETY: our own descriptor.
    in_the_end(|| unsafe { libc::fallocate(fd.as_raw_fd(), mode, range.start as i64, (range.end - range.start) as i64) })
        .map(drop)
        .map_err(io::Error::from_raw_os_error)
}

/// The parts of `range` of a memory file of the engine's that have storage, by units of `unit` bytes (see [`each_extent`]).
pub(crate) fn extents(fd: RawFd, range: Range<u64>, unit: u64) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let Ok(()) = each_extent(fd, range, unit, |part| {
        out.push(part);
        Ok::<(), Infallible>(())
    });
    out
}

/// Reads bytes `range` of a file to `to`. A file that ends before is an error.
///
/// # Safety
/// `to` can be written for as many bytes, and nobody else uses them.
pub(crate) unsafe fn read_at(fd: RawFd, to: *mut u8, range: Range<u64>) -> io::Result<()> {
    transfer(range, |done, left, at| {
        // SAFETY: the caller's.
        unsafe { libc::pread(fd, to.add(done).cast(), left, at) }
    })
}

/// Writes the bytes at `from` to bytes `range` of a file.
///
/// # Safety
/// `from` can be read for as many bytes, and nobody writes them.
pub(crate) unsafe fn write_at(fd: RawFd, from: *const u8, range: Range<u64>) -> io::Result<()> {
    files::within_limits(|| {
        transfer(range, |done, left, at| {
            // SAFETY: the caller's.
            unsafe { libc::pwrite(fd, from.add(done).cast(), left, at) }
        })
    })
}

/// Calls `part(bytes done, bytes left, file offset)` until all of `range` is done.
fn transfer(range: Range<u64>, mut part: impl FnMut(usize, usize, libc::off_t) -> isize) -> io::Result<()> {
    let (mut at, end) = (range.start, range.end);
    while at < end {
        let offset = libc::off_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let mut bytes = 0;
        again(|| {
            bytes = part((at - range.start) as usize, (end - at) as usize, offset);
            bytes.min(0) as libc::c_int
        })
        .map_err(io::Error::from_raw_os_error)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += bytes as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_follow_writes_and_punches() {
        let fd = memory_file(c"test", 16 << 20).unwrap();
        let m = Mapping::shared(&fd, 16 << 20, 2 << 20, 0).unwrap();
        m.open(0..16 << 20).unwrap();
        assert_eq!(m.base().as_ptr().addr() % (2 << 20), 0);
        assert!(extents(fd.as_raw_fd(), 0..16 << 20, 4096).is_empty());
        // SAFETY: inside our mapping.
        unsafe { m.base().as_ptr().add(8192).write(7) };
        assert_eq!(extents(fd.as_raw_fd(), 0..16 << 20, 4096), vec![8192..12288]);
        assert_eq!(extents(fd.as_raw_fd(), 0..8192, 4096), []);
        punch_hole(&fd, 0..1 << 20).unwrap();
        assert!(extents(fd.as_raw_fd(), 0..16 << 20, 4096).is_empty());
        // SAFETY: inside our mapping.
        assert_eq!(unsafe { m.base().as_ptr().add(8192).read() }, 0);
    }
}
