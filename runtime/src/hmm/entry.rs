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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::addr::Pages;
    use super::super::notifier::Notifier;
    use super::*;

    #[test]
    fn a_reader_in_a_kernel_does_not_wait_for_a_window() {
        const LONG: Duration = Duration::from_secs(20);
        let n = Notifier::default();
        let w = n.open(&Pages(0..4));
        let reads = |page| n.read_begin(&mut Free::at_entry(), &Pages(page..page + 1), LONG).is_some();
        let begin = Instant::now();
        let got = std::thread::scope(|s| {
            let kernel = || {
                sterna_hal::runs_kernels();
                (check().is_err(), reads(3), reads(4))
            };
            s.spawn(kernel).join().unwrap()
        });
        assert_eq!(got, (true, false, true));
        assert!(begin.elapsed() < LONG / 2);
        n.end(w);
        assert!(reads(3));
    }
}
