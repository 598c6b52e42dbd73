//! Copies by the device, for memory that the host's processors do not reach: straight from and to host storage where that is
//! imported, else through staging buffers.
//!
//! **Guarantee:** that of [`Device::copy`](sterna_hal::Device::copy): a batch starts when its points are reached, and its own is
//! reached when all its bytes have arrived. Imports are kept until the copies that use them have ended.
//!
//! **How:** one thread takes the batches in order. What is imported it records as it is; the rest of the runs it cuts into pieces
//! that fit a stage, and packs as many as fit into one submission. It goes on to the next stage while the device works on the one
//! before. Bytes for the host are taken out of a stage before it is used again, and at the end of the batch.
//!
//! **States of a stage:** free, filled by the thread, in flight until its value is reached. Only the thread touches them.
//! **Lock:** `queue`, for list operations; the driver's queue over one submission.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::JoinHandle;

use ash::vk;
use gpu_allocator::MemoryLocation;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;
use sterna_hal::{CopyRun, DeviceError, HostAt, Place, Point};
use sterna_host::copy::Owner;
use sterna_host::regions::Regions;
use sterna_host::storage::Storage;
use sterna_host::sys::{BLOCK, invalid, to_usize};

use crate::import::Import;
use crate::imports::{Imports, Most, Reach, Way};
use crate::launch::COPY;
use crate::pool::{Buffer, Pool};
use crate::raw::Raw;
use crate::signals::Semaphore;
use crate::table::Table;
use crate::udmabuf::Udmabuf;

/// Bytes of a stage, and how many there are: enough that the host copies while the device does.
const STAGE: u64 = 4 << 20;
const STAGES: usize = 4;

/// One end of a copy, resolved.
#[derive(Clone, Debug)]
enum End {
    Device(Arc<Buffer>, u64),
    Host(NonNull<u8>, HostAt),
    Zero,
}

#[derive(Debug)]
struct Run {
    from: End,
    to: End,
    bytes: u64,
}

// SAFETY: host addresses in it are left alone by others until the batch's point is reached.
unsafe impl Send for Run {}

#[derive(Debug)]
struct Batch {
    runs: Vec<Run>,
    after: SmallVec<[Point; 4]>,
    value: u64,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    issued: u64,
    closing: bool,
    thread: Option<JoinHandle<()>>,
}

/// The copy queue of a device with staging.
#[derive(Debug)]
pub(crate) struct Stager {
    queue: Mutex<Queue>,
    work: Condvar,
    raw: Arc<Raw>,
    pool: Arc<Pool>,
    pub(crate) imports: Option<Arc<Imports>>,
    owner: Arc<dyn Owner>,
}

impl Stager {
    /// With `imports` host storage is reached where it is, as far as it can be imported.
    pub(crate) fn new(raw: &Arc<Raw>, pool: &Arc<Pool>, imports: Option<Arc<Imports>>, owner: Arc<dyn Owner>) -> Arc<Self> {
        let (raw, pool) = (Arc::clone(raw), Arc::clone(pool));
        Arc::new(Self { queue: Mutex::default(), work: Condvar::new(), raw, pool, imports, owner })
    }

    pub(crate) fn copy(
        self: &Arc<Self>,
        table: &Table,
        regions: &Regions,
        runs: &[CopyRun],
        after: &[Point],
    ) -> Result<Point, DeviceError> {
        let look = regions.look();
        let end = |place: Place, bytes: u64| match place {
            Place::Frames { first, offset } => table.locate(first, offset, bytes).map(|(b, at)| End::Device(b, at)),
            Place::Host(at) => look.host("copy", at, bytes).map(|p| End::Host(p, at)),
            Place::Zero => Ok(End::Zero),
        };
        let run = |r: &CopyRun| {
            let (from, to) = (end(r.from, r.bytes)?, end(r.to, r.bytes)?);
            if matches!(to, End::Zero) {
                return Err(invalid("copy", "zeros are a source only"));
            }
            Ok(Run { from, to, bytes: r.bytes })
        };
        let runs = runs.iter().filter(|r| r.bytes > 0).map(run).collect::<Result<Vec<_>, _>>()?;
        if runs.is_empty() {
            return Ok(Point::REACHED);
        }
        let mut queue = self.queue.lock();
        if queue.thread.is_none() {
            let stages = Stages::new(&self.raw, &self.pool, self.imports.clone())?;
            let this = Arc::clone(self);
            let named = std::thread::Builder::new().name("sterna-vk-copy".into());
            let started = named.spawn(move || this.run(stages));
            queue.thread = Some(started.map_err(|e| DeviceError::os("pthread_create", &e))?);
        }
        queue.issued += 1;
        let value = queue.issued;
        queue.batches.push_back(Batch { runs, after: SmallVec::from_slice(after), value });
        drop(queue);
        self.work.notify_one();
        Ok(Point { queue: COPY, value })
    }

