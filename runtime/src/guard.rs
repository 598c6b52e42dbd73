//! Guards that keep pages at home: for system calls and everything else that no fault serves.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use crate::Error;
use crate::hmm::lock::Free;
use crate::hmm::migrate;
use crate::hmm::{Pages, Segment};
use crate::shared::Core;

/// Pages that stay at home until this is dropped.
pub(crate) struct Pin {
    seg: Arc<Segment>,
    pages: Pages,
}

impl Pin {
    /// Brings the bytes home and keeps them. Waits for pages that are being moved.
    pub(crate) fn new(core: &Core, bytes: Range<u64>, write: bool) -> Result<Self, Error> {
        let mut free = Free::at_entry();
        let this = Self { seg: Arc::clone(&core.seg), pages: core.seg.pages_of(&bytes) };
        // Pinned first: what comes home from here on stays. What was on its way out before has to arrive to be fetched.
        this.seg.pins.lock().push(this.pages.clone());
        this.seg.apply_pins(&mut free, &this.pages);
        migrate::wait_arrived(&mut free, &this.seg, &this.pages);
        core.home(&mut free, &this.pages, write)?;
        this.seg.space().host.map(this.seg.space(), &this.pages);
        Ok(this)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if crate::hmm::fork::forked() {
            return;
        }
        let mut pins = self.seg.pins.lock();
        if let Some(i) = pins.iter().position(|p| *p == self.pages) {
            pins.swap_remove(i);
        }
        drop(pins);
        self.seg.apply_pins(&mut Free::at_entry(), &self.pages);
        self.seg.space().device_faults.retry();
    }
}

macro_rules! guard {
    ($(#[$doc:meta])* $name:ident, $slice:ty $(, $mutable:ident)?) => {
        $(#[$doc])*
        pub struct $name<'a, T> {
            slice: $slice,
            _pin: Pin,
        }

        impl<'a, T> $name<'a, T> {
            pub(crate) fn new(slice: $slice, pin: Pin) -> Self {
                Self { slice, _pin: pin }
            }
        }

        impl<T> Deref for $name<'_, T> {
            type Target = [T];
            fn deref(&self) -> &[T] {
                self.slice
            }
        }

        $(impl<T> DerefMut for $name<'_, T> {
            fn $mutable(&mut self) -> &mut [T] {
                self.slice
            }
        })?

        impl<T> fmt::Debug for $name<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({} elements)", stringify!($name), self.slice.len())
            }
        }
    };
}

guard! {
    /// Elements to read, at home while it lives. From [`Shared::host`](crate::Shared::host).
    HostRef, &'a [T]
}
guard! {
    /// Elements to read and write, at home while it lives. From [`Shared::host_mut`](crate::Shared::host_mut).
    HostMut, &'a mut [T], deref_mut
}
