//! Guards that keep pages at home: for system calls and everything else that no fault serves.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::hmm::pin::Pin;

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
