//! wgpu: `write_buffer`, a dispatch, a copy to a buffer that is mapped.

use anyhow::{Context, Result, ensure};
use wgpu::util::DeviceExt;

use crate::saxpy::{ARGS, WGSL};
use crate::{GROUPS, N, Peer, inputs, sum};

const BYTES: u64 = 4 * N as u64;

/// The adapter of that name, by Vulkan.
pub fn adapter(name: &str) -> Result<(wgpu::Instance, wgpu::Adapter)> {
    let mut instance = wgpu::InstanceDescriptor::new_without_display_handle();
    instance.backends = wgpu::Backends::VULKAN;
    let instance = wgpu::Instance::new(instance);
    let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let adapter = all.into_iter().find(|a| a.get_info().name == name).context("wgpu does not list the device")?;
    ensure!(adapter.get_info().backend == wgpu::Backend::Vulkan, "another backend: {:?}", adapter.get_info());
    Ok((instance, adapter))
}

struct Buffers {
    device: [wgpu::Buffer; 2],
    result: wgpu::Buffer,
    group: wgpu::BindGroup,
    /// What the host computes.
    x: Vec<f32>,
    y: Vec<f32>,
}

pub struct Wgpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
    args: wgpu::Buffer,
    buffers: Option<Buffers>,
}

impl Wgpu {
    pub fn new(name: &str) -> Result<Self> {
        let (_, adapter) = adapter(name)?;
        let info = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&info))?;
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
        Ok(Self { device, queue, pipeline, args, buffers: None })
    }
}

fn entry(binding: u32, buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
}

impl Peer for Wgpu {
    fn renew(&mut self) -> Result<()> {
        if let Some(old) = self.buffers.take() {
            for buffer in old.device.iter().chain([&old.result]) {
                buffer.destroy();
            }
        }
        let buffer = |usage| {
            let info = wgpu::BufferDescriptor { label: None, size: BYTES, usage, mapped_at_creation: false };
            self.device.create_buffer(&info)
        };
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let device = [buffer(storage), buffer(storage)];
        let result = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &[entry(0, &device[0]), entry(1, &device[1]), entry(2, &self.args)],
        });
        self.buffers = Some(Buffers { device, result, group, x: vec![0.0; N], y: vec![0.0; N] });
        Ok(())
    }

    fn round(&mut self, round: usize) -> Result<f64> {
        let Buffers { device, result, group, x, y } = self.buffers.as_mut().context("no buffers")?;
        inputs(round, x, y);
        self.queue.write_buffer(&device[0], 0, bytemuck::cast_slice(x));
        self.queue.write_buffer(&device[1], 0, bytemuck::cast_slice(y));
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &*group, &[]);
            pass.dispatch_workgroups(GROUPS[0], GROUPS[1], GROUPS[2]);
        }
        encoder.copy_buffer_to_buffer(&device[1], 0, result, 0, BYTES);
        self.queue.submit([encoder.finish()]);
        result.slice(..).map_async(wgpu::MapMode::Read, |mapped| mapped.expect("a buffer that can be mapped"));
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        let total = {
            let bytes = result.get_mapped_range(..)?;
            sum(bytemuck::cast_slice(&bytes))
        };
        result.unmap();
        Ok(total)
    }
}
