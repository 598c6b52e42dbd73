//! The suite of the hal over CPU devices of every configuration.
#![cfg(target_os = "linux")]

mod common;

use common::{Host, device, host_for};
use sterna_cpu::CpuConfig;
use sterna_hal::conformance::{Bench, all};
use sterna_hal::{Absent, Device};

fn conforms(config: CpuConfig) {
    let config = CpuConfig { memory: config.memory.min(64 << 20), ..config };
    let host: Host = host_for(config.grain);
    let device = device(config);
    let region = host.attach(&device);
    // SAFETY: just attached, and nobody else knows of it.
    let report = all(&unsafe { Bench::new(&device, region, host.base(), host.bytes()) });
    println!("{report}");
    report.check();
    assert!(report.passed().len() + 2 >= report.results.len(), "too much was skipped:\n{report}");
    assert_eq!(device.memory().in_use, 0);
}

#[test]
fn default() {
    conforms(CpuConfig::default());
}

#[test]
fn replicas_only() {
    conforms(CpuConfig { map_host: false, ..CpuConfig::default() });
}

#[test]
fn small_grains() {
    conforms(CpuConfig { grain: 4 << 10, ..CpuConfig::default() });
}

#[test]
fn large_grains() {
    conforms(CpuConfig { grain: 2 << 20, ..CpuConfig::default() });
}

#[test]
fn unreadable_by_the_host() {
    let config = CpuConfig { host_readable: false, ..CpuConfig::default() };
    assert!(device(config.clone()).frames_base().is_none());
    conforms(config);
}

#[test]
fn undefined_absent_access() {
    conforms(CpuConfig { absent: Absent::Undefined, ..CpuConfig::default() });
}

#[test]
fn one_worker() {
    conforms(CpuConfig { workers: 1, ..CpuConfig::default() });
}

#[test]
fn more_workers_than_processors() {
    conforms(CpuConfig { workers: 9, ..CpuConfig::default() });
}

#[test]
fn late_copies() {
    let host = host_for(64 << 10);
    let device = device(CpuConfig { memory: 64 << 20, ..CpuConfig::default() });
    device.inject().delay_copies(std::time::Duration::from_micros(700));
    let region = host.attach(&device);
    // SAFETY: just attached, and nobody else knows of it.
    all(&unsafe { Bench::new(&device, region, host.base(), host.bytes()) }).check();
}
