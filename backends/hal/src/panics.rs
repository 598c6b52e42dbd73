//! Panics of the program's code on threads that are not the program's.
//!
//! **Guarantee.** [`caught`] returns, whatever the code and the payload of its panic do: a payload whose drop panics is given up, and
//! so is what that panics with. No state, no lock.

use std::any::Any;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::kernel::InKernel;

/// Runs the program's code; if it panics, what it said is the answer.
///
/// Whoever uses what `f` had in hand afterwards sees to it that a panic leaves nothing half done.
///
/// ```
/// use sterna_hal::panics::caught;
///
/// assert_eq!(caught(|| 7), Ok(7));
/// assert_eq!(caught(|| -> u32 { std::panic::resume_unwind(Box::new("no")) }), Err("no".to_string()));
/// ```
///
/// # Errors
/// The panic's message.
pub fn caught<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = message(payload.as_ref());
        discard(payload);
        text
    })
}

/// As [`caught`], for code for which more waits than the thread that it is on: marked as a kernel, it may neither launch nor wait, and
/// what it drops last ends on another thread.
///
/// # Errors
/// The panic's message.
pub fn caught_inside<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    let _mark = InKernel::enter();
    caught(f)
}

/// Drops a panic's payload, which is a value of the program's: its drop may panic as well. It is dropped as in a kernel, of which it
/// may come: it waits for nothing.
pub fn discard(payload: Box<dyn Any + Send>) {
    let _mark = InKernel::enter();
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // It would go on like that for as long as the program likes.
        forget(second);
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a value that is no text".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::resume_unwind;

    /// Panics whenever one is dropped, with another one.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new(Self));
        }
    }

    #[test]
    fn a_payload_whose_drop_panics_harms_nobody() {
        let ended = caught(|| resume_unwind(Box::new(Bomb)));
        assert_eq!(ended.map(|()| 0), Err("a value that is no text".to_string()));
    }
}
