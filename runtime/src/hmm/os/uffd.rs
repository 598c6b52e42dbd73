//! userfaultfd: the system call and its ioctls, as functions.
//!
//! Types and numbers come from `linux-raw-sys`; what each call does here, and what it costs, stands in `docs/host-faults.md`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use linux_raw_sys::general as sys;
use linux_raw_sys::ioctl as nr;

use super::{again, errno, once};

const USER_MODE_ONLY: libc::c_int = 1;

/// An open userfaultfd.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    stores: bool,
}

/// Pages that are in the storage but not mapped.
pub(crate) const MINOR: u64 = 4;
/// Pages that have no storage.
pub(crate) const MISSING: u64 = 1;
/// Stores to pages that are mapped for loads only; where [`Uffd::watches_stores`].
pub(crate) const STORES: u64 = 2;

/// A fault as the kernel reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    /// Page-aligned address in the window.
    pub(crate) at: usize,
    /// It was a store.
    pub(crate) store: bool,
    /// The thread that touched, by the number that it has in its own process.
    pub(crate) thread: u32,
}

impl Uffd {
    /// Opens one whose faults are messages and which also serves the kernel's own accesses (needs the privilege).
    pub(crate) fn full() -> io::Result<Self> {
        Self::open(libc::O_NONBLOCK, u64::from(sys::UFFD_FEATURE_MINOR_SHMEM | sys::UFFD_FEATURE_THREAD_ID))
    }

    /// Opens one whose faults raise SIGBUS in the faulting thread; for everybody.
    pub(crate) fn sigbus() -> io::Result<Self> {
        Self::open(USER_MODE_ONLY, u64::from(sys::UFFD_FEATURE_MINOR_SHMEM | sys::UFFD_FEATURE_SIGBUS))
    }

