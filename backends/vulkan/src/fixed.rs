//! Page table *fixed*: one contiguous buffer a reservation, whose frames are its own.
//!
//! **Guarantee:** addresses and frames run alike: frame *n* of a reservation lies *n* grains behind its address. Reserving takes
//! the memory, within a budget of our own. **States:** a reservation is there or not. **Lock:** `state`, for look-ups; never over
//! a call of the driver.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use gpu_allocator::MemoryLocation;
use parking_lot::Mutex;
use sterna_hal::{DevAddr, DevRange, DeviceError, Edit, Frames, Memory, Target};
use sterna_host::sys::{invalid, to_usize};

use crate::pool::{Buffer, Pool};

#[derive(Debug)]
pub(crate) struct Fixed {
    pool: Arc<Pool>,
    location: MemoryLocation,
    /// The unit in which memory is counted, in bytes.
    grain: u64,
    budget: u64,
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_use: u64,
    by_address: BTreeMap<u64, Arc<Reservation>>,
    by_frame: BTreeMap<u32, Arc<Reservation>>,
}

/// A buffer with its place among addresses and frames.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) buffer: Arc<Buffer>,
    /// Its first address: the buffer's, rounded up to a grain.
    at: u64,
    bytes: u64,
    first: u32,
    grains: u32,
}

impl Reservation {
    /// Bytes from the buffer's start to the first address.
    fn skip(&self) -> u64 {
        self.at - self.buffer.address
    }
}

impl State {
    fn of(&self, call: &'static str, range: DevRange) -> Result<&Arc<Reservation>, DeviceError> {
        let found = self.by_address.range(..=range.at.0).next_back().map(|(_, r)| r);
        let inside = |r: &&Arc<Reservation>| range.at.0.checked_add(range.bytes).is_some_and(|end| end <= r.at + r.bytes);
        found.filter(inside).ok_or_else(|| invalid(call, format!("{range:x?} is outside every reservation")))
    }
}

impl Fixed {
    pub(crate) fn new(pool: Arc<Pool>, location: MemoryLocation, grain: u64, budget: u64, longest: u64) -> Self {
        let budget = (budget / grain).clamp(1, u64::from(u32::MAX) / 2) * grain;
        // The buffer is a grain longer than what is reserved, for the alignment.
        let limit = (longest.saturating_sub(grain) & !(grain - 1)).min(budget);
        Self { pool, location, grain, budget, limit, state: Mutex::default() }
    }

    pub(crate) fn max_reservation(&self) -> u64 {
        self.limit
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory { budget: self.budget, in_use: self.state.lock().in_use }
    }

    pub(crate) fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        if bytes > self.limit {
            return Err(DeviceError::TooBig { requested: bytes, limit: self.limit });
        }
        let whole = bytes.max(1).next_multiple_of(self.grain);
        let exhausted = |in_use| DeviceError::OutOfMemory { requested: whole, in_use, budget: self.budget };
        {
            let mut state = self.state.lock();
            if whole > self.budget - state.in_use {
                return Err(exhausted(state.in_use));
            }
            state.in_use += whole;
        }
        let made = self.pool.buffer(whole + self.grain, self.location, "shared allocation");
        let mut state = self.state.lock();
        let buffer = made.map_err(|e| {
            state.in_use -= whole;
            match e {
                DeviceError::OutOfMemory { .. } => exhausted(state.in_use),
                e => e,
            }
        })?;
        let grains = (whole / self.grain) as u32;
        let at = buffer.address.next_multiple_of(self.grain);
        let first = gap(&state.by_frame, grains);
        let made = Arc::new(Reservation { buffer: Arc::new(buffer), at, bytes: whole, first, grains });
        state.by_address.insert(at, Arc::clone(&made));
        state.by_frame.insert(first, made);
        Ok(DevRange { at: DevAddr(at), bytes })
    }

    pub(crate) fn unreserve(&self, range: DevRange) {
        let gone = {
            let mut state = self.state.lock();
            let gone = state.by_address.remove(&range.at.0);
            debug_assert!(gone.is_some(), "{range:?} is not of this device");
            if let Some(r) = &gone {
                state.by_frame.remove(&r.first);
                state.in_use -= r.bytes;
            }
            gone
        };
        // The memory goes back to the driver without the lock.
        drop(gone);
    }

    /// The reservation that has `range`.
    pub(crate) fn of(&self, call: &'static str, range: DevRange) -> Result<Arc<Reservation>, DeviceError> {
        self.state.lock().of(call, range).cloned()
    }

    /// Refuses what no reservation has.
    pub(crate) fn covers(&self, call: &'static str, range: DevRange) -> Result<(), DeviceError> {
        self.state.lock().of(call, range).map(drop)
    }

    pub(crate) fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        let r = self.of("alloc", DevRange { at: place, bytes: u64::from(grains) * self.grain })?;
        if grains > 0 {
            out.push(Frames { first: r.first + ((place.0 - r.at) / self.grain) as u32, grains });
        }
        Ok(())
    }

    /// Entries are what they are: an edit changes nothing, and one that would is refused.
    pub(crate) fn check(&self, edit: &Edit) -> Result<(), DeviceError> {
        let r = self.of("edit", edit.at)?;
        let uneven = |n: u64| !n.is_multiple_of(self.grain);
        if edit.at.bytes == 0 || uneven(edit.at.at.0) || uneven(edit.at.bytes) {
            return Err(invalid("edit", format!("{:x?} is not made of grains of {}", edit.at, self.grain)));
        }
        match edit.to {
            Target::Absent => Ok(()),
            Target::Frames { first } if first == r.first + ((edit.at.at.0 - r.at) / self.grain) as u32 => Ok(()),
            Target::Frames { first } => Err(invalid("edit", format!("frame {first} does not belong to {:x?}", edit.at.at))),
            Target::Host(_) => Err(invalid("edit", "this device cannot map host storage")),
        }
    }

    /// Where frames are: the buffer, and the offset within.
    pub(crate) fn locate(&self, first: u32, offset: u64, bytes: u64) -> Result<(Arc<Buffer>, u64), DeviceError> {
        let state = self.state.lock();
        let outside = || invalid("copy", format!("{bytes} bytes at {offset} behind grain {first} are outside the memory"));
        let r = state.by_frame.range(..=first).next_back().map(|(_, r)| r).filter(|r| first - r.first < r.grains);
        let r = r.ok_or_else(outside)?;
        let at = (u64::from(first - r.first) * self.grain).checked_add(offset).ok_or_else(outside)?;
        if at.checked_add(bytes).is_none_or(|end| end > r.bytes) {
            return Err(outside());
        }
        Ok((Arc::clone(&r.buffer), r.skip() + at))
    }

    /// Where the host reaches frames, on a device whose memory is mapped.
    pub(crate) fn pointer(&self, first: u32, offset: u64, bytes: u64) -> Result<NonNull<u8>, DeviceError> {
        let (buffer, at) = self.locate(first, offset, bytes)?;
        let mapped = buffer.mapped.ok_or_else(|| invalid("copy", "this memory is not mapped"))?;
        // SAFETY: inside the buffer, all of which is mapped.
        Ok(unsafe { mapped.add(to_usize(at)) })
    }
}

/// The lowest number from which so many frames are nobody's.
fn gap(taken: &BTreeMap<u32, Arc<Reservation>>, grains: u32) -> u32 {
    let mut next = 0;
    for (first, r) in taken {
        if first - next >= grains {
            break;
        }
        next = first + r.grains;
    }
    next
}
