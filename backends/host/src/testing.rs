//! What the tests of backends share.

use std::ptr::NonNull;

use sterna_hal::{Device, RegionId};

use crate::storage::Storage;
use crate::sys;

/// Host storage: a shared memory file, mapped.
#[derive(Debug)]
pub struct Host(Storage);

impl Host {
    /// So many bytes of storage.
    ///
    /// # Panics
    /// If the system has none.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(Storage::new(bytes).expect("a memory file, mapped"))
    }

    /// Announces it to a device, which must not use it after it is dropped.
    ///
    /// # Panics
    /// If the device refuses it.
    pub fn attach(&self, device: &dyn Device) -> RegionId {
        // SAFETY: mapped from offset 0; tests keep it longer than the device's last use of it.
        unsafe { device.attach_host(self.base(), self.bytes(), self.0.file()) }.expect("attach_host")
    }

    /// Its first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// What it holds. Whoever has a device write it, which is unsafe, sees to it that this is not looked at meanwhile.
    #[must_use]
    pub fn slice(&self) -> &[u8] {
        // SAFETY: mapped; this process writes it through `&mut` only, devices by the promise of who had them do it.
        unsafe { std::slice::from_raw_parts(self.base().as_ptr(), sys::to_usize(self.bytes())) }
    }

    /// Fills it.
    pub fn fill(&mut self, value: u8) {
        // SAFETY: mapped; nobody has a reference to it, and devices as above.
        unsafe { self.base().as_ptr().write_bytes(value, sys::to_usize(self.bytes())) };
    }

    /// Frees the storage of a part, which reads as zeros from then on.
    ///
    /// # Panics
    /// If the system does not take it.
    pub fn punch(&mut self, offset: u64, bytes: u64) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let [offset, bytes] = [offset, bytes].map(|n| libc::off_t::try_from(n).expect("a length"));
        // SAFETY: a file of our own.
        assert_eq!(unsafe { libc::fallocate(self.0.file(), mode, offset, bytes) }, 0, "fallocate");
    }

    /// Bytes of it that take memory.
    ///
    /// # Panics
    /// If the system does not say.
    #[must_use]
    pub fn stored(&self) -> u64 {
        // SAFETY: plain old data, for which all zero is a value; the call writes it only.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            assert_eq!(libc::fstat(self.0.file(), &mut stat), 0, "fstat");
            u64::try_from(stat.st_blocks).expect("a count") * 512
        }
    }
}
