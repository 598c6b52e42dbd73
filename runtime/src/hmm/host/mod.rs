//! The host page table: the window, how pages leave it and how they come back.
//!
//! **Guarantee.** A load or store of the program through the window sees the bytes that the last owner left, on every
//! mechanism that serves faults; on `none` the gate brings the bytes home before a reference is handed out.
//!
//! | mechanism | how a touch is noticed | who serves it |
//! |---|---|---|
//! | [`Transparent`](Mechanism::Transparent) | userfaultfd messages; the kernel's own accesses too | handler threads |
//! | [`Signal`](Mechanism::Signal) | userfaultfd raises SIGBUS | the faulting thread |
//! | [`Guard`](Mechanism::Guard) | SIGSEGV, from a guard marker or a protection | the faulting thread |
//! | [`None`](Mechanism::None) | not at all | `deref` |
//!
//! **Revoke** ([`Host::revoke`]) and **restore** ([`Host::restore`]) work under a block's lock, one system call each. Facts and
//! costs: `docs/host-faults.md`.
//!
//! The window is registered for *minor* faults: a page that has storage and is not mapped. A page without storage that
//! leaves for a device would come back as silent zeros, so a block with such pages is also registered for *missing* faults,
//! before it is unmapped. Guards need no such thing: they stand where a page was taken away, with storage or without. Blocks whose
//! pages the host may load beside devices' replicas also report stores (`duplicate`). What a coherent device has the window shows in
//! that device's memory (`coherent`).

pub(crate) mod coherent;
mod duplicate;
mod duty;
mod fault;
mod guard;
mod mechanism;
mod protection;
mod queue;
mod read;
mod service;
mod signal;
mod transparent;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use sterna_host::mappings;

use super::addr::{BLOCK, BlockId, Mask, PAGE, PAGES_PER_BLOCK, Page, Pages, Span, runs_of};
use super::block::{Block, Body};
use super::lease::Lease;
use super::lock::{Free, Futex};
use super::os::{self, uffd::Uffd};
use super::segment::Segment;
use super::space::Space;
use crate::Error;
use guard::Guard;
use protection::parts;

pub use mechanism::Mechanism;
pub(crate) use signal::{chain_sigsegv, faulted_at, in_window, install_sigsegv, is_fetch, wanted};

/// What keeps the program out of pages that are away.
#[derive(Debug)]
enum Door {
    Uffd(Uffd),
    Guard(Guard),
    None,
}

/// The host side of the space.
#[derive(Debug)]
pub(crate) struct Host {
    mechanism: Mechanism,
    door: Door,
    pub(crate) service: service::Service,
    mappings: coherent::Mappings,
    /// How far starting has come.
    started: AtomicU32,
    /// Held while what a block's faults are reported for changes.
    registering: Futex,
    /// Touches of pages without storage are reported for all of the window: there were too many borders between blocks with and
    /// without. Such a touch takes longer. For good.
    everywhere: AtomicBool,
    /// Blocks whose stores are reported.
    watched: Mutex<BTreeSet<BlockId>>,
}

impl Host {
    /// Opens the mechanism `wanted`, or the best there is, over the window.
    pub(crate) fn new(wanted: Option<Mechanism>, window: Range<usize>) -> Result<Self, Error> {
        let mut refused = None;
        for mechanism in Mechanism::ALL {
            if wanted.is_some_and(|w| w != mechanism) {
                continue;
            }
            let opened = match mechanism {
                Mechanism::Transparent => Uffd::full().map(Door::Uffd),
                Mechanism::Signal => Uffd::sigbus().map(Door::Uffd),
                Mechanism::Guard => Ok(Door::Guard(Guard::probe(window.start))),
                Mechanism::None => Ok(Door::None),
            };
            let registered = opened.and_then(|mut door| {
                if let Door::Uffd(u) = &mut door {
                    u.probe_stores(window.start);
                    u.register(window.start, window.len(), os::uffd::MINOR).map_err(std::io::Error::from_raw_os_error)?;
                }
                Ok(door)
            });
            match registered {
                Ok(door) => {
                    return Ok(Self {
                        mechanism,
                        door,
                        service: service::Service::new(),
                        mappings: coherent::Mappings::new(),
                        started: AtomicU32::new(0),
                        registering: Futex::new(),
                        everywhere: AtomicBool::new(false),
                        watched: Mutex::default(),
                    });
                }
                Err(e) => refused = Some((mechanism, e)),
            }
        }
        let (mechanism, source) = refused.unwrap_or((Mechanism::None, std::io::Error::other("no mechanism")));
        Err(Error::Mechanism { mechanism, source: std::sync::Arc::new(source) })
    }

