//! Buffers, with memory from gpu-allocator.
//!
//! **Guarantee:** a buffer has an address, and its memory lives as long as it does. A software driver's memory is the machine's: there
//! the machine is asked ([`Buffer::have`]). **Lock:** `allocator`, held over its bookkeeping and the driver's allocation calls; nothing
//! else is taken inside.

use std::ptr::NonNull;
use std::sync::Arc;

use ash::vk;
use gpu_allocator::vulkan::{Allocation, AllocationCreateDesc, AllocationScheme, Allocator, AllocatorCreateDesc};
use gpu_allocator::{AllocationError, MemoryLocation};
use parking_lot::Mutex;
use sterna_hal::{DeviceError, DeviceKind};
use sterna_host::room;
use sterna_host::sys::to_usize;

use crate::error::VulkanError;
use crate::raw::Raw;

/// Memory of a device.
pub(crate) struct Pool {
    // Before `raw`: it frees memory when it is dropped.
    allocator: Mutex<Allocator>,
    raw: Arc<Raw>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

/// A buffer with memory.
pub(crate) struct Buffer {
    pub(crate) raw: vk::Buffer,
    /// The device's address of its first byte.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    /// Where the host reaches its first byte, if it can.
    pub(crate) mapped: Option<NonNull<u8>>,
    allocation: Option<Allocation>,
    pool: Arc<Pool>,
}

// SAFETY: the mapped address is plain memory; who uses it answers for that.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("address", &self.address).finish_non_exhaustive()
    }
}

pub(crate) fn usage() -> vk::BufferUsageFlags {
    vk::BufferUsageFlags::STORAGE_BUFFER
        | vk::BufferUsageFlags::UNIFORM_BUFFER
        | vk::BufferUsageFlags::TRANSFER_SRC
        | vk::BufferUsageFlags::TRANSFER_DST
        | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
}

impl Pool {
    pub(crate) fn new(raw: &Arc<Raw>) -> Result<Arc<Self>, VulkanError> {
        let desc = AllocatorCreateDesc {
            instance: raw.instance.raw.clone(),
            device: raw.device.clone(),
            physical_device: raw.gpu.raw,
            debug_settings: gpu_allocator::AllocatorDebugSettings::default(),
            buffer_device_address: true,
            allocation_sizes: Default::default(),
        };
        let allocator = Allocator::new(&desc).map_err(|e| VulkanError::Device(refused("the allocator", 0, &e)))?;
        Ok(Arc::new(Self { allocator: Mutex::new(allocator), raw: Arc::clone(raw) }))
    }

    pub(crate) fn buffer(self: &Arc<Self>, bytes: u64, location: MemoryLocation, name: &str) -> Result<Buffer, DeviceError> {
        let made = self.chunk(bytes, location, name, u32::MAX, 1)?;
        made.have(0, bytes)?;
        Ok(made)
    }

    /// A buffer in memory of one of the `types`, beginning at a multiple of `alignment` of it; whoever has it used asks the machine.
    pub(crate) fn chunk(
        self: &Arc<Self>,
        bytes: u64,
        location: MemoryLocation,
        name: &str,
        types: u32,
        alignment: u64,
    ) -> Result<Buffer, DeviceError> {
        let raw = &self.raw;
        let families = raw.families();
        let mut info = vk::BufferCreateInfo::default().size(bytes).usage(usage());
        if families.len() > 1 {
            info = info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(&families);
        }
        // SAFETY: the structures are alive.
        let made = unsafe { raw.device.create_buffer(&info, None) }.map_err(raw.failed("vkCreateBuffer"))?;
        let mut buffer = Buffer { raw: made, address: 0, bytes, mapped: None, allocation: None, pool: Arc::clone(self) };
        // SAFETY: a buffer of this device.
        let mut requirements = unsafe { raw.device.get_buffer_memory_requirements(made) };
        requirements.alignment = requirements.alignment.max(alignment);
        requirements.memory_type_bits &= types;
        let desc = AllocationCreateDesc {
            name,
            requirements,
            location,
            linear: true,
            allocation_scheme: AllocationScheme::GpuAllocatorManaged,
        };
        let allocation = self.allocator.lock().allocate(&desc).map_err(|e| refused("vkAllocateMemory", bytes, &e))?;
        // SAFETY: memory made for this buffer, bound once; the address is asked for a buffer with memory.
        unsafe {
            let bound = raw.device.bind_buffer_memory(made, allocation.memory(), allocation.offset());
            buffer.mapped = allocation.mapped_ptr().map(NonNull::cast);
            buffer.allocation = Some(allocation);
            bound.map_err(raw.failed("vkBindBufferMemory"))?;
            buffer.address = raw.device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(made));
        }
        // Lavapipe gives the address -1 where it found no memory.
        if buffer.address == 0 || buffer.address.checked_add(bytes).is_none() {
            return Err(DeviceError::OutOfMemory { requested: bytes, in_use: 0, budget: 0 });
        }
        Ok(buffer)
    }
}

impl Buffer {
    /// Sees to it that bytes of it can be used: where the device's memory is the machine's, and nobody else asks for it.
    pub(crate) fn have(&self, at: u64, bytes: u64) -> Result<(), DeviceError> {
        if self.pool.raw.gpu.kind != DeviceKind::Software {
            return Ok(());
        }
        let given = match self.mapped {
            // SAFETY: inside the buffer, all of which is mapped.
            Some(mapped) => room::give(unsafe { mapped.add(to_usize(at)) }, bytes),
            None => room::take(bytes).map(room::Grant::lapse),
        };
        given.map_err(|_| DeviceError::OutOfMemory { requested: bytes, in_use: 0, budget: 0 })
    }

    /// Its memory, and where in it the buffer begins.
    pub(crate) fn memory(&self) -> (vk::DeviceMemory, u64) {
        // SAFETY: the handle is used while the buffer lives.
        self.allocation.as_ref().map_or((vk::DeviceMemory::null(), 0), |a| unsafe { (a.memory(), a.offset()) })
    }
}

fn refused(call: &'static str, bytes: u64, error: &AllocationError) -> DeviceError {
    match error {
        AllocationError::OutOfMemory => DeviceError::OutOfMemory { requested: bytes, in_use: 0, budget: 0 },
        e => DeviceError::Driver { call, code: 0, text: format!("{bytes} bytes: {e}") },
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: who drops it has seen to it that the device does not use it any more.
        unsafe { self.pool.raw.device.destroy_buffer(self.raw, None) };
        if let Some(allocation) = self.allocation.take() {
            // It fails for memory of another allocator only.
            let _ = self.pool.allocator.lock().free(allocation);
        }
    }
}
