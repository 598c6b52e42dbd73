//! A launch that has been asked for and has not retired: what the gate, the order of launches and taint are made of.
//!
//! **States.** `QUEUED` (recorded, with the scheduler) → `SUBMITTED` (the device has it) → `RETIRING` (one thread asks for
//! the outcome) → `ENDED`. A launch that cannot be submitted goes from `QUEUED` to `RETIRING` with an error.
//!
//! **Two ends.** *Finished*: the device is done with it ([`is_finished`](InFlight::is_finished)), and what it wrote into copies of its own
//! has yet to go home. *Ended*: it has retired ([`has_ended`](InFlight::has_ended)), its effects are home, and everybody who waits is
//! told. Who minds the device's accesses asks for the first, who minds bytes for the second; [`is_running`](InFlight::is_running) is for
//! whoever wants to move pages: finished, or ended where it has such copies.
//!
//! **Guarantee.** From [`record`](InFlight::record) until `ENDED` the gates of its segments are up, its uses stand in their
//! lists, and the segments live. Once submitted it retires when its point is reached or its device is lost, and for nothing else: a
//! wait that fails is a matter of the waiting thread. It retires exactly once, on the thread of whoever looks: no thread of ours
//! wakes for a launch that nobody watches.

use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use sterna_hal::{Access, DeviceError, KernelError, Outcome, Point, Ticket};

use super::addr::Span;
use super::host::Mechanism;
use super::lock::Free;
use super::migrate::Borders;
use super::mirror::{DeviceMirror, Loaded};
use super::park::{self, Pauses};
use super::pin;
use super::schedule;
use super::segment::Segment;
use super::uses::Use;
use super::watch::Awaited;
use crate::Error;
use crate::wakers::Wakers;

const QUEUED: u32 = 0;
const SUBMITTED: u32 = 1;
const RETIRING: u32 = 2;
const ENDED: u32 = 3;

/// Threads that sleep on the state of some launch.
static SLEEPERS: AtomicU32 = AtomicU32::new(0);
/// The number of a driver's own launches: whoever runs them orders them, and they wait for no other.
pub(crate) const RAW: u64 = 0;

/// What a launch does with one segment.
#[derive(Clone, Debug)]
pub(crate) struct Touch {
    pub(crate) seg: Arc<Segment>,
    /// Bytes of the segment.
    pub(crate) bytes: Range<u64>,
    pub(crate) access: Access,
}

/// A launch on its way.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) id: u64,
    kernel: &'static str,
    mirror: Arc<DeviceMirror>,
    state: AtomicU32,
    ticket: TicketCell,
    /// How it failed, and whether somebody has been told.
    error: OnceLock<(Arc<Error>, Arc<AtomicBool>)>,
    lists: Mutex<Lists>,
    /// It reads what a failed launch would have written: that launch's error. Known when it is recorded.
    tainted: OnceLock<Arc<Error>>,
    /// It is a part of another launch, which answers for it.
    part: bool,
    /// Its own copies of pages that stay at home, from before it is submitted until it ends.
    borders: Mutex<Option<Borders>>,
    /// Whether it was submitted with such.
    bordered: AtomicBool,
    sink: Arc<ErrorSink>,
    awaited: Awaited,
}

/// The device's number for a launch: set once, before the state says so. Cheaper than a lock that can be waited for.
#[derive(Debug)]
struct TicketCell {
    id: AtomicU64,
    value: AtomicU64,
    /// The queue, or [`EMPTY`](Self::EMPTY); stored last.
    queue: AtomicU32,
}

impl TicketCell {
    const EMPTY: u32 = u32::MAX;

    const fn empty() -> Self {
        Self { id: AtomicU64::new(0), value: AtomicU64::new(0), queue: AtomicU32::new(Self::EMPTY) }
    }

    fn set(&self, ticket: Ticket) {
        let (id, point) = (ticket.id(), ticket.point());
        debug_assert_ne!(point.queue, Self::EMPTY);
        self.id.store(id, Ordering::Relaxed);
        self.value.store(point.value, Ordering::Relaxed);
        self.queue.store(point.queue, Ordering::Release);
    }

    fn get(&self) -> Option<Ticket> {
        let queue = self.queue.load(Ordering::Acquire);
        let point = Point { queue, value: self.value.load(Ordering::Relaxed) };
        (queue != Self::EMPTY).then(|| Ticket::new(self.id.load(Ordering::Relaxed), point))
    }
}

