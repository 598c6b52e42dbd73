//! Whether this is a forked child of the process in which something was made.
//!
//! **Guarantee.** What was made before a fork stays with the parent: threads, a driver's state, and mappings are not there in the child,
//! and locks may be held for ever by threads that it does not have. So in a child nothing of it is called, waited for or given back.
//!
//! **States.** A count of forks, raised in each child before its program goes on.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use sterna_hal::DeviceError;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process in which something was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin(u32);

impl Origin {
    /// This process.
    #[must_use]
    pub fn here() -> Self {
        static WATCH: Once = Once::new();
        WATCH.call_once(|| {
            // SAFETY: the handler is a plain function. If registering fails (no memory), children are not told.
            unsafe { libc::pthread_atfork(None, None, Some(child)) };
        });
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether that process is the parent of this one, or a parent's parent.
    #[must_use]
    pub fn is_left(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }

    /// Fails where [`is_left`](Self::is_left).
    ///
    /// # Errors
    /// [`DeviceError::Forked`].
    pub fn check(self) -> Result<(), DeviceError> {
        if self.is_left() { Err(DeviceError::Forked) } else { Ok(()) }
    }
}

extern "C" fn child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
