//! The device: puts the parts together and checks what comes in.
//!
//! **Guarantee:** numbers that make no sense (places outside memory, ranges outside the window, unknown kernels) give a typed
//! error and touch nothing. No method blocks but `wait`; a copy of up to 1 MiB is done by the caller when nothing holds it up.
//!
//! **States:** present, then lost, for good. [`CpuDevice::lose`](CpuDevice::lose) changes it, when no group of a kernel runs: see
//! `signals`. A lost device refuses every call except those that give something back. Launches that had not ended end as lost, and
//! their points are reached; the point of a copy that did not happen is not, and waiting for it says that the device is lost.
//!
//! **Locks:** those of the parts, none held across two parts.

use std::error::Error as _;
use std::mem::{ManuallyDrop, forget};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};
use smallvec::SmallVec;
use sterna_hal::kernel::{Code, Form};
use sterna_hal::{
    Absent, Arg, Caps, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, DeviceKind, Edit, FaultBatch, Frames,
    HostAt, KernelError, KernelId, Launch, Memory, Outcome, Point, RegionId, Role, Ticket, in_kernel, runs_kernels,
};
use sterna_host::copy::{Copier, INLINE, Owner};
use sterna_host::fork::Origin;
use sterna_host::mmu::{Mmu, min_frames};
use sterna_host::sys;
use sterna_host::timeline::Waited;

use crate::failing::watch_panics;
use crate::inject::Count;
use crate::launch::{Compute, OwnArg, OwnArgs};
use crate::signals::{COPY, Signals};
use crate::{CpuConfig, Inject};

/// More workers than this are refused: a device would take thousands of threads from the system before it says no.
const MOST_WORKERS: usize = 1024;
/// More threads than this do not copy faster.
const COPY_THREADS: usize = 8;

/// A compute device made of the host's processors. See the [crate](crate) for what it is made of.
///
/// Dropping it joins its threads and gives everything back. Launches that have not ended by then end as on a lost device; kernels
/// that still run go on in scratch memory, which is why whoever submits one keeps the device. In a kernel, which may be one of its own,
/// another thread does that.
#[derive(Debug)]
pub struct CpuDevice {
    info: DeviceInfo,
    caps: Caps,
    host_readable: bool,
    signals: Arc<Signals>,
    compute: Arc<Compute>,
    copier: Arc<Copier>,
    /// `None` only while being dropped.
    pool: Option<ThreadPool>,
    workers: Vec<JoinHandle<()>>,
    mmu: Arc<Mmu>,
    origin: Origin,
}

impl CpuDevice {
    /// Makes device `cpu:{index}`.
    ///
    /// # Errors
    /// A configuration that makes no sense, or limits of the system; the text says which.
    pub fn new(index: u32, config: CpuConfig) -> Result<Self, DeviceError> {
        if config.absent == Absent::Reports {
            return Err(sys::invalid("CpuDevice::new", "the CPU device faults; it does not report misses"));
        }
        if config.coherent && !config.host_readable {
            return Err(sys::invalid("CpuDevice::new", "coherent memory is readable by the host: set `host_readable` too"));
        }
        if config.unified && !config.map_host {
            return Err(sys::invalid(
                "CpuDevice::new",
                "memory that is the host's can be named by entries: set `map_host` too",
            ));
        }
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let count = if config.workers == 0 { processors.min(MOST_WORKERS) } else { config.workers };
        if count > MOST_WORKERS {
            return Err(sys::invalid("CpuDevice::new", format!("{count} workers; at most {MOST_WORKERS} are possible")));
        }
        let mmu = Arc::new(Mmu::new(config.window, config.memory, config.grain, min_frames(count), config.map_host)?);
        watch_panics();
        let (id, prefix) = (format!("cpu:{index}"), format!("sterna-cpu{index}"));
        let signals = Arc::new(Signals::new(id.clone()));
        let (pool, workers) = start_workers(&prefix, count)?;
        let faults = config.absent == Absent::Faults;
        let caps = Caps {
            absent: config.absent,
            grain: config.grain,
            queued_edits: false,
            map_host: config.map_host,
            unified: config.unified,
            coherent: config.coherent,
            placed: false,
            read_only: true,
            max_reservation: mmu.window_bytes(),
            min_frames: if faults { min_frames(count) } else { 0 },
            form: Form::Rust,
            queues: vec![Role::Compute, Role::Copy],
        };
        let name = format!("CPU, {count} worker{}", if count == 1 { "" } else { "s" });
        Ok(Self {
            info: DeviceInfo { id, name, kind: DeviceKind::Cpu },
            caps,
            host_readable: config.host_readable,
            compute: Compute::new(Arc::clone(&signals), count),
            copier: Copier::new(Arc::clone(&signals) as Arc<dyn Owner>, COPY, processors.min(COPY_THREADS), prefix),
            signals,
            pool: Some(pool),
            workers,
            mmu,
            origin: Origin::here(),
        })
    }

