//! vulkano, as its examples have it: staging buffers that the host maps, copied to and from buffers of the device.

use std::sync::Arc;

use anyhow::{Context, Result};
use vulkano::VulkanLibrary;
use vulkano::buffer::{Buffer, BufferCreateInfo, BufferUsage, Subbuffer};
use vulkano::command_buffer::allocator::StandardCommandBufferAllocator;
use vulkano::command_buffer::{AutoCommandBufferBuilder, CommandBufferUsage, CopyBufferInfo};
use vulkano::descriptor_set::allocator::StandardDescriptorSetAllocator;
use vulkano::descriptor_set::{DescriptorSet, WriteDescriptorSet};
use vulkano::device::{Device, DeviceCreateInfo, Queue, QueueCreateInfo, QueueFlags};
use vulkano::instance::{Instance, InstanceCreateInfo};
use vulkano::memory::allocator::{AllocationCreateInfo, MemoryTypeFilter, StandardMemoryAllocator};
use vulkano::pipeline::compute::ComputePipelineCreateInfo;
use vulkano::pipeline::layout::PipelineDescriptorSetLayoutCreateInfo;
use vulkano::pipeline::{ComputePipeline, Pipeline, PipelineBindPoint, PipelineLayout, PipelineShaderStageCreateInfo};
use vulkano::shader::{ShaderModule, ShaderModuleCreateInfo};
use vulkano::sync::{self, GpuFuture};

use crate::peer::{A, Clock, GROUPS, Peer, Turn, fill, sum};

type Floats = Subbuffer<[f32]>;

pub struct Vulkano {
    name: String,
    device: Arc<Device>,
    queue: Arc<Queue>,
    commands: Arc<StandardCommandBufferAllocator>,
    pipeline: Arc<ComputePipeline>,
    set: Arc<DescriptorSet>,
    host: [Floats; 2],
    local: [Floats; 2],
}

impl Vulkano {
    pub fn new(name: &str, n: usize) -> Result<Self> {
        let instance = Instance::new(VulkanLibrary::new()?, InstanceCreateInfo::default())?;
        let named = |d: &Arc<vulkano::device::physical::PhysicalDevice>| d.properties().device_name.contains(name);
        let physical = instance.enumerate_physical_devices()?.find(named).context("vulkano sees no such device")?;
        let compute = |f: &vulkano::device::QueueFamilyProperties| f.queue_flags.contains(QueueFlags::COMPUTE);
        let family = physical.queue_family_properties().iter().position(compute).context("no compute queue")? as u32;
        let queues = vec![QueueCreateInfo { queue_family_index: family, ..Default::default() }];
        let name = physical.properties().device_name.clone();
        let (device, mut queues) =
            Device::new(physical, DeviceCreateInfo { queue_create_infos: queues, ..Default::default() })?;
        let queue = queues.next().context("no queue")?;
        let memory = Arc::new(StandardMemoryAllocator::new_default(device.clone()));
        let commands = Arc::new(StandardCommandBufferAllocator::new(device.clone(), Default::default()));
        let sets = Arc::new(StandardDescriptorSetAllocator::new(device.clone(), Default::default()));
        let buffer = |usage, filter| -> Result<Floats> {
            let info = BufferCreateInfo { usage, ..Default::default() };
            let how = AllocationCreateInfo { memory_type_filter: filter, ..Default::default() };
            Ok(Buffer::new_slice(memory.clone(), info, how, n as u64)?)
        };
        let copied = BufferUsage::TRANSFER_SRC | BufferUsage::TRANSFER_DST;
        let staging = || {
            buffer(copied, MemoryTypeFilter::PREFER_HOST | MemoryTypeFilter::HOST_RANDOM_ACCESS)
        };
        let local = || buffer(copied | BufferUsage::STORAGE_BUFFER, MemoryTypeFilter::PREFER_DEVICE);
        let (host, local) = ([staging()?, staging()?], [local()?, local()?]);

        // SAFETY: a valid module, compiled from the source beside it.
        let module = unsafe { ShaderModule::new(device.clone(), ShaderModuleCreateInfo::new(&crate::raw::words())) }?;
        let stage = PipelineShaderStageCreateInfo::new(module.entry_point("main").context("no entry point")?);
        let layout = PipelineDescriptorSetLayoutCreateInfo::from_stages([&stage]);
        let layout = PipelineLayout::new(device.clone(), layout.into_pipeline_layout_create_info(device.clone())?)?;
        let pipeline =
            ComputePipeline::new(device.clone(), None, ComputePipelineCreateInfo::stage_layout(stage, layout.clone()))?;
        let writes = [0, 1].map(|i| WriteDescriptorSet::buffer(i as u32, local[i].clone()));
        let set = DescriptorSet::new(sets, layout.set_layouts()[0].clone(), writes, [])?;
        Ok(Self { name, device, queue, commands, pipeline, set, host, local })
    }
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Parameters {
    a: f32,
    n: u32,
}

impl Peer for Vulkano {
    fn name(&self) -> &'static str {
        "vulkano, staged"
    }

    fn device(&self) -> String {
        self.name.clone()
    }

    fn round(&mut self, seed: u32) -> Result<Turn> {
        let mut clock = Clock::start();
        fill(&mut self.host[0].write()?, &mut self.host[1].write()?, seed);
        let inputs = clock.lap();
        let once = CommandBufferUsage::OneTimeSubmit;
        let mut builder =
            AutoCommandBufferBuilder::primary(self.commands.clone(), self.queue.queue_family_index(), once)?;
        let copy = |from: &Floats, to: &Floats| CopyBufferInfo::buffers(from.clone(), to.clone());
        let layout = self.pipeline.layout().clone();
        builder
            .copy_buffer(copy(&self.host[0], &self.local[0]))?
            .copy_buffer(copy(&self.host[1], &self.local[1]))?
            .bind_pipeline_compute(self.pipeline.clone())?
            .bind_descriptor_sets(PipelineBindPoint::Compute, layout.clone(), 0, self.set.clone())?
            .push_constants(layout, 0, Parameters { a: A, n: self.host[0].len() as u32 })?;
        // SAFETY: the shader stays within the buffers, whose length it is given.
        unsafe { builder.dispatch([GROUPS, 1, 1]) }?;
        builder.copy_buffer(copy(&self.local[1], &self.host[1]))?;
        let work = sync::now(self.device.clone()).then_execute(self.queue.clone(), builder.build()?)?;
        work.then_signal_fence_and_flush()?.wait(None)?;
        let kernel = clock.lap();
        let sum = sum(&self.host[1].read()?);
        Ok(Turn { inputs, kernel, result: clock.lap(), sum })
    }
}
