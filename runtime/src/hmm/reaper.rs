//! What ends, ends outside kernels.
//!
//! **Guarantee.** Nothing of a runtime, a device or a segment is torn down on a thread that runs a kernel: that might wait for the
//! kernel, or take the memory that it uses from under it. What a kernel drops last is handed to another thread. And what waits for
//! launches, or for threads of the engine, does not end on one that they may be waiting for ([`is_awaited`]).
//!
//! **States.** What waits for launches when it ends (a runtime, an attached device) gets a thread of its own; the rest has one in
//! common, which goes a moment after its last piece of work. Where the system has no thread, things stay until somebody ends
//! something on a thread of the program, or wants a device.
//!
//! **Lock**: the queue's mutex, a leaf; nothing is ended or dropped under it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sterna_hal::in_kernel;
use sterna_hal::panics::caught;

use super::os;

/// How long the common thread stays when nothing is left.
const LINGER: Duration = Duration::from_millis(100);

type End = Box<dyn FnOnce() + Send>;

static ENDING: Mutex<Ending> = Mutex::new(Ending { left: VecDeque::new(), thread: false });
static CHANGED: Condvar = Condvar::new();
/// Something is left, and no thread for it.
static LEFT: AtomicBool = AtomicBool::new(false);

struct Ending {
    left: VecDeque<End>,
    thread: bool,
}

/// Whether what goes on may be waiting for this thread: it runs a kernel, or is one of the engine's, on which code of the program (a
/// policy, a driver's callback) may drop anything.
pub(crate) fn is_awaited() -> bool {
    in_kernel() || os::serves_faults()
}

/// Runs `end` here, or in a kernel on another thread, where others may be ended before.
pub(crate) fn end(end: impl FnOnce() + Send + 'static) {
    if in_kernel() {
        queue(Box::new(end));
    } else {
        end();
        try_end_rest();
    }
}

/// Ends what no thread was to be had for, if this thread may.
pub(crate) fn try_end_rest() {
    if LEFT.load(Ordering::Relaxed) && !is_awaited() {
        end_rest();
    }
}

/// As [`end`], for what waits for launches: nobody else waits for it.
pub(crate) fn end_alone(end: impl FnOnce() + Send + 'static) {
    if is_awaited() { end_elsewhere(end) } else { self::end(end) }
}

/// Runs `end` on a thread of its own.
fn end_elsewhere(end: impl FnOnce() + Send + 'static) {
    // Found again if there is no thread for it.
    let kept = Arc::new(Mutex::new(Some(Box::new(end) as End)));
    let theirs = Arc::clone(&kept);
    let run = move || {
        let end = theirs.lock().take();
        end.into_iter().for_each(run_one);
    };
    if os::spawn("sterna-end", run).is_err() {
        let end = kept.lock().take();
        end.into_iter().for_each(queue);
    }
}

fn queue(end: End) {
    let mut ending = ENDING.lock();
    ending.left.push_back(end);
    if !ending.thread {
        ending.thread = os::spawn("sterna-end", run).is_ok();
        LEFT.store(!ending.thread, Ordering::Relaxed);
    }
    CHANGED.notify_all();
}

fn run_one(end: End) {
    os::leave_signals_to_the_program();
    // Drops may be the program's own: a policy, the captures of a mirror.
    let _ = caught(end);
}

fn run() {
    os::leave_signals_to_the_program();
    loop {
        let end = {
            let mut ending = ENDING.lock();
            loop {
                if let Some(end) = ending.left.pop_front() {
                    break end;
                }
                if CHANGED.wait_for(&mut ending, LINGER).timed_out() && ending.left.is_empty() {
                    ending.thread = false;
                    return;
                }
            }
        };
        run_one(end);
    }
}

/// Ends what no thread was to be had for.
fn end_rest() {
    loop {
        let end = {
            let mut ending = ENDING.lock();
            let end = if ending.thread { None } else { ending.left.pop_front() };
            LEFT.store(end.is_some(), Ordering::Relaxed);
            end
        };
        let Some(end) = end else { return };
        let _ = caught(end);
    }
}
