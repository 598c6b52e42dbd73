//! Forked children: shared memory and devices stay with the parent.
//!
//! The arena's mappings are not inherited, so a child that touches shared memory dies of SIGSEGV instead of reading half of
//! it; every call that would use the engine returns [`Forked`](crate::Error::Forked), and every drop does nothing.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;

static FORKED: AtomicBool = AtomicBool::new(false);

/// Whether this process was forked from one that had a space. Signal-safe.
pub(crate) fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

pub(crate) fn check() -> Result<(), Error> {
    if forked() { Err(Error::Forked) } else { Ok(()) }
}

/// Has children learn that they are.
pub(crate) fn watch() {
    extern "C" fn child() {
        FORKED.store(true, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a plain function that stores one word. If registering fails (no memory), children are not
        // told and die at their first touch.
        unsafe { libc::pthread_atfork(None, None, Some(child)) };
    });
}
