//! Mappings of a program that locks its memory (`mlockall`, `RLIMIT_MEMLOCK`).
//!
//! **Guarantee.** Where the limit on locked memory forbids a mapping because all future ones are to be locked (`MCL_FUTURE`), it is made
//! without the lock; [`unlocked`] takes the lock off one that has it. Memory that moves cannot be locked, and memory of which a
//! little is used must not be filled. No state, no locks; everything here may be called from a signal handler.

use std::ptr;

/// The error that the last call left.
pub(crate) fn errno() -> i32 {
    // SAFETY: errno's address is always valid for this thread.
    unsafe { *libc::__errno_location() }
}

/// As `mmap` with [`libc::MAP_SHARED`], or for addresses without access: what `EAGAIN` refuses since it would be locked is mapped
/// without the lock. With `MAP_FIXED` it replaces what is there in one step, either way.
///
/// # Errors
/// The system's error code.
///
/// # Safety
/// As `mmap`.
pub unsafe fn map(
    at: *mut libc::c_void,
    bytes: usize,
    prot: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: libc::off_t,
) -> Result<*mut libc::c_void, i32> {
    // SAFETY: the caller's.
    let got = unsafe { libc::mmap(at, bytes, prot, flags, fd, offset) };
    if got != libc::MAP_FAILED {
        return Ok(got);
    }
    match errno() {
        // SAFETY: the caller's.
        libc::EAGAIN => unsafe { grown(at, bytes, prot, flags, fd, offset) },
        code => Err(code),
    }
}

/// One page is mapped, its lock is taken off, and it grows: a mapping that grows keeps its own flags, whatever new ones get.
///
/// # Safety
/// As `mmap`.
unsafe fn grown(
    at: *mut libc::c_void,
    bytes: usize,
    prot: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: libc::off_t,
) -> Result<*mut libc::c_void, i32> {
    let page = crate::sys::to_usize(crate::sys::page_size());
    let fixed = flags & libc::MAP_FIXED != 0;
    // SAFETY: at an address that the kernel chooses; without access nothing is filled in.
    let seed = unsafe { libc::mmap(ptr::null_mut(), page, libc::PROT_NONE, flags & !libc::MAP_FIXED, fd, offset) };
    if seed == libc::MAP_FAILED {
        return Err(errno());
    }
    let moves = libc::MREMAP_MAYMOVE | if fixed { libc::MREMAP_FIXED } else { 0 };
    // SAFETY: the page just mapped, which nobody knows of; the addresses that it grows to are free, or the caller's.
    unsafe {
        if libc::munlock(seed, page) == 0 && (prot == libc::PROT_NONE || libc::mprotect(seed, page, prot) == 0) {
            let got =
                if fixed { libc::mremap(seed, page, bytes, moves, at) } else { libc::mremap(seed, page, bytes, moves) };
            if got != libc::MAP_FAILED {
                return Ok(got);
            }
        }
        let code = errno();
        libc::munmap(seed, page);
        Err(code)
    }
}

/// Takes the lock off a whole mapping, which costs little where it has none.
///
/// # Errors
/// The system's error code.
///
/// # Safety
/// The caller's own mapping.
pub unsafe fn unlocked(at: *mut libc::c_void, bytes: usize) -> Result<(), i32> {
    // SAFETY: the caller's; contents stay.
    if unsafe { libc::munlock(at, bytes) } == 0 { Ok(()) } else { Err(errno()) }
}

/// Takes bytes of a mapping out of the page table, locked or not, as `madvise` does: what is shared keeps its contents, what is private
/// becomes zeros.
///
/// # Safety
/// The caller's own mapping.
pub unsafe fn discard(at: *mut libc::c_void, bytes: usize) -> libc::c_int {
    const MADV_DONTNEED_LOCKED: libc::c_int = 24; // Linux 5.18
    // SAFETY: the caller's.
    unsafe {
        if libc::madvise(at, bytes, libc::MADV_DONTNEED) == 0 {
            return 0;
        }
        if errno() != libc::EINVAL {
            return -1;
        }
        if libc::madvise(at, bytes, MADV_DONTNEED_LOCKED) == 0 {
            return 0;
        }
        if errno() != libc::EINVAL || libc::munlock(at, bytes) != 0 {
            return -1;
        }
        libc::madvise(at, bytes, libc::MADV_DONTNEED)
    }
}

/// Whether new mappings of this process are locked (`mlockall` with `MCL_FUTURE`).
#[must_use]
pub fn all_new_ones() -> bool {
    let page = crate::sys::to_usize(crate::sys::page_size());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a page of our own without access, gone again at the end. Advice to drop it is refused only where it is locked.
    unsafe {
        let probe = libc::mmap(ptr::null_mut(), page, libc::PROT_NONE, flags, -1, 0);
        if probe == libc::MAP_FAILED {
            return errno() == libc::EAGAIN;
        }
        let locked = libc::madvise(probe, page, libc::MADV_DONTNEED) != 0 && errno() == libc::EINVAL;
        libc::munmap(probe, page);
        locked
    }
}
