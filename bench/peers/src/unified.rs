//! sterna: no copies in the program's text, with each page table that the device has.

use anyhow::{Context, Result};
use sterna::kernels::saxpy;
use sterna::{Runtime, Shared};

use crate::peer::{A, Clock, Peer, Turn, fill, sum};

/// The page tables that work on the device.
pub fn tables(device: &str) -> Result<Vec<String>> {
    let all = ["mmu", "sparse", "fixed"];
    let works = |table: &&str| with(device, table).is_ok();
    let found: Vec<String> = all.iter().filter(|t| works(t)).map(ToString::to_string).collect();
    anyhow::ensure!(!found.is_empty(), "sterna finds no page table on {device:?}: {:?}", with(device, "fixed").err());
    Ok(found)
}

fn with(device: &str, table: &str) -> Result<Runtime> {
    // SAFETY: before any other thread of ours reads the environment.
    unsafe { std::env::set_var("STERNA_PAGE_TABLE", table) };
    Ok(Runtime::builder().device(format!("vulkan:{device}")).build()?)
}

pub struct Unified {
    name: &'static str,
    rt: Runtime,
    x: Shared<f32>,
    y: Shared<f32>,
}

impl Unified {
    pub fn new(device: &str, n: usize, table: &str) -> Result<Self> {
        let rt = with(device, table).with_context(|| format!("page table {table}"))?;
        let name = match table {
            "mmu" => "sterna, mmu",
            "sparse" => "sterna, sparse",
            _ => "sterna, fixed",
        };
        let (x, y) = (rt.shared(n)?, rt.shared(n)?);
        Ok(Self { name, rt, x, y })
    }
}

impl Peer for Unified {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> String {
        self.rt.devices()[0].info().name.clone()
    }

    fn round(&mut self, seed: u32) -> Result<Turn> {
        let mut clock = Clock::start();
        fill(&mut self.x, &mut self.y, seed);
        let inputs = clock.lap();
        self.rt.launch(&saxpy(A), (&self.x, &mut self.y))?.wait()?;
        let kernel = clock.lap();
        let sum = sum(&self.y);
        Ok(Turn { inputs, kernel, result: clock.lap(), sum })
    }
}
