//! Slots: a command buffer each, with a block of arguments and status words.
//!
//! **States of a slot:** free, then in flight until its value is reached, then free again. They are kept in the order of their
//! values, [`KEPT`] of them; what a flood of launches needed beyond is given back as its launches are asked after. What a launch
//! complained of is taken from its slot before the slot is used again or given back, and kept until somebody asks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ash::vk;
use gpu_allocator::MemoryLocation;
use sterna_hal::{DeviceError, KernelId};
use sterna_host::sys::invalid;

use crate::pool::{Buffer, Pool};
use crate::raw::Raw;
use crate::signals::Semaphore;

/// Bytes of a slot's block: status words, then arguments that do not fit push constants.
const BLOCK: u64 = 1024;
/// Where arguments begin in it: what every device takes as the begin of a uniform buffer.
const SPILL: u64 = 256;
/// Slots whose blocks share a buffer.
const SLOTS: u64 = 64;
/// Slots that are kept for the next launches; more only while that many launches have not ended.
const KEPT: usize = 256;
/// Arguments that do not fit the block are in a buffer of the slot's own, up to this many bytes.
pub(crate) const MOST_VALUE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) pool: vk::CommandPool,
    pub(crate) cmd: vk::CommandBuffer,
    pub(crate) block: Arc<Buffer>,
    /// Where its part of the block begins.
    pub(crate) offset: u64,
    value: u64,
    /// The kernel of the launch that nobody has asked after.
    kernel: Option<KernelId>,
    /// For arguments that do not fit the block.
    large: Option<Buffer>,
    /// For modules with bindings; null until one is launched.
    pub(crate) sets: vk::DescriptorPool,
}

// SAFETY: handles of the driver; whoever has the slot uses them alone.
unsafe impl Send for Slot {}

impl Slot {
    fn status(&self) -> *mut [u32; 3] {
        let mapped = self.block.mapped.expect("blocks are host-visible").as_ptr();
        // SAFETY: inside the block.
        unsafe { mapped.add(self.offset as usize).cast() }
    }

    /// Puts arguments where the device finds them: the address, and the buffer with the offset.
    pub(crate) fn put(&mut self, pool: &Arc<Pool>, bytes: &[u8]) -> Result<(u64, vk::Buffer, u64), DeviceError> {
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

    /// Destroys what it has of the driver's.
    ///
    /// # Safety
    /// It is not in flight, and not used again.
    unsafe fn destroy(&self, device: &ash::Device) {
        // SAFETY: the caller's.
        unsafe {
            device.destroy_command_pool(self.pool, None);
            device.destroy_descriptor_pool(self.sets, None);
        }
    }

    /// Takes what the launch that used it last complained of, which nobody else has asked after.
    fn harvest(&mut self) -> Option<Complaint> {
        let kernel = self.kernel.take()?;
        // SAFETY: its launch has ended, so the device leaves the words alone; they are aligned and the slot's.
        let words = unsafe { self.status().replace([0; 3]) };
        (words[0] != 0).then_some(Complaint { kernel, words })
    }
}

/// What a kernel found wrong, in its status words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Complaint {
    pub(crate) kernel: KernelId,
    pub(crate) words: [u32; 3],
}

/// The slots of a queue.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// Boxed: each launch moves one from the front to the back.
    list: VecDeque<Box<Slot>>,
    /// What launches whose slots are used again complained of, by their values.
    complaints: HashMap<u64, Complaint>,
    /// Where the next new slots get their blocks, and how many have. A buffer lives as long as slots have parts of it.
    block: Option<(Arc<Buffer>, u64)>,
}

impl Slots {
    /// A slot that is not in flight.
    pub(crate) fn take(&mut self, raw: &Raw, pool: &Arc<Pool>, done: &Semaphore) -> Result<Box<Slot>, DeviceError> {
        if let Some(front) = self.list.front()
            && done.is_reached(front.value)
            && let Some(mut slot) = self.list.pop_front()
        {
            if let Some(complaint) = slot.harvest() {
                self.complaints.insert(slot.value, complaint);
            }
            return Ok(slot);
        }
        if self.block.as_ref().is_none_or(|(_, used)| *used == SLOTS) {
            let block = pool.buffer(SLOTS * BLOCK, MemoryLocation::CpuToGpu, "arguments")?;
            let mapped =
                block.mapped.ok_or_else(|| invalid("submit", "the device has no memory that the host can reach"))?;
            // SAFETY: a new buffer of so many bytes.
            unsafe { mapped.as_ptr().write_bytes(0, (SLOTS * BLOCK) as usize) };
            self.block = Some((Arc::new(block), 0));
        }
        let device = &raw.device;
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(raw.compute.0)
            .flags(vk::CommandPoolCreateFlags::TRANSIENT);
        // SAFETY: the structures are alive; a command buffer goes with its pool.
        let (pool, cmd) = unsafe {
            let pool = device.create_command_pool(&info, None).map_err(raw.failed("vkCreateCommandPool"))?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            match device.allocate_command_buffers(&info) {
                Ok(buffers) => (pool, buffers[0]),
                Err(code) => {
                    device.destroy_command_pool(pool, None);
                    return Err(raw.failed("vkAllocateCommandBuffers")(code));
                }
            }
        };
        let (block, used) = self.block.as_mut().expect("made just now");
        let (block, offset) = (Arc::clone(block), *used * BLOCK);
        *used += 1;
        let sets = vk::DescriptorPool::null();
        Ok(Box::new(Slot { pool, cmd, block, offset, value: 0, kernel: None, large: None, sets }))
    }

    /// Takes back a slot whose launch was not submitted: it is free at once.
    pub(crate) fn give_back(&mut self, mut slot: Box<Slot>) {
        slot.value = 0;
        self.list.push_front(slot);
    }

    /// Takes back a slot whose launch of `kernel` ends with `value`, the highest so far.
    pub(crate) fn in_flight(&mut self, mut slot: Box<Slot>, value: u64, kernel: KernelId) {
        slot.value = value;
        slot.kernel = Some(kernel);
        self.list.push_back(slot);
    }

    /// What the launch with this value, which has ended, complained of; told once.
    pub(crate) fn complaint(&mut self, value: u64) -> Option<Complaint> {
        let in_slot = self.list.binary_search_by_key(&value, |s| s.value).ok();
        let said = in_slot.and_then(|i| self.list[i].harvest());
        said.or_else(|| if self.complaints.is_empty() { None } else { self.complaints.remove(&value) })
    }

    /// Gives back slots that are not in flight, as long as there are more than are kept: two at a time, so that they go faster than they
    /// came and nobody waits.
    pub(crate) fn trim(&mut self, device: &ash::Device, done: &Semaphore) {
        for _ in 0..2 {
            let free = |s: &Slot| done.is_reached(s.value);
            if self.list.len() <= KEPT || !self.list.front().is_some_and(|s| free(s)) {
                return;
            }
            let Some(mut slot) = self.list.pop_front() else { return };
            if let Some(complaint) = slot.harvest() {
                self.complaints.insert(slot.value, complaint);
            }
            // SAFETY: its launch has ended; it is in the list no more.
            unsafe { slot.destroy(device) };
            if self.list.len() == KEPT {
                self.list.shrink_to(2 * KEPT);
            }
        }
    }

    /// Destroys what the slots have.
    ///
    /// # Safety
    /// None is in flight.
    pub(crate) unsafe fn destroy(&mut self, device: &ash::Device) {
        for slot in self.list.drain(..) {
            // SAFETY: the caller's; each is destroyed once.
            unsafe { slot.destroy(device) };
        }
    }
}