/// What a launch has until it retires.
#[derive(Debug, Default)]
struct Lists {
    touches: SmallVec<[Touch; 4]>,
    /// Their numbers in the segments' lists.
    numbers: SmallVec<[u64; 4]>,
    /// Launches before it that write what it reads: if one of them fails, so does it.
    upstream: SmallVec<[Arc<InFlight>; 2]>,
    /// Keeps the kernel loaded.
    _kernel: Option<Arc<Loaded>>,
}

/// Who is told of a runtime's launches: errors that nobody may have been told of yet, for `sync`, of which it keeps the oldest, and
/// whoever awaits one.
#[derive(Debug, Default)]
pub(crate) struct ErrorSink {
    errors: Mutex<Vec<(Arc<Error>, Arc<AtomicBool>)>>,
    pub(crate) wakers: Wakers,
}

impl ErrorSink {
    const KEPT: usize = 64;

    fn add(&self, error: &Arc<Error>, seen: &Arc<AtomicBool>) {
        let mut list = self.errors.lock();
        if list.len() < Self::KEPT {
            list.push((Arc::clone(error), Arc::clone(seen)));
        }
    }

    /// The oldest error that nobody was told of.
    pub(crate) fn first_unseen(&self) -> Option<Error> {
        let mut list = self.errors.lock();
        list.retain(|(_, seen)| !seen.load(Ordering::Acquire));
        (!list.is_empty()).then(|| Error::clone(&list.remove(0).0))
    }
}

impl InFlight {
    pub(crate) fn new(
        id: u64,
        kernel: &Arc<Loaded>,
        mirror: Arc<DeviceMirror>,
        touches: SmallVec<[Touch; 4]>,
        sink: Arc<ErrorSink>,
    ) -> Arc<Self> {
        Arc::new(Self::made(id, kernel, mirror, touches, sink))
    }

    /// A part of a launch that was cut. Nobody asks its errors but the launch itself, which answers for what it writes.
    pub(crate) fn part(kernel: &Arc<Loaded>, mirror: Arc<DeviceMirror>, touches: SmallVec<[Touch; 4]>) -> Arc<Self> {
        Arc::new(Self { part: true, ..Self::made(RAW, kernel, mirror, touches, Arc::default()) })
    }

    fn made(
        id: u64,
        kernel: &Arc<Loaded>,
        mirror: Arc<DeviceMirror>,
        touches: SmallVec<[Touch; 4]>,
        sink: Arc<ErrorSink>,
    ) -> Self {
        Self {
            id,
            kernel: kernel.name,
            mirror,
            state: AtomicU32::new(QUEUED),
            ticket: TicketCell::empty(),
            error: OnceLock::new(),
            lists: Mutex::new(Lists { touches, _kernel: Some(Arc::clone(kernel)), ..Lists::default() }),
            tainted: OnceLock::new(),
            part: false,
            borders: Mutex::new(None),
            bordered: AtomicBool::new(false),
            sink,
            awaited: Awaited::default(),
        }
    }

    /// What it uses, until it has ended.
    pub(crate) fn touches(&self) -> SmallVec<[Touch; 4]> {
        self.lists.lock().touches.clone()
    }

    /// The numbers of its uses in the segments' lists, until it has ended.
    pub(crate) fn numbers(&self) -> SmallVec<[u64; 4]> {
        self.lists.lock().numbers.clone()
    }

    pub(crate) fn mirror(&self) -> &Arc<DeviceMirror> {
        &self.mirror
    }

    pub(crate) fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    pub(crate) fn wakers(&self) -> &Wakers {
        &self.sink.wakers
    }

    /// Raises the gates and lists the uses. Once, before the call that launches returns.
    pub(crate) fn record(self: &Arc<Self>) {
        let Lists { touches, numbers, upstream, .. } = &mut *self.lists.lock();
        for t in touches.iter() {
            let rec = t.seg.rec();
            // With the gate open no launch that writes is unfinished, and nothing is tainted.
            let asks = t.access.reads() && self.id != RAW && !rec.gate.is_readable();
            rec.gate.raise(t.access.writes());
            rec.admit(self.mirror.slot());
            rec.view[self.mirror.slot()].active.fetch_add(1, Ordering::AcqRel);
            if t.seg.space().mechanism() == Mechanism::None {
                rec.gate.away(t.access.writes());
            }
            let writes = t.access.writes();
            let mut uses = t.seg.uses.lock();
            if asks {
                // Those who wrote it last answer for those before them.
                let before = uses.last_writers(&t.bytes).map(|(_, l)| l).filter(|l| !Arc::ptr_eq(l, self));
                for l in before {
                    if !upstream.last().is_some_and(|u| Arc::ptr_eq(u, l)) {
                        upstream.push(Arc::clone(l));
                    }
                }
            }
            if asks && t.seg.has_taints() {
                // Where a launch under way writes, that one answers for taints, too: it heals them, or fails of them.
                let written = uses.last_writers(&t.bytes).filter(|(_, l)| l.id != RAW && !Arc::ptr_eq(l, self));
                let (mut at, mut left) = (t.bytes.start, SmallVec::<[Range<u64>; 4]>::new());
                for (w, _) in written {
                    left.push(at..w.start.max(at));
                    at = w.end;
                }
                left.push(at..t.bytes.end);
                if let Some(e) = left.iter().filter(|r| r.start < r.end).find_map(|bytes| t.seg.tainted(bytes)) {
                    let _ = self.tainted.set(e);
                }
            }
            let used = Use::new(t.bytes.clone(), (writes, t.access == Access::Write), Arc::clone(self));
            numbers.push(uses.add(used, !self.part));
        }
    }

