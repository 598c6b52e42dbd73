//! Page table *sparse*: a sparse buffer a reservation, whose pages are bound to memory one by one.
//!
//! **Guarantee:** an entry names the frames that the last edit gave it, or nothing; edits happen in the order of their points. Frames
//! are grains of [plain buffers](crate::chunks), which copies read and write: device memory is reached in two ways, never by import,
//! which sparse buffers do not take.
//!
//! **States:** a reservation is there or not, and knows [what is bound and what is an entry](crate::entries): once nothing is bound, all
//! of it is unbound in one stretch, since drivers on the host keep a mapping for each stretch that was bound or unbound by itself. Its
//! buffer goes when the edits that may name it are done.
//!
//! **Unbound pages** may keep what a kernel writes there and give it back later, without a word (seen on lavapipe): nothing here
//! notices a kernel that touches what it does not declare.
//!
//! **Locks:** `state`, for look-ups, over bookkeeping of an edit and its submission; the queue's own, and `mappings` for a count,
//! inside it; that of the chunks never.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ash::vk;
use gpu_allocator::MemoryLocation;
use parking_lot::Mutex;
use sterna_hal::{DevAddr, DevRange, DeviceError, DeviceKind, Edit, Frames, Point, Target};
use sterna_host::mappings;
use sterna_host::sys::invalid;

use crate::chunks::Chunks;
use crate::config::GRAIN;
use crate::entries::{Change, Entries, Region};
use crate::error::VulkanError;
use crate::launch::TABLE;
use crate::pool::{Pool, usage};
use crate::raw::{Raw, Shared};
use crate::signals::Semaphore;

/// Reservations begin at multiples of it, as the contract wants.
const ALIGNMENT: u64 = 2 << 20;
/// How soon a thread that waits in the driver looks whether the device is lost, in nanoseconds.
const PIECE: u64 = 200_000_000;

#[derive(Debug)]
pub(crate) struct Sparse {
    pub(crate) chunks: Chunks,
    raw: Arc<Raw>,
    queue: Shared,
    /// Reached by edits.
    bound: Arc<Semaphore>,
    /// What the driver binds by, and what is bound here.
    unit: u64,
    grain: u64,
    /// Longest reservation, and all of them together.
    limit: u64,
    space: u64,
    /// Whether somebody was told that addresses have run out.
    told: AtomicBool,
    state: Mutex<State>,
    /// Binds are mappings of this process: drivers that run on the host do not look whether the system refuses one, and what it refuses
    /// stays unbound without a word. So there has to be room before they are asked.
    maps: bool,
}

#[derive(Debug)]
struct State {
    issued: u64,
    reserved: u64,
    entries: Entries,
    /// Buffers of reservations that went, which the driver may still be unbinding until its edits have come so far.
    ending: Vec<(u64, vk::Buffer)>,
}

impl Sparse {
    pub(crate) fn new(
        raw: &Arc<Raw>,
        pool: &Arc<Pool>,
        bound: Arc<Semaphore>,
        location: MemoryLocation,
        budget: u64,
        wanted: Option<u64>,
    ) -> Result<Self, VulkanError> {
        let lacking = |what: &str| VulkanError::Device(invalid("probe", format!("the device has no {what}")));
        let Some((_, queue)) = &raw.sparse else { return Err(lacking("sparse buffers, or no queue that binds them")) };
        let can = &raw.gpu.can;
        // What such buffers need, by a small one.
        let small = Self::buffer(raw, ALIGNMENT)?;
        // SAFETY: made just now, used for nothing.
        let needs = unsafe {
            let needs = raw.device.get_buffer_memory_requirements(small);
            raw.device.destroy_buffer(small, None);
            needs
        };
        let grain = wanted.unwrap_or_else(|| needs.alignment.max(GRAIN));
        if grain < needs.alignment {
            let text = format!("a grain of {grain} bytes; this device binds by {}", needs.alignment);
            return Err(VulkanError::Settings(text));
        }
        if grain > ALIGNMENT || !grain.is_power_of_two() {
            return Err(lacking("sparse pages of at most 2 MiB"));
        }
        let space = can.sparse_space;
        let limit = can.max_buffer.min(space).saturating_sub(ALIGNMENT) & !(grain - 1);
        let chunks = Chunks::new(pool, (location, needs.memory_type_bits), grain, budget);
        let entries = Entries::new(chunks.grains(), grain);
        Ok(Self {
            chunks,
            raw: Arc::clone(raw),
            queue: Arc::clone(queue),
            bound,
            unit: needs.alignment.max(1),
            grain,
            limit,
            space,
            told: AtomicBool::new(false),
            state: Mutex::new(State { issued: 0, reserved: 0, entries, ending: Vec::new() }),
            maps: raw.gpu.kind == DeviceKind::Software,
        })
    }

