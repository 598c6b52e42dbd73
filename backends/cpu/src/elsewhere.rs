//! The CPU device where it is not available. **Guarantee:** a value of it does not exist.

use std::ops::Range;
use std::ptr::NonNull;
use std::time::Duration;

use sterna_hal::kernel::Code;
use sterna_hal::{
    Caps, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, Edit, FaultBatch, Frames, HostAt, KernelId, Launch,
    Memory, Outcome, Point, RegionId, Ticket,
};

use crate::{CpuConfig, Inject};

/// A compute device made of the host's processors. Not available on this system.
#[derive(Debug)]
pub enum CpuDevice {}

impl CpuDevice {
    /// Says that there is no CPU device on this system.
    ///
    /// # Errors
    /// Always.
    pub fn new(_index: u32, _config: CpuConfig) -> Result<Self, DeviceError> {
        let text = "the CPU device needs Linux".into();
        Err(DeviceError::Driver { call: "CpuDevice::new", code: 0, text })
    }

    /// Faults on demand and counters, for tests.
    #[must_use]
    pub fn inject(&self) -> Inject<'_> {
        match *self {}
    }

    /// Loses the device.
    pub fn lose(&self) {
        match *self {}
    }
}

macro_rules! nothing {
    ($($(#[$safety:meta])* fn $name:ident(&self $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)?;)*
     unsafe: $(fn $uname:ident(&self $(, $uarg:ident: $uty:ty)*) $(-> $uret:ty)?;)*) => {
        // SAFETY: a value of it does not exist.
        unsafe impl Device for CpuDevice {
            $(fn $name(&self $(, $arg: $ty)*) $(-> $ret)? { match *self {} })*
            $(unsafe fn $uname(&self $(, $uarg: $uty)*) $(-> $uret)? { match *self {} })*
        }
    };
}

nothing! {
    fn info(&self) -> &DeviceInfo;
    fn caps(&self) -> &Caps;
    fn memory(&self) -> Memory;
    fn reserve(&self, _bytes: u64) -> Result<DevRange, DeviceError>;
    fn alloc(&self, _place: DevAddr, _grains: u32, _out: &mut Vec<Frames>) -> Result<(), DeviceError>;
    fn reached(&self, _point: Point) -> bool;
    fn wait(&self, _point: Point, _timeout: Duration) -> Result<bool, DeviceError>;
    fn window(&self) -> Option<Range<usize>>;
    unsafe:
    fn outcome(&self, _done: Ticket, _missed: &mut FaultBatch) -> Outcome;
    fn load(&self, _code: &Code) -> Result<KernelId, DeviceError>;
    fn host_freed(&self, _at: HostAt, _bytes: u64);
    fn attach_host(&self, _base: NonNull<u8>, _bytes: u64, _memfd: i32) -> Result<RegionId, DeviceError>;
    fn unreserve(&self, _range: DevRange);
    fn free(&self, _frames: &[Frames]);
    fn edit(&self, _edits: &[Edit], _after: &[Point]) -> Result<Point, DeviceError>;
    fn copy(&self, _runs: &[CopyRun], _after: &[Point]) -> Result<Point, DeviceError>;
    fn submit(&self, _launch: &Launch<'_>, _after: &[Point]) -> Result<Ticket, DeviceError>;
}
