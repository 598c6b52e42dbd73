//! cubecl: its wgpu runtime with the SPIR-V compiler, a kernel in its language.
//!
//! Inputs are handed over as shared bytes and written in place: one copy on an integrated GPU, elsewhere by way of wgpu's staging.
//! Results are read where wgpu maps them. `create_from_slice` and `to_vec` would copy more. Each unit computes four elements.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cubecl::bytes::{AllocationProperty, Bytes};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::wgpu::{RuntimeOptions, Vulkan, WgpuSetup, try_init_device_with_api, vulkan};
use cubecl::{CubeCount, CubeDim};

use crate::wgpu::adapter;
use crate::{A, GROUPS, N, Peer, inputs, sum};

const BYTES: usize = 4 * N;

#[cube(launch_unchecked)]
fn saxpy<V: Size>(x: &[Vector<f32, V>], y: &mut [Vector<f32, V>], a: f32) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] += Vector::new(a) * x[ABSOLUTE_POS];
    }
}

/// What the host computes. cubecl has a second reference while it copies.
#[derive(Clone)]
struct Input(Arc<Vec<f32>>);

impl AsRef<[u8]> for Input {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Input {
    fn new() -> Self {
        Self(Arc::new(vec![0.0; N]))
    }

    fn bytes(&self) -> Bytes {
        Bytes::from_shared(bytes::Bytes::from_owner(self.clone()), AllocationProperty::Native)
    }
}

struct Buffers {
    host: [Input; 2],
    device: [Handle; 2],
}

pub struct Cubecl {
    client: Client,
    buffers: Option<Buffers>,
}

impl Cubecl {
    pub fn new(name: &str) -> Result<Self> {
        let (instance, adapter) = adapter(name)?;
        let opened = pollster::block_on(vulkan::try_request_vulkan_device(&adapter))?;
        let (device, queue) = opened.context("cubecl has no SPIR-V for this device")?;
        let setup = WgpuSetup { instance, adapter, device, queue, backend: wgpu::Backend::Vulkan };
        let device = try_init_device_with_api::<Vulkan>(setup, RuntimeOptions::try_default()?)?;
        let client = cubecl::Device::Wgpu(device).client();
        ensure!(client.name() == "wgpu<spirv>", "another compiler: {}", client.name());
        ensure!(client.properties().identity.name == name, "another device: {}", client.properties().identity.name);
        Ok(Self { client, buffers: None })
    }
}

impl Peer for Cubecl {
    fn renew(&mut self) -> Result<()> {
        self.buffers = None;
        let device = [self.client.empty(BYTES), self.client.empty(BYTES)];
        self.buffers = Some(Buffers { host: [Input::new(), Input::new()], device });
        Ok(())
    }

    fn round(&mut self, round: usize) -> Result<f64> {
        let Buffers { host: [x, y], device } = self.buffers.as_mut().context("no buffers")?;
        let free = "the round before has been read, and its inputs were copied before";
        inputs(round, Arc::get_mut(&mut x.0).context(free)?, Arc::get_mut(&mut y.0).context(free)?);
        self.client.write(&device[0], x.bytes());
        self.client.write(&device[1], y.bytes());
        // SAFETY: buffers of N elements, and the kernel looks at its bound.
        unsafe {
            saxpy::launch_unchecked(
                &self.client,
                CubeCount::Static(GROUPS[0] / 4, GROUPS[1], GROUPS[2]),
                CubeDim::new_1d(256),
                4,
                BufferArg::from_raw_parts(device[0].clone(), N),
                BufferArg::from_raw_parts(device[1].clone(), N),
                A,
            );
        }
        let result = self.client.read_one(device[1].clone())?;
        Ok(sum(bytemuck::cast_slice(&result)))
    }
}
