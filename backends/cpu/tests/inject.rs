//! Failures on demand, loss, and the counters.
#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{LONG, MIB, alloc, at_frame, at_host, copy, device, edit, ended, host, outcome, submit};
use sterna_cpu::CpuConfig;
use sterna_hal::kernel::{Group, Kernel, each_mut};
use sterna_hal::{Access, CopyEnd, Device, DeviceError, Edit, KernelError, Outcome, Point, Target};

fn small() -> CpuConfig {
    CpuConfig { memory: 8 * MIB, ..CpuConfig::default() }
}

fn is_driver(error: DeviceError) -> bool {
    matches!(error, DeviceError::Driver { code: libc::EIO, .. })
}

fn fill(_: Group, value: u32, y: &mut [u32]) {
    y.fill(value);
}

fn nap(_: Group, millis: u32, _: &mut [u32]) {
    std::thread::sleep(Duration::from_millis(millis.into()));
}

#[test]
fn the_nth_call_fails_once() {
    let device = device(small());
    let inject = device.inject();
    inject.fail_alloc(1);
    let first = alloc(&device, 2).unwrap();
    assert!(matches!(
        alloc(&device, 3),
        Err(DeviceError::OutOfMemory { requested: 0x3_0000, in_use: 0x2_0000, budget: 0x80_0000 })
    ));
    let second = alloc(&device, 3).unwrap();
    assert_eq!(device.memory().in_use, 5 << 16);

    inject.fail_copy(0);
    assert!(is_driver(copy(&device, CopyEnd::Zero, at_frame(first[0].first), 100).unwrap_err()));
    assert_eq!(copy(&device, CopyEnd::Zero, at_frame(first[0].first), 100), Ok(Point::REACHED));
    assert_eq!((inject.copies(), inject.copy_bytes()), (1, 100));

    // The third entry of one call: those before it have been made.
    let range = device.reserve(4 << 16).unwrap();
    let to = |first| Target::Frames { first };
    let entry = |i: u64, to| Edit { at: range.part(i << 16, 1 << 16), to, access: Access::ReadWrite };
    let edits = [entry(0, to(first[0].first)), entry(1, to(first[0].first + 1)), entry(2, to(second[0].first))];
    inject.fail_edit(2);
    // SAFETY: reserved and allocated above.
    assert!(is_driver(unsafe { device.edit(&edits, &[]) }.unwrap_err()));
    assert_eq!(inject.edits(), 2);
    // Two frames that follow each other, at addresses that do: one system call.
    assert_eq!(inject.mappings(), 1);
    // SAFETY: as above; and what was mapped is written by its address.
    unsafe {
        (range.at.0 as *mut u8).write(1);
        device.edit(&edits, &[]).unwrap();
    }
    assert_eq!(inject.edits(), 5);

    let kernel = Kernel::new("fill", 9_u32, (each_mut::<u32>(16),), fill);
    inject.fail_submit(0);
    assert!(is_driver(submit(&device, &kernel, 4, &[range.part(0, 256)], &[]).unwrap_err()));
    let ticket = submit(&device, &kernel, 4, &[range.part(0, 256)], &[]).unwrap();
    assert!(matches!(ended(&device, ticket), Outcome::Done));
    assert_eq!(inject.submits(), 1);
}

#[test]
fn late_copies_are_reached_late_but_have_arrived() {
    let device = device(small());
    let mut host = host(MIB);
    let region = host.attach(&device);
    let frames = alloc(&device, 1).unwrap();
    host.fill(7);
    device.inject().delay_copies(Duration::from_millis(30));
    let start = Instant::now();
    let point = copy(&device, at_host(region, 0), at_frame(frames[0].first), 4096).unwrap();
    assert!(!device.reached(point));
    assert_eq!(device.wait(point, LONG), Ok(true));
    assert!(start.elapsed() >= Duration::from_millis(30));
    device.inject().delay_copies(Duration::ZERO);
    assert_eq!(copy(&device, at_frame(frames[0].first), at_host(region, 8192), 4096), Ok(Point::REACHED));
    assert_eq!(host.slice()[8192..][..4096], [7; 4096]);
}

