//! Which devices the space drives: each once at a time.
//!
//! **Guarantee.** While a [`Claim`] lives no other mirror is made of the same device, whichever way it is named: by its identity, by the
//! addresses where its kernels fault, or by its memory. Two mirrors would hand out the same frames twice and would each serve the
//! other's faults.
//!
//! **States of a claim:** held; *ending*, once whoever used the device has given it up: then who wants it waits a moment.
//!
//! **Lock**: the list's mutex, a leaf; whoever waits sleeps on its condition variable with no other lock held.

use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sterna_hal::Device;

use super::reaper;
use crate::Error;

/// How long a device that is ending is waited for.
const ENDING: Duration = Duration::from_secs(1);

/// The devices that are driven.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    list: Mutex<List>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct List {
    issued: u64,
    claimed: Vec<Claimed>,
}

#[derive(Debug)]
struct Claimed {
    number: u64,
    identity: u64,
    window: Option<Range<usize>>,
    frames: Option<usize>,
    ending: bool,
}

/// A device that is driven; dropped when it has ended.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: &'static Claims,
    number: u64,
}

impl Claims {
    /// Claims a device.
    ///
    /// # Errors
    /// [`DeviceInUse`](Error::DeviceInUse).
    pub(crate) fn claim(&'static self, device: &dyn Device) -> Result<Claim, Error> {
        let (identity, window) = (device.identity(), device.window());
        let frames = device.frames_base().map(|base| base.as_ptr().addr());
        // It may be among what waits for a thread.
        reaper::try_end_rest();
        let until = Instant::now() + ENDING;
        let mut list = self.list.lock();
        while let Some(other) = list.claimed.iter().find(|c| c.is(identity, window.as_ref(), frames)) {
            if !other.ending || self.changed.wait_until(&mut list, until).timed_out() {
                return Err(Error::DeviceInUse { device: device.info().id.clone() });
            }
        }
        list.issued += 1;
        let number = list.issued;
        list.claimed.push(Claimed { number, identity, window, frames, ending: false });
        Ok(Claim { claims: self, number })
    }
}

impl Claimed {
    fn is(&self, identity: u64, window: Option<&Range<usize>>, frames: Option<usize>) -> bool {
        let meets = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        self.identity == identity
            || self.window.as_ref().zip(window).is_some_and(|(a, b)| meets(a, b))
            || self.frames.zip(frames).is_some_and(|(a, b)| a == b)
    }
}

impl Claim {
    /// Whoever used the device has given it up.
    pub(crate) fn ends(&self) {
        let mut list = self.claims.list.lock();
        list.claimed.iter_mut().filter(|c| c.number == self.number).for_each(|c| c.ending = true);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.list.lock().claimed.retain(|c| c.number != self.number);
        self.claims.changed.notify_all();
    }
}
