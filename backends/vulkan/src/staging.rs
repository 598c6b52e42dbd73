//! The queue of copies by the device, for memory that the host's processors do not reach: straight from and to host storage where that
//! is imported, else through staging buffers.
//!
//! **Guarantee:** that of [`Device::copy`](sterna_hal::Device::copy): a batch starts when its points are reached, and its own is
//! reached when all its bytes have arrived. Imports are kept until the copies that use them have ended.
//!
//! **How:** one thread takes the batches in order and carries them through a [ring of stages](crate::stages). It begins a batch while
//! those before are under way: batches that have no order by their points touch nothing of each other.
//!
//! **States of a batch:** queued, begun, arrived; or cut short by the device's loss. **Lock:** `queue`, for list operations; the
//! driver's queue over one submission.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;
use sterna_hal::{CopyEnd, CopyRun, DeviceError, Point};
use sterna_host::copy::Owner;
use sterna_host::regions::Regions;
use sterna_host::sys::invalid;

use crate::imports::Imports;
use crate::launch::COPY;
use crate::pool::Pool;
use crate::raw::Raw;
use crate::stage::{End, Run};
use crate::stages::Stages;
use crate::table::Table;

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
    /// The thread has a batch, or one is under way.
    busy: bool,
    closing: bool,
    thread: Option<JoinHandle<()>>,
}

/// The copy queue of a device with staging.
#[derive(Debug)]
pub(crate) struct Stager {
    queue: Mutex<Queue>,
    work: Condvar,
    /// For who waits until the thread has nothing.
    idle: Condvar,
    raw: Arc<Raw>,
    pool: Arc<Pool>,
    pub(crate) imports: Option<Arc<Imports>>,
    owner: Arc<dyn Owner>,
}

impl Stager {
    /// With `imports` host storage is reached where it is, as far as it can be imported.
    pub(crate) fn new(raw: &Arc<Raw>, pool: &Arc<Pool>, imports: Option<Arc<Imports>>, owner: Arc<dyn Owner>) -> Arc<Self> {
        let (raw, pool) = (Arc::clone(raw), Arc::clone(pool));
        Arc::new(Self { queue: Mutex::default(), work: Condvar::new(), idle: Condvar::new(), raw, pool, imports, owner })
    }

