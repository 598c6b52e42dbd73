//! The file behind a segment, and how its bytes are read.
//!
//! **Guarantee.** What is read are the bytes that the file has, or the call fails: a file that has become shorter, or cannot be
//! read, gives no zeros. What cannot be read at all, or not by position, is refused when the segment is made.
//!
//! **How.** The file is mapped for reading, and the system copies from that mapping into the arena's file: one copy, into pages that
//! it neither clears first nor takes faults for. A mapping that loses its bytes gives an error there, and no signal, since nobody
//! else touches it. Where that is not possible (a file that cannot be mapped, a limit on the length of files) the bytes are read into
//! the runtime's view. What the host touches comes without a write to the arena's file, where the mechanism can do that
//! ([`Backing::enter`]).
//!
//! **Holes.** Where a file system is known to say where data is, what is not yet on its medium included, holes cost no storage, by
//! granules. All else is data. A file is asked for the next data only, never for the next hole: in memory files that question walks
//! all the pages up to it.
//!
//! Reading is signal-safe, and may wait for a medium; [`Backing::is_cached`] says whether it would.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use super::addr::{GRANULE, PAGE};
use super::os::{self, uffd::Uffd};
use crate::Error;

/// A file, from `offset` on; zeros behind its end, which was `bytes` further on when the segment was made.
#[derive(Debug)]
pub(crate) struct Backing {
    file: File,
    /// Its name, for messages.
    name: String,
    offset: u64,
    bytes: u64,
    /// Its pages from that of `offset` on, if it can be mapped.
    map: Option<os::FileMap>,
    /// It may have holes, and its file system says where.
    sparse: bool,
    /// The system says truly which of its pages are in memory.
    tells: bool,
}