    fn buffer(raw: &Raw, bytes: u64) -> Result<vk::Buffer, DeviceError> {
        let flags = vk::BufferCreateFlags::SPARSE_BINDING
            | vk::BufferCreateFlags::SPARSE_RESIDENCY
            | vk::BufferCreateFlags::SPARSE_ALIASED;
        let families = raw.families();
        let mut info = vk::BufferCreateInfo::default().flags(flags).size(bytes).usage(usage());
        if families.len() > 1 {
            info = info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(&families);
        }
        // SAFETY: the structures are alive.
        unsafe { raw.device.create_buffer(&info, None) }.map_err(|code| match code {
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY => DeviceError::OutOfMemory { requested: bytes, in_use: 0, budget: 0 },
            code => raw.failed("vkCreateBuffer")(code),
        })
    }

    pub(crate) fn grain(&self) -> u64 {
        self.grain
    }

    pub(crate) fn max_reservation(&self) -> u64 {
        self.limit
    }

    /// Frames; see [`Chunks::alloc`].
    pub(crate) fn alloc(&self, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        if self.maps && grains > 0 && !mappings::room(2) {
            return Err(mappings::exhausted());
        }
        self.chunks.alloc(grains, out)
    }

    pub(crate) fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        if bytes > self.limit {
            return Err(DeviceError::TooBig { requested: bytes, limit: self.limit });
        }
        let whole = bytes.max(1).next_multiple_of(self.grain);
        let align = whole.next_power_of_two().min(ALIGNMENT);
        // Buffers begin where the driver binds from, or so it says: what is not longer than that needs nothing beside it.
        if align <= self.unit
            && let Some(range) = self.reserve_with(bytes, (whole, align, 0))?
        {
            return Ok(range);
        }
        let made = self.reserve_with(bytes, (whole, align, align))?;
        made.ok_or_else(|| invalid("reserve", format!("sparse buffers begin anywhere, not at multiples of {}", self.unit)))
    }

    /// A reservation of `whole` bytes in a buffer that is `slack` bytes longer; `None` if it does not come to lie as it has to.
    fn reserve_with(&self, bytes: u64, (whole, align, slack): (u64, u64, u64)) -> Result<Option<DevRange>, DeviceError> {
        let exhausted = |in_use| {
            self.tell(in_use);
            DeviceError::OutOfMemory { requested: whole, in_use, budget: self.space }
        };
        {
            let mut state = self.state.lock();
            if whole + slack > self.space - state.reserved {
                return Err(exhausted(state.reserved));
            }
            state.reserved += whole + slack;
        }
        let made = Self::buffer(&self.raw, whole + slack);
        let mut state = self.state.lock();
        let buffer = made.map_err(|e| {
            state.reserved -= whole + slack;
            match e {
                DeviceError::OutOfMemory { .. } => exhausted(state.reserved),
                e => e,
            }
        })?;
        // SAFETY: a buffer of this device that was made for having an address.
        let base =
            unsafe { self.raw.device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(buffer)) };
        // Lavapipe gives the address -1 where it found no addresses.
        if base == 0 || base.checked_add(whole + slack).is_none() {
            state.reserved -= whole + slack;
            // SAFETY: made just now, and nobody has it.
            unsafe { self.raw.device.destroy_buffer(buffer, None) };
            return Err(exhausted(state.reserved));
        }
        let at = base.next_multiple_of(align);
        // Binds begin where the driver wants, which may be finer than the grain.
        if at - base > slack || !(at - base).is_multiple_of(self.unit) {
            state.reserved -= whole + slack;
            // SAFETY: made just now, and nobody has it.
            unsafe { self.raw.device.destroy_buffer(buffer, None) };
            return Ok(None);
        }
        state.entries.add(Region::new(buffer, (base, at), (whole, slack), self.grain));
        Ok(Some(DevRange { at: DevAddr(at), bytes }))
    }

    /// Says once that addresses have run out: everything goes on, at a cost that nobody would guess. Without the lock of standard error.
    fn tell(&self, in_use: u64) {
        if self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let mib = |bytes: u64| bytes >> 20;
        let line = format!(
            "sterna: {}: {} MiB of the {} MiB of addresses that its driver has for sparse buffers are in use: from now on allocations leave \
             it, whole, for one another; drop some, make them shorter, or use another page table (STERNA_PAGE_TABLE=mmu, or fixed)\n",
            self.raw.gpu.name,
            mib(in_use),
            mib(self.space)
        );
        // SAFETY: as many bytes as there are. There is nobody to tell if it fails.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    }

    pub(crate) fn unreserve(&self, range: DevRange) {
        let gone = {
            let mut state = self.state.lock();
            let gone = state.entries.remove(range.at.0);
            debug_assert!(gone.is_some(), "{range:?} is not of this device");
            if let Some(r) = gone {
                state.reserved -= r.bytes + r.slack;
                let issued = state.issued;
                state.ending.push((issued, r.buffer));
            }
            // A frame that went to another reservation may have been unbound here by an edit of that one.
            state.ending.extract_if(.., |(value, _)| self.bound.is_reached(*value)).collect::<Vec<_>>()
        };
        for (_, buffer) in gone {
            // SAFETY: no launch uses it any more, and no edit that is under way.
            unsafe { self.raw.device.destroy_buffer(buffer, None) };
        }
    }

    /// The buffer that has all of `range`, and how far into it the range begins.
    pub(crate) fn of(&self, call: &'static str, range: DevRange) -> Result<(vk::Buffer, u64), DeviceError> {
        self.state.lock().entries.of(call, range).map(|r| (r.buffer, range.at.0 - r.base))
    }

    /// Edits, after these values of semaphores.
    pub(crate) fn edit(&self, edits: &[Edit], after: &[(vk::Semaphore, u64)]) -> Result<Point, DeviceError> {
        let mut ranges: Vec<(u64, u64)> = edits.iter().map(|e| (e.at.at.0, e.at.bytes)).collect();
        ranges.sort_unstable();
        let mut point = Point::REACHED;
        if ranges.windows(2).any(|w| w[0].0 + w[0].1 > w[1].0) {
            // Those of one batch would have no order.
            for e in edits {
                point = self.batch(std::slice::from_ref(e), after)?;
            }
        } else if !edits.is_empty() {
            point = self.batch(edits, after)?;
        }
        Ok(point)
    }

    /// Edits that do not overlap: what the driver has to do for them comes behind what it was told before.
    fn batch(&self, edits: &[Edit], after: &[(vk::Semaphore, u64)]) -> Result<Point, DeviceError> {
        // What they name, before anything changes.
        for e in edits {
            let uneven = |n: u64| !n.is_multiple_of(self.grain);
            if e.at.bytes == 0 || uneven(e.at.at.0) || uneven(e.at.bytes) {
                return Err(invalid("edit", format!("{:x?} is not made of grains of {}", e.at, self.grain)));
            }
            match e.to {
                Target::Absent => {}
                Target::Frames { first } => drop(self.chunks.stretches(first, e.at.bytes)?),
                Target::Host(_) => return Err(invalid("edit", "this device cannot map host storage")),
            }
        }
        let mut state = self.state.lock();
        for e in edits {
            state.entries.of("edit", e.at)?;
        }
        match self.enter(&mut state, edits, after) {
            Err(e) if self.maps && !self.raw.is_lost() => {
                // What is bound and no entry may be what there are too many mappings for.
                let idle = state.entries.sweep();
                if idle.is_empty() {
                    return Err(e);
                }
                let swept = self.bind(&mut state, &idle, &[])?;
                drop(state);
                // In pieces: what comes before it may wait for copies that a lost device will not make.
                while !self.bound.wait(swept.value, PIECE)? {
                    self.raw.present()?;
                }
                self.enter(&mut self.state.lock(), edits, after)
            }
            done => done,
        }
    }

    /// Makes the entries, of reservations that are there.
    fn enter(&self, state: &mut State, edits: &[Edit], after: &[(vk::Semaphore, u64)]) -> Result<Point, DeviceError> {
        let first = |to: &Target| if let Target::Frames { first } = to { Some(*first) } else { None };
        let changes = state.entries.change(edits.iter().map(|e| (e.at, first(&e.to))));
        self.bind(state, &changes, after)
    }

    fn bind(&self, state: &mut State, changes: &[Change], after: &[(vk::Semaphore, u64)]) -> Result<Point, DeviceError> {
        self.submit(state, changes, after).inspect_err(|_| state.entries.failed(changes))
    }

    /// One submission, which comes behind those before it. Without changes there is none, unless there is something to wait for.
    fn submit(&self, state: &mut State, changes: &[Change], after: &[(vk::Semaphore, u64)]) -> Result<Point, DeviceError> {
        let State { entries, issued, .. } = state;
        if changes.is_empty() && after.is_empty() {
            return Ok(Point { queue: TABLE, value: *issued });
        }
        let mut binds: Vec<(vk::Buffer, Vec<vk::SparseMemoryBind>)> = Vec::new();
        let (mut made, mut gone) = (0, 0);
        for c in changes {
            let (region, none_left) = entries.region(c.region);
            let of = binds.iter().position(|b| b.0 == region.buffer).unwrap_or_else(|| {
                binds.push((region.buffer, Vec::new()));
                binds.len() - 1
            });
            let (list, offset) = (&mut binds[of].1, c.at - region.base);
            let bind = |offset, bytes| vk::SparseMemoryBind::default().resource_offset(offset).size(bytes);
            match c.first {
                Some(first) => {
                    let mut offset = offset;
                    for (chunk, place, bytes) in self.chunks.stretches(first, c.grains * self.grain)? {
                        let (memory, start) = chunk.memory();
                        list.push(bind(offset, bytes).memory(memory).memory_offset(start + place));
                        offset += bytes;
                        made += 1;
                    }
                }
                None if none_left => *list = vec![bind(region.at - region.base, region.bytes)],
                None => {
                    list.push(bind(offset, c.grains * self.grain));
                    gone += 1;
                }
            }
        }
        // What is to be unbound is never refused: left bound it does no harm.
        if self.maps && !mappings::reserve(2 * (made + gone)) && made > 0 {
            return Err(mappings::exhausted());
        }
        let infos: Vec<vk::SparseBufferMemoryBindInfo<'_>> = binds
            .iter()
            .map(|(buffer, list)| vk::SparseBufferMemoryBindInfo::default().buffer(*buffer).binds(list))
            .collect();
        // Submissions to one queue may end in another order than they began.
        let before = Some((self.bound.raw, *issued)).filter(|(_, value)| !self.bound.is_reached(*value));
        let others = after.iter().filter(|(raw, value)| *value > 0 && *raw != self.bound.raw);
        let (waits, values): (Vec<_>, Vec<_>) = others.copied().chain(before).unzip();
        let value = *issued + 1;
        let (signals, signalled) = ([self.bound.raw], [value]);
        let mut timeline =
            vk::TimelineSemaphoreSubmitInfo::default().wait_semaphore_values(&values).signal_semaphore_values(&signalled);
        let info = [vk::BindSparseInfo::default()
            .wait_semaphores(&waits)
            .buffer_binds(&infos)
            .signal_semaphores(&signals)
            .push_next(&mut timeline)];
        let queue = self.queue.lock();
        // SAFETY: buffers and memory of this device, inside their bounds; the queue is locked.
        unsafe { self.raw.device.queue_bind_sparse(*queue, &info, vk::Fence::null()) }
            .map_err(self.raw.failed("vkQueueBindSparse"))?;
        *issued = value;
        Ok(Point { queue: TABLE, value })
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for buffer in state.entries.take().map(|r| r.buffer).chain(state.ending.drain(..).map(|e| e.1)) {
            // SAFETY: the device is idle, as its owner has seen to.
            unsafe { self.raw.device.destroy_buffer(buffer, None) };
        }
    }
}
