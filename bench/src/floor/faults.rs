//! Host faults as bare as they can be: a window and a view of one file, a userfaultfd over the window, and whoever serves copies
//! the bytes and puts them in. No state, no lock, no device: what is left is the kernel's part and the copy.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::{mem, ptr};

use linux_raw_sys::{general as sys, ioctl as nr};

use super::{FOLIO, File, MADV_COLLAPSE, Mapping, check};
use crate::measure::Pinned;

/// A userfaultfd that reports touches of pages of one mapping that have storage and are not mapped there.
#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// Opens one over `window`, whose faults are messages or, with `signal`, SIGBUS.
    pub(super) fn over(window: &Mapping, signal: bool) -> io::Result<Self> {
        const USER_MODE_ONLY: libc::c_int = 1;
        let (flags, signal) = if signal { (USER_MODE_ONLY, sys::UFFD_FEATURE_SIGBUS) } else { (0, 0) };
        // SAFETY: no memory is passed.
        let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) } as libc::c_int)?;
        // SAFETY: a descriptor of our own.
        let this = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let features = u64::from(sys::UFFD_FEATURE_MINOR_SHMEM | signal);
        this.ioctl(nr::UFFDIO_API, &mut sys::uffdio_api { api: u64::from(sys::UFFD_API), features, ioctls: 0 })?;
        let mode = u64::from(sys::UFFDIO_REGISTER_MODE_MINOR);
        let range = range(window.at.addr(), window.bytes);
        this.ioctl(nr::UFFDIO_REGISTER, &mut sys::uffdio_register { range, mode, ioctls: 0 })?;
        Ok(this)
    }

    fn ioctl<T>(&self, request: u32, arg: &mut T) -> io::Result<()> {
        // SAFETY: `arg` is the structure that this request takes: each caller pairs them.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::c_ulong::from(request) as _, ptr::from_mut(arg)) }).map(drop)
    }

    /// Maps pages that have storage, and wakes who waits there.
    pub(super) fn map(&self, at: usize, bytes: usize) -> io::Result<()> {
        self.ioctl(nr::UFFDIO_CONTINUE, &mut sys::uffdio_continue { range: range(at, bytes), mode: 0, mapped: 0 })
    }

    fn wake(&self, at: usize, bytes: usize) -> io::Result<()> {
        self.ioctl(nr::UFFDIO_WAKE, &mut range(at, bytes))
    }
}

fn range(at: usize, bytes: usize) -> sys::uffdio_range {
    sys::uffdio_range { start: at as u64, len: bytes as u64 }
}

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// A thread of its own reads a message.
    Message,
    /// The faulting thread, in a SIGBUS handler.
    Signal,
}

/// The raw mechanism over `source.bytes` bytes.
#[derive(Debug)]
pub(crate) struct RawFaults {
    how: How,
    uffd: Uffd,
    /// Where the bytes come from: stands for a device's memory. Without it nothing is copied, and the mechanism is all there is.
    source: Option<Mapping>,
    /// The file's bytes, always writable.
    view: Mapping,
    /// Where the program touches them.
    pub(crate) window: Mapping,
    /// Bytes a fault brings: 4 KiB, 64 KiB or 2 MiB.
    chunk: AtomicUsize,
}

/// What the SIGBUS handler serves.
static RAW: AtomicPtr<RawFaults> = AtomicPtr::new(ptr::null_mut());

