//! vulkano: staging buffers and device memory, as its examples have it.

use std::sync::Arc;

use anyhow::{Context, Result};
use vulkano::VulkanLibrary;
use vulkano::buffer::{Buffer, BufferCreateInfo, BufferUsage, Subbuffer};
use vulkano::command_buffer::allocator::StandardCommandBufferAllocator;
use vulkano::command_buffer::{AutoCommandBufferBuilder, CommandBufferUsage, CopyBufferInfo, PrimaryCommandBufferAbstract};
use vulkano::descriptor_set::allocator::StandardDescriptorSetAllocator;
use vulkano::descriptor_set::{DescriptorSet, WriteDescriptorSet};
use vulkano::device::{Device, DeviceCreateInfo, Queue, QueueCreateInfo, QueueFlags};
use vulkano::instance::{Instance, InstanceCreateInfo};
use vulkano::memory::allocator::{AllocationCreateInfo, MemoryTypeFilter, StandardMemoryAllocator};
use vulkano::pipeline::compute::ComputePipelineCreateInfo;
use vulkano::pipeline::layout::PipelineDescriptorSetLayoutCreateInfo;
use vulkano::pipeline::{ComputePipeline, Pipeline, PipelineBindPoint, PipelineLayout, PipelineShaderStageCreateInfo};
use vulkano::shader::{ShaderModule, ShaderModuleCreateInfo};
use vulkano::sync::GpuFuture;

use crate::saxpy::{ARGS, words};
use crate::{GROUPS, N, Peer, inputs, sum};

struct Buffers {
    set: Arc<DescriptorSet>,
    /// Staging buffers: up, up, down.
    host: [Subbuffer<[f32]>; 3],
    device: [Subbuffer<[f32]>; 2],
}

pub struct Vulkano {
    queue: Arc<Queue>,
    memory: Arc<StandardMemoryAllocator>,
    sets: Arc<StandardDescriptorSetAllocator>,
    commands: Arc<StandardCommandBufferAllocator>,
    pipeline: Arc<ComputePipeline>,
    buffers: Option<Buffers>,
}

impl Vulkano {
    pub fn new(name: &str) -> Result<Self> {
        let instance = Instance::new(VulkanLibrary::new()?, InstanceCreateInfo::default())?;
        let mut all = instance.enumerate_physical_devices()?;
        let physical = all.find(|p| p.properties().device_name == name).context("the device is gone")?;
        let mut families = physical.queue_family_properties().iter();
        let family = families.position(|f| f.queue_flags.contains(QueueFlags::COMPUTE)).context("no compute queue")?;
        let queue = QueueCreateInfo { queue_family_index: family as u32, ..QueueCreateInfo::default() };
        let info = DeviceCreateInfo { queue_create_infos: vec![queue], ..DeviceCreateInfo::default() };
        let (device, mut queues) = Device::new(physical, info)?;
        let queue = queues.next().context("no queue")?;
        let memory = Arc::new(StandardMemoryAllocator::new_default(Arc::clone(&device)));

        // SAFETY: a valid module.
        let module = unsafe { ShaderModule::new(Arc::clone(&device), ShaderModuleCreateInfo::new(&words())) }?;
        let stage = PipelineShaderStageCreateInfo::new(module.entry_point("main").context("no entry point")?);
        let layout = PipelineDescriptorSetLayoutCreateInfo::from_stages([&stage]);
        let layout =
            PipelineLayout::new(Arc::clone(&device), layout.into_pipeline_layout_create_info(Arc::clone(&device))?)?;
        let info = ComputePipelineCreateInfo::stage_layout(stage, layout);
        let pipeline = ComputePipeline::new(Arc::clone(&device), None, info)?;
        let sets = Arc::new(StandardDescriptorSetAllocator::new(Arc::clone(&device), Default::default()));
        let commands = Arc::new(StandardCommandBufferAllocator::new(device, Default::default()));
        Ok(Self { queue, memory, sets, commands, pipeline, buffers: None })
    }
}

impl Peer for Vulkano {
    fn renew(&mut self) -> Result<()> {
        self.buffers = None;
        let buffer = |usage, memory_type_filter| {
            let info = BufferCreateInfo { usage, ..BufferCreateInfo::default() };
            let place = AllocationCreateInfo { memory_type_filter, ..AllocationCreateInfo::default() };
            Buffer::new_slice::<f32>(Arc::clone(&self.memory) as _, info, place, N as u64)
        };
        let up =
            || buffer(BufferUsage::TRANSFER_SRC, MemoryTypeFilter::PREFER_HOST | MemoryTypeFilter::HOST_SEQUENTIAL_WRITE);
        let down =
            || buffer(BufferUsage::TRANSFER_DST, MemoryTypeFilter::PREFER_HOST | MemoryTypeFilter::HOST_RANDOM_ACCESS);
        let there = || {
            let usage = BufferUsage::STORAGE_BUFFER | BufferUsage::TRANSFER_SRC | BufferUsage::TRANSFER_DST;
            buffer(usage, MemoryTypeFilter::PREFER_DEVICE)
        };
        let (host, device) = ([up()?, up()?, down()?], [there()?, there()?]);
        let writes = [WriteDescriptorSet::buffer(0, device[0].clone()), WriteDescriptorSet::buffer(1, device[1].clone())];
        let set = DescriptorSet::new(
            Arc::clone(&self.sets) as _,
            Arc::clone(&self.pipeline.layout().set_layouts()[0]),
            writes,
            [],
        )?;
        self.buffers = Some(Buffers { set, host, device });
        Ok(())
    }

    fn round(&mut self, round: usize) -> Result<f64> {
        let Buffers { set, host: [x, y, result], device } = self.buffers.as_ref().context("no buffers")?;
        inputs(round, &mut x.write()?, &mut y.write()?);
        let usage = CommandBufferUsage::OneTimeSubmit;
        let family = self.queue.queue_family_index();
        let mut commands = AutoCommandBufferBuilder::primary(Arc::clone(&self.commands) as _, family, usage)?;
        let layout = self.pipeline.layout();
        commands
            .copy_buffer(CopyBufferInfo::buffers(x.clone(), device[0].clone()))?
            .copy_buffer(CopyBufferInfo::buffers(y.clone(), device[1].clone()))?
            .bind_pipeline_compute(Arc::clone(&self.pipeline))?
            .bind_descriptor_sets(PipelineBindPoint::Compute, Arc::clone(layout), 0, Arc::clone(set))?
            .push_constants(Arc::clone(layout), 0, ARGS)?;
        // SAFETY: the shader stays within its buffers.
        unsafe { commands.dispatch(GROUPS) }?;
        commands.copy_buffer(CopyBufferInfo::buffers(device[1].clone(), result.clone()))?;
        commands.build()?.execute(Arc::clone(&self.queue))?.then_signal_fence_and_flush()?.wait(None)?;
        Ok(sum(&result.read()?))
    }
}
