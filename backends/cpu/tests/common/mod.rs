//! Devices and host storage for tests.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::conformance::Bench;
use sterna_hal::kernel::{Kernel, Params};
use sterna_hal::{
    Access, Arg, CopyRun, DevRange, Device, DeviceError, Edit, Frames, Groups, HostAt, Launch, Outcome, Place, Point,
    RegionId, Target, Ticket,
};

pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn device(config: CpuConfig) -> CpuDevice {
    CpuDevice::new(0, config).expect("a device")
}

/// A shared memory file, mapped.
pub(crate) struct Host {
    fd: OwnedFd,
    base: NonNull<u8>,
    bytes: u64,
}

pub(crate) fn host(bytes: u64) -> Host {
    // SAFETY: a new file and a new mapping of it, checked.
    unsafe {
        let fd = libc::memfd_create(c"host".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        let fd = OwnedFd::from_raw_fd(fd);
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), bytes as i64), 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let p = libc::mmap(std::ptr::null_mut(), bytes as usize, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0);
        assert_ne!(p, libc::MAP_FAILED);
        Host { fd, base: NonNull::new(p.cast()).unwrap(), bytes }
    }
}

pub(crate) fn host_for(grain: u64) -> Host {
    host(Bench::least(grain))
}

impl Host {
    pub(crate) fn attach(&self, device: &dyn Device) -> RegionId {
        // SAFETY: mapped from offset 0; tests keep it longer than the device's last use of it.
        unsafe { device.attach_host(self.base, self.bytes, self.fd.as_raw_fd()) }.expect("attach_host")
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn slice(&self) -> &[u8] {
        // SAFETY: mapped; tests look at it while no copy to it is under way.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes as usize) }
    }

    pub(crate) fn fill(&self, value: u8) {
        // SAFETY: mapped; no copy is under way.
        unsafe { self.base.write_bytes(value, self.bytes as usize) };
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes as usize) };
    }
}

pub(crate) fn at_host(region: RegionId, offset: u64) -> Place {
    Place::Host(HostAt { region, offset })
}

pub(crate) fn at_frame(first: u32) -> Place {
    Place::Frames { first, offset: 0 }
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

pub(crate) fn copy(device: &dyn Device, from: Place, to: Place, bytes: u64) -> Result<Point, DeviceError> {
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
    let id = device.load(kernel.code())?;
    let mut args = vec![Arg::Plain(kernel.value())];
    args.extend(kernel.params().iter().zip(ranges).map(|(p, at)| Arg::Range {
        at: *at,
        access: p.access,
        mapping: p.mapping,
    }));
    // SAFETY: the arguments are made from the kernel's parameters; ranges are reserved and the test's own.
    unsafe { device.submit(&Launch { kernel: id, grid: [groups, 1, 1], groups: Groups::All, args: &args }, after) }
}

pub(crate) fn ended(device: &dyn Device, ticket: Ticket) -> Outcome {
    assert_eq!(device.wait(ticket.point, LONG), Ok(true));
    device.outcome(ticket, &mut Vec::new())
}
