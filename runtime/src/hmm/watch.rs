//! Awaited launches: who is to be told, and the threads that wait for it.
//!
//! **Guarantee.** Whoever awaits a launch is told when it has ended, whatever else is awaited, was awaited and dropped, or runs on other
//! devices. A launch has one entry at most, however often it is polled, and none when it has ended or its future was dropped. Nobody
//! wakes for a launch that nobody awaits, but once for one whose future was dropped while a thread waited for it, and for one that has
//! to [`retire`] before a fault can be served.
//!
//! **How.** A device's queue reaches its points in order, so one thread waits for the first point that is awaited there: the *patient*
//! one. Who awaits a launch whose point comes before the one that it sleeps for gets a second thread, the *hasty* one, which looks
//! again every half millisecond and goes when the patient one has caught up. They retire launches as anybody does who looks; who
//! retires an awaited launch hands its waker to its runtime's own thread (`wakers`): no code of the program runs on these.
//!
//! **States of an entry:** in its launch, from the first poll; in its queue's line too, once the launch is submitted. It is taken out of
//! the launch once: by whoever retires it, or with the future. Threads come with the first entry of a line and go a moment after the
//! last, or when the device ends.
//!
//! **Locks:** `Watch`'s mutex and each launch's `entry`, leaves, never together; no waker is cloned, called or dropped under them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::inflight::InFlight;
use super::lock::Free;
use super::os;
use crate::wakers::{Expected, Wakers};

/// How long a thread stays when nothing is awaited.
const LINGER: Duration = Duration::from_millis(100);
/// How long the hasty thread waits before it looks for an earlier point.
const HASTE: Duration = Duration::from_micros(500);

/// The entry of a launch: who awaits it.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    /// Set before `entry`, for whoever retires launches that nobody awaits.
    any: AtomicBool,
    entry: Mutex<Option<(Waker, Expected)>>,
}

impl Awaited {
    /// Whether somebody awaits it, for whoever has changed the launch's state before, with a full barrier between.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    fn is_there(&self) -> bool {
        self.entry.lock().is_some()
    }

    fn take(&self) -> Option<(Waker, Expected)> {
        self.entry.lock().take()
    }

    /// The launch has ended: tells whoever awaits it.
    pub(crate) fn tell(&self, wakers: &Wakers) {
        if self.any()
            && let Some((waker, expected)) = self.take()
        {
            wakers.wake(waker, expected);
        }
    }
}

/// What came of a wish to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Watched {
    /// The waker will be called.
    Yes,
    /// It has ended meanwhile.
    Ended,
    /// The system has no thread for it.
    NoThread,
}

/// Has `waker` called when the launch has ended, in place of the one that was to be called before.
pub(crate) fn watch(launch: &Arc<InFlight>, waker: &Waker) -> Watched {
    let awaited = launch.awaited();
    if awaited.entry.lock().as_ref().is_some_and(|(w, _)| w.will_wake(waker)) {
        return Watched::Yes;
    }
    let waker = waker.clone();
    let replaced = {
        let mut entry = awaited.entry.lock();
        match entry.as_mut() {
            Some((old, _)) => Ok(std::mem::replace(old, waker)),
            None => Err(waker),
        }
    };
    let Err(waker) = replaced else { return Watched::Yes };
    let Some(expected) = launch.wakers().expect() else { return Watched::NoThread };
    *awaited.entry.lock() = Some((waker, expected));
    awaited.any.store(true, Ordering::Relaxed);
    // Whoever ends or submits it changes its state and then looks at `any`, with the same barrier between: one sees the other.
    fence(Ordering::SeqCst);
    if launch.has_ended() {
        let _not_needed = awaited.take();
        return Watched::Ended;
    }
    if launch.mirror().watch().add(launch) {
        return Watched::Yes;
    }
    let _not_called = awaited.take();
    Watched::NoThread
}

/// An awaited launch was submitted. With no lock held.
pub(crate) fn submitted(launch: &Arc<InFlight>) {
    let awaited = launch.awaited();
    if !awaited.any() || !awaited.is_there() {
        return;
    }
    if !launch.mirror().watch().add(launch) {
        // Without a thread whoever awaits it has to ask.
        awaited.tell(launch.wakers());
    } else if !awaited.is_there() {
        // Its future was dropped beside us.
        launch.mirror().watch().remove(launch);
    }
}

/// The launch's future is dropped.
pub(crate) fn forget(launch: &Arc<InFlight>) {
    if launch.awaited().any() {
        // In this order, for whoever submits it beside us.
        let _not_called = launch.awaited().take();
        launch.mirror().watch().remove(launch);
    }
}

/// Has a launch retired that the device has finished with, and says whether it has: for threads that serve faults, where it is in a
/// fault's way and perhaps nobody waits for it. With no lock held.
///
/// It is done on another thread, for an end may wait for other launches' ends, which code of the program may hold up: the fault looks
/// again. Where the system has no thread that comes to it soon it is done here, as nobody else may.
pub(crate) fn retire(launch: &Arc<InFlight>) -> bool {
    if !launch.has_ended() && launch.mirror().watch().put(launch) != Looks::Soon {
        launch.mirror().reap_up_to(launch);
    }
    launch.has_ended()
}

/// When a thread looks whether a launch of a line has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looks {
    Soon,
    /// When a later launch has ended.
    Late,
    /// The system has no thread for it.
    Never,
}

/// The awaited launches of one device.
#[derive(Debug, Default)]
pub(crate) struct Watch(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<Line>,
    closed: bool,
}

/// Position on the timeline, and the launch's address, should a device use one position twice.
type Key = (u64, usize);

