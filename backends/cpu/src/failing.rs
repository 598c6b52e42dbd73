//! How a launch fails: by the first of its groups that panics, with one message.
//!
//! **Guarantee.** Whatever groups panic with, nobody else is harmed, and a worker goes on. Once one has failed no further group of the
//! launch begins: what it writes is nobody's to read. However many fail side by side, the panic hook that the program had when the first
//! device was made is called once a launch.
//!
//! **How.** Devices put a hook of their own before the program's. It passes everything on but panics on a thread that runs a group of
//! a launch that has panicked before. A hook that the program sets later takes its place, and is called for each group that fails.
//!
//! **States of a launch:** whole, told (the hook was called), failed. **Lock:** `first`, around one store.

use std::cell::Cell;
use std::panic;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

use parking_lot::Mutex;
use sterna_hal::KernelError;
use sterna_hal::panics::caught;

/// What became of the groups of one launch.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    told: AtomicBool,
    failed: AtomicU32,
    first: Mutex<Option<String>>,
}

thread_local! {
    /// The launch whose groups this thread runs.
    static RUNS: Cell<*const Failing> = const { Cell::new(ptr::null()) };
}

/// While it lives this thread runs groups of a launch, and its panics are that launch's.
pub(crate) struct Running<'a> {
    before: *const Failing,
    _launch: &'a Failing,
}

impl<'a> Running<'a> {
    pub(crate) fn enter(launch: &'a Failing) -> Self {
        // A kernel that uses threads of its own may run a group within a group.
        Self { before: RUNS.replace(launch), _launch: launch }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        RUNS.set(self.before);
    }
}

impl Failing {
    /// Runs a group, unless one has failed.
    pub(crate) fn group(&self, run: impl FnOnce()) {
        if self.failed.load(Relaxed) > 0 {
            return;
        }
        if let Err(text) = caught(run) {
            self.failed.fetch_add(1, AcqRel);
            self.first.lock().get_or_insert(text);
        }
    }

    /// How the launch ended, once no group runs any more.
    pub(crate) fn outcome(&self) -> Result<(), KernelError> {
        let Some(first) = self.first.lock().take() else { return Ok(()) };
        Err(KernelError::Panicked(match self.failed.load(Acquire) {
            0 | 1 => first,
            n => format!("{first} (the first of {n} groups that failed before the rest was given up)"),
        }))
    }
}

/// Has panics of kernels told once a launch.
pub(crate) fn watch_panics() {
    static ONCE: Once = Once::new();
    // A thread that panics cannot change the hook.
    if std::thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // Not `with`: a thread that ends may have no such variable any more.
            let launch = RUNS.try_with(Cell::get).unwrap_or(ptr::null());
            // SAFETY: null, or a launch that lives until this thread has left it.
            let told = unsafe { launch.as_ref() }.is_some_and(|l| l.told.swap(true, AcqRel));
            if !told {
                before(info);
            }
        }));
    });
}
