//! Raw Vulkan by `ash`: what a careful programmer writes. Either the host works in the buffers that the device uses (*mapped*: right
//! where memory is one), or in mapped staging buffers that are copied in the same submission as the kernel (*staged*: right where
//! it is not).

use anyhow::{Context, Result};
use ash::vk;

use crate::peer::{A, Clock, GROUPS, Peer, Turn, fill, sum};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    Mapped,
    Staged,
}

struct Buffer {
    buffer: vk::Buffer,
    /// Where the host has it.
    at: *mut f32,
}

pub struct Raw {
    _entry: ash::Entry,
    name: String,
    device: ash::Device,
    queue: vk::Queue,
    pool: vk::CommandPool,
    cmd: vk::CommandBuffer,
    fence: vk::Fence,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    set: vk::DescriptorSet,
    memory: Memory,
    n: usize,
    /// What the host works in, and what the kernel does, if that is something else.
    host: [Buffer; 2],
    local: Option<[Buffer; 2]>,
}

/// The shader that binds two buffers.
pub fn words() -> Vec<u32> {
    let (words, _) = include_bytes!("saxpy.spv").as_chunks::<4>();
    words.iter().map(|w| u32::from_le_bytes(*w)).collect()
}

impl Raw {
    pub fn new(name: &str, n: usize, memory: Memory) -> Result<Self> {
        // SAFETY: plain Vulkan, each call with what the specification asks for; what is made lives as long as the process.
        unsafe {
            let entry = ash::Entry::load()?;
            let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
            let instance = entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&app), None)?;
            let called = |d: vk::PhysicalDevice| {
                let p = instance.get_physical_device_properties(d);
                p.device_name_as_c_str().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
            };
            let all = instance.enumerate_physical_devices()?;
            let physical = all.into_iter().find(|d| called(*d).contains(name)).with_context(|| format!("no {name:?}"))?;
            let families = instance.get_physical_device_queue_family_properties(physical);
            let compute = |f: &vk::QueueFamilyProperties| f.queue_flags.contains(vk::QueueFlags::COMPUTE);
            let family = families.iter().position(compute).context("no compute queue")? as u32;
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
            let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues);
            let device = instance.create_device(physical, &info, None)?;
            let kinds = instance.get_physical_device_memory_properties(physical);

            let allocate = |usage, wanted: &[vk::MemoryPropertyFlags]| -> Result<Buffer> {
                let info = vk::BufferCreateInfo::default().size(4 * n as u64).usage(usage);
                let buffer = device.create_buffer(&info, None)?;
                let needs = device.get_buffer_memory_requirements(buffer);
                let kind = |flags: &vk::MemoryPropertyFlags| {
                    (0..kinds.memory_type_count).find(|i| {
                        needs.memory_type_bits >> i & 1 == 1
                            && kinds.memory_types[*i as usize].property_flags.contains(*flags)
                    })
                };
                let kind = wanted.iter().find_map(kind).context("no memory of that kind")?;
                let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind);
                let memory = device.allocate_memory(&info, None)?;
                device.bind_buffer_memory(buffer, memory, 0)?;
                let visible = kinds.memory_types[kind as usize]
                    .property_flags
                    .contains(vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT);
                let at = if visible {
                    device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty())?.cast()
                } else {
                    std::ptr::null_mut()
                };
                Ok(Buffer { buffer, at })
            };
            use vk::{BufferUsageFlags as Usage, MemoryPropertyFlags as Kind};
            let host = Kind::HOST_VISIBLE | Kind::HOST_COHERENT;
            let both = |usage, wanted: &[Kind]| -> Result<[Buffer; 2]> {
                Ok([allocate(usage, wanted)?, allocate(usage, wanted)?])
            };
            let copied = Usage::TRANSFER_SRC | Usage::TRANSFER_DST;
            let (host, local) = match memory {
                Memory::Mapped => (
                    both(Usage::STORAGE_BUFFER, &[host | Kind::HOST_CACHED | Kind::DEVICE_LOCAL, host | Kind::DEVICE_LOCAL, host])?,
                    None,
                ),
                Memory::Staged => (
                    both(copied, &[host | Kind::HOST_CACHED, host])?,
                    Some(both(Usage::STORAGE_BUFFER | copied, &[Kind::DEVICE_LOCAL])?),
                ),
            };

            let binding = |i| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(i)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            };
            let bindings = [binding(0), binding(1)];
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let layouts = [device.create_descriptor_set_layout(&info, None)?];
            let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(8)];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts).push_constant_ranges(&range);
            let layout = device.create_pipeline_layout(&info, None)?;
            let words = words();
            let module = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
            let pipeline = device.create_compute_pipelines(vk::PipelineCache::null(), &info, None).map_err(|e| e.1)?[0];

            let sizes =
                [vk::DescriptorPoolSize::default().ty(vk::DescriptorType::STORAGE_BUFFER).descriptor_count(2)];
            let info = vk::DescriptorPoolCreateInfo::default().max_sets(1).pool_sizes(&sizes);
            let sets = device.create_descriptor_pool(&info, None)?;
            let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(sets).set_layouts(&layouts);
            let set = device.allocate_descriptor_sets(&info)?[0];
            for (i, b) in local.as_ref().unwrap_or(&host).iter().enumerate() {
                let info = [vk::DescriptorBufferInfo::default().buffer(b.buffer).range(vk::WHOLE_SIZE)];
                let write = vk::WriteDescriptorSet::default()
                    .dst_set(set)
                    .dst_binding(i as u32)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .buffer_info(&info);
                device.update_descriptor_sets(&[write], &[]);
            }

            let info = vk::CommandPoolCreateInfo::default().queue_family_index(family);
            let pool = device.create_command_pool(&info, None)?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            let cmd = device.allocate_command_buffers(&info)?[0];
            let fence = device.create_fence(&vk::FenceCreateInfo::default(), None)?;
            let queue = device.get_device_queue(family, 0);
            let name = called(physical);
            Ok(Self { _entry: entry, name, device, queue, pool, cmd, fence, layout, pipeline, set, memory, n, host, local })
        }
    }

    fn run(&self) -> Result<()> {
        let (device, cmd) = (&self.device, self.cmd);
        // SAFETY: as above; the submission before has been waited for.
        unsafe {
            device.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty())?;
            let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
            device.begin_command_buffer(cmd, &once)?;
            let barrier = |from: (vk::PipelineStageFlags, vk::AccessFlags), to: (vk::PipelineStageFlags, vk::AccessFlags)| {
                let access = [vk::MemoryBarrier::default().src_access_mask(from.1).dst_access_mask(to.1)];
                device.cmd_pipeline_barrier(cmd, from.0, to.0, vk::DependencyFlags::empty(), &access, &[], &[]);
            };
            use vk::{AccessFlags as Access, PipelineStageFlags as Stage};
            let region = [vk::BufferCopy::default().size(4 * self.n as u64)];
            if let Some(local) = &self.local {
                for (from, to) in self.host.iter().zip(local) {
                    device.cmd_copy_buffer(cmd, from.buffer, to.buffer, &region);
                }
                let use_ = Access::SHADER_READ | Access::SHADER_WRITE;
                barrier((Stage::TRANSFER, Access::TRANSFER_WRITE), (Stage::COMPUTE_SHADER, use_));
            }
            device.cmd_bind_pipeline(cmd, vk::PipelineBindPoint::COMPUTE, self.pipeline);
            device.cmd_bind_descriptor_sets(cmd, vk::PipelineBindPoint::COMPUTE, self.layout, 0, &[self.set], &[]);
            let mut push = [0; 8];
            push[..4].copy_from_slice(&A.to_le_bytes());
            push[4..].copy_from_slice(&(self.n as u32).to_le_bytes());
            device.cmd_push_constants(cmd, self.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
            device.cmd_dispatch(cmd, GROUPS, 1, 1);
            let wrote = (Stage::COMPUTE_SHADER, Access::SHADER_WRITE);
            if let Some(local) = &self.local {
                barrier(wrote, (Stage::TRANSFER, Access::TRANSFER_READ));
                device.cmd_copy_buffer(cmd, local[1].buffer, self.host[1].buffer, &region);
                barrier((Stage::TRANSFER, Access::TRANSFER_WRITE), (Stage::HOST, Access::HOST_READ));
            } else {
                barrier(wrote, (Stage::HOST, Access::HOST_READ));
            }
            device.end_command_buffer(cmd)?;
            let commands = [cmd];
            let info = [vk::SubmitInfo::default().command_buffers(&commands)];
            device.queue_submit(self.queue, &info, self.fence)?;
            device.wait_for_fences(&[self.fence], true, u64::MAX)?;
            Ok(device.reset_fences(&[self.fence])?)
        }
    }
}

impl Peer for Raw {
    fn name(&self) -> &'static str {
        if self.memory == Memory::Mapped { "raw ash, mapped" } else { "raw ash, staged" }
    }

    fn device(&self) -> String {
        self.name.clone()
    }

    fn round(&mut self, seed: u32) -> Result<Turn> {
        // SAFETY: mapped, as long as said, and the device is done with them.
        let [x, y] = [0, 1].map(|i| unsafe { std::slice::from_raw_parts_mut(self.host[i].at, self.n) });
        let mut clock = Clock::start();
        fill(x, y, seed);
        let inputs = clock.lap();
        self.run()?;
        let kernel = clock.lap();
        let sum = sum(y);
        Ok(Turn { inputs, kernel, result: clock.lap(), sum })
    }
}
