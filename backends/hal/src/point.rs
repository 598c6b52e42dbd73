//! Timelines: when something has happened, and how a launch ended.

use crate::{Access, DevAddr, KernelError};

/// A point on one queue's timeline.
///
/// Points of one queue are reached in order; a point with `value` 0 is always reached. Reaching a point makes every byte that
/// was written before it visible to plain loads of the host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Point {
    /// Index into [`Caps::queues`](crate::Caps::queues).
    pub queue: u32,
    /// Position on its timeline.
    pub value: u64,
}

impl Point {
    /// The point that is always reached: what a call returns that was done when it returned.
    pub const REACHED: Self = Self { queue: 0, value: 0 };
}

/// A submitted launch. A backend makes it in [`submit`](crate::Device::submit); what it gives access to, the launch's outcome, is only
/// for whoever submitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    id: u64,
    point: Point,
}

impl Ticket {
    /// The ticket of a launch with this number, which the device never uses again, and of the point that is reached when it has ended.
    #[must_use]
    pub const fn new(id: u64, point: Point) -> Self {
        Self { id, point }
    }

    /// The device's own number for it.
    #[must_use]
    pub const fn id(self) -> u64 {
        self.id
    }

    /// Reached when the launch has ended.
    #[must_use]
    pub const fn point(self) -> Point {
        self.point
    }
}

/// How a launch ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every group ran.
    Done,
    /// The kernel failed; what it would have written is undefined.
    Failed(KernelError),
    /// [`Absent::Reports`](crate::Absent::Reports): these groups (linear numbers) are to be submitted again once the faults
    /// reported beside it are served. They have written nothing.
    Missed(Vec<u32>),
}

/// A device access that found no entry, or one that forbids it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Where.
    pub at: DevAddr,
    /// What the access wanted.
    pub access: Access,
    /// Which worker, for telling a refault from a neighbour's fault.
    pub who: u64,
}

/// Faults that came together.
pub type FaultBatch = Vec<Fault>;
