//! A launch on its way, for its user.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::Error;
use crate::hmm::inflight::InFlight;
use crate::hmm::lock::Free;
use crate::hmm::os;

/// A launch on its way: wait for it, ask it, await it, or drop it. Dropping neither waits nor cancels.
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
                Err(e.clone())
            }
            None => Ok(()),
        }
    }
}

fn check() -> Result<(), Error> {
    crate::hmm::fork::check()?;
    if sterna_hal::in_kernel() { Err(Error::InsideKernel) } else { Ok(()) }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("launch", &self.0.id).field("ended", &self.0.has_ended()).finish()
    }
}

/// Wakes whoever awaits launches: a thread that exists only once somebody does.
struct Watch(Mutex<Sender<(Arc<InFlight>, Waker)>>);

static WATCH: OnceLock<Watch> = OnceLock::new();

fn watch() -> &'static Watch {
    WATCH.get_or_init(|| {
        let (send, receive) = channel::<(Arc<InFlight>, Waker)>();
        let run = move || {
            for (launch, waker) in receive {
                // One at a time: whoever awaits several is woken for each in the order of asking, which is the order of
                // launching on one device.
                launch.wait(&mut Free::at_entry(), None);
                // A waker is the program's: its panic, which it has printed, is no reason to wake nobody else.
                let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
            }
        };
        // Without a thread the waker is never called; `poll` then falls back to waking at once.
        let _ = os::spawn("sterna-watch", run);
        Watch(Mutex::new(send))
    })
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
        if watch().0.lock().send((Arc::clone(&self.0), cx.waker().clone())).is_err() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
