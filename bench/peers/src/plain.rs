//! Plain Vulkan, by ash: buffers that are mapped, or staging buffers and device memory.

use anyhow::{Context, Result};
use ash::vk;

use crate::saxpy::{ARGS, words};
use crate::{GROUPS, N, Peer, inputs, sum};

const BYTES: u64 = 4 * N as u64;

/// The full name of the first device whose name contains `wanted`.
pub fn name(wanted: &str) -> Result<String> {
    // SAFETY: plain Vulkan, each call with what the specification asks for.
    unsafe {
        let entry = ash::Entry::load()?;
        let instance = entry.create_instance(&vk::InstanceCreateInfo::default(), None)?;
        let mut names = instance.enumerate_physical_devices()?.into_iter().map(|d| {
            let p = instance.get_physical_device_properties(d);
            p.device_name_as_c_str().unwrap_or_default().to_string_lossy().into_owned()
        });
        let found = names.find(|n| n.to_lowercase().contains(&wanted.to_lowercase()));
        instance.destroy_instance(None);
        found.with_context(|| format!("the loader lists no device `{wanted}`"))
    }
}

struct Buffer {
    raw: vk::Buffer,
    memory: vk::DeviceMemory,
    mapped: Option<*mut f32>,
}

impl Buffer {
    #[allow(clippy::mut_from_ref, reason = "memory of the driver's, which one round at a time looks at")]
    fn slice(&self) -> &mut [f32] {
        // SAFETY: a mapping of so many elements that lives as long as the buffer; the device is idle when the host is here.
        unsafe { std::slice::from_raw_parts_mut(self.mapped.expect("a mapped buffer"), N) }
    }
}

struct Buffers {
    /// What the host computes, and where it reads the result.
    x: Buffer,
    y: Buffer,
    /// With staging: what the device computes on.
    inner: Option<[Buffer; 2]>,
}

/// Handles but those of buffers live as long as the process.
pub struct Plain {
    _entry: ash::Entry,
    device: ash::Device,
    types: vk::PhysicalDeviceMemoryProperties,
    queue: vk::Queue,
    fence: vk::Fence,
    staging: bool,
    pipeline: vk::Pipeline,
    layout: vk::PipelineLayout,
    set: vk::DescriptorSet,
    pool: vk::CommandPool,
    /// The same commands in every round with the same buffers: recorded once for them.
    cmd: vk::CommandBuffer,
    buffers: Option<Buffers>,
}

type Flags = vk::MemoryPropertyFlags;
const KIND: vk::DescriptorType = vk::DescriptorType::STORAGE_BUFFER;

