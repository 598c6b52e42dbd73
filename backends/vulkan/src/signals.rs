//! The timelines of a device: launches and edits on the driver's, copies on the host's.
//!
//! **Guarantee:** a copy's value is reached on the host's timeline first, then on a semaphore, so that launches can wait for it
//! without a thread of ours. A lost device ends every wait. **Lock:** `signalled`, around one signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ash::vk;
use parking_lot::Mutex;
use smallvec::SmallVec;
use sterna_hal::{DeviceError, Point};
use sterna_host::copy::Owner;
use sterna_host::sys::invalid;
use sterna_host::timeline::{Timeline, Waited};

use crate::error::VulkanError;
use crate::launch::{COMPUTE, COPY, Compute, TABLE};
use crate::raw::Raw;

/// How soon a thread that waits in the driver looks whether the device is lost.
const PIECE: Duration = Duration::from_millis(200);

/// A timeline that the device reaches, destroyed with its other things.
#[derive(Debug)]
pub(crate) struct Semaphore {
    pub(crate) raw: vk::Semaphore,
    /// The highest value that it was seen at.
    seen: AtomicU64,
    device: Arc<Raw>,
}

impl Semaphore {
    pub(crate) fn new(device: &Arc<Raw>) -> Result<Self, VulkanError> {
        Ok(Self { raw: device.semaphore()?, seen: AtomicU64::new(0), device: Arc::clone(device) })
    }

    /// Whether it was seen there: costs no call of the driver, and 0 always is.
    fn was_reached(&self, value: u64) -> bool {
        self.seen.load(Ordering::Acquire) >= value
    }

    pub(crate) fn is_reached(&self, value: u64) -> bool {
        if self.was_reached(value) {
            return true;
        }
        // SAFETY: a semaphore of this device.
        match unsafe { self.device.device.get_semaphore_counter_value(self.raw) } {
            Ok(now) => {
                self.seen.fetch_max(now, Ordering::AcqRel);
                now >= value
            }
            Err(code) => {
                self.device.failed("vkGetSemaphoreCounterValue")(code);
                false
            }
        }
    }

    /// Waits for `value`, at most so many nanoseconds.
    pub(crate) fn wait(&self, value: u64, nanos: u64) -> Result<bool, DeviceError> {
        let (semaphores, values) = ([self.raw], [value]);
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: a semaphore of this device.
        match unsafe { self.device.device.wait_semaphores(&info, nanos) } {
            Ok(()) => {
                self.seen.fetch_max(value, Ordering::AcqRel);
                Ok(true)
            }
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(code) => Err(self.device.failed("vkWaitSemaphores")(code)),
        }
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: the device is idle, as its owner has seen to.
        unsafe { self.device.device.destroy_semaphore(self.raw, None) };
    }
}

#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) compute: Compute,
    copies: Timeline,
    copied: Arc<Semaphore>,
    /// Edits of a page table that is edited on a queue.
    bound: Arc<Semaphore>,
    /// The semaphore's value: it must grow with each signal.
    signalled: Mutex<u64>,
    pub(crate) raw: Arc<Raw>,
}

impl Signals {
    pub(crate) fn new(raw: &Arc<Raw>, compute: Compute, [copied, bound]: [Arc<Semaphore>; 2]) -> Self {
        Self { compute, copies: Timeline::default(), copied, bound, signalled: Mutex::new(0), raw: Arc::clone(raw) }
    }

    /// Refuses points of queues that do not exist.
    pub(crate) fn check(&self, call: &'static str, points: &[Point]) -> Result<(), DeviceError> {
        match points.iter().find(|p| p.queue > TABLE) {
            Some(p) => Err(invalid(call, format!("{p:?} is of no queue of this device"))),
            None => Ok(()),
        }
    }

    pub(crate) fn reached(&self, point: Point) -> bool {
        point.value == 0
            || match point.queue {
                COMPUTE => self.compute.done.is_reached(point.value),
                COPY => self.copies.is_reached(point.value),
                TABLE => self.bound.is_reached(point.value),
                _ => false,
            }
    }

    pub(crate) fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        let on = match point.queue {
            COMPUTE => &self.compute.done,
            TABLE => &self.bound,
            _ if self.reached(point) => return Ok(true),
            _ => {
                return match self.copies.wait(point.value, Some(timeout), self.raw.lost_flag()) {
                    Waited::Reached => Ok(true),
                    Waited::TimedOut => Ok(false),
                    Waited::Lost => Err(self.raw.loss()),
                };
            }
        };
        // In pieces: nobody wakes a thread that waits in a driver whose device another thread has found to be lost.
        let mut left = timeout;
        loop {
            if on.was_reached(point.value) {
                return Ok(true);
            }
            if self.raw.is_lost() {
                return if on.is_reached(point.value) { Ok(true) } else { Err(self.raw.loss()) };
            }
            let piece = left.min(PIECE);
            if on.wait(point.value, piece.as_nanos() as u64)? {
                return Ok(true);
            }
            left -= piece;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Ends every wait: the device is lost. Launches behind copies that will not come are let go.
    pub(crate) fn let_go(&self, issued: u64) {
        self.copies.wake_all();
        self.signal(issued);
    }

    /// What a submission to the driver waits for, so that it comes behind `after`.
    pub(crate) fn waits(&self, after: &[Point]) -> SmallVec<[(vk::Semaphore, u64); 3]> {
        let mut waits: SmallVec<[(vk::Semaphore, u64); 3]> = SmallVec::new();
        for p in after.iter().filter(|p| !self.reached(**p)) {
            let on = match p.queue {
                COMPUTE => &self.compute.done,
                COPY => &self.copied,
                _ => &self.bound,
            };
            match waits.iter_mut().find(|(raw, _)| *raw == on.raw) {
                Some((_, value)) => *value = p.value.max(*value),
                None => waits.push((on.raw, p.value)),
            }
        }
        waits
    }

    fn signal(&self, value: u64) {
        let mut last = self.signalled.lock();
        // A loss may have signalled more than was reached.
        if value <= *last {
            return;
        }
        *last = value;
        let info = vk::SemaphoreSignalInfo::default().semaphore(self.copied.raw).value(value);
        // SAFETY: a timeline semaphore of this device, signalled by the host alone and in order.
        if let Err(code) = unsafe { self.raw.device.signal_semaphore(&info) } {
            self.raw.failed("vkSignalSemaphore")(code);
        }
    }
}

impl Owner for Signals {
    fn wait_all(&self, points: &[Point]) {
        for p in points {
            // A lost device ends the wait, which the copier sees for itself; whatever else keeps this thread from sleeping in the
            // driver does not.
            while !self.reached(*p) && !self.raw.is_lost() {
                if self.wait(*p, Duration::from_secs(3600)).is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.raw.is_lost()
    }

    fn copied(&self, value: u64) {
        self.copies.reach(value);
        self.signal(value);
    }
}
