//! The device: puts the parts together and checks what comes in.
//!
//! **Guarantee:** numbers that make no sense give a typed error and touch nothing. No method blocks but `wait`; `load`, while the
//! driver builds a pipeline; and `submit`, if it is to come behind staged copies on a device whose only queue they share.
//!
//! **States:** present, then lost, for good: by the driver's word, by a copy that failed, or by [`VulkanDevice::lose`]. A lost
//! device refuses every call except those that give something back.
//!
//! **Locks:** those of the parts, none held across two of them.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use gpu_allocator::MemoryLocation;
use sterna_hal::kernel::{Code, Form};
use sterna_hal::{
    Absent, Caps, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, DeviceKind, Edit, FaultBatch, Frames, HostAt,
    KernelId, Launch, Memory, Outcome, Point, RegionId, Role, Ticket,
};
use sterna_host::copy::{Copier, INLINE, Owner, Pieces};
use sterna_host::files::Standard;
use sterna_host::fork::Origin;
use sterna_host::mmu::{Mmu, min_frames};
use sterna_host::regions::Regions;
use sterna_host::sys;

use crate::config::{Copies, PageTable, VulkanConfig};
use crate::error::{OTHER, VulkanError, limited};
use crate::fixed::Fixed;
use crate::gpu::{self, Gpu};
use crate::imports::{Imports, Most};
use crate::instance::Instance;
use crate::launch::{COPY, Compute};
use crate::pool::Pool;
use crate::probe;
use crate::raw::Raw;
use crate::signals::{Semaphore, Signals};
use crate::sparse::Sparse;
use crate::staging::Stager;
use crate::table::{HostAddresses, Table};
use crate::trial;

/// Addresses of a device of kind *mmu*, in bytes.
const WINDOW: u64 = 1 << 40;
/// Grains of device memory of page table *sparse* on drivers that run on the host: each may become a mapping of this process, of
/// which there are 65530.
const MOST_BOUND: u64 = 48 << 10;
/// More threads than this do not copy faster.
const COPY_THREADS: usize = 8;

/// How bytes move.
#[derive(Debug)]
enum Mover {
    /// By the host's processors.
    Host(Arc<Copier>),
    /// By the device.
    Device(Arc<Stager>),
}

/// A Vulkan device.
///
/// Dropping it waits for its launches and copies, and gives everything back.
#[derive(Debug)]
pub struct VulkanDevice {
    info: DeviceInfo,
    caps: Caps,
    kind: PageTable,
    // Both are given back before what they use when the device is dropped, but in a forked child.
    mover: ManuallyDrop<Mover>,
    table: ManuallyDrop<Table>,
    regions: Arc<Regions>,
    staged_because: Option<String>,
    signals: Arc<Signals>,
    raw: Arc<Raw>,
    origin: Origin,
}

impl VulkanDevice {
    /// Opens the device that `name` means: its number, its UUID, or a part of its name. An empty name means the first that is no
    /// software driver.
    ///
    /// The kinds of page table are tried in the order of their worth, each with a small launch, and the first that works is
    /// taken.
    ///
    /// # Errors
    /// No loader, driver or such device; what it lacks; the page table that was asked for does not work; a limit of the process.
    pub fn open(name: &str, config: &VulkanConfig) -> Result<Self, VulkanError> {
        // What drivers open for good is to be none of what the program has closed.
        let _standard = Standard::hold();
        let instance = Instance::shared().map_err(limited)?;
        let gpu = gpu::find(gpu::list(&instance).map_err(limited)?, name)?;
        let wanted = match config.page_table {
            Some(kind) => vec![kind],
            None if gpu.kind == DeviceKind::Software => vec![PageTable::Mmu, PageTable::Sparse, PageTable::Fixed],
            None => vec![PageTable::Sparse, PageTable::Fixed],
        };
        let mut last = None;
        for kind in wanted {
            let tried = if kind == PageTable::Mmu && gpu.kind == DeviceKind::Software {
                Self::alone(&instance, &gpu, config)
            } else {
                Self::with_table(&instance, &gpu, kind, config)
            };
            match tried {
                Ok(device) => return Ok(device),
                Err(e) => last = Some((kind, limited(e))),
            }
        }
        match last {
            Some((kind, VulkanError::Device(e))) => {
                let remedy = match config.page_table {
                    Some(_) => {
                        "choose none (STERNA_PAGE_TABLE, `VulkanConfig::page_table`) to get the best one that does".into()
                    }
                    None => format!("nor does any other; use another device ({OTHER})"),
                };
                Err(VulkanError::NoPageTable { device: gpu.name, asked: kind.name(), why: e.to_string(), remedy })
            }
            Some((_, e)) => Err(e),
            None => unreachable!("one kind at least is tried"),
        }
    }