/// The awaited launches of one queue, by the points that say that they have ended.
#[derive(Debug, Default)]
struct Line {
    queue: u32,
    awaited: BTreeMap<Key, Arc<InFlight>>,
    thread: bool,
    /// What the patient thread sleeps for.
    sleeps_for: Option<Key>,
    hasty: bool,
}

impl Line {
    /// Takes out launches that have ended, as far as they stand in front: nothing of them may be dropped under the lock.
    fn ended(&mut self) -> Vec<Arc<InFlight>> {
        let mut ended = Vec::new();
        while let Some(first) = self.awaited.first_entry().filter(|e| e.get().has_ended()) {
            ended.push(first.remove());
        }
        ended
    }
}

fn key(launch: &Arc<InFlight>) -> Option<(u32, Key)> {
    launch.point().map(|p| (p.queue, (p.value, Arc::as_ptr(launch).addr())))
}

impl Watch {
    /// Puts a launch into its line, if it is submitted; else whoever submits it does. False: there is no thread for it.
    fn add(&self, launch: &Arc<InFlight>) -> bool {
        self.put(launch) != Looks::Never
    }

    fn put(&self, launch: &Arc<InFlight>) -> Looks {
        let Some((queue, key)) = key(launch) else { return Looks::Soon };
        let mut state = self.0.lines.lock();
        let line = state.line(queue);
        line.awaited.insert(key, Arc::clone(launch));
        let begin = |name, wait: fn(&Shared, u32)| {
            let shared = Arc::clone(&self.0);
            os::spawn(name, move || wait(&shared, queue)).is_ok()
        };
        let looks = if !line.thread {
            line.thread = begin("sterna-watch", patient);
            if line.thread { Looks::Soon } else { Looks::Never }
        } else if !line.hasty && line.sleeps_for.is_some_and(|k| key < k) {
            line.hasty = begin("sterna-watch2", hasty);
            if line.hasty { Looks::Soon } else { Looks::Late }
        } else {
            self.0.changed.notify_all();
            Looks::Soon
        };
        let left = if looks == Looks::Never { line.awaited.remove(&key) } else { None };
        drop(state);
        drop(left);
        looks
    }

    fn remove(&self, launch: &Arc<InFlight>) {
        let Some((queue, key)) = key(launch) else { return };
        let removed = self.0.lines.lock().line(queue).awaited.remove(&key);
        drop(removed);
    }

    /// The device ends: nothing is awaited any more.
    pub(crate) fn close(&self) {
        self.0.lines.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Lines {
    fn line(&mut self, queue: u32) -> &mut Line {
        let at = self.lines.iter().position(|l| l.queue == queue).unwrap_or_else(|| {
            self.lines.push(Line { queue, ..Line::default() });
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }
}

/// Waits for the first awaited point of a queue, whatever it is, again and again.
fn patient(shared: &Shared, queue: u32) {
    os::leave_signals_to_the_program();
    let mut free = Free::at_entry();
    loop {
        let (next, ended) = {
            let mut state = shared.lines.lock();
            loop {
                let closed = state.closed;
                let line = state.line(queue);
                line.sleeps_for = None;
                let ended = line.ended();
                let next = line.awaited.first_key_value().map(|(k, l)| (*k, Arc::clone(l)));
                line.sleeps_for = next.as_ref().map(|n| n.0);
                if next.is_some() || !ended.is_empty() {
                    break (next, ended);
                }
                if (closed || shared.changed.wait_for(&mut state, LINGER).timed_out())
                    && state.line(queue).awaited.is_empty()
                {
                    state.line(queue).thread = false;
                    return;
                }
            }
        };
        drop(ended);
        if let Some((_, launch)) = next {
            launch.wait(&mut free, None);
        }
    }
}

/// Waits for what comes before the point that the patient thread sleeps for.
fn hasty(shared: &Shared, queue: u32) {
    os::leave_signals_to_the_program();
    let mut free = Free::at_entry();
    loop {
        let (next, ended) = {
            let mut state = shared.lines.lock();
            let line = state.line(queue);
            let ended = line.ended();
            let patient = line.sleeps_for;
            let before = |k: &Key| patient.is_some_and(|p| *k < p);
            let next = line.awaited.first_key_value().filter(|(k, _)| before(k)).map(|(_, l)| Arc::clone(l));
            line.hasty = next.is_some();
            (next, ended)
        };
        drop(ended);
        let Some(launch) = next else { return };
        launch.wait(&mut free, Some(HASTE));
    }
}

#[cfg(test)]
mod tests {
    use sterna_cpu::{CpuConfig, CpuDevice};

    use super::super::mirror::DeviceMirror;
    use super::super::space::Space;

    /// A lock that a thread holds at a fork stays held in the child, where that thread is not.
    #[test]
    fn a_forked_child_drops_a_device_whose_threads_were_at_work() {
        let space = Space::process(None).unwrap();
        let config = CpuConfig { memory: 1 << 20, workers: 1, window: 1 << 30, ..CpuConfig::default() };
        let mirror = DeviceMirror::new(space, std::sync::Arc::new(CpuDevice::new(0, config).unwrap()), "").unwrap();
        let shared = std::sync::Arc::clone(&mirror.watch().0);
        let at_work = shared.lines.lock();
        // SAFETY: the child drops one value, and ends without running anything else of this process's.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: takes nothing; ends a child that waits.
            unsafe { libc::alarm(10) };
            drop(mirror);
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        drop(at_work);
        let mut status = 1;
        // SAFETY: a word of this function's own.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "the child did not end by itself");
    }
}
