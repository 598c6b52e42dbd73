//! The compute queue: kernels, and launches in the order of their submission.
//!
//! **Guarantee:** launches run one after another; when a launch's point is reached, all that it wrote is visible to the host and
//! to later launches and copies. Everything that a launch needs is copied before `submit` returns.
//!
//! **Locks:** `state`, held over recording and submission, which no driver blocks in; the queue's own inside it.

use std::sync::Arc;

use ash::vk;
use parking_lot::Mutex;
use smallvec::SmallVec;
use sterna_hal::kernel::spirv::{self, HEAD, PUSH};
use sterna_hal::kernel::{Code, Mapping};
use sterna_hal::{Arg, DeviceError, Groups, KernelError, KernelId, Launch, Outcome, Point, Ticket};
use sterna_host::sys::invalid;

use crate::bind::{self, Bound, BufferOf};
use crate::config::CacheFolder;
use crate::error::VulkanError;
use crate::grid;
use crate::pipeline::{Kernels, Loaded};
use crate::pool::Pool;
use crate::raw::Raw;
use crate::signals::Semaphore;
use crate::slot::{Complaint, MOST_VALUE, Slot, Slots};

/// The number of the compute queue.
pub(crate) const COMPUTE: u32 = 0;
/// The number of the copy queue.
pub(crate) const COPY: u32 = 1;
/// The number of the queue of page-table edits, where they are queued.
pub(crate) const TABLE: u32 = 2;

/// Elements of a buffer: shaders index with signed 32-bit numbers.
const MOST_ELEMENTS: u64 = 1 << 31;

#[derive(Debug, Default)]
struct State {
    issued: u64,
    slots: Slots,
}

#[derive(Debug)]
pub(crate) struct Compute {
    raw: Arc<Raw>,
    pub(crate) pool: Arc<Pool>,
    kernels: Kernels,
    /// Reached by launches.
    pub(crate) done: Semaphore,
    state: Mutex<State>,
}

impl Compute {
    pub(crate) fn new(raw: &Arc<Raw>, pool: &Arc<Pool>, cache: &CacheFolder) -> Result<Self, VulkanError> {
        let kernels = Kernels::new(raw, cache)?;
        Ok(Self {
            raw: Arc::clone(raw),
            pool: Arc::clone(pool),
            kernels,
            done: Semaphore::new(raw)?,
            state: Mutex::default(),
        })
    }

