//! The compute queue: kernels, and launches in the order of their submission.
//!
//! **Guarantee:** launches run one after another; when a launch's point is reached, all that it wrote is visible to the host and
//! to later launches and copies. Everything that a launch needs is copied before `submit` returns.
//!
//! **States of a slot** (a command buffer with its block of arguments and status words): free, then in flight until its value is
//! reached, then free again. Slots are kept in the order of their values. What a launch complained of is taken from its slot
//! before the slot is used again, and kept until `outcome` asks.
//!
//! **Locks:** `state`, held over recording and submission, which no driver blocks in; the queue's own inside it. `kernels` for
//! look-ups and while a pipeline is built.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ash::vk;
use gpu_allocator::MemoryLocation;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use sterna_hal::kernel::spirv::{self, HEAD, PUSH};
use sterna_hal::kernel::{Code, Mapping, Spirv};
use sterna_hal::{Arg, DeviceError, Groups, KernelError, KernelId, Launch, Outcome, Point, Ticket};
use sterna_host::sys::invalid;

use crate::error::VulkanError;
use crate::module;
use crate::pool::{Buffer, Pool};
use crate::raw::Raw;

/// The number of the compute queue.
pub(crate) const COMPUTE: u32 = 0;
/// The number of the copy queue.
pub(crate) const COPY: u32 = 1;

/// Bytes of a slot's block: status words, then arguments that do not fit push constants.
const BLOCK: u64 = 4096;
/// Where arguments begin in it.
const SPILL: u64 = 64;
/// Slots whose blocks share a buffer.
const SLOTS: u64 = 16;
/// Longest push constants and plain values.
const MOST_VALUE: usize = (BLOCK - SPILL) as usize;
/// Elements of a buffer: shaders index with signed 32-bit numbers.
const MOST_ELEMENTS: u64 = 1 << 31;
/// Groups of a launch: numbers of workgroups beyond the last group must not wrap.
const MOST_GROUPS: u64 = u32::MAX as u64 - (1 << 17);

#[derive(Clone, Copy, Debug)]
struct Loaded {
    pipeline: vk::Pipeline,
    form: Spirv,
    name: &'static str,
}

#[derive(Debug, Default)]
struct Kernels {
    list: Vec<Loaded>,
    ids: HashMap<Code, KernelId>,
}

#[derive(Debug)]
struct Slot {
    pool: vk::CommandPool,
    cmd: vk::CommandBuffer,
    block: Arc<Buffer>,
    /// Where its part of the block begins.
    offset: u64,
    value: u64,
    kernel: Option<Loaded>,
}

// SAFETY: handles of the driver, used under `state`.
unsafe impl Send for Slot {}

