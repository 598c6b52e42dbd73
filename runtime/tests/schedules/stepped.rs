//! A CPU device whose kernels run on a thread of the test, so that a schedule decides when each group goes on.

use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::kernel::{Code, KernelId, Mapping, RawArg};
use sterna::hal::{
    Arg, Caps, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, Edit, FaultBatch, Frames, HostAt, Launch,
    Memory, Outcome, Point, RegionId, Ticket,
};
use sterna::hmm::schedule;
use sterna::kernel::Group;

enum OwnArg {
    Buffer(NonNull<u8>, u64, Mapping),
    Plain(Vec<u8>),
}

struct Job {
    code: Code,
    grid: [u32; 3],
    args: Vec<OwnArg>,
    value: u64,
}

// SAFETY: addresses of the device's window, which only kernels touch.
unsafe impl Send for Job {}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    kernels: Vec<Code>,
    submitted: u64,
}

/// The device: everything but launches is the CPU device's.
pub(crate) struct Stepped {
    inner: CpuDevice,
    queue: Mutex<Queue>,
    done: AtomicU64,
}

impl Stepped {
    pub(crate) fn new(index: u32, config: CpuConfig) -> Self {
        Self { inner: CpuDevice::new(index, config).unwrap(), queue: Mutex::default(), done: AtomicU64::new(0) }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what is submitted until `over`. The body of one thread of a schedule.
    pub(crate) fn work(&self, over: impl Fn() -> bool) {
        while !over() {
            self.step();
            schedule::point();
        }
    }

    /// Runs the oldest launch, if there is one.
    pub(crate) fn step(&self) -> bool {
        let Some(job) = self.queue().jobs.pop_front() else { return false };
        let args: Vec<RawArg<'_>> = job
            .args
            .iter()
            .map(|a| match a {
                OwnArg::Buffer(at, bytes, mapping) => RawArg::Buffer { at: *at, bytes: *bytes, mapping: *mapping },
                OwnArg::Plain(bytes) => RawArg::Plain(bytes),
            })
            .collect();
        let form = job.code.rust.expect("kernels of these tests are Rust");
        for n in 0..job.grid[0] {
            schedule::point();
            // SAFETY: the arguments are those of the launch, whose kernel this is; one thread runs each group once.
            unsafe { form(Group::nth(n, job.grid), &args) };
        }
        self.done.store(job.value, Ordering::Release);
        true
    }
}

// SAFETY: memory and window are those of the CPU device beneath; launches are run by `step`, whose points are reached behind them.
unsafe impl Device for Stepped {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }
    fn memory(&self) -> Memory {
        self.inner.memory()
    }
    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        // SAFETY: the caller's.
        unsafe { self.inner.attach_host(base, bytes, memfd) }
    }
    unsafe fn host_freed(&self, at: HostAt, bytes: u64) {
        // SAFETY: the caller's.
        unsafe { self.inner.host_freed(at, bytes) };
    }
    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        self.inner.reserve(bytes)
    }
    unsafe fn unreserve(&self, range: DevRange) {
        // SAFETY: the caller's.
        unsafe { self.inner.unreserve(range) }
    }
    fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        self.inner.alloc(place, grains, out)
    }
    unsafe fn free(&self, frames: &[Frames]) {
        // SAFETY: the caller's.
        unsafe { self.inner.free(frames) }
    }
    fn frames_base(&self) -> Option<NonNull<u8>> {
        self.inner.frames_base()
    }
    fn frames_file(&self) -> Option<i32> {
        self.inner.frames_file()
    }
    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError> {
        schedule::point();
        // SAFETY: the caller's.
        let done = unsafe { self.inner.edit(edits, after) };
        schedule::point();
        done
    }
    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError> {
        schedule::point();
        // SAFETY: the caller's.
        let done = unsafe { self.inner.copy(runs, after) };
        schedule::point();
        done
    }
    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        let mut q = self.queue();
        q.kernels.push(code.clone());
        Ok(KernelId(q.kernels.len() as u32 - 1))
    }
    unsafe fn submit(&self, launch: &Launch<'_>, _: &[Point]) -> Result<Ticket, DeviceError> {
        let args = launch.args.iter().map(|a| match *a {
            Arg::Range { at, mapping, .. } => OwnArg::Buffer(
                NonNull::new(std::ptr::with_exposed_provenance_mut(at.at.0 as usize)).unwrap(),
                at.bytes,
                mapping,
            ),
            Arg::Plain(bytes) => OwnArg::Plain(bytes.to_vec()),
        });
        let mut q = self.queue();
        q.submitted += 1;
        let (code, value) = (q.kernels[launch.kernel.0 as usize].clone(), q.submitted);
        q.jobs.push_back(Job { code, grid: launch.grid, args: args.collect(), value });
        Ok(Ticket::new(value, Point { queue: 0, value }))
    }
    unsafe fn outcome(&self, _: Ticket, _: &mut FaultBatch) -> Outcome {
        Outcome::Done
    }
    fn reached(&self, point: Point) -> bool {
        if point.queue == 0 { self.done.load(Ordering::Acquire) >= point.value } else { self.inner.reached(point) }
    }
    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        if point.queue != 0 {
            return self.inner.wait(point, timeout);
        }
        let end = Instant::now().checked_add(timeout);
        // Outside a schedule whoever waits runs the kernels.
        while !self.reached(point) {
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(false);
            }
            if !self.step() {
                std::thread::yield_now();
            }
        }
        Ok(true)
    }
    fn window(&self) -> Option<Range<usize>> {
        self.inner.window()
    }
}
