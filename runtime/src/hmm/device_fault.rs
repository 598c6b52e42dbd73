//! The front end of device faults: a device whose accesses fault in this process touched a page that it does not have.
//!
//! **Guarantee.** The faulting thread stops in its SIGSEGV handler and goes on when its page is there. Faults that must wait (a
//! page on its way elsewhere, a time slice, no room) are set aside and tried again when something has changed; the thread that
//! serves waits for copies only, which depend on no fault.
//!
//! **Progress.** A page that has just come to a device stays there for a time slice before another device's fault, or the host's,
//! takes it; the slice doubles with each refault. What a thread asked for last stays while it needs it, and a fault that finds no room
//! goes first: why every instruction, and so every launch, ends is argued in [`arrivals`](super::arrivals). Who asks for the same page
//! again and again is told of after five seconds, as one that waits.
//!
//! **Lock**: none of its own; the signal handler puts its request into a list that is taken as a whole.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sterna_hal::{Access, DevAddr};

use super::addr::{Mask, PAGE, PAGES_PER_BLOCK, Page, Pages, Span, grow};
use super::arrivals::{Asked, LONG_NS};
use super::hold;
use super::host::{Mechanism, chain_sigsegv, faulted_at, in_window, install_sigsegv, is_fetch, wanted};
use super::lock::Free;
use super::migrate::{self, Asks, Home, Want};
use super::mirror::DeviceMirror;
use super::os;
use super::parts::{MAX_DEVICES, Slots};
use super::range::{map_remote, use_in_place};
use super::schedule::{Server, Serving};
use super::segment::SegRec;
use super::space::Space;
use super::uses::Of;
use crate::Error;
use crate::stats::Cause;

const AGAIN_NS: u64 = 200_000;

/// A thread that sleeps in its handler, on whose stack this and `answer` live until it is answered.
#[derive(Clone, Copy)]
struct Request {
    slot: usize,
    at: usize,
    access: Access,
    thread: i32,
    /// Nobody has looked at it yet.
    fresh: bool,
    answer: *const AtomicU32,
    /// The record of the segment that it is about, over which launches may be held back for it.
    about: Option<&'static SegRec>,
    /// Launches over it are held back until the next look.
    holds: bool,
    /// When it is told of, in nanoseconds of the monotonic clock; once.
    told_at: u64,
    /// The one that was asked before it.
    next: *const Request,
}

const WAITING: u32 = 0;
const SERVED: u32 = 1;
const NOT_OURS: u32 = 2;

/// The queue of device faults and the windows they come from. The queue is a list of what lies on the stacks of those who ask: it is
/// never full, however many workers a device has.
pub(crate) struct DeviceFaults {
    newest: AtomicPtr<Request>,
    rung: AtomicU32,
    /// Faults set aside.
    waiting: AtomicU32,
    windows: [(AtomicUsize, AtomicUsize); MAX_DEVICES],
    /// Bit `d`: device `d` has a window.
    watched: AtomicU64,
}

impl std::fmt::Debug for DeviceFaults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceFaults")
    }
}