impl Backing {
    /// `bytes` bytes of a file from `offset` on, to be written back too with `shared`.
    pub(crate) fn new((file, name): (File, String), offset: u64, bytes: u64, shared: bool) -> Result<Self, Error> {
        let refused = |what: &str| Err(Error::file(&name, io::Error::new(io::ErrorKind::InvalidInput, what)));
        let meta = file.metadata().map_err(|e| Error::file(&name, e))?;
        if !meta.is_file() {
            return refused("not a regular file: read it into memory, and give that to an allocation");
        }
        let flags = os::open_flags(file.as_raw_fd());
        if flags & libc::O_PATH != 0 || flags & libc::O_ACCMODE == libc::O_WRONLY {
            return refused("not open for reading: open it for reading, too");
        }
        if shared && flags & libc::O_APPEND != 0 {
            return refused("open for appending, where stores cannot be written to their places: open it without");
        }
        if offset.checked_add(bytes).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Error::Invalid { what: "a part of a file that begins or ends beyond what a file can have" });
        }
        let bytes = meta.len().saturating_sub(offset).min(bytes);
        let first = offset / PAGE * PAGE;
        let map = (bytes > 0).then(|| os::FileMap::new(&file, first, offset + bytes - first)).flatten();
        let sparse = meta.blocks().saturating_mul(512) < meta.len() && os::tells_holes(file.as_raw_fd());
        let tells = os::tells_cached(file.as_raw_fd(), meta.uid());
        let this = Self { file, name, offset, bytes, map, sparse, tells };
        if this.map.is_none() && bytes > 0 {
            // Files that the kernel makes up say lengths that they do not have.
            let mut last = 0_u8;
            let end = offset + bytes;
            // SAFETY: a byte of this function's own.
            unsafe { os::read_at(this.fd(), &raw mut last, end - 1..end) }.map_err(|e| this.error(e))?;
        }
        Ok(this)
    }

    fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Bytes of the segment, from its first on, that are the file's.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What went wrong with it.
    pub(crate) fn error(&self, e: io::Error) -> Error {
        Error::file(&self.name, e)
    }

    /// The bytes of the file that are bytes `part` of the segment.
    fn place(&self, part: &Range<u64>) -> Range<u64> {
        self.offset + part.start.min(self.bytes)..self.offset + part.end.min(self.bytes)
    }

    /// Reads bytes `part` of the segment, which begin with a page, to byte `to` of the arena's file `arena`, which is at `view`; tells
    /// `filled` which bytes of the part came: whole pages but for the last. The rest are zeros and hole. Nobody else uses the storage,
    /// which is empty.
    pub(crate) fn read(
        &self,
        (arena, view, to): (i32, *mut u8, u64),
        part: &Range<u64>,
        mut filled: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        let from = self.place(part);
        let mut copy = |data: Range<u64>| {
            let skip = data.start - from.start;
            self.copy((arena, view.wrapping_add(skip as usize), to + skip), data.clone())?;
            filled(skip..data.end - from.start);
            Ok::<(), io::Error>(())
        };
        if from.is_empty() {
            return Ok(());
        }
        if self.sparse {
            os::each_extent(self.fd(), from.clone(), GRANULE, &mut copy)?
        } else {
            copy(from.clone())?
        }
        // After the copy: a page of the mapping beyond an end that has come nearer is zeros up to its own.
        if os::file_bytes(self.fd())? < from.end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// As [`read`](Self::read), of pages that the host touched and that are mapped at once, at `window`: says how many bytes came, in
    /// order. Whole pages of the file at most; none where it may have holes, or cannot be mapped.
    ///
    /// One call of the system gives them storage, fills and maps them, and keeps nobody else out of the arena's file meanwhile; a write
    /// to it does, so that of two threads that touch a file one would wait for the other.
    ///
    /// # Errors
    /// The file has become shorter just now: what came may be zeros that it never had.
    pub(crate) fn enter(&self, uffd: &Uffd, window: usize, part: &Range<u64>) -> io::Result<u64> {
        let from = self.place(part);
        let shorter = || Ok::<_, io::Error>(os::file_bytes(self.fd())? < from.end);
        let whole = (from.end - from.start) / PAGE * PAGE;
        let Some(map) = self.map.as_ref().filter(|_| !self.sparse && whole > 0) else { return Ok(0) };
        if shorter()? {
            return Ok(0); // whoever reads it says so
        }
        let came = uffd.copy(window, whole as usize, map.at(from.start)) as u64;
        if came > 0 && shorter()? { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(came) }
    }

    fn copy(&self, (arena, view, to): (i32, *mut u8, u64), data: Range<u64>) -> io::Result<()> {
        let bytes = data.end - data.start;
        // Beyond this limit a write is a signal.
        let writable = os::process_limit(libc::RLIMIT_FSIZE).is_none_or(|most| to + bytes <= most);
        if let Some(map) = self.map.as_ref().filter(|_| writable) {
            // SAFETY: the mapping lives as long as `self`; where the file has no bytes any more the call fails.
            let done = unsafe { os::write_at(arena, map.at(data.start), to..to + bytes) };
            if done.is_ok() {
                return done;
            }
        }
        // SAFETY: the caller's storage, in the runtime's view.
        unsafe { os::read_at(self.fd(), view, data) }
    }

    /// Whether bytes `part` of the segment can be read without waiting for a medium. False where that is not known.
    pub(crate) fn is_cached(&self, part: &Range<u64>) -> bool {
        let from = self.place(part);
        self.tells && self.map.as_ref().is_some_and(|map| from.is_empty() || map.is_cached(&from))
    }

    /// Writes the bytes at `at` to bytes `part` of the segment's file. What lies behind its end is memory only.
    ///
    /// # Safety
    /// They can be read for as many bytes.
    pub(crate) unsafe fn write(&self, at: *const u8, part: &Range<u64>) -> Result<(), Error> {
        let to = self.place(part);
        if os::process_limit(libc::RLIMIT_FSIZE).is_some_and(|most| to.end > most) {
            return Err(self.error(io::Error::from_raw_os_error(libc::EFBIG))); // else it would be a signal
        }
        // SAFETY: the caller's.
        unsafe { os::write_at(self.fd(), at, to) }.map_err(|e| self.error(e))
    }

    /// Waits until what was written is on its medium.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|e| self.error(e))
    }
}
