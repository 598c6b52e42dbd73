//! Jobs asked for and not carried out, and what each stands behind.
//!
//! **Guarantee.** A job is picked when no earlier one that it conflicts with is left, and none that is being carried out uses its pages.
//! *Conflict*: launches by the bytes that they share, one of them writing; moves with everything on their pages; a dropped part with the
//! launches on its bytes. Launches do not stand behind moves: they carry out the part that concerns them themselves.
//!
//! **States of a job:** *behind* (listed with the newest job that it conflicts with, and looked at again when that one is gone), *ready*,
//! *running*, *aside* (it waits for a launch that a device has; see [`Waits`]), gone.
//!
//! **Costs** by what a job touches, not by how many there are: see [`Stretches`].
//!
//! **Lock**: one mutex around all of it, a leaf, held for operations on these lists.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use sterna_hal::kernel::MOST_BUFFERS;

use super::moves::Move;
use crate::hmm::inflight::{InFlight, Touch};
use crate::hmm::schedule;
use crate::hmm::stretches::Stretches;
use crate::hmm::{PAGE, Pages, Segment};
use crate::launch::Prepared;

/// How many ready jobs are looked at for one that no running job stands in the way of.
const LOOKED_AT: usize = 64;
/// Arguments of a launch have numbers of their own in the lists by bytes, which end in so many bits.
const ARGS: u32 = MOST_BUFFERS.next_power_of_two().ilog2();

pub(super) enum Job {
    Launch(Box<Prepared>, Arc<InFlight>),
    /// Pages to a device, or home.
    Move(Move),
    /// A part of an allocation was dropped.
    Discard(Part),
}

impl Job {
    /// Has the segments know of it, so that launches look for what stands before them.
    pub(super) fn count(&self) {
        match self {
            Self::Launch(p, _) => p.touches.iter().for_each(|t| t.seg.queue()),
            Self::Move(m) => m.seg.queue(),
            Self::Discard(part) => part.seg.queue(),
        }
    }
}

/// What is to be done now.
pub(super) enum Task {
    Launch(u64, Box<Prepared>, Arc<InFlight>),
    Discard(u64, Part),
    /// A part of a move.
    Step(u64, Step),
}

impl Task {
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Launch(n, ..) | Self::Discard(n, ..) | Self::Step(n, _) => *n,
        }
    }
}

/// A part of an allocation that was dropped: its pages, and its bytes, which earlier launches may still use.
pub(super) struct Part {
    pub(super) seg: Arc<Segment>,
    pub(super) pages: Pages,
    pub(super) bytes: Range<u64>,
    /// The last use of the segment that there was when it was dropped.
    pub(super) latest: u64,
}

/// Pages that are to move, of one segment.
pub(super) struct Step {
    pub(super) seg: Arc<Segment>,
    pub(super) pages: Pages,
    pub(super) to: Option<Arc<crate::hmm::mirror::DeviceMirror>>,
}

/// Bytes of a segment that a job is about. It does not keep the segment: its job does.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    slot: u32,
    bytes: Range<u64>,
    /// The whole pages of it.
    pages: Pages,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Reads,
    Writes,
    Moves,
    /// Nothing stands behind it.
    Drops,
}

type Claims = SmallVec<[Claim; 4]>;

struct Entry {
    lane: usize,
    /// Nothing while it runs; a move stays.
    job: Option<Job>,
    claims: Claims,
    /// Jobs that stand behind it.
    behind: SmallVec<[u64; 2]>,
}

/// What queued jobs do with one segment, by job and argument.
#[derive(Default)]
struct Queued {
    reads: Stretches<()>,
    writes: Stretches<()>,
    moves: Stretches<u64>,
}

struct Running {
    number: u64,
    claims: Claims,
}

