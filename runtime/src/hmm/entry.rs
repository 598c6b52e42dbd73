//! Where the program comes in.
//!
//! **Guarantee.** Every call of the program that may wait, or that changes more than words, begins here. In a forked child, and in a
//! kernel, it ends here too: a kernel that waited could be what it waits for, since launches, faults of other devices and changes of
//! the space wait for launches. What a driver asks to have moved comes by [`may_move`] besides.

use super::fork;
use super::host::Mechanism;
use super::lock::Free;
use super::segment::Segment;
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

/// Whether a driver may have pages of a segment taken away, or copied.
///
/// A program's allocation has references that live on: with a mechanism that serves faults they bring back what they touch. Without
/// one nothing notices their stores, and what goes by the gate (launches and prefetches, which raise it) is all that may move. A segment
/// that a driver writer made is reached through raw pointers alone, and who uses those sees to it.
pub(crate) fn may_move(seg: &Segment) -> Result<(), Error> {
    if seg.space().mechanism() == Mechanism::None && !seg.is_bare() {
        return Err(Error::Invalid {
            what: "a driver's moving pages of a program's allocation with host-fault mechanism none, where nothing notices the \
                   program's stores: launch, prefetch, or use a segment of the driver's own",
        });
    }
    Ok(())
}
