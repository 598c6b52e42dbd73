//! The floor of launches on Vulkan: the same shader by plain calls of the driver. A command buffer for each launch, recorded anew each
//! time and submitted; the last one is waited for, by a timeline semaphore.

use anyhow::{Context, Result};
use ash::vk;

/// A device with one pipeline, by plain calls.
pub(crate) struct Plain {
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    queue: vk::Queue,
    pool: vk::CommandPool,
    commands: Vec<vk::CommandBuffer>,
    semaphore: vk::Semaphore,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    value: u64,
}

impl Plain {
    /// The device whose name is `name`, with the shader `code`, for up to `most` launches with one wait.
    pub(crate) fn new(name: &str, code: &[u8], most: u32) -> Result<Self> {
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
            let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).push_next(&mut twelve);
            let device = instance.create_device(physical, &info, None)?;
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
            let pool = vk::CommandPoolCreateInfo::default().queue_family_index(family);
            let pool = device.create_command_pool(&pool, None)?;
            let commands = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(most);
            let commands = device.allocate_command_buffers(&commands)?;
            let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
            let semaphore = device.create_semaphore(&vk::SemaphoreCreateInfo::default().push_next(&mut kind), None)?;
            let queue = device.get_device_queue(family, 0);
            Ok(Self { _entry: entry, instance, device, queue, pool, commands, semaphore, layout, pipeline, value: 0 })
        }
    }

    /// Records and submits `launches` dispatches of `groups` workgroups one by one, and waits for the last.
    pub(crate) fn launch_and_wait(&mut self, launches: usize, groups: u32, push: &[u8]) -> Result<()> {
        let device = &self.device;
        let signals = [self.semaphore];
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
                let (commands, values) = ([*cmd], [self.value]);
                let mut timeline = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&values);
                let info = vk::SubmitInfo::default().command_buffers(&commands).signal_semaphores(&signals);
                device.queue_submit(self.queue, &[info.push_next(&mut timeline)], vk::Fence::null())?;
            }
            let values = [self.value];
            let wait = vk::SemaphoreWaitInfo::default().semaphores(&signals).values(&values);
            Ok(device.wait_semaphores(&wait, u64::MAX)?)
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: waited for; each is destroyed once, the device last but one.
        unsafe {
            self.device.destroy_pipeline(self.pipeline, None);
            self.device.destroy_pipeline_layout(self.layout, None);
            self.device.destroy_semaphore(self.semaphore, None);
            self.device.destroy_command_pool(self.pool, None);
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}
