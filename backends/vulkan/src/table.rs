//! The page table of a device: which kind it is, and what each kind makes of the calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use ash::vk;
use parking_lot::Mutex;
use sterna_hal::{DevRange, DeviceError};
use sterna_host::mmu::Mmu;
use sterna_host::sys::{invalid, to_usize};

use crate::fixed::Fixed;
use crate::import::{Import, Stretch};
use crate::pool::{Buffer, usage};
use crate::raw::Raw;
use crate::sparse::Sparse;

/// Imports are not made shorter than this to please a driver.
const LEAST_PIECE: u64 = 64 << 20;

/// One of the kinds.
#[derive(Debug)]
pub(crate) enum Table {
    Mmu(Box<HostAddresses>),
    Sparse(Box<Sparse>),
    Fixed(Fixed),
}

/// Kind *mmu*: a window of host addresses, imported where it is reserved.
///
/// **Guarantee:** the device's addresses of a reservation are its host addresses, or there is no reservation. **Lock:**
/// `imports`, for look-ups.
#[derive(Debug)]
pub(crate) struct HostAddresses {
    /// What stands for each reservation, by its address. Before the addresses themselves.
    imports: Mutex<BTreeMap<u64, Vec<Import>>>,
    pub(crate) mmu: Mmu,
    raw: Arc<Raw>,
}

impl Table {
    /// The buffer that has all of `range`, and how far into it the range begins.
    pub(crate) fn buffer_of(&self, range: DevRange) -> Result<(vk::Buffer, u64), DeviceError> {
        match self {
            Self::Mmu(t) => t.buffer_of(range),
            Self::Sparse(t) => t.of("submit", range),
            Self::Fixed(t) => t.of("submit", range).map(|r| (r.buffer.raw, range.at.0 - r.buffer.address)),
        }
    }
}

impl Table {
    /// Where frames are, for the device's copies: the buffer, and the offset within.
    pub(crate) fn locate(&self, first: u32, offset: u64, bytes: u64) -> Result<(Arc<Buffer>, u64), DeviceError> {
        match self {
            Self::Mmu(_) => unreachable!("page table mmu is not staged"),
            Self::Sparse(t) => t.chunks.locate(first, offset, bytes),
            Self::Fixed(t) => t.locate(first, offset, bytes),
        }
    }
}

impl HostAddresses {
    pub(crate) fn new(raw: &Arc<Raw>, mmu: Mmu) -> Self {
        Self { imports: Mutex::default(), mmu, raw: Arc::clone(raw) }
    }

    pub(crate) fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        let range = self.mmu.reserve(bytes)?;
        match self.import(range) {
            Ok(imports) => {
                self.imports.lock().insert(range.at.0, imports);
                Ok(range)
            }
            Err(e) => {
                // SAFETY: reserved just now.
                unsafe { self.mmu.unreserve(range) };
                Err(e)
            }
        }
    }

    /// # Safety
    /// As [`sterna_hal::Device::unreserve`].
    pub(crate) unsafe fn unreserve(&self, range: DevRange) {
        let imports = self.imports.lock().remove(&range.at.0);
        drop(imports);
        // SAFETY: the caller's.
        unsafe { self.mmu.unreserve(range) }
    }

    /// Tells the driver of the addresses, in pieces that it takes.
    fn import(&self, range: DevRange) -> Result<Vec<Import>, DeviceError> {
        let can = &self.raw.gpu.can;
        let unit = can.import_alignment.max(64 << 10);
        let mut piece = (can.max_allocation.min(1 << 30) / unit).max(1) * unit;
        let bytes = range.bytes.max(1).next_multiple_of(unit);
        loop {
            match self.import_in(range, bytes, piece) {
                // A driver may not take what it says is its longest.
                Err(DeviceError::Driver { .. }) if piece.min(bytes) > LEAST_PIECE => {
                    piece = (piece / 2).next_multiple_of(unit)
                }
                done => return done,
            }
        }
    }

    fn import_in(&self, range: DevRange, bytes: u64, piece: u64) -> Result<Vec<Import>, DeviceError> {
        let pieces = (0..bytes).step_by(to_usize(piece));
        pieces.map(|offset| self.import_piece(range.at.0 + offset, piece.min(bytes - offset))).collect()
    }

    fn import_piece(&self, at: u64, bytes: u64) -> Result<Import, DeviceError> {
        let pointer = std::ptr::with_exposed_provenance_mut(to_usize(at));
        // SAFETY: reserved addresses that stay ours until the import is destroyed. That nothing is mapped there now, and other
        // things later, is more than the specification allows; the probe has shown that this driver does not mind.
        let made = unsafe { Import::new(&self.raw, Stretch::At(pointer), bytes, usage())? };
        let info = vk::BufferDeviceAddressInfo::default().buffer(made.buffer);
        // SAFETY: a buffer of this device that was made for having an address.
        let address = unsafe { self.raw.device.get_buffer_device_address(&info) };
        if address != at {
            return Err(invalid("import", format!("host address {at:#x} became device address {address:#x}")));
        }
        Ok(made)
    }

    fn buffer_of(&self, range: DevRange) -> Result<(vk::Buffer, u64), DeviceError> {
        let imports = self.imports.lock();
        let Some((first, pieces)) = imports.range(..=range.at.0).next_back() else {
            return Err(invalid("submit", format!("{range:x?} is outside every reservation")));
        };
        let mut offset = range.at.0 - first;
        for piece in pieces {
            if offset < piece.bytes {
                if range.bytes <= piece.bytes - offset {
                    return Ok((piece.buffer, offset));
                }
                let text =
                    "a buffer that is bound crosses the border between two buffers of the driver; launch over parts of it";
                return Err(invalid("submit", text));
            }
            offset -= piece.bytes;
        }
        Err(invalid("submit", format!("{range:x?} is outside every reservation")))
    }
}
