//! Runtimes for the samples, and what there is to say about their devices.

#![forbid(unsafe_code)]

use anyhow::Result;
use sterna::hal::Absent;
use sterna::{Device, Error, Mechanism, Runtime, human};

/// A runtime with `memory` bytes of device memory; without a number, with what the environment or the device says.
///
/// # Errors
/// As [`sterna::Builder::build`].
pub fn open(memory: Option<u64>) -> Result<Runtime> {
    let builder = Runtime::builder();
    Ok(match memory {
        Some(bytes) => builder.memory(bytes),
        None => builder,
    }
    .build()?)
}

/// A runtime with `bytes` of device memory, or as little more as its devices can work with: many workers need more.
///
/// # Errors
/// As [`sterna::Builder::build`].
pub fn small(bytes: u64) -> Result<Runtime> {
    match Runtime::builder().memory(bytes).build() {
        Err(Error::BudgetTooSmall { least, .. }) => open(Some(least)),
        made => Ok(made?),
    }
}

/// Memory of the runtime's first device, in bytes.
#[must_use]
pub fn budget(rt: &Runtime) -> u64 {
    rt.devices()[0].memory().budget
}

/// One line on a device.
#[must_use]
pub fn describe(device: &Device) -> String {
    let (info, caps) = (device.info(), device.caps());
    let absent = match caps.absent {
        Absent::Faults => "brings pages in when its kernels touch them",
        Absent::Undefined => "needs all pages before a kernel starts",
        Absent::Reports => "runs groups again that missed pages",
    };
    let memory = human(device.memory().budget);
    format!("{} ({}: {}), up to {memory}; {absent}", info.id, info.kind, info.name)
}

/// How host faults are served, and why in this way.
#[must_use]
pub fn host_faults(rt: &Runtime) -> String {
    let mechanism = rt.stats().mechanism;
    let why = match mechanism {
        _ if std::env::var_os("STERNA_HOST_FAULTS").is_some_and(|v| !v.is_empty()) => "STERNA_HOST_FAULTS says so",
        Mechanism::Transparent => "full userfaultfd is allowed",
        Mechanism::Signal => "full userfaultfd is not allowed, the part that needs no privilege is",
        Mechanism::Guard => "userfaultfd is not to be had here",
        Mechanism::None => "nothing else is to be had here",
        _ => "the best there is here",
    };
    let what = match mechanism {
        Mechanism::Transparent => "a touch of an absent page brings it home, in system calls too",
        Mechanism::Signal | Mechanism::Guard => "a touch of an absent page brings it home, but not in system calls",
        Mechanism::None => "an allocation comes home as a whole when the host looks at it",
        _ => "pages come home when they are needed",
    };
    format!("{mechanism} ({why}): {what}")
}
