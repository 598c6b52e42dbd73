//! One suite over `&dyn Device`: what every backend must do, whatever it is made of.
//!
//! A backend's tests make a device, announce some host storage to it, and call [`all`]:
//!
//! ```
//! # use std::ptr::NonNull;
//! # use sterna_hal::{Device, RegionId, conformance::{Bench, all}};
//! # fn suite(device: &dyn Device, region: RegionId, base: NonNull<u8>, bytes: u64) {
//! // SAFETY: the region was attached as said, and nobody else touches it.
//! let bench = unsafe { Bench::new(device, region, base, bytes) };
//! all(&bench).check();
//! # }
//! ```
//!
//! Each check is also a function of its own. A check leaves the device as it found it; [`all`] verifies that by the memory in
//! use. Kernels touch mapped addresses only, so the suite holds for every kind of [`Absent`](crate::Absent). Checks for which a device has too little
//! memory, or that need what it cannot do, are skipped and say so.

mod check;
mod checks;

pub use check::{Bench, Check, Report, Verdict, all};
pub use checks::*;
