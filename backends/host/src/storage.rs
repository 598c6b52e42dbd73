//! Host storage of one's own: a memory file, mapped whole. For probes and for tests.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use sterna_hal::DeviceError;

use crate::files;
use crate::sys::{Backing, Mapped};

/// A memory file and its mapping, which begins at a multiple of 2 MiB.
#[derive(Debug)]
pub struct Storage {
    map: Mapped,
    fd: OwnedFd,
}

impl Storage {
    /// So many bytes, which take memory once they are touched.
    ///
    /// # Errors
    /// The system has none.
    pub fn new(bytes: u64) -> Result<Self, DeviceError> {
        let fd = files::memory(c"host", bytes)?;
        let map = Mapped::new(bytes, Backing::Closed(fd.as_fd()))?;
        map.open(bytes)?;
        Ok(Self { map, fd })
    }

    /// Its first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.map.base()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.map.bytes()
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}