    pub(crate) fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Whether a touch of an absent page is noticed.
    pub(crate) fn faults(&self) -> bool {
        self.mechanism != Mechanism::None
    }

    /// Maps pages for loads only, with their bytes in place; if that cannot be done they are away again, and the host's touches
    /// end replicas from now on. Signal-safe.
    fn duplicate(&self, space: &Space, body: &mut Body, s: Span) {
        let at = space.window_at(s.block.offset()).as_ptr().addr();
        for r in s.mask.runs() {
            if !self.open_for_loads(at + r.start * PAGE as usize, r.len() * PAGE as usize) {
                body.revoke(Mask::range(r));
                body.mostly_read(false);
            }
        }
        self.wake(space, s.block, s.mask & body.revoked);
    }

    fn uffd(&self) -> Option<&Uffd> {
        if let Door::Uffd(u) = &self.door { Some(u) } else { None }
    }

    /// Starts the threads or installs the handler that serves faults. What an earlier attempt has started is not started again: by
    /// the thread that makes the space alone.
    pub(crate) fn start(&self, space: &'static Space) -> Result<(), Error> {
        let failed = |source| Error::Mechanism { mechanism: self.mechanism, source: std::sync::Arc::new(source) };
        if !self.faults() {
            return Ok(());
        }
        const FRONT: u32 = 1;
        const SERVICE: u32 = 2;
        if self.started.load(Ordering::Acquire) < FRONT {
            match self.mechanism {
                Mechanism::Transparent => transparent::start(space)?,
                Mechanism::Signal => signal::install_sigbus().map_err(failed)?,
                // SIGSEGV is installed for the faults of devices, on every mechanism.
                Mechanism::Guard | Mechanism::None => {}
            }
            self.started.store(FRONT, Ordering::Release);
        }
        if self.started.load(Ordering::Acquire) < SERVICE {
            self.service.start(space)?;
            self.started.store(SERVICE, Ordering::Release);
        }
        Ok(())
    }

    /// Takes pages out of the window. They are busy already; device entries are gone. When this returns no store of the host
    /// can land any more, and `hole` says which pages have no storage.
    pub(crate) fn revoke(
        &self,
        space: &Space,
        free: &mut Free,
        seg: &Segment,
        spans: &[Span],
        runs: &[Pages],
    ) -> Result<(), Error> {
        self.watch_missing(space, free, spans)?;
        // Without reports of touches of what has no storage, a store may give a page some until the door is shut.
        let early = matches!(self.door, Door::Guard(_));
        if early {
            self.shut_all(space, free, spans, runs)?;
        }
        for s in spans {
            let block = space.block(s.block);
            let (full, promote) = {
                let body = block.lock(free);
                // The second journey shows that the block travels: from then on one folio pays.
                let whole = seg.limit(s.block.0 - seg.first().0) == Mask::FULL;
                (body.full, body.full && !body.huge && body.moves == 1 && whole && block.is_whole())
            };
            let limit = seg.limit(s.block.0 - seg.first().0);
            let holes = if full { Mask::EMPTY } else { self.fill_runs(space, s.block, s.mask & limit)? };
            // It takes as much again for a moment.
            let huge = promote && os::room::is_plenty(0) && {
                let at = space.direct_at(block.storage(s.block, 0)).as_ptr().addr();
                // SAFETY: the block's own storage in the view.
                unsafe { os::collapse(at, BLOCK as usize) }
            };
            let mut body = block.lock(free);
            body.surveyed(s.mask, holes, s.mask.covers(limit));
            if huge {
                body.promoted();
            }
        }
        if self.faults() && !early {
            self.shut_all(space, free, spans, runs)?;
        }
        Ok(())
    }

