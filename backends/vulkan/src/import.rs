//! Host addresses as device memory (`VK_EXT_external_memory_host`): one buffer over each stretch.
//!
//! **Guarantee:** the buffer is all of the stretch, in memory that host and device see alike without further calls. No states, no
//! locks.

use std::ffi::c_void;
use std::sync::Arc;

use ash::vk;
use sterna_hal::DeviceError;
use sterna_host::sys::invalid;

use crate::raw::Raw;

const HANDLE: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;

/// An imported stretch of host addresses.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    pub(crate) bytes: u64,
    raw: Arc<Raw>,
}

impl Import {
    /// # Safety
    /// The addresses are the caller's and stay so until the import is dropped, which happens when the device has done with it. Both
    /// ends are multiples of what the driver wants.
    pub(crate) unsafe fn new(
        raw: &Arc<Raw>,
        at: *mut c_void,
        bytes: u64,
        usage: vk::BufferUsageFlags,
    ) -> Result<Self, DeviceError> {
        let device = &raw.device;
        let import = raw.import.as_ref().ok_or_else(|| invalid("import", "the driver cannot import host memory"))?;
        let mut this = Self { buffer: vk::Buffer::null(), memory: vk::DeviceMemory::null(), bytes, raw: Arc::clone(raw) };
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(HANDLE);
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).push_next(&mut external);
        // SAFETY: the caller's; the structures are alive, and what is made is kept in `this`.
        unsafe {
            let got = (import.fp().get_memory_host_pointer_properties_ext)(device.handle(), HANDLE, at, &mut properties);
            got.result().map_err(raw.failed("vkGetMemoryHostPointerPropertiesEXT"))?;
            this.buffer = device.create_buffer(&info, None).map_err(raw.failed("vkCreateBuffer"))?;
            let needs = device.get_buffer_memory_requirements(this.buffer);
            let types = properties.memory_type_bits & needs.memory_type_bits & raw.gpu.can.coherent_types;
            if types == 0 {
                return Err(invalid("import", "the driver offers no coherent memory for it"));
            }
            let mut from = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(HANDLE).host_pointer(at);
            let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
            let mut info = vk::MemoryAllocateInfo::default()
                .allocation_size(bytes)
                .memory_type_index(types.trailing_zeros())
                .push_next(&mut from);
            if usage.contains(vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS) {
                info = info.push_next(&mut flags);
            }
            this.memory = device.allocate_memory(&info, None).map_err(raw.failed("vkAllocateMemory"))?;
            device.bind_buffer_memory(this.buffer, this.memory, 0).map_err(raw.failed("vkBindBufferMemory"))?;
        }
        Ok(this)
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        // SAFETY: whoever made it has seen to it that the device does not use it any more; handles that are null do nothing.
        unsafe {
            self.raw.device.destroy_buffer(self.buffer, None);
            self.raw.device.free_memory(self.memory, None);
        }
    }
}

/// Whether the driver says that buffers of this `usage` can be over host addresses.
pub(crate) fn is_offered(raw: &Raw, usage: vk::BufferUsageFlags) -> bool {
    let info = vk::PhysicalDeviceExternalBufferInfo::default().usage(usage).handle_type(HANDLE);
    let mut said = vk::ExternalBufferProperties::default();
    // SAFETY: a device of this instance; the structures are alive.
    unsafe { raw.instance.raw.get_physical_device_external_buffer_properties(raw.gpu.raw, &info, &mut said) };
    let features = said.external_memory_properties.external_memory_features;
    raw.import.is_some()
        && features.contains(vk::ExternalMemoryFeatureFlags::IMPORTABLE)
        && !features.contains(vk::ExternalMemoryFeatureFlags::DEDICATED_ONLY)
}
