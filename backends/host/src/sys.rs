//! The few system calls that the device needs, with their results checked.
//!
//! **Guarantee:** no failure passes unseen; errors carry errno and the remedy where one is known. A call that was interrupted, or
//! that the system asks to be made again, is made again. What gives something back is asked for until it is done. No state, no locks.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::thread::{self, JoinHandle};

use sterna_hal::DeviceError;

use crate::{limits, locked};

/// Turns small pages into huge ones (Linux 6.1). `libc` has it for glibc only.
pub const MADV_COLLAPSE: libc::c_int = 25;

/// The unit that the kernel maps in one piece where it can, and to which ranges are aligned.
pub const BLOCK: u64 = 2 << 20;

/// Fails because of what the caller passed.
#[must_use]
pub fn invalid(call: &'static str, text: impl Into<String>) -> DeviceError {
    DeviceError::Driver { call, code: libc::EINVAL, text: text.into() }
}

/// Fails because a test asked for it.
#[must_use]
pub fn injected(call: &'static str) -> DeviceError {
    DeviceError::Driver { call, code: libc::EIO, text: "failure injected by a test".into() }
}

/// Bytes as a length of this host.
///
/// # Panics
/// On a host that is not 64-bit.
#[must_use]
pub fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a 64-bit host")
}

/// The system calls made here, for tests that have one fail.
#[cfg(feature = "planted")]
pub static CALLS: sterna_hal::failing::Calls = sterna_hal::failing::Calls::new();

/// Makes a call; its error if it gives `failure`.
fn once<T: PartialEq>(failure: T, call: impl FnOnce() -> T) -> io::Result<T> {
    #[cfg(feature = "planted")]
    if let Some(code) = CALLS.due() {
        return Err(io::Error::from_raw_os_error(code));
    }
    let result = call();
    if result == failure { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a call, and makes it again where the system asks for that; `also` names another error that it is made again for.
fn retried<T: PartialEq + Copy>(failure: T, also: Option<i32>, mut call: impl FnMut() -> T) -> io::Result<T> {
    // EAGAIN may stay: more memory is locked than a limit allows.
    const TRIES: usize = 8;
    for _ in 1..TRIES {
        match once(failure, &mut call) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) || e.raw_os_error() == also => {}
            result => return result,
        }
    }
    once(failure, call)
}

/// Makes a call.
pub(crate) fn again<T: PartialEq + Copy>(failure: T, call: impl FnMut() -> T) -> io::Result<T> {
    retried(failure, None, call)
}

/// As [`again`], for what has to be done in the end: a system short of memory is asked some more times.
fn in_the_end<T: PartialEq + Copy>(failure: T, call: impl FnMut() -> T) -> io::Result<T> {
    retried(failure, Some(libc::ENOMEM), call)
}

/// Removes a mapping.
///
/// # Safety
/// The caller's own, which nobody uses.
unsafe fn unmap(at: *mut u8, bytes: usize) {
    // SAFETY: the caller's. What the system does not remove stays mapped, and is never used again.
    let _ = in_the_end(-1, || unsafe { libc::munmap(at.cast(), bytes) });
}

/// Starts a thread.
///
/// # Errors
/// What the system says, and what helps.
pub fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    // Where a test has it fail; never interrupted.
    let asked = once(-1, || 0).map(drop).or_else(|e| if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) });
    asked.and_then(|()| thread::Builder::new().name(name).spawn(run))
}

/// What became of a thread that could not be started, with what helps.
#[must_use]
pub fn no_thread(error: &io::Error) -> DeviceError {
    let code = error.raw_os_error().unwrap_or(libc::EAGAIN);
    DeviceError::Driver { call: "pthread_create", code, text: format!("{error}; {}", limits::for_threads()) }
}

/// As [`unblock_faults`], the first time that a thread calls it: for threads of the program, which a fault would end that has them
/// blocked, and which the threads of drivers inherit from. Who blocks them again afterwards means it.
pub fn accept_faults() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        unblock_faults();
    }
}

