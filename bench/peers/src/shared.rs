//! sterna: shared allocations, a stock kernel.

use std::sync::Arc;

use anyhow::{Result, ensure};
use sterna::kernels::saxpy;
use sterna::vulkan::{PageTable, VulkanConfig, VulkanDevice};
use sterna::{Runtime, Shared as Allocation};

use crate::{A, N, Peer, inputs, sum};

pub const KINDS: [(&str, PageTable); 3] =
    [("sterna, mmu", PageTable::Mmu), ("sterna, sparse", PageTable::Sparse), ("sterna, fixed", PageTable::Fixed)];

pub struct Shared {
    rt: Runtime,
    x: Allocation<f32>,
    y: Allocation<f32>,
}

impl Shared {
    pub fn new(device: &str, kind: PageTable) -> Result<Self> {
        let config = VulkanConfig { page_table: Some(kind), ..VulkanConfig::default() };
        let gpu = VulkanDevice::open(device, &config)?;
        ensure!(gpu.gpu().name == device, "another device: {}", gpu.gpu().name);
        let rt = Runtime::builder().open_device(Arc::new(gpu)).build()?;
        let (x, y) = (rt.shared(N)?, rt.shared(N)?);
        Ok(Self { rt, x, y })
    }
}

impl Peer for Shared {
    fn round(&mut self, round: usize) -> Result<f64> {
        inputs(round, &mut self.x, &mut self.y);
        self.rt.launch(&saxpy(A), (&self.x, &mut self.y))?;
        Ok(sum(&self.y))
    }
}