impl DeviceFaults {
    pub(crate) fn new() -> Self {
        Self {
            newest: AtomicPtr::new(std::ptr::null_mut()),
            rung: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            windows: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; MAX_DEVICES],
            watched: AtomicU64::new(0),
        }
    }

    pub(crate) fn start(&self, space: &'static Space) -> Result<(), Error> {
        install_sigsegv(space.mechanism(), on_sigsegv).map_err(|e| Error::driver("sigaction", &e))?;
        os::spawn("sterna-device-fault", move || run(space)).map(drop).map_err(Error::System)
    }

    /// Faults at these addresses are `slot`'s from now on.
    pub(crate) fn watch(&self, slot: usize, window: &Range<usize>) {
        self.windows[slot].1.store(window.end, Ordering::Relaxed);
        self.windows[slot].0.store(window.start, Ordering::Release);
        self.watched.fetch_or(1 << slot, Ordering::AcqRel);
    }

    pub(crate) fn unwatch(&self, slot: usize) {
        self.watched.fetch_and(!(1 << slot), Ordering::AcqRel);
        self.windows[slot].0.store(usize::MAX, Ordering::Release);
        self.windows[slot].1.store(0, Ordering::Release);
    }

    fn whose(&self, at: usize) -> Option<usize> {
        Slots(self.watched.load(Ordering::Acquire)).find(|slot| {
            let (start, end) = &self.windows[*slot];
            let s = start.load(Ordering::Acquire);
            s != 0 && at >= s && at < end.load(Ordering::Relaxed)
        })
    }

    /// Something has changed that a fault set aside may wait for. Signal-safe; one load when there is none.
    pub(crate) fn retry(&self) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.rung.fetch_add(1, Ordering::Release);
            os::futex_wake(&self.rung, 1);
        }
    }

    /// Queues a fault, whose thread sleeps until it is answered. Signal-safe.
    fn ask(&self, request: &mut Request) {
        let mut newest = self.newest.load(Ordering::Relaxed);
        loop {
            request.next = newest;
            match self.newest.compare_exchange_weak(newest, request, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => newest = now,
            }
        }
        self.rung.fetch_add(1, Ordering::Release);
        os::futex_wake(&self.rung, 1);
    }

    /// Takes what was asked since, in its order.
    fn drain(&self, into: &mut Vec<Request>) {
        let known = into.len();
        let mut next = self.newest.swap(std::ptr::null_mut(), Ordering::Acquire).cast_const();
        // SAFETY: a request lives until it is answered, which is after this; nobody writes it once it is in the list.
        while let Some(request) = unsafe { next.as_ref() } {
            into.push(*request);
            next = request.next;
        }
        into[known..].reverse();
    }
}

extern "C" fn on_sigsegv(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = os::errno();
    // SAFETY: the handler's own argument.
    let at = unsafe { faulted_at(info) };
    let space = Space::existing().filter(|_| !crate::hmm::fork::forked());
    let Some((at, space)) = at.zip(space) else {
        chain_sigsegv(signal, info, context);
        os::set_errno(errno);
        return;
    };
    // With mechanism `guard` the host's own faults come here too. A jump into shared memory is nobody's to serve.
    if space.mechanism() == Mechanism::Guard && !is_fetch(context) && in_window(space, at, wanted(context)) {
        os::set_errno(errno);
        return;
    }
    let Some(slot) = space.device_faults.whose(at) else {
        chain_sigsegv(signal, info, context);
        os::set_errno(errno);
        return;
    };
    let answer = AtomicU32::new(WAITING);
    let told_at = os::now_ns() + LONG_NS;
    let (access, thread) = (wanted(context), os::thread_id());
    let next = std::ptr::null();
    let mut request =
        Request { slot, at, access, thread, fresh: true, answer: &answer, about: None, holds: false, told_at, next };
    space.device_faults.ask(&mut request);
    while answer.load(Ordering::Acquire) == WAITING {
        os::futex_wait(&answer, WAITING, None);
    }
    if answer.load(Ordering::Acquire) == NOT_OURS {
        chain_sigsegv(signal, info, context);
    }
    os::set_errno(errno);
}