/// For the first line of a thread that runs kernels: it must be able to take the signals of absent pages, whatever the thread that
/// made it had blocked.
pub fn unblock_faults() {
    // SAFETY: an initialised set on the stack; changes this thread's mask only.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGSEGV);
        libc::sigaddset(&mut set, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
}

/// A failed call, with what helps.
fn failed(call: &'static str, error: &io::Error, otherwise: &str) -> DeviceError {
    match error.raw_os_error() {
        Some(code @ (libc::ENOMEM | libc::EAGAIN)) => {
            DeviceError::Driver { call, code, text: format!("{error}; {}", limits::for_memory(code, otherwise)) }
        }
        _ => DeviceError::os(call, error),
    }
}

/// Bytes a page of this host.
#[must_use]
pub fn page_size() -> u64 {
    // SAFETY: no memory is involved.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// How many bytes of memory of this process have no storage, or none in memory, in steps of 2 MiB from the page of `at` on; all of a step
/// where that cannot be told. Of a memory file's mapping the file itself is not asked for its next hole: for the answer it would look at
/// every page up to there.
fn bare(at: usize, end: usize) -> impl Iterator<Item = u64> {
    const PAGE: usize = 4096;
    const STEP: usize = 2 << 20;
    let mut pages = [0_u8; STEP / PAGE];
    (at / PAGE * PAGE..end).step_by(STEP).map(move |from| {
        let bytes = (end - from).min(STEP);
        // SAFETY: the vector has a byte for each page; of the addresses nothing is read.
        let known = again(-1, || unsafe { libc::mincore(ptr::without_provenance_mut(from), bytes, pages.as_mut_ptr()) });
        let bare = pages[..bytes.div_ceil(PAGE)].iter().filter(|p| known.is_err() || **p & 1 == 0).count();
        (bare * PAGE) as u64
    })
}

/// Whether every page of a mapping of a memory file's has storage, and in memory.
pub(crate) fn stored(at: NonNull<u8>, bytes: u64) -> bool {
    let at = at.as_ptr().addr();
    bare(at, at + to_usize(bytes)).all(|bytes| bytes == 0)
}

/// How many bytes of memory of this process, from page to page, have no storage; all of them where that cannot be told.
pub(crate) fn lacking(at: usize, bytes: usize) -> u64 {
    bare(at, at + bytes).sum()
}

/// Gives memory of this process, from page to page, storage where it has none; tells whether that was done. Changes no byte.
pub(crate) fn populate(at: usize, bytes: usize) -> bool {
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    // SAFETY: the contents of what is there do not change, and what is not there is refused.
    again(-1, || unsafe { libc::madvise(ptr::without_provenance_mut(at), bytes, MADV_POPULATE_WRITE) }).is_ok()
}

/// Frees the storage of a part of a file, which reads as zeros from then on; tells whether that was done.
pub(crate) fn punch(fd: BorrowedFd<'_>, at: u64, bytes: u64) -> bool {
    let (Ok(at), Ok(bytes)) = (libc::off_t::try_from(at), libc::off_t::try_from(bytes)) else { return false };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory of Rust's is involved.
    once(-1, || unsafe { libc::fallocate(fd.as_raw_fd(), mode, at, bytes) }).is_ok()
}

/// What a stretch of addresses shows.
#[derive(Clone, Copy)]
pub(crate) enum Backing<'a> {
    /// A file from this offset, shared; optionally with all its pages entered in the page table at once.
    File { fd: BorrowedFd<'a>, offset: u64, writable: bool, populate: bool },
    /// Nothing: every access faults.
    Nothing,
    /// A file from its start, shared, that faults at every access until it is opened: see [`Mapped::open`].
    Closed(BorrowedFd<'a>),
    /// Zeros that are shared by nobody, and fault until they are opened.
    Scratch,
}

/// What there is to do about it.
pub const TOO_MANY_MAPPINGS: &str = "too many separate mappings: raise vm.max_map_count (sysctl), or use a larger grain";

/// Closes what is mapped at `at` to every access, for a process that has used up its mappings: where a whole mapping is meant, or
/// nothing that is not closed already, this needs none, and a new mapping would, even in the place of nothing.
fn closed(at: Option<NonNull<u8>>, bytes: u64) -> Option<*mut libc::c_void> {
    let at = at?.as_ptr().cast();
    // SAFETY: the caller of `map` owns the addresses.
    again(-1, || unsafe { libc::mprotect(at, to_usize(bytes), libc::PROT_NONE) }).ok().map(|_| at)
}

/// Maps `backing` at `at`, not inherited by forked children and in no core dump, replacing what was there, or anywhere if `at` is
/// `None`. What is large is closed first, and never locked: a program that locks its memory would have it filled.
///
/// # Safety
/// `at` is a stretch of page-aligned address space that the caller owns and in which nobody relies on the replaced mapping.
pub(crate) unsafe fn map(at: Option<NonNull<u8>>, bytes: u64, backing: Backing<'_>) -> Result<NonNull<u8>, DeviceError> {
    let fixed = if at.is_some() { libc::MAP_FIXED } else { 0 };
    let sparse = libc::MAP_SHARED | libc::MAP_NORESERVE;
    let (prot, flags, fd, offset) = match backing {
        Backing::File { fd, offset, writable, populate } => {
            let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
            let populate = if populate { libc::MAP_POPULATE } else { 0 };
            (prot, libc::MAP_SHARED | populate, fd.as_raw_fd(), offset)
        }
        Backing::Nothing => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0),
        Backing::Closed(fd) => (libc::PROT_NONE, sparse, fd.as_raw_fd(), 0),
        Backing::Scratch => (libc::PROT_NONE, sparse | libc::MAP_ANONYMOUS, -1, 0),
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| invalid("mmap", format!("file offset {offset}")))?;
    let hint = at.map_or(ptr::null_mut(), NonNull::as_ptr);
    let call = || {
        // SAFETY: either the kernel chooses free addresses, or the caller owns those that are replaced.
        unsafe { locked::map(hint.cast(), to_usize(bytes), prot, flags | fixed, fd, offset) }.unwrap_or(libc::MAP_FAILED)
    };
    // To take something away is never refused for good.
    let tried = match backing {
        Backing::Nothing => in_the_end(libc::MAP_FAILED, call).or_else(|e| closed(at, bytes).ok_or(e)),
        _ => again(libc::MAP_FAILED, call),
    };
    let p = tried.map_err(|e| {
        let remedy =
            if at.is_some() { TOO_MANY_MAPPINGS } else { "let the kernel give out addresses (vm.overcommit_memory)" };
        failed("mmap", &e, remedy)
    })?;
    if !matches!(backing, Backing::File { .. }) {
        // SAFETY: the mapping just made. An old kernel's refusal leaves it as it is.
        let _ = unsafe { locked::unlocked(p, to_usize(bytes)) };
    }
    // Not for a forked child, which has no engine to keep it right. Neighbours merge only if all have it, hence on every mapping. And
    // in no core dump, which would have what is shared as a whole. Best effort: a kernel that has run out of mappings may refuse.
    let dumped = matches!(backing, Backing::Nothing); // what was never anything is in none
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP].into_iter().take(if dumped { 1 } else { 2 }) {
        // SAFETY: the mapping just made.
        let _ = again(-1, || unsafe { libc::madvise(p, to_usize(bytes), advice) });
    }
    NonNull::new(p.cast()).ok_or_else(|| invalid("mmap", "mapped at address 0"))
}

/// Lets loads and stores into a mapping that was closed.
///
/// # Safety
/// The caller's own.
pub(crate) unsafe fn open(at: NonNull<u8>, bytes: u64) -> Result<(), DeviceError> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's.
    again(-1, || unsafe { libc::mprotect(at.as_ptr().cast(), to_usize(bytes), prot) })
        .map(drop)
        .map_err(|e| failed("mprotect", &e, TOO_MANY_MAPPINGS))
}

