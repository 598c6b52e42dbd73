//! Host storage that was announced to a device.
//!
//! **Guarantee:** a pointer or file offset that is handed out lies inside an announced region. **Lock:** `list`, for look-ups.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use parking_lot::{RwLock, RwLockReadGuard};
use sterna_hal::{CopyEnd, CopyRun, DeviceError, HostAt, RegionId};

use crate::copy::{Piece, Pieces};
use crate::{files, sys};

#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    bytes: u64,
    pub(crate) fd: OwnedFd,
}

// SAFETY: an address and a file, both valid while the device exists by the promise of `attach_host`.
unsafe impl Send for Region {}
// SAFETY: as above; the bytes are accessed by copies alone, which have their own promise.
unsafe impl Sync for Region {}

/// The host storage that a device was told of.
#[derive(Debug, Default)]
pub struct Regions {
    list: RwLock<Vec<Region>>,
}

impl Regions {
    /// Adds a region.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    ///
    /// # Safety
    /// As [`sterna_hal::Device::attach_host`].
    pub unsafe fn attach(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        // A descriptor of our own, so that entries stay possible however the caller treats its own.
        // SAFETY: a number that is no descriptor gives an error.
        let fd = files::dup(unsafe { BorrowedFd::borrow_raw(memfd) })?;
        let mut list = self.list.write();
        list.push(Region { base, bytes, fd });
        Ok(RegionId(list.len() as u32 - 1))
    }

    /// The regions, for a batch of look-ups.
    #[must_use]
    pub fn look(&self) -> Look<'_> {
        Look(self.list.read())
    }
}

/// The regions as they are now.
#[derive(Debug)]
pub struct Look<'a>(RwLockReadGuard<'a, Vec<Region>>);

impl Look<'_> {
    pub(crate) fn region(&self, at: HostAt) -> &Region {
        &self.0[at.region.0 as usize]
    }

    /// Bytes of a region; 0 if there is none of that number.
    #[must_use]
    pub fn bytes(&self, region: RegionId) -> u64 {
        self.0.get(region.0 as usize).map_or(0, |r| r.bytes)
    }

    /// Whether every byte of the stretch has storage, so that no access gives it some.
    #[must_use]
    pub fn stored(&self, at: HostAt, bytes: u64) -> bool {
        let region = self.0.get(at.region.0 as usize);
        let end = at.offset.checked_add(bytes);
        region.is_some_and(|r| {
            // SAFETY: inside the region, as just checked.
            end.is_some_and(|end| end <= r.bytes) && sys::stored(unsafe { r.base.add(sys::to_usize(at.offset)) }, bytes)
        })
    }

    /// The file of host storage that was announced.
    ///
    /// # Panics
    /// There is no such region.
    #[must_use]
    pub fn file(&self, at: HostAt) -> BorrowedFd<'_> {
        self.region(at).fd.as_fd()
    }

    /// Where host storage is.
    ///
    /// # Errors
    /// It is outside every region.
    pub fn host(&self, call: &'static str, at: HostAt, bytes: u64) -> Result<NonNull<u8>, DeviceError> {
        let outside = || sys::invalid(call, format!("{bytes} bytes at {at:?} are outside every host region"));
        let region = self.0.get(at.region.0 as usize).ok_or_else(outside)?;
        if at.offset.checked_add(bytes).is_none_or(|end| end > region.bytes) {
            return Err(outside());
        }
        // SAFETY: inside the region, as just checked.
        Ok(unsafe { region.base.add(sys::to_usize(at.offset)) })
    }

    /// Resolves the places of a copy; `frames` says where device memory is.
    ///
    /// # Errors
    /// A place is outside everything, or zeros are a destination.
    pub fn pieces(
        &self,
        runs: &[CopyRun],
        frames: impl Fn(u32, u64, u64) -> Result<NonNull<u8>, DeviceError>,
    ) -> Result<Pieces, DeviceError> {
        let place = |place: CopyEnd, bytes: u64| match place {
            CopyEnd::Frames { first, offset } => frames(first, offset, bytes).map(Some),
            CopyEnd::Host(at) => self.host("copy", at, bytes).map(Some),
            CopyEnd::Zero => Ok(None),
        };
        let piece = |run: &CopyRun| {
            let from = place(run.from, run.bytes)?;
            let to = place(run.to, run.bytes)?;
            let to = to.ok_or_else(|| sys::invalid("copy", "zeros are a source only"))?;
            Ok(Piece { from, to, bytes: sys::to_usize(run.bytes) })
        };
        runs.iter().filter(|r| r.bytes > 0).map(piece).collect()
    }
}
