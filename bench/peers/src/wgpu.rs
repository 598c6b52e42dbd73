//! wgpu: `write_buffer`, a dispatch, a copy to a buffer that is mapped.

use anyhow::{Context, Result, ensure};
use wgpu::util::DeviceExt;

use crate::saxpy::{ARGS, WGSL};
use crate::{GROUPS, N, Peer, inputs, sum};

const BYTES: u64 = 4 * N as u64;

pub struct Wgpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    buffers: [wgpu::Buffer; 2],
    result: wgpu::Buffer,
    /// What the host computes.
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Wgpu {
    pub fn new(name: &str) -> Result<Self> {
        let mut instance = wgpu::InstanceDescriptor::new_without_display_handle();
        instance.backends = wgpu::Backends::VULKAN;
        let instance = wgpu::Instance::new(instance);
        let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let adapter = all.into_iter().find(|a| a.get_info().name == name).context("wgpu does not list the device")?;
        ensure!(adapter.get_info().backend == wgpu::Backend::Vulkan, "another backend: {:?}", adapter.get_info());
        let info = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&info))?;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size: BYTES, usage, mapped_at_creation: false })
        };
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffers = [buffer(storage), buffer(storage)];
        let result = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let args = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::bytes_of(&ARGS),
            usage: wgpu::BufferUsages::UNIFORM,
        });
        let source = wgpu::ShaderSource::Wgsl(WGSL.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[entry(0, &buffers[0]), entry(1, &buffers[1]), entry(2, &args)],
        });
        Ok(Self { device, queue, pipeline, group, buffers, result, x: vec![0.0; N], y: vec![0.0; N] })
    }
}

fn entry(binding: u32, buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
}

impl Peer for Wgpu {
    fn round(&mut self, round: usize) -> Result<f64> {
        inputs(round, &mut self.x, &mut self.y);
        self.queue.write_buffer(&self.buffers[0], 0, bytemuck::cast_slice(&self.x));
        self.queue.write_buffer(&self.buffers[1], 0, bytemuck::cast_slice(&self.y));
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(GROUPS[0], GROUPS[1], GROUPS[2]);
        }
        encoder.copy_buffer_to_buffer(&self.buffers[1], 0, &self.result, 0, BYTES);
        self.queue.submit([encoder.finish()]);
        self.result.slice(..).map_async(wgpu::MapMode::Read, |mapped| mapped.expect("a buffer that can be mapped"));
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        let total = {
            let bytes = self.result.get_mapped_range(..)?;
            sum(bytemuck::cast_slice(&bytes))
        };
        self.result.unmap();
        Ok(total)
    }
}
