//! What the threads of a device share: its timelines, the faults on demand, and whether it is lost.
//!
//! **Guarantee.** The device is lost at a moment when no group of a kernel runs on it: the references that a kernel has are to memory
//! that stays what it is until the kernel has ended, and whoever is told of the loss finds no kernel at work.
//!
//! **States:** those of [`Timeline`] and [`Triggers`]; and of the device: present → *losing* (a loss was asked for while groups were
//! running: none starts any more, everything else goes on, since those that run may need it) → lost. Changed by [`lose`](Signals::lose),
//! and by the worker that ends a launch. Who asks for the loss looks at `running` after it has set `losing`, who begins a launch at
//! `losing` after it has set `running`: one of them sees the other. No locks of its own.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
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
    /// A loss was asked for.
    losing: AtomicBool,
    /// Groups of a launch may be running.
    running: AtomicBool,
    /// The selector of the device, for messages.
    pub(crate) id: String,
}

impl Signals {
    pub(crate) fn new(id: String) -> Self {
        let (losing, running) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { queues: Default::default(), inject: Triggers::new(), losing, running, id }
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

    /// Asks for the loss of the device, which comes at once if no group is running, and else when those that run have ended.
    pub(crate) fn lose(&self) {
        self.losing.store(true, SeqCst);
        if !self.running.load(SeqCst) {
            self.is_gone();
        }
    }

    /// Set when a loss was asked for: groups that have not started do not start any more.
    pub(crate) fn losing_flag(&self) -> &AtomicBool {
        &self.losing
    }

    /// Groups of a launch are about to run; false: none may, and the device is lost. The one thread that carries out launches.
    pub(crate) fn begin(&self) -> bool {
        self.running.store(true, SeqCst);
        let may = !self.losing.load(SeqCst);
        if !may {
            self.end();
        }
        may
    }

    /// The groups of the launch that began have ended, all of them.
    pub(crate) fn end(&self) {
        self.running.store(false, SeqCst);
        if self.losing.load(SeqCst) {
            self.is_gone();
        }
    }

    fn is_gone(&self) {
        self.inject.set_lost();
        self.wake_everyone();
    }

    fn wake_everyone(&self) {
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