    pub(crate) fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        self.kernels.load(code)
    }

    pub(crate) fn unload(&self, kernel: KernelId) {
        self.kernels.unload(kernel);
    }

    /// Refuses a grid that no launch of the kernel could run.
    pub(crate) fn fits(&self, kernel: KernelId, grid: [u32; 3]) -> Result<(), DeviceError> {
        grid::stretches_of(grid, Groups::All)?;
        match self.kernels.get(kernel) {
            Some(loaded) if loaded.descriptors.is_some() => small_enough(&loaded, grid, self.raw.gpu.can.max_groups),
            _ => Ok(()),
        }
    }

    /// Submits a launch whose ranges were checked, after these values of semaphores. `of` finds buffers for modules that bind them.
    pub(crate) fn submit(
        &self,
        launch: &Launch<'_>,
        after: &[(vk::Semaphore, u64)],
        of: BufferOf<'_>,
    ) -> Result<Ticket, DeviceError> {
        let loaded = self.kernels.get(launch.kernel);
        let loaded =
            &*loaded.ok_or_else(|| invalid("submit", format!("{:?} was not loaded on this device", launch.kernel)))?;
        let parts = grid::stretches_of(launch.grid, launch.groups)?;
        let args = match &loaded.descriptors {
            None => Packed::Address(pack(loaded, launch.args)?),
            Some((d, _)) => {
                within(loaded, launch, d.counts_groups, self.raw.gpu.can.max_groups)?;
                Packed::Descriptor(bind::look_up(&self.raw, loaded, launch.args, of)?)
            }
        };
        let mut state = self.state.lock();
        let mut slot = state.slots.take(&self.raw, &self.pool, &self.done)?;
        let value = state.issued + 1;
        let recorded = match args {
            Packed::Address(args) => self.record_address(&mut slot, loaded, launch.grid, &parts, args),
            Packed::Descriptor(bound) => self.record_descriptors(&mut slot, loaded, launch.grid, &parts, &bound),
        };
        let submitted =
            recorded.and_then(|()| self.queue(&slot, value, after).map_err(|code| self.raw.failed("vkQueueSubmit")(code)));
        if let Err(e) = submitted {
            state.slots.give_back(slot);
            return Err(e);
        }
        state.issued = value;
        state.slots.in_flight(slot, value, launch.kernel);
        Ok(Ticket::new(value, Point { queue: COMPUTE, value }))
    }

    fn record_address(
        &self,
        slot: &mut Slot,
        kernel: &Loaded,
        [x, y, z]: [u32; 3],
        parts: &[(u32, u32)],
        (mut push, spills): (SmallVec<[u8; PUSH]>, bool),
    ) -> Result<(), DeviceError> {
        if spills {
            let (address, ..) = slot.put(&self.pool, &push[HEAD..])?;
            push.truncate(HEAD);
            push.extend_from_slice(&address.to_le_bytes());
        }
        push[8..12].copy_from_slice(&x.to_le_bytes());
        push[12..16].copy_from_slice(&(y | z << 16).to_le_bytes());
        push[16..HEAD].copy_from_slice(&(slot.block.address + slot.offset).to_le_bytes());
        self.record(slot, kernel, |device, cmd| {
            for (first, end) in parts {
                push[..4].copy_from_slice(&first.to_le_bytes());
                push[4..8].copy_from_slice(&end.to_le_bytes());
                let [x, y] = grid::fold(end - first, self.raw.gpu.can.max_groups);
                // SAFETY: the command buffer is being recorded; the layout has so many bytes of push constants.
                unsafe {
                    device.cmd_push_constants(cmd, kernel.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
                    device.cmd_dispatch(cmd, x, y, 1);
                }
            }
            Ok(())
        })
    }

    fn record_descriptors(
        &self,
        slot: &mut Slot,
        kernel: &Loaded,
        grid: [u32; 3],
        parts: &[(u32, u32)],
        bound: &Bound<'_>,
    ) -> Result<(), DeviceError> {
        let both = kernel.descriptors.as_ref().expect("a module with bindings");
        let mut uniform = vk::DescriptorBufferInfo::default();
        if both.0.uniform.is_some() {
            let (_, buffer, offset) = slot.put(&self.pool, bound.value)?;
            uniform = vk::DescriptorBufferInfo { buffer, offset, range: bound.value.len() as u64 };
        }
        if slot.sets == vk::DescriptorPool::null() {
            slot.sets = bind::pool(&self.raw).map_err(self.raw.failed("vkCreateDescriptorPool"))?;
        }
        let mut push: SmallVec<[u8; PUSH]> =
            SmallVec::from_slice(&bound.value[..bound.value.len().min(both.0.push as usize)]);
        push.resize(both.0.push as usize, 0);
        let sets = slot.sets;
        self.record(slot, kernel, |device, cmd| {
            // SAFETY: the slot's pool, which is not in flight; ranges stay reserved until the launch has ended; the command buffer
            // is being recorded.
            unsafe {
                bind::record(&self.raw, cmd, sets, kernel, both, &bound.buffers, uniform)?;
                if !push.is_empty() {
                    device.cmd_push_constants(cmd, kernel.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
                }
                for ([x, y, z], [w, h, d]) in grid::boxes(grid, parts) {
                    device.cmd_dispatch_base(cmd, x, y, z, w, h, d);
                }
            }
            Ok(())
        })
    }

    /// Records `dispatch` with the kernel's pipeline before it and a barrier behind it.
    fn record(
        &self,
        slot: &Slot,
        kernel: &Loaded,
        dispatch: impl FnOnce(&ash::Device, vk::CommandBuffer) -> Result<(), vk::Result>,
    ) -> Result<(), DeviceError> {
        let (device, cmd) = (&self.raw.device, slot.cmd);
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        let recorded = || {
            // SAFETY: the slot's command buffer is not in flight; handles are of this device.
            unsafe {
                device.reset_command_pool(slot.pool, vk::CommandPoolResetFlags::empty())?;
                device.begin_command_buffer(cmd, &once)?;
                device.cmd_bind_pipeline(cmd, vk::PipelineBindPoint::COMPUTE, kernel.pipeline);
            }
            dispatch(device, cmd)?;
            // For everything that comes later on this queue, and for the host.
            let barrier = [vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::SHADER_WRITE)
                .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE | vk::AccessFlags::HOST_READ)];
            let (before, behind) = (
                vk::PipelineStageFlags::COMPUTE_SHADER,
                vk::PipelineStageFlags::ALL_COMMANDS | vk::PipelineStageFlags::HOST,
            );
            // SAFETY: as above.
            unsafe {
                device.cmd_pipeline_barrier(cmd, before, behind, vk::DependencyFlags::empty(), &barrier, &[], &[]);
                device.end_command_buffer(cmd)
            }
        };
        recorded().map_err(self.raw.failed("vkEndCommandBuffer"))
    }

    fn queue(&self, slot: &Slot, value: u64, after: &[(vk::Semaphore, u64)]) -> Result<(), vk::Result> {
        let (waits, values): (SmallVec<[_; 3]>, SmallVec<[_; 3]>) = after.iter().copied().unzip();
        let stages = [vk::PipelineStageFlags::ALL_COMMANDS; 3];
        let (signals, signalled, commands) = ([self.done.raw], [value], [slot.cmd]);
        let mut timeline =
            vk::TimelineSemaphoreSubmitInfo::default().wait_semaphore_values(&values).signal_semaphore_values(&signalled);
        let info = [vk::SubmitInfo::default()
            .wait_semaphores(&waits)
            .wait_dst_stage_mask(&stages[..waits.len()])
            .command_buffers(&commands)
            .signal_semaphores(&signals)
            .push_next(&mut timeline)];
        let queue = self.raw.compute.1.lock();
        // SAFETY: the command buffer was recorded just now; the queue is locked.
        unsafe { self.raw.device.queue_submit(*queue, &info, vk::Fence::null()) }
    }

    pub(crate) fn outcome(&self, done: Ticket) -> Outcome {
        let complaint = {
            let mut state = self.state.lock();
            let complaint = state.slots.complaint(done.id());
            state.slots.trim(&self.raw.device, &self.done);
            complaint
        };
        let Some(Complaint { kernel, words }) = complaint else { return Outcome::Done };
        let kernel = self.kernels.get(kernel).expect("what was launched stays loaded");
        Outcome::Failed(KernelError::Refused(kernel.form.complaint(words)))
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        // SAFETY: the device is idle, as its owner has seen to.
        unsafe { self.state.get_mut().slots.destroy(&self.raw.device) };
    }
}

