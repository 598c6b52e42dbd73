//! What the checks are written with: host storage, segments with frames behind them, launches that are waited for.

use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use bytemuck::Pod;
use smallvec::SmallVec;

use crate::kernel::{Form, Kernel, Params};
use crate::{
    Access, Arg, CopyEnd, CopyRun, DevRange, Device, DeviceError, Edit, FaultBatch, Frames, Groups, HostAt, Launch, Outcome,
    Point, RegionId, Target, Ticket,
};

/// How long a check waits for a point before it says that it is never reached.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A device under test, with a piece of host storage.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    /// The device.
    pub device: &'a dyn Device,
    pub(super) region: RegionId,
    base: NonNull<u8>,
    bytes: u64,
}

// SAFETY: an address whose bytes threads share as the checks tell them to: each its own part.
unsafe impl Send for Bench<'_> {}
// SAFETY: as above.
unsafe impl Sync for Bench<'_> {}

impl fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("device", self.device.info()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// How a check ended, if it did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The device does as it must.
    Passed,
    /// The check does not apply, because of this.
    Skipped(&'static str),
}

/// One check.
pub type Check = fn(&Bench<'_>) -> Result<Verdict, String>;

/// What came out of the whole suite.
#[derive(Clone, Debug)]
pub struct Report {
    /// By check, in order.
    pub results: Vec<(&'static str, Result<Verdict, String>)>,
    device: String,
}

impl Report {
    /// Names of the checks that passed.
    #[must_use]
    pub fn passed(&self) -> Vec<&'static str> {
        self.results.iter().filter(|(_, r)| *r == Ok(Verdict::Passed)).map(|(n, _)| *n).collect()
    }

    /// Panics with a line a failure if any check failed.
    ///
    /// # Panics
    /// See above: that is what it is for.
    pub fn check(&self) {
        let failed: Vec<String> =
            self.results.iter().filter_map(|(name, r)| r.as_ref().err().map(|e| format!("  {name}: {e}"))).collect();
        assert!(
            failed.is_empty(),
            "{} of {} checks failed on {}:\n{}",
            failed.len(),
            self.results.len(),
            self.device,
            failed.join("\n")
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, result) in &self.results {
            match result {
                Ok(Verdict::Passed) => writeln!(f, "passed   {name}")?,
                Ok(Verdict::Skipped(why)) => writeln!(f, "skipped  {name}: {why}")?,
                Err(why) => writeln!(f, "FAILED   {name}: {why}")?,
            }
        }
        Ok(())
    }
}

/// Runs every check.
#[must_use]
pub fn all(bench: &Bench<'_>) -> Report {
    let mut results = Vec::new();
    for &(name, check) in super::checks::LIST {
        let before = bench.device.memory().in_use;
        let mut result = check(bench);
        let after = bench.device.memory().in_use;
        if result.is_ok() && before != after {
            result = Err(format!("memory in use went from {before} to {after} bytes"));
        }
        results.push((name, result));
    }
    Report { results, device: bench.device.info().id.clone() }
}

/// Fails the check with a message unless the condition holds.
macro_rules! ensure {
    ($cond:expr, $($message:tt)+) => {
        if !$cond {
            return Err(format!($($message)+));
        }
    };
}
pub(super) use ensure;

/// A device error as a check's failure.
pub(super) fn said(what: &'static str) -> impl Fn(DeviceError) -> String {
    move |e| format!("{what}: {e}")
}

impl<'a> Bench<'a> {
    /// The least host storage that the suite needs for a device of this grain.
    #[must_use]
    pub fn least(grain: u64) -> u64 {
        (8 << 20_u64).max(8 * grain)
    }

    /// A bench for `device` with the host region `region` of `bytes` bytes at `base`.
    ///
    /// # Panics
    /// If the region is smaller than [`least`](Self::least).
    ///
    /// # Safety
    /// The region is attached to the device with this base and length, and nobody else touches it while the bench is used.
    pub unsafe fn new(device: &'a dyn Device, region: RegionId, base: NonNull<u8>, bytes: u64) -> Self {
        assert!(bytes >= Self::least(device.caps().grain), "the suite needs {} bytes", Self::least(device.caps().grain));
        Self { device, region, base, bytes }
    }

    pub(super) fn grain(&self) -> u64 {
        self.device.caps().grain
    }

    /// Whether the device runs Rust forms.
    pub(super) fn runs_rust(&self) -> bool {
        self.device.caps().form == Form::Rust
    }

    pub(super) fn host_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether that many grains are free now.
    pub(super) fn room(&self, grains: u64) -> bool {
        let m = self.device.memory();
        m.budget - m.in_use >= grains * self.grain()
    }

    fn host_ptr(&self, offset: u64, bytes: u64) -> *mut u8 {
        assert!(offset + bytes <= self.bytes, "a check left the host region");
        // SAFETY: inside the region.
        unsafe { self.base.as_ptr().add(usize::try_from(offset).expect("64-bit host")) }
    }

    /// Writes host storage.
    pub(super) fn put(&self, offset: u64, bytes: &[u8]) {
        let to = self.host_ptr(offset, bytes.len() as u64);
        // SAFETY: inside the region, which is this check's alone.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Reads host storage.
    pub(super) fn get(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let from = self.host_ptr(offset, bytes);
        // SAFETY: inside the region, which is this check's alone.
        unsafe { std::slice::from_raw_parts(from, usize::try_from(bytes).expect("64-bit host")) }.to_vec()
    }

    /// Reads host storage as elements.
    pub(super) fn values<T: Pod>(&self, offset: u64, count: usize) -> Vec<T> {
        let bytes = self.get(offset, (count * size_of::<T>()) as u64);
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    pub(super) fn host(&self, offset: u64) -> CopyEnd {
        CopyEnd::Host(HostAt { region: self.region, offset })
    }

    /// Waits for a point as a check does.
    pub(super) fn reach(&self, what: &'static str, point: Point) -> Result<(), String> {
        ensure!(self.device.wait(point, PATIENCE).map_err(said(what))?, "{what}: {point:?} was never reached");
        ensure!(self.device.reached(point), "{what}: wait says that {point:?} is reached, reached denies it");
        Ok(())
    }

    /// Copies and waits.
    pub(super) fn copy(&self, runs: &[CopyRun]) -> Result<(), String> {
        // SAFETY: checks copy between frames and host storage of their own, and wait.
        let point = unsafe { self.device.copy(runs, &[]) }.map_err(said("copy"))?;
        self.reach("copy", point)
    }

    pub(super) fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<(), String> {
        // SAFETY: checks edit their own ranges when their launches have ended.
        let point = unsafe { self.device.edit(edits, after) }.map_err(said("edit"))?;
        self.reach("edit", point)
    }

    /// Submits a kernel over ranges, one for each of its parameters.
    pub(super) fn submit<P: Params>(
        &self,
        kernel: &Kernel<P>,
        grid: [u32; 3],
        groups: Groups<'_>,
        ranges: &[DevRange],
        after: &[Point],
    ) -> Result<Ticket, String> {
        // SAFETY: a kernel's code.
        let id = unsafe { self.device.load(kernel.code()) }.map_err(said("load"))?;
        let mut args: SmallVec<[Arg<'_>; 8]> = smallvec::smallvec![Arg::Plain(kernel.value())];
        args.extend(kernel.params().iter().zip(ranges).map(|(p, at)| Arg::Range {
            at: *at,
            elem: p.elem,
            access: p.access,
            mapping: p.mapping,
        }));
        // SAFETY: the arguments are made from the kernel's own parameters; ranges are mapped and this check's alone.
        unsafe { self.device.submit(&Launch { kernel: id, grid, groups, args: &args }, after) }.map_err(said("submit"))
    }

    /// Waits for a launch and tells how it ended.
    pub(super) fn ended(&self, ticket: Ticket) -> Result<Outcome, String> {
        self.reach("launch", ticket.point())?;
        let mut missed = FaultBatch::new();
        // SAFETY: submitted by this suite, reached just now, and asked here alone.
        let outcome = unsafe { self.device.outcome(ticket, &mut missed) };
        ensure!(missed.is_empty(), "a launch over resident memory missed {missed:?}");
        Ok(outcome)
    }

    /// Runs a kernel over a whole grid to its end.
    pub(super) fn run<P: Params>(&self, kernel: &Kernel<P>, grid: [u32; 3], ranges: &[DevRange]) -> Result<(), String> {
        match self.ended(self.submit(kernel, grid, Groups::All, ranges, &[])?)? {
            Outcome::Done => Ok(()),
            other => Err(format!("kernel {}: {other:?}", kernel.name())),
        }
    }

    /// A segment of some grains with frames behind all of it, cleared.
    pub(super) fn segment(&self, grains: u64) -> Result<Segment<'a>, String> {
        let bytes = grains * self.grain();
        let at = self.device.reserve(bytes).map_err(said("reserve"))?;
        let mut seg = Segment { bench: *self, at: at.part(0, bytes), reserved: at, frames: Vec::new() };
        let count = u32::try_from(grains).expect("a small segment");
        self.device.alloc(at.at, count, &mut seg.frames).map_err(said("alloc"))?;
        seg.map(Access::ReadWrite)?;
        seg.zero()?;
        Ok(seg)
    }
}

/// Addresses with frames behind them; gives both back when dropped.
pub(super) struct Segment<'a> {
    bench: Bench<'a>,
    pub(super) at: DevRange,
    reserved: DevRange,
    pub(super) frames: Vec<Frames>,
}

impl Segment<'_> {
    /// The frames' pieces of the segment: byte offset within it, bytes, first grain.
    pub(super) fn pieces(&self) -> Vec<(u64, u64, u32)> {
        let (grain, mut at) = (self.bench.grain(), 0);
        let piece = |f: &Frames| {
            let bytes = u64::from(f.grains) * grain;
            at += bytes;
            (at - bytes, bytes, f.first)
        };
        self.frames.iter().map(piece).collect()
    }

    /// Enters all its frames into the page table.
    pub(super) fn map(&self, access: Access) -> Result<(), String> {
        let edit = |(offset, bytes, first)| Edit { at: self.at.part(offset, bytes), to: Target::Frames { first }, access };
        self.bench.edit(&self.pieces().into_iter().map(edit).collect::<Vec<_>>(), &[])
    }

    pub(super) fn unmap(&self) -> Result<(), String> {
        self.bench.edit(&[Edit { at: self.at, to: Target::Absent, access: Access::Read }], &[])
    }

    pub(super) fn zero(&self) -> Result<(), String> {
        let run = |(_, bytes, first)| CopyRun { from: CopyEnd::Zero, to: CopyEnd::Frames { first, offset: 0 }, bytes };
        self.bench.copy(&self.pieces().into_iter().map(run).collect::<Vec<_>>())
    }

    /// The runs that copy `bytes` bytes at `offset` from (or to) host storage.
    pub(super) fn runs(&self, offset: u64, bytes: u64, host: u64, inward: bool) -> Vec<CopyRun> {
        let mut runs = Vec::new();
        for (at, len, first) in self.pieces() {
            let (start, end) = (offset.max(at), (offset + bytes).min(at + len));
            if start < end {
                let frames = CopyEnd::Frames { first, offset: start - at };
                let host = self.bench.host(host + start - offset);
                let (from, to) = if inward { (host, frames) } else { (frames, host) };
                runs.push(CopyRun { from, to, bytes: end - start });
            }
        }
        runs
    }

    /// Its first elements, by way of the end of the host region.
    pub(super) fn read<T: Pod>(&self, count: usize) -> Result<Vec<T>, String> {
        let bytes = (count * size_of::<T>()) as u64;
        let host = (self.bench.host_bytes() - bytes) & !63;
        self.bench.copy(&self.runs(0, bytes, host, false))?;
        Ok(self.bench.values(host, count))
    }

    /// Sets its first elements, by way of the end of the host region.
    pub(super) fn write<T: Pod>(&self, values: &[T]) -> Result<(), String> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let host = (self.bench.host_bytes() - bytes.len() as u64) & !63;
        self.bench.put(host, bytes);
        self.bench.copy(&self.runs(0, bytes.len() as u64, host, true))
    }

    /// The range of its first `count` elements.
    pub(super) fn elems<T>(&self, count: usize) -> DevRange {
        self.at.part(0, (count * size_of::<T>()) as u64)
    }
}

impl Drop for Segment<'_> {
    fn drop(&mut self) {
        // A check that failed may leave entries behind; the addresses go back in any case, and take them along.
        let _ = self.unmap();
        // SAFETY: the check's launches have ended (it waits for every one), the entries are gone, each part is given back once.
        unsafe {
            self.bench.device.unreserve(self.reserved);
            self.bench.device.free(&self.frames);
        }
    }
}
