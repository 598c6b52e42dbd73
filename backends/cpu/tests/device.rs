//! What is special to the CPU device: limits, cost, several devices in one process.
#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{LONG, MIB, alloc, at_frame, at_host, copy, device, edit, ended, host, submit};
use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::kernel::{Group, Kernel, each_mut};
use sterna_hal::{Absent, Access, Device, DeviceError, DeviceKind, Edit, Outcome, Point, Target};

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn add(_: Group, value: u32, y: &mut [u32]) {
    y.iter_mut().for_each(|y| *y += value);
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    for grain in [0, 1000, 2048, 3 << 12, 4 << 20] {
        assert!(matches!(
            CpuDevice::new(0, CpuConfig { grain, ..CpuConfig::default() }),
            Err(DeviceError::Driver { code: libc::EINVAL, .. })
        ));
    }
    assert!(CpuDevice::new(0, CpuConfig { absent: Absent::Reports, ..CpuConfig::default() }).is_err());
    let e = CpuDevice::new(0, CpuConfig { workers: 1025, ..CpuConfig::default() }).unwrap_err();
    assert!(e.to_string().contains("1025 workers; at most 1024"), "{e}");
    // One grain at least, and the budget is kept to the grain.
    assert_eq!(device(CpuConfig { memory: 0, ..CpuConfig::default() }).memory().budget, 64 << 10);
    assert_eq!(device(CpuConfig { memory: (64 << 10) * 33 + 5, ..CpuConfig::default() }).memory().budget, (64 << 10) * 33);
}

#[test]
fn a_terabyte_of_addresses_is_quick_and_takes_no_memory() {
    let device = device(CpuConfig::default());
    let before = resident_bytes();
    let start = Instant::now();
    let range = device.reserve(1 << 40).unwrap();
    // SAFETY: never used.
    unsafe { device.unreserve(range) };
    let took = start.elapsed();
    assert!(took < Duration::from_millis(50), "{took:?}");
    // Other tests run beside this one; a terabyte's page tables alone would be 2 GiB.
    assert!(resident_bytes() < before + 512 * MIB);
}

#[test]
fn two_devices_share_nothing() {
    let a = CpuDevice::new(3, CpuConfig { memory: 4 * MIB, ..CpuConfig::default() }).unwrap();
    let b = CpuDevice::new(4, CpuConfig { memory: 4 * MIB, grain: 4096, ..CpuConfig::default() }).unwrap();
    assert_eq!((a.info().id.as_str(), b.info().id.as_str()), ("cpu:3", "cpu:4"));
    assert_eq!(a.info().kind, DeviceKind::Cpu);
    let mut host = host(MIB);
    let mut results = Vec::new();
    for (device, value) in [(&a, 1_u32), (&b, 2)] {
        let region = host.attach(device);
        let frames = alloc(device, (MIB / device.caps().grain) as u32).unwrap();
        let range = device.reserve(MIB).unwrap();
        edit(device, range, Target::Frames { first: frames[0].first }, Access::ReadWrite).unwrap();
        host.fill(0);
        device.wait(copy(device, at_host(region, 0), at_frame(frames[0].first), MIB).unwrap(), LONG).unwrap();
        let kernel = Kernel::new("add", value, (each_mut::<u32>(1024),), add);
        let ticket = submit(device, &kernel, 256, &[range], &[]).unwrap();
        assert!(matches!(ended(device, ticket), Outcome::Done));
        device.wait(copy(device, at_frame(frames[0].first), at_host(region, 0), MIB).unwrap(), LONG).unwrap();
        results.push(host.slice().to_vec());
    }
    for (result, value) in results.iter().zip([1, 2]) {
        assert!(result.chunks_exact(4).all(|v| v == [value, 0, 0, 0]));
    }
    let (wa, wb) = (a.window().unwrap(), b.window().unwrap());
    assert!(wa.end <= wb.start || wb.end <= wa.start);
    a.lose();
    assert!(alloc(&b, 1).is_ok() && alloc(&a, 1).is_err());
}

