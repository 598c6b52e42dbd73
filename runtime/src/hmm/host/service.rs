//! The service thread: brings pages home that a fault handler could not fetch itself.
//!
//! **Guarantee.** A parked fault is served as soon as its page may move: after the time slice of the device that has it, and on
//! devices that cannot fault after the launches submitted before ([`hold`]). A fault that cannot go on is set aside and looked
//! at again; the thread never waits for a kernel.
//!
//! **Lock**: none of its own; what is asked of it stands in the blocks ([`queue`](super::queue)).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_hal::Access;

use super::super::addr::{BlockId, Mask, Page, Span};
use super::super::arrivals::LONG_NS;
use super::super::block::{Block, BlockGuard};
use super::super::hold;
use super::super::lock::Free;
use super::super::migrate::{self, Asks, Home, Moved};
use super::super::os;
use super::super::running;
use super::super::schedule::{Server, Serving};
use super::super::segment::Segment;
use super::super::source::{self, How};
use super::super::space::Space;
use super::super::walk;
use super::coherent::resident;
use super::queue::{self, Queue};
use crate::Error;
use crate::stats::Cause;

/// How soon a fault that cannot go on is looked at again.
const AGAIN_NS: u64 = 100_000;
/// Where many faults cannot go on, looking at them takes half of the time at most, up to this.
const MOST_AGAIN_NS: u64 = 2_000_000;

/// A page that a thread sleeps for, and whether that is to store to it.
type Parked = (Page, bool);

/// One that cannot go on yet: when to look again, and whether launches are held back for it.
type Waiting = (Parked, u64, bool);

/// Whether launches over a segment are held back for one of these.
fn is_held_for(seg: &Segment, waiting: &[Waiting]) -> bool {
    let ours = |page: &Page| (seg.first().0..seg.first().0 + seg.blocks()).contains(&page.block().0);
    waiting.iter().any(|((page, _), _, holds)| *holds && ours(page))
}

/// The thread's queue.
#[derive(Debug)]
pub(crate) struct Service(Queue);

impl Service {
    pub(super) fn new() -> Self {
        Self(Queue::new(queue::SERVICE))
    }

    pub(super) fn start(&self, space: &'static Space) -> Result<(), Error> {
        os::spawn("sterna-host", move || run(space)).map(drop).map_err(Error::System)
    }

    /// Asks for pages of a block, to store to them or not. Signal-safe.
    pub(super) fn ask(&self, of: (BlockId, &Block), body: BlockGuard<'_>, pages: Mask, store: bool) {
        self.0.ask(of, body, pages, store);
    }
}

fn run(space: &'static Space) {
    os::leave_signals_to_the_program();
    let _or_die = os::OrDie;
    let _serving = Serving::begin(Server::Host);
    let queue = &space.host.service.0;
    let mut free = Free::at_entry();
    let (mut waiting, mut look): (Vec<Waiting>, Vec<Waiting>) = Default::default();
    loop {
        let rung = queue.rung();
        queue.drain(space, &mut free, |page, store| waiting.push(((page, store), 0, false)));
        waiting.sort_unstable();
        // Who stores may load as well.
        waiting.dedup_by(|next, kept| {
            let same = next.0.0 == kept.0.0;
            if same {
                *kept = ((kept.0.0, kept.0.1 | next.0.1), kept.1.min(next.1), kept.2 | next.2);
            }
            same
        });
        let began = os::now_ns();
        let first = waiting.len();
        look.clear();
        std::mem::swap(&mut look, &mut waiting);
        for (i, (parked, at, mut holds)) in look.iter().copied().enumerate() {
            if at > began {
                waiting.push((parked, at, holds));
                continue;
            }
            // Others of the segment have launches held back still.
            let keeps = |seg: &Segment| is_held_for(seg, &waiting) || is_held_for(seg, &look[i + 1..]);
            if let Err(at) = fetch(space, &mut free, parked, &mut holds, &keeps) {
                waiting.push((parked, at, holds));
            }
        }
        let now = os::now_ns();
        // Nothing of what was looked at has come: the rest of the machine has its turn.
        let pause = if waiting.len() == first { (now - began).min(MOST_AGAIN_NS) } else { 0 };
        let due = waiting.iter().map(|(_, at, _)| *at).min();
        queue.wait(rung, due.map(|at| Duration::from_nanos(at.saturating_sub(now).max(pause).max(1_000))));
    }
}

