//! The copy queue.
//!
//! **Guarantee:** a copy starts when its `after` points are reached and its own point is reached when all its bytes have
//! arrived; points are reached in the order of the calls. Bytes move between the base mapping of device memory and the bases of
//! host regions, never through a window, so a copy never faults on an absent page.
//!
//! **How:** a batch is cut into equal contiguous shares, one a thread; a share of one run is one `memcpy`, as long as can be, so that it uses
//! non-temporal stores. The threads start with the first batch and sleep while there is none. Where the system has none to give, whoever
//! asks for a copy makes it.
//!
//! **States of a batch:** queued (some share not taken), running (all taken), finished (all done), reached (and so are all
//! before it); or cut short by the device's loss, which holds up its point and all later ones for good. Changed by the threads, under the lock.
//! After a loss shares that are under way are copied to their end; [`wait_idle`](Copier::wait_idle) waits for them.
//!
//! **Locks:** `state`, for list operations only; never over a copy or a wait for other points. A thread that waits for `after`
//! holds up the batches behind it and nothing else: shares are taken in order, so whatever an `after` of this queue names is
//! done or in the hands of another thread.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;
use sterna_hal::{DeviceError, Point};

use crate::sys;

/// What the copier asks of the device that it belongs to. Whoever [queues](Copier::queue) a copy answers for what it says.
pub trait Owner: Send + Sync + std::fmt::Debug {
    /// Waits for all of `points`, or for the device's loss. On one of the copier's threads.
    fn wait_all(&self, points: &[Point]);
    /// Whether the device is lost.
    fn is_lost(&self) -> bool;
    /// Publishes that copy number `value` and all before it have arrived. Called in order.
    fn copied(&self, value: u64);
    /// How much later than its bytes a copy is to arrive.
    fn delay(&self) -> Duration {
        Duration::ZERO
    }
}

/// Up to this size a batch is copied by the caller: handing it over would take longer than it saves.
pub const INLINE: u64 = 1 << 20;

/// One run with its places resolved.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The source; `None` stands for zeros.
    pub from: Option<NonNull<u8>>,
    /// The destination.
    pub to: NonNull<u8>,
    /// How many.
    pub bytes: usize,
}

/// The runs of a batch.
pub type Pieces = SmallVec<[Piece; 4]>;

// SAFETY: addresses only; whoever copies, or queues a copy, has promised what they lead to.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    /// Copies bytes `start .. end` of the run.
    ///
    /// # Safety
    /// Both places are valid for the run's length and do not overlap; nobody else uses that part of the destination or writes
    /// that part of the source.
    pub unsafe fn copy(&self, start: usize, end: usize) {
        debug_assert!(start <= end && end <= self.bytes);
        // SAFETY: the caller's.
        unsafe {
            let to = self.to.add(start);
            match self.from {
                Some(from) => to.copy_from_nonoverlapping(from.add(start), end - start),
                None => to.write_bytes(0, end - start),
            }
        }
    }
}

#[derive(Debug)]
struct Batch {
    pieces: Pieces,
    total: usize,
    shares: u32,
    left: AtomicU32,
    /// Some share was not copied, since the device was lost.
    cut_short: AtomicBool,
    after: SmallVec<[Point; 4]>,
    value: u64,
}

