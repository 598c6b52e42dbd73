//! Vulkan by plain calls of the driver, and the floor of launches: the same shader. A command buffer for each launch, recorded anew each
//! time and submitted; the last one is waited for, by a timeline semaphore.

use std::ffi::CStr;

use anyhow::{Context, Result};
use ash::vk;

/// A device by plain calls, with the queue of its first family that computes.
pub(super) struct Opened {
    _entry: ash::Entry,
    pub(super) instance: ash::Instance,
    pub(super) physical: vk::PhysicalDevice,
    pub(super) device: ash::Device,
    pub(super) family: u32,
    pub(super) queue: vk::Queue,
    pub(super) semaphore: vk::Semaphore,
}

impl Opened {
    /// The device whose name is `name`.
    pub(super) fn new(name: &str, extensions: &[&CStr]) -> Result<Self> {
        // SAFETY: plain Vulkan, each call with what the specification asks for; what is made lives as long as this process.
        unsafe {
            let entry = ash::Entry::load()?;
            let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
            let instance = entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&app), None)?;
            let named = |d: &vk::PhysicalDevice| {
                let p = instance.get_physical_device_properties(*d);
                p.device_name_as_c_str().is_ok_and(|n| n.to_string_lossy() == name)
            };
            let physical = instance.enumerate_physical_devices()?.into_iter().find(named).context("the device is gone")?;
            let families = instance.get_physical_device_queue_family_properties(physical);
            let compute = |f: &vk::QueueFamilyProperties| f.queue_flags.contains(vk::QueueFlags::COMPUTE);
            let family = families.iter().position(compute).context("no compute queue")? as u32;
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
            let mut twelve =
                vk::PhysicalDeviceVulkan12Features::default().buffer_device_address(true).timeline_semaphore(true);
            let extensions: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
            let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&extensions);
            let device = instance.create_device(physical, &info.push_next(&mut twelve), None)?;
            let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
            let semaphore = device.create_semaphore(&vk::SemaphoreCreateInfo::default().push_next(&mut kind), None)?;
            let queue = device.get_device_queue(family, 0);
            Ok(Self { _entry: entry, instance, physical, device, family, queue, semaphore })
        }
    }

    /// Submits what is recorded; the semaphore gets `value` when it has ended.
    pub(super) fn submit(&self, cmd: vk::CommandBuffer, value: u64) -> Result<()> {
        let (commands, signals, values) = ([cmd], [self.semaphore], [value]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&values);
        let info = vk::SubmitInfo::default().command_buffers(&commands).signal_semaphores(&signals);
        // SAFETY: as above; recorded to its end.
        Ok(unsafe { self.device.queue_submit(self.queue, &[info.push_next(&mut timeline)], vk::Fence::null()) }?)
    }

    pub(super) fn wait(&self, value: u64) -> Result<()> {
        let (semaphores, values) = ([self.semaphore], [value]);
        let wait = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: as above.
        Ok(unsafe { self.device.wait_semaphores(&wait, u64::MAX) }?)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: waited for; each is destroyed once, the device last but one.
        unsafe {
            self.device.destroy_semaphore(self.semaphore, None);
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

/// A device with one pipeline.
pub(crate) struct Plain {
    gpu: Opened,
    pool: vk::CommandPool,
    commands: Vec<vk::CommandBuffer>,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    value: u64,
}

impl Plain {
    /// The device whose name is `name`, with the shader `code`, for up to `most` launches with one wait.
    pub(crate) fn new(name: &str, code: &[u8], most: u32) -> Result<Self> {
        let gpu = Opened::new(name, &[])?;
        let device = &gpu.device;
        // SAFETY: as above.
        unsafe {
            let words: Vec<u32> = code.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
            let module = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
            let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(128)];
            let layout = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&range);
            let layout = device.create_pipeline_layout(&layout, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &info, None).map_err(|e| e.1);
            device.destroy_shader_module(module, None);
            let pipeline = made?[0];
            let pool = vk::CommandPoolCreateInfo::default().queue_family_index(gpu.family);
            let pool = device.create_command_pool(&pool, None)?;
            let commands = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(most);
            let commands = device.allocate_command_buffers(&commands)?;
            Ok(Self { gpu, pool, commands, layout, pipeline, value: 0 })
        }
    }

    /// Records and submits `launches` dispatches of `groups` workgroups one by one, and waits for the last.
    pub(crate) fn launch_and_wait(&mut self, launches: usize, groups: u32, push: &[u8]) -> Result<()> {
        let device = &self.gpu.device;
        // SAFETY: as above; those before have been waited for.
        unsafe {
            device.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty())?;
            for cmd in &self.commands[..launches] {
                let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
                device.begin_command_buffer(*cmd, &once)?;
                device.cmd_bind_pipeline(*cmd, vk::PipelineBindPoint::COMPUTE, self.pipeline);
                device.cmd_push_constants(*cmd, self.layout, vk::ShaderStageFlags::COMPUTE, 0, push);
                device.cmd_dispatch(*cmd, groups, 1, 1);
                // Without it neither the host nor the next launch may read what this one wrote.
                let barrier = [vk::MemoryBarrier::default()
                    .src_access_mask(vk::AccessFlags::SHADER_WRITE)
                    .dst_access_mask(vk::AccessFlags::SHADER_READ | vk::AccessFlags::HOST_READ)];
                let (before, behind) = (vk::PipelineStageFlags::COMPUTE_SHADER, vk::PipelineStageFlags::HOST);
                let behind = before | behind;
                device.cmd_pipeline_barrier(*cmd, before, behind, vk::DependencyFlags::empty(), &barrier, &[], &[]);
                device.end_command_buffer(*cmd)?;
                self.value += 1;
                self.gpu.submit(*cmd, self.value)?;
            }
        }
        self.gpu.wait(self.value)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: as above; the device is destroyed after them.
        unsafe {
            self.gpu.device.destroy_pipeline(self.pipeline, None);
            self.gpu.device.destroy_pipeline_layout(self.layout, None);
            self.gpu.device.destroy_command_pool(self.pool, None);
        }
    }
}
