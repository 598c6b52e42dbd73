//! The compute queue: kernels, and launches in the order of their submission.
//!
//! **Guarantee:** launches run one after another; when a launch's point is reached, all that it wrote is visible to the host and
//! to later launches and copies. Everything that a launch needs is copied before `submit` returns.
//!
//! **States of a slot** (a command buffer with its block of arguments and status words): free, then in flight until its value is
//! reached, then free again. Slots are kept in the order of their values. What a launch complained of is taken from its slot
//! before the slot is used again, and kept until `outcome` asks.
//!
//! **Locks:** `state`, held over recording and submission, which no driver blocks in; the queue's own inside it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ash::vk;
use gpu_allocator::MemoryLocation;
use parking_lot::Mutex;
use smallvec::SmallVec;
use sterna_hal::kernel::spirv::{self, HEAD, PUSH};
use sterna_hal::kernel::{Code, Mapping};
use sterna_hal::{Arg, DeviceError, Groups, KernelError, KernelId, Launch, Outcome, Point, Ticket};
use sterna_host::sys::invalid;

use crate::bind::{self, Bound, BufferOf};
use crate::config::CacheFolder;
use crate::error::VulkanError;
use crate::pipeline::{Kernels, Loaded};
use crate::pool::{Buffer, Pool};
use crate::raw::Raw;
use crate::signals::Semaphore;

/// The number of the compute queue.
pub(crate) const COMPUTE: u32 = 0;
/// The number of the copy queue.
pub(crate) const COPY: u32 = 1;
/// The number of the queue of page-table edits, where they are queued.
pub(crate) const TABLE: u32 = 2;

/// Bytes of a slot's block: status words, then arguments that do not fit push constants.
const BLOCK: u64 = 4096;
/// Where arguments begin in it: what every device takes as the begin of a uniform buffer.
const SPILL: u64 = 256;
/// Slots whose blocks share a buffer.
const SLOTS: u64 = 16;
/// Arguments that do not fit the block are in a buffer of the slot's own, up to this many bytes.
const MOST_VALUE: usize = 1 << 20;
/// Elements of a buffer: shaders index with signed 32-bit numbers.
const MOST_ELEMENTS: u64 = 1 << 31;
/// Groups of a launch: numbers of workgroups beyond the last group must not wrap.
const MOST_GROUPS: u64 = u32::MAX as u64 - (1 << 17);

#[derive(Debug)]
struct Slot {
    pool: vk::CommandPool,
    cmd: vk::CommandBuffer,
    block: Arc<Buffer>,
    /// Where its part of the block begins.
    offset: u64,
    value: u64,
    kernel: Option<Arc<Loaded>>,
    /// For arguments that do not fit the block.
    large: Option<Buffer>,
    /// For modules with bindings; null until one is launched.
    sets: vk::DescriptorPool,
}

// SAFETY: handles of the driver, used under `state`.
unsafe impl Send for Slot {}

impl Slot {
    fn status(&self) -> *mut [u32; 3] {
        let mapped = self.block.mapped.expect("blocks are host-visible").as_ptr();
        // SAFETY: inside the block.
        unsafe { mapped.add(self.offset as usize).cast() }
    }

    /// Puts arguments where the device finds them: the address, and the buffer with the offset.
    fn put(&mut self, pool: &Arc<Pool>, bytes: &[u8]) -> Result<(u64, vk::Buffer, u64), DeviceError> {
        let (mapped, place) = if bytes.len() as u64 <= BLOCK - SPILL {
            let offset = self.offset + SPILL;
            (
                self.block.mapped.map(|m| m.as_ptr().wrapping_add(offset as usize)),
                (self.block.address + offset, self.block.raw, offset),
            )
        } else {
            let fits = |b: &&Buffer| b.bytes >= bytes.len() as u64;
            if self.large.as_ref().filter(fits).is_none() {
                let size = bytes.len().next_power_of_two() as u64;
                self.large = Some(pool.buffer(size, MemoryLocation::CpuToGpu, "large arguments")?);
            }
            let large = self.large.as_ref().expect("made just now");
            (large.mapped.map(|m| m.as_ptr()), (large.address, large.raw, 0))
        };
        let to = mapped.ok_or_else(|| invalid("submit", "the device has no memory that the host can reach"))?;
        // SAFETY: the slot is not in flight, and the place is its own and long enough.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(place)
    }

    /// Takes what the launch that used it last complained of.
    fn harvest(&mut self) -> Option<(u64, KernelError)> {
        // SAFETY: its launch has ended, so the device leaves the words alone; they are aligned and the slot's.
        let words = unsafe { self.status().replace([0; 3]) };
        let kernel = self.kernel.take()?;
        (words[0] != 0).then(|| (self.value, KernelError::Refused(kernel.form.complaint(words))))
    }
}

#[derive(Debug, Default)]
struct State {
    issued: u64,
    slots: VecDeque<Slot>,
    failures: HashMap<u64, KernelError>,
    blocks: Vec<Arc<Buffer>>,
    used: u64,
}

