//! wgpu, as its examples have it: vectors on the host, `write_buffer`, a compute pass, a copy to a buffer that is mapped and read.

use anyhow::{Context, Result};

use crate::peer::{A, Clock, GROUPS, Peer, Turn, fill, sum};

pub struct Wgpu {
    name: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    x: (Vec<f32>, wgpu::Buffer),
    y: (Vec<f32>, wgpu::Buffer),
    download: wgpu::Buffer,
}

impl Wgpu {
    pub fn new(name: &str, n: usize) -> Result<Self> {
        let mut asked = wgpu::InstanceDescriptor::new_without_display_handle();
        asked.backends = wgpu::Backends::VULKAN;
        let instance = wgpu::Instance::new(asked);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let adapter = adapters.into_iter().find(|a| a.get_info().name.contains(name)).context("wgpu sees no such device")?;
        let asked = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&asked))?;
        let module = device.create_shader_module(wgpu::include_wgsl!("saxpy.wgsl"));
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions { constants: &[("a", f64::from(A))], ..Default::default() },
            cache: None,
        });
        let buffer = |usage| {
            let size = 4 * n as u64;
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        use wgpu::BufferUsages as Usage;
        let x = (vec![0.0; n], buffer(Usage::STORAGE | Usage::COPY_DST));
        let y = (vec![0.0; n], buffer(Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC));
        let download = buffer(Usage::MAP_READ | Usage::COPY_DST);
        let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: x.1.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: y.1.as_entire_binding() },
            ],
        });
        Ok(Self { name: adapter.get_info().name, device, queue, pipeline, bindings, x, y, download })
    }
}

impl Peer for Wgpu {
    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn device(&self) -> String {
        self.name.clone()
    }

    fn round(&mut self, seed: u32) -> Result<Turn> {
        let mut clock = Clock::start();
        fill(&mut self.x.0, &mut self.y.0, seed);
        self.queue.write_buffer(&self.x.1, 0, bytemuck::cast_slice(&self.x.0));
        self.queue.write_buffer(&self.y.1, 0, bytemuck::cast_slice(&self.y.0));
        let inputs = clock.lap();
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bindings, &[]);
            pass.dispatch_workgroups(GROUPS, 1, 1);
        }
        encoder.copy_buffer_to_buffer(&self.y.1, 0, &self.download, 0, self.download.size());
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        let kernel = clock.lap();
        self.download.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("a mapping"));
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        let sum = {
            let view = self.download.get_mapped_range(..)?;
            sum(bytemuck::cast_slice(&view))
        };
        self.download.unmap();
        Ok(Turn { inputs, kernel, result: clock.lap(), sum })
    }
}