/// Brings a page home and wakes its thread, or says when to look again, and whether it `holds` launches back until then. Those are let go
/// on when it has come, unless somebody else `keeps` them.
fn fetch(
    space: &'static Space,
    free: &mut Free,
    (page, store): Parked,
    holds: &mut bool,
    keeps: &dyn Fn(&Segment) -> bool,
) -> Result<(), u64> {
    bring(space, free, (page, store), holds)?;
    // However it came about: an earlier look may have held launches back for it.
    if let Some(seg) = space.segment_of(page.block()).filter(|seg| !keeps(seg)) {
        hold::release(seg.rec(), hold::HOST);
    }
    woken(space, free, page);
    Ok(())
}

/// Has a page where the host can use it, unless nobody asks for it any more, or says when to look again.
fn bring(space: &'static Space, free: &mut Free, (page, store): Parked, holds: &mut bool) -> Result<(), u64> {
    let (id, p) = (page.block(), page.in_block());
    let block = space.block(id);
    let now = os::now_ns();
    let grains = migrate::grains(space);
    if !store && reads_beside_a_launch(space, free, (id, p)) && space.host.share(space, id) {
        return Ok(()); // the load that is repeated finds it so
    }
    let region = {
        let body = block.lock(free);
        // A store to a page that is mapped for loads is parked while a launch uses its replicas.
        let missing = if store { body.revoked | body.duplicated } else { body.revoked };
        if !body.wanted.has(p) || !missing.has(p) || body.busy.has(p) {
            // It is home, or whoever has it wakes the thread; or whoever asked was woken meanwhile, and the block may be another
            // segment's by now: then nothing is taken from a device for nobody.
            None
        } else {
            let rec = block.segment().map(|s| space.rec(s));
            let running = body
                .devices()
                .any(|d| body.dev[d].valid.has(p) && rec.is_some_and(|r| r.view[d].active.load(Ordering::Acquire) > 0));
            if running && body.side != 0 && now < body.stays_until() && !idle(space, body.side as usize - 1) {
                return Err(body.stays_until());
            }
            let (region, step) = walk::reach(space, (id, block), &body, p);
            // A coherent device's pages stay where they are; one that the host cannot use there comes alone.
            let there = resident(space, &body).has(p) && !body.exclusive(None).has(p);
            let region = if there { Mask::page(p) } else { region };
            let home = Home { wait: false, reading: !store, leave_coherent: !there, asks: Asks::Not, ..Home::EXCLUSIVE };
            let region = region | migrate::taken(&grains, &body, region, home);
            let region = beside_launches(space, id, region, p);
            step.note(block, &body, region);
            Some((region, home))
        }
    };
    if let (Some((region, home)), Some(seg)) = (region, space.segment_of(id)) {
        let pages = Span { block: id, mask: region }.hull();
        *holds = true;
        if !hold::quiet(&seg, hold::HOST, &pages) {
            return Err(now + AGAIN_NS);
        }
        match source::fetch_for(free, &seg, &pages, Access::ReadWrite, How { wait: false, asks: Asks::Not }) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(now + AGAIN_NS),
            // Short of memory for a moment.
            Err(e) if is_passing(&e) => return Err(now + AGAIN_NS),
            // A load cannot fail.
            Err(e) => os::die(&format!("sterna: a page that the program touched cannot be fetched: {e}; see `try_read`\n")),
        }
        // Before the page is there: whoever waits for it may look at once.
        let slot = seg.rec().devices().find(|d| seg.view(*d).is_some()).unwrap_or(0);
        space.slots[slot].counters.host_faults.fetch_add(1, Ordering::Relaxed);
        // An error means that the device is gone; its pages are then lost and the fault handler says so.
        let moved = migrate::bring_home(free, &seg, &pages, home, Cause::HostFault);
        if let Some(Err(e)) = moved.ok().map(Moved::unrefused) {
            tell_of(&e, now);
            return Err(now + AGAIN_NS);
        }
    }
    Ok(())
}

