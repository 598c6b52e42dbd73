//! The engine's locks, and the proof that none is held while waiting.
//!
//! **Guarantee.** A thread that waits for a device, a copy, a fault or another thread's migration holds no engine lock. This
//! is a type rule, not a comment: everything that waits takes `&mut Free`, and every lock borrows the `Free` while it is held.
//!
//! **Order** (design: rules of waiting, 1): space, block, mirror (the driver lock), frame pool, queue. One block lock at a
//! time. A [`Futex`] is held for word operations and at most one system call.
//!
//! A fault handler has no `Free`: it takes block locks by [`Futex::lock`] directly, runs with all signals blocked, and never
//! waits while it holds one.

use super::sync::{AtomicU32, Ordering, SPINS};
use super::{os, schedule};
use std::marker::PhantomData;

/// Says that this thread holds no engine lock. Not `Send`; one is made at each entry into the engine.
#[derive(Debug)]
pub struct Free(PhantomData<*mut ()>);

impl Free {
    /// For entry points, which hold nothing yet.
    #[must_use]
    pub fn at_entry() -> Self {
        Self(PhantomData)
    }
}

const OPEN: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// A mutual-exclusion lock of one word that a signal handler may take: no allocation, no thread-local, no parking table.
/// All-zero memory is an open lock, so it can live in lazily populated tables.
///
/// The three states and their transitions are those of Drepper, *Futexes Are Tricky* (2011), mutex 2.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Futex(AtomicU32);

impl Futex {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(OPEN))
    }

    /// Takes the lock, sleeping if need be. Holders never wait, so this ends soon.
    #[inline]
    pub(crate) fn lock(&self) {
        schedule::point();
        if !self.try_lock() {
            self.lock_contended();
        }
    }

    /// Takes the lock if it is open.
    #[inline]
    pub(crate) fn try_lock(&self) -> bool {
        self.0.compare_exchange(OPEN, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn lock_contended(&self) {
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if self.0.load(Ordering::Relaxed) == OPEN && self.try_lock() {
                return;
            }
        }
        while self.0.swap(CONTENDED, Ordering::Acquire) != OPEN {
            os::futex_wait(&self.0, CONTENDED, None);
        }
    }

    /// Opens the lock. The caller holds it.
    #[inline]
    pub(crate) fn unlock(&self) {
        if self.0.swap(OPEN, Ordering::Release) == CONTENDED {
            os::futex_wake(&self.0, 1);
        }
        schedule::point();
    }

    /// Takes the lock until the guard is dropped.
    #[inline]
    pub(crate) fn hold(&self) -> FutexGuard<'_> {
        self.lock();
        FutexGuard(self)
    }
}

/// Holds a [`Futex`].
#[derive(Debug)]
pub(crate) struct FutexGuard<'a>(&'a Futex);

impl Drop for FutexGuard<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;
    use std::sync::Arc;

    struct Counter(Futex, UnsafeCell<u64>);
    // SAFETY: the cell is only touched under the lock.
    unsafe impl Sync for Counter {}

    #[test]
    fn excludes_under_contention() {
        let c = Arc::new(Counter(Futex::new(), UnsafeCell::new(0)));
        std::thread::scope(|s| {
            for _ in 0..4 {
                let c = &c;
                s.spawn(move || {
                    for _ in 0..20_000 {
                        let _held = c.0.hold();
                        // SAFETY: under the lock.
                        unsafe { *c.1.get() += 1 };
                    }
                });
            }
        });
        let _held = c.0.hold();
        // SAFETY: under the lock.
        assert_eq!(unsafe { *c.1.get() }, 80_000);
        assert!(!c.0.try_lock());
    }
}
