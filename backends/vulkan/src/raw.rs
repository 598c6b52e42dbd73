//! The logical device: what everything made from it keeps alive.
//!
//! **Guarantee:** it is destroyed after everything that was made from it. **States:** present, then lost, for good; whoever gets
//! `ERROR_DEVICE_LOST` says so here. No locks: a `VkQueue`'s is beside the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ash::{ext, khr, vk};
use parking_lot::Mutex;
use sterna_hal::DeviceError;

use crate::error::{VulkanError, driver, opening};
use crate::gpu::Gpu;
use crate::instance::Instance;

/// A queue of the driver's, which one thread may use at a time.
pub(crate) type Shared = Arc<Mutex<vk::Queue>>;

pub(crate) struct Raw {
    pub(crate) device: ash::Device,
    pub(crate) gpu: Gpu,
    /// For the import of host memory, where there is such.
    pub(crate) import: Option<ext::external_memory_host::Device>,
    /// For the import of DMA buffers.
    pub(crate) import_fd: Option<khr::external_memory_fd::Device>,
    pub(crate) compute: (u32, Shared),
    /// Where copies go: a family of its own, a second queue, or the same queue as launches.
    pub(crate) transfer: (u32, Shared),
    /// Where sparse buffers are bound, if the device has such: a family or a queue of its own if it can be had.
    pub(crate) sparse: Option<(u32, Shared)>,
    pub(crate) instance: Arc<Instance>,
    lost: AtomicBool,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").field("name", &self.gpu.name).finish_non_exhaustive()
    }
}

/// Which queues do what: a family, and the number of a queue in it.
struct Roles {
    launches: (u32, u32),
    copies: (u32, u32),
    binds: Option<(u32, u32)>,
    /// How many queues of each family that takes.
    asked: Vec<(u32, u32)>,
}

impl Roles {
    /// Each role has a queue of its own, as far as there are so many in its family.
    fn choose(instance: &Instance, gpu: &Gpu) -> Result<Self, VulkanError> {
        // SAFETY: a device of this instance.
        let families = unsafe { instance.raw.get_physical_device_queue_family_properties(gpu.raw) };
        let find = |yes: vk::QueueFlags, no: vk::QueueFlags| {
            families.iter().position(|f| f.queue_flags.contains(yes) && !f.queue_flags.intersects(no)).map(|i| i as u32)
        };
        let (compute, graphics) = (vk::QueueFlags::COMPUTE, vk::QueueFlags::GRAPHICS);
        let launches = find(compute, graphics).or_else(|| find(compute, vk::QueueFlags::empty()));
        let launches = launches
            .ok_or_else(|| VulkanError::MissingFeature { device: gpu.name.clone(), feature: "a compute queue".into() })?;
        let copies = find(vk::QueueFlags::TRANSFER, compute | graphics).unwrap_or(launches);
        let binding = vk::QueueFlags::SPARSE_BINDING;
        let binds = find(binding, compute | graphics)
            .or_else(|| families[launches as usize].queue_flags.contains(binding).then_some(launches))
            .or_else(|| find(binding, vk::QueueFlags::empty()))
            .filter(|_| gpu.can.sparse);
        let mut asked: Vec<(u32, u32)> = Vec::new();
        let mut role = |family: u32| match asked.iter_mut().find(|(f, _)| *f == family) {
            Some((_, n)) => {
                *n = (*n + 1).min(families[family as usize].queue_count);
                (family, *n - 1)
            }
            None => {
                asked.push((family, 1));
                (family, 0)
            }
        };
        let (launches, copies, binds) = (role(launches), role(copies), binds.map(&mut role));
        Ok(Self { launches, copies, binds, asked })
    }
}

/// Makes the logical device, with queues of each family as many as are asked for.
fn make(instance: &Instance, gpu: &Gpu, asked: &[(u32, u32)]) -> Result<ash::Device, VulkanError> {
    let priorities = [1.0; 3];
    let queue = |(family, n): &(u32, u32)| {
        vk::DeviceQueueCreateInfo::default().queue_family_index(*family).queue_priorities(&priorities[..*n as usize])
    };
    let queues: Vec<_> = asked.iter().map(queue).collect();
    let can = &gpu.can;
    let mut extensions = Vec::new();
    if can.host_import {
        extensions.extend([ext::external_memory_host::NAME.as_ptr(), khr::external_memory::NAME.as_ptr()]);
    }
    if can.dma_buf_import {
        extensions.extend([ext::external_memory_dma_buf::NAME.as_ptr(), khr::external_memory_fd::NAME.as_ptr()]);
    }
    if can.memory_budget {
        extensions.push(ext::memory_budget::NAME.as_ptr());
    }
    if can.robust2 {
        extensions.push(ext::robustness2::NAME.as_ptr());
    }
    let mut sixteen = vk::PhysicalDevice16BitStorageFeatures::default().storage_buffer16_bit_access(can.storage16);
    let mut twelve = vk::PhysicalDeviceVulkan12Features::default()
        .buffer_device_address(true)
        .timeline_semaphore(true)
        .shader_int8(can.int8)
        .shader_float16(can.float16)
        .storage_buffer8_bit_access(can.storage8)
        .shader_buffer_int64_atomics(can.int64_atomics)
        .vulkan_memory_model(can.memory_model)
        .vulkan_memory_model_device_scope(can.memory_model_device);
    let mut pointers = vk::PhysicalDeviceVariablePointersFeatures::default()
        .variable_pointers_storage_buffer(can.variable_pointers)
        .variable_pointers(can.variable_pointers);
    let mut four = vk::PhysicalDeviceMaintenance4Features::default().maintenance4(can.maintenance4);
    // Of use to descriptors alone: what is reached by address is bounded by the shader.
    let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(can.robust2);
    let base = vk::PhysicalDeviceFeatures::default()
        .robust_buffer_access(can.robust)
        .sparse_binding(can.sparse)
        .sparse_residency_buffer(can.sparse)
        .sparse_residency_aliased(can.sparse)
        .shader_int64(can.int64)
        .shader_int16(can.int16)
        .shader_float64(can.float64);
    let mut info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extensions)
        .enabled_features(&base)
        .push_next(&mut sixteen)
        .push_next(&mut twelve)
        .push_next(&mut pointers);
    if can.maintenance4 {
        info = info.push_next(&mut four);
    }
    if can.robust2 {
        info = info.push_next(&mut robust);
    }
    // SAFETY: the device is of this instance; everything that the structures point to is alive.
    unsafe { instance.raw.create_device(gpu.raw, &info, None) }.map_err(opening("vkCreateDevice"))
}

