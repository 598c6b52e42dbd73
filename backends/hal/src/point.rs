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

/// A submitted launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The device's own number for it, never reused.
    pub id: u64,
    /// Reached when the launch has ended.
    pub point: Point,
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
