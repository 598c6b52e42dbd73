//! Memory of a device with page table *sparse*: frames that are grains of plain buffers, called chunks.
//!
//! **States:** a frame is free or handed out; a chunk is not there until one of its frames is handed out, and then stays.
//! **Lock:** `frames`, over bookkeeping of frames and over the driver's allocation of a chunk. Finding a frame takes none.

use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use gpu_allocator::MemoryLocation;
use parking_lot::Mutex;
use sterna_hal::{CopyEnd, CopyRun, DeviceError, Frames, Memory};
use sterna_host::frames::{FrameTable, Fresh};
use sterna_host::sys::{BLOCK, invalid, to_usize};

use crate::pool::{Buffer, Pool};

/// Bytes of a chunk.
const CHUNK: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Chunks {
    pool: Arc<Pool>,
    location: MemoryLocation,
    /// Memory types that sparse buffers take.
    types: u32,
    grain: u64,
    budget: u64,
    frames: Mutex<FrameTable>,
    /// Grains a chunk.
    per: u32,
    list: Vec<OnceLock<Arc<Buffer>>>,
}

impl Chunks {
    /// As many grains of `grain` bytes as are in the budget.
    pub(crate) fn new(pool: &Arc<Pool>, (location, types): (MemoryLocation, u32), grain: u64, budget: u64) -> Self {
        let grains = (budget / grain).clamp(1, u64::from(u32::MAX) / 2) as u32;
        let budget = u64::from(grains) * grain;
        let per = (CHUNK.min(budget) / grain) as u32;
        let list = (0..grains.div_ceil(per)).map(|_| OnceLock::new()).collect();
        let frames = Mutex::new(FrameTable::new(grains, (BLOCK / grain) as u32));
        Self { pool: Arc::clone(pool), location, types, grain, budget, frames, per, list }
    }

    pub(crate) fn grains(&self) -> u32 {
        (self.budget / self.grain) as u32
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory { budget: self.budget, in_use: u64::from(self.frames.lock().in_use()) * self.grain }
    }

    pub(crate) fn alloc(&self, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        let mut table = self.frames.lock();
        let (start, requested, budget) = (out.len(), u64::from(grains) * self.grain, self.budget);
        let exhausted = |table: &FrameTable| {
            let in_use = u64::from(table.in_use()) * self.grain;
            DeviceError::OutOfMemory { requested, in_use, budget }
        };
        if !table.alloc(grains, out, &mut Fresh::new()) {
            return Err(exhausted(&table));
        }
        // Made under the lock, so nobody else makes them.
        let had = self.make(&out[start..]).and_then(|()| self.have(&out[start..]));
        had.map_err(|e| {
            out.drain(start..).for_each(|f| table.free(f));
            e.unwrap_or_else(|| exhausted(&table))
        })
    }

    /// Makes the chunks of frames that are not there yet. Under the lock.
    fn make(&self, frames: &[Frames]) -> Result<(), Option<DeviceError>> {
        let per = self.per;
        for chunk in frames.iter().flat_map(|f| f.first / per..(f.first + f.grains).div_ceil(per)) {
            if self.list[chunk as usize].get().is_some() {
                continue;
            }
            let bytes = (self.budget - u64::from(chunk * per) * self.grain).min(u64::from(per) * self.grain);
            let made = self.pool.chunk(bytes, self.location, "frames", self.types, self.grain)?;
            let _ = self.list[chunk as usize].set(Arc::new(made));
        }
        Ok(())
    }

    /// Sees to it that there is memory for frames; `None` says that the machine has none.
    fn have(&self, frames: &[Frames]) -> Result<(), Option<DeviceError>> {
        for f in frames {
            for (chunk, at, bytes) in self.stretches(f.first, u64::from(f.grains) * self.grain)? {
                chunk.have(at, bytes).map_err(|_| None)?;
            }
        }
        Ok(())
    }

    pub(crate) fn free(&self, frames: &[Frames]) {
        let mut table = self.frames.lock();
        frames.iter().for_each(|f| table.free(*f));
    }

    /// Where frames are: the chunk, and the offset within. Runs do not go beyond a chunk: see [`cut`](Self::cut).
    pub(crate) fn locate(&self, first: u32, offset: u64, bytes: u64) -> Result<(Arc<Buffer>, u64), DeviceError> {
        let outside = || invalid("copy", format!("{bytes} bytes at {offset} behind grain {first} are outside the memory"));
        let at = (u64::from(first) * self.grain).checked_add(offset).ok_or_else(outside)?;
        let per = u64::from(self.per) * self.grain;
        let chunk = self.list.get(to_usize(at / per)).and_then(OnceLock::get).ok_or_else(outside)?;
        if at.checked_add(bytes).is_none_or(|end| end > self.budget) || at % per + bytes > per {
            return Err(outside());
        }
        Ok((Arc::clone(chunk), at % per))
    }

    /// Where the host reaches frames, on a device whose memory is mapped.
    pub(crate) fn pointer(&self, first: u32, offset: u64, bytes: u64) -> Result<NonNull<u8>, DeviceError> {
        let (chunk, at) = self.locate(first, offset, bytes)?;
        let mapped = chunk.mapped.ok_or_else(|| invalid("copy", "this memory is not mapped"))?;
        // SAFETY: inside the buffer, all of which is mapped and stays as long as the device.
        Ok(unsafe { mapped.add(to_usize(at)) })
    }

    /// Bytes from there to the end of the chunk.
    fn left(&self, first: u32, offset: u64) -> u64 {
        let per = u64::from(self.per) * self.grain;
        per - (u64::from(first) * self.grain).saturating_add(offset) % per
    }

    /// The runs, none of which goes beyond a chunk.
    pub(crate) fn cut(&self, runs: &[CopyRun]) -> Vec<CopyRun> {
        let left = |p: CopyEnd| match p {
            CopyEnd::Frames { first, offset } => self.left(first, offset),
            _ => u64::MAX,
        };
        let mut out = Vec::with_capacity(runs.len());
        for run in runs {
            let (mut from, mut to, mut bytes) = (run.from, run.to, run.bytes);
            if bytes > self.budget {
                out.push(*run); // of no frames here, as whoever looks for them says
                continue;
            }
            while bytes > 0 {
                let n = bytes.min(left(from)).min(left(to));
                out.push(CopyRun { from, to, bytes: n });
                for place in [&mut from, &mut to] {
                    match place {
                        CopyEnd::Frames { offset, .. } => *offset = offset.saturating_add(n),
                        CopyEnd::Host(at) => at.offset = at.offset.saturating_add(n),
                        CopyEnd::Zero => {}
                    }
                }
                bytes -= n;
            }
        }
        out
    }

    /// The chunks that frames from `first` on are in: each with the offset within, and so many bytes.
    pub(crate) fn stretches(&self, first: u32, bytes: u64) -> Result<Vec<(Arc<Buffer>, u64, u64)>, DeviceError> {
        let (mut offset, mut out) = (0, Vec::new());
        while offset < bytes {
            let n = self.left(first, offset).min(bytes - offset);
            let (chunk, at) = self.locate(first, offset, n)?;
            out.push((chunk, at, n));
            offset += n;
        }
        Ok(out)
    }
}