    /// Faults on demand and counters, for tests.
    #[must_use]
    pub fn inject(&self) -> Inject<'_> {
        Inject { device: self, triggers: &self.signals.inject }
    }

    /// Loses the device, as if it had been unplugged: every later call says so, launches end as lost, waiters return.
    /// Only `free` and `unreserve` are still accepted. [`frames_base`](Device::frames_base) stays readable; what it shows
    /// counts for nothing.
    ///
    /// Kernels here are functions of the program, whose references must stay good until they return. So groups that are running are
    /// run to their ends, with every page that they need, before the loss comes; no further one starts. Where none runs it comes at
    /// once. This call does not wait for it.
    pub fn lose(&self) {
        if !self.origin.is_left() {
            self.signals.lose();
        }
    }

    fn present(&self) -> Result<(), DeviceError> {
        self.origin.check()?;
        if self.signals.inject.loss_fires() {
            self.lose();
        }
        if self.signals.lost() { Err(DeviceError::Lost(self.signals.loss())) } else { Ok(()) }
    }
}

/// Worker threads, with their handles: rayon itself would not join them.
fn start_workers(prefix: &str, count: usize) -> Result<(ThreadPool, Vec<JoinHandle<()>>), DeviceError> {
    let handles = Mutex::new(Vec::with_capacity(count));
    let built = ThreadPoolBuilder::new()
        .num_threads(count)
        .spawn_handler(|worker| {
            let handle = sys::spawn(format!("{prefix}-{}", worker.index()), move || {
                sys::unblock_faults();
                runs_kernels();
                worker.run();
            })?;
            handles.lock().push(handle);
            Ok(())
        })
        .build();
    let handles = handles.into_inner();
    match built {
        Ok(pool) => Ok((pool, handles)),
        Err(error) => {
            // The workers that did start end by themselves: their pool is gone.
            handles.into_iter().for_each(|h| drop(h.join()));
            let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
            let refused = std::io::Error::from_raw_os_error(libc::EAGAIN);
            Err(sys::no_thread(cause.unwrap_or(&refused)))
        }
    }
}

