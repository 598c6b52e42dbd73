//! The scheduler: one thread a runtime that carries out, in order, what could not be done by the calling thread.
//!
//! **Guarantee.** Launches and moves that it is given are carried out in the order in which they were asked for. A launch is
//! submitted when every earlier launch of another device that it conflicts with has ended and everything it needs is where the
//! policy wants it; order on one device is the device's.
//!
//! **Lock**: the queue's mutex, a leaf; the policy's mutex, held while the policy is asked, with no engine lock.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use sterna_hal::panics::caught;
use sterna_hal::{Absent, Access};

use crate::Error;
use crate::cut::Cut;
use crate::hmm::devmem::keep;
use crate::hmm::discard::discard;
use crate::hmm::hold;
use crate::hmm::inflight::{InFlight, Touch};
use crate::hmm::lock::Free;
use crate::hmm::migrate::{self, Borders, Home, Want};
use crate::hmm::mirror::{By, DeviceMirror, NotYet};
use crate::hmm::os;
use crate::hmm::range::populate;
use crate::hmm::reaper;
use crate::hmm::schedule::{self, Server, Serving};
use crate::hmm::uses::Of;
use crate::hmm::{Mechanism, PAGE, Pages, Segment, Space};
use crate::launch::{Prepared, at_edges, may_fault};
use crate::policy::{ArgEvent, Hints, LaunchEvent, Place, Policy};
use crate::stats::Cause;

enum Job {
    Launch(Box<Prepared>, Arc<InFlight>),
    /// Pages to a device, or home.
    Prefetch(Arc<Segment>, Pages, Option<Arc<DeviceMirror>>),
    /// A part of an allocation was dropped: its pages, and its bytes, which earlier launches may still use.
    Discard(Arc<Segment>, Pages, Range<u64>),
}

struct Queue {
    jobs: Mutex<State>,
    changed: Condvar,
    /// Jobs asked for and not carried out.
    pending: AtomicUsize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    stop: bool,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Jobs so far, and how many of them were carried out: in order, so that whoever drains waits for those before it only.
    asked: u64,
    done: u64,
}

impl Queue {
    /// A job was carried out; `counted` says that `pending` was lowered for it already.
    fn finished(&self, counted: bool) {
        // Under the lock, so that `drain` does not miss it between its check and its wait.
        let mut state = self.jobs.lock();
        state.done += 1;
        if !counted {
            self.pending.fetch_sub(1, Ordering::AcqRel);
        }
        drop(state);
        self.changed.notify_all();
    }
}

#[derive(Clone)]
pub(crate) struct Scheduler {
    queue: Arc<Queue>,
    space: &'static Space,
    policy: Arc<Mutex<Box<dyn Policy>>>,
}

impl Scheduler {
    pub(crate) fn new(space: &'static Space, policy: Arc<Mutex<Box<dyn Policy>>>) -> Self {
        let queue = Queue { jobs: Mutex::default(), changed: Condvar::new(), pending: AtomicUsize::new(0) };
        Self { queue: Arc::new(queue), space, policy }
    }

    /// Whether everything asked for was carried out.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.pending.load(Ordering::Acquire) == 0
    }

    pub(crate) fn launch(&self, prepared: Prepared, record: Arc<InFlight>) {
        self.push(Job::Launch(Box::new(prepared), record));
    }

    /// Queues a move; `None` is the host. In mode `none` the gate waits for it.
    pub(crate) fn prefetch(&self, seg: Arc<Segment>, pages: Pages, to: Option<Arc<DeviceMirror>>) {
        if to.is_some() && self.space.mechanism() == Mechanism::None {
            seg.rec().gate.away(false);
        }
        self.push(Job::Prefetch(seg, pages, to));
    }

    /// Has `pages` dropped once no launch uses `bytes` any more.
    pub(crate) fn discard(&self, seg: Arc<Segment>, pages: Pages, bytes: Range<u64>) {
        self.push(Job::Discard(seg, pages, bytes));
    }

    fn push(&self, job: Job) {
        self.queue.pending.fetch_add(1, Ordering::AcqRel);
        let mut state = self.queue.jobs.lock();
        state.jobs.push_back(job);
        state.asked += 1;
        if state.thread.is_none() {
            let (queue, space, policy) = (Arc::clone(&self.queue), self.space, Arc::clone(&self.policy));
            match os::spawn("sterna-scheduler", move || run(&queue, space, &policy)) {
                Ok(t) => state.thread = Some(t),
                Err(e) => {
                    // Without a thread (ulimit -u) the caller carries it out: slower, but right.
                    let Some(job) = state.jobs.pop_back() else { return };
                    drop(state);
                    let _ = e;
                    if sterna_hal::in_kernel() {
                        // Not here: it may wait for this kernel.
                        let this = self.clone();
                        return reaper::end(move || {
                            let counted = carry_out(job, this.space, &this.policy, &this.queue.pending);
                            this.queue.finished(counted);
                        });
                    }
                    let counted = carry_out(job, self.space, &self.policy, &self.queue.pending);
                    self.queue.finished(counted);
                    return;
                }
            }
        }
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Waits until everything asked for so far was carried out (launches: submitted or refused).
    pub(crate) fn drain(&self) {
        let mut state = self.queue.jobs.lock();
        let upto = state.asked;
        while state.done < upto {
            schedule::wait(&self.queue.changed, &mut state);
        }
    }

    /// Carries out what is left and ends the thread.
    pub(crate) fn stop(&self) {
        let thread = {
            let mut state = self.queue.jobs.lock();
            state.stop = true;
            state.thread.take()
        };
        self.queue.changed.notify_all();
        if let Some(t) = thread
            && t.thread().id() != std::thread::current().id()
        {
            // It panics only for a defect of ours, whose message is out already.
            let _ = t.join();
        }
    }

    /// In a forked child: forgets the parent's thread.
    pub(crate) fn abandon(&self) {
        std::mem::forget(Arc::clone(&self.queue));
    }
}