    fn shut_all(&self, space: &Space, free: &mut Free, spans: &[Span], runs: &[Pages]) -> Result<(), Error> {
        let mut lift = Vec::new();
        for s in spans {
            let block = space.block(s.block);
            let mut body = block.lock(free);
            let duplicated = body.revoke(s.mask);
            block.walk.forget();
            if matches!(self.door, Door::Guard(Guard::Markers)) && !duplicated.is_empty() {
                lift.push(Span { block: s.block, mask: duplicated & !body.readonly });
            }
        }
        for run in runs {
            self.shut(space, run)?;
        }
        if let Door::Guard(guard) = &self.door {
            // Behind their markers, so that whoever opens the pages opens them for stores.
            for run in runs_of(&lift) {
                guard.lift(space.window_at(run.0.start * PAGE).as_ptr().addr(), run.bytes() as usize);
            }
        }
        Ok(())
    }

    /// Unmaps a run of the window, so that the next touch is noticed.
    fn shut(&self, space: &Space, run: &Pages) -> Result<(), Error> {
        let at = space.window_at(run.0.start * PAGE).as_ptr().addr();
        #[cfg(feature = "planted")]
        let planted = super::planted::on(&super::planted::NO_MISSING);
        #[cfg(not(feature = "planted"))]
        let planted = false;
        match &self.door {
            Door::Guard(guard) if !planted => guard.shut(at, run.bytes() as usize, &space.window_addresses()),
            // SAFETY: the window is a shared mapping of the engine's.
            _ => unsafe { os::discard_mapping(at, run.bytes() as usize) }
                .map_err(|code| Error::driver("madvise(MADV_DONTNEED)", &std::io::Error::from_raw_os_error(code))),
        }
    }

    /// Has every touch of a segment that is just being made noticed. Its pages are revoked already: a message about the segment
    /// that was here before, read and not yet served, may have mapped a page until then, which goes now.
    pub(crate) fn close(&self, space: &Space, free: &mut Free, seg: &Segment) -> Result<(), Error> {
        let spans: Vec<Span> = seg.pages().blocks().map(|(block, mask)| Span { block, mask }).collect();
        self.watch_missing(space, free, &spans)?;
        self.shut(space, &seg.pages())
    }

    /// Has touches of pages without storage reported, for blocks that may have such pages.
    fn watch_missing(&self, space: &Space, free: &mut Free, spans: &[Span]) -> Result<(), Error> {
        let Some(uffd) = self.uffd() else { return Ok(()) };
        #[cfg(feature = "planted")]
        if super::planted::on(&super::planted::NO_MISSING) {
            return Ok(());
        }
        let _ = mappings::plenty(0); // counts before the lock, if need be
        let _registering = self.registering.hold();
        let mut blocks: Vec<(BlockId, u64)> = Vec::new();
        for s in spans {
            let body = space.block(s.block).lock(free);
            if !body.full && !body.missing {
                blocks.push((s.block, duplicate::reports(&body)));
            }
        }
        let mut i = 0;
        while i < blocks.len() {
            let mut end = i + 1;
            while end < blocks.len() && blocks[end] == (blocks[end - 1].0.plus(1), blocks[i].1) {
                end += 1;
            }
            if !self.everywhere.load(Ordering::Relaxed) && !mappings::by_last_count(|| mappings::plenty(2)) {
                // Not over mappings of a coherent device's memory, of which nothing may be reported.
                if !space.has_coherent() {
                    self.watch_everywhere(space, uffd)?;
                } else if !mappings::by_last_count(|| mappings::reserve(2)) {
                    return Err(Error::System(mappings::exhausted()));
                }
            }
            let at = space.window_at(blocks[i].0.offset()).as_ptr().addr();
            let bytes = (end - i) * BLOCK as usize;
            uffd.register(at, bytes, os::uffd::MISSING | blocks[i].1)
                .map_err(|code| os::too_many_mappings("ioctl(UFFDIO_REGISTER)", code))?;
            for (id, _) in &blocks[i..end] {
                space.block(*id).lock(free).watch_missing();
            }
            i = end;
        }
        Ok(())
    }

