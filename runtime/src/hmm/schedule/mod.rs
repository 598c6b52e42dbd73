//! Points at which another thread may go next.
//!
//! **Guarantee.** Without the feature `planted` every function here is empty. With it, and only while [`run`] runs, the threads that
//! take part go one at a time, and a seed decides at each point which one: the engine's own code over the kernel's own
//! mechanisms, in an order that can be repeated.
//!
//! Points stand where the order of threads matters: before a lock of the engine is taken, after it is opened, and wherever the engine
//! would sleep.

#[cfg(feature = "planted")]
mod turns;

#[cfg(feature = "planted")]
pub use turns::{Report, point, run};

/// A thread of the engine that others may be waiting for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    /// The service thread of host faults.
    Host,
    /// The thread that serves device faults.
    Devices,
    /// A runtime's scheduler: the thread of its device of this number.
    Scheduler(
        #[cfg_attr(not(feature = "planted"), expect(dead_code, reason = "without schedules there are no seats"))] usize,
    ),
}

/// For the first line of a thread of the engine; it takes part in every schedule until the value is dropped.
#[derive(Debug)]
pub(crate) struct Serving;

#[cfg(not(feature = "planted"))]
mod without {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use parking_lot::{Condvar, MutexGuard};

    use super::{Server, Serving};

    #[inline(always)]
    pub(crate) fn point() {}

    impl Serving {
        #[inline(always)]
        pub(crate) fn begin(_: Server) -> Self {
            Self
        }
    }

    #[inline(always)]
    pub(crate) fn sleeps(_: &AtomicU32, _: u32, timeout: &mut Option<Duration>) -> bool {
        let _ = timeout;
        false
    }

    #[inline(always)]
    pub(crate) fn until(_: impl Fn() -> bool) {}

    #[inline(always)]
    pub(crate) fn clock(real: u64) -> u64 {
        real
    }

    pub(crate) fn wait<T>(changed: &Condvar, state: &mut MutexGuard<'_, T>) {
        changed.wait(state);
    }

    pub(crate) fn wait_for<T>(changed: &Condvar, state: &mut MutexGuard<'_, T>, timeout: Duration) {
        changed.wait_for(state, timeout);
    }

    #[inline(always)]
    pub(crate) fn gives_way<T>(_: &mut MutexGuard<'_, T>) -> bool {
        false
    }
}

#[cfg(not(feature = "planted"))]
pub(crate) use without::*;

#[cfg(feature = "planted")]
pub(crate) use turns::{clock, gives_way, sleeps, until, wait, wait_for};