#[derive(Debug)]
pub(crate) struct Compute {
    raw: Arc<Raw>,
    pub(crate) pool: Arc<Pool>,
    kernels: Kernels,
    /// Reached by launches.
    pub(crate) done: Semaphore,
    failed: AtomicUsize,
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
            failed: AtomicUsize::new(0),
            state: Mutex::default(),
        })
    }

    pub(crate) fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        self.kernels.load(code)
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
            loaded.ok_or_else(|| invalid("submit", format!("{:?} was not loaded on this device", launch.kernel)))?;
        let parts = parts_of(launch.grid, launch.groups)?;
        let args = match &loaded.descriptors {
            None => Packed::Address(pack(&loaded, launch.args)?),
            Some((d, _)) => {
                within(&loaded, launch, d.counts_groups, self.raw.gpu.can.max_groups)?;
                Packed::Descriptor(bind::look_up(&self.raw, &loaded, launch.args, of)?)
            }
        };
        let mut state = self.state.lock();
        let mut slot = self.slot(&mut state)?;
        let value = state.issued + 1;
        let recorded = match args {
            Packed::Address(args) => self.record_address(&mut slot, &loaded, launch.grid, &parts, args),
            Packed::Descriptor(bound) => self.record_descriptors(&mut slot, &loaded, launch.grid, &parts, &bound),
        };
        let submitted =
            recorded.and_then(|()| self.queue(&slot, value, after).map_err(|code| self.raw.failed("vkQueueSubmit")(code)));
        if let Err(e) = submitted {
            // Not in flight: to the front, where it is free at once.
            slot.value = 0;
            state.slots.push_front(slot);
            return Err(e);
        }
        state.issued = value;
        slot.value = value;
        slot.kernel = Some(loaded);
        state.slots.push_back(slot);
        Ok(Ticket { id: value, point: Point { queue: COMPUTE, value } })
    }

    fn record_address(
        &self,
        slot: &mut Slot,
        kernel: &Loaded,
        [x, y, z]: [u32; 3],
        parts: &[(u32, u32)],
        (mut args, spills): (SmallVec<[u8; PUSH]>, bool),
    ) -> Result<(), DeviceError> {
        let mut push: SmallVec<[u8; PUSH]> = SmallVec::new();
        push.extend_from_slice(&[0; 8]);
        push.extend_from_slice(&x.to_le_bytes());
        push.extend_from_slice(&(y | z << 16).to_le_bytes());
        push.extend_from_slice(&(slot.block.address + slot.offset).to_le_bytes());
        debug_assert_eq!(push.len(), HEAD);
        if spills {
            let (address, ..) = slot.put(&self.pool, &args)?;
            args = SmallVec::from_slice(&address.to_le_bytes());
        }
        push.extend_from_slice(&args);
        push.resize(push.len().next_multiple_of(4), 0);
        self.record(slot, kernel, |device, cmd| {
            for (first, end) in parts {
                push[..4].copy_from_slice(&first.to_le_bytes());
                push[4..8].copy_from_slice(&end.to_le_bytes());
                let [x, y] = fold(end - first, self.raw.gpu.can.max_groups);
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
                for ([x, y, z], [w, h, d]) in bind::boxes(grid, parts) {
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

    /// A slot that is not in flight.
    fn slot(&self, state: &mut State) -> Result<Slot, DeviceError> {
        if let Some(front) = state.slots.front()
            && self.done.is_reached(front.value)
            && let Some(mut slot) = state.slots.pop_front()
        {
            if let Some((value, error)) = slot.harvest() {
                self.keep(state, value, error);
            }
            return Ok(slot);
        }
        if state.used == state.blocks.len() as u64 * SLOTS {
            let block = self.pool.buffer(SLOTS * BLOCK, MemoryLocation::CpuToGpu, "arguments")?;
            let mapped =
                block.mapped.ok_or_else(|| invalid("submit", "the device has no memory that the host can reach"))?;
            // SAFETY: a new buffer of so many bytes.
            unsafe { mapped.as_ptr().write_bytes(0, (SLOTS * BLOCK) as usize) };
            state.blocks.push(Arc::new(block));
        }
        let device = &self.raw.device;
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(self.raw.compute.0)
            .flags(vk::CommandPoolCreateFlags::TRANSIENT);
        // SAFETY: the structures are alive; a command buffer goes with its pool.
        let (pool, cmd) = unsafe {
            let pool = device.create_command_pool(&info, None).map_err(self.raw.failed("vkCreateCommandPool"))?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            match device.allocate_command_buffers(&info) {
                Ok(buffers) => (pool, buffers[0]),
                Err(code) => {
                    device.destroy_command_pool(pool, None);
                    return Err(self.raw.failed("vkAllocateCommandBuffers")(code));
                }
            }
        };
        let (block, offset) = (&state.blocks[(state.used / SLOTS) as usize], state.used % SLOTS * BLOCK);
        state.used += 1;
        let block = Arc::clone(block);
        Ok(Slot { pool, cmd, block, offset, value: 0, kernel: None, large: None, sets: vk::DescriptorPool::null() })
    }

    fn keep(&self, state: &mut State, value: u64, error: KernelError) {
        self.failed.fetch_add(1, Ordering::AcqRel);
        state.failures.insert(value, error);
    }

    pub(crate) fn outcome(&self, done: Ticket) -> Outcome {
        let mut state = self.state.lock();
        let found = state.slots.binary_search_by_key(&done.id, |s| s.value);
        if let Ok(i) = found
            && let Some((value, error)) = state.slots[i].harvest()
        {
            self.keep(&mut state, value, error);
        }
        if self.failed.load(Ordering::Acquire) > 0
            && let Some(error) = state.failures.remove(&done.id)
        {
            self.failed.fetch_sub(1, Ordering::AcqRel);
            return Outcome::Failed(error);
        }
        Outcome::Done
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        let device = &self.raw.device;
        // SAFETY: the device is idle, as its owner has seen to.
        unsafe {
            for slot in &self.state.get_mut().slots {
                device.destroy_command_pool(slot.pool, None);
                device.destroy_descriptor_pool(slot.sets, None);
            }
        }
    }
}

/// The arguments of a launch in the form that its module takes.
enum Packed<'a> {
    Address((SmallVec<[u8; PUSH]>, bool)),
    Descriptor(Bound<'a>),
}

/// Refuses what a module that looks at its place in the dispatch itself would not do right.
fn within(kernel: &Loaded, launch: &Launch<'_>, counts: bool, most: [u32; 3]) -> Result<(), DeviceError> {
    let bad = |what: String| Err(DeviceError::BadKernel { kernel: kernel.name.into(), what });
    if launch.grid.iter().zip(most).any(|(n, m)| *n > m) {
        return bad(format!("a grid of {:?} groups, and the device runs {most:?}; give each group more to do", launch.grid));
    }
    if counts && launch.groups != Groups::All {
        return bad(
            "it reads gl_NumWorkGroups, so that its grid cannot be run in parts; hand the number over as a value".into()
        );
    }
    Ok(())
}

/// The stretches of groups that a launch runs.
fn parts_of(grid: [u32; 3], groups: Groups<'_>) -> Result<SmallVec<[(u32, u32); 1]>, DeviceError> {
    let count = grid.iter().try_fold(1_u64, |n, g| n.checked_mul(u64::from(*g))).filter(|n| (1..=MOST_GROUPS).contains(n));
    let whole = count.filter(|_| grid[1] <= 0xFFFF && grid[2] <= 0xFFFF);
    let count = whole.ok_or_else(|| {
        let most = format!("it has 1 to {MOST_GROUPS} groups, and up to 65535 in y and z");
        invalid("submit", format!("a grid of {grid:?} groups; {most}"))
    })? as u32;
    match groups {
        Groups::All => Ok(smallvec::smallvec![(0, count)]),
        Groups::Range(first, end) if first == end && end <= count => Ok(SmallVec::new()),
        Groups::Range(first, end) if first < end && end <= count => Ok(smallvec::smallvec![(first, end)]),
        Groups::List(list) if list.iter().all(|n| *n < count) => Ok(list.iter().map(|n| (*n, n + 1)).collect()),
        Groups::Range(..) | Groups::List(_) => Err(invalid("submit", format!("groups outside a grid of {count}"))),
    }
}

/// So many workgroups as a rectangle within the device's limits, with few to spare.
fn fold(count: u32, most: [u32; 3]) -> [u32; 2] {
    let rows = count.div_ceil(most[0]);
    [count.div_ceil(rows), rows]
}

/// The buffers and the plain value as the module gets them, and whether they go into the slot's block.
fn pack(kernel: &Loaded, args: &[Arg<'_>]) -> Result<(SmallVec<[u8; PUSH]>, bool), DeviceError> {
    let mut packed: SmallVec<[u8; PUSH]> = SmallVec::new();
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
    if packed.len() > MOST_VALUE {
        let what = format!("a plain value of {} bytes; pass more than {MOST_VALUE} in a buffer", value.len());
        return Err(DeviceError::BadKernel { kernel: kernel.name.into(), what });
    }
    Ok((packed, spirv::spills(buffers, value.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_fold_with_few_to_spare() {
        let most = [65535; 3];
        for count in [1, 2, 65535, 65536, 1 << 20, 4_000_000_000] {
            let [x, y] = fold(count, most);
            assert!(x <= most[0] && y <= most[1]);
            let all = u64::from(x) * u64::from(y);
            assert!(all >= u64::from(count) && all - u64::from(count) < u64::from(y), "{count}: {x}·{y}");
        }
    }

    #[test]
    fn grids_that_make_no_sense_are_refused() {
        for grid in [[0, 1, 1], [u32::MAX, 1, 1], [1, 65536, 1], [70000, 70000, 1]] {
            assert!(parts_of(grid, Groups::All).is_err(), "{grid:?}");
        }
        assert!(parts_of([4, 1, 1], Groups::Range(2, 5)).is_err());
        assert!(parts_of([4, 1, 1], Groups::List(&[4])).is_err());
        assert_eq!(parts_of([4, 2, 1], Groups::All).unwrap().as_slice(), [(0, 8)]);
    }
}