    fn open(flags: libc::c_int, features: u64) -> io::Result<Self> {
        // Linux 5.19 has stores to shared memory reported. Asked for and not had, the descriptor is of no more use.
        let stores = u64::from(sys::UFFD_FEATURE_PAGEFAULT_FLAG_WP | sys::UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
        Self::open_with(flags, features | stores, true).or_else(|_| Self::open_with(flags, features, false))
    }

    fn open_with(flags: libc::c_int, features: u64, stores: bool) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = again(|| unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) as libc::c_int })
            .map_err(io::Error::from_raw_os_error)?;
        // SAFETY: a descriptor of our own.
        let fd = super::high(unsafe { OwnedFd::from_raw_fd(fd) }).map_err(io::Error::other)?;
        let this = Self { fd, stores };
        let mut api = sys::uffdio_api { api: u64::from(sys::UFFD_API), features, ioctls: 0 };
        this.until_done(nr::UFFDIO_API, &mut api).map_err(io::Error::from_raw_os_error)?;
        Ok(this)
    }

    fn ioctl<T>(&self, request: u32, arg: &mut T) -> Result<(), i32> {
        // SAFETY: `arg` is the structure that this request takes: each caller pairs them.
        once(|| unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::c_ulong::from(request) as _, std::ptr::from_mut(arg)) })
            .map(drop)
    }

    /// As [`ioctl`](Self::ioctl), for requests that may be made again as they are.
    fn until_done<T>(&self, request: u32, arg: &mut T) -> Result<(), i32> {
        const TRIES: usize = 8;
        for _ in 1..TRIES {
            match self.ioctl(request, arg) {
                Err(libc::EINTR | libc::EAGAIN | libc::ENOMEM) => {}
                result => return result,
            }
        }
        self.ioctl(request, arg)
    }

    fn range(at: usize, bytes: usize) -> sys::uffdio_range {
        sys::uffdio_range { start: at as u64, len: bytes as u64 }
    }

    /// Reports faults of the given modes in the range, instead of the modes reported before. Splits and joins mappings.
    pub(crate) fn register(&self, at: usize, bytes: usize, modes: u64) -> Result<(), i32> {
        let mut arg = sys::uffdio_register { range: Self::range(at, bytes), mode: modes, ioctls: 0 };
        self.until_done(nr::UFFDIO_REGISTER, &mut arg)
    }

    /// Reports no more faults in the range.
    pub(crate) fn unregister(&self, at: usize, bytes: usize) {
        // Fails only for a range that was never registered.
        let _ = self.until_done(nr::UFFDIO_UNREGISTER, &mut Self::range(at, bytes));
    }

    /// Looks whether pages can be mapped so that stores to them are reported (Linux 6.4); `at` is a page that nobody uses.
    pub(crate) fn probe_stores(&mut self, at: usize) {
        if !self.stores {
            return;
        }
        // There is no storage, which is what a kernel that knows the mode says.
        self.stores = self.register(at, 4096, MINOR | STORES).is_ok() && self.map(at, 4096, false) == Err(libc::EFAULT);
        self.unregister(at, 4096);
    }

    /// Whether stores to mapped pages can be reported.
    pub(crate) fn watches_stores(&self) -> bool {
        self.stores
    }

    /// Reports stores to the range no more; whoever waits in it is woken. Signal-safe.
    pub(crate) fn admit_stores(&self, at: usize, bytes: usize) -> Result<(), i32> {
        let mut arg = sys::uffdio_writeprotect { range: Self::range(at, bytes), mode: 0 };
        self.until_done(nr::UFFDIO_WRITEPROTECT, &mut arg)
    }

    /// Maps pages that have storage; without `write`, stores to them are reported, where that was registered. Pages mapped
    /// already are skipped; whoever waits in the range is woken. Signal-safe.
    ///
    /// Fails with `EFAULT` where there is no storage.
    pub(crate) fn map(&self, at: usize, bytes: usize, write: bool) -> Result<(), i32> {
        const WP: u64 = 2; // UFFDIO_CONTINUE_MODE_WP
        let (start, end) = (at, at + bytes);
        let mut at = start;
        let (mut skipped, mut fruitless) = (false, 0);
        while at < end {
            let mut arg =
                sys::uffdio_continue { range: Self::range(at, end - at), mode: if write { 0 } else { WP }, mapped: 0 };
            match self.ioctl(nr::UFFDIO_CONTINUE, &mut arg) {
                Ok(()) => break,
                Err(e) => {
                    if arg.mapped > 0 {
                        at += arg.mapped as usize;
                    } else if e == libc::EEXIST {
                        (at, skipped) = (at + 4096, true);
                    } else if !matches!(e, libc::EAGAIN | libc::EINTR) || fruitless == super::INTERRUPTED {
                        return Err(e);
                    } else {
                        fruitless += 1;
                    }
                }
            }
        }
        if skipped {
            // What this call mapped it has woken.
            self.wake(start, bytes);
        }
        Ok(())
    }

    /// Gives pages that have no storage some, with the bytes that are at `from`, and maps them; wakes nobody. Says how many bytes came,
    /// in order: fewer where there is storage already, or where the bytes or memory fail. Signal-safe.
    pub(crate) fn copy(&self, at: usize, bytes: usize, from: *const u8) -> usize {
        const DONT_WAKE: u64 = 1; // UFFDIO_COPY_MODE_DONTWAKE
        let (mut done, mut fruitless) = (0, 0);
        while done < bytes {
            let (dst, src, len) = ((at + done) as u64, (from.addr() + done) as u64, (bytes - done) as u64);
            let mut arg = sys::uffdio_copy { dst, src, len, mode: DONT_WAKE, copy: 0 };
            match self.ioctl(nr::UFFDIO_COPY, &mut arg) {
                Ok(()) => return bytes,
                Err(_) if arg.copy > 0 => done += arg.copy as usize,
                Err(libc::EAGAIN | libc::EINTR) if fruitless < super::INTERRUPTED => fruitless += 1,
                Err(_) => break,
            }
        }
        done
    }

    /// Lets every thread that waits in the range try again. Signal-safe.
    pub(crate) fn wake(&self, at: usize, bytes: usize) {
        // Fails only for a range outside every registration, where nobody can wait.
        let _ = self.until_done(nr::UFFDIO_WAKE, &mut Self::range(at, bytes));
    }

    /// Sleeps until there are faults to [`read`](Self::read), or for no reason. False once `at_most` has passed.
    pub(crate) fn await_messages(&self, at_most: Option<Duration>) -> bool {
        let mut on = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let at_most = at_most.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: one descriptor, as said. What fails here fails in `read`.
        unsafe { libc::poll(&mut on, 1, at_most) != 0 }
    }

    /// Reads what faults there are, at most `out.len()` of them; does not wait.
    pub(crate) fn read(&self, out: &mut [Message; 16]) -> io::Result<usize> {
        // SAFETY: plain old data for which all bits zero is a value.
        let mut raw: [sys::uffd_msg; 16] = unsafe { std::mem::zeroed() };
        // SAFETY: the buffer is as long as said.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), raw.as_mut_ptr().cast(), size_of_val(&raw)) };
        if n < 0 {
            return match errno() {
                libc::EAGAIN | libc::EINTR => Ok(0),
                e => Err(io::Error::from_raw_os_error(e)),
            };
        }
        let mut k = 0;
        for m in &raw[..n as usize / size_of::<sys::uffd_msg>()] {
            if u32::from(m.event) == sys::UFFD_EVENT_PAGEFAULT {
                // SAFETY: the event says which member of the union is set.
                let (at, flags, thread) =
                    unsafe { (m.arg.pagefault.address, m.arg.pagefault.flags, m.arg.pagefault.feat.ptid) };
                let store = flags & u64::from(sys::UFFD_PAGEFAULT_FLAG_WRITE | sys::UFFD_PAGEFAULT_FLAG_WP) != 0;
                out[k] = Message { at: at as usize & !4095, store, thread };
                k += 1;
            }
        }
        Ok(k)
    }
}
