//! sterna: shared allocations, a stock kernel.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sterna::kernels::saxpy;
use sterna::vulkan::{PageTable, VulkanConfig, VulkanDevice};
use sterna::{Runtime, Shared as Allocation};

use crate::{A, N, Peer, inputs, sum};

/// Page tables, and the policies that say where pages go: by default to the device, but with page table *mmu*, which uses them where they
/// are; `declared` moves them there, too.
pub const KINDS: [(&str, PageTable, &str); 4] = [
    ("sterna, mmu", PageTable::Mmu, "auto"),
    ("sterna, mmu, `declared`", PageTable::Mmu, "declared"),
    ("sterna, sparse", PageTable::Sparse, "auto"),
    ("sterna, fixed", PageTable::Fixed, "auto"),
];

pub struct Shared {
    rt: Runtime,
    buffers: Option<[Allocation<f32>; 2]>,
}

impl Shared {
    pub fn new(device: &str, kind: PageTable, policy: &str) -> Result<Self> {
        let config = VulkanConfig { page_table: Some(kind), ..VulkanConfig::default() };
        let gpu = VulkanDevice::open(device, &config)?;
        ensure!(gpu.gpu().name == device, "another device: {}", gpu.gpu().name);
        let rt = Runtime::builder().open_device(Arc::new(gpu)).policy(policy)?.build()?;
        Ok(Self { rt, buffers: None })
    }
}

impl Peer for Shared {
    fn renew(&mut self) -> Result<()> {
        self.buffers = None;
        self.buffers = Some([self.rt.shared(N)?, self.rt.shared(N)?]);
        Ok(())
    }

    fn round(&mut self, round: usize) -> Result<f64> {
        let [x, y] = self.buffers.as_mut().context("no buffers")?;
        inputs(round, x, y);
        self.rt.launch(&saxpy(A), (&*x, &mut *y))?;
        Ok(sum(y))
    }
}