#[test]
fn the_nth_point_is_late_once() {
    let device = device(small());
    let host = host(MIB);
    let region = host.attach(&device);
    let frames = alloc(&device, 1).unwrap();
    let range = device.reserve(1 << 16).unwrap();
    edit(&device, range, Target::Frames { first: frames[0].first }, Access::ReadWrite).unwrap();
    let kernel = Kernel::new("fill", 9_u32, (each_mut::<u32>(16),), fill);
    let late = Duration::from_millis(30);
    for which in 0..3 {
        device.inject().late_point(which, late);
        let first = copy(&device, at_host(region, 0), at_frame(frames[0].first), 4096).unwrap();
        assert_eq!(first == Point::REACHED, which != 0);
        let start = Instant::now();
        let ticket = submit(&device, &kernel, 4, &[range.part(0, 256)], &[first]).unwrap();
        assert!(matches!(ended(&device, ticket), Outcome::Done));
        assert_eq!(start.elapsed() >= late, which < 2, "point {which}");
        let last = copy(&device, at_frame(frames[0].first), at_host(region, 0), 4096).unwrap();
        assert_eq!(last == Point::REACHED, which != 2);
        assert_eq!(device.wait(last, LONG), Ok(true));
    }
}

#[test]
fn the_nth_call_loses_the_device() {
    let device = device(small());
    device.inject().lose_at(1);
    let frames = alloc(&device, 1).unwrap();
    assert!(!device.inject().is_lost());
    let lost = copy(&device, CopyEnd::Zero, at_frame(frames[0].first), 100);
    assert!(matches!(lost, Err(DeviceError::Lost(_))) && device.inject().is_lost(), "{lost:?}");
}

#[test]
fn a_lost_device_refuses_everything_but_returns() {
    let device = device(small());
    let host = host(4 * MIB);
    let region = host.attach(&device);
    let frames = alloc(&device, 32).unwrap();
    let range = device.reserve(2 * MIB).unwrap();
    edit(&device, range, Target::Frames { first: frames[0].first }, Access::ReadWrite).unwrap();
    let nap = Kernel::new("nap", 30_u32, (each_mut::<u32>(16),), nap);
    let running = submit(&device, &nap, 1, &[range.part(0, 64)], &[]).unwrap();
    let fill = Kernel::new("fill", 9_u32, (each_mut::<u32>(16),), fill);
    let queued = submit(&device, &fill, 4, &[range.part(0, 256)], &[]).unwrap();
    // A copy that stands behind both.
    let runs = [sterna_hal::CopyRun { from: at_frame(frames[0].first), to: at_host(region, 0), bytes: 2 * MIB }];
    // SAFETY: places of this test.
    let behind = unsafe { device.copy(&runs, &[queued.point()]) }.unwrap();
    device.inject().lose();
    let lost = |e: DeviceError| matches!(e, DeviceError::Lost(_));
    // Told when the kernel that runs has ended, which those who wait for something else find out in the same way.
    assert!(lost(device.wait(behind, LONG).unwrap_err()));
    assert!(device.inject().is_lost());
    assert!(lost(alloc(&device, 1).unwrap_err()));
    assert!(lost(device.reserve(1).unwrap_err()));
    assert!(lost(edit(&device, range, Target::Absent, Access::Read).unwrap_err()));
    assert!(lost(copy(&device, CopyEnd::Zero, at_frame(0), 1).unwrap_err()));
    // SAFETY: a kernel's code.
    assert!(lost(unsafe { device.load(fill.code()) }.unwrap_err()));
    assert!(lost(submit(&device, &fill, 1, &[range], &[]).unwrap_err()));
    // Nothing hangs: launches end as lost. A copy that did not happen is never reached.
    let start = Instant::now();
    while !(device.reached(running.point()) && device.reached(queued.point())) {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(outcome(&device, queued), Outcome::Failed(KernelError::Lost(_))));
    assert!(matches!(outcome(&device, running), Outcome::Failed(KernelError::Lost(_))));
    assert!(lost(device.wait(behind, LONG).unwrap_err()) && !device.reached(behind));
    // SAFETY: given back once; the base mapping stays readable.
    unsafe {
        device.frames_base().unwrap().read_volatile();
        device.free(&frames);
        device.unreserve(range);
    }
    assert_eq!(device.memory().in_use, 0);
}

#[test]
fn a_device_may_be_dropped_with_launches_under_way() {
    let device = device(small());
    let range = device.reserve(MIB).unwrap();
    let nap = Kernel::new("nap", 20_u32, (each_mut::<u32>(16),), nap);
    for _ in 0..200 {
        submit(&device, &nap, 2, &[range], &[]).unwrap();
    }
    let start = Instant::now();
    drop(device);
    assert!(start.elapsed() < Duration::from_secs(2), "waited for all of them");
}
