//! A staging buffer with the command buffer that uses it.
//!
//! **States:** free, recorded into by the copies' thread, in flight until its value is reached. Only that thread touches it.

use std::ptr::NonNull;
use std::sync::Arc;

use ash::vk;
use gpu_allocator::MemoryLocation;
use sterna_hal::{DeviceError, HostAt};
use sterna_host::sys::{invalid, to_usize};

use crate::import::Import;
use crate::pool::{Buffer, Pool};
use crate::raw::Raw;

/// One end of a copy, resolved.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Device(Arc<Buffer>, u64),
    Host(NonNull<u8>, HostAt),
    Zero,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) bytes: u64,
}

// SAFETY: host addresses in it are left alone by others until the batch's point is reached.
unsafe impl Send for Run {}

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) buffer: Buffer,
    pool: vk::CommandPool,
    pub(crate) cmd: vk::CommandBuffer,
    /// Reached when the device has done with it; 0 while it is not in flight.
    pub(crate) value: u64,
    /// The batch that has arrived with it; 0 if one goes on behind it.
    pub(crate) ends: u64,
    pub(crate) used: u64,
    /// Bytes that go on to the host: offset in the stage, destination, length.
    pub(crate) outs: Vec<(u64, NonNull<u8>, u64)>,
    /// Copies between two buffers, to be recorded as one.
    regions: (vk::Buffer, vk::Buffer, Vec<vk::BufferCopy>),
    /// What its copies use.
    held: Vec<Arc<Import>>,
    pub(crate) recorded: bool,
    raw: Arc<Raw>,
}

// SAFETY: the addresses in it are a batch's, used by the thread alone.
unsafe impl Send for Stage {}

impl Stage {
    pub(crate) fn new(raw: &Arc<Raw>, pool: &Arc<Pool>, bytes: u64) -> Result<Self, DeviceError> {
        // Cached memory of the host: it is read as well as written.
        let buffer = pool.buffer(bytes, MemoryLocation::GpuToCpu, "staging")?;
        if buffer.mapped.is_none() {
            return Err(invalid("copy", "the device has no memory that the host can reach"));
        }
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(raw.transfer.0);
        // SAFETY: the structures are alive; what is made is kept.
        let (pool, cmd) = unsafe {
            let pool = raw.device.create_command_pool(&info, None).map_err(raw.failed("vkCreateCommandPool"))?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            let cmd = raw.device.allocate_command_buffers(&info).map_err(|code| {
                raw.device.destroy_command_pool(pool, None);
                raw.failed("vkAllocateCommandBuffers")(code)
            })?[0];
            (pool, cmd)
        };
        Ok(Self {
            buffer,
            pool,
            cmd,
            value: 0,
            ends: 0,
            used: 0,
            outs: Vec::new(),
            regions: Default::default(),
            held: Vec::new(),
            recorded: false,
            raw: Arc::clone(raw),
        })
    }

    /// Makes it ready for recording. It is not in flight.
    pub(crate) fn begin(&mut self) -> Result<(), DeviceError> {
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // What earlier submissions wrote, and what launches did, is visible here.
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
            .dst_access_mask(vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::TRANSFER_WRITE)];
        // SAFETY: the stage is not in flight.
        unsafe {
            let device = &self.raw.device;
            device
                .reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty())
                .and_then(|()| device.begin_command_buffer(self.cmd, &once))
                .map_err(self.raw.failed("vkBeginCommandBuffer"))?;
            device.cmd_pipeline_barrier(
                self.cmd,
                vk::PipelineStageFlags::ALL_COMMANDS,
                vk::PipelineStageFlags::TRANSFER,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
        }
        self.recorded = true;
        Ok(())
    }

    /// Copies `bytes` from a place in one buffer to a place in another.
    pub(crate) fn copy(&mut self, from: (vk::Buffer, u64), to: (vk::Buffer, u64), bytes: u64) {
        if (self.regions.0, self.regions.1) != (from.0, to.0) {
            self.flush();
            (self.regions.0, self.regions.1) = (from.0, to.0);
        }
        self.regions.2.push(vk::BufferCopy { src_offset: from.1, dst_offset: to.1, size: bytes });
    }

    /// Copies `bytes` of a run, from `done` on, between the device and so many bytes into an import.
    pub(crate) fn import(&mut self, run: &Run, done: u64, (import, into): (Arc<Import>, u64), bytes: u64) {
        let end = |end: &End| match end {
            End::Device(buffer, offset) => (buffer.raw, offset + done),
            _ => (import.buffer, into),
        };
        self.copy(end(&run.from), end(&run.to), bytes);
        if self.held.last().is_none_or(|last| !Arc::ptr_eq(last, &import)) {
            self.held.push(import);
        }
    }

    fn flush(&mut self) {
        let (from, to, regions) = &mut self.regions;
        if !regions.is_empty() {
            // SAFETY: recording; all places are inside their buffers, which stay until the stage has been waited for.
            unsafe { self.raw.device.cmd_copy_buffer(self.cmd, *from, *to, regions) };
            regions.clear();
        }
    }

    /// Hands over what is recorded; the semaphore gets `value` when the device has done it.
    pub(crate) fn submit(&mut self, semaphore: vk::Semaphore, value: u64) -> Result<(), DeviceError> {
        self.flush();
        let (values, signals, commands) = ([value], [semaphore], [self.cmd]);
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
                self.cmd,
                vk::PipelineStageFlags::TRANSFER,
                vk::PipelineStageFlags::ALL_COMMANDS | vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
            device.end_command_buffer(self.cmd).map_err(self.raw.failed("vkEndCommandBuffer"))?;
            let queue = self.raw.transfer.1.lock();
            device.queue_submit(*queue, &info, vk::Fence::null()).map_err(self.raw.failed("vkQueueSubmit"))?;
        }
        (self.value, self.recorded) = (value, false);
        Ok(())
    }

    /// Takes out what goes on to the host, and is free. The device has done with it.
    pub(crate) fn empty(&mut self) {
        let mapped = self.buffer.mapped.expect("stages are mapped");
        for (at, to, bytes) in self.outs.drain(..) {
            // SAFETY: inside the stage, whose copies have ended; the destination is the batch's.
            unsafe { to.copy_from_nonoverlapping(mapped.add(to_usize(at)), to_usize(bytes)) };
        }
        (self.value, self.used) = (0, 0);
        self.held.clear();
    }

    /// Is not in flight any more, and never used again. What its copies use stays: nobody knows what the device still does.
    pub(crate) fn give_up(&mut self) {
        (self.value, self.ends) = (0, 0);
        self.outs.clear();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: waited for; a lost device does nothing any more.
        unsafe { self.raw.device.destroy_command_pool(self.pool, None) };
    }
}