impl Batch {
    /// # Safety
    /// Each share is done once; otherwise as [`sterna_hal::Device::copy`].
    unsafe fn copy_share(&self, share: u32) {
        let each = self.total.div_ceil(self.shares as usize).next_multiple_of(4096);
        let (start, end) = (each * share as usize, (each * (share as usize + 1)).min(self.total));
        let mut base = 0;
        for p in &self.pieces {
            let (from, to) = (start.max(base), end.min(base + p.bytes));
            if from < to {
                // SAFETY: shares are disjoint; the rest is the caller's.
                unsafe { p.copy(from - base, to - base) };
            }
            base += p.bytes;
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Batches with shares that nobody has taken.
    queued: VecDeque<Arc<Batch>>,
    /// The next share of the first queued batch.
    next_share: u32,
    /// Batches not yet reached, in order: value, and whether it is finished.
    unreached: VecDeque<(u64, bool)>,
    issued: u64,
    closing: bool,
    threads: Vec<JoinHandle<()>>,
}

/// The copy queue of a device.
#[derive(Debug)]
pub struct Copier {
    state: Mutex<State>,
    work: Condvar,
    /// Threads in the middle of a share.
    copying: AtomicU32,
    signals: Arc<dyn Owner>,
    queue: u32,
    threads: usize,
    name: String,
}

impl Copier {
    /// A copier with up to `threads` threads, whose points are of queue number `queue`.
    pub fn new(signals: Arc<dyn Owner>, queue: u32, threads: usize, name: String) -> Arc<Self> {
        let (work, copying) = (Condvar::new(), AtomicU32::new(0));
        Arc::new(Self { state: Mutex::default(), work, copying, signals, queue, threads, name })
    }

    /// Queues a batch that is not empty; `ready` says that `after` is reached.
    ///
    /// # Errors
    /// No thread can be started, and `after` is not reached: the caller may not wait for it.
    ///
    /// # Safety
    /// As [`Piece::copy`] for each piece, from when the owner says that `after` is reached until the point is.
    pub unsafe fn queue(self: &Arc<Self>, pieces: Pieces, after: &[Point], ready: bool) -> Result<Point, DeviceError> {
        let total: usize = pieces.iter().map(|p| p.bytes).sum();
        let mut state = self.state.lock();
        let alone = match self.start(&mut state) {
            Ok(()) => false,
            Err(_) if ready => true,
            Err(e) => return Err(e),
        };
        // No more shares than there are pages.
        let shares = state.threads.len().min(total.div_ceil(4096)).max(1) as u32;
        state.issued += 1;
        let value = state.issued;
        let (left, after) = (AtomicU32::new(shares), SmallVec::from_slice(after));
        let cut_short = AtomicBool::new(false);
        let batch = Arc::new(Batch { pieces, total, shares, left, cut_short, after, value });
        state.unreached.push_back((value, false));
        if alone {
            drop(state);
            self.carry_out(&batch, 0); // the only share
        } else {
            state.queued.push_back(batch);
            drop(state);
            self.work.notify_all();
        }
        Ok(Point { queue: self.queue, value })
    }

    fn start(self: &Arc<Self>, state: &mut State) -> Result<(), DeviceError> {
        while state.threads.len() < self.threads {
            let this = Arc::clone(self);
            let name = format!("{}-c{}", self.name, state.threads.len());
            match sys::spawn(name, move || this.work()) {
                Ok(thread) => state.threads.push(thread),
                // Fewer threads do as well, if slower.
                Err(_) if !state.threads.is_empty() => break,
                Err(e) => return Err(sys::no_thread(&e)),
            }
        }
        Ok(())
    }

    fn work(&self) {
        while let Some((batch, share)) = self.take() {
            self.signals.wait_all(&batch.after);
            self.carry_out(&batch, share);
        }
    }

    /// Copies a share, of a batch whose `after` is reached, that the caller alone has taken.
    fn carry_out(&self, batch: &Batch, share: u32) {
        // Before the look at the device: see `wait_idle`.
        self.copying.fetch_add(1, Ordering::AcqRel);
        if self.signals.is_lost() {
            batch.cut_short.store(true, Ordering::Relaxed);
        } else {
            // SAFETY: this share was taken by this thread alone; places were checked, the rest is the promise of `copy`.
            unsafe { batch.copy_share(share) };
        }
        self.copying.fetch_sub(1, Ordering::AcqRel);
        // The bytes did not arrive, so neither this point nor a later one is ever reached: waits end by the loss.
        if batch.left.fetch_sub(1, Ordering::AcqRel) == 1 && !batch.cut_short.load(Ordering::Relaxed) {
            self.finish(batch);
        }
    }

    /// The next share, or `None` when the device is closing and nothing is left.
    fn take(&self) -> Option<(Arc<Batch>, u32)> {
        let mut state = self.state.lock();
        loop {
            if let Some(batch) = state.queued.front().cloned() {
                let share = state.next_share;
                state.next_share += 1;
                if state.next_share == batch.shares {
                    state.queued.pop_front();
                    state.next_share = 0;
                }
                return Some((batch, share));
            }
            if state.closing {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    fn finish(&self, batch: &Batch) {
        let delay = self.signals.delay();
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let mut state = self.state.lock();
        if let Some(entry) = state.unreached.iter_mut().find(|e| e.0 == batch.value) {
            entry.1 = true;
        }
        let mut reached = None;
        while let Some((value, true)) = state.unreached.front() {
            reached = Some(*value);
            state.unreached.pop_front();
        }
        // Under the lock, so that values are published in order.
        if let Some(value) = reached {
            self.signals.copied(value);
        }
    }

    /// Waits until no thread moves bytes any more. For a lost device, whose waits end before its copies: afterwards nothing is written
    /// that was to be copied.
    pub fn wait_idle(&self) {
        // A write, so that a thread which begins later sees what this one has seen: the loss.
        while self.copying.fetch_add(0, Ordering::AcqRel) > 0 {
            std::thread::yield_now();
        }
    }

    /// The number of the last copy that was asked for.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.state.lock().issued
    }

    /// Finishes what is queued and ends the threads.
    pub fn close(&self) {
        let threads = {
            let mut state = self.state.lock();
            state.closing = true;
            std::mem::take(&mut state.threads)
        };
        self.work.notify_all();
        for thread in threads {
            // The threads run no code that panics; there is nobody to tell if one did.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Device(AtomicBool);

    impl Owner for Device {
        fn wait_all(&self, _: &[Point]) {}
        fn is_lost(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
        fn copied(&self, _: u64) {}
    }

    #[test]
    fn after_a_loss_and_settling_nothing_is_written() {
        const N: usize = 64 << 20;
        for _ in 0..2 {
            let device = Arc::new(Device::default());
            let copier = Copier::new(Arc::clone(&device) as _, 0, 2, "test".into());
            let (from, mut to) = (vec![1_u8; N], vec![0_u8; N]);
            let (first, last) = (NonNull::from(&mut to[0]), NonNull::from(&mut to[N - 1]));
            let piece = Piece { from: Some(NonNull::from(&from[0])), to: first, bytes: N };
            // SAFETY: the vectors live, and are looked at through pointers until the copies have settled.
            unsafe { copier.queue(std::iter::once(piece).collect(), &[], true) }.unwrap();
            // SAFETY: bytes of the vector, which lives; the copy writes them meanwhile, hence volatile.
            let read = |p: NonNull<u8>| unsafe { p.read_volatile() };
            while read(first) == 0 && read(last) == 0 {}
            device.0.store(true, Ordering::SeqCst);
            copier.wait_idle();
            to.fill(2);
            std::thread::sleep(Duration::from_millis(30));
            assert!(to.iter().all(|b| *b == 2), "a copy went on");
            copier.close();
        }
    }
}
