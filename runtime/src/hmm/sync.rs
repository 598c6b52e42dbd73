//! The seam to other threads, for the parts of the engine that are model-checked: here the real thing; `runtime/models` compiles
//! the same files over a checker's.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};

pub(crate) use parking_lot::{Condvar, Mutex};

/// How often a lock that is held is looked at before its taker sleeps.
pub(crate) const SPINS: u32 = 100;