/// The arguments of a launch in the form that its module takes.
enum Packed<'a> {
    Address((SmallVec<[u8; PUSH]>, bool)),
    Descriptor(Bound<'a>),
}

/// Refuses what a module that looks at its place in the dispatch itself would not do right.
fn within(kernel: &Loaded, launch: &Launch<'_>, counts: bool, most: [u32; 3]) -> Result<(), DeviceError> {
    small_enough(kernel, launch.grid, most)?;
    let bad = |what: String| Err(DeviceError::BadKernel { kernel: kernel.name.into(), what });
    if counts && launch.groups != Groups::All {
        return bad(
            "it reads gl_NumWorkGroups, so that its grid cannot be run in parts; hand the number over as a value".into()
        );
    }
    Ok(())
}

/// Refuses a grid that cannot be dispatched as it is.
fn small_enough(kernel: &Loaded, grid: [u32; 3], most: [u32; 3]) -> Result<(), DeviceError> {
    if grid.iter().zip(most).all(|(n, m)| *n <= m) {
        return Ok(());
    }
    let what = format!("a grid of {grid:?} groups, and the device runs {most:?}; give each group more to do");
    Err(DeviceError::BadKernel { kernel: kernel.name.into(), what })
}

/// Room for the head, and behind it the buffers and the plain value as the module gets them, to a multiple of 4 bytes; and whether
/// what is behind the head goes into the slot's block.
fn pack(kernel: &Loaded, args: &[Arg<'_>]) -> Result<(SmallVec<[u8; PUSH]>, bool), DeviceError> {
    let mut packed: SmallVec<[u8; PUSH]> = SmallVec::from_slice(&[0; HEAD]);
    let mut value: &[u8] = &[];
    let mut buffers = 0;
    for arg in args {
        match *arg {
            Arg::Plain(bytes) => value = bytes,
            Arg::Range { at, elem, mapping, .. } => {
                let len = at.bytes / elem.max(1);
                if len >= MOST_ELEMENTS {
                    let what = format!("a buffer of {len} elements; it indexes up to {}", MOST_ELEMENTS - 1);
                    return Err(DeviceError::BadKernel { kernel: kernel.name.into(), what });
                }
                let chunk = match mapping {
                    Mapping::Each { chunk } | Mapping::Halo { chunk, .. } => chunk.min(MOST_ELEMENTS),
                    Mapping::Whole | Mapping::Scatter => len,
                };
                packed.extend_from_slice(&at.at.0.to_le_bytes());
                packed.extend_from_slice(&(len as u32).to_le_bytes());
                packed.extend_from_slice(&(chunk as u32).to_le_bytes());
                buffers += 1;
            }
        }
    }
    packed.extend_from_slice(value);
    if packed.len() - HEAD > MOST_VALUE {
        let what = format!("a plain value of {} bytes; pass more than {MOST_VALUE} in a buffer", value.len());
        return Err(DeviceError::BadKernel { kernel: kernel.name.into(), what });
    }
    packed.resize(packed.len().next_multiple_of(4), 0);
    Ok((packed, spirv::spills(buffers, value.len())))
}