impl Raw {
    pub(crate) fn new(instance: Arc<Instance>, gpu: Gpu) -> Result<Arc<Self>, VulkanError> {
        if let Some(feature) = &gpu.lacks {
            return Err(VulkanError::MissingFeature { device: gpu.name.clone(), feature: feature.clone() });
        }
        let roles = Roles::choose(&instance, &gpu)?;
        let device = make(&instance, &gpu, &roles.asked)?;
        let can = &gpu.can;
        let import = can.host_import.then(|| ext::external_memory_host::Device::new(&instance.raw, &device));
        let import_fd = can.dma_buf_import.then(|| khr::external_memory_fd::Device::new(&instance.raw, &device));
        let mut made: Vec<((u32, u32), Shared)> = Vec::new();
        let mut queue = |(family, index): (u32, u32)| {
            if let Some((_, queue)) = made.iter().find(|(of, _)| *of == (family, index)) {
                return (family, Arc::clone(queue));
            }
            // SAFETY: queues that were asked for above.
            let queue = unsafe { Arc::new(Mutex::new(device.get_device_queue(family, index))) };
            made.push(((family, index), Arc::clone(&queue)));
            (family, queue)
        };
        let (compute, transfer, sparse) = (queue(roles.launches), queue(roles.copies), roles.binds.map(&mut queue));
        Ok(Arc::new(Self {
            import,
            import_fd,
            compute,
            transfer,
            sparse,
            device,
            gpu,
            instance,
            lost: AtomicBool::new(false),
        }))
    }

    /// The families of the queues that use buffers, each once.
    pub(crate) fn families(&self) -> Vec<u32> {
        let mut families = vec![self.compute.0, self.transfer.0];
        families.dedup();
        families
    }

    /// Notes the loss of the device, if `error` is that.
    pub(crate) fn noticed(&self, error: DeviceError) -> DeviceError {
        if matches!(error, DeviceError::Lost(_)) {
            self.lose();
        }
        error
    }

    /// As [`driver`], and notes a loss.
    pub(crate) fn failed(&self, call: &'static str) -> impl Fn(vk::Result) -> DeviceError + '_ {
        move |code| self.noticed(driver(call)(code))
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn lost_flag(&self) -> &AtomicBool {
        &self.lost
    }

    pub(crate) fn loss(&self) -> DeviceError {
        DeviceError::Lost(format!("{} is gone", self.gpu.name))
    }

    pub(crate) fn present(&self) -> Result<(), DeviceError> {
        if self.is_lost() { Err(self.loss()) } else { Ok(()) }
    }

    /// Waits until no queue has anything to do. For a lost device: its waits end at once, its work perhaps later.
    pub(crate) fn wait_idle(&self) {
        for (_, queue) in [Some(&self.compute), Some(&self.transfer), self.sparse.as_ref()].into_iter().flatten() {
            let queue = queue.lock();
            // SAFETY: a queue of this device, which is locked. What fails here does nothing any more.
            let _ = unsafe { self.device.queue_wait_idle(*queue) };
        }
    }

    /// A timeline semaphore at 0.
    pub(crate) fn semaphore(&self) -> Result<vk::Semaphore, VulkanError> {
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: the structures are alive.
        unsafe { self.device.create_semaphore(&info, None) }.map_err(opening("vkCreateSemaphore"))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: whoever made something from it keeps it alive until that is destroyed.
        unsafe { self.device.destroy_device(None) };
    }
}

/// The first device there is, for unit tests; without one it says so.
#[cfg(test)]
pub(crate) fn any() -> Option<Arc<Raw>> {
    let open = || {
        let instance = Instance::shared().ok()?;
        let gpu = crate::gpu::list(&instance).ok()?.into_iter().next()?;
        Raw::new(instance, gpu).ok()
    };
    let raw = open();
    if raw.is_none() {
        println!("SKIP: no Vulkan device");
    }
    raw
}
