//! Files in memory, and descriptors.
//!
//! **Guarantee.** A descriptor that is made here is none of 0 to 2, which are the program's, open or not. A file that would become longer
//! than a limit allows is an error and no signal. No state, no locks.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use sterna_hal::DeviceError;

use crate::limits;
use crate::sys::{again, invalid};

/// The first descriptor that is not one of the standard ones.
const FIRST: libc::c_int = 3;

/// What became of a call, with what helps.
fn failed(call: &'static str, error: &io::Error, otherwise: &str) -> DeviceError {
    let code = error.raw_os_error().unwrap_or(libc::EIO);
    DeviceError::Driver { call, code, text: format!("{error}; {}", limits::for_memory(code, otherwise)) }
}

/// Takes a descriptor that a call gave.
///
/// # Safety
/// Nobody else has it.
unsafe fn taken(fd: libc::c_int) -> Result<OwnedFd, DeviceError> {
    // SAFETY: the caller's.
    high(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The same file under a number that is not 0 to 2: what a program that has closed those opens next is meant to get them.
///
/// # Errors
/// There are no more descriptors.
pub fn high(fd: OwnedFd) -> Result<OwnedFd, DeviceError> {
    if fd.as_raw_fd() >= FIRST { Ok(fd) } else { dup(fd.as_fd()) }
}

/// A second descriptor of the same file, closed on exec.
///
/// # Errors
/// There are no more descriptors.
pub fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, DeviceError> {
    // SAFETY: no memory is involved.
    let fd = again(-1, || unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST) })
        .map_err(|e| failed("fcntl", &e, "free some memory"))?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes calls that lengthen or write files. Where one goes beyond the limit on a file's size (`ulimit -f`), it fails with `EFBIG`, and
/// the signal that comes with that (`SIGXFSZ`) ends nothing.
pub fn within_limits<R>(calls: impl FnOnce() -> R) -> R {
    if limits::of(libc::RLIMIT_FSIZE).is_none() {
        return calls();
    }
    // SAFETY: initialised sets on the stack. The signal is this thread's own, and pending only if the calls have raised it: it was
    // looked for before.
    unsafe {
        let (mut only, mut before, mut pending) = (empty(), empty(), empty());
        libc::sigaddset(&mut only, libc::SIGXFSZ);
        libc::sigpending(&mut pending);
        let was_pending = libc::sigismember(&pending, libc::SIGXFSZ) == 1;
        libc::pthread_sigmask(libc::SIG_BLOCK, &only, &mut before);
        let result = calls();
        let saved = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if !was_pending {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&only, ptr::null_mut(), &now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        *libc::__errno_location() = saved;
        result
    }
}

fn empty() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// A memory file of `bytes` bytes that takes memory only where it is touched. Where a sandbox forbids `memfd_create` it is a file
/// without a name in `/dev/shm`, which is the same to everybody but has that file system's limit.
///
/// # Errors
/// Descriptors, a limit on a file's size, or a sandbox; the text says what helps.
pub fn memory(name: &CStr, bytes: u64) -> Result<OwnedFd, DeviceError> {
    let length = libc::off_t::try_from(bytes).map_err(|_| invalid("ftruncate", format!("{bytes} bytes of memory")))?;
    // SAFETY: the name is a C string.
    let made = again(-1, || unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) });
    let fd = match made {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) => unsafe { taken(fd) }?,
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EACCES)) => nameless(&e)?,
        Err(e) => return Err(failed("memfd_create", &e, "free some memory")),
    };
    // SAFETY: no memory is involved.
    within_limits(|| again(-1, || unsafe { libc::ftruncate(fd.as_raw_fd(), length) }))
        .map_err(|e| failed("ftruncate", &e, "choose a smaller memory budget"))?;
    // For `/dev/udmabuf`, which makes DMA buffers of files that cannot be shortened; nothing else depends on it.
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    Ok(fd)
}

/// A file in `/dev/shm` that has no name; `refused` is why it is asked for.
fn nameless(refused: &io::Error) -> Result<OwnedFd, DeviceError> {
    const FOLDER: &CStr = c"/dev/shm";
    const TMPFS: u64 = 0x0102_1994;
    let sandbox = |e: &io::Error| {
        let code = refused.raw_os_error().unwrap_or(libc::EPERM);
        let text = format!(
            "{refused}; a sandbox forbids it, and a file in /dev/shm cannot take its place ({e}): allow one of the two"
        );
        DeviceError::Driver { call: "memfd_create", code, text }
    };
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path is a C string.
    let fd = again(-1, || unsafe { libc::open(FOLDER.as_ptr(), flags, 0o600) }).map_err(|e| sandbox(&e))?;
    // SAFETY: a new descriptor that nobody else has.
    let fd = unsafe { taken(fd) }?;
    let mut kind = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: writes `kind` only, for which all bits zero is a value.
    let kind = unsafe {
        libc::fstatfs(fd.as_raw_fd(), kind.as_mut_ptr());
        kind.assume_init()
    };
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "its type differs between the C libraries")]
    if kind.f_type as u64 != TMPFS {
        return Err(sandbox(&io::Error::other("it is no file system in memory")));
    }
    Ok(fd)
}

/// Bytes that the file system of a memory file has in all and left, where it limits them.
#[must_use]
pub fn space(file: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let mut s = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: writes `s` only, for which all bits zero is a value.
    let (ok, s) = unsafe { (libc::fstatvfs(file.as_raw_fd(), s.as_mut_ptr()) == 0, s.assume_init()) };
    #[allow(clippy::useless_conversion, reason = "not everywhere a u64")]
    let (all, left, unit) = (u64::from(s.f_blocks), u64::from(s.f_bavail), u64::from(s.f_frsize));
    (ok && all > 0).then_some((all * unit, left * unit))
}

/// Keeps numbers 0 to 2 taken while it lives, where they are free: for calls of others that open files.
#[derive(Debug)]
pub struct Standard(#[expect(dead_code, reason = "they are closed when it is dropped")] Vec<OwnedFd>);

impl Standard {
    /// Takes those that are free.
    #[must_use]
    pub fn hold() -> Self {
        let mut held = Vec::new();
        // Each open gives the lowest free number.
        // SAFETY: no memory is involved.
        while (0..FIRST).any(|n| unsafe { libc::fcntl(n, libc::F_GETFD) } < 0) && held.len() < FIRST as usize {
            // SAFETY: the path is a C string.
            let fd = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
            if fd < 0 {
                break;
            }
            // SAFETY: a new descriptor that nobody else has.
            held.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        Self(held)
    }
}