// SAFETY: the mapping of device memory and the window are the device's own and live as long as it does; frames and addresses are taken
// from tables that have each once; a launch's point is reached, and its loss told, when its groups have ended.
unsafe impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory(&self) -> Memory {
        if self.origin.is_left() { Memory { budget: 0, in_use: 0 } } else { self.mmu.memory() }
    }

    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        self.present()?;
        // SAFETY: the caller's.
        unsafe { self.mmu.regions().attach(base, bytes, memfd) }
    }

    unsafe fn host_freed(&self, _at: HostAt, _bytes: u64) {
        // Copies and entries go by the mapping.
    }

    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        self.present()?;
        self.mmu.reserve(bytes)
    }

    unsafe fn unreserve(&self, range: DevRange) {
        if self.origin.is_left() {
            return;
        }
        // SAFETY: the caller's.
        unsafe { self.mmu.unreserve(range) }
    }

    fn alloc(&self, _place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        self.present()?;
        if grains == 0 {
            return Ok(());
        }
        self.signals.inject.add(Count::Allocs, 1);
        if self.signals.inject.alloc_fails() {
            return Err(self.mmu.exhausted(grains));
        }
        self.mmu.alloc(grains, out)
    }

    unsafe fn free(&self, frames: &[Frames]) {
        if !self.origin.is_left() {
            // SAFETY: the caller's.
            unsafe { self.mmu.free(frames) };
        }
    }

    fn frames_base(&self) -> Option<NonNull<u8>> {
        self.host_readable.then(|| self.mmu.frames_base())
    }

    fn frames_file(&self) -> Option<i32> {
        self.caps.coherent.then(|| self.mmu.frames_file())
    }

    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError> {
        self.present()?;
        self.signals.check_points("edit", after)?;
        if !self.signals.all_reached(after) {
            return Err(sys::invalid("edit", "edits happen at once: every point in `after` must be reached"));
        }
        let inject = &self.signals.inject;
        // SAFETY: the caller's.
        unsafe {
            self.mmu.edit(
                edits,
                |resolve| {
                    if inject.edit_fails() {
                        return Err(sys::injected("edit"));
                    }
                    let entry = resolve();
                    inject.add(Count::Edits, u64::from(entry.is_ok()));
                    entry
                },
                || inject.add(Count::Mappings, 1),
            )?;
        }
        self.present()?;
        Ok(Point::REACHED)
    }

    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError> {
        self.present()?;
        self.signals.check_points("copy", after)?;
        let pieces = self.mmu.pieces(runs)?;
        let inject = &self.signals.inject;
        if inject.copy_fails() {
            return Err(sys::injected("copy"));
        }
        let total: u64 = pieces.iter().map(|p| p.bytes as u64).sum();
        let ready = self.signals.all_reached(after);
        let point = if total <= INLINE && !inject.copies_are_late() && ready {
            for p in &pieces {
                // SAFETY: places are inside memory and regions; the rest is the caller's.
                unsafe { p.copy(0, p.bytes) };
            }
            Point::REACHED
        } else {
            // SAFETY: as above.
            unsafe { self.copier.queue(pieces, after, ready) }?
        };
        inject.add(Count::Copies, 1);
        inject.add(Count::CopyBytes, total);
        Ok(point)
    }

    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        self.present()?;
        self.compute.load(code)
    }

    unsafe fn unload(&self, kernel: KernelId) {
        if !self.origin.is_left() {
            self.compute.unload(kernel);
        }
    }

    unsafe fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError> {
        self.present()?;
        self.signals.check_points("submit", after)?;
        if self.signals.inject.submit_fails() {
            return Err(sys::injected("submit"));
        }
        let Some(pool) = &self.pool else { return Err(DeviceError::Lost(self.signals.loss())) };
        let mut args = OwnArgs::new();
        for arg in launch.args {
            args.push(match *arg {
                Arg::Range { at, mapping, .. } => {
                    let start = NonNull::new(std::ptr::with_exposed_provenance_mut(at.at.0 as usize));
                    if let Some(touched) = arg.touched(launch.groups) {
                        self.mmu.pointer("submit", touched)?;
                    }
                    OwnArg::Buffer { at: start.unwrap_or(NonNull::dangling()), bytes: at.bytes, mapping }
                }
                Arg::Plain(bytes) => OwnArg::Plain(SmallVec::from_slice(bytes)),
            });
        }
        let ticket = self.compute.submit(pool, launch.kernel, launch.grid, launch.groups, args, after)?;
        self.signals.inject.add(Count::Submits, 1);
        Ok(ticket)
    }

    unsafe fn outcome(&self, done: Ticket, _missed: &mut FaultBatch) -> Outcome {
        if let Err(e) = self.origin.check() {
            return Outcome::Failed(KernelError::Lost(e.to_string()));
        }
        self.compute.outcome(done)
    }

    fn reached(&self, point: Point) -> bool {
        // In a forked child nothing is under way.
        self.origin.is_left() || self.signals.queue(point).is_some_and(|q| q.is_reached(point.value))
    }

    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        self.origin.check()?;
        self.signals.check_points("wait", &[point])?;
        if self.reached(point) {
            return Ok(true);
        }
        if in_kernel() {
            let text = "a kernel waited for its own device".into();
            return Err(DeviceError::Driver { call: "wait", code: libc::EDEADLK, text });
        }
        let Some(queue) = self.signals.queue(point) else { return Ok(false) };
        match queue.wait(point.value, Some(timeout), self.signals.inject.lost_flag()) {
            Waited::Reached => Ok(true),
            Waited::TimedOut => Ok(false),
            Waited::Lost => {
                self.copier.wait_idle();
                Err(DeviceError::Lost(self.signals.loss()))
            }
        }
    }

    fn window(&self) -> Option<Range<usize>> {
        (self.caps.absent == Absent::Faults).then(|| self.mmu.addresses())
    }
}

impl Drop for CpuDevice {
    fn drop(&mut self) {
        if self.origin.is_left() {
            // Threads, and whatever they have in hand, are the parent's.
            forget((self.pool.take(), std::mem::take(&mut self.workers), Arc::clone(&self.mmu)));
            forget((Arc::clone(&self.compute), Arc::clone(&self.copier), Arc::clone(&self.signals)));
            return;
        }
        let end = Ending {
            signals: Arc::clone(&self.signals),
            compute: Arc::clone(&self.compute),
            copier: Arc::clone(&self.copier),
            pool: self.pool.take(),
            workers: std::mem::take(&mut self.workers),
            mmu: Arc::clone(&self.mmu),
        };
        if !in_kernel() {
            return end.run();
        }
        // This thread may be a worker of it, on whose window the kernel goes on. Without another thread it stays for ever.
        let end = ManuallyDrop::new(end);
        let _ = sys::spawn("sterna-cpu-end".into(), move || ManuallyDrop::into_inner(end).run());
    }
}

/// What is left of a device that is being dropped.
struct Ending {
    signals: Arc<Signals>,
    compute: Arc<Compute>,
    copier: Arc<Copier>,
    pool: Option<ThreadPool>,
    workers: Vec<JoinHandle<()>>,
    mmu: Arc<Mmu>,
}

impl Ending {
    fn run(mut self) {
        if self.compute.busy() {
            self.signals.lose();
            // Whoever submitted has left them alone. One that stands at an absent page goes on, on scratch memory; without any (no
            // descriptors left) it cannot.
            let _ = self.mmu.ruin();
        }
        self.copier.close();
        drop(self.pool.take());
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
