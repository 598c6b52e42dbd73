//! Queues of parked faults: pages that threads sleep for, by block.
//!
//! **Guarantee.** A queue is never full: a block is in it once at most, and what was asked for stands in the block's own record. So
//! any number of threads may fault at once, and none of them has to ask again. What is asked for is noted by the thread that serves
//! as soon as it looks ([`Queue::drain`]), each page once.
//!
//! **States** of a block in a queue: not `queued`; `queued`, on its way into the list or in it. Whoever sets `queued`, under the
//! block's lock, puts the block into the list and rings; whoever takes it out clears it under the same lock, together with what was
//! asked. `next` belongs to whoever set `queued`, and from the list on to who takes it out.
//!
//! **Lock**: the block's, for the masks; none for the list, which grows at its head and is taken as a whole. Signal-safe.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::addr::{BlockId, Mask, Page};
use super::super::block::{Block, BlockGuard};
use super::super::lock::Free;
use super::super::os;
use super::super::space::Space;

/// The service thread's queue.
pub(super) const SERVICE: usize = 0;
/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    which: usize,
    /// Number of the first block plus one; 0: none.
    head: AtomicU32,
    /// Bumped when a block comes; who serves sleeps here.
    rung: AtomicU32,
}

impl Queue {
    pub(super) fn new(which: usize) -> Self {
        Self { which, head: AtomicU32::new(0), rung: AtomicU32::new(0) }
    }

    /// Asks for pages of a block, to store to them or not. Signal-safe.
    pub(super) fn ask(&self, (id, block): (BlockId, &Block), mut body: BlockGuard<'_>, pages: Mask, store: bool) {
        let queued = body.ask(self.which, pages, store);
        drop(body);
        if queued {
            return; // who put it there rings, and nobody has noted what was asked
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            block.asked_next[self.which].store(head, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, id.0 + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        self.rung.fetch_add(1, Ordering::Release);
        os::futex_wake(&self.rung, 1);
    }

    /// How often it was rung: for [`wait`](Self::wait), read before [`drain`](Self::drain).
    pub(super) fn rung(&self) -> u32 {
        self.rung.load(Ordering::Acquire)
    }

    /// Sleeps until it is rung again, or `timeout` has passed.
    pub(super) fn wait(&self, rung: u32, timeout: Option<Duration>) {
        if self.rung() == rung {
            os::futex_wait(&self.rung, rung, timeout);
        }
    }

    /// Hands over every page that was asked for since, and whether to store to it.
    pub(super) fn drain(&self, space: &Space, free: &mut Free, mut note: impl FnMut(Page, bool)) {
        let mut next = self.head.swap(0, Ordering::Acquire);
        while let Some(n) = next.checked_sub(1) {
            let id = BlockId(n);
            let block = space.block(id);
            next = block.asked_next[self.which].load(Ordering::Relaxed);
            let (pages, to_store) = block.lock(free).take_asked(self.which);
            for p in pages.runs().flatten() {
                note(Page(id.first_page().0 + p as u64), to_store.has(p));
            }
        }
    }
}
