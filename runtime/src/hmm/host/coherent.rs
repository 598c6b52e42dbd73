//! Device memory that the host uses in place: pages that a coherent device alone has (`DEVICE_COHERENT`).
//!
//! **Guarantee.** Host and device use one copy of such a page, the device's frame; neither's accesses move it or stop the other.
//! The window's mapping of a page names a device's frame only while that page is the device's alone: it is gone before the frame
//! is given back, so nobody's frame can be seen through another's page. No store is lost when a page leaves: the mapping is
//! closed before the bytes are copied, as every other.
//!
//! **States of a page** that a coherent device alone has (`dirty` there), by two masks of its block:
//!
//! | | the window's mapping | a touch of the host |
//! |---|---|---|
//! | not `framed` | of the arena's file, closed | is noticed: [`Host::show`] |
//! | `framed`, not `shown` | of the device's file, at the page's frame, closed | is noticed: [`Host::show`] |
//! | `shown` | the same, open | goes to the frame; the kernel maps it as any file's page |
//!
//! `shown` ends with [`Host::hide`], before anybody else may have the page; `framed` with [`Host::unframe`] in the step in which
//! the host's storage becomes the page, or with [`Host::forsake`] where the device was lost. *Closed* is what it is elsewhere:
//! registered and unmapped, or guarded.
//!
//! **Why nothing is seen in between.** A mapping is replaced in one call, and takes registration and guards with it. So it is
//! replaced only when what it then shows is right and may be used by all: a frame by `show`, when the page is the device's and not
//! *busy*; the storage by `unframe`, when the bytes are there and nobody else has them. A touch between that call and the
//! registration behind it finds the right bytes and needs no service. What must not be touched is closed first, where it is.
//!
//! **Other devices** do not use such a page where it is: their entries can name the host's storage alone, so it comes home first, as
//! from any device. A look-up shows it to them as what it is.
//!
//! **How many mappings.** A touch shows as much of its block as one mapping can: the whole block when all of it is the device's
//! in consecutive frames, else the run of such pages around it, page by page if they lie scattered. Neighbours that continue each
//! other are joined by the kernel. An eighth of what the process may have (`vm.max_map_count`) is the most; beyond that a page
//! comes home as from a device that is not coherent.
//!
//! **Who may change them.** Whoever holds the block's lock, as the other masks; `hide` closes mappings with the pages *busy* and
//! without it. Mechanism `none` has no such pages: nothing would stop the host's stores when one leaves, so there a coherent
//! device is as any other.

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::addr::{BlockId, Mask, PAGE, PAGES_PER_BLOCK, Span};
use super::super::block::{Block, Body};
use super::super::lock::Free;
use super::super::os;
use super::super::space::Space;
use super::{Door, Host, duplicate, parts};
use crate::Error;

/// Mappings of device memory in the window.
#[derive(Debug)]
pub(super) struct Mappings {
    made: AtomicU32,
    most: u32,
}

impl Mappings {
    pub(super) fn new() -> Self {
        const USUAL: u32 = 65_530;
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        Self { made: AtomicU32::new(0), most: text.trim().parse().unwrap_or(USUAL) / 8 }
    }

    /// The framed pages of a block have changed.
    fn recount(&self, space: &Space, body: &mut Body) {
        let now = pieces(space, body);
        let before = body.set_mappings(now as u16);
        self.made.fetch_add(now.wrapping_sub(u32::from(before)), Ordering::Relaxed);
    }
}

/// The coherent device that alone has page `p`.
pub(crate) fn owner(space: &Space, body: &Body, p: usize) -> Option<usize> {
    body.devices().find(|d| body.dev[*d].dirty.has(p) && space.slots[*d].is_coherent())
}

/// The pages that coherent devices alone have.
pub(crate) fn resident(space: &Space, body: &Body) -> Mask {
    body.devices().filter(|d| space.slots[*d].is_coherent()).fold(Mask::EMPTY, |m, d| m | body.dev[d].dirty)
}

/// Number of page `p`'s frame, counted in pages of its device's memory.
pub(crate) fn frame(space: &Space, body: &Body, slot: usize, p: usize) -> u64 {
    let per = space.slots[slot].pages_per_grain();
    u64::from(body.dev[slot].frames[p / per] - 1) * per as u64 + (p % per) as u64
}

/// A run of a block's pages whose bytes lie one behind the other: in which file of memory, from which byte on, and where they
/// are in this process.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) pages: Range<usize>,
    pub(crate) fd: RawFd,
    pub(crate) offset: u64,
    pub(crate) at: *const u8,
}

