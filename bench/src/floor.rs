//! What the floors are made of: memory in 2 MiB folios, and copies with one call a thread.
//!
//! Nothing here uses sterna: a floor is what a program would write without it.

mod faults;
mod files;
pub(crate) mod vulkan;
pub(crate) mod vulkan_copies;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

pub(crate) use faults::{How, RawFaults};
pub(crate) use files::{Contents, Empty, PIECE, Way, system_of};

pub(crate) const FOLIO: usize = 2 << 20;
const MADV_COLLAPSE: libc::c_int = 25;

/// A file in memory.
#[derive(Debug)]
pub(crate) struct File {
    fd: OwnedFd,
    bytes: usize,
}

impl File {
    /// `bytes` is a multiple of [`FOLIO`].
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        assert_eq!(bytes % FOLIO, 0, "whole folios");
        // SAFETY: a valid C string.
        let fd = check(unsafe { libc::memfd_create(c"floor".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: a descriptor of our own.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: our own descriptor.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) })?;
        Ok(Self { fd, bytes })
    }

    /// Maps it whole, aligned to folios.
    pub(crate) fn map(&self) -> io::Result<Mapping> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice, then one over its aligned part; the rims stay reserved.
        unsafe {
            let whole = libc::mmap(ptr::null_mut(), self.bytes + FOLIO, libc::PROT_NONE, reserve, -1, 0);
            if whole == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let at = whole.cast::<u8>().add(whole.align_offset(FOLIO));
            let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
            if libc::mmap(at.cast(), self.bytes, rw, fixed, self.fd.as_raw_fd(), 0) == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Mapping { at, bytes: self.bytes })
        }
    }
}

/// A mapping of a [`File`], for as long as the process lives: a row's process ends with the row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) at: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: an address of memory that is never unmapped; whoever uses it answers for races.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of a new file, every page of it there, in 2 MiB folios where the kernel has some.
    pub(crate) fn in_folios(bytes: usize) -> io::Result<Self> {
        let m = File::new(bytes)?.map()?;
        m.populate();
        Ok(m)
    }

    /// Gives every page storage, in 2 MiB folios where the kernel has some.
    pub(crate) fn populate(&self) {
        for i in 0..self.bytes / FOLIO {
            // SAFETY: inside the mapping, which only this row uses; one store makes a range that can be collapsed.
            unsafe {
                let at = self.at.add(i * FOLIO);
                at.write_volatile(1);
                libc::madvise(at.cast(), FOLIO, MADV_COLLAPSE);
                at.write_bytes(1, FOLIO);
            }
        }
    }

    /// Takes every page out of this mapping; the file keeps them.
    pub(crate) fn unmap_pages(&self) -> io::Result<()> {
        // SAFETY: a shared mapping keeps its contents in the file.
        check(unsafe { libc::madvise(self.at.cast(), self.bytes, libc::MADV_DONTNEED) }).map(drop)
    }
}

/// Threads that copy, one call each.
#[derive(Debug)]
pub(crate) struct Copiers(rayon::ThreadPool);

impl Copiers {
    pub(crate) fn new(threads: usize) -> anyhow::Result<Self> {
        Ok(Self(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?))
    }

    pub(crate) fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Copies all of `from` over `to`, an equal share a thread.
    pub(crate) fn copy(&self, from: Mapping, to: Mapping) {
        assert_eq!(from.bytes, to.bytes, "as long as each other");
        let share = from.bytes.div_ceil(self.threads()).next_multiple_of(4096);
        self.0.broadcast(|me| {
            let (from, to) = (&from, &to);
            let start = (me.index() * share).min(from.bytes);
            let bytes = share.min(from.bytes - start);
            // SAFETY: both are mapped that far; shares are disjoint, and only this row uses the mappings.
            unsafe { to.at.add(start).copy_from_nonoverlapping(from.at.add(start), bytes) };
        });
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