/// A mapping of this process's own, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapped {
    base: NonNull<u8>,
    bytes: u64,
}

// SAFETY: it is addresses; what lies behind them is accessed by unsafe code only, each with its own reason.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `backing` somewhere, aligned to [`BLOCK`].
    pub(crate) fn new(bytes: u64, backing: Backing<'_>) -> Result<Self, DeviceError> {
        // Reserve one block more than needed, give back both ends, and put the backing into what remains.
        // SAFETY: the kernel chooses free addresses.
        let raw = unsafe { map(None, bytes + BLOCK, Backing::Nothing)? };
        let skip = raw.as_ptr().align_offset(to_usize(BLOCK));
        // SAFETY: inside the reservation.
        let base = unsafe { raw.add(skip) };
        let this = Self { base, bytes };
        // SAFETY: the first and the last part of a reservation that nobody knows of yet.
        unsafe {
            if skip > 0 {
                unmap(raw.as_ptr(), skip);
            }
            unmap(base.as_ptr().add(to_usize(bytes)), to_usize(BLOCK) - skip);
        }
        if !matches!(backing, Backing::Nothing) {
            // SAFETY: replaces our own reservation.
            unsafe { map(Some(base), bytes, backing)? };
        }
        Ok(this)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pointer `offset` bytes behind the base.
    pub(crate) fn at(&self, offset: u64) -> NonNull<u8> {
        debug_assert!(offset <= self.bytes);
        // SAFETY: inside the mapping or one past its end: every caller has checked the offset.
        unsafe { self.base.add(to_usize(offset)) }
    }

    /// Lets loads and stores into its first `bytes` bytes.
    pub(crate) fn open(&self, bytes: u64) -> Result<(), DeviceError> {
        debug_assert!(bytes <= self.bytes);
        // SAFETY: our own mapping.
        unsafe { open(self.base, bytes) }
    }

    /// Gives advice about a part; tells whether the kernel took it.
    pub(crate) fn advise(&self, offset: u64, bytes: u64, advice: i32) -> bool {
        debug_assert!(offset + bytes <= self.bytes);
        // SAFETY: a part of our own mapping, and none of the advice used here changes its contents.
        once(-1, || unsafe { libc::madvise(self.at(offset).as_ptr().cast(), to_usize(bytes), advice) }).is_ok()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our own mapping; its owner has made sure that nobody uses it any more.
        unsafe { unmap(self.base.as_ptr(), to_usize(self.bytes)) };
    }
}
