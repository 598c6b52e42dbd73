//! Files of the program's.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use super::super::addr::{PAGE, PAGES_PER_BLOCK};
use super::{again, errno};

/// A part of a file, mapped for reading. Nobody loads from it: where the file has become shorter that would be a signal.
#[derive(Debug)]
pub(crate) struct FileMap {
    at: usize,
    bytes: usize,
    first: u64,
}

impl FileMap {
    /// Maps `bytes` bytes from `first` on, a border of pages; `None` if that cannot be.
    pub(crate) fn new(file: &File, first: u64, bytes: u64) -> Option<Self> {
        let (bytes, offset) = (usize::try_from(bytes).ok()?, libc::off_t::try_from(first).ok()?);
        // SAFETY: without MAP_FIXED no existing mapping is touched; what is mapped is nobody's but ours.
        unsafe {
            // Closed at first: a process that locks what it maps would have all of it read.
            let at = libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), offset);
            if at == libc::MAP_FAILED {
                return None;
            }
            let this = Self { at: at.addr(), bytes, first };
            libc::munlock(at, bytes);
            (libc::mprotect(at, bytes, libc::PROT_READ) == 0).then_some(this)
        }
    }

    /// Where byte `offset` of the file is.
    pub(crate) fn at(&self, offset: u64) -> *const u8 {
        ptr::without_provenance((self.at as u64 + (offset - self.first)) as usize)
    }

    /// Whether all of a range of the file, a block's at most, is in memory. Signal-safe.
    pub(crate) fn is_cached(&self, range: &Range<u64>) -> bool {
        let start = (range.start - self.first) / PAGE * PAGE;
        let bytes = (range.end - self.first - start) as usize;
        let mut pages = [0_u8; PAGES_PER_BLOCK + 1];
        let n = bytes.div_ceil(PAGE as usize);
        if n > pages.len() {
            return false;
        }
        let at = ptr::without_provenance_mut(self.at + start as usize);
        // SAFETY: pages of our own mapping; the vector has a byte for each.
        let known = again(|| unsafe { libc::mincore(at, bytes, pages.as_mut_ptr()) }).is_ok();
        known && pages[..n].iter().all(|p| p & 1 == 1)
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(ptr::without_provenance_mut(self.at), self.bytes) };
    }
}

/// How a file was opened.
pub(crate) fn open_flags(fd: RawFd) -> libc::c_int {
    // SAFETY: no memory is passed.
    unsafe { libc::fcntl(fd, libc::F_GETFL) }
}

/// A file's length. Signal-safe.
pub(crate) fn file_bytes(fd: RawFd) -> io::Result<u64> {
    // SAFETY: plain old data, which the call fills.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        again(|| libc::fstat(fd, &mut stat)).map_err(io::Error::from_raw_os_error)?;
        Ok(stat.st_size as u64)
    }
}

/// Whether a file's system says truly where it has data: also of what was written and is not yet on its medium. Others have called
/// such data holes.
pub(crate) fn tells_holes(fd: RawFd) -> bool {
    const KNOWN: [i64; 5] = [
        0xef53,      /* ext2 to ext4 */
        0x0102_1994, /* tmpfs */
        0x5846_5342, /* XFS */
        0x9123_683e, /* btrfs */
        0xf2f5_2010, /* F2FS */
    ];
    // SAFETY: plain old data, which the call fills.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        libc::fstatfs(fd, &mut stat) == 0 && KNOWN.contains(&(stat.f_type as i64 & 0xffff_ffff))
    }
}

/// Whether this process is told which pages of a file of `owner`'s are in memory: others are told that all are.
pub(crate) fn tells_cached(fd: RawFd, owner: u32) -> bool {
    // SAFETY: a C string and no other memory.
    unsafe {
        libc::geteuid() == owner
            || libc::faccessat(fd, c"".as_ptr(), libc::W_OK, libc::AT_EMPTY_PATH | libc::AT_EACCESS) == 0
    }
}

/// Calls `part` for the parts of `range` of a file that have data, in order and by units of `unit` bytes from its start; for all of it
/// where the file system does not say. Only ever asks for the next data: who asks a file in memory for the next hole has it walk all
/// pages up to there. Signal-safe.
pub(crate) fn each_extent<E>(
    fd: RawFd,
    range: Range<u64>,
    unit: u64,
    mut part: impl FnMut(Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut found: Option<Range<u64>> = None;
    let mut at = range.start;
    while at < range.end {
        // SAFETY: an open descriptor, whose position nobody uses.
        let start = unsafe { libc::lseek(fd, at as i64, libc::SEEK_DATA) };
        let unknown = start < 0 && errno() != libc::ENXIO;
        if !unknown && (start < 0 || start as u64 >= range.end) {
            break; // no more data
        }
        let next = if unknown {
            at..range.end
        } else {
            let n = (start as u64 - range.start) / unit;
            range.start + n * unit..(range.start + (n + 1) * unit).min(range.end)
        };
        at = next.end;
        match &mut found {
            Some(f) if f.end == next.start => f.end = next.end,
            _ => {
                if let Some(before) = found.replace(next) {
                    part(before)?;
                }
            }
        }
    }
    found.map_or(Ok(()), part)
}
