//! Backends: the one file that knows which there are.
//!
//! A backend joins here: a name, how many devices it has, and how one is opened.

use std::sync::Arc;

use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::{Device, DeviceError};

use crate::hmm::os::groups;
use crate::{Error, config};

/// CPU devices that can be named; each is opened only if it is.
const CPU_DEVICES: u32 = 8;

/// The default memory budget of a CPU device: a quarter of the memory that the process can have.
fn cpu_memory() -> u64 {
    (groups::most() / 4).max(64 << 20) & !((2 << 20) - 1)
}

/// Opens the device that `selector` names, with `memory` bytes of budget, which `setting` sets, or its own default.
pub(crate) fn open(selector: &str, memory: Option<u64>, setting: &'static str) -> Result<Arc<dyn Device>, Error> {
    let unknown = || {
        let cpu = (0..CPU_DEVICES).map(|i| format!("cpu:{i}"));
        let vulkan = ["vulkan", "vulkan:<number>", "vulkan:<part of its name>", "vulkan:<UUID>"].map(String::from);
        let vulkan = vulkan.into_iter().filter(|_| cfg!(feature = "vulkan"));
        let valid = cpu.chain(vulkan).collect::<Vec<_>>().join(", ");
        Error::UnknownName { what: "device", given: selector.to_string(), valid }
    };
    let failed = |source: DeviceError| Error::Device { device: selector.to_string(), source };
    match selector.split(':').next().unwrap_or_default() {
        "cpu" => {
            // Names as they are written, not as numbers are read: `cpu:+1` and `cpu:01` are no names.
            let named = |i: &u32| selector == format!("cpu:{i}") || (*i == 0 && selector == "cpu");
            let index = (0..CPU_DEVICES).find(named).ok_or_else(unknown)?;
            // Its memory is the host's.
            if let Some(budget) = memory.filter(|m| *m > groups::most()) {
                return Err(Error::BudgetTooLarge { device: selector.to_string(), budget, most: groups::most(), setting });
            }
            let workers = config::var("STERNA_CPU_WORKERS", config::count)?.unwrap_or(0);
            let settings = CpuConfig { memory: memory.unwrap_or_else(cpu_memory), workers, ..CpuConfig::default() };
            Ok(Arc::new(CpuDevice::new(index, settings).map_err(failed)?))
        }
        #[cfg(feature = "vulkan")]
        "vulkan" => {
            use sterna_vulkan::VulkanError;
            let name = selector.strip_prefix("vulkan:").unwrap_or_default();
            let page_table = config::var("STERNA_PAGE_TABLE", str::parse)?;
            let pipeline_cache = config::var("STERNA_PIPELINE_CACHE", str::parse)?.unwrap_or_default();
            let copies = config::var("STERNA_VULKAN_COPIES", str::parse)?;
            let settings = sterna_vulkan::VulkanConfig { memory, page_table, copies, pipeline_cache, ..Default::default() };
            let device = sterna_vulkan::VulkanDevice::open(name, &settings).map_err(|e| match e {
                VulkanError::BudgetTooSmall { device, budget, least } => {
                    Error::BudgetTooSmall { device, budget, least, setting }
                }
                VulkanError::BudgetTooLarge { device, budget, most } => {
                    Error::BudgetTooLarge { device, budget, most, setting }
                }
                e => failed(e.into()),
            })?;
            #[cfg(feature = "tracing")]
            {
                let (page_table, copies) = (device.page_table(), device.copies());
                tracing::info!(device = %device.gpu().name, %page_table, %copies, staged_because = device.staged_because(), "Vulkan device");
            }
            Ok(Arc::new(device))
        }
        _ => Err(unknown()),
    }
}

/// The devices for a program that names none: the best GPU there is, and the CPU device for kernels without a form for it.
pub(crate) fn best() -> Result<Vec<String>, Error> {
    #[cfg(feature = "vulkan")]
    let gpu = sterna_vulkan::best().map_err(|e| Error::Device { device: "vulkan".into(), source: e.into() })?;
    #[cfg(feature = "vulkan")]
    let gpu = gpu.map(|gpu| format!("vulkan:{}", gpu.index));
    #[cfg(not(feature = "vulkan"))]
    let gpu = None;
    Ok(gpu.into_iter().chain(["cpu:0".to_string()]).collect())
}