impl RawFaults {
    /// Makes one that lasts until the process ends, with a source to copy from or without. With [`How::Message`] a handler thread stays
    /// on each of `cpus`.
    pub(crate) fn start(how: How, bytes: usize, cpus: &[usize], copies: bool) -> io::Result<&'static Self> {
        let source = copies.then(|| Mapping::in_folios(bytes)).transpose()?;
        let file = File::new(bytes)?;
        let (view, window) = (file.map()?, file.map()?);
        view.populate();
        let uffd = Uffd::over(&window, how == How::Signal)?;
        let this: &'static Self =
            Box::leak(Box::new(Self { how, uffd, source, view, window, chunk: AtomicUsize::new(FOLIO) }));
        match how {
            How::Message => {
                for cpu in cpus.iter().copied() {
                    std::thread::Builder::new().name("floor-fault".into()).spawn(move || this.read_messages(cpu))?;
                }
            }
            How::Signal => RAW.store(ptr::from_ref(this).cast_mut(), Ordering::Release),
        }
        Ok(this)
    }

    /// Serves a touch of `at`: false if it is not in the window. Signal-safe.
    fn serve(&self, at: usize) -> bool {
        let chunk = self.chunk.load(Ordering::Relaxed);
        let offset = at.wrapping_sub(self.window.at.addr());
        if offset >= self.window.bytes {
            return false;
        }
        let start = offset / chunk * chunk;
        self.copy(start, chunk);
        let at = self.window.at.addr() + start;
        // A failure shows at once: the touch faults again, for ever.
        if chunk == FOLIO {
            // SAFETY: our own mapping; contents stay.
            unsafe { libc::madvise(ptr::without_provenance_mut(at), chunk, MADV_COLLAPSE) };
            if self.how == How::Message {
                let _ = self.uffd.wake(at, chunk);
            }
        } else {
            let _ = self.uffd.map(at, chunk);
        }
        true
    }

    /// Copies bytes from the source, if there is one, without a fault.
    pub(crate) fn copy(&self, start: usize, bytes: usize) {
        assert!(start + bytes <= self.view.bytes, "inside the mappings");
        if let Some(source) = self.source {
            // SAFETY: inside all three mappings, of which only this row's threads use the part.
            unsafe { self.view.at.add(start).copy_from_nonoverlapping(source.at.add(start), bytes) };
        }
    }

    fn read_messages(&self, cpu: usize) {
        let _here = Pinned::to(cpu);
        // SAFETY: plain old data for which all zero is a value.
        let mut message: sys::uffd_msg = unsafe { mem::zeroed() };
        loop {
            // SAFETY: the buffer is as long as said.
            let n =
                unsafe { libc::read(self.uffd.0.as_raw_fd(), ptr::from_mut(&mut message).cast(), size_of_val(&message)) };
            if n > 0 && u32::from(message.event) == sys::UFFD_EVENT_PAGEFAULT {
                // SAFETY: the event says which member of the union is set.
                self.serve(unsafe { message.arg.pagefault.address } as usize);
            }
        }
    }

    /// Makes every chunk absent from the window, with new bytes in the source, and runs `touch`, whose faults bring `chunk` bytes.
    pub(crate) fn round<R>(&self, chunk: usize, byte: u8, touch: impl FnOnce(&Mapping) -> R) -> io::Result<R> {
        self.chunk.store(chunk, Ordering::Relaxed);
        self.window.unmap_pages()?;
        if let Some(source) = self.source {
            // SAFETY: our own mapping, which nobody else uses between rounds.
            unsafe { source.at.write_bytes(byte, source.bytes) };
        }
        let handler = (self.how == How::Signal).then(Handler::install).transpose()?;
        let result = touch(&self.window);
        drop(handler);
        Ok(result)
    }
}

/// The SIGBUS handler while it is installed; sterna's own handler is put back afterwards.
struct Handler(libc::sigaction);

impl Handler {
    fn install() -> io::Result<Self> {
        // SAFETY: all zero is a value of the structure; the handler is signal-safe and has the three-argument form.
        unsafe {
            let mut before: libc::sigaction = mem::zeroed();
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            check(libc::sigaction(libc::SIGBUS, &action, &mut before))?;
            Ok(Self(before))
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: puts back what was there.
        unsafe { libc::sigaction(libc::SIGBUS, &self.0, ptr::null_mut()) };
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo; the record is leaked and was stored before the handler was installed.
    let (at, raw) = unsafe { ((*info).si_addr().addr(), RAW.load(Ordering::Acquire).as_ref()) };
    if !raw.is_some_and(|r| r.serve(at)) {
        // SAFETY: a fault that is nobody's ends the process.
        unsafe { libc::abort() };
    }
}
