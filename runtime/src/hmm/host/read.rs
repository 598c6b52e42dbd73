//! Faults on pages whose bytes are still in a file: read by whoever serves the fault.
//!
//! **Guarantee.** As [`fault`](super::fault): when a fault is served the page is mapped with the file's bytes. A thread that took the
//! fault itself (`signal`, `guard`) reads the file there, and waits for its medium: nobody waits for that thread. A reader of messages
//! serves others, too: it reads what is in memory, and parks the rest for the service thread. So does who meets an error, which the
//! service thread looks into.
//!
//! **How.** Whole pages come by one call that also maps them, before the books say so: they are busy until then, and are counted as read
//! whatever becomes of the others. The rest is read into the storage, and mapped as what comes home.
//!
//! **Why the file stays.** Who reads is counted in the segment's record, under the lock of a block that has unread pages; whoever ends
//! the segment takes those away under the same locks, and then waits until nobody reads.

use std::sync::atomic::Ordering;

use sterna_hal::Access;

use super::super::addr::{BlockId, Mask, PAGE, Page, Span};
use super::super::backing::Backing;
use super::super::block::{Block, BlockGuard};
use super::super::os;
use super::super::source;
use super::super::space::Space;
use super::super::walk;
use super::Mechanism;
use super::fault::{Served, park};

/// Serves a touch of a page that is unread, and neither lent nor busy. Signal-safe.
pub(super) fn read(
    space: &'static Space,
    (id, block): (BlockId, &'static Block),
    mut body: BlockGuard<'_>,
    page: Page,
    access: Access,
) -> Served {
    let p = page.in_block();
    let Some(rec) = block.segment().map(|slot| space.rec(slot)) else { return park(space, block, body, page, Some(access)) };
    // SAFETY: null, or the segment's, which waits for us below.
    let backing = unsafe { rec.backing.load(Ordering::Acquire).as_ref() };
    let Some(backing) = backing else { return park(space, block, body, page, Some(access)) }; // a copy's page
    let (region, step) = walk::reach(space, (id, block), &body, p);
    let free = region & body.unread & !(body.busy | body.lent | body.lost);
    let Some(run) = free.runs().find(|r| r.contains(&p)) else { return park(space, block, body, page, Some(access)) };
    let (start, mask) = (rec.start.load(Ordering::Relaxed), Mask::range(run.clone()));
    let first = id.offset() - start;
    let part = first + run.start as u64 * PAGE..first + run.end as u64 * PAGE;
    if space.host.mechanism() == Mechanism::Transparent && !backing.is_cached(&part) {
        return park(space, block, body, page, Some(access));
    }
    body.take(mask);
    rec.reading.fetch_add(1, Ordering::AcqRel);
    // What may not be stored to, or whose stores are watched, is a mapping of its own.
    let plain = !body.stores_watched && !body.readonly.meets(mask);
    drop(body);
    let mapped = if plain { enter(space, (id, block), backing, start, mask) } else { Mask::EMPTY };
    let rest = mask & !mapped;
    let read = if rest.is_empty() { Ok(Mask::EMPTY) } else { source::read_file(space, (id, block), backing, start, rest) };
    // The bytes of what is mapped are there in any case, and may have been stored to.
    let (come, filled) = read.map_or((mapped, mapped), |filled| (mask, mapped | filled));
    let mut body = block.lock_in_handler();
    let wanted = body.let_go(mask);
    if !come.is_empty() {
        body.fetched(come, filled);
        rec.unread.fetch_sub(u64::from(come.count()), Ordering::AcqRel);
        body.restore(mapped);
        step.note(block, &body, come);
        let unmapped = come & body.revoked & !body.lent;
        space.host.restore(space, block, &mut body, Span { block: id, mask: unmapped });
        space.slots[0].counters.host_faults.fetch_add(1, Ordering::Relaxed);
        debug_assert!(body.check(true).is_ok());
    }
    drop(body);
    rec.reading.fetch_sub(1, Ordering::AcqRel);
    block.bump(mask);
    // Nobody was woken yet for what was mapped with its bytes.
    space.host.wake(space, id, wanted | mapped);
    space.device_faults.retry();
    if come.has(p) { Served::Mapped } else { park(space, block, block.lock_in_handler(), page, Some(access)) }
}

/// Reads pages into the window itself, where the mechanism can do that: says which have come. They are busy, and have no storage.
fn enter(space: &Space, (id, block): (BlockId, &Block), backing: &Backing, start: u64, mask: Mask) -> Mask {
    let Some(uffd) = space.host.uffd() else { return Mask::EMPTY };
    let (mut mapped, window) = (Mask::EMPTY, space.window_at(id.offset()).as_ptr().addr());
    for (r, _) in block.pieces(id, mask) {
        let first = id.offset() - start;
        let part = first + r.start as u64 * PAGE..first + r.end as u64 * PAGE;
        match backing.enter(uffd, window + r.start * PAGE as usize, &part) {
            Ok(bytes) => mapped |= Mask::range(r.start..r.start + (bytes / PAGE) as usize),
            // Threads may have looked at them already; and a load cannot fail.
            Err(_) => os::die(
                "sterna: a file became shorter while a page of it was read that the program touched; see `try_read`\n",
            ),
        }
    }
    mapped
}
