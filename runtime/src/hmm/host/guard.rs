//! Guards: pages of the window that raise SIGSEGV, where userfaultfd is not to be had.
//!
//! **Guarantee.** When [`shut`](Guard::shut) returns, no store through the range can land any more without a new fault, and each
//! touch is noticed, with storage behind the page or without. [`open`](Guard::open) undoes it, and asks nothing of what lies there.
//!
//! Guard markers (`MADV_GUARD_INSTALL`, Linux 6.13, for files 6.15) are page-table entries: they split no mapping. Below that
//! the pages are protected, which makes a mapping of each stretch, and so counts against `vm.max_map_count`.

use std::ops::Range;

use sterna_host::mappings;

use super::super::os;
use crate::Error;

/// So many bytes get their markers by one call, so that a signal can end the process between two: they take 20 ms, since each page gets
/// one.
const PIECE: usize = 1 << 30;

/// From so many bytes on a stretch that nobody uses any more gives back the page tables in which its markers were: 2 MiB a GiB.
pub(super) const LARGE: u64 = 64 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guard {
    Markers,
    Protection,
}

impl Guard {
    /// The better one that the kernel has, tried on the window's first page, which nobody uses yet.
    pub(super) fn probe(window: usize) -> Self {
        #[cfg(feature = "planted")]
        if super::super::planted::on(&super::super::planted::NO_MARKERS) {
            return Self::Protection;
        }
        // SAFETY: the window is a shared mapping of the engine's, in which there is nothing yet.
        let there = unsafe {
            let installed = os::guard(window, super::PAGE as usize);
            let _ = os::unguard(window, super::PAGE as usize);
            // Only this error says that the kernel has none.
            installed != Err(libc::EINVAL)
        };
        if there { Self::Markers } else { Self::Protection }
    }

    /// Has touches of the range noticed, which lies in `window`.
    pub(super) fn shut(self, at: usize, bytes: usize, window: &Range<usize>) -> Result<(), Error> {
        let failed = |call, code| Error::driver(call, &std::io::Error::from_raw_os_error(code));
        // SAFETY: the window is a shared mapping of the engine's.
        unsafe {
            match self {
                Self::Markers => (0..bytes).step_by(PIECE).try_for_each(|done| {
                    let (at, bytes) = (at + done, PIECE.min(bytes - done));
                    match os::guard(at, bytes) {
                        // The program has locked all its memory, which the kernel puts no markers into. All of the window at once: a
                        // part would be a mapping of its own.
                        Err(libc::EINVAL) => os::unlock(window.start, window.len()).and_then(|()| os::guard(at, bytes)),
                        done => done,
                    }
                    .map_err(|code| failed("madvise(MADV_GUARD_INSTALL)", code))
                }),
                Self::Protection if !mappings::reserve(2) => Err(Error::System(mappings::exhausted())),
                Self::Protection => os::protect(at, bytes, false, false).map_err(|code| match code {
                    libc::ENOMEM => os::too_many_mappings("mprotect", code),
                    code => failed("mprotect", code),
                }),
            }
        }
    }

    /// Lets the program store again where it could only load. Signal-safe.
    pub(super) fn lift(self, at: usize, bytes: usize) {
        // SAFETY: the window is a shared mapping of the engine's.
        if unsafe { os::protect(at, bytes, true, true) }.is_err() {
            os::die("sterna: a page of shared memory cannot be stored to again; raise vm.max_map_count\n");
        }
    }

    /// Lets the program in again, to read and with `write` to write. Signal-safe.
    pub(super) fn open(self, at: usize, bytes: usize, write: bool) {
        // SAFETY: as above.
        let opened = unsafe {
            match self {
                Self::Markers => os::unguard(at, bytes),
                Self::Protection => os::protect(at, bytes, true, write),
            }
        };
        if self == Self::Protection {
            mappings::gone(2); // those that shutting it was granted
        }
        if opened.is_err() {
            // A page between two that stay away needs a mapping of its own, and there is none left. The touch that waits for it
            // cannot be put off.
            os::die("sterna: a page of shared memory cannot be mapped again; raise vm.max_map_count\n");
        }
    }
}
