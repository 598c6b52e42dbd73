//! The scheduler: what could not be done by the calling thread, carried out by a thread for each device that needs one, and one for what
//! comes home.
//!
//! **Guarantee.** Who waits, waits for its own bytes. Launches that share bytes, one of them writing, are carried out in the order in
//! which they were asked for; a launch is submitted when every earlier launch of another device that it conflicts with has ended and
//! everything it needs is where the policy wants it. Order on one device is the device's. Everything else may overtake: a launch that
//! waits for another device stands aside, and a move of many pages goes in steps, between which others go first.
//!
//! **Parts.** [`queue`] holds the jobs and what each stands behind; [`lane`] is the loop of a thread; [`carry`] carries launches
//! out, [`moves`] the moves of pages that a program asked for.
//!
//! **Why nobody starves.** A job stands behind earlier ones only, and behind launches that were submitted. A move, which every launch may
//! overtake, gets a step after each [`lane::TURNS`] of them.
//!
//! **Lock**: the queue's mutex, a leaf; the policy's mutex, held while the policy is asked, with no engine lock.

mod carry;
mod lane;
mod moves;
mod queue;

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::hmm::inflight::{InFlight, Touch};
use crate::hmm::mirror::DeviceMirror;
use crate::hmm::os;
use crate::hmm::reaper;
use crate::hmm::{Mechanism, Pages, Segment, Space};
use crate::launch::Prepared;
use crate::policy::Policy;

pub(crate) use carry::populate_touch;

use lane::Worker;
use moves::Move;
use queue::{Job, Part, Queue};

#[derive(Clone)]
pub(crate) struct Scheduler {
    queue: Arc<Queue>,
    space: &'static Space,
    policy: Arc<Mutex<Box<dyn Policy>>>,
}

impl Scheduler {
    /// For devices of these slots.
    pub(crate) fn new(space: &'static Space, policy: Arc<Mutex<Box<dyn Policy>>>, slots: &[usize]) -> Self {
        Self { queue: Arc::new(Queue::new(slots)), space, policy }
    }

    /// Whether something asked for and not carried out stands before a launch of device `slot` over `touches`.
    pub(crate) fn holds_back(&self, touches: &[Touch], slot: usize) -> bool {
        touches.iter().any(|t| t.seg.is_awaited()) && self.queue.state.lock().is_behind(touches, slot)
    }

    pub(crate) fn launch(&self, prepared: Prepared, record: Arc<InFlight>) {
        self.push(Job::Launch(Box::new(prepared), record));
    }

    /// Queues a move; `None` is the host. In mode `none` the gate waits for it.
    pub(crate) fn prefetch(&self, seg: Arc<Segment>, pages: Pages, to: Option<Arc<DeviceMirror>>) {
        if to.is_some() && self.space.mechanism() == Mechanism::None {
            seg.rec().gate.away(false);
        }
        self.push(Job::Move(Move::new(seg, pages, to)));
    }

    /// Has `pages` dropped once no launch uses `bytes` any more.
    pub(crate) fn discard(&self, seg: Arc<Segment>, pages: Pages, bytes: Range<u64>) {
        self.forget_moves(&seg, &pages);
        let latest = seg.uses.lock().latest();
        self.push(Job::Discard(Part { seg, pages, bytes, latest }));
    }

    fn push(&self, job: Job) {
        job.count();
        let mut state = self.queue.state.lock();
        let (number, lane) = state.push(job);
        if state.needs_thread(lane) {
            let worker = self.worker(Some(lane));
            match os::spawn("sterna-scheduler", move || worker.run()) {
                Ok(t) => state.set_thread(lane, t),
                Err(_) => {
                    // Without a thread (ulimit -u) the caller carries it out, and what it stands behind: slower, but right.
                    drop(state);
                    let worker = self.worker(None);
                    if reaper::is_awaited() {
                        // Not here: it may wait for what waits for this thread.
                        return reaper::end_alone(move || worker.until_done(number));
                    }
                    worker.until_done(number);
                    return;
                }
            }
        }
        self.queue.tell(state);
    }

    fn worker(&self, lane: Option<usize>) -> Worker {
        Worker::new(Arc::clone(&self.queue), lane, Arc::clone(&self.policy))
    }

    /// Has moves asked for leave `pages` alone, which the host is about to replace or to drop: waits for those that are under way there.
    pub(crate) fn forget_moves(&self, seg: &Arc<Segment>, pages: &Pages) {
        if !seg.is_awaited() {
            return;
        }
        let mut over = Vec::new();
        let mut state = self.queue.state.lock();
        state.keep_from_moves(seg, pages);
        loop {
            let (under_way, ended) = state.cut_moves(seg, pages);
            over.extend(ended);
            // Not on a thread for which the step may wait, or which carries it out.
            if !under_way || reaper::is_awaited() {
                break;
            }
            self.queue.sleep_until_changed(&mut state);
        }
        state.no_longer(seg, pages);
        self.queue.tell(state);
    }

    /// Waits until everything asked for so far was carried out (launches: submitted or refused).
    pub(crate) fn drain(&self) {
        let mut state = self.queue.state.lock();
        let upto = state.asked();
        if state.is_unserved() {
            drop(state);
            return self.worker(None).until_done(upto);
        }
        self.queue.sleep_until_gone(&mut state, upto);
    }

    /// Carries out what is left and ends the threads.
    pub(crate) fn stop(&self) {
        self.drain();
        let threads = self.queue.change(|state| state.stop());
        for t in threads {
            if t.thread().id() != std::thread::current().id() {
                // It panics only for a defect of ours, whose message is out already.
                let _ = t.join();
            }
        }
    }

    /// In a forked child: forgets the parent's threads.
    pub(crate) fn abandon(&self) {
        std::mem::forget(Arc::clone(&self.queue));
    }
}