    pub(crate) fn copy(
        self: &Arc<Self>,
        table: &Table,
        regions: &Regions,
        runs: &[CopyRun],
        after: &[Point],
    ) -> Result<Point, DeviceError> {
        let look = regions.look();
        let end = |place: CopyEnd, bytes: u64| match place {
            CopyEnd::Frames { first, offset } => table.locate(first, offset, bytes).map(|(b, at)| End::Device(b, at)),
            CopyEnd::Host(at) => look.host("copy", at, bytes).map(|p| End::Host(p, at)),
            CopyEnd::Zero => Ok(End::Zero),
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
            let stages = Stages::new(&self.raw, &self.pool, self.imports.clone(), Some(Arc::clone(&self.owner)))?;
            let this = Arc::clone(self);
            let named = std::thread::Builder::new().name("sterna-vk-copy".into());
            let started = named.spawn(move || this.run(stages));
            queue.thread = Some(started.map_err(|e| sterna_host::sys::no_thread(&e))?);
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
            let next = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(batch) = queue.batches.pop_front() {
                        queue.busy = true;
                        break Some(batch);
                    }
                    if stages.under_way() {
                        break None;
                    }
                    queue.busy = false;
                    self.idle.notify_all();
                    if queue.closing {
                        return;
                    }
                    self.work.wait(&mut queue);
                }
            };
            let done = match next {
                Some(batch) => self.begin(&mut stages, &batch),
                None => stages.empty_oldest_stage(),
            };
            // The bytes of a batch that failed did not arrive, so neither its point nor a later one is ever reached: the device
            // counts as lost, and waits end by that.
            if done.is_err() {
                self.raw.lose();
                // Those before it may have arrived. A device that says itself that it is lost does nothing any more.
                let _ = stages.finish();
                stages.give_up();
            }
        }
    }

    fn begin(&self, stages: &mut Stages, batch: &Batch) -> Result<(), DeviceError> {
        if !batch.after.is_empty() {
            // They may be copies of this queue.
            stages.finish()?;
            self.owner.wait_all(&batch.after);
        }
        if self.owner.is_lost() { Err(self.raw.loss()) } else { stages.carry(&batch.runs, batch.value) }
    }

    /// After the device's loss: waits until no copy touches memory of the host any more.
    pub(crate) fn wait_idle(&self) {
        let mut queue = self.queue.lock();
        while queue.busy || !queue.batches.is_empty() {
            self.idle.wait(&mut queue);
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use gpu_allocator::MemoryLocation;
    use sterna_hal::HostAt;
    use sterna_host::storage::Storage;
    use sterna_host::sys::BLOCK;

    use super::*;
    use crate::fixed::Fixed;

    const BYTES: u64 = 4096;

    /// A device whose points are reached when the test says so.
    #[derive(Debug, Default)]
    struct Later {
        state: Mutex<State>,
        changed: Condvar,
    }

    #[derive(Clone, Copy, Debug, Default)]
    struct State {
        waiting: bool,
        open: bool,
        lost: bool,
        copied: u64,
    }

    impl Later {
        fn set(&self, change: impl FnOnce(&mut State)) {
            change(&mut self.state.lock());
            self.changed.notify_all();
        }

        /// Whether that is so within five seconds.
        fn becomes(&self, what: impl Fn(&State) -> bool) -> bool {
            let end = Instant::now() + Duration::from_secs(5);
            let mut state = self.state.lock();
            while !what(&state) && Instant::now() < end {
                self.changed.wait_for(&mut state, Duration::from_millis(10));
            }
            what(&state)
        }
    }

    impl Owner for Later {
        fn wait_all(&self, _: &[Point]) {
            self.set(|s| s.waiting = true);
            assert!(self.becomes(|s| s.open));
        }

        fn is_lost(&self) -> bool {
            self.state.lock().lost
        }

        fn copied(&self, value: u64) {
            self.set(|s| s.copied = value);
        }
    }

    /// A copy from the first page of a block to the second, behind a point that is not reached.
    struct Begun {
        storage: Storage,
        later: Arc<Later>,
        stager: Arc<Stager>,
    }

    impl Begun {
        fn new() -> Option<Self> {
            let raw = crate::raw::any()?;
            let pool = Pool::new(&raw).unwrap();
            let (storage, regions, later) = (Storage::new(BLOCK).unwrap(), Regions::default(), Arc::new(Later::default()));
            // SAFETY: mapped from offset 0, and longer than the stager exists, which alone knows of it.
            let region = unsafe { regions.attach(storage.base(), storage.bytes(), storage.file()) }.unwrap();
            // SAFETY: inside the mapping, before anybody copies.
            unsafe { storage.base().write_bytes(7, BYTES as usize) };
            let table = Table::Fixed(Fixed::new(Arc::clone(&pool), MemoryLocation::GpuOnly, BLOCK, BLOCK, BLOCK));
            let stager = Stager::new(&raw, &pool, None, Arc::clone(&later) as _);
            let [from, to] = [0, BYTES].map(|offset| CopyEnd::Host(HostAt { region, offset }));
            let after = [Point { queue: crate::launch::COMPUTE, value: 1 }];
            stager.copy(&table, &regions, &[CopyRun { from, to, bytes: BYTES }], &after).unwrap();
            assert!(later.becomes(|s| s.waiting), "it did not wait for its point");
            Some(Self { storage, later, stager })
        }

        fn has_arrived(&self) -> bool {
            // SAFETY: inside the mapping; the copy's thread waits, or has ended its copy.
            unsafe { self.storage.base().add(BYTES as usize).read() == 7 }
        }
    }

    impl Drop for Begun {
        fn drop(&mut self) {
            self.later.set(|s| s.open = true);
            self.stager.close();
        }
    }

    #[test]
    fn a_copy_waits_for_its_points() {
        let Some(b) = Begun::new() else { return };
        assert!(!b.has_arrived());
        b.later.set(|s| s.open = true);
        assert!(b.later.becomes(|s| s.copied == 1) && b.has_arrived());
    }

    /// Whoever has been told of a device's loss frees the memory that its copies use.
    #[test]
    fn who_settles_waits_for_copies_that_have_begun() {
        let Some(b) = Begun::new() else { return };
        b.later.set(|s| s.lost = true);
        std::thread::scope(|s| {
            let settling = s.spawn(|| b.stager.wait_idle());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!settling.is_finished(), "while a copy was under way");
            b.later.set(|s| s.open = true);
        });
        assert!(!b.has_arrived(), "a copy of a lost device");
    }
}
