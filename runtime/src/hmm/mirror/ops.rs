//! A driver's own mirror: callbacks for what changes on the host's side.

use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use sterna_hal::panics::caught_inside;

use super::super::addr::Pages;
use super::super::fork;
use super::super::notifier::Notifier;
use super::super::space::Space;

/// Why entries go away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The range is unmapped or its contents are dropped.
    Invalidate,
    /// Access is reduced.
    Protect,
    /// Pages move; `to` is the device they move to (`None`: the host).
    Migrate {
        /// Destination.
        to: Option<usize>,
    },
    /// A device gets pages to itself, for atomic operations.
    Exclusive {
        /// Which.
        by: usize,
    },
    /// The mirror is being unregistered.
    Release,
}

/// What a driver does when the host side changes (`hmm_mirror_ops`).
#[doc(alias = "hmm_mirror_ops")]
pub trait MirrorOps: Send + Sync {
    /// Removes every entry for `pages`, under the driver's own lock, and has the device stop using them. Called with a window
    /// open over the range and no engine lock held. It may return before the device has stopped if
    /// [`finish`](Self::finish) waits for that: first every mirror starts, then every mirror finishes.
    ///
    /// It is called on threads of the engine, and whoever changes the host side waits for it. So it may do what a kernel may: what
    /// launches or waits is refused with [`InsideKernel`](crate::Error::InsideKernel), and it waits for no thread that loads or stores
    /// shared memory, launches or allocates. A callback that panics ends the mirror, as [`Mirror::unregister`] does, and who looks pages
    /// up for it is told nothing of later changes.
    #[doc(alias = "sync_cpu_device_pagetables")]
    fn update(&self, action: Action, pages: &Pages);
    /// Returns when the device can no longer use what `update` removed.
    fn finish(&self, action: Action, pages: &Pages) {
        let _ = (action, pages);
    }
}

/// A driver's view of the space (`hmm_mirror`). When its last clone is dropped no callback begins any more, but one may still be
/// running: [`unregister`](Self::unregister) waits for it.
pub struct Mirror {
    space: &'static Space,
    notifier: Notifier,
    ops: Box<dyn MirrorOps>,
    windows: Mutex<Windows>,
    /// Told when the last window has ended.
    quiet: Condvar,
}

/// Windows that call a mirror's callbacks.
#[derive(Debug, Default)]
struct Windows {
    open: usize,
    /// None may join them.
    closed: bool,
}

impl Mirror {
    /// Registers a mirror of the whole space.
    #[doc(alias = "hmm_mirror_register")]
    #[must_use]
    pub fn register(space: &'static Space, ops: impl MirrorOps + 'static) -> Arc<Self> {
        space.lock().register(ops)
    }

    pub(crate) fn unregistered(space: &'static Space, ops: impl MirrorOps + 'static) -> Arc<Self> {
        let (notifier, windows) = (Notifier::default(), Mutex::default());
        Arc::new(Self { space, notifier, ops: Box::new(ops), windows, quiet: Condvar::new() })
    }

    /// Ends the mirror, whoever else has a clone of it: when this returns no callback is running and none will. Waits for changes of
    /// the host side that are under way, so it is called neither in a callback nor with a lock held that callbacks take. In a kernel,
    /// for which one of them may be waiting, it does not wait.
    #[doc(alias = "hmm_mirror_unregister")]
    pub fn unregister(&self) {
        if fork::forked() {
            return; // no window is open, and none will be
        }
        let mut windows = self.windows.lock();
        windows.closed = true;
        // What is under way may wait for this very kernel.
        while windows.open > 0 && !sterna_hal::in_kernel() {
            self.quiet.wait(&mut windows);
        }
    }

    /// A window begins, unless the mirror has ended.
    pub(crate) fn enter(&self) -> bool {
        let mut windows = self.windows.lock();
        windows.open += usize::from(!windows.closed);
        !windows.closed
    }

    /// A window that began has ended.
    pub(crate) fn leave(&self) {
        let mut windows = self.windows.lock();
        windows.open -= 1;
        if windows.open == 0 {
            self.quiet.notify_all();
        }
    }

    /// Its windows.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The space it mirrors.
    #[must_use]
    pub fn space(&self) -> &'static Space {
        self.space
    }

    /// Calls the driver, which is code of the program on whichever thread changes the host side. A driver that panics has no say any
    /// more.
    pub(crate) fn call(&self, f: impl FnOnce(&dyn MirrorOps)) {
        // The change that it is called for waits for it, and a launch for the change: it waits for neither, and what it drops last ends
        // elsewhere.
        if caught_inside(|| f(&*self.ops)).is_err() {
            self.windows.lock().closed = true;
        }
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}