    /// With page table *mmu*, and an instance that no other device shares.
    fn alone(instance: &Arc<Instance>, gpu: &Gpu, config: &VulkanConfig) -> Result<Self, VulkanError> {
        let own = instance.alone()?;
        let same = gpu::find(gpu::list(&own)?, &gpu.index.to_string())?;
        Self::with_table(&own, &same, PageTable::Mmu, config)
    }

    fn with_table(instance: &Arc<Instance>, gpu: &Gpu, kind: PageTable, config: &VulkanConfig) -> Result<Self, VulkanError> {
        let grain = config.grain()?;
        if let Some(budget) = config.memory.filter(|m| *m < 2 * grain) {
            return Err(VulkanError::BudgetTooSmall { device: gpu.name.clone(), budget, least: 2 * grain });
        }
        if let Some(budget) = config.memory.filter(|m| *m > gpu.memory) {
            return Err(VulkanError::BudgetTooLarge { device: gpu.name.clone(), budget, most: gpu.memory });
        }
        if kind == PageTable::Mmu {
            sys::accept_faults(); // the driver's threads block what this one does, and take the faults of kernels
        }
        let raw = Raw::new(Arc::clone(instance), gpu.clone())?;
        let pool = Pool::new(&raw)?;
        let [copied, bound] = [Arc::new(Semaphore::new(&raw)?), Arc::new(Semaphore::new(&raw)?)];
        let compute = Compute::new(&raw, &pool, &config.pipeline_cache)?;
        let signals = Arc::new(Signals::new(&raw, compute, [copied, Arc::clone(&bound)]));
        let software = gpu.kind == DeviceKind::Software;
        let budget = config.memory.unwrap_or(if software { gpu.memory / 4 } else { gpu.memory / 10 * 9 });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let owner = || Arc::clone(&signals) as Arc<dyn Owner>;
        let by_host = || {
            let name = format!("sterna-vk{}", gpu.index);
            Mover::Host(Copier::new(owner(), COPY, processors.min(COPY_THREADS), name))
        };
        let regions = Arc::new(Regions::default());
        let mut staged_because = None;
        let (table, mover) = match kind {
            PageTable::Mmu => {
                if !software {
                    let text = "the device does not run on the host's processors, so nobody could serve its faults";
                    return Err(VulkanError::Device(sys::invalid("probe", text)));
                }
                if let Some(copies) = config.copies.filter(|c| *c != Copies::Mapped) {
                    let text = format!("page table mmu has no use for copies that are {copies}: its memory is the host's");
                    return Err(VulkanError::Settings(text));
                }
                let mmu = Mmu::new(WINDOW, budget, grain, min_frames(processors), true)?;
                (Table::Mmu(Box::new(HostAddresses::new(&raw, mmu))), by_host())
            }
            PageTable::Sparse | PageTable::Fixed => {
                let copies = config.copies.or(gpu.can.mapped.then_some(Copies::Mapped));
                let imports = match copies {
                    Some(Copies::Mapped | Copies::Staged) => None,
                    _ => match trial::probe(&raw, &pool).and_then(|way| Imports::new(&raw, &regions, way, Most::of(&raw))) {
                        Ok(imports) => Some(imports),
                        Err(e) if raw.is_lost() => return Err(VulkanError::Device(e)),
                        Err(e) if copies.is_none() => {
                            staged_because = Some(e.to_string());
                            None
                        }
                        Err(e) => {
                            let text = format!(
                                "copies by import do not work on {}: {e}; choose no way (STERNA_VULKAN_COPIES, `VulkanConfig::copies`)",
                                gpu.name
                            );
                            return Err(VulkanError::Settings(text));
                        }
                    },
                };
                let (location, mover) = if copies == Some(Copies::Mapped) {
                    (MemoryLocation::GpuToCpu, by_host())
                } else {
                    (MemoryLocation::GpuOnly, Mover::Device(Stager::new(&raw, &pool, imports, owner())))
                };
                let table = if kind == PageTable::Sparse {
                    let budget = if software { budget.min(MOST_BOUND * grain) } else { budget };
                    Table::Sparse(Box::new(Sparse::new(&raw, &pool, bound, location, budget, config.grain)?))
                } else {
                    Table::Fixed(Fixed::new(Arc::clone(&pool), location, grain, budget, gpu.can.max_allocation))
                };
                (table, mover)
            }
        };
        let faults = matches!(table, Table::Mmu(_));
        let sparse = if let Table::Sparse(t) = &table { Some(t) } else { None };
        let caps = Caps {
            absent: if faults { Absent::Faults } else { Absent::Undefined },
            grain: sparse.map_or(grain, |t| t.grain()),
            queued_edits: sparse.is_some(),
            map_host: faults,
            // Page table *mmu* is for drivers that run kernels on the host's processors.
            unified: faults,
            coherent: false,
            placed: kind == PageTable::Fixed,
            read_only: faults,
            max_reservation: match &table {
                Table::Mmu(t) => t.mmu.window_bytes(),
                Table::Sparse(t) => t.max_reservation(),
                Table::Fixed(t) => t.max_reservation(),
            },
            // The driver's worker threads and the one that feeds them.
            min_frames: if faults { min_frames(processors + 1) } else { 0 },
            form: Form::Spirv,
            queues: vec![Role::Compute, Role::Copy, Role::Table],
        };
        let info = DeviceInfo {
            id: format!("vulkan:{}", gpu.index),
            name: format!("{}, {}", gpu.name, gpu.driver),
            kind: gpu.kind,
        };
        let (mover, table, origin) = (ManuallyDrop::new(mover), ManuallyDrop::new(table), Origin::here());
        let this = Self { info, caps, kind, mover, table, regions, staged_because, signals, raw, origin };
        probe::run(&this)?;
        Ok(this)
    }

