//! Faults on pages whose bytes are still in a file: read by whoever serves the fault.
//!
//! **Guarantee.** As [`fault`](super::fault): when a fault is served the page is mapped with the file's bytes. A thread that took the
//! fault itself (`signal`, `guard`) reads the file there, and waits for its medium: nobody waits for that thread. A reader of messages
//! serves others, too: it reads what is in memory, and parks the rest for the service thread. So does who meets an error, which the
//! service thread looks into.
//!
//! **Why the file stays.** Who reads is counted in the segment's record, under the lock of a block that has unread pages; whoever ends
//! the segment takes those away under the same locks, and then waits until nobody reads.

use std::sync::atomic::Ordering;

use sterna_hal::Access;

use super::super::addr::{BlockId, Mask, PAGE, Page, Span};
use super::super::block::{Block, BlockGuard};
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
    body.busy |= mask;
    rec.reading.fetch_add(1, Ordering::AcqRel);
    drop(body);
    let filled = source::read_file(space, (id, block), backing, start, mask);
    let mut body = block.lock_in_handler();
    body.busy &= !mask;
    if let Ok(filled) = &filled {
        body.unread &= !mask;
        rec.unread.fetch_sub(u64::from(mask.count()), Ordering::AcqRel);
        body.hole = (body.hole | mask) & !*filled;
        step.note(block, &body, mask);
        let come = mask & body.revoked & !body.lent;
        space.host.restore(space, block, &mut body, Span { block: id, mask: come });
        space.slots[0].counters.host_faults.fetch_add(1, Ordering::Relaxed);
        debug_assert!(body.check(true).is_ok());
    }
    let wanted = body.wanted & mask;
    body.wanted &= !mask;
    drop(body);
    rec.reading.fetch_sub(1, Ordering::AcqRel);
    block.bump(mask);
    space.host.wake(space, id, wanted);
    space.device_faults.retry();
    match filled {
        Ok(_) => Served::Mapped,
        Err(_) => park(space, block, block.lock_in_handler(), page, Some(access)),
    }
}