    /// Has touches of pages without storage reported everywhere, so that blocks with such pages and blocks without need no borders
    /// between them. With `registering` held.
    fn watch_everywhere(&self, space: &Space, uffd: &Uffd) -> Result<(), Error> {
        let all = (space.bytes() / BLOCK) as u32;
        // Blocks whose stores are reported keep that, and their borders.
        let kept: Vec<_> = self.watched.lock().iter().map(|id| id.0).collect();
        let mut from = 0;
        for to in kept.into_iter().chain([all]) {
            if from < to {
                let (at, blocks) = (space.window_at(BlockId(from).offset()).as_ptr().addr(), u64::from(to - from));
                uffd.register(at, (blocks * BLOCK) as usize, os::uffd::MINOR | os::uffd::MISSING)
                    .map_err(|code| os::too_many_mappings("ioctl(UFFDIO_REGISTER)", code))?;
            }
            from = to + 1;
        }
        self.everywhere.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What is reported for blocks that nobody has.
    fn reported(&self) -> u64 {
        let missing = if self.everywhere.load(Ordering::Relaxed) { os::uffd::MISSING } else { 0 };
        os::uffd::MINOR | missing
    }

    /// The pages of `mask` that have no storage. Exact only if they cannot be touched meanwhile. One question a
    /// page: for introspection, not for moving.
    pub(crate) fn holes(&self, space: &Space, id: BlockId, mask: Mask) -> Mask {
        let mut data = Mask::EMPTY;
        for (r, base) in space.block(id).pieces(id, Mask::FULL) {
            for e in os::extents(space.raw_fd(), base..base + r.len() as u64 * PAGE, PAGE) {
                let page = |at: u64| r.start + (at - base).div_ceil(PAGE) as usize;
                data |= Mask::range(page(e.start / PAGE * PAGE)..page(e.end));
            }
        }
        mask & !data
    }

    /// Makes storage uniform for a move: each run of `mask` that has some gets all of it, and the pages of the others, which
    /// have none, are the answer. Finding each hole would cost more than filling them, and a copy through the view has to map
    /// the pages in any case.
    fn fill_runs(&self, space: &Space, id: BlockId, mask: Mask) -> Result<Mask, Error> {
        let mut holes = Mask::EMPTY;
        for (r, base) in space.block(id).pieces(id, mask) {
            let bytes = base..base + r.len() as u64 * PAGE;
            if os::has_data(space.file(), &bytes) {
                let Ok(_until_there) = os::room::take(bytes.end - bytes.start) else {
                    holes |= self.holes(space, id, Mask::range(r)); // no memory for more than what has some
                    continue;
                };
                let at = space.direct_at(bytes.start).as_ptr().addr();
                // SAFETY: the segment's own storage in the view.
                unsafe { os::populate_read(at, (bytes.end - bytes.start) as usize) }
                    .map_err(|e| Error::driver("madvise(MADV_POPULATE_READ)", &e))?;
            } else {
                holes |= Mask::range(r);
            }
        }
        Ok(holes)
    }

    /// Gives pages of a block storage where they have none. Changes no byte.
    pub(crate) fn store(&self, space: &Space, id: BlockId, mask: Mask) -> Result<(), Error> {
        for (r, storage) in space.block(id).pieces(id, mask) {
            let at = space.direct_at(storage).as_ptr().addr();
            // SAFETY: the segment's own storage in the view.
            unsafe { os::populate_write(at, r.len() * PAGE as usize) }
                .map_err(|e| Error::driver("madvise(MADV_POPULATE_WRITE)", &e))?;
        }
        Ok(())
    }

    /// Gives pages without storage some, so that they can be mapped.
    pub(crate) fn populate(&self, space: &Space, free: &mut Free, seg: &Segment, pages: &Pages) -> Result<(), Error> {
        seg.ask_for_storage(&seg.bytes_in(pages))?;
        for (id, mask) in pages.blocks() {
            let block = seg.claim(id);
            self.store(space, id, mask)?;
            let mut body = block.lock(free);
            body.stored(mask);
        }
        Ok(())
    }

    /// Gives whole blocks storage in huge folios before they are filled, where that costs no more than filling small ones. Changes no
    /// byte: the program may store for the first time just now, through the window, and a device through an entry.
    pub(crate) fn make_huge(&self, space: &Space, free: &mut Free, seg: &Arc<Segment>, pages: &Pages) {
        if !os::room::is_plenty(0) {
            return; // small ones are there already, and a huge one would take as much again for a moment
        }
        for (id, mask) in pages.blocks() {
            if mask != Mask::FULL {
                continue;
            }
            let block = seg.claim(id);
            let base = block.storage(id, 0);
            // What is found out here must hold until it is written down: nobody moves the pages or drops their contents meanwhile.
            let Some(_lease) = Lease::try_take(free, seg, id, mask) else { continue };
            if !block.is_whole() || os::has_data(space.file(), &(base..base + BLOCK)) || block.lock(free).missing {
                continue;
            }
            let at = space.direct_at(base);
            // SAFETY: the segment's own storage. One page makes it a range that can be collapsed. A load gives it that and spoils nothing,
            // whoever stores there; collapsing is the kernel's, which moves bytes when every mapping of them is taken away.
            let huge = unsafe {
                at.as_ptr().read_volatile();
                os::collapse(at.as_ptr().addr(), BLOCK as usize)
            };
            block.lock(free).made_huge(huge);
        }
    }

    /// Puts pages back into the window, with the block's lock held and the pages' bytes in place. Signal-safe.
    pub(crate) fn restore(&self, space: &Space, block: &Block, body: &mut Body, s: Span) {
        self.unframe(space, (s.block, block), body, s.mask);
        body.restore(s.mask);
        let window = space.window_at(s.block.offset()).as_ptr().addr();
        let uffd = match &self.door {
            Door::Uffd(uffd) => uffd,
            Door::Guard(guard) => {
                // What has no storage gets some from the kernel at its first touch.
                let (loads, rest) = duplicate::split(body, s.mask);
                for (mask, write) in parts(body, rest) {
                    mask.runs().for_each(|r| guard.open(window + r.start * PAGE as usize, r.len() * PAGE as usize, write));
                }
                loads.runs().for_each(|r| self.duplicate(space, body, Span { block: s.block, mask: Mask::range(r) }));
                return;
            }
            Door::None => return,
        };
        for p in (s.mask & body.hole).runs().flatten() {
            let at = space.direct_at(block.storage(s.block, p));
            // SAFETY: the segment's own storage; a load allocates a page where there is none, and spoils none that there is.
            let _ = unsafe { at.as_ptr().read_volatile() };
        }
        body.stored(s.mask);
        // The last part of a block in one folio brings the whole block back under one entry.
        // Not beside a guard: a part of one entry cannot leave alone, and would take the guard's pages out of the window.
        if body.huge && !body.stores_watched && (body.revoked | body.stays()).is_empty() {
            // SAFETY: the window is a shared mapping of the engine's.
            if unsafe { os::collapse(window, BLOCK as usize) } {
                uffd.wake(window, BLOCK as usize);
                return;
            }
        }
        let (loads, rest) = duplicate::split(body, s.mask);
        for (mask, _) in parts(body, loads) {
            for (r, _) in block.pieces(s.block, mask) {
                self.duplicate(space, body, Span { block: s.block, mask: Mask::range(r) });
            }
        }
        for (r, _) in parts(body, rest).into_iter().flat_map(|(mask, _)| block.pieces(s.block, mask)) {
            let (at, bytes) = (window + r.start * PAGE as usize, r.len() * PAGE as usize);
            if uffd.map(at, bytes, true).is_err() {
                // Some page has no storage although nobody said so: it was never written, and a store gives it some.
                for p in r.clone() {
                    let view = space.direct_at(block.storage(s.block, p));
                    // SAFETY: a load of the segment's own storage allocates a page where there is none.
                    let _ = unsafe { view.as_ptr().read_volatile() };
                }
                if uffd.map(at, bytes, true).is_err() {
                    uffd.wake(at, bytes);
                }
            }
        }
    }

    /// Pages whose storage has just been freed, which took them out of the window: touches of them need no service any more. With
    /// the block's lock held.
    pub(crate) fn forget(&self, space: &Space, body: &mut Body, s: Span) {
        let duplicated = body.duplicated & s.mask;
        if !duplicated.is_empty() {
            self.admit_stores(space, body, Span { mask: duplicated, ..s });
        }
        if let Door::Guard(guard) = &self.door {
            let window = space.window_at(s.block.offset()).as_ptr().addr();
            for (mask, write) in parts(body, s.mask & body.revoked) {
                mask.runs().for_each(|r| guard.open(window + r.start * PAGE as usize, r.len() * PAGE as usize, write));
            }
        }
        body.restore(s.mask);
    }

    /// A guard comes to a part of a block of which there was none: if the block is mapped by one entry, that has to go, since a neighbour
    /// that leaves would take it along. With the block's lock held.
    pub(crate) fn before_guard(&self, space: &Space, id: BlockId, body: &Body) {
        if self.mechanism == Mechanism::Signal && body.huge {
            let at = space.window_at(id.offset()).as_ptr().addr();
            // SAFETY: the window is a shared mapping of the engine's. If it fails the entry stays, as before.
            let _ = unsafe { os::discard_mapping(at, BLOCK as usize) };
        }
    }

    /// Maps pages that are at home, for system calls: where only the program's own accesses are served, one of those does it.
    /// Storage that was filled through the runtime's view is not mapped in the window before its first touch.
    pub(crate) fn map(&self, space: &Space, pages: &Pages) {
        if self.mechanism != Mechanism::Signal {
            return;
        }
        for p in pages.0.clone() {
            // SAFETY: the window is mapped for ever; a load has no effect but the fault that it may take.
            let _ = unsafe { space.window_at(p * PAGE).as_ptr().read_volatile() };
        }
    }

    /// Lets threads parked on pages of a block try again. Signal-safe.
    pub(crate) fn wake(&self, space: &Space, id: BlockId, mask: Mask) {
        if self.mechanism == Mechanism::Transparent
            && let Some(uffd) = self.uffd()
        {
            let window = space.window_at(id.offset()).as_ptr().addr();
            for r in mask.runs() {
                uffd.wake(window + r.start * PAGE as usize, r.len() * PAGE as usize);
            }
        }
        // Threads in the signal handler sleep on the block's epoch, which was bumped.
    }

    /// Whether a block has marks in the window that its next owner must not find.
    pub(crate) fn marks(&self, body: &Body) -> bool {
        match self.door {
            Door::Uffd(_) => {
                let missing = body.missing && !self.everywhere.load(Ordering::Relaxed);
                missing || body.stores_watched || body.was_framed
            }
            Door::Guard(_) => !body.revoked.is_empty() || body.stores_watched,
            Door::None => false,
        }
    }

    /// A freed stretch: touches of pages without storage are the kernel's business again.
    pub(crate) fn vacate(&self, space: &Space, pages: &Pages) {
        let (at, bytes) = (space.window_at(pages.0.start * PAGE).as_ptr().addr(), pages.bytes() as usize);
        if let Door::Guard(guard) = &self.door {
            guard.lift(at, bytes);
            guard.open(at, bytes, true);
            if *guard == Guard::Markers && pages.bytes() >= guard::LARGE {
                // Mapped as it was. Where that is refused the page tables stay.
                let _ = self.remap(space, pages, pages.0.start * PAGE, false);
            }
        } else if let Some(uffd) = self.uffd() {
            // The kernel skips a range that reports these modes and more, so the old registration goes first: nobody can touch
            // a freed stretch meanwhile. If registering fails its pages could leave and come back as zeros: better to end.
            let _registering = self.registering.hold();
            let mut watched = self.watched.lock();
            let (first, end) = (Page(pages.0.start).block(), Page(pages.0.end).block());
            let gone: Vec<_> = watched.range(first..end).copied().collect();
            for id in gone {
                watched.remove(&id);
            }
            drop(watched);
            uffd.unregister(at, bytes);
            if uffd.register(at, bytes, self.reported()).is_err() {
                os::die("sterna: the kernel no longer reports faults of shared memory\n");
            }
        }
    }
}

const _: () = assert!(PAGES_PER_BLOCK == 512);