    /// Whether what it reads was good when it was asked for.
    pub(crate) fn untainted(&self) -> Result<(), Error> {
        self.tainted.get().map_or(Ok(()), |e| Err(Error::upstream(self.kernel, e)))
    }

    /// It has read what `error` says is not to be had: it fails, however it ends.
    pub(crate) fn spoil(&self, error: Error) {
        let _ = self.tainted.set(Arc::new(error));
    }

    /// The device has it.
    pub(crate) fn submitted(&self, ticket: Ticket) {
        self.ticket.set(ticket);
        self.advance(SUBMITTED);
    }

    fn advance(&self, to: u32) {
        self.state.store(to, Ordering::Release);
        park::wake(&self.state, &SLEEPERS);
    }

    /// It cannot be submitted: retires it with `error`, which taints what it would have written.
    pub(crate) fn refuse(self: &Arc<Self>, error: Error) {
        if self.state.compare_exchange(QUEUED, RETIRING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.finish(Err(error));
        }
    }

    /// The point that is reached when it has ended, once it is submitted.
    pub(crate) fn point(&self) -> Option<Point> {
        self.ticket.get().map(Ticket::point)
    }

    pub(crate) fn is_submitted(&self) -> bool {
        self.state.load(Ordering::Acquire) >= SUBMITTED
    }