/// Where the bytes of pages of a block are, of which only coherent devices or nobody has newer ones than the host. Who uses the
/// answer keeps the pages where they are meanwhile.
pub(crate) fn places(space: &Space, (id, block): (BlockId, &Block), body: &Body, mask: Mask) -> Vec<Piece> {
    let there = resident(space, body);
    let mut out: Vec<Piece> = Vec::new();
    for (pages, offset) in block.pieces(id, mask & !there) {
        out.push(Piece { pages, fd: space.raw_fd(), offset, at: space.direct_at(offset).as_ptr().cast_const() });
    }
    for p in (mask & there).runs().flatten() {
        let Some(slot) = owner(space, body, p) else { continue };
        let offset = frame(space, body, slot, p) * PAGE;
        let base = space.slots[slot].frames.load(Ordering::Acquire).cast_const();
        let (fd, at) = (space.slots[slot].frames_fd(), base.wrapping_add(offset as usize));
        match out.last_mut() {
            Some(last) if last.fd == fd && last.pages.end == p && last.offset + last.pages.len() as u64 * PAGE == offset => {
                last.pages.end += 1;
            }
            _ => out.push(Piece { pages: p..p + 1, fd, offset, at }),
        }
    }
    out
}

/// How many mappings the framed pages of a block are at most.
fn pieces(space: &Space, body: &Body) -> u32 {
    let at = |p: usize| owner(space, body, p).map(|d| (d, frame(space, body, d, p)));
    let mut n = 0;
    for r in body.framed.runs() {
        let mut last = None;
        for p in r {
            let here = at(p);
            n += u32::from(last.is_none() || last.map(|(d, f)| (d, f + 1)) != here);
            last = here;
        }
    }
    n
}

impl Host {
    /// Has the host use page `p`, and what one mapping shows with it, in the memory of the coherent device that alone has it: says
    /// which device that is. `None` if there is none, or no mapping is left. With the block's lock held, for pages that are
    /// neither busy nor exclusive. Signal-safe.
    pub(crate) fn show(&self, space: &Space, (id, block): (BlockId, &Block), body: &mut Body, p: usize) -> Option<usize> {
        let slot = owner(space, body, p)?;
        let dev = &body.dev[slot];
        let may = dev.dirty & !dev.atomic & !body.busy & block.limit();
        let (may, write) = parts(body, may).into_iter().find(|(mask, _)| mask.has(p))?;
        let window = space.window_at(id.offset()).as_ptr().addr();
        let place = |r: &Range<usize>| (window + r.start * PAGE as usize, r.len() * PAGE as usize);
        let around = |mask: Mask| mask.runs().find(|r| r.contains(&p));
        let run = if body.framed.has(p) {
            let run = around(may & body.framed)?;
            let (at, bytes) = place(&run);
            match &self.door {
                Door::Uffd(uffd) => uffd.unregister(at, bytes),
                Door::Guard(guard) => guard.open(at, bytes, write),
                Door::None => return None,
            }
            run
        } else {
            if self.mappings.made.load(Ordering::Relaxed) >= self.mappings.most {
                return None;
            }
            let within = around(may & !body.framed)?;
            let number = |q: usize| frame(space, body, slot, q);
            let joined = |q: usize| number(q) + 1 == number(q + 1);
            let start = (within.start..p).rev().take_while(|q| joined(*q)).last().unwrap_or(p);
            let end = (p + 1..within.end).take_while(|q| joined(*q - 1)).last().unwrap_or(p) + 1;
            let (run, from) = (start..end, number(start) * PAGE);
            let (at, bytes) = place(&run);
            // SAFETY: the window is a shared mapping of the engine's; the frames are the pages' own, in the device's file.
            unsafe { os::map_over(space.slots[slot].frames_fd(), at, bytes, from, (true, write)) }.ok()?;
            body.frame(Mask::range(run.clone()));
            self.mappings.recount(space, body);
            run
        };
        body.show(Mask::range(run.clone()));
        if let Door::Uffd(uffd) = &self.door {
            // Whoever waits on the mapping that was there.
            let (at, bytes) = place(&run);
            uffd.wake(at, bytes);
        }
        space.slots[slot].counters.shown.fetch_add(run.len() as u64 * PAGE, Ordering::Relaxed);
        Some(slot)
    }

