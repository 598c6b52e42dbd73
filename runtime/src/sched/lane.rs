//! The loop of a scheduler's thread.
//!
//! **Guarantee.** It picks what can be done; what would have to wait for a launch that a device has is set aside, and looked at again
//! when that launch has ended. It sleeps when there is nothing to do, and for a moment at a time while something is set aside.
//!
//! **Locks:** the queue's, for picking and for putting down; none while a job is carried out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::queue::{Queue, State, Task};
use super::{carry, moves};
use crate::hmm::inflight::InFlight;
use crate::hmm::lock::Free;
use crate::hmm::os;
use crate::hmm::schedule::{Server, Serving};
use crate::policy::Policy;

/// After how many other jobs a move gets a step.
pub(super) const TURNS: u32 = 8;

/// How long it sleeps between two looks at launches that jobs wait for: an eighth of the time for which they have waited, within this.
const LOOKS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

pub(super) struct Worker {
    queue: Arc<Queue>,
    /// Nothing: it serves all.
    lane: Option<usize>,
    /// The last job that is its business.
    upto: u64,
    policy: Arc<Mutex<Box<dyn Policy>>>,
    aside: Aside,
    turns: u32,
}

/// A launch, and the numbers of the jobs that wait for it.
type Awaited = (Arc<InFlight>, SmallVec<[u64; 1]>);

/// Jobs that wait for launches.
struct Aside {
    /// By device, queue and value: of each queue only the first is looked at, since a device ends its launches in order.
    points: BTreeMap<(usize, u32, u64), Awaited>,
    /// The device has as many launches as it gets at once, until this one has ended.
    crowd: Option<Arc<InFlight>>,
    /// Those of launches that are only being submitted.
    coming: Vec<(Arc<InFlight>, u64)>,
    since: Instant,
}

impl Aside {
    fn is_empty(&self) -> bool {
        self.points.is_empty() && self.coming.is_empty() && self.crowd.is_none()
    }

    /// Whether the device may not get another launch yet.
    fn is_crowded(&mut self, free: &mut Free) -> bool {
        if self.crowd.as_ref().is_some_and(|l| l.wait(free, Some(Duration::ZERO))) {
            self.crowd = None;
            self.since = Instant::now();
        }
        self.crowd.is_some()
    }

    fn add(&mut self, launch: Arc<InFlight>, number: u64) {
        self.since = Instant::now();
        match launch.point() {
            Some(p) => {
                let at = (launch.mirror().slot(), p.queue, p.value);
                self.points.entry(at).or_insert_with(|| (launch, SmallVec::new())).1.push(number);
            }
            None => self.coming.push((launch, number)),
        }
    }

    /// The jobs whose launches have ended, which are retired here.
    fn ended(&mut self, free: &mut Free) -> Vec<u64> {
        let mut out = Vec::new();
        for (launch, number) in std::mem::take(&mut self.coming) {
            if launch.has_ended() { out.push(number) } else { self.add(launch, number) }
        }
        let mut from = (0, 0, 0);
        while let Some((at, (launch, _))) = self.points.range(from..).next() {
            let at = *at;
            if launch.wait(free, Some(Duration::ZERO)) {
                out.extend(self.points.remove(&at).into_iter().flat_map(|(_, numbers)| numbers));
            } else {
                from = (at.0, at.1 + 1, 0);
            }
        }
        if !out.is_empty() {
            self.since = Instant::now();
        }
        out
    }

    fn pause(&self) -> Duration {
        (self.since.elapsed() / 8).clamp(LOOKS.0, LOOKS.1)
    }
}

impl Worker {
    pub(super) fn new(queue: Arc<Queue>, lane: Option<usize>, policy: Arc<Mutex<Box<dyn Policy>>>) -> Self {
        let aside = Aside { points: BTreeMap::new(), crowd: None, coming: Vec::new(), since: Instant::now() };
        Self { queue, lane, upto: u64::MAX, policy, aside, turns: 0 }
    }

    /// The thread of a lane, until the scheduler is stopped and nothing is left.
    pub(super) fn run(mut self) {
        os::leave_signals_to_the_program();
        let _or_die = os::OrDie;
        let lane = self.lane.unwrap_or(0);
        let _serving = Serving::begin(Server::Scheduler(lane));
        self.serve(|state| state.is_over(lane));
    }

    /// On a caller's thread: everything up to job `number`. What came later is its own caller's, and none of it is taken here.
    pub(super) fn until_done(mut self, number: u64) {
        self.upto = number;
        self.serve(|state| state.oldest().is_none_or(|n| n > number));
    }

    fn serve(&mut self, over: impl Fn(&State) -> bool) {
        loop {
            let mut free = Free::at_entry();
            let ended = if self.aside.is_empty() { Vec::new() } else { self.aside.ended(&mut free) };
            let crowded = self.aside.is_crowded(&mut free);
            if !ended.is_empty() {
                // Others are told: who serves all lanes may have set another thread's jobs aside.
                self.queue.change(|state| ended.into_iter().for_each(|n| state.ready(n)));
            }
            let mut state = self.queue.state.lock();
            if over(&state) {
                return;
            }
            if let Some(task) = state.pick(self.lane, self.upto, &mut self.turns, crowded) {
                drop(state);
                self.carry_out(&mut free, task);
            } else {
                let most = if self.aside.is_empty() { None } else { Some(self.aside.pause()) };
                // Each launch of a flood would wake it for nothing.
                self.queue.sleep(&mut state, self.lane, most, crowded);
            }
        }
    }

    fn carry_out(&mut self, free: &mut Free, task: Task) {
        let waits_for = match &task {
            Task::Launch(_, p, record) => carry::waits_for(p, record),
            Task::Discard(_, part) => carry::keeps_from_dropping(part),
            Task::Step(_, step) => moves::kept_by(step),
        };
        let number = task.number();
        if let Some(launch) = waits_for {
            self.aside.add(launch, number);
            drop(self.queue.change(|state| state.set_aside(task)));
            return;
        }
        if let (Task::Launch(_, _, record), Some(_)) = (&task, self.lane)
            && let Some(launch) = record.mirror().crowded()
        {
            self.aside.crowd = Some(launch);
            self.aside.since = Instant::now();
            self.queue.change(|state| {
                drop(state.set_aside(task));
                state.ready(number);
            });
            return;
        }
        match task {
            Task::Launch(_, p, record) => {
                let taken = self.queue.state.lock().take_moves(number);
                for (n, step) in taken {
                    moves::carry_out(free, &step, &|| true);
                    drop(self.queue.change(|state| state.close(n)));
                }
                if let Err(e) = carry::launch(free, &p, &record, &self.policy) {
                    record.refuse(e);
                    // Otherwise that was done with the submission.
                    p.touches.iter().for_each(|t| t.seg.unqueue());
                }
                drop(self.queue.change(|state| state.finish(number)));
            }
            Task::Discard(_, part) => {
                carry::discard_part(free, &part);
                part.seg.unqueue();
                drop(self.queue.change(|state| state.finish(number)));
            }
            Task::Step(_, step) => {
                let hurry = self.queue.state.lock().hurry(number);
                let go_on = || !hurry.as_ref().is_some_and(|h| h.load(Ordering::Acquire));
                let rest = moves::carry_out(free, &step, &go_on);
                drop(self.queue.change(|state| state.stepped(number, &rest)));
            }
        }
    }
}
