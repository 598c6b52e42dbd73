//! The suite of the hal over CPU devices of every configuration.
#![cfg(target_os = "linux")]

mod common;

use common::{Host, alloc, device, host_for};
use sterna_cpu::{CpuConfig, CpuDevice};
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
    assert!(report.passed().len() + 3 >= report.results.len(), "too much was skipped:\n{report}");
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
fn coherent() {
    for config in [CpuConfig::default(), CpuConfig { grain: 4 << 10, map_host: false, ..CpuConfig::default() }] {
        conforms(CpuConfig { coherent: true, ..config });
    }
    let refused = CpuDevice::new(0, CpuConfig { coherent: true, host_readable: false, ..CpuConfig::default() });
    assert!(refused.unwrap_err().to_string().contains("host_readable"));
}

#[test]
fn unified() {
    conforms(CpuConfig { unified: true, ..CpuConfig::default() });
    let refused = CpuDevice::new(0, CpuConfig { unified: true, map_host: false, ..CpuConfig::default() });
    assert!(refused.unwrap_err().to_string().contains("map_host"));
}

/// What a coherent device is for: its frames mapped where the host wants them.
#[test]
fn frames_of_a_coherent_device_can_be_mapped() {
    let device = device(CpuConfig { memory: 1 << 20, coherent: true, ..CpuConfig::default() });
    let (fd, base) = (device.frames_file().unwrap(), device.frames_base().unwrap());
    let frames = alloc(&device, 3).unwrap();
    let at = u64::from(frames[0].first) * device.caps().grain;
    // SAFETY: a new mapping of frames that are this test's own, seen through both mappings by this thread alone.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let p = libc::mmap(std::ptr::null_mut(), 3 << 16, prot, libc::MAP_SHARED, fd, at as i64);
        assert_ne!(p, libc::MAP_FAILED);
        let p = p.cast::<u32>();
        p.add(5).write_volatile(9);
        assert_eq!(base.as_ptr().cast::<u32>().add(at as usize / 4 + 5).read_volatile(), 9);
        base.as_ptr().cast::<u32>().add(at as usize / 4 + 6).write_volatile(10);
        assert_eq!(p.add(6).read_volatile(), 10);
        libc::munmap(p.cast(), 3 << 16);
        device.free(&frames);
    }
    // The device keeps its own.
    assert!(CpuDevice::new(1, CpuConfig::default()).unwrap().frames_file().is_none());
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