fn run(space: &'static Space) {
    os::leave_signals_to_the_program();
    let _or_die = os::OrDie;
    let _serving = Serving::begin(Server::Devices);
    let faults = &space.device_faults;
    let mut free = Free::at_entry();
    let (mut waiting, mut look): (Vec<Request>, Vec<Request>) = Default::default();
    loop {
        let rung = faults.rung.load(Ordering::Acquire);
        faults.drain(&mut waiting);
        let mut due = u64::MAX;
        look.clear();
        std::mem::swap(&mut look, &mut waiting);
        for (i, mut r) in look.iter().copied().enumerate() {
            // Others of the segment have launches held back still.
            let others = || waiting.iter().chain(&look[i + 1..]);
            let keeps = |rec: &SegRec| others().any(|o| o.holds && o.about.is_some_and(|about| std::ptr::eq(about, rec)));
            match serve(space, &mut free, &mut r, keeps) {
                Ok(answer) => {
                    // SAFETY: its thread sleeps on it until this store, after which it is not touched again: the wake uses the
                    // address as a key only.
                    unsafe { &*r.answer }.store(answer, Ordering::Release);
                    os::futex_wake_at(r.answer, 1);
                }
                Err(at) => {
                    due = due.min(at);
                    if os::now_ns() > r.told_at {
                        r.told_at = u64::MAX;
                        tell(space, &mut free, &r);
                    }
                    waiting.push(r);
                }
            }
        }
        faults.waiting.store(waiting.len() as u32, Ordering::Release);
        let timeout = (due != u64::MAX).then(|| Duration::from_nanos(due.saturating_sub(os::now_ns()).max(1_000)));
        if faults.rung.load(Ordering::Acquire) == rung {
            os::futex_wait(&faults.rung, rung, timeout);
        }
    }
}

/// Says that a kernel waits for a page that it is not given, and what stands in the way as far as the books say. It goes on waiting.
fn tell(space: &Space, free: &mut Free, r: &Request) {
    let Some(mirror) = space.device(r.slot) else { return };
    let Some((seg, page)) = mirror.resolve(DevAddr(r.at as u64)) else { return };
    let p = page.in_block();
    let why = {
        let body = seg.claim(page.block()).lock(free);
        if body.bordered.has(p) && !body.pinned.has(p) {
            "a launch of another device keeps it until it has ended"
        } else if body.kept_from(r.slot).has(p) {
            "a host guard or a pin keeps it where the device cannot use it: drop the guard"
        } else if body.busy.has(p) {
            "it is being moved"
        } else if body.denied(r.access).has(p) {
            "its protection forbids it"
        } else {
            "the device has no room for it, or it is in use elsewhere"
        }
    };
    let long = LONG_NS / 1_000_000_000;
    say(&mirror, &seg, page, &format!("has waited {long} s for"), why);
}

/// Says that a page is taken away again whenever a kernel's thread has been given it. It is given it again.
fn tell_in_vain(mirror: &DeviceMirror, seg: &super::segment::Segment, page: Page, times: u64) {
    let long = LONG_NS / 1_000_000_000;
    let why = "others use it, or the device has too little memory for what its threads use at once: give it more";
    say(mirror, seg, page, &format!("has asked {times} times within more than {long} s for"), why);
}

fn say(mirror: &DeviceMirror, seg: &super::segment::Segment, page: Page, what: &str, why: &str) {
    let (device, at, bytes) = (&mirror.device().info().id, page.offset() - seg.offset(), seg.bytes());
    os::say(&format!("sterna: a kernel on {device} {what} the page at byte {at} of an allocation of {bytes}: {why}\n"));
}

/// Brings the page, or says when to try again. Launches go on then that were held back for it, unless somebody else `keeps` them.
fn serve(space: &'static Space, free: &mut Free, r: &mut Request, keeps: impl Fn(&SegRec) -> bool) -> Result<u32, u64> {
    let answer = attempt(space, free, r);
    // Also where its device has gone meanwhile. If the record is another segment's by now, that one's fault holds launches back again.
    if let (Ok(_), Some(rec)) = (answer, r.about)
        && !keeps(rec)
    {
        hold::release(rec, hold::DEVICES);
    }
    answer
}

