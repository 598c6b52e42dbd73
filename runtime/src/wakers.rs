//! The thread that calls a runtime's wakers, which are code of the program.
//!
//! **Guarantee.** A waker that is due is called once, on this thread and no other: one that blocks, or is slow, keeps back those of its
//! own runtime and nobody else, and one that panics nobody.
//!
//! **States.** The thread is there while anybody is [expected](Wakers::expect), and a moment longer, so that launches that are awaited
//! one after another share it. When the runtime has ended it goes as soon as nobody is expected any more.
//!
//! **Lock**: the queue's mutex, a leaf; no waker is called, cloned or dropped under it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sterna_hal::panics::caught;

use crate::hmm::{fork, os};

/// How long the thread stays when nobody is expected.
const LINGER: Duration = Duration::from_millis(100);

/// Whoever is to be woken for a launch of one runtime.
#[derive(Debug, Default)]
pub(crate) struct Wakers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    due: VecDeque<(Waker, Expected)>,
    expected: usize,
    thread: bool,
    closed: bool,
}

/// Keeps the thread there for one waker that may become due.
#[derive(Debug)]
pub(crate) struct Expected(Arc<Shared>);

impl Drop for Expected {
    fn drop(&mut self) {
        if fork::forked() {
            return;
        }
        let mut state = self.0.state.lock();
        state.expected -= 1;
        if state.expected == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Wakers {
    /// Says that a waker may become due. `None`: the system has no thread for it.
    pub(crate) fn expect(&self) -> Option<Expected> {
        let mut state = self.0.state.lock();
        if !state.thread {
            let shared = Arc::clone(&self.0);
            state.thread = os::spawn("sterna-wakers", move || run(&shared)).is_ok();
        }
        state.expected += usize::from(state.thread);
        state.thread.then(|| Expected(Arc::clone(&self.0)))
    }

    /// Has a waker called. It was expected, so the thread is there.
    pub(crate) fn wake(&self, waker: Waker, expected: Expected) {
        self.0.state.lock().due.push_back((waker, expected));
        self.0.changed.notify_all();
    }

    /// The runtime has ended.
    pub(crate) fn close(&self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_all();
    }
}

fn run(shared: &Shared) {
    loop {
        let (waker, expected) = {
            let mut state = shared.state.lock();
            loop {
                if let Some(due) = state.due.pop_front() {
                    break due;
                }
                if state.expected > 0 {
                    shared.changed.wait(&mut state);
                } else if (state.closed || shared.changed.wait_for(&mut state, LINGER).timed_out())
                    && state.expected == 0
                    && state.due.is_empty()
                {
                    state.thread = false;
                    return;
                }
            }
        };
        // What it panics with it has printed.
        let _ = caught(|| waker.wake());
        drop(expected);
    }
}