/// The jobs of one thread.
struct Lane {
    /// The device's; nothing for what comes home and what is dropped.
    slot: Option<usize>,
    /// Jobs that are not gone.
    left: usize,
    ready: BTreeSet<u64>,
    moves: BTreeSet<u64>,
    thread: Option<JoinHandle<()>>,
    /// Its thread sleeps.
    asleep: bool,
    /// Somebody waits for the step of a move to end.
    hurry: Arc<AtomicBool>,
}

pub(super) struct Queue {
    pub(super) state: Mutex<State>,
    /// For whoever waits for jobs to be gone, or for anything else.
    changed: Condvar,
    /// For the thread of each lane.
    work: Box<[Condvar]>,
}

pub(super) struct State {
    asked: u64,
    jobs: BTreeMap<u64, Entry>,
    segments: FxHashMap<u32, Queued>,
    lanes: Vec<Lane>,
    running: SmallVec<[Running; 4]>,
    /// Numbers up to which threads wait for jobs to be gone: nobody is woken for each of a hundred thousand.
    upto: SmallVec<[u64; 2]>,
    /// How many threads wait for anything to change.
    curious: usize,
    /// Pages that no move may have any more, by segment, while somebody waits for a step there.
    kept: Vec<(u32, Pages)>,
    stop: bool,
}

impl Queue {
    pub(super) fn new(slots: &[usize]) -> Self {
        let lane = |slot| Lane {
            slot,
            left: 0,
            ready: BTreeSet::new(),
            moves: BTreeSet::new(),
            thread: None,
            asleep: false,
            hurry: Arc::default(),
        };
        let state = State {
            asked: 0,
            jobs: BTreeMap::new(),
            segments: FxHashMap::default(),
            lanes: slots.iter().map(|slot| Some(*slot)).chain([None]).map(lane).collect(),
            running: SmallVec::new(),
            upto: SmallVec::new(),
            curious: 0,
            kept: Vec::new(),
            stop: false,
        };
        let work = state.lanes.iter().map(|_| Condvar::new()).collect();
        Self { state: Mutex::new(state), changed: Condvar::new(), work }
    }

    /// Changes the state and tells everybody whom that concerns. What `change` gives back is dropped with the lock open: it may be the
    /// last that keeps a segment.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let done = change(&mut state);
        self.tell(state);
        done
    }

    /// As [`change`](Self::change), of what was changed already.
    pub(super) fn tell(&self, mut state: MutexGuard<'_, State>) {
        let stop = state.stop;
        for (lane, work) in state.lanes.iter_mut().zip(&self.work) {
            if lane.asleep && (stop || !lane.ready.is_empty() || !lane.moves.is_empty()) {
                lane.asleep = false;
                work.notify_one();
            }
        }
        let concerned = state.curious > 0 || state.upto.iter().any(|n| state.is_gone_up_to(*n));
        drop(state);
        if concerned {
            self.changed.notify_all();
        }
    }

    /// Sleeps until every job up to number `upto` is gone.
    pub(super) fn sleep_until_gone(&self, state: &mut MutexGuard<'_, State>, upto: u64) {
        state.upto.push(upto);
        while !state.is_gone_up_to(upto) {
            schedule::wait(&self.changed, state);
        }
        if let Some(i) = state.upto.iter().position(|n| *n == upto) {
            state.upto.swap_remove(i);
        }
    }

    /// Sleeps until anything has changed.
    pub(super) fn sleep_until_changed(&self, state: &mut MutexGuard<'_, State>) {
        self.sleep(state, None, None, false);
    }

    /// Sleeps until there may be something to do for `lane`, or for anybody; a while at most, if that is given. With `deaf` only that
    /// while ends it.
    pub(super) fn sleep(&self, state: &mut MutexGuard<'_, State>, lane: Option<usize>, most: Option<Duration>, deaf: bool) {
        let work = lane.map_or(&self.changed, |l| &self.work[l]);
        match lane {
            Some(lane) => state.lanes[lane].asleep = !deaf,
            None => state.curious += 1,
        }
        match most {
            Some(most) => schedule::wait_for(work, state, most),
            None => schedule::wait(work, state),
        }
        match lane {
            Some(lane) => state.lanes[lane].asleep = false,
            None => state.curious -= 1,
        }
    }
}

