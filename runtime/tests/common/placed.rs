//! A CPU device behind limits that other devices have: reservations that are short, or that are memory themselves, as on page table
//! *fixed* of Vulkan.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::kernel::Code;
use sterna::hal::{
    Access, Caps, CopyEnd, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, Edit, FaultBatch, Frames, HostAt,
    KernelId, Launch, Memory, Outcome, Point, RegionId, Target, Ticket,
};

pub(crate) struct Placed {
    cpu: CpuDevice,
    caps: Caps,
    /// Reservations by their first address: their frames, and under which number they are known outside.
    there: Mutex<BTreeMap<u64, (u32, Vec<u32>)>>,
}

impl Placed {
    /// Frames belong to addresses.
    pub(crate) fn new(config: CpuConfig) -> Self {
        let limit = config.memory;
        Self::with(config, true, limit)
    }

    /// Reservations of up to `limit` bytes.
    pub(crate) fn short(config: CpuConfig, limit: u64) -> Self {
        Self::with(config, false, limit)
    }

    fn with(config: CpuConfig, placed: bool, limit: u64) -> Self {
        let config = CpuConfig { map_host: config.map_host && !placed, host_readable: false, ..config };
        let cpu = CpuDevice::new(0, config).expect("a device");
        let caps = Caps { placed, max_reservation: limit, ..cpu.caps().clone() };
        Self { cpu, caps, there: Mutex::default() }
    }

    fn there(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, (u32, Vec<u32>)>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place outside, as places inside: frames that follow each other outside need not do so inside.
    fn inside(&self, run: &CopyRun) -> Vec<CopyRun> {
        let grain = self.caps.grain;
        let there = self.there();
        let piece = |p: CopyEnd, done: u64, most: u64| match p {
            CopyEnd::Frames { first, offset } => {
                let (number, within) = (first + ((offset + done) / grain) as u32, (offset + done) % grain);
                let (start, frames) =
                    there.values().find(|(s, f)| (*s..*s + f.len() as u32).contains(&number)).expect("a frame");
                let first = frames[(number - start) as usize];
                (CopyEnd::Frames { first, offset: within }, most.min(grain - within))
            }
            CopyEnd::Host(mut at) => {
                at.offset += done;
                (CopyEnd::Host(at), most)
            }
            CopyEnd::Zero => (CopyEnd::Zero, most),
        };
        let (mut out, mut done) = (Vec::new(), 0);
        while done < run.bytes {
            let (_, most) = piece(run.from, done, run.bytes - done);
            let (to, bytes) = piece(run.to, done, most);
            let (from, bytes) = piece(run.from, done, bytes);
            out.push(CopyRun { from, to, bytes });
            done += bytes;
        }
        out
    }
}

// SAFETY: every answer is the CPU device's, or withholds something of it.
unsafe impl Device for Placed {
    fn info(&self) -> &DeviceInfo {
        self.cpu.info()
    }
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn memory(&self) -> Memory {
        self.cpu.memory()
    }
    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        // SAFETY: the caller's, here and below.
        unsafe { self.cpu.attach_host(base, bytes, memfd) }
    }
    unsafe fn host_freed(&self, at: HostAt, bytes: u64) {
        // SAFETY: the caller's.
        unsafe { self.cpu.host_freed(at, bytes) };
    }
    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        let limit = self.caps.max_reservation;
        if bytes > limit {
            return Err(DeviceError::TooBig { requested: bytes, limit });
        }
        let range = self.cpu.reserve(bytes)?;
        if !self.caps.placed {
            return Ok(range);
        }
        let mut frames = Vec::new();
        let grains = bytes.div_ceil(self.caps.grain) as u32;
        let got = self.cpu.alloc(range.at, grains, &mut frames);
        // SAFETY: reserved and allocated just now.
        unsafe {
            got.inspect_err(|_| self.cpu.unreserve(range))?;
            let list: Vec<u32> = frames.iter().flat_map(|f| f.first..f.first + f.grains).collect();
            let entry = |(i, first): (usize, &u32)| Edit {
                at: DevRange { at: range.at.plus(i as u64 * self.caps.grain), bytes: self.caps.grain },
                to: Target::Frames { first: *first },
                access: Access::ReadWrite,
            };
            self.cpu.edit(&list.iter().enumerate().map(entry).collect::<Vec<_>>(), &[])?;
            let mut there = self.there();
            let number = there.values().map(|(s, f)| s + f.len() as u32).max().unwrap_or(0);
            there.insert(range.at.0, (number, list));
        }
        Ok(range)
    }
    unsafe fn unreserve(&self, range: DevRange) {
        let gone = self.there().remove(&range.at.0);
        // SAFETY: as above; the entries go with the addresses.
        unsafe {
            self.cpu.unreserve(range);
            let frames: Vec<Frames> =
                gone.into_iter().flat_map(|(_, f)| f).map(|first| Frames { first, grains: 1 }).collect();
            self.cpu.free(&frames);
        }
    }
    fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        if !self.caps.placed {
            return self.cpu.alloc(place, grains, out);
        }
        let there = self.there();
        let (at, (number, _)) = there.range(..=place.0).next_back().expect("a reservation");
        out.push(Frames { first: number + ((place.0 - at) / self.caps.grain) as u32, grains });
        Ok(())
    }
    unsafe fn free(&self, frames: &[Frames]) {
        if !self.caps.placed {
            // SAFETY: as above.
            unsafe { self.cpu.free(frames) }
        }
    }
    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError> {
        if self.caps.placed {
            return Ok(Point::REACHED); // entries are what they are
        }
        // SAFETY: as above.
        unsafe { self.cpu.edit(edits, after) }
    }
    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError> {
        let inside: Vec<CopyRun> =
            if self.caps.placed { runs.iter().flat_map(|r| self.inside(r)).collect() } else { runs.to_vec() };
        // SAFETY: as above.
        unsafe { self.cpu.copy(&inside, after) }
    }
    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        // SAFETY: the caller's.
        unsafe { self.cpu.load(code) }
    }
    unsafe fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError> {
        // SAFETY: as above.
        unsafe { self.cpu.submit(launch, after) }
    }
    unsafe fn outcome(&self, done: Ticket, missed: &mut FaultBatch) -> Outcome {
        // SAFETY: the caller's.
        unsafe { self.cpu.outcome(done, missed) }
    }
    fn reached(&self, point: Point) -> bool {
        self.cpu.reached(point)
    }
    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        self.cpu.wait(point, timeout)
    }
}
