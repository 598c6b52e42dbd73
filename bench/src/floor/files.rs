//! Bytes of a file, brought into shared memory when they are needed: what a program would do in place of a touch that faults.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr;

use super::faults::Uffd;
use super::{FOLIO, File as MemoryFile, Mapping, check};

/// Bytes that are brought at once.
pub(crate) const PIECE: usize = 64 << 10;

/// How they come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Read into the page.
    Read,
    /// Read into a buffer, and written into the memory's file.
    Buffer,
    /// Written into the memory's file from a mapping of the file, which the system alone loads from.
    Mapped,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Buffer, Self::Mapped];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "pread into the page",
            Self::Buffer => "pwrite from a buffer",
            Self::Mapped => "pwrite of the mapped file",
        }
    }
}

/// A file that is there as long as this is, all of it in the system's cache and on its medium.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) path: PathBuf,
    pub(crate) bytes: usize,
    file: File,
}

impl Contents {
    /// Makes one in `folder` of `bytes` bytes, of which `piece` gives a piece's by its number.
    pub(crate) fn new(folder: &Path, bytes: usize, piece: impl Fn(usize) -> [u8; 8]) -> io::Result<Self> {
        let path = folder.join(format!("sterna-bench-{}", std::process::id()));
        let written = fs::File::create(&path).and_then(|mut file| {
            (0..bytes / PIECE).try_for_each(|i| file.write_all(&piece(i).repeat(PIECE / 8)))?;
            file.sync_all()?;
            File::open(&path)
        });
        match written {
            Ok(file) => Ok(Self { path, bytes, file }),
            Err(e) => {
                let _ = fs::remove_file(&path); // what is left of it, if there is anything
                Err(e)
            }
        }
    }
}

impl Contents {
    fn map(&self) -> io::Result<Mapping> {
        let fd = self.file.as_raw_fd();
        // SAFETY: a new mapping, at an address of the system's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), self.bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping { at: at.cast(), bytes: self.bytes })
        }
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Empty memory for the contents of a file, which nobody has mapped but those who brought it.
#[derive(Debug)]
pub(crate) struct Empty<'a> {
    from: &'a Contents,
    /// The file, mapped anew: nobody has touched a page of it.
    mapped: Mapping,
    memory: MemoryFile,
    view: Mapping,
    window: Mapping,
    /// Without it the window's own page faults map what has come.
    uffd: Option<Uffd>,
}

impl<'a> Empty<'a> {
    /// `registered`: pages of the window are mapped by a system call, as where they are watched.
    pub(crate) fn new(from: &'a Contents, registered: bool) -> io::Result<Self> {
        let memory = MemoryFile::new(from.bytes.next_multiple_of(FOLIO))?;
        let (view, window) = (memory.map()?, memory.map()?);
        let uffd = registered.then(|| Uffd::over(&window, true)).transpose()?;
        Ok(Self { from, mapped: from.map()?, memory, view, window, uffd })
    }

    /// Brings a piece, and loads from its byte `at`.
    pub(crate) fn bring(&self, way: Way, piece: usize, at: usize) -> io::Result<u8> {
        let start = piece * PIECE;
        assert!(start + PIECE <= self.from.bytes && at < PIECE, "a piece of the file");
        let file = self.from.file.as_raw_fd();
        // SAFETY: a piece of each mapping, which is this call's alone.
        let (view, mapped) = unsafe { (self.view.at.add(start), self.mapped.at.add(start)) };
        match way {
            Way::Read => whole(read(file, view, start))?,
            Way::Buffer => {
                let mut buffer = [0_u8; PIECE];
                whole(read(file, buffer.as_mut_ptr(), start))?;
                whole(write(self.memory.fd.as_raw_fd(), buffer.as_ptr(), start))?;
            }
            Way::Mapped => whole(write(self.memory.fd.as_raw_fd(), mapped, start))?,
        }
        if let Some(uffd) = &self.uffd {
            uffd.map(self.window.at.addr() + start, PIECE)?;
        }
        // SAFETY: inside the window, where the piece has storage.
        Ok(unsafe { self.window.at.add(start + at).read_volatile() })
    }
}

impl Drop for Empty<'_> {
    fn drop(&mut self) {
        [self.mapped, self.view, self.window].into_iter().for_each(unmap);
    }
}

fn unmap(m: Mapping) {
    // SAFETY: a mapping that nobody uses any more.
    unsafe { libc::munmap(m.at.cast(), m.bytes) };
}

fn read(fd: RawFd, to: *mut u8, at: usize) -> isize {
    // SAFETY: each caller's memory is a piece long.
    unsafe { libc::pread(fd, to.cast(), PIECE, at as libc::off_t) }
}

fn write(fd: RawFd, from: *const u8, at: usize) -> isize {
    // SAFETY: as above.
    unsafe { libc::pwrite(fd, from.cast(), PIECE, at as libc::off_t) }
}

fn whole(bytes: isize) -> io::Result<()> {
    check(bytes as libc::c_int)?;
    if bytes as usize == PIECE { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The name of the file system that `folder` is on.
pub(crate) fn system_of(folder: &Path) -> Option<String> {
    let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: plain old data, which the call fills; a valid C string.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        check(libc::statfs(path.as_ptr(), &mut stat)).ok()?;
        stat.f_type as i64 & 0xffff_ffff
    };
    Some(match kind {
        0x0102_1994 => "tmpfs".into(),
        0xef53 => "ext4".into(),
        0x5846_5342 => "XFS".into(),
        0x9123_683e => "btrfs".into(),
        0x794c_7630 => "overlayfs".into(),
        other => format!("file system {other:#x}"),
    })
}