fn bytes_of(seg: &Segment, pages: &Pages) -> Range<u64> {
    let start = pages.0.start * PAGE - seg.offset();
    start..start + pages.bytes()
}

fn claim(seg: &Segment, bytes: &Range<u64>, kind: Kind) -> Claim {
    Claim { slot: seg.slot(), bytes: bytes.clone(), pages: seg.pages_of(bytes), kind }
}

fn claims(job: &Job) -> Claims {
    match job {
        Job::Launch(p, _) => {
            let kind = |t: &Touch| if t.access.writes() { Kind::Writes } else { Kind::Reads };
            p.touches.iter().map(|t| claim(&t.seg, &t.bytes, kind(t))).collect()
        }
        Job::Move(m) => {
            let start = m.left.iter().map(|p| p.0.start).min().unwrap_or(0);
            let hull = start..m.left.iter().map(|p| p.0.end).max().unwrap_or(start);
            SmallVec::from_iter([claim(&m.seg, &bytes_of(&m.seg, &Pages(hull)), Kind::Moves)])
        }
        Job::Discard(p) => SmallVec::from_iter([claim(&p.seg, &p.bytes, Kind::Drops)]),
    }
}

/// Whether a job would take pages from one that is being carried out. A launch does not wait for a move: what both want, it brings itself.
fn collides(job: &Claim, running: &Claim) -> bool {
    let apart = running.kind == Kind::Moves || job.kind == Kind::Reads && running.kind == Kind::Reads;
    !apart && job.slot == running.slot && job.pages.intersects(&running.pages)
}

/// What is left of `pages` without `other`.
fn without(pages: &Pages, other: &Pages) -> impl Iterator<Item = Pages> {
    crate::hmm::segment::without(&pages.0, &other.0).map(Pages)
}

impl State {
    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    fn is_gone_up_to(&self, number: u64) -> bool {
        self.oldest().is_none_or(|n| n > number)
    }

