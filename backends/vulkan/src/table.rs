//! The page table of a device: which kind it is, and what each kind makes of the calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use ash::vk;
use parking_lot::Mutex;
use sterna_hal::{DevRange, DeviceError};
use sterna_host::mmu::Mmu;
use sterna_host::sys::{invalid, to_usize};

use crate::fixed::Fixed;
use crate::pool::{Buffer, usage};
use crate::raw::Raw;
use crate::sparse::Sparse;

/// Imports are not made shorter than this to please a driver.
const LEAST_PIECE: u64 = 64 << 20;

/// One of the kinds.
#[derive(Debug)]
pub(crate) enum Table {
    Mmu(Box<HostAddresses>),
    Sparse(Sparse),
    Fixed(Fixed),
}

/// Kind *mmu*: a window of host addresses, imported where it is reserved.
///
/// **Guarantee:** the device's addresses of a reservation are its host addresses, or there is no reservation. **Lock:**
/// `imports`, for look-ups.
#[derive(Debug)]
pub(crate) struct HostAddresses {
    pub(crate) mmu: Mmu,
    raw: Arc<Raw>,
    /// What stands for each reservation, by its address.
    imports: Mutex<BTreeMap<u64, Vec<Import>>>,
}

#[derive(Debug)]
struct Import {
    memory: vk::DeviceMemory,
    buffer: vk::Buffer,
    bytes: u64,
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
            Self::Sparse(t) => t.locate(first, offset, bytes),
            Self::Fixed(t) => t.locate(first, offset, bytes),
        }
    }
}

impl HostAddresses {
    pub(crate) fn new(raw: &Arc<Raw>, mmu: Mmu) -> Self {
        Self { mmu, raw: Arc::clone(raw), imports: Mutex::default() }
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
        imports.into_iter().flatten().for_each(|i| self.destroy(&i));
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
        let mut imports = Vec::new();
        for offset in (0..bytes).step_by(to_usize(piece)) {
            match self.import_piece(range.at.0 + offset, piece.min(bytes - offset)) {
                Ok(import) => imports.push(import),
                Err(e) => {
                    imports.iter().for_each(|i| self.destroy(i));
                    return Err(e);
                }
            }
        }
        Ok(imports)
    }

    fn import_piece(&self, at: u64, bytes: u64) -> Result<Import, DeviceError> {
        let (raw, device) = (&self.raw, &self.raw.device);
        let import = raw.import.as_ref().ok_or_else(|| invalid("import", "the driver cannot import host memory"))?;
        let handle = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let pointer = std::ptr::with_exposed_provenance_mut(to_usize(at));
        // SAFETY: reserved addresses that stay ours until the import is destroyed. That nothing is mapped there now, and other
        // things later, is more than the specification allows; the probe has shown that this driver does not mind.
        unsafe {
            let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
            let got =
                (import.fp().get_memory_host_pointer_properties_ext)(device.handle(), handle, pointer, &mut properties);
            got.result().map_err(raw.failed("vkGetMemoryHostPointerPropertiesEXT"))?;
            let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(handle);
            let info = vk::BufferCreateInfo::default().size(bytes).usage(usage()).push_next(&mut external);
            let buffer = device.create_buffer(&info, None).map_err(raw.failed("vkCreateBuffer"))?;
            let needs = device.get_buffer_memory_requirements(buffer);
            let types = properties.memory_type_bits & needs.memory_type_bits;
            let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
            let mut from = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(handle).host_pointer(pointer);
            let info = vk::MemoryAllocateInfo::default()
                .allocation_size(bytes)
                .memory_type_index(types.trailing_zeros().min(31))
                .push_next(&mut flags)
                .push_next(&mut from);
            let memory = device.allocate_memory(&info, None).map_err(|code| {
                device.destroy_buffer(buffer, None);
                raw.failed("vkAllocateMemory")(code)
            })?;
            let made = Import { memory, buffer, bytes };
            let bound = device.bind_buffer_memory(buffer, memory, 0).map_err(raw.failed("vkBindBufferMemory"));
            let address =
                bound.map(|()| device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(buffer)));
            let address = address.inspect_err(|_| self.destroy(&made))?;
            if address != at {
                self.destroy(&made);
                return Err(invalid("import", format!("host address {at:#x} became device address {address:#x}")));
            }
            Ok(made)
        }
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

    fn destroy(&self, import: &Import) {
        // SAFETY: nothing in flight uses the range any more.
        unsafe {
            self.raw.device.destroy_buffer(import.buffer, None);
            self.raw.device.free_memory(import.memory, None);
        }
    }
}

impl Drop for HostAddresses {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.imports.lock());
        left.into_values().flatten().for_each(|i| self.destroy(&i));
    }
}
