//! The kinds of devices that the suite runs over, and how each is opened.
//!
//! A kind that this machine has not is left out, said aloud; `STERNA_REQUIRE` makes that a failure. The Vulkan device is the first that
//! the loader lists, or the one that `STERNA_VULKAN_TEST` names.

use std::sync::Arc;

use sterna::Mechanism;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Injected;

use crate::runner::say;

/// A kind of device. One line each.
pub(crate) struct Config {
    pub(crate) name: &'static str,
    /// The device uses host pages in place where it can.
    pub(crate) alias: bool,
    pub(crate) coherent: bool,
    /// Its frames belong to addresses: what is in use is whole segments.
    pub(crate) placed: bool,
    make: Make,
}

enum Make {
    Cpu(fn(CpuConfig) -> CpuConfig),
    /// With this page table.
    Vulkan(&'static str),
}

/// What a test may want otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Bytes of a grain: a page, so that grains in use are pages.
    pub(crate) grain: u64,
}

pub(crate) const ORDINARY: Size = Size { memory: 64 << 20, grain: 4096 };

const CPU: Config =
    Config { name: "private, host mapping", alias: true, coherent: false, placed: false, make: Make::Cpu(|c| c) };

pub(crate) static ALL: &[Config] = &[
    Config {
        name: "private",
        alias: false,
        make: Make::Cpu(|c| CpuConfig { map_host: false, host_readable: false, ..c }),
        ..CPU
    },
    CPU,
    Config { name: "coherent", coherent: true, make: Make::Cpu(|c| CpuConfig { coherent: true, ..c }), ..CPU },
    Config { name: "Vulkan mmu", make: Make::Vulkan("mmu"), ..CPU },
    Config { name: "Vulkan sparse", alias: false, make: Make::Vulkan("sparse"), ..CPU },
    Config { name: "Vulkan fixed", alias: false, placed: true, make: Make::Vulkan("fixed"), ..CPU },
];

impl Config {
    pub(crate) fn is_cpu(&self) -> bool {
        matches!(self.make, Make::Cpu(_))
    }

    /// Whether it is a column under this mechanism. Vulkan devices are asked under two of them: what is left is the host's side, which
    /// does not depend on the device.
    pub(crate) fn belongs(&self, m: Mechanism) -> bool {
        self.is_cpu() || matches!(m, Mechanism::Transparent | Mechanism::Signal)
    }

    /// A device, or why there is none.
    pub(crate) fn open(&self, index: u32, size: Size) -> Result<Injected, String> {
        match self.make {
            Make::Cpu(change) => {
                let Size { memory, grain } = size;
                let config = CpuConfig { memory, grain, workers: 2, window: 64 << 30, ..CpuConfig::default() };
                let device = CpuDevice::new(index, change(config)).map_err(|e| e.to_string())?;
                Ok(Injected::new(Arc::new(device), CpuDevice::lose))
            }
            Make::Vulkan(table) => crate::vulkan::vulkan(table, size.memory, Some(size.grain)),
        }
    }
}

/// The kinds that there are here, of those whose name contains what `STERNA_HMM_KIND` says. Says which are left out.
pub(crate) fn available() -> Vec<&'static Config> {
    let there = |config: &&Config| match config.make {
        Make::Cpu(_) => true,
        Make::Vulkan(_) => match config.open(0, ORDINARY) {
            Ok(_) => true,
            Err(why) => {
                say(&format!("SKIP {}: {why}\n", config.name));
                false
            }
        },
    };
    let wanted = std::env::var("STERNA_HMM_KIND").unwrap_or_default();
    ALL.iter().filter(|c| c.name.contains(&wanted)).filter(there).collect()
}