    /// The value of the last copy that was asked for.
    pub(crate) fn issued(&self) -> u64 {
        self.queue.lock().issued
    }

    fn run(&self, mut stages: Stages) {
        loop {
            let batch = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(batch) = queue.batches.pop_front() {
                        break batch;
                    }
                    if queue.closing {
                        return;
                    }
                    self.work.wait(&mut queue);
                }
            };
            self.owner.wait_all(&batch.after);
            // The bytes of a batch that failed did not arrive, so neither its point nor a later one is ever reached: the device
            // counts as lost, and waits end by that.
            if self.owner.is_lost() || stages.carry(&batch.runs).is_err() {
                self.raw.lose();
                continue;
            }
            self.owner.copied(batch.value);
        }
    }

    /// Finishes what is queued and ends the thread.
    pub(crate) fn close(&self) {
        let thread = {
            let mut queue = self.queue.lock();
            queue.closing = true;
            queue.thread.take()
        };
        self.work.notify_one();
        if let Some(thread) = thread {
            // It runs no code that panics; there is nobody to tell if it did.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Stage {
    buffer: Buffer,
    pool: vk::CommandPool,
    cmd: vk::CommandBuffer,
    /// Reached when the device has done with it; 0 while it is free.
    value: u64,
    used: u64,
    /// Bytes that go on to the host: offset in the stage, destination, length.
    outs: Vec<(u64, NonNull<u8>, u64)>,
    /// Copies between two buffers, to be recorded as one.
    regions: (vk::Buffer, vk::Buffer, Vec<vk::BufferCopy>),
    /// What its copies use.
    held: Vec<Arc<Import>>,
    recorded: bool,
}

impl Stage {
    /// Copies `bytes` from a place in one buffer to a place in another.
    fn copy(&mut self, raw: &Raw, from: (vk::Buffer, u64), to: (vk::Buffer, u64), bytes: u64) {
        if (self.regions.0, self.regions.1) != (from.0, to.0) {
            self.flush(raw);
            (self.regions.0, self.regions.1) = (from.0, to.0);
        }
        self.regions.2.push(vk::BufferCopy { src_offset: from.1, dst_offset: to.1, size: bytes });
    }

    /// Copies `bytes` of a run, from `done` on, between the device and so many bytes into an import.
    fn import(&mut self, raw: &Raw, run: &Run, done: u64, (import, into): (Arc<Import>, u64), bytes: u64) {
        let end = |end: &End| match end {
            End::Device(buffer, offset) => (buffer.raw, offset + done),
            _ => (import.buffer, into),
        };
        self.copy(raw, end(&run.from), end(&run.to), bytes);
        if self.held.last().is_none_or(|last| !Arc::ptr_eq(last, &import)) {
            self.held.push(import);
        }
    }

    fn flush(&mut self, raw: &Raw) {
        let (from, to, regions) = &mut self.regions;
        if !regions.is_empty() {
            // SAFETY: recording; all places are inside their buffers, which stay until the stage has been waited for.
            unsafe { raw.device.cmd_copy_buffer(self.cmd, *from, *to, regions) };
            regions.clear();
        }
    }
}

// SAFETY: the addresses in it are a batch's, used by the thread alone.
unsafe impl Send for Stage {}

#[derive(Debug)]
struct Stages {
    list: Vec<Stage>,
    next: usize,
    semaphore: Semaphore,
    issued: u64,
    imports: Option<Arc<Imports>>,
    raw: Arc<Raw>,
}

impl Stages {
    fn new(raw: &Arc<Raw>, pool: &Arc<Pool>, imports: Option<Arc<Imports>>) -> Result<Self, DeviceError> {
        let semaphore = Semaphore::new(raw).map_err(DeviceError::from)?;
        let mut this = Self { list: Vec::new(), next: 0, semaphore, issued: 0, imports, raw: Arc::clone(raw) };
        for _ in 0..STAGES {
            // Cached memory of the host: it is read as well as written.
            let buffer = pool.buffer(STAGE, MemoryLocation::GpuToCpu, "staging")?;
            if buffer.mapped.is_none() {
                return Err(invalid("copy", "the device has no memory that the host can reach"));
            }
            let info = vk::CommandPoolCreateInfo::default().queue_family_index(raw.transfer.0);
            // SAFETY: the structures are alive; what is made is kept.
            unsafe {
                let pool = raw.device.create_command_pool(&info, None).map_err(raw.failed("vkCreateCommandPool"))?;
                let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
                let cmd = raw.device.allocate_command_buffers(&info).map_err(|code| {
                    raw.device.destroy_command_pool(pool, None);
                    raw.failed("vkAllocateCommandBuffers")(code)
                })?[0];
                this.list.push(Stage {
                    buffer,
                    pool,
                    cmd,
                    value: 0,
                    used: 0,
                    outs: Vec::new(),
                    regions: Default::default(),
                    held: Vec::new(),
                    recorded: false,
                });
            }
        }
        Ok(this)
    }

    /// Copies runs to their end.
    fn carry(&mut self, runs: &[Run]) -> Result<(), DeviceError> {
        for run in runs {
            let mut done = 0;
            while done < run.bytes {
                done += self.piece(run, done)?;
            }
        }
        self.submit()?;
        for i in 0..self.list.len() {
            self.settle(i)?;
        }
        Ok(())
    }

    /// Starts the copy of the run's bytes from `done` on, as many as go into the stage; says how many.
    fn piece(&mut self, run: &Run, done: u64) -> Result<u64, DeviceError> {
        let mut left = run.bytes - done;
        // SAFETY: inside the run's places, which the batch has to itself; here and below.
        let host = |p: &NonNull<u8>| unsafe { p.add(to_usize(done)) };
        match (&run.from, &run.to) {
            (End::Host(from, _), End::Host(to, _)) => {
                // SAFETY: as above; they do not overlap, by the contract of `copy`.
                unsafe { host(to).copy_from_nonoverlapping(host(from), to_usize(left)) };
                return Ok(left);
            }
            (End::Zero, End::Host(to, _)) => {
                // SAFETY: as above.
                unsafe { host(to).write_bytes(0, to_usize(left)) };
                return Ok(left);
            }
            (End::Device(a, x), End::Device(b, y)) => {
                self.begin()?;
                self.list[self.next].copy(&self.raw, (a.raw, x + done), (b.raw, y + done), left);
                return Ok(left);
            }
            (End::Zero, End::Device(b, y)) if (y + done).is_multiple_of(4) && left >= 4 => {
                self.begin()?;
                let bytes = left & !3;
                let (cmd, to) = (self.list[self.next].cmd, b.raw);
                // SAFETY: as above; offset and length are multiples of 4.
                unsafe { self.raw.device.cmd_fill_buffer(cmd, to, y + done, bytes, 0) };
                return Ok(bytes);
            }
            (End::Host(_, at), End::Device(..)) | (End::Device(..), End::Host(_, at)) => {
                let at = HostAt { offset: at.offset + done, ..*at };
                match self.imports.as_ref().map(|i| i.reach(at, left)) {
                    Some(Reach::Imported(import, into, bytes)) => {
                        self.begin()?;
                        self.list[self.next].import(&self.raw, run, done, (import, into), bytes);
                        return Ok(bytes);
                    }
                    Some(Reach::Staged(bytes)) => left = bytes,
                    None => {}
                }
            }
            _ => {}
        }
        self.begin()?;
        if self.list[self.next].used == STAGE {
            self.submit()?;
            self.begin()?;
        }
        let stage = &mut self.list[self.next];
        let zero_edge = |y: u64| 4 - (y + done) % 4;
        let bytes = match (&run.from, &run.to) {
            // The bytes before or behind whole words.
            (End::Zero, End::Device(_, y)) => left.min(zero_edge(*y)),
            _ => left.min(STAGE - stage.used),
        };
        let bytes = bytes.min(STAGE - stage.used);
        let at = stage.used;
        let mapped = stage.buffer.mapped.expect("stages are mapped");
        // SAFETY: inside the stage.
        let staged = unsafe { mapped.add(to_usize(at)) };
        let own = stage.buffer.raw;
        match (&run.from, &run.to) {
            (End::Host(from, _), End::Device(b, y)) => {
                // SAFETY: the stage is this thread's; the source is the batch's.
                unsafe { staged.copy_from_nonoverlapping(host(from), to_usize(bytes)) };
                stage.copy(&self.raw, (own, at), (b.raw, y + done), bytes);
            }
            (End::Zero, End::Device(b, y)) => {
                // SAFETY: as above.
                unsafe { staged.write_bytes(0, to_usize(bytes)) };
                stage.copy(&self.raw, (own, at), (b.raw, y + done), bytes);
            }
            (End::Device(a, x), End::Host(to, _)) => {
                stage.copy(&self.raw, (a.raw, x + done), (own, at), bytes);
                stage.outs.push((at, host(to), bytes));
            }
            _ => unreachable!("the other pairs are above"),
        }
        stage.used += bytes;
        Ok(bytes)
    }

    /// Makes the next stage ready for recording, if it is not.
    fn begin(&mut self) -> Result<(), DeviceError> {
        if self.list[self.next].recorded {
            return Ok(());
        }
        self.settle(self.next)?;
        let stage = &mut self.list[self.next];
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // What earlier submissions wrote, and what launches did, is visible here.
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
            .dst_access_mask(vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::TRANSFER_WRITE)];
        // SAFETY: the stage is not in flight.
        unsafe {
            let device = &self.raw.device;
            device
                .reset_command_pool(stage.pool, vk::CommandPoolResetFlags::empty())
                .and_then(|()| device.begin_command_buffer(stage.cmd, &once))
                .map_err(self.raw.failed("vkBeginCommandBuffer"))?;
            device.cmd_pipeline_barrier(
                stage.cmd,
                vk::PipelineStageFlags::ALL_COMMANDS,
                vk::PipelineStageFlags::TRANSFER,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
        }
        stage.recorded = true;
        Ok(())
    }

    /// Hands over what is recorded and goes on to the next stage.
    fn submit(&mut self) -> Result<(), DeviceError> {
        let stage = &mut self.list[self.next];
        if !stage.recorded {
            return Ok(());
        }
        stage.flush(&self.raw);
        self.issued += 1;
        let (values, signals, commands) = ([self.issued], [self.semaphore.raw], [stage.cmd]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&values);
        let info =
            [vk::SubmitInfo::default().command_buffers(&commands).signal_semaphores(&signals).push_next(&mut timeline)];
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE | vk::AccessFlags::HOST_READ)];
        // SAFETY: recorded by this thread; the queue is locked for the submission.
        unsafe {
            let device = &self.raw.device;
            device.cmd_pipeline_barrier(
                stage.cmd,
                vk::PipelineStageFlags::TRANSFER,
                vk::PipelineStageFlags::ALL_COMMANDS | vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
            device.end_command_buffer(stage.cmd).map_err(self.raw.failed("vkEndCommandBuffer"))?;
            let queue = self.raw.transfer.1.lock();
            device.queue_submit(*queue, &info, vk::Fence::null()).map_err(self.raw.failed("vkQueueSubmit"))?;
        }
        (stage.value, stage.recorded) = (self.issued, false);
        self.next = (self.next + 1) % STAGES;
        Ok(())
    }

    /// Waits until the device has done with a stage, and takes out what goes on to the host.
    fn settle(&mut self, i: usize) -> Result<(), DeviceError> {
        let stage = &mut self.list[i];
        if stage.value > 0 {
            let (semaphores, values) = ([self.semaphore.raw], [stage.value]);
            let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
            // SAFETY: a semaphore of this device.
            unsafe { self.raw.device.wait_semaphores(&info, u64::MAX) }.map_err(self.raw.failed("vkWaitSemaphores"))?;
            stage.value = 0;
        }
        let mapped = stage.buffer.mapped.expect("stages are mapped");
        for (at, to, bytes) in stage.outs.drain(..) {
            // SAFETY: inside the stage, whose copies have ended; the destination is the batch's.
            unsafe { to.copy_from_nonoverlapping(mapped.add(to_usize(at)), to_usize(bytes)) };
        }
        stage.used = 0;
        stage.held.clear();
        Ok(())
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        // SAFETY: waited for; a lost device does nothing any more.
        unsafe {
            for stage in &self.list {
                self.raw.device.destroy_command_pool(stage.pool, None);
            }
        }
    }
}