    /// Its page table.
    #[must_use]
    pub fn page_table(&self) -> PageTable {
        self.kind
    }

    /// How its copies are made.
    #[must_use]
    pub fn copies(&self) -> Copies {
        match &*self.mover {
            Mover::Host(_) => Copies::Mapped,
            Mover::Device(stager) if stager.imports.is_some() => Copies::Imported,
            Mover::Device(_) => Copies::Staged,
        }
    }

    /// Why copies, or some of them, go through staging buffers although nobody asked for that: host memory could not be imported.
    #[must_use]
    pub fn staged_because(&self) -> Option<String> {
        self.staged_because.clone().or_else(|| self.imports()?.refused())
    }

    /// Bytes of host memory that are imported for copies now.
    #[must_use]
    pub fn imported(&self) -> u64 {
        self.imports().map_or(0, |i| i.bytes())
    }

    fn imports(&self) -> Option<&Arc<Imports>> {
        if self.origin.is_left() {
            return None;
        }
        if let Mover::Device(stager) = &*self.mover { stager.imports.as_ref() } else { None }
    }

    /// What the driver says of it.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.raw.gpu
    }

    /// Loses the device, as if the driver had said so: every later call says so, and waiters return. For tests.
    ///
    /// Kernels that still run, or stopped at an absent page, go on in memory that is nobody's: the host's they reach no more.
    pub fn lose(&self) {
        if self.origin.is_left() {
            return;
        }
        // First, so that no launch that goes on in other memory ends well.
        self.raw.lose();
        self.quiet();
        let issued = match &*self.mover {
            Mover::Host(copier) => copier.issued(),
            Mover::Device(stager) => stager.issued(),
        };
        self.signals.let_go(issued);
    }

    fn present(&self) -> Result<(), DeviceError> {
        self.origin.check()?;
        self.raw.present()
    }

    pub(crate) fn compute(&self) -> &Compute {
        &self.signals.compute
    }

    /// Sees to it that no kernel of the lost device touches the host's memory any more, for good. Before anybody who waits for a launch
    /// is told of the loss: who is told lets the host have what the launch used.
    fn quiet(&self) {
        // Page tables `sparse` and `fixed` name memory of the device alone.
        if let Table::Mmu(t) = &*self.table
            && t.mmu.ruin().is_err()
        {
            // No memory to put in its place: what runs has to end.
            self.raw.wait_idle();
        }
    }

    fn host_pieces(&self, runs: &[CopyRun]) -> Result<Pieces, DeviceError> {
        match &*self.table {
            Table::Mmu(t) => t.mmu.pieces(runs),
            Table::Sparse(t) => self
                .regions
                .look()
                .pieces(&t.chunks.cut(runs), |first, offset, bytes| t.chunks.pointer(first, offset, bytes)),
            Table::Fixed(t) => self.regions.look().pieces(runs, |first, offset, bytes| t.pointer(first, offset, bytes)),
        }
    }
}

