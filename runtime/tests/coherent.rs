//! A program over a coherent device, as its counters tell it: what is mapped once needs no fault and moves no byte.

mod common;

use common::*;
use sterna::cpu::CpuConfig;
use sterna::{DeviceStats, Runtime};

fn coherent(memory: usize) -> CpuConfig {
    CpuConfig { coherent: true, ..small(memory) }
}

fn stats(rt: &Runtime) -> DeviceStats {
    rt.stats().devices.remove(0)
}

/// Host and device write the same pages in turn.
#[test]
fn what_is_mapped_once_takes_no_fault_and_moves_no_byte() {
    let _limit = limit();
    let rt = runtime(coherent(16 * MIB));
    let mut x = rt.shared_with(2 * MIB, |i| i as u32).unwrap(); // four blocks
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    x.iter_mut().for_each(|v| *v += 1);
    let first = stats(&rt);
    for _ in 0..5 {
        rt.launch(&add(1), (&mut x,)).unwrap();
        x.iter_mut().for_each(|v| *v += 1);
    }
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 12));
    let last = stats(&rt);
    if !faults(&rt) {
        // Nothing would stop the host's stores if a page had to leave: it is used at home.
        assert!(last.shown == 0 && last.to_host.total() > 0, "{last:?}");
        return;
    }
    assert_eq!((first.host_faults, first.shown), (4, 8 << 20), "one mapping a block: {first:?}");
    assert_eq!((last.host_faults, last.shown), (first.host_faults, first.shown), "{last:?}");
    assert_eq!((last.to_host.total(), last.to_device.total()), (0, first.to_device.total()), "{last:?}");
    assert_eq!(last.resident_launches, first.resident_launches + 5, "{last:?}");
    let r = x.residency();
    assert_eq!((r.host, r.devices[0].pages), (0, r.pages), "{r}");
}

/// What is asked for comes: guards, prefetches, eviction.
#[test]
fn pages_come_home_when_they_are_asked_for() {
    let _limit = limit();
    let rt = runtime(coherent(4 * MIB));
    let mut x = rt.shared_with(MIB / 2, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert_eq!(x[70_000], 70_001);
    let guard = x.host(..1000).unwrap();
    assert!(guard.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
    drop(guard);
    let there = |x: &sterna::Shared<u32>| x.residency().devices[0].pages;
    let before = there(&x);
    // Without faults a guard that reads leaves the device its copy.
    assert!(before < x.residency().pages || !faults(&rt), "a guard's pages are at home");
    x.prefetch_to_host();
    rt.sync().unwrap();
    assert!(there(&x) == 0 || !faults(&rt));
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert_eq!(x[3], 5);
    // The memory is needed for something else, while a reference lives.
    let slice = &x[..];
    let mut y = rt.shared::<u32>(MIB - 1000).unwrap();
    rt.launch(&add(7), (&mut y,)).unwrap().wait().unwrap();
    assert!(slice.iter().enumerate().all(|(i, v)| *v == i as u32 + 2));
    assert!(y.iter().all(|v| *v == 7));
}

/// Allocations that end while the host has their frames mapped leave nothing to the next.
#[test]
fn ends_leave_no_mapping() {
    let _limit = limit();
    let _alone = alone();
    let dev = device(coherent(8 * MIB));
    let rt = over(&dev);
    let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let mut count = 0;
    for round in 0..20 {
        let mut x = rt.shared_with(MIB, |i| i as u32).unwrap();
        rt.launch(&add(round), (&mut x,)).unwrap().wait().unwrap();
        x[5] = 0;
        assert!(x.iter().enumerate().skip(6).all(|(i, v)| *v == i as u32 + round));
        match round % 4 {
            0 => x.truncate(1000).unwrap(),
            1 => x.discard(1000..300_000).unwrap(),
            2 => drop(x.split_off(500_000).unwrap()),
            _ => {}
        }
        assert_eq!(x[7], 7 + round);
        drop(x);
        rt.sync().unwrap();
        eventually("device memory is given back", || sterna::hal::Device::memory(&*dev).in_use == 0);
        eventually("segments are gone", || rt.space().segments() == 0);
        if round == 3 {
            count = mappings();
        }
    }
    assert!(mappings() <= count + 4, "{count} mappings have become {}", mappings());
}