    /// The first job that is not gone.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.jobs.first_key_value().map(|(n, _)| *n)
    }

    pub(super) fn needs_thread(&self, lane: usize) -> bool {
        self.lanes[lane].thread.is_none()
    }

    pub(super) fn set_thread(&mut self, lane: usize, thread: JoinHandle<()>) {
        self.lanes[lane].thread = Some(thread);
    }

    /// Whether something is left that no thread may ever come to: what a kernel asked for when there was none to be had.
    pub(super) fn is_unserved(&self) -> bool {
        self.lanes.iter().any(|l| l.left > 0 && l.thread.is_none())
    }

    pub(super) fn stop(&mut self) -> Vec<JoinHandle<()>> {
        self.stop = true;
        self.lanes.iter_mut().filter_map(|l| l.thread.take()).collect()
    }

    /// Whether a lane's thread may end.
    pub(super) fn is_over(&self, lane: usize) -> bool {
        self.stop && self.lanes[lane].left == 0
    }

    /// Says when the steps of a lane's moves are to end early.
    pub(super) fn hurry(&self, number: u64) -> Option<Arc<AtomicBool>> {
        self.jobs.get(&number).map(|e| Arc::clone(&self.lanes[e.lane].hurry))
    }

    /// Adds a job; says its number and its lane.
    pub(super) fn push(&mut self, job: Job) -> (u64, usize) {
        self.asked += 1;
        let number = self.asked;
        let slot = match &job {
            Job::Launch(_, record) => Some(record.mirror().slot()),
            Job::Move(m) => m.to.as_ref().map(|m| m.slot()),
            Job::Discard(_) => None,
        };
        let lane = self.lanes.iter().position(|l| l.slot == slot).unwrap_or(0);
        let claims = claims(&job);
        self.jobs.insert(number, Entry { lane, job: Some(job), claims: claims.clone(), behind: SmallVec::new() });
        self.lanes[lane].left += 1;
        self.enqueue(number, &claims);
        for (i, c) in claims.into_iter().enumerate() {
            let queued = self.segments.entry(c.slot).or_default();
            let at = number << ARGS | i as u64;
            match c.kind {
                Kind::Reads => queued.reads.add(at, c.bytes, ()),
                Kind::Writes => queued.writes.add(at, c.bytes, ()),
                Kind::Moves => queued.moves.add(at, c.bytes, number),
                Kind::Drops => {}
            }
        }
        (number, lane)
    }

    /// The newest job before number `before` that one with this claim conflicts with.
    fn conflict(&self, c: &Claim, before: u64) -> Option<u64> {
        let queued = self.segments.get(&c.slot)?;
        let before = before << ARGS;
        let newest = |list: &Stretches<()>| list.newest(&c.bytes, before).map(|(n, ())| n);
        let read = if c.kind == Kind::Reads { None } else { newest(&queued.reads) };
        let moved = if c.kind == Kind::Moves { queued.moves.newest(&c.bytes, before).map(|(n, _)| n) } else { None };
        newest(&queued.writes).max(read).max(moved).map(|n| n >> ARGS)
    }

    /// Puts a job behind another, or among those that can be carried out.
    fn enqueue(&mut self, number: u64, claims: &[Claim]) {
        let before = claims.iter().filter_map(|c| self.conflict(c, number)).max();
        match before.and_then(|n| self.jobs.get_mut(&n)) {
            Some(before) => before.behind.push(number),
            None => self.ready(number),
        }
    }

    /// A job stands behind none any more, and waits for no launch.
    pub(super) fn ready(&mut self, number: u64) {
        let Some(entry) = self.jobs.get(&number) else { return };
        let lane = &mut self.lanes[entry.lane];
        if matches!(entry.job, Some(Job::Move(_))) {
            lane.moves.insert(number);
        } else {
            lane.ready.insert(number);
            lane.hurry.store(true, Ordering::Release);
        }
    }

    /// Whether something that was asked for stands before a launch of device `slot` over `touches`.
    pub(super) fn is_behind(&self, touches: &[Touch], slot: usize) -> bool {
        touches.iter().any(|t| {
            let c = claim(&t.seg, &t.bytes, if t.access.writes() { Kind::Writes } else { Kind::Reads });
            self.conflict(&c, u64::MAX >> ARGS).is_some()
                || self.moves_on(&c).any(|(_, m)| m.to.as_ref().is_none_or(|m| m.slot() != slot))
        })
    }

    /// The moves that have to do with the pages of a claim.
    fn moves_on(&self, c: &Claim) -> impl Iterator<Item = (u64, &Move)> {
        let (pages, queued) = (c.pages.clone(), self.segments.get(&c.slot));
        let found = queued.into_iter().flat_map(move |q| {
            let first = c.bytes.start / PAGE * PAGE;
            let bytes = first..first + pages.bytes();
            q.moves.overlapping(&bytes).copied().collect::<SmallVec<[u64; 2]>>()
        });
        found.filter_map(|n| match self.jobs.get(&n)?.job.as_ref()? {
            Job::Move(m) => Some((n, m)),
            _ => None,
        })
    }

    /// The next task of a lane, or of any up to job `upto`: only steps of moves, if the device is `crowded`.
    pub(super) fn pick(&mut self, lane: Option<usize>, upto: u64, turns: &mut u32, crowded: bool) -> Option<Task> {
        let lanes = lane.map_or(0..self.lanes.len(), |l| l..l + 1);
        lanes.into_iter().find_map(|l| {
            if crowded {
                self.pick_step(l, upto, turns)
            } else if *turns < super::lane::TURNS {
                self.pick_ready(l, upto, turns).or_else(|| self.pick_step(l, upto, turns))
            } else {
                self.pick_step(l, upto, turns).or_else(|| self.pick_ready(l, upto, turns))
            }
        })
    }

    fn is_free(&self, claims: &[Claim]) -> bool {
        !self.running.iter().any(|r| r.claims.iter().any(|b| claims.iter().any(|a| collides(a, b))))
    }

    fn pick_ready(&mut self, lane: usize, upto: u64, turns: &mut u32) -> Option<Task> {
        let ready = self.lanes[lane].ready.range(..=upto).take(LOOKED_AT).copied();
        let number = ready.into_iter().find(|n| self.jobs.get(n).is_some_and(|e| self.is_free(&e.claims)))?;
        self.lanes[lane].ready.remove(&number);
        let over = self.lanes[lane].ready.is_empty();
        self.lanes[lane].hurry.store(!over, Ordering::Release);
        *turns += 1;
        let entry = self.jobs.get_mut(&number)?;
        let (job, claims) = (entry.job.take()?, entry.claims.clone());
        self.running.push(Running { number, claims });
        match job {
            Job::Launch(p, record) => Some(Task::Launch(number, p, record)),
            Job::Discard(part) => Some(Task::Discard(number, part)),
            Job::Move(_) => None,
        }
    }

    fn pick_step(&mut self, lane: usize, upto: u64, turns: &mut u32) -> Option<Task> {
        *turns = 0;
        let first: SmallVec<[u64; LOOKED_AT]> = self.lanes[lane].moves.range(..=upto).take(LOOKED_AT).copied().collect();
        for number in first {
            let Some(Entry { job: Some(Job::Move(m)), .. }) = self.jobs.get(&number) else { continue };
            let Some(pages) = m.left.front() else { continue };
            let claims = SmallVec::from_iter([claim(&m.seg, &bytes_of(&m.seg, pages), Kind::Moves)]);
            if !self.is_free(&claims) {
                continue;
            }
            let Some(Entry { job: Some(Job::Move(m)), .. }) = self.jobs.get_mut(&number) else { continue };
            let pages = m.left.pop_front()?;
            let step = Step { seg: Arc::clone(&m.seg), pages, to: m.to.clone() };
            self.lanes[lane].moves.remove(&number);
            self.running.push(Running { number, claims });
            return Some(Task::Step(number, step));
        }
        None
    }

    /// The parts of moves asked for before job `number`, a launch, on its pages: it carries them out before itself.
    pub(super) fn take_moves(&mut self, number: u64) -> Vec<(u64, Step)> {
        let Some(claims) = self.jobs.get(&number).map(|e| e.claims.clone()) else { return Vec::new() };
        let mut taken = Vec::new();
        for c in &claims {
            let before: SmallVec<[u64; 2]> = self.moves_on(c).map(|(n, _)| n).filter(|n| *n < number).collect();
            for n in before {
                let Some(Entry { job: Some(Job::Move(m)), .. }) = self.jobs.get_mut(&n) else { continue };
                for pages in m.cut_out(&c.pages) {
                    taken.push((n, Step { seg: Arc::clone(&m.seg), pages, to: m.to.clone() }));
                }
            }
        }
        taken
    }

    /// Has moves leave `pages` alone, but for what is under way: says whether something is. Gives what has nothing left to do.
    pub(super) fn cut_moves(&mut self, seg: &Segment, pages: &Pages) -> (bool, Vec<Job>) {
        let c = claim(seg, &bytes_of(seg, pages), Kind::Moves);
        let numbers: SmallVec<[u64; 2]> = self.moves_on(&c).map(|(n, _)| n).collect();
        let mut over = Vec::new();
        for number in numbers {
            if let Some(Entry { job: Some(Job::Move(m)), .. }) = self.jobs.get_mut(&number) {
                m.cut_out(pages);
            }
            over.extend(self.close(number));
        }
        let on =
            |r: &&Running| r.claims.iter().any(|b| b.kind == Kind::Moves && b.slot == c.slot && b.pages.intersects(pages));
        let under_way = self.running.iter().find(on).map(|r| r.number);
        if let Some(hurry) = under_way.and_then(|n| self.hurry(n)) {
            hurry.store(true, Ordering::Release);
        }
        (under_way.is_some(), over)
    }

    /// Has no move put `pages` back among what it has left, until [`no_longer`](Self::no_longer).
    pub(super) fn keep_from_moves(&mut self, seg: &Segment, pages: &Pages) {
        self.kept.push((seg.slot(), pages.clone()));
    }

    pub(super) fn no_longer(&mut self, seg: &Segment, pages: &Pages) {
        if let Some(i) = self.kept.iter().position(|(s, p)| *s == seg.slot() && p == pages) {
            self.kept.swap_remove(i);
        }
    }

    /// What was picked waits for a launch instead. Gives a move that has nothing left to do.
    pub(super) fn set_aside(&mut self, task: Task) -> Option<Job> {
        let (number, job) = match task {
            Task::Launch(n, p, record) => (n, Job::Launch(p, record)),
            Task::Discard(n, part) => (n, Job::Discard(part)),
            Task::Step(n, step) => {
                self.put_back(n, &step.pages);
                self.running.retain(|r| r.number != n);
                return self.close(n);
            }
        };
        self.running.retain(|r| r.number != number);
        if let Some(entry) = self.jobs.get_mut(&number) {
            entry.job = Some(job);
        }
        None
    }

    /// What a step has left of its pages.
    fn put_back(&mut self, number: u64, pages: &Pages) {
        let Some(Entry { job: Some(Job::Move(m)), .. }) = self.jobs.get_mut(&number) else { return };
        let mut left: SmallVec<[Pages; 2]> = SmallVec::from_iter([pages.clone()]);
        for (_, kept) in self.kept.iter().filter(|(slot, _)| *slot == m.seg.slot()) {
            left = left.iter().flat_map(|p| without(p, kept)).collect();
        }
        left.into_iter().filter(|p| !p.is_empty()).rev().for_each(|p| m.left.push_front(p));
    }

    /// A step has ended with these pages left. Gives a move that has nothing left to do.
    pub(super) fn stepped(&mut self, number: u64, rest: &Pages) -> Option<Job> {
        self.put_back(number, rest);
        self.running.retain(|r| r.number != number);
        let over = self.close(number);
        if over.is_none() {
            self.ready(number);
        }
        over
    }

    /// Ends a move that has nothing left to do.
    pub(super) fn close(&mut self, number: u64) -> Option<Job> {
        let Some(Entry { job: Some(Job::Move(m)), .. }) = self.jobs.get(&number) else { return None };
        if !m.left.is_empty() || self.running.iter().any(|r| r.number == number) {
            return None;
        }
        m.seg.unqueue();
        self.finish(number)
    }

    /// A job is gone. Gives a move, to be dropped with the lock open.
    pub(super) fn finish(&mut self, number: u64) -> Option<Job> {
        self.running.retain(|r| r.number != number);
        let entry = self.jobs.remove(&number)?;
        let lane = &mut self.lanes[entry.lane];
        lane.left -= 1;
        lane.ready.remove(&number);
        lane.moves.remove(&number);
        for (i, c) in entry.claims.iter().enumerate() {
            let at = number << ARGS | i as u64;
            let Some(queued) = self.segments.get_mut(&c.slot) else { continue };
            match c.kind {
                Kind::Reads => drop(queued.reads.remove(at, &c.bytes)),
                Kind::Writes => drop(queued.writes.remove(at, &c.bytes)),
                Kind::Moves => drop(queued.moves.remove(at, &c.bytes)),
                Kind::Drops => {}
            }
            if queued.reads.is_empty() && queued.writes.is_empty() && queued.moves.is_empty() {
                self.segments.remove(&c.slot);
            }
        }
        for n in entry.behind {
            if let Some(claims) = self.jobs.get(&n).map(|e| e.claims.clone()) {
                self.enqueue(n, &claims);
            }
        }
        entry.job
    }
}