// SAFETY: the mapping of device memory and the window are the device's own and live as long as it does; frames and addresses are taken
// from tables that have each once; points are the driver's timelines, and a loss is told to who waits when nothing goes on (`quiet`).
unsafe impl Device for VulkanDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory(&self) -> Memory {
        if self.origin.is_left() {
            return Memory { budget: 0, in_use: 0 };
        }
        match &*self.table {
            Table::Mmu(t) => t.mmu.memory(),
            Table::Sparse(t) => t.chunks.memory(),
            Table::Fixed(t) => t.memory(),
        }
    }

    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        self.present()?;
        let regions = match &*self.table {
            Table::Mmu(t) => t.mmu.regions(),
            Table::Sparse(_) | Table::Fixed(_) => &self.regions,
        };
        // SAFETY: the caller's.
        unsafe { regions.attach(base, bytes, memfd) }
    }

    unsafe fn host_freed(&self, at: HostAt, bytes: u64) {
        if let Some(imports) = self.imports() {
            imports.forget(at, bytes);
        }
    }

    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        self.present()?;
        match &*self.table {
            Table::Mmu(t) => t.reserve(bytes),
            Table::Sparse(t) => t.reserve(bytes),
            Table::Fixed(t) => t.reserve(bytes),
        }
    }

    unsafe fn unreserve(&self, range: DevRange) {
        if self.origin.is_left() {
            return;
        }
        if self.raw.is_lost() && !matches!(*self.table, Table::Mmu(_)) {
            // Whoever waited was told of the loss, which may be sooner than the last kernel's end. Addresses of page table mmu stay.
            self.raw.wait_idle();
        }
        match &*self.table {
            // SAFETY: the caller's.
            Table::Mmu(t) => unsafe { t.unreserve(range) },
            Table::Sparse(t) => t.unreserve(range),
            Table::Fixed(t) => t.unreserve(range),
        }
    }

    fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        self.present()?;
        match &*self.table {
            Table::Mmu(t) => t.mmu.alloc(grains, out),
            Table::Sparse(t) => t.alloc(grains, out),
            Table::Fixed(t) => t.alloc(place, grains, out),
        }
    }

    unsafe fn free(&self, frames: &[Frames]) {
        if self.origin.is_left() {
            return;
        }
        match &*self.table {
            // SAFETY: the caller's.
            Table::Mmu(t) => unsafe { t.mmu.free(frames) },
            Table::Sparse(t) => t.chunks.free(frames),
            // They stay with their place.
            Table::Fixed(_) => {}
        }
    }

    fn frames_base(&self) -> Option<NonNull<u8>> {
        match &*self.table {
            Table::Mmu(t) => Some(t.mmu.frames_base()),
            Table::Sparse(_) | Table::Fixed(_) => None,
        }
    }

    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError> {
        self.present()?;
        self.signals.check("edit", after)?;
        if let Table::Sparse(t) = &*self.table {
            return t.edit(edits, &self.signals.waits(after));
        }
        if !after.iter().all(|p| self.signals.reached(*p)) {
            return Err(sys::invalid("edit", "edits happen at once: every point in `after` must be reached"));
        }
        match &*self.table {
            // SAFETY: the caller's.
            Table::Mmu(t) => unsafe { t.mmu.edit(edits, |resolve| resolve(), || {})? },
            Table::Sparse(_) => unreachable!("edited above"),
            Table::Fixed(t) => edits.iter().try_for_each(|e| t.check(e))?,
        }
        // Lost meanwhile: the window did not take the edits.
        self.present()?;
        Ok(Point::REACHED)
    }

    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError> {
        self.present()?;
        self.signals.check("copy", after)?;
        let copier = match &*self.mover {
            Mover::Host(copier) => copier,
            Mover::Device(stager) => {
                let cut = if let Table::Sparse(t) = &*self.table { Some(t.chunks.cut(runs)) } else { None };
                return stager.copy(&self.table, &self.regions, cut.as_deref().unwrap_or(runs), after);
            }
        };
        let pieces = self.host_pieces(runs)?;
        let total: u64 = pieces.iter().map(|p| p.bytes as u64).sum();
        let ready = after.iter().all(|p| self.signals.reached(*p));
        if total <= INLINE && ready {
            for p in &pieces {
                // SAFETY: places are inside memory and regions; the rest is the caller's.
                unsafe { p.copy(0, p.bytes) };
            }
            return Ok(Point::REACHED);
        }
        // SAFETY: as above.
        unsafe { copier.queue(pieces, after, ready) }
    }

    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        self.present()?;
        self.signals.compute.load(code)
    }

    unsafe fn unload(&self, kernel: KernelId) {
        if !self.origin.is_left() {
            self.signals.compute.unload(kernel);
        }
    }

    fn fits(&self, kernel: KernelId, grid: [u32; 3]) -> Result<(), DeviceError> {
        self.origin.check()?;
        self.signals.compute.fits(kernel, grid)
    }

    unsafe fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError> {
        self.present()?;
        self.signals.check("submit", after)?;
        for at in launch.args.iter().filter_map(|a| a.touched(launch.groups)) {
            match &*self.table {
                Table::Mmu(t) => drop(t.mmu.pointer("submit", at)?),
                Table::Sparse(t) => drop(t.of("submit", at)?),
                Table::Fixed(t) => t.covers("submit", at)?,
            }
        }
        if let Mover::Device(_) = *self.mover
            && Arc::ptr_eq(&self.raw.compute.1, &self.raw.transfer.1)
        {
            // Staged copies are submitted as they go on. On a queue where a launch waits for them they would never come to that.
            let copies = after.iter().filter(|p| p.queue == COPY);
            copies.into_iter().try_for_each(|p| self.signals.wait(*p, Duration::MAX).map(drop))?;
        }
        self.signals.compute.submit(launch, &self.signals.waits(after), &|range| self.table.buffer_of(range))
    }

    unsafe fn outcome(&self, done: Ticket, _missed: &mut FaultBatch) -> Outcome {
        if let Err(e) = self.origin.check() {
            return Outcome::Failed(sterna_hal::KernelError::Lost(e.to_string()));
        }
        if self.raw.is_lost() {
            return Outcome::Failed(sterna_hal::KernelError::Lost(self.raw.loss().to_string()));
        }
        self.signals.compute.outcome(done)
    }

    fn reached(&self, point: Point) -> bool {
        // In a forked child nothing is under way.
        self.origin.is_left() || self.signals.reached(point)
    }

    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        self.origin.check()?;
        self.signals.check("wait", &[point])?;
        let waited = self.signals.wait(point, timeout);
        if waited.is_err() {
            if self.raw.is_lost() {
                self.quiet();
            }
            match &*self.mover {
                Mover::Host(copier) => copier.wait_idle(),
                Mover::Device(stager) => stager.wait_idle(),
            }
        }
        waited
    }

    fn window(&self) -> Option<Range<usize>> {
        match &*self.table {
            Table::Mmu(t) => Some(t.mmu.addresses()),
            Table::Sparse(_) | Table::Fixed(_) => None,
        }
    }
}

impl Drop for VulkanDevice {
    fn drop(&mut self) {
        if self.origin.is_left() {
            // Threads, and the driver's state, are the parent's.
            std::mem::forget((Arc::clone(&self.regions), Arc::clone(&self.signals), Arc::clone(&self.raw)));
            return;
        }
        match &*self.mover {
            Mover::Host(copier) => copier.close(),
            Mover::Device(stager) => stager.close(),
        }
        // SAFETY: no other thread has the device now. What fails here is a lost device, which does nothing any more.
        let _ = unsafe { self.raw.device.device_wait_idle() };
        // SAFETY: each is dropped once, here, and before what it uses.
        unsafe {
            ManuallyDrop::drop(&mut self.mover);
            ManuallyDrop::drop(&mut self.table);
        }
    }
}
