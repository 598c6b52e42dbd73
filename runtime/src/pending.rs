//! A launch on its way, for its user.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::Error;
use crate::hmm::inflight::InFlight;
use crate::hmm::lock::Free;
use crate::hmm::watch::{self, Watched};

/// A launch on its way: wait for it, ask it, await it, or drop it. Dropping neither waits nor cancels.
///
/// **Awaited**, its waker is called when it has ended, whatever else is on its way, on a thread that the runtime has for wakers alone. A
/// waker that blocks keeps back the other wakers of its own runtime, and nobody else: those of executors wake a task and return.
///
/// ```
/// # let rt = sterna::Runtime::new()?;
/// let mut y = rt.shared::<f32>(1000)?;
/// let pending = rt.launch(&sterna::kernels::fill(1.0_f32), (&mut y,))?;
/// pending.wait()?;
/// assert!(pending.is_done());
/// # Ok::<(), sterna::Error>(())
/// ```
pub struct Pending(pub(crate) Arc<InFlight>);

impl Pending {
    /// Waits until it has ended.
    ///
    /// # Errors
    /// Why it failed; [`InsideKernel`](Error::InsideKernel) in a kernel; [`Forked`](Error::Forked) in a forked child.
    pub fn wait(&self) -> Result<(), Error> {
        check()?;
        self.0.wait(&mut Free::at_entry(), None);
        self.result()
    }

    /// Waits at most `timeout`; true if it has ended.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, Error> {
        check()?;
        if self.0.wait(&mut Free::at_entry(), Some(timeout)) { self.result().map(|()| true) } else { Ok(false) }
    }

    /// Whether it has ended, well or not.
    #[must_use]
    pub fn is_done(&self) -> bool {
        if crate::hmm::fork::forked() {
            return false;
        }
        self.0.mirror().reap();
        self.0.poll()
    }

    fn result(&self) -> Result<(), Error> {
        match self.0.error() {
            Some(e) => {
                self.0.mark_seen();
                Err(Error::clone(e))
            }
            None => Ok(()),
        }
    }
}

fn check() -> Result<(), Error> {
    crate::hmm::entry::check()
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("launch", &self.0.id).field("ended", &self.0.has_ended()).finish()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !crate::hmm::fork::forked() {
            watch::forget(&self.0);
        }
    }
}

impl Future for Pending {
    type Output = Result<(), Error>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(e) = check() {
            return Poll::Ready(Err(e));
        }
        self.0.mirror().reap();
        if self.0.poll() {
            return Poll::Ready(self.result());
        }
        match watch::watch(&self.0, cx.waker()) {
            Watched::Yes => Poll::Pending,
            Watched::Ended => Poll::Ready(self.result()),
            Watched::NoThread => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}