#[test]
fn nonsense_is_an_error_and_touches_nothing() {
    let device = device(CpuConfig { memory: 4 * MIB, ..CpuConfig::default() });
    let range = device.reserve(MIB).unwrap();
    let grain = device.caps().grain;
    let outside = sterna_hal::DevRange { at: sterna_hal::DevAddr(4096 * 16), bytes: grain };
    let half = range.part(grain / 2, grain);
    for (at, to) in [
        (outside, Target::Absent),
        (half, Target::Absent),
        (range.part(0, grain / 2), Target::Absent),
        (range.part(0, 0), Target::Absent),
        (range, Target::Frames { first: 63 }),
        (range, Target::Frames { first: u32::MAX }),
        (range, Target::Host(sterna_hal::HostAt { region: sterna_hal::RegionId(0), offset: 0 })),
    ] {
        assert!(edit(&device, at, to, Access::Read).is_err(), "{at:?} to {to:?}");
    }
    let never = Point { queue: 7, value: 1 };
    assert!(device.wait(never, Duration::ZERO).is_err() && !device.reached(never));
    // SAFETY: must be refused.
    unsafe {
        assert!(device.edit(&[], &[Point { queue: 0, value: 1 }]).is_err());
        assert!(device.copy(&[], &[never]).is_err());
    }
    let kernel = Kernel::new("add", 1_u32, (each_mut::<u32>(1),), add);
    assert!(submit(&device, &kernel, 0, &[range], &[]).is_err());
    assert!(submit(&device, &kernel, 1, &[outside], &[]).is_err());
}

#[test]
fn edits_side_by_side_are_one_mapping_and_do_not_pile_up() {
    let device = device(CpuConfig { memory: 16 * MIB, ..CpuConfig::default() });
    // Not the very first addresses, so that there is window on either side.
    device.reserve(2 * MIB).unwrap();
    let range = device.reserve(16 * MIB).unwrap();
    let frames = alloc(&device, 256).unwrap();
    assert_eq!(frames.len(), 1);
    let entries = |to: &dyn Fn(u64) -> Target| -> Vec<Edit> {
        let grain = 64 << 10;
        (0..256).map(|i| Edit { at: range.part(i * grain, grain), to: to(i), access: Access::ReadWrite }).collect()
    };
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|l| in_window(l, range)).count();
    let before = maps();
    for _ in 0..10 {
        // SAFETY: reserved and allocated above.
        unsafe { device.edit(&entries(&|i| Target::Frames { first: i as u32 }), &[]) }.unwrap();
        assert_eq!(maps(), before + 2, "one mapping, with the rest of the window on either side");
        // One by one, in an order that leaves holes for a while.
        let mut absent = entries(&|_| Target::Absent);
        absent.sort_by_key(|e| (e.at.at.0 >> 16) % 3);
        for e in absent {
            edit(&device, e.at, e.to, e.access).unwrap();
        }
        assert_eq!(maps(), before, "absent pages merge again");
    }
    assert_eq!(device.inject().mappings(), 10 * 257);
}

/// Whether a line of the process's mappings overlaps the 2 MiB before a range, the range, or the 2 MiB behind it.
fn in_window(line: &str, range: sterna_hal::DevRange) -> bool {
    let (start, rest) = line.split_once('-').unwrap();
    let end = rest.split_once(' ').unwrap().0;
    let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
    start < range.end().0 + 2 * MIB && range.at.0 - 2 * MIB < end
}

#[test]
fn copies_are_as_fast_as_a_memory_copy() {
    let device = device(CpuConfig { memory: 128 * MIB, ..CpuConfig::default() });
    let (a, b) = (alloc(&device, 1024).unwrap(), alloc(&device, 1024).unwrap());
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let point = copy(&device, at_frame(a[0].first), at_frame(b[0].first), 64 * MIB).unwrap();
        assert_eq!(point.queue, 1);
        device.wait(point, LONG).unwrap();
        best = best.min(start.elapsed());
    }
    // No threshold: machines differ. The figure is for people.
    println!("{:.1} GB/s", 64.0 * MIB as f64 / best.as_secs_f64() / 1e9);
}