fn attempt(space: &'static Space, free: &mut Free, r: &mut Request) -> Result<u32, u64> {
    // Its runtime has ended. Only a lost device that has taken the host's memory from its kernels still runs some.
    let Some(mirror) = space.device(r.slot) else { return Ok(SERVED) };
    if mirror.is_lost() {
        // A device whose kernels cannot be let go on with what they have puts other memory there; one of the host's own functions is
        // lost when none runs.
        return Ok(SERVED);
    }
    let Some((seg, page)) = mirror.resolve(DevAddr(r.at as u64)) else { return Ok(NOT_OURS) };
    r.about = Some(seg.rec());
    let (id, p) = (page.block(), page.in_block());
    let grain = (id, (p / mirror.rec().pages_per_grain()) as u16);
    let again = !std::mem::take(&mut r.fresh);
    match mirror.arrivals.ask(r.thread, (grain, page.0), mirror.running(), |launch| mirror.is_over(launch), again) {
        Asked::Kept => {}
        Asked::InVain(times) => tell_in_vain(&mirror, &seg, page, times),
        Asked::Waits => return Err(os::now_ns() + AGAIN_NS),
    }
    let block = seg.claim(id);
    let now = os::now_ns();
    // A store to a page that is mapped for reading: the processor did not say that it was a store.
    let least = Mask::page(p).widened(mirror.rec().pages_per_grain());
    give_up(free, &seg, id, least, r.slot);
    let (region, access) = {
        let body = block.lock(free);
        let dev = &body.dev[r.slot];
        let mut access = r.access;
        if dev.readable().has(p) {
            if dev.owned().has(p) || (access == Access::Read && cfg!(target_arch = "x86_64")) {
                return Ok(SERVED); // a neighbour's fault brought it
            }
            access = Access::ReadWrite;
        }
        if body.busy.has(p) {
            return Err(now + AGAIN_NS);
        }
        if body.denied(access).has(p) {
            return Ok(NOT_OURS); // as on the host: a bad access
        }
        // Only pages that go to and fro have a slice worth waiting for.
        let elsewhere = usize::from(body.side).checked_sub(1);
        let used = elsewhere != Some(r.slot) && elsewhere.and_then(|d| space.device(d)).is_none_or(|m| !m.is_idle());
        if body.slice > 0 && used && now < body.stays_until() {
            return Err(body.stays_until());
        }
        let mut region =
            grow(p, dev.readable(), body.device_grow.percent()) & block.limit().widened(mirror.rec().pages_per_grain());
        if !space.host.faults() {
            // The host would not notice that a neighbour was taken: only what launches were given may come.
            region &= launched(&seg, id, r.slot).widened(mirror.rec().pages_per_grain());
        }
        region &= !body.lost;
        // One stretch: what lies between two parts of the region may be somebody else's.
        let stretch = (region & !body.busy).runs().find(|r| r.contains(&p)).unwrap_or(p..p + 1);
        (Mask::range(stretch), access)
    };
    // In a small memory neighbours would only push out what other workers' instructions need.
    let (grain, budget) = (mirror.caps().grain, mirror.device().memory().budget);
    let region = if u64::from(region.count()) * PAGE > (budget / 4).max(grain) { least } else { region };
    let at = |mask| Span { block: id, mask };
    let holds = &mut r.holds;
    let brought = bring(free, &mirror, &seg, at(region), access, holds).and_then(|done| match done {
        // Neighbours may stand in the way, or be more than there is room for where others have a part of the memory: then those that
        // come push out those that were there, and never is the whole region. The page alone needs none of them.
        Brought::Full | Brought::Not if region != least => bring(free, &mirror, &seg, at(least), access, holds),
        done => Ok(done),
    });
    match brought {
        Ok(Brought::Maybe) => Ok(SERVED),
        Ok(Brought::Full) => {
            mirror.arrivals.starve();
            Err(os::now_ns() + AGAIN_NS)
        }
        Ok(Brought::Not) => Err(os::now_ns() + AGAIN_NS),
        Err(_) if mirror.is_lost() => Ok(SERVED),
        // The page will never come, and the kernel that waits for it would wait for ever.
        Err(e @ Error::File { .. }) => os::die(&format!("sterna: a page that a kernel touched cannot be fetched: {e}\n")),
        Err(_) => Err(os::now_ns() + AGAIN_NS),
    }
}