impl Plain {
    pub fn new(name: &str, staging: bool) -> Result<Self> {
        // SAFETY: plain Vulkan, each call with what the specification asks for.
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
            let device =
                instance.create_device(physical, &vk::DeviceCreateInfo::default().queue_create_infos(&queues), None)?;
            let types = instance.get_physical_device_memory_properties(physical);

            let bindings: [_; 2] = std::array::from_fn(|i| {
                let b = vk::DescriptorSetLayoutBinding::default().binding(i as u32).descriptor_type(KIND);
                b.descriptor_count(1).stage_flags(vk::ShaderStageFlags::COMPUTE)
            });
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&info, None)?];
            let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(8)];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&range);
            let layout = device.create_pipeline_layout(&info, None)?;
            let module = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words()), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default().stage(vk::ShaderStageFlags::COMPUTE);
            let info = vk::ComputePipelineCreateInfo::default().stage(stage.module(module).name(c"main")).layout(layout);
            let pipeline = device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None).map_err(|e| e.1)?[0];
            let sizes = [vk::DescriptorPoolSize { ty: KIND, descriptor_count: 2 }];
            let info = vk::DescriptorPoolCreateInfo::default().max_sets(1).pool_sizes(&sizes);
            let pool = device.create_descriptor_pool(&info, None)?;
            let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(pool).set_layouts(&sets);
            let set = device.allocate_descriptor_sets(&info)?[0];

            let info = vk::CommandPoolCreateInfo::default().queue_family_index(family);
            let pool = device.create_command_pool(&info, None)?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            let cmd = device.allocate_command_buffers(&info)?[0];
            let fence = device.create_fence(&vk::FenceCreateInfo::default(), None)?;
            let queue = device.get_device_queue(family, 0);
            let buffers = None;
            Ok(Self { _entry: entry, device, types, queue, fence, staging, pipeline, layout, set, pool, cmd, buffers })
        }
    }

    fn buffer(&self, flags: Flags) -> Result<Buffer> {
        let usage =
            vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
        // SAFETY: as in `new`.
        unsafe {
            let raw = self.device.create_buffer(&vk::BufferCreateInfo::default().size(BYTES).usage(usage), None)?;
            let needs = self.device.get_buffer_memory_requirements(raw);
            let fits = |f: Flags| {
                let fits = |(i, t): (usize, &vk::MemoryType)| {
                    (needs.memory_type_bits >> i & 1 == 1 && t.property_flags.contains(f)).then_some(i as u32)
                };
                self.types.memory_types_as_slice().iter().enumerate().find_map(fits)
            };
            let index = fits(flags | Flags::HOST_CACHED).filter(|_| flags == HOST).or_else(|| fits(flags));
            let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size);
            let memory = self.device.allocate_memory(&info.memory_type_index(index.context("no such memory")?), None)?;
            self.device.bind_buffer_memory(raw, memory, 0)?;
            let map = || self.device.map_memory(memory, 0, BYTES, vk::MemoryMapFlags::empty());
            let mapped = if flags == HOST { Some(map()?.cast()) } else { None };
            Ok(Buffer { raw, memory, mapped })
        }
    }

    fn record(&self, buffers: &Buffers) -> Result<()> {
        let Self { device, cmd, layout, .. } = self;
        let cmd = *cmd;
        let Buffers { x, y, inner } = buffers;
        let bound = inner.as_ref().map_or([x.raw, y.raw], |[dx, dy]| [dx.raw, dy.raw]);
        // SAFETY: as in `new`; nothing is submitted that uses the set or the commands.
        unsafe {
            for (i, raw) in bound.into_iter().enumerate() {
                let info = [vk::DescriptorBufferInfo { buffer: raw, offset: 0, range: BYTES }];
                let write = vk::WriteDescriptorSet::default().dst_set(self.set).dst_binding(i as u32).descriptor_type(KIND);
                device.update_descriptor_sets(&[write.buffer_info(&info)], &[]);
            }
            device.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty())?;
            device.begin_command_buffer(cmd, &vk::CommandBufferBeginInfo::default())?;
            let all = [vk::BufferCopy { src_offset: 0, dst_offset: 0, size: BYTES }];
            let barrier = || {
                let everything = vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE;
                let barrier = [vk::MemoryBarrier::default().src_access_mask(everything).dst_access_mask(everything)];
                let (stage, none) = (vk::PipelineStageFlags::ALL_COMMANDS, vk::DependencyFlags::empty());
                device.cmd_pipeline_barrier(cmd, stage, stage | vk::PipelineStageFlags::HOST, none, &barrier, &[], &[]);
            };
            if let Some([dx, dy]) = inner {
                device.cmd_copy_buffer(cmd, x.raw, dx.raw, &all);
                device.cmd_copy_buffer(cmd, y.raw, dy.raw, &all);
                barrier();
            }
            device.cmd_bind_pipeline(cmd, vk::PipelineBindPoint::COMPUTE, self.pipeline);
            device.cmd_bind_descriptor_sets(cmd, vk::PipelineBindPoint::COMPUTE, *layout, 0, &[self.set], &[]);
            device.cmd_push_constants(cmd, *layout, vk::ShaderStageFlags::COMPUTE, 0, bytemuck::bytes_of(&ARGS));
            device.cmd_dispatch(cmd, GROUPS[0], GROUPS[1], GROUPS[2]);
            barrier();
            if let Some([_, dy]) = inner {
                device.cmd_copy_buffer(cmd, dy.raw, y.raw, &all);
                barrier();
            }
            device.end_command_buffer(cmd)?;
        }
        Ok(())
    }
}

const HOST: Flags = Flags::from_raw(Flags::HOST_VISIBLE.as_raw() | Flags::HOST_COHERENT.as_raw());

impl Peer for Plain {
    fn renew(&mut self) -> Result<()> {
        if let Some(Buffers { x, y, inner }) = self.buffers.take() {
            for Buffer { raw, memory, .. } in [x, y].into_iter().chain(inner.into_iter().flatten()) {
                // SAFETY: the round before has been waited for; nothing uses them.
                unsafe {
                    self.device.destroy_buffer(raw, None);
                    self.device.free_memory(memory, None);
                }
            }
        }
        let inner = || -> Result<_> { Ok([self.buffer(Flags::DEVICE_LOCAL)?, self.buffer(Flags::DEVICE_LOCAL)?]) };
        let inner = if self.staging { Some(inner()?) } else { None };
        let buffers = Buffers { x: self.buffer(HOST)?, y: self.buffer(HOST)?, inner };
        self.record(&buffers)?;
        self.buffers = Some(buffers);
        Ok(())
    }

    fn round(&mut self, round: usize) -> Result<f64> {
        let Buffers { x, y, .. } = self.buffers.as_ref().context("no buffers")?;
        inputs(round, x.slice(), y.slice());
        let commands = [self.cmd];
        // SAFETY: as above; the round before has been waited for.
        unsafe {
            let info = [vk::SubmitInfo::default().command_buffers(&commands)];
            self.device.queue_submit(self.queue, &info, self.fence)?;
            self.device.wait_for_fences(&[self.fence], true, u64::MAX)?;
            self.device.reset_fences(&[self.fence])?;
        }
        Ok(sum(y.slice()))
    }
}
