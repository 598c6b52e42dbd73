//! Where the program comes in.
//!
//! **Guarantee.** Every call of the program that may wait, or that changes more than words, begins here. In a forked child, and in a
//! kernel, it ends here too: a kernel that waited could be what it waits for, since launches, faults of other devices and changes of
//! the space wait for launches.

use super::fork;
use super::lock::Free;
use crate::Error;

/// Whether a call may begin.
///
/// # Errors
/// [`Forked`](Error::Forked) in a forked child, [`InsideKernel`](Error::InsideKernel) in a kernel.
pub(crate) fn check() -> Result<(), Error> {
    fork::check()?;
    if sterna_hal::in_kernel() { Err(Error::InsideKernel) } else { Ok(()) }
}

/// As [`check`], with the token for what waits.
pub(crate) fn enter() -> Result<Free, Error> {
    check()?;
    Ok(Free::at_entry())
}