/// Tries by which way the device's copies reach a shared mapping of a memory file: by its addresses, else as DMA buffers.
///
/// # Errors
/// What stands in the way of both.
pub(crate) fn probe(raw: &Arc<Raw>, pool: &Arc<Pool>) -> Result<Way, DeviceError> {
    let Err(by_address) = there_and_back(raw, pool, Way::Address) else { return Ok(Way::Address) };
    if raw.is_lost() {
        return Err(by_address);
    }
    let way = Udmabuf::open().map(Way::DmaBuf).and_then(|way| there_and_back(raw, pool, way.clone()).map(|()| way));
    way.map_err(|e| invalid("import", format!("{by_address}; and as DMA buffers: {e}")))
}

/// Copies half of a block by import to the device and from it to the other half.
fn there_and_back(raw: &Arc<Raw>, pool: &Arc<Pool>, way: Way) -> Result<(), DeviceError> {
    let (storage, half) = (Storage::new(BLOCK)?, BLOCK / 2);
    let regions = Arc::new(Regions::default());
    // SAFETY: mapped from offset 0, and longer than the stages exist, which are the only ones to know of it.
    let region = unsafe { regions.attach(storage.base(), storage.bytes(), storage.file())? };
    let (there, bytes) = (storage.base(), to_usize(half));
    for i in 0..bytes {
        // SAFETY: inside the mapping, which is the probe's own; here and below.
        unsafe {
            there.add(i).write((i * 7 + i / 4096) as u8);
            // What has storage throughout is imported.
            there.add(bytes + i).write(0);
        }
    }
    let imports = Imports::new(raw, &regions, way, Most::of(raw))?;
    let mut stages = Stages::new(raw, pool, Some(Arc::clone(&imports)))?;
    let device = End::Device(Arc::new(pool.buffer(half, MemoryLocation::GpuOnly, "probe")?), 0);
    let host = |offset: u64| {
        // SAFETY: as above.
        End::Host(unsafe { there.add(to_usize(offset)) }, HostAt { region, offset })
    };
    for (from, to) in [(host(0), device.clone()), (device, host(half))] {
        stages.carry(&[Run { from, to, bytes: half }]).inspect_err(|_| {
            // SAFETY: nobody else has the device yet. What fails here is a lost device, which does nothing any more.
            let _ = unsafe { raw.device.device_wait_idle() };
        })?;
    }
    if imports.bytes() != BLOCK {
        return Err(invalid("import", imports.refused().unwrap_or_else(|| "nothing was imported".into())));
    }
    // SAFETY: as above; the copies have ended.
    let equal = unsafe {
        let [a, b] = [0, bytes].map(|at| std::slice::from_raw_parts(there.add(at).as_ptr(), bytes));
        a == b
    };
    if equal { Ok(()) } else { Err(invalid("import", "bytes that went there and back by import are not the same")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_there_and_back_by_either_way() {
        let device = || {
            let instance = crate::instance::Instance::shared().ok()?;
            let gpu = crate::gpu::list(&instance).ok()?.into_iter().next()?;
            Raw::new(instance, gpu).ok()
        };
        let Some(raw) = device() else {
            println!("SKIP imports: no Vulkan device");
            return;
        };
        let pool = Pool::new(&raw).unwrap();
        // The second stands in for `/dev/udmabuf`: software drivers take the file itself.
        for way in [Way::Address, Way::DmaBuf(Udmabuf::Itself)] {
            match there_and_back(&raw, &pool, way.clone()).map_err(|e| e.to_string()) {
                Err(e) if e.contains("does not import such memory") => println!("SKIP {way:?}: {e}"),
                tried => assert_eq!(tried, Ok(()), "{way:?}"),
            }
        }
    }
}