fn run(queue: &Queue, space: &'static Space, policy: &Mutex<Box<dyn Policy>>) {
    os::leave_signals_to_the_program();
    let _or_die = os::OrDie;
    let _serving = Serving::begin(Server::Scheduler);
    loop {
        let job = {
            let mut state = queue.jobs.lock();
            loop {
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                if state.stop {
                    return;
                }
                schedule::wait(&queue.changed, &mut state);
            }
        };
        let counted = carry_out(job, space, policy, &queue.pending);
        queue.finished(counted);
    }
}

/// Carries a job out; says whether `pending` was lowered for it already.
fn carry_out(job: Job, space: &'static Space, policy: &Mutex<Box<dyn Policy>>, pending: &AtomicUsize) -> bool {
    let mut free = Free::at_entry();
    match job {
        Job::Launch(p, record) => match launch(&mut free, &p, &record, policy, pending) {
            Ok(()) => return true,
            Err(e) => record.refuse(e),
        },
        Job::Prefetch(seg, pages, Some(m)) => {
            // A hint: what cannot be brought stays where it is, and what launches use is not evicted for it.
            let want = Want { access: Access::Read, rank: space.tick(), cause: Cause::Prefetch, own: false };
            let _ = populate(&mut free, &m, &seg, &pages, Place::Migrate, want);
        }
        Job::Prefetch(seg, pages, None) => {
            let keep = space.mechanism() == Mechanism::None;
            let home = if keep { Home::SHARED } else { Home::READING };
            let _ = migrate::bring_home(&mut free, &seg, &pages, home, Cause::Prefetch);
        }
        Job::Discard(seg, pages, bytes) => {
            if Arc::strong_count(&seg) == 1 {
                return false; // it goes as a whole
            }
            seg.wait_unused(&mut free, &bytes, true);
            // What cannot be given back now goes with the rest of the allocation.
            let _ = discard(&mut free, &seg, &pages);
            seg.heal(&bytes);
        }
    }
    false
}

fn launch(
    free: &mut Free,
    p: &Prepared,
    record: &Arc<InFlight>,
    policy: &Mutex<Box<dyn Policy>>,
    pending: &AtomicUsize,
) -> Result<(), Error> {
    let mirror = record.mirror();
    for t in &p.touches {
        wait_elsewhere(free, t, record);
    }
    record.untainted()?;
    // An argument of which the program says different things is placed in parts.
    let parts = |t: &Touch| {
        let seg = Arc::clone(&t.seg);
        let part = move |(bytes, hints), access| (Touch { seg: Arc::clone(&seg), bytes, access }, hints);
        let access = t.access;
        t.seg.hinted(&t.bytes).into_iter().map(move |p| part(p, access))
    };
    let (touches, hints): (Vec<Touch>, Vec<Hints>) = p.touches.iter().flat_map(parts).unzip();
    let event = |(t, hints): (&Touch, &Hints)| ArgEvent {
        segment: u64::from(t.seg.slot()),
        bytes: t.bytes.clone(),
        access: t.access,
        hints: *hints,
    };
    let args: Vec<ArgEvent> = touches.iter().zip(&hints).map(event).collect();
    let now = mirror.space().tick();
    let mut places = Vec::with_capacity(args.len());
    let budget = mirror.device().memory().budget;
    let event = LaunchEvent { now, device: mirror.slot(), caps: mirror.caps(), budget, args: &args };
    let mut asked = policy.lock();
    // A policy is the program's: its panic ends the launch that it was asked about, not the thread of all launches.
    if caught(|| asked.launch(&event, &mut places)).is_err() {
        return Err(Error::Policy { kernel: p.kernel.name });
    }
    drop(asked);
    places.resize(args.len(), Place::Migrate);
    let faults = may_fault(mirror);
    let placed: Vec<(Touch, Place)> = touches.into_iter().zip(places).collect();
    let cut = Cut::new(p, mirror, &placed);
    if !faults && cut.is_needed() {
        return cut.run(free, record, p.groups, pending);
    }
    for t in &p.touches {
        // No argument makes room for another.
        keep(free, mirror, &t.seg, &t.seg.pages_of(&t.bytes), now);
    }
    let gathers = mirror.gather(now, &p.touches);
    let mut attempt = 0;
    loop {
        let mut full = false;
        let mut demand = false;
        for (t, place) in &placed {
            demand |= *place == Place::Demand;
            full |= populate_touch(free, record, t, *place, now)?;
        }
        match if full { Ok(()) } else { Borders::prepare(free, record, &p.touches, now) } {
            Err(Error::OutOfDeviceMemory { .. }) if !faults => full = true,
            done => done?,
        }
        if full && !faults {
            record.keep(None);
            // It would fit, but for something else that stays.
            drop(gathers);
            return cut.run(free, record, p.groups / 2, pending);
        }
        // On a device that faults, what was taken away again meanwhile comes by demand.
        attempt += 1;
        let may = faults && (demand || full || attempt > 2);
        match p.submit(mirror, record, may, By::Scheduler(pending)) {
            Ok(()) => return Ok(()),
            Err(NotYet::Failed(e)) => return Err(mirror.noticed(e)),
            Err(NotYet::Pinned) if faults => return Err(Error::Pinned),
            Err(NotYet::Populate) if mirror.is_lost() => return Err(mirror.loss()),
            Err(NotYet::Held) => p.touches.iter().for_each(|t| hold::wait(&t.seg, mirror.slot())),
            Err(NotYet::Populate | NotYet::Pinned) => {}
        }
        if may || mirror.caps().absent != Absent::Faults {
            for t in &p.touches {
                mirror.flush_stale(free, &t.seg)?;
            }
        }
    }
}

