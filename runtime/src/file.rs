//! Files: read into an allocation, or behind one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytemuck::Pod;

use crate::Error;
use crate::hmm::entry;
use crate::hmm::lock::Free;
use crate::hmm::os::high;
use crate::hmm::source;
use crate::runtime::Runtime;
use crate::shared::Shared;

/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;

impl Runtime {
    /// A shared allocation with the contents of a file, read now.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// # let path = std::env::temp_dir().join(format!("sterna-read-{}", std::process::id()));
    /// std::fs::write(&path, [1, 0, 0, 0, 2, 0, 0, 0])?;
    /// let x = rt.read_file::<u32>(&path)?;
    /// assert_eq!(x[..], [1_u32, 2].map(u32::to_le));
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`File`](Error::File) if it cannot be opened or read; [`FileLength`](Error::FileLength) if it is not made of whole elements;
    /// else as [`shared_from`](Self::shared_from).
    pub fn read_file<T: Pod + Send + Sync>(&self, path: impl AsRef<Path>) -> Result<Shared<T>, Error> {
        entry::check()?;
        let name = path.as_ref().display().to_string();
        let mut file = open(&path, &name, false)?;
        let mut x = self.shared(elements::<T>(&file, &name)?)?;
        let mut read = Ok(());
        x.0.replace(0..x.len(), |to: &mut [T]| {
            // By way of memory that a system call may write under every mechanism.
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            let mut piece = vec![0; PIECE.min(to.len())];
            for part in to.chunks_mut(PIECE) {
                let piece = &mut piece[..part.len()];
                read = file.read_exact(piece);
                if read.is_err() {
                    return;
                }
                part.copy_from_slice(piece);
            }
        })?;
        read.map_err(|e| Error::file(&name, e))?;
        Ok(x)
    }

    /// A shared allocation with a file behind it. A page is read when it is first touched, on the host or by a launch; what is
    /// written reaches the file when [`flush`](Shared::flush) is called, and not otherwise: dropping it writes nothing. With
    /// host-fault mechanism `none`, where nothing notices a first touch, the file is read now.
    ///
    /// The elements are not the file's own pages: those are read into shared memory, which moves as all shared memory does. A page that
    /// cannot be read when a launch or [`try_read`](Shared::try_read), [`host`](Shared::host) or [`flush`](Shared::flush) needs
    /// it is an error; a plain load that meets it cannot return: one line, then the process ends, as with a mapped file.
    ///
    /// ```
    /// # let rt = sterna::Runtime::new()?;
    /// # let path = std::env::temp_dir().join(format!("sterna-map-{}", std::process::id()));
    /// use sterna::kernels::fill;
    /// std::fs::write(&path, vec![0; 4096])?;
    /// // SAFETY: the file is this program's own, which writes it nowhere else.
    /// let mut x = unsafe { rt.map_file::<u32>(&path)? };
    /// rt.launch(&fill(7_u32), (&mut x,))?;
    /// x.flush()?;
    /// assert_eq!(std::fs::read(&path)?[..4], 7_u32.to_ne_bytes());
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// Nobody else writes the file, or shortens it, while the allocation or a [copy](Shared::cow_clone) of it lives: which of its
    /// pages have been read cannot be known, so the elements would change behind a reference's back or be a mixture.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file). A file that may only be read can be mapped, and not flushed.
    pub unsafe fn map_file<T: Pod + Send + Sync>(&self, path: impl AsRef<Path>) -> Result<Shared<T>, Error> {
        entry::check()?;
        let name = path.as_ref().display().to_string();
        let file = open(&path, &name, true)?;
        // It stays open: under a number that the program does not take for a standard one.
        let file = File::from(high(file.into()).map_err(Error::System)?);
        let len = elements::<T>(&file, &name)?;
        let bytes = (len * size_of::<T>()) as u64;
        if bytes > self.space().bytes() {
            return Err(self.space().too_big(bytes));
        }
        let bytes = self.bytes_of::<T>(len)?;
        let seg = source::segment_of_file(self.space(), (file, name), 0, bytes, true)?;
        self.ask_fault_rule(&seg);
        Ok(Shared::over(self.clone(), seg, 0..bytes))
    }
}

impl<T: Pod + Send + Sync> Shared<T> {
    /// Writes every element that has been touched to the file behind it ([`map_file`](Runtime::map_file)), and waits until the
    /// system has them on its medium. Waits for unfinished launches that write it; what only a device has is copied home, and stays
    /// there too.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) if there is no file behind it; [`File`](Error::File) if the system does not write it, in part or
    /// at all; else as [`try_read`](Self::try_read).
    pub fn flush(&self) -> Result<(), Error> {
        entry::check()?;
        let core = &self.0.core;
        core.settle(false)?;
        source::write_back(&mut Free::at_entry(), &core.seg, &core.bytes)
    }
}

/// Opens a regular file to read it, and to write it too where that is allowed with `write`. Others are refused, and not waited for: a
/// pipe's other end may never come.
fn open(path: &impl AsRef<Path>, name: &str, write: bool) -> Result<File, Error> {
    let how = |write| File::options().read(true).write(write).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let opened = match how(write) {
        Err(e) if write && matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            how(false)
        }
        opened => opened,
    };
    let file = opened.map_err(|e| Error::file(name, e))?;
    if file.metadata().map_err(|e| Error::file(name, e))?.is_file() {
        return Ok(file);
    }
    let what = "not a regular file: read it into memory, and give that to an allocation";
    Err(Error::file(name, io::Error::new(io::ErrorKind::InvalidInput, what)))
}

/// Elements of a file.
fn elements<T>(file: &File, name: &str) -> Result<usize, Error> {
    let bytes = file.metadata().map_err(|e| Error::file(name, e))?.len();
    let elem = size_of::<T>();
    let whole = elem > 0 && bytes > 0 && bytes.is_multiple_of(elem as u64);
    if whole { Ok((bytes / elem as u64) as usize) } else { Err(Error::FileLength { name: name.to_string(), bytes, elem }) }
}
