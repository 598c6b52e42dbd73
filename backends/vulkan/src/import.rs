//! Memory of the host as device memory: one buffer over each stretch, by its addresses (`VK_EXT_external_memory_host`) or as a DMA buffer
//! (`VK_EXT_external_memory_dma_buf`).
//!
//! **Guarantee:** the buffer is all of the stretch, in memory that host and device see alike without further calls. No states, no
//! locks.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ash::vk;
use sterna_hal::DeviceError;
use sterna_host::sys::invalid;

use crate::raw::Raw;

/// What is imported.
#[derive(Debug)]
pub(crate) enum Stretch {
    /// Host addresses from here on.
    At(*mut c_void),
    DmaBuf(OwnedFd),
}

const ADDRESS: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
const DMA_BUF: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT;

/// An imported stretch of host memory.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    pub(crate) bytes: u64,
    raw: Arc<Raw>,
}

impl Import {
    /// # Safety
    /// Addresses are the caller's and stay so until the import is dropped, which happens when the device has done with it. Both
    /// ends are multiples of what the driver wants. A DMA buffer is as long as is said.
    pub(crate) unsafe fn new(
        raw: &Arc<Raw>,
        stretch: Stretch,
        bytes: u64,
        usage: vk::BufferUsageFlags,
    ) -> Result<Self, DeviceError> {
        let device = &raw.device;
        let mut this = Self { buffer: vk::Buffer::null(), memory: vk::DeviceMemory::null(), bytes, raw: Arc::clone(raw) };
        let handle = if matches!(stretch, Stretch::At(_)) { ADDRESS } else { DMA_BUF };
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(handle);
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).push_next(&mut external);
        // SAFETY: the caller's; the structures are alive, and what is made is kept in `this`. A descriptor is the driver's once the
        // allocation has succeeded.
        unsafe {
            let offered = match &stretch {
                Stretch::At(at) => {
                    let import = raw.import.as_ref().ok_or_else(|| lacks(handle))?;
                    let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
                    let ask = import.fp().get_memory_host_pointer_properties_ext;
                    let got = ask(device.handle(), handle, *at, &mut properties);
                    got.result().map_err(raw.failed("vkGetMemoryHostPointerPropertiesEXT"))?;
                    properties.memory_type_bits & raw.gpu.can.coherent_types
                }
                Stretch::DmaBuf(fd) => {
                    let import = raw.import_fd.as_ref().ok_or_else(|| lacks(handle))?;
                    let mut properties = vk::MemoryFdPropertiesKHR::default();
                    let got = import.get_memory_fd_properties(handle, fd.as_raw_fd(), &mut properties);
                    got.map_err(raw.failed("vkGetMemoryFdPropertiesKHR"))?;
                    // The memory is the host's whatever the type says: the device alone maps it by this.
                    properties.memory_type_bits
                }
            };
            this.buffer = device.create_buffer(&info, None).map_err(raw.failed("vkCreateBuffer"))?;
            let types = offered & device.get_buffer_memory_requirements(this.buffer).memory_type_bits;
            if types == 0 {
                return Err(invalid("import", "the driver offers no fitting memory for it"));
            }
            let mut from = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(handle);
            let mut from_fd = vk::ImportMemoryFdInfoKHR::default().handle_type(handle);
            let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
            let mut info =
                vk::MemoryAllocateInfo::default().allocation_size(bytes).memory_type_index(types.trailing_zeros());
            info = match &stretch {
                Stretch::At(at) => {
                    from = from.host_pointer(*at);
                    info.push_next(&mut from)
                }
                Stretch::DmaBuf(fd) => {
                    from_fd = from_fd.fd(fd.as_raw_fd());
                    info.push_next(&mut from_fd)
                }
            };
            if usage.contains(vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS) {
                info = info.push_next(&mut flags);
            }
            this.memory = device.allocate_memory(&info, None).map_err(raw.failed("vkAllocateMemory"))?;
            if let Stretch::DmaBuf(fd) = stretch {
                std::mem::forget(fd);
            }
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

fn lacks(handle: vk::ExternalMemoryHandleTypeFlags) -> DeviceError {
    let extension = if handle == ADDRESS { "VK_EXT_external_memory_host" } else { "VK_EXT_external_memory_dma_buf" };
    invalid("import", format!("the driver does not import such memory ({extension})"))
}

/// Looks whether the driver says that buffers of this `usage` can be over host addresses, or over DMA buffers.
///
/// # Errors
/// It does not.
pub(crate) fn offered(raw: &Raw, by_address: bool, usage: vk::BufferUsageFlags) -> Result<(), DeviceError> {
    let handle = if by_address { ADDRESS } else { DMA_BUF };
    let info = vk::PhysicalDeviceExternalBufferInfo::default().usage(usage).handle_type(handle);
    let mut said = vk::ExternalBufferProperties::default();
    let known = if by_address { raw.import.is_some() } else { raw.import_fd.is_some() };
    if known {
        // SAFETY: a device of this instance; the structures are alive.
        unsafe { raw.instance.raw.get_physical_device_external_buffer_properties(raw.gpu.raw, &info, &mut said) };
    }
    let features = said.external_memory_properties.external_memory_features;
    let fits = features.contains(vk::ExternalMemoryFeatureFlags::IMPORTABLE)
        && !features.contains(vk::ExternalMemoryFeatureFlags::DEDICATED_ONLY);
    if fits { Ok(()) } else { Err(lacks(handle)) }
}
