//! What the tests of backends share.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use sterna_hal::{Device, RegionId};

use crate::sys::{self, Backing, Mapped};

/// Host storage: a shared memory file, mapped.
#[derive(Debug)]
pub struct Host {
    map: Mapped,
    fd: OwnedFd,
    bytes: u64,
}

impl Host {
    /// So many bytes of storage.
    ///
    /// # Panics
    /// If the system has none.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        use std::os::fd::AsFd;
        let fd = sys::memfd(c"host", bytes).expect("a memory file");
        let backing = Backing::File { fd: fd.as_fd(), offset: 0, writable: true, populate: false };
        let map = Mapped::new(bytes, backing).expect("a mapping");
        Self { map, fd, bytes }
    }

    /// Announces it to a device, which must not use it after it is dropped.
    ///
    /// # Panics
    /// If the device refuses it.
    pub fn attach(&self, device: &dyn Device) -> RegionId {
        // SAFETY: mapped from offset 0; tests keep it longer than the device's last use of it.
        unsafe { device.attach_host(self.base(), self.bytes, self.fd.as_raw_fd()) }.expect("attach_host")
    }

    /// Its first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.map.base()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it holds; no copy to it may be under way.
    #[must_use]
    pub fn slice(&self) -> &[u8] {
        // SAFETY: mapped; tests look at it while no copy to it is under way.
        unsafe { std::slice::from_raw_parts(self.base().as_ptr(), sys::to_usize(self.bytes)) }
    }

    /// Fills it; no copy may be under way.
    pub fn fill(&self, value: u8) {
        // SAFETY: mapped; no copy is under way.
        unsafe { self.base().as_ptr().write_bytes(value, sys::to_usize(self.bytes)) };
    }
}
