//! Backends: the one file that knows which there are.
//!
//! A backend joins here: a name, how many devices it has, and how one is opened.

use std::sync::Arc;

use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::{Device, DeviceError};

use crate::hmm::os::memory;
use crate::{Error, config};

/// CPU devices that can be named; each is opened only if it is.
const CPU_DEVICES: u32 = 8;

/// The default memory budget of a CPU device: a quarter of the machine's memory.
fn cpu_memory() -> u64 {
    (memory("MemTotal") / 4).max(64 << 20) & !((2 << 20) - 1)
}

/// Opens the device that `selector` names, with `memory` bytes of budget or its own default.
pub(crate) fn open(selector: &str, memory: Option<u64>) -> Result<Arc<dyn Device>, Error> {
    let unknown = || Error::UnknownName {
        what: "device",
        given: selector.to_string(),
        valid: (0..CPU_DEVICES).map(|i| format!("cpu:{i}")).collect::<Vec<_>>().join(", "),
    };
    let (backend, index) = selector.split_once(':').unwrap_or((selector, "0"));
    let index: u32 = index.parse().map_err(|_| unknown())?;
    match backend {
        "cpu" if index < CPU_DEVICES => {
            let workers = config::var("STERNA_CPU_WORKERS", config::count)?.unwrap_or(0);
            let settings = CpuConfig { memory: memory.unwrap_or_else(cpu_memory), workers, ..CpuConfig::default() };
            let opened = CpuDevice::new(index, settings);
            Ok(Arc::new(opened.map_err(|source: DeviceError| Error::Device { device: selector.to_string(), source })?))
        }
        _ => Err(unknown()),
    }
}

/// The device for a program that names none: the best kind there is.
pub(crate) fn best() -> &'static str {
    "cpu:0"
}