    /// Whether it has retired.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) == ENDED
    }

    pub(crate) fn error(&self) -> Option<&Arc<Error>> {
        if self.has_ended() { self.error.get().map(|(e, _)| e) } else { None }
    }

    pub(crate) fn mark_seen(&self) {
        if let Some((_, seen)) = self.error.get() {
            seen.store(true, Ordering::Release);
        }
    }

    /// Whether the device has it and may still use what it was given.
    pub(crate) fn is_running(&self) -> bool {
        // What it wrote into copies of its own has yet to go home when the device has finished.
        self.is_submitted() && if self.bordered.load(Ordering::Acquire) { !self.has_ended() } else { !self.is_finished() }
    }

    /// Gives it its own copies of pages that stay at home, or takes them away again. Before it is submitted.
    pub(crate) fn set_borders(&self, borders: Option<Borders>) {
        self.bordered.store(borders.is_some(), Ordering::Release);
        let before = std::mem::replace(&mut *self.borders.lock(), borders);
        drop(before); // without the lock
    }

    /// The pages of a segment of which it has copies of its own.
    pub(crate) fn own(&self, seg: &Segment) -> SmallVec<[Span; 4]> {
        self.borders.lock().iter().flat_map(|own| own.of(seg)).collect()
    }

    /// Whether pages that a pin keeps at home are in the way of a launch that needs bytes `bytes` of a segment.
    pub(crate) fn is_barred(&self, seg: &Segment, bytes: &Range<u64>) -> bool {
        seg.has_pins() && pin::bars(&self.mirror, seg, bytes, &self.own(seg))
    }

    /// Whether the device has finished with it, retired or not. Asks the device, and changes nothing.
    pub(crate) fn is_finished(&self) -> bool {
        self.has_ended() || self.point().is_some_and(|p| self.mirror.device().reached(p))
    }

    /// Retires it if its point is reached; says whether it has ended.
    pub(crate) fn poll(self: &Arc<Self>) -> bool {
        match self.state.load(Ordering::Acquire) {
            ENDED => true,
            SUBMITTED => {
                let Some(ticket) = self.ticket.get() else { return false };
                if !self.mirror.device().reached(ticket.point()) {
                    return false;
                }
                self.retire(ticket);
                self.has_ended()
            }
            _ => false,
        }
    }

    /// Waits until it has ended, at most `timeout`; says whether it has.
    pub(crate) fn wait(self: &Arc<Self>, _free: &mut Free, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut refused = Pauses::default();
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            match self.state.load(Ordering::Acquire) {
                ENDED => return true,
                SUBMITTED => {
                    let Some(ticket) = self.ticket.get() else { continue };
                    if left.is_none() {
                        schedule::until(|| self.mirror.device().reached(ticket.point()));
                    }
                    match self.mirror.device().wait(ticket.point(), left.unwrap_or(Duration::from_secs(3600))) {
                        Ok(true) => self.mirror.reap_up_to(self),
                        Ok(false) => {}
                        Err(DeviceError::Lost(text)) => self.lost(text),
                        Err(_) if self.mirror.device().reached(ticket.point()) => self.mirror.reap_up_to(self),
                        // It runs on, whatever keeps this thread from sleeping in the driver.
                        Err(_) => refused.pause(left),
                    }
                }
                now => park::wait(&self.state, now, &SLEEPERS, left),
            }
            if left.is_some_and(|l| l.is_zero()) {
                return self.poll();
            }
        }
    }

    /// Its device is gone, and its kernels with it.
    fn lost(self: &Arc<Self>, text: String) {
        let error = DeviceError::Lost(text);
        if self.state.compare_exchange(SUBMITTED, RETIRING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let error = self.mirror.noticed(error);
            self.finish(Err(error));
        }
    }

    fn retire(self: &Arc<Self>, ticket: Ticket) {
        if self.state.compare_exchange(SUBMITTED, RETIRING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return; // another thread is at it
        }
        let mut missed = Vec::new();
        // SAFETY: the ticket of this launch, whose point is reached; the state above lets one thread ask, once.
        let result = match unsafe { self.mirror.device().outcome(ticket, &mut missed) } {
            Outcome::Done => Ok(()),
            Outcome::Failed(KernelError::Lost(text)) => {
                // With the device goes what it alone had, whoever asks for that.
                let _ = self.mirror.noticed(DeviceError::Lost(text.clone()));
                Err(Error::Kernel { kernel: self.kernel, source: KernelError::Lost(text) })
            }
            Outcome::Failed(source) => Err(Error::Kernel { kernel: self.kernel, source }),
            // `DeviceMirror::new` refuses devices whose launches can miss.
            Outcome::Missed(_) => Err(Error::Internal("a launch missed on a device that cannot")),
        };
        self.finish(result);
    }

    /// Lowers the gates; with an error, taints; without, heals what was replaced whole.
    fn finish(self: &Arc<Self>, mut result: Result<(), Error>) {
        if result.is_ok() {
            result = self.untainted();
        }
        let Lists { touches, numbers, upstream, _kernel } = std::mem::take(&mut *self.lists.lock());
        for before in upstream {
            // It ended before this one did: on this device by order, elsewhere because the scheduler waited.
            before.wait(&mut Free::at_entry(), None);
            if let (Ok(()), Some(e)) = (&result, before.error()) {
                result = Err(Error::upstream(self.kernel, e));
            }
        }
        // Before the gates are lowered. What a launch wrote that has failed is not to be seen.
        let own = self.borders.lock().take();
        if let (Some(own), Ok(())) = (&own, &result) {
            result = own.copy_out(&mut Free::at_entry());
        }
        drop(own);
        // One value, however many are told of it.
        let result = result.map_err(Arc::new);
        if let Err(e) = &result {
            let _ = self.error.set((Arc::clone(e), Arc::default()));
        }
        let mut numbers = numbers.into_iter();
        for t in &touches {
            match &result {
                Err(e) if t.access.writes() => t.seg.add_taint(&t.bytes, e, self.id),
                Ok(()) if t.access == Access::Write => t.seg.heal_but_lost(&t.bytes, self.id),
                _ => {}
            }
            if let Some(n) = numbers.next() {
                t.seg.uses.lock().remove(n, self.mirror.slot(), &t.bytes, t.access.writes());
            }
            let rec = t.seg.rec();
            rec.view[self.mirror.slot()].active.fetch_sub(1, Ordering::AcqRel);
            rec.gate.lower(t.access.writes());
        }
        // The last Arc of a dropped segment may be among them: no lock is held here.
        drop(touches);
        if let Some((e, seen)) = self.error.get() {
            self.sink.add(e, seen);
        }
        self.advance(ENDED);
        self.awaited.tell(&self.sink.wakers);
    }
}
