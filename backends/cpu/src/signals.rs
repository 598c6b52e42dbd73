//! What the threads of a device share: its timelines, the faults on demand, and whether it is lost.
//!
//! **States:** those of [`Timeline`] and [`Triggers`]. No locks of its own.

use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use sterna_hal::{DeviceError, Point};
use sterna_host::copy::Owner;
use sterna_host::sys;
use sterna_host::timeline::Timeline;

use crate::inject::Triggers;

/// The queue that runs launches.
pub(crate) const COMPUTE: u32 = 0;
/// The queue of copies that are not done at once.
pub(crate) const COPY: u32 = 1;

/// Both timelines of a device and whether it is lost: what its threads share.
#[derive(Debug)]
pub(crate) struct Signals {
    queues: [Timeline; 2],
    pub(crate) inject: Triggers,
    /// The selector of the device, for messages.
    pub(crate) id: String,
}

impl Signals {
    pub(crate) fn new(id: String) -> Self {
        Self { queues: Default::default(), inject: Triggers::new(), id }
    }

    pub(crate) fn compute(&self) -> &Timeline {
        &self.queues[COMPUTE as usize]
    }

    pub(crate) fn copy(&self) -> &Timeline {
        &self.queues[COPY as usize]
    }

    pub(crate) fn queue(&self, point: Point) -> Option<&Timeline> {
        self.queues.get(point.queue as usize)
    }

    /// Refuses points of queues that do not exist.
    pub(crate) fn check_points(&self, call: &'static str, points: &[Point]) -> Result<(), DeviceError> {
        match points.iter().find(|p| self.queue(**p).is_none()) {
            Some(p) => Err(sys::invalid(call, format!("{p:?} is of no queue of this device"))),
            None => Ok(()),
        }
    }

    pub(crate) fn all_reached(&self, points: &[Point]) -> bool {
        points.iter().all(|p| self.queue(*p).is_some_and(|q| q.is_reached(p.value)))
    }

    /// Waits for all of `points`, or for the device's loss. For this device's own threads.
    pub(crate) fn wait_for_all(&self, points: &[Point]) {
        for p in points {
            if let Some(q) = self.queue(*p) {
                q.wait(p.value, None, self.inject.lost_flag());
            }
        }
    }

    pub(crate) fn lost(&self) -> bool {
        self.inject.lost_flag().load(Acquire)
    }

    pub(crate) fn loss(&self) -> String {
        format!("{} was taken away", self.id)
    }

    pub(crate) fn wake_everyone(&self) {
        for q in &self.queues {
            q.wake_all();
        }
    }
}

impl Owner for Signals {
    fn wait_all(&self, points: &[Point]) {
        self.wait_for_all(points);
    }

    fn is_lost(&self) -> bool {
        self.lost()
    }

    fn copied(&self, value: u64) {
        self.copy().reach(value);
    }

    fn delay(&self) -> Duration {
        self.inject.delay()
    }
}
