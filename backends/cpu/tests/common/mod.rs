//! Devices and host storage for tests.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::time::Duration;

use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::conformance::Bench;
use sterna_hal::kernel::{Kernel, Params};
use sterna_hal::{
    Access, Arg, CopyEnd, CopyRun, DevRange, Device, DeviceError, Edit, Frames, Groups, HostAt, Launch, Outcome, Point,
    RegionId, Target, Ticket,
};
pub(crate) use sterna_host::testing::Host;

pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn device(config: CpuConfig) -> CpuDevice {
    CpuDevice::new(0, config).expect("a device")
}

pub(crate) fn host(bytes: u64) -> Host {
    Host::new(bytes)
}

pub(crate) fn host_for(grain: u64) -> Host {
    Host::new(Bench::least(grain))
}

pub(crate) fn at_host(region: RegionId, offset: u64) -> CopyEnd {
    CopyEnd::Host(HostAt { region, offset })
}

pub(crate) fn at_frame(first: u32) -> CopyEnd {
    CopyEnd::Frames { first, offset: 0 }
}

pub(crate) fn alloc(device: &dyn Device, grains: u32) -> Result<Vec<Frames>, DeviceError> {
    let mut out = Vec::new();
    device.alloc(sterna_hal::DevAddr(0), grains, &mut out).map(|()| out)
}

pub(crate) fn edit(device: &dyn Device, at: DevRange, to: Target, access: Access) -> Result<(), DeviceError> {
    // SAFETY: tests edit ranges that they reserved, to frames that they allocated.
    let point = unsafe { device.edit(&[Edit { at, to, access }], &[]) }?;
    assert_eq!(point, Point::REACHED);
    Ok(())
}

pub(crate) fn copy(device: &dyn Device, from: CopyEnd, to: CopyEnd, bytes: u64) -> Result<Point, DeviceError> {
    // SAFETY: tests copy between places of their own.
    unsafe { device.copy(&[CopyRun { from, to, bytes }], &[]) }
}

pub(crate) fn submit<P: Params>(
    device: &dyn Device,
    kernel: &Kernel<P>,
    groups: u32,
    ranges: &[DevRange],
    after: &[Point],
) -> Result<Ticket, DeviceError> {
    // SAFETY: a kernel's code.
    let id = unsafe { device.load(kernel.code()) }?;
    let mut args = vec![Arg::Plain(kernel.value())];
    args.extend(kernel.params().iter().zip(ranges).map(|(p, at)| Arg::Range {
        at: *at,
        elem: p.elem,
        access: p.access,
        mapping: p.mapping,
    }));
    // SAFETY: the arguments are made from the kernel's parameters; ranges are reserved and the test's own.
    unsafe { device.submit(&Launch { kernel: id, grid: [groups, 1, 1], groups: Groups::All, args: &args }, after) }
}

pub(crate) fn ended(device: &dyn Device, ticket: Ticket) -> Outcome {
    assert_eq!(device.wait(ticket.point(), LONG), Ok(true));
    outcome(device, ticket)
}

/// How a launch ended that has.
pub(crate) fn outcome(device: &dyn Device, ticket: Ticket) -> Outcome {
    // SAFETY: submitted by this test, which asks once.
    unsafe { device.outcome(ticket, &mut Vec::new()) }
}