/// Populates one argument; says whether something found no room. Pages that are replaced only in part keep the rest of
/// their bytes, so they are brought as for reading and writing.
pub(crate) fn populate_touch(free: &mut Free, record: &InFlight, t: &Touch, place: Place, now: u64) -> Result<bool, Error> {
    match populate_parts(free, record, t, place, now) {
        // Where addresses are memory, they say so.
        Err(Error::OutOfDeviceMemory { .. }) if !may_fault(record.mirror()) => Ok(true),
        done => done,
    }
}

fn populate_parts(free: &mut Free, record: &InFlight, t: &Touch, place: Place, now: u64) -> Result<bool, Error> {
    let mirror = record.mirror();
    let pages = t.seg.pages_of(&t.bytes);
    let want = |access| Want { access, rank: now, cause: Cause::Launch, own: false };
    // An earlier launch that is not done may still fault on what this one replaces: its bytes have to come along.
    if t.access != Access::Write || used_before(t, record) {
        return Ok(populate(free, mirror, &t.seg, &pages, place, want(at_edges(t.access)))?.full);
    }
    // Whole grains are replaced; the segment's end counts as a border, since nothing lies behind it.
    let grain = mirror.pods().pages_per_grain() as u64;
    let base = t.seg.offset();
    let inner_start = (base + t.bytes.start).div_ceil(PAGE * grain) * grain;
    let inner_end = if t.bytes.end == t.seg.used() { pages.0.end } else { (base + t.bytes.end) / (PAGE * grain) * grain };
    if inner_start >= inner_end {
        return Ok(populate(free, mirror, &t.seg, &pages, place, want(at_edges(t.access)))?.full);
    }
    let mut full = false;
    for (part, access) in [
        (pages.0.start..inner_start.min(pages.0.end), at_edges(t.access)),
        (inner_start..inner_end, Access::Write),
        (inner_end..pages.0.end, at_edges(t.access)),
    ] {
        if part.start < part.end {
            full |= populate(free, mirror, &t.seg, &Pages(part), place, want(access))?.full;
        }
    }
    Ok(full)
}

/// Whether an earlier launch on the same device uses the bytes and is not done.
fn used_before(t: &Touch, record: &InFlight) -> bool {
    let slot = record.mirror().slot();
    let uses = t.seg.uses.lock();
    uses.overlapping(Of::Slot(slot), &t.bytes, true).any(|u| u.launch.id < record.id && !u.launch.poll_only())
}

/// Waits for earlier launches of other devices that conflict with this use.
fn wait_elsewhere(free: &mut Free, t: &Touch, record: &Arc<InFlight>) {
    #[cfg(feature = "planted")]
    if crate::hmm::planted::on(&crate::hmm::planted::NO_ORDER_BETWEEN_DEVICES) {
        return;
    }
    loop {
        let slot = record.mirror().slot();
        let uses = t.seg.uses.lock();
        let mut others = uses.overlapping(Of::Others(slot), &t.bytes, t.access.writes());
        let next = others.find(|u| u.launch.id < record.id).map(|u| Arc::clone(&u.launch));
        drop(others);
        drop(uses);
        match next {
            Some(l) => {
                l.wait(free, None);
            }
            None => return,
        }
    }
}