    /// Takes pages out of the window that it shows in a device's memory; they are busy. When this returns no store of the host can
    /// land there any more.
    pub(crate) fn hide(&self, space: &Space, free: &mut Free, spans: &[Span]) -> Result<(), Error> {
        #[cfg(feature = "planted")]
        if super::super::planted::on(&super::super::planted::FRAMES_NOT_HIDDEN) {
            return Ok(());
        }
        for s in spans {
            let shown = space.block(s.block).lock(free).hide(s.mask);
            for r in shown.runs() {
                if let Err(e) = self.close_frames(space, s.block, &r) {
                    space.block(s.block).lock(free).show(shown);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn close_frames(&self, space: &Space, id: BlockId, r: &Range<usize>) -> Result<(), Error> {
        let (at, bytes) = (space.window_at(id.offset()).as_ptr().addr() + r.start * PAGE as usize, r.len() * PAGE as usize);
        match &self.door {
            Door::Uffd(uffd) => {
                let _registering = self.registering.hold();
                uffd.register(at, bytes, os::uffd::MINOR | os::uffd::MISSING)
                    .map_err(|code| os::too_many_mappings("ioctl(UFFDIO_REGISTER)", code))?;
                // SAFETY: the window is a shared mapping of the engine's.
                unsafe { os::discard_mapping(at, bytes) }
                    .map_err(|code| Error::driver("madvise(MADV_DONTNEED)", &std::io::Error::from_raw_os_error(code)))
            }
            Door::Guard(guard) => guard.shut(at, bytes, &space.window_addresses()),
            Door::None => Ok(()),
        }
    }

    /// The host's storage is the page for those of `mask` that the window shows, or showed, in a device's memory: has the window
    /// show the storage, open. With the block's lock held, the bytes in place, and no copy anywhere else. Signal-safe.
    pub(crate) fn unframe(&self, space: &Space, (id, block): (BlockId, &Block), body: &mut Body, mask: Mask) {
        let mask = mask & body.framed;
        if mask.is_empty() {
            return;
        }
        #[cfg(feature = "planted")]
        let left = super::super::planted::on(&super::super::planted::FRAMES_LEFT_MAPPED);
        #[cfg(not(feature = "planted"))]
        let left = false;
        if !left {
            let [(write, _), (read, _)] = parts(body, mask);
            for (part, prot) in [(write, (true, true)), (read, (true, false)), (mask & body.unreadable, (false, false))] {
                self.show_storage(space, (id, block), body, part, prot);
            }
        }
        body.unframe(mask);
        body.restore(mask);
        self.mappings.recount(space, body);
    }

    /// Maps the storage of pages with the block's own registration.
    fn show_storage(&self, space: &Space, (id, block): (BlockId, &Block), body: &Body, mask: Mask, prot: (bool, bool)) {
        let window = space.window_at(id.offset()).as_ptr().addr();
        // Also what is about to be said of a block with holes, by somebody who does not have the lock yet.
        let modes = duplicate::reports(body) | if body.full { 0 } else { os::uffd::MISSING };
        for (r, storage) in block.pieces(id, mask) {
            let (at, bytes) = (window + r.start * PAGE as usize, r.len() * PAGE as usize);
            // SAFETY: the window is a shared mapping of the engine's; the storage is the block's own.
            let mapped = os::in_the_end(|| match unsafe { os::map_over(space.raw_fd(), at, bytes, storage, prot) } {
                Ok(()) => 0,
                Err(code) => {
                    os::set_errno(code);
                    -1
                }
            });
            let watched = match &self.door {
                Door::Uffd(uffd) => uffd.register(at, bytes, modes),
                _ => Ok(()),
            };
            if mapped.is_err() || watched.is_err() {
                // What is mapped there belongs to a device that will use it for something else.
                os::die("sterna: a page of shared memory cannot be mapped again; raise vm.max_map_count\n");
            }
        }
    }

    /// The device that had pages of a block is lost, and with it what the window shows: closes that. With the block's lock held.
    pub(crate) fn forsake(&self, space: &Space, (id, block): (BlockId, &Block), body: &mut Body, mask: Mask) {
        let mask = mask & body.framed;
        if mask.is_empty() {
            return;
        }
        // Out of bounds until it is closed: the storage has bytes out of date, and a touch ends the process either way.
        self.show_storage(space, (id, block), body, mask, (false, false));
        body.unframe(mask);
        self.mappings.recount(space, body);
        if self.reenter(space, id, body, mask).is_err() {
            os::die("sterna: a page of shared memory cannot be taken away; raise vm.max_map_count\n");
        }
    }

    /// The window over pages was mapped anew by somebody else.
    pub(crate) fn forget_frames(&self, space: &Space, body: &mut Body, mask: Mask) {
        body.unframe(mask);
        self.mappings.recount(space, body);
    }
}

const _: () = assert!(PAGES_PER_BLOCK <= u16::MAX as usize);