/// Says that a device goes on refusing to hand over what the program touched. A touch cannot fail, so it is tried on.
fn tell_of(refusal: &crate::Error, now: u64) {
    /// When the refusals that go on began, and when the last one was.
    static SINCE: AtomicU64 = AtomicU64::new(0);
    static LAST: AtomicU64 = AtomicU64::new(0);
    if now.saturating_sub(LAST.swap(now, Ordering::Relaxed)) > 1_000_000_000 {
        SINCE.store(now, Ordering::Relaxed);
    }
    if now.saturating_sub(SINCE.load(Ordering::Relaxed)) > LONG_NS {
        SINCE.store(u64::MAX, Ordering::Relaxed); // once, until they end
        let long = LONG_NS / 1_000_000_000;
        os::say(&format!(
            "sterna: a page that the program touched has not come home for {long} s: {refusal}; `try_read` says so\n"
        ));
    }
}

/// Lets the threads that wait for the page try again, unless another batch has it and will.
fn woken(space: &Space, free: &mut Free, page: Page) {
    let (id, p) = (page.block(), page.in_block());
    let block = space.block(id);
    let mut body = block.lock(free);
    let parked_elsewhere = body.busy.has(p);
    if !parked_elsewhere {
        body.served(Mask::page(p));
    }
    drop(body);
    if !parked_elsewhere {
        block.bump(Mask::page(p));
        space.host.wake(space, id, Mask::page(p));
    }
}

/// Whether a page that the host wants to load is a replica on a device with a launch that may be reading it: equal bytes on both
/// sides, which neither has to give up.
fn reads_beside_a_launch(space: &Space, free: &mut Free, (id, p): (BlockId, usize)) -> bool {
    let block = space.block(id);
    let body = block.lock(free);
    let Some(rec) = block.segment().map(|s| space.rec(s)) else { return false };
    let here = (body.revoked & body.wanted).has(p)
        && !(body.gone | body.lost | body.busy | body.unread | body.lent | body.unreadable).has(p);
    here && !body.read_mostly
        && !body.exclusive(None).has(p)
        && body.devices().any(|d| body.dev[d].valid.has(p) && rec.view[d].active.load(Ordering::Acquire) > 0)
}

/// Of the pages that a fault on page `p` reaches, those that it brings: none that comes along is taken from a launch of a device that
/// cannot fault, which would be waited for, now or when the page goes back.
fn beside_launches(space: &Space, id: BlockId, region: Mask, p: usize) -> Mask {
    let Some(seg) = space.segment_of(id) else { return region };
    let rigid = || space.devices().into_iter().filter(|m| m.is_rigid());
    let used = rigid().fold(Mask::EMPTY, |used, m| used | running::used(&seg, id, m.slot()).any);
    if !used.meets(Mask::range(region.hull())) {
        return region;
    }
    let around = (region & !used) | Mask::page(p);
    around.runs().find(|r| r.contains(&p)).map_or(Mask::page(p), Mask::range)
}

fn idle(space: &Space, slot: usize) -> bool {
    space.device(slot).is_none_or(|m| m.is_idle())
}

/// Whether an error says that the system lacks something now.
fn is_passing(e: &crate::Error) -> bool {
    let code = match e {
        crate::Error::File { source, .. } => source.raw_os_error(),
        crate::Error::System(sterna_hal::DeviceError::Driver { code, .. }) => Some(*code),
        _ => None,
    };
    code == Some(libc::ENOMEM)
}