/// Pages that were lost come as they are: a launch that reads them fails, one that replaces them needs nothing of them, and what
/// shares a grain with them is nobody's business here.
fn give_up(free: &mut Free, seg: &super::segment::Segment, id: super::addr::BlockId, pages: Mask, slot: usize) {
    let lost = {
        let body = seg.claim(id).lock(free);
        body.lost & pages & !body.busy
    };
    if lost.is_empty() {
        return;
    }
    let first = id.first_page().0;
    let bytes = seg.bytes_of(id);
    let uses: Vec<_> = seg.uses.lock().overlapping(Of::Slot(slot), &bytes, true).filter(|u| !u.replaces).cloned().collect();
    for u in uses.iter().filter(|u| seg.pages_of(&u.bytes).part_of(id).meets(lost)) {
        u.launch.spoil(seg.loss(&Pages(first..first + PAGES_PER_BLOCK as u64)));
    }
    seg.claim(id).lock(free).forgive(lost);
}

/// The pages of a block that unfinished launches on device `slot` were given.
fn launched(seg: &super::segment::Segment, id: super::addr::BlockId, slot: usize) -> Mask {
    let uses = seg.uses.lock();
    let bytes = seg.bytes_of(id);
    uses.overlapping(Of::Slot(slot), &bytes, true).fold(Mask::EMPTY, |m, u| m | seg.pages_of(&u.bytes).part_of(id))
}

/// What an attempt came to.
enum Brought {
    /// The page may be there now.
    Maybe,
    /// Something stands in the way, and will go.
    Not,
    /// There is no room for the whole region.
    Full,
}

/// One attempt at making the region usable; `holds` says afterwards whether launches over the segment are held back until the next.
fn bring(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<super::segment::Segment>,
    region: Span,
    access: Access,
    holds: &mut bool,
) -> Result<Brought, Error> {
    let pages = region.hull().widened(mirror.rec().pages_per_grain() as u64);
    let want = Want { access, rank: seg.space().tick(), cause: Cause::DeviceFault, own: false };
    let counters = &mirror.rec().counters;
    counters.device_faults.fetch_add(1, Ordering::Relaxed);
    // Who cannot fault and uses pages where they are loses entries with them: not while a launch does, reading or writing.
    let (held, quiet) = hold::off_storage(free, seg, hold::DEVICES, mirror.slot(), &pages);
    if !quiet {
        held.until_released();
        *holds = true;
        return Ok(Brought::Not);
    }
    if mirror.may_alias() && stays(free, mirror, seg, &pages) {
        return Ok(brought(use_in_place(free, mirror, seg, &pages, want)?));
    }
    let moved = migrate::to_device(free, mirror, seg, &pages, want)?;
    if moved.pinned && mirror.may_alias() {
        let mapped = map_remote(free, mirror, seg, &pages, want)?;
        return Ok(if mapped.blocked.is_some() { Brought::Not } else { Brought::Maybe });
    }
    if moved.foreign {
        // The other device may be one that cannot fault: then not while a launch of it writes the pages.
        if !hold::quiet(seg, hold::DEVICES, &pages) {
            held.until_released();
            *holds = true;
            return Ok(Brought::Not);
        }
        let home = Home { map: false, wait: false, asks: Asks::Not, ..Home::SHARED };
        migrate::bring_home(free, seg, &pages, home, Cause::DeviceFault)?;
        let again = migrate::to_device(free, mirror, seg, &pages, want)?;
        return Ok(brought(again));
    }
    Ok(brought(moved))
}

/// Whether the program has said that the device uses pages of the block where they are, and none has to come home for that.
fn stays(free: &mut Free, mirror: &DeviceMirror, seg: &super::segment::Segment, pages: &Pages) -> bool {
    let slot = mirror.slot();
    pages.blocks().all(|(id, mask)| {
        let body = seg.claim(id).lock(free);
        let elsewhere = body.devices().filter(|d| *d != slot).fold(Mask::EMPTY, |m, d| m | body.dev[d].valid);
        body.in_place >> slot & 1 == 1 && !elsewhere.meets(mask)
    })
}

fn brought(moved: migrate::Moved) -> Brought {
    match moved {
        _ if moved.full => Brought::Full,
        _ if moved.blocked.is_some() || moved.refused > 0 => Brought::Not,
        _ => Brought::Maybe,
    }
}