impl Slot {
    fn status(&self) -> *mut [u32; 3] {
        let mapped = self.block.mapped.expect("blocks are host-visible").as_ptr();
        // SAFETY: inside the block.
        unsafe { mapped.add(self.offset as usize).cast() }
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
    pool: Arc<Pool>,
    layout: vk::PipelineLayout,
    cache: vk::PipelineCache,
    semaphore: vk::Semaphore,
    /// The copies that launches may have to wait for.
    copies: vk::Semaphore,
    reached: AtomicU64,
    failed: AtomicUsize,
    state: Mutex<State>,
    kernels: RwLock<Kernels>,
}

impl Compute {
    /// `copies` is the semaphore of the copy queue, which outlives this.
    pub(crate) fn new(raw: &Arc<Raw>, pool: &Arc<Pool>, copies: vk::Semaphore) -> Result<Self, VulkanError> {
        let semaphore = raw.semaphore()?;
        let mut this = Self {
            raw: Arc::clone(raw),
            pool: Arc::clone(pool),
            layout: vk::PipelineLayout::null(),
            cache: vk::PipelineCache::null(),
            semaphore,
            copies,
            reached: AtomicU64::new(0),
            failed: AtomicUsize::new(0),
            state: Mutex::default(),
            kernels: RwLock::default(),
        };
        let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(PUSH as u32)];
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&range);
        // SAFETY: the structures are alive.
        unsafe {
            this.layout =
                raw.device.create_pipeline_layout(&info, None).map_err(crate::error::opening("vkCreatePipelineLayout"))?;
            this.cache = raw
                .device
                .create_pipeline_cache(&vk::PipelineCacheCreateInfo::default(), None)
                .map_err(crate::error::opening("vkCreatePipelineCache"))?;
        }
        Ok(this)
    }

    pub(crate) fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        let form = code.spirv.ok_or_else(|| DeviceError::NoForm { kernel: code.name.into(), needs: "SPIR-V" })?;
        if let Some(id) = self.kernels.read().ids.get(code) {
            return Ok(*id);
        }
        let mut kernels = self.kernels.write();
        if let Some(id) = kernels.ids.get(code) {
            return Ok(*id);
        }
        let pipeline = self.pipeline(code.name, &form)?;
        kernels.list.push(Loaded { pipeline, form, name: code.name });
        let id = KernelId(kernels.list.len() as u32 - 1);
        kernels.ids.insert(*code, id);
        Ok(id)
    }

    fn pipeline(&self, name: &str, form: &Spirv) -> Result<vk::Pipeline, DeviceError> {
        let bad = |what| DeviceError::BadKernel { kernel: name.into(), what };
        let words = module::check(form.code, &self.raw.gpu.can).map_err(bad)?;
        let device = &self.raw.device;
        let info = vk::ShaderModuleCreateInfo::default().code(&words);
        // SAFETY: whole words, looked through above.
        let module = unsafe { device.create_shader_module(&info, None) }.map_err(self.raw.failed("vkCreateShaderModule"))?;
        let entries: [_; spirv::CONSTANTS] =
            std::array::from_fn(|i| vk::SpecializationMapEntry { constant_id: i as u32, offset: 4 * i as u32, size: 4 });
        let data: Vec<u8> = form.constants.iter().flat_map(|c| c.to_ne_bytes()).collect();
        let special = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&special);
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layout)];
        // SAFETY: the module has that entry point; the structures are alive. The module is not needed afterwards.
        let made = unsafe {
            let made = device.create_compute_pipelines(self.cache, &info, None);
            device.destroy_shader_module(module, None);
            made
        };
        match made {
            Ok(pipelines) => Ok(pipelines[0]),
            Err((_, code)) => Err(match self.raw.failed("vkCreateComputePipelines")(code) {
                lost @ DeviceError::Lost(_) => lost,
                e => bad(format!("the driver does not take it: {e}")),
            }),
        }
    }

    /// Submits a launch whose ranges were checked.
    pub(crate) fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError> {
        let loaded = self.kernels.read().list.get(launch.kernel.0 as usize).copied();
        let loaded =
            loaded.ok_or_else(|| invalid("submit", format!("{:?} was not loaded on this device", launch.kernel)))?;
        let parts = parts_of(launch.grid, launch.groups)?;
        let (mut args, spills) = pack(&loaded, launch.args)?;
        let copies = after.iter().filter(|p| p.queue == COPY).map(|p| p.value).max().filter(|v| *v > 0);
        let [x, y, z] = launch.grid;
        let mut head: SmallVec<[u8; PUSH]> = SmallVec::new();
        head.extend_from_slice(&[0; 8]);
        head.extend(x.to_le_bytes().into_iter().chain((y | z << 16).to_le_bytes()));

        let mut state = self.state.lock();
        let mut slot = self.slot(&mut state)?;
        let address = slot.block.address + slot.offset;
        head.extend_from_slice(&address.to_le_bytes());
        debug_assert_eq!(head.len(), HEAD);
        if spills {
            // SAFETY: the slot's part of a host-visible block, of which nobody else knows; the length was checked.
            unsafe {
                let to = slot.block.mapped.expect("blocks are host-visible").as_ptr();
                to.add((slot.offset + SPILL) as usize).copy_from_nonoverlapping(args.as_ptr(), args.len());
            }
            args = SmallVec::from_slice(&(address + SPILL).to_le_bytes());
        }
        head.extend_from_slice(&args);
        head.resize(head.len().next_multiple_of(4), 0);
        let value = state.issued + 1;
        let submitted = self.record(&slot, &loaded, &parts, &mut head).and_then(|()| self.queue(&slot, value, copies));
        if let Err(code) = submitted {
            // Not in flight: to the front, where it is free at once.
            slot.value = 0;
            state.slots.push_front(slot);
            return Err(self.raw.failed("vkQueueSubmit")(code));
        }
        state.issued = value;
        slot.value = value;
        slot.kernel = Some(loaded);
        state.slots.push_back(slot);
        Ok(Ticket { id: value, point: Point { queue: COMPUTE, value } })
    }

    fn record(&self, slot: &Slot, kernel: &Loaded, parts: &[(u32, u32)], push: &mut [u8]) -> Result<(), vk::Result> {
        let (device, cmd) = (&self.raw.device, slot.cmd);
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: the slot's command buffer is not in flight; handles are of this device.
        unsafe {
            device.reset_command_pool(slot.pool, vk::CommandPoolResetFlags::empty())?;
            device.begin_command_buffer(cmd, &once)?;
            device.cmd_bind_pipeline(cmd, vk::PipelineBindPoint::COMPUTE, kernel.pipeline);
            for (first, end) in parts {
                push[..4].copy_from_slice(&first.to_le_bytes());
                push[4..8].copy_from_slice(&end.to_le_bytes());
                let [x, y] = fold(end - first, self.raw.gpu.can.max_groups);
                device.cmd_push_constants(cmd, self.layout, vk::ShaderStageFlags::COMPUTE, 0, push);
                device.cmd_dispatch(cmd, x, y, 1);
            }
            // For everything that comes later on this queue, and for the host.
            let barrier = [vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::SHADER_WRITE)
                .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE | vk::AccessFlags::HOST_READ)];
            device.cmd_pipeline_barrier(
                cmd,
                vk::PipelineStageFlags::COMPUTE_SHADER,
                vk::PipelineStageFlags::ALL_COMMANDS | vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
            device.end_command_buffer(cmd)
        }
    }

    fn queue(&self, slot: &Slot, value: u64, copies: Option<u64>) -> Result<(), vk::Result> {
        let (waits, values) = ([self.copies], [copies.unwrap_or(0)]);
        let n = usize::from(copies.is_some());
        let stages = [vk::PipelineStageFlags::ALL_COMMANDS];
        let (signals, signalled, commands) = ([self.semaphore], [value], [slot.cmd]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&values[..n])
            .signal_semaphore_values(&signalled);
        let info = [vk::SubmitInfo::default()
            .wait_semaphores(&waits[..n])
            .wait_dst_stage_mask(&stages[..n])
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
            && self.is_reached(front.value)
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
        Ok(Slot { pool, cmd, block: Arc::clone(block), offset, value: 0, kernel: None })
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

    pub(crate) fn is_reached(&self, value: u64) -> bool {
        if self.reached.load(Ordering::Acquire) >= value {
            return true;
        }
        // SAFETY: a semaphore of this device.
        match unsafe { self.raw.device.get_semaphore_counter_value(self.semaphore) } {
            Ok(now) => {
                self.reached.fetch_max(now, Ordering::AcqRel);
                now >= value
            }
            Err(code) => {
                self.raw.failed("vkGetSemaphoreCounterValue")(code);
                false
            }
        }
    }

    /// Waits for `value`, at most so many nanoseconds.
    pub(crate) fn wait(&self, value: u64, nanos: u64) -> Result<bool, DeviceError> {
        let (semaphores, values) = ([self.semaphore], [value]);
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: a semaphore of this device.
        match unsafe { self.raw.device.wait_semaphores(&info, nanos) } {
            Ok(()) => {
                self.reached.fetch_max(value, Ordering::AcqRel);
                Ok(true)
            }
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(code) => Err(self.raw.failed("vkWaitSemaphores")(code)),
        }
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        let device = &self.raw.device;
        // SAFETY: the device is idle, as its owner has seen to.
        unsafe {
            for slot in &self.state.get_mut().slots {
                device.destroy_command_pool(slot.pool, None);
            }
            for kernel in &self.kernels.get_mut().list {
                device.destroy_pipeline(kernel.pipeline, None);
            }
            device.destroy_pipeline_cache(self.cache, None);
            device.destroy_pipeline_layout(self.layout, None);
            device.destroy_semaphore(self.semaphore, None);
        }
    }
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
                packed.extend((len as u32).to_le_bytes().into_iter().chain((chunk as u32).to_le_bytes()));
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
