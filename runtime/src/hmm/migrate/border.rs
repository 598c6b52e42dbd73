//! Pages that a launch needs and a guard or a pin keeps at home, on a device that cannot use them there: the launch gets copies of its
//! own.
//!
//! **Guarantee.** The page never leaves home, and whoever keeps it there waits for nobody. The launch finds its bytes in its copies,
//! and what it writes of them, those bytes and no others, is in the host's storage before it counts as ended. So what a guard's
//! holder stores beside them meanwhile is not touched.
//!
//! **Why that is right.** Bytes that a launch and a live guard share are only read by both: by the borrows, and by the gate that a
//! guard passes. A guard that its holder has forgotten has no holder that could look. Until the launch has ended it pins the pages
//! itself: they stay at home when the guard goes first, so that nobody's copy of the page can be newer than the storage, and every other
//! launch that shares a page with it gets a copy of its own, or on the same device comes behind it.
//!
//! **States** of a page in the books of the device: *private*, from the moment its copy is there until the launch has ended or is
//! given up. It counts as ready, for whoever is not kept out by the pin; it is not valid; and its grain's entry and frame stay.
//!
//! **A device that faults** has entries for whole grains only: there a grain that holds a page which is kept and one that the launch
//! uses is the launch's own altogether, so that it never faults on it. Nothing else of that device uses the grain meanwhile: a guard
//! comes behind the launches that might, whoever was asked for behind the guard has copies too, and those that have copies of the same
//! grain come one behind the other. Copies leave the device as much room as its faults need to get on (`min_frames`).
//!
//! **Locks**: a block's, with the driver's inside, for word operations; copies and waits with none.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_hal::{Access, CopyEnd, CopyRun, Edit, HostAt, Target};

use super::super::addr::{BlockId, Mask, PAGE, PAGES_PER_BLOCK, Pages, Span, runs_of};
use super::super::block::{Block, Body};
use super::super::devmem::{Reserved, wait_for_oldest};
use super::super::inflight::{InFlight, Touch};
use super::super::lock::Free;
use super::super::mirror::DeviceMirror;
use super::super::pin::{self, Pin};
use super::super::prot;
use super::super::running;
use super::super::seat::Addresses;
use super::super::segment::{Segment, without};
use super::super::source::{self, How};
use super::super::uses::Of;
use super::copy::{by_grain, by_place};
use super::{Asks, Home, Moved, Want, bring_home, end_busy, wait_blocked};
use crate::Error;
use crate::stats::Cause;

/// How long whoever keeps pages for the moment is waited for at a time.
const MOMENT: Duration = Duration::from_micros(100);

/// A launch's own copies. Dropped, they are nobody's, and the pages may move again.
pub(crate) struct Borders {
    mirror: Arc<DeviceMirror>,
    parts: Vec<Part>,
    /// Let go of after the copies.
    pins: Vec<Pin>,
    /// Grains that it has on a device that faults, counted there.
    grains: u32,
}

/// Pages of a block, and the bytes of the segment there that the launch writes.
struct Part {
    seg: Arc<Segment>,
    span: Span,
    written: Vec<Range<u64>>,
}

impl std::fmt::Debug for Borders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Borders").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

impl Borders {
    /// Gives a launch that is about to be submitted copies of those pages of `touches` that are kept at home; what it got before goes.
    ///
    /// # Errors
    /// [`OutOfDeviceMemory`](Error::OutOfDeviceMemory); [`Lost`](Error::Lost); pages that may not be used like that; a device that fails.
    /// [`Pinned`](Error::Pinned) on a device that faults, where they would leave its faults too little.
    pub(crate) fn give_copies(free: &mut Free, record: &InFlight, touches: &[Touch], rank: u64) -> Result<(), Error> {
        let mirror = record.mirror();
        record.set_borders(None);
        if mirror.may_alias() {
            return Ok(());
        }
        loop {
            let kept = kept(free, mirror, touches)?;
            if kept.is_empty() {
                return Ok(());
            }
            let mut this = Self { mirror: Arc::clone(mirror), parts: Vec::new(), pins: Vec::new(), grains: 0 };
            for (seg, spans) in &kept {
                this.pins.extend(runs_of(spans).iter().map(|run| Pin::stay(free, seg, run)));
            }
            if let Some(launch) = this.would_wait(&kept) {
                drop(this);
                launch.wait(free, mirror.is_rigid().then_some(MOMENT));
                continue;
            }
            this.count(free, &kept)?;
            for (seg, spans) in kept {
                for s in spans {
                    this.copy_in(free, &seg, s, &declared(&seg, s, touches, |_| true), rank)?;
                    let written = declared(&seg, s, touches, |t| t.access.writes());
                    this.parts.push(Part { seg: Arc::clone(&seg), span: s, written });
                }
            }
            record.set_borders(Some(this));
            return Ok(());
        }
    }

    /// A launch on a device that faults, which may come to need what is kept from it: one that was submitted when nothing kept the pages,
    /// since a guard comes behind such. None comes any more. On this very device it uses other pages of the same grains, and has to end
    /// first; on another there is no guard on the pages any more, or none yet.
    fn would_wait(&self, kept: &[Kept]) -> Option<Arc<InFlight>> {
        let (space, slot, rigid) = (self.mirror.space(), self.mirror.slot(), self.mirror.is_rigid());
        for m in space.devices().iter().filter(|m| !m.may_alias() && (rigid || m.slot() == slot)) {
            drop(m.rec().lock.hold()); // whoever found no pin has listed what it uses
        }
        let of = if rigid { Of::Any } else { Of::Slot(slot) };
        kept.iter().find_map(|(seg, spans)| {
            let spans: Vec<Span> = spans.iter().map(|s| Span { mask: self.grains_of(s.mask), ..*s }).collect();
            runs_of(&spans).iter().find_map(|run| pin::user_without_copies(seg, of, run, InFlight::is_running))
        })
    }

    /// Counts grains of a device that faults as launches' own. Where that would leave its faults too little, earlier launches end
    /// first.
    fn count(&mut self, free: &mut Free, kept: &[Kept]) -> Result<(), Error> {
        if self.mirror.is_rigid() {
            return Ok(());
        }
        let pages: u32 = kept.iter().flat_map(|k| &k.1).map(|s| self.grains_of(s.mask).count()).sum();
        let grains = pages / self.mirror.rec().pages_per_grain() as u32;
        let (device, caps) = (self.mirror.device(), self.mirror.caps());
        let most = (device.memory().budget / caps.grain).saturating_sub(u64::from(caps.min_frames));
        let more = |n: u32| n.checked_add(grains).filter(|n| u64::from(*n) <= most);
        while self.mirror.own_grains.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            if !wait_for_oldest(free, &self.mirror) {
                return Err(Error::Pinned);
            }
        }
        self.grains = grains;
        Ok(())
    }

    /// Copies bytes `declared` of some pages of a block into frames, and has the device map those.
    fn copy_in(
        &self,
        free: &mut Free,
        seg: &Arc<Segment>,
        s: Span,
        declared: &[Range<u64>],
        rank: u64,
    ) -> Result<(), Error> {
        let (m, slot, per) = (&self.mirror, self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let pages = s.hull().widened(per as u64);
        // What else a launch needs comes by demand on a device that faults: it may go for these.
        let below = if m.is_rigid() { rank } else { u64::MAX };
        let want = Want { access: Access::Read, rank: below, cause: Cause::Launch, own: false };
        loop {
            self.make_ready(free, seg, s)?;
            let (_seat, view) = m.seat(free, seg, &pages, rank)?;
            let lacking = {
                let body = seg.claim(s.block).lock(free);
                let lacks = |g: &usize| body.dev[slot].frames[*g] == 0 && s.mask.meets(Mask::range(g * per..(g + 1) * per));
                (0..PAGES_PER_BLOCK / per).filter(lacks).count() as u32
            };
            let mut reserved = Reserved::take(free, m, view.at.at, lacking, want, true)?;
            if let Some(taken) = self.take(free, seg, s, (view, &mut reserved), rank)? {
                return self.fill(free, seg, s, &taken, declared, view);
            }
        }
    }

    /// Waits until pages are at home and nowhere else, with all their bytes, and no launch has them on this device. What the launch
    /// writes goes to the storage: a replica would not have it.
    fn make_ready(&self, free: &mut Free, seg: &Arc<Segment>, s: Span) -> Result<(), Error> {
        let (block, pages, start) = (seg.claim(s.block), s.hull(), Instant::now());
        let (slot, grains) = (self.mirror.slot(), self.grains_of(s.mask));
        loop {
            // What an earlier launch has of them goes home first.
            while let Some(launch) = running::user(seg, s.block, slot, grains, false) {
                launch.wait(free, None);
            }
            if !self.mirror.is_rigid() {
                // Nothing of the grains is there in any other way.
                let moved = self.clear(free, seg, Span { mask: grains, ..s })?;
                if moved.pinned && start.elapsed() > pin::BUDGET {
                    return Err(Error::Pinned);
                }
            }
            if let Some(blocked) =
                source::fetch_for(free, seg, &pages, Access::ReadWrite, How { wait: false, asks: Asks::Patiently })?
            {
                wait_blocked(free, seg.space(), blocked);
                continue;
            }
            if !elsewhere(&block.lock(free)).meets(s.mask) {
                return Ok(());
            }
            // On its way home with whoever keeps it there, or kept by a short pin where it is.
            let moved = bring_home(free, seg, &pages, Home { map: false, ..Home::EXCLUSIVE }, Cause::Launch)?;
            if moved.complete(seg, &pages)?.pinned {
                if start.elapsed() > pin::BUDGET {
                    return Err(Error::Pinned);
                }
                std::thread::sleep(MOMENT);
            }
        }
    }

    /// The grains of pages, where those are one.
    fn grains_of(&self, mask: Mask) -> Mask {
        if self.mirror.is_rigid() { mask } else { mask.widened(self.mirror.rec().pages_per_grain()) }
    }

    /// Takes grains off a device that faults.
    fn clear(&self, free: &mut Free, seg: &Arc<Segment>, grains: Span) -> Result<Moved, Error> {
        let mut all = Moved::default();
        let there = {
            let body = seg.claim(grains.block).lock(free);
            let dev = &body.dev[self.mirror.slot()];
            (dev.valid | dev.mapped) & !dev.private & grains.mask
        };
        for run in runs_of(&[Span { mask: there.widened(self.mirror.rec().pages_per_grain()), ..grains }]) {
            let home = Home { asks: Asks::Patiently, ..Home::off(self.mirror.slot(), true) };
            all.add(bring_home(free, seg, &run, home, Cause::Launch)?);
        }
        Ok(all)
    }

    /// Marks the pages busy and gives them frames; `None` where something has changed since all was ready, which may have been
    /// waited for.
    fn take(
        &self,
        free: &mut Free,
        seg: &Arc<Segment>,
        s: Span,
        (view, reserved): (Addresses, &mut Reserved),
        rank: u64,
    ) -> Result<Option<Taken>, Error> {
        let (slot, per) = (self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let block = seg.claim(s.block);
        let mut body = block.lock(free);
        if body.lost.meets(s.mask) {
            drop(body);
            return Err(seg.loss(&s.hull()));
        }
        let made = (s.mask & !body.dev[slot].framed()).widened(per);
        let busy = s.mask | made;
        if body.busy.meets(busy) || elsewhere(&body).meets(s.mask) || body.dev[slot].private.meets(self.grains_of(s.mask)) {
            let blocked = (s.block, block.epoch());
            drop(body);
            wait_blocked(free, seg.space(), blocked);
            return Ok(None);
        }
        if !self.mirror.is_rigid() && (body.dev[slot].valid | body.dev[slot].mapped).meets(busy) {
            return Ok(None); // brought back by somebody since
        }
        let held = |g: &usize| s.mask.meets(Mask::range(g * per..(g + 1) * per));
        let grains: Vec<usize> = (0..PAGES_PER_BLOCK / per).filter(held).collect();
        let bare = |g: &&usize| body.dev[slot].frames[**g] == 0;
        if grains.iter().filter(bare).count() as u32 > reserved.spare() {
            return Ok(None); // somebody took frames of this block away since
        }
        body.admit(slot);
        for &g in &grains {
            if body.dev[slot].frames[g] == 0 {
                let number = (seg.view_offset(s.block, g * per) - view.from) / (per as u64 * PAGE);
                let frame = reserved.pop(number as u32);
                body.give_frame(slot, g, frame);
                self.mirror.arrivals.came(frame, (s.block, g as u16));
            }
        }
        self.mirror.set_rank(s.block, &mut body, rank);
        body.take(busy);
        let beside = made & !s.mask & !(body.dev[slot].valid | body.dev[slot].private);
        let frames = grains.iter().map(|g| (*g, body.dev[slot].frames[*g] - 1)).collect();
        Ok(Some(Taken { made, beside, busy, frames }))
    }

    /// Copies into frames that were taken, makes their entries, and shows the pages to the launch.
    fn fill(
        &self,
        free: &mut Free,
        seg: &Arc<Segment>,
        s: Span,
        taken: &Taken,
        declared: &[Range<u64>],
        view: Addresses,
    ) -> Result<(), Error> {
        let (m, slot, per) = (&self.mirror, self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let (space, block) = (seg.space(), seg.claim(s.block));
        let zero = |grain, offset, bytes| CopyRun { from: CopyEnd::Zero, to: taken.at(grain, offset), bytes };
        let mut runs = Vec::new();
        for (g, r) in by_grain(taken.beside, per) {
            runs.push(zero(g, (r.start - g * per) as u64 * PAGE, r.len() as u64 * PAGE));
        }
        for p in pieces(seg, (s.block, block), s.mask, per, declared) {
            let from = CopyEnd::Host(HostAt { region: m.region(), offset: p.storage });
            runs.push(CopyRun { from, to: taken.at(p.grain, p.offset), bytes: p.bytes });
        }
        // What lies beside them in a frame that comes with somebody's old bytes.
        let rest = pieces(seg, (s.block, block), s.mask & taken.made, per, &gaps(seg, s, declared));
        runs.extend(rest.iter().map(|p| zero(p.grain, p.offset, p.bytes)));
        m.rec().counters.moved_in(Cause::Launch, runs.iter().filter(|r| r.from != CopyEnd::Zero).map(|r| r.bytes).sum());
        let edit = |(g, r): (usize, Range<usize>)| Edit {
            at: view.run(seg, s.block, &r),
            to: Target::Frames { first: taken.frame(g) },
            access: Access::ReadWrite,
        };
        let edits: Vec<Edit> = by_grain(taken.made, per).map(edit).collect();
        let done = self.copy(free, &runs).and_then(|()| m.install(free, &edits));
        let mut body = block.lock(free);
        let done = if m.is_lost() { done.and(Err(m.loss())) } else { done };
        if done.is_ok() {
            m.change(seg, s.block, &mut body, |body| body.own_copies(slot, s.mask, taken.made));
        }
        debug_assert_eq!(body.check(space.host.faults()), Ok(()));
        drop(body);
        end_busy(space, free, Span { block: s.block, mask: taken.busy });
        done
    }

    /// Brings home what the launch has written: its bytes and no others.
    pub(crate) fn copy_out(&self, free: &mut Free) -> Result<(), Error> {
        let (slot, per) = (self.mirror.slot(), self.mirror.rec().pages_per_grain());
        let mut runs = Vec::new();
        for Part { seg, span: s, written } in &self.parts {
            let block = seg.space().block(s.block);
            let mut body = block.lock(free);
            #[cfg(feature = "planted")]
            let written = if super::super::planted::on(&super::super::planted::BORDER_COMES_WHOLE) {
                &gaps(seg, *s, &[])
            } else {
                written
            };
            for t in pieces(seg, (s.block, block), s.mask, per, written) {
                let from = CopyEnd::Frames { first: body.dev[slot].frames[t.grain] - 1, offset: t.offset };
                let to = CopyEnd::Host(HostAt { region: self.mirror.region(), offset: t.storage });
                runs.push(CopyRun { from, to, bytes: t.bytes });
            }
            body.stored(s.mask);
        }
        self.mirror.rec().counters.moved_out(Cause::Launch, runs.iter().map(|r| r.bytes).sum());
        self.copy(free, &runs)
    }

    fn copy(&self, free: &mut Free, runs: &[CopyRun]) -> Result<(), Error> {
        if runs.is_empty() {
            return Ok(());
        }
        // SAFETY: frames of the launch's own copies, and bytes of the host that nobody else writes or, where they are written, uses.
        let point = unsafe { self.mirror.device().copy(runs, &[]) }.map_err(|e| self.mirror.noticed(e))?;
        self.mirror.reach(free, point)
    }

    /// The pages of a segment that are the launch's own copies.
    pub(crate) fn of(&self, seg: &Segment) -> impl Iterator<Item = Span> + '_ {
        let first = seg.first();
        self.parts.iter().filter(move |p| p.seg.first() == first).map(|p| p.span)
    }
}

impl Drop for Borders {
    fn drop(&mut self) {
        if crate::hmm::fork::forked() {
            return;
        }
        let (mut free, slot) = (Free::at_entry(), self.mirror.slot());
        for Part { seg, span: s, .. } in &self.parts {
            let mut body = seg.space().block(s.block).lock(&mut free);
            self.mirror.change(seg, s.block, &mut body, |body| {
                body.end_own_copies(slot, s.mask);
                if !self.mirror.is_rigid() {
                    // Its entry goes before the next launch that could use it.
                    seg.rec().view[slot].stale.store(1, Ordering::Release);
                }
            });
        }
        self.mirror.own_grains.fetch_sub(self.grains, Ordering::AcqRel);
        self.pins.clear();
    }
}

/// Pages of a block that are busy for a launch's copies.
struct Taken {
    /// Grains that get their entry now.
    made: Mask,
    /// Pages of those of which nothing is valid there and nothing comes.
    beside: Mask,
    busy: Mask,
    /// Grains of the block, and where they are.
    frames: Vec<(usize, u32)>,
}

impl Taken {
    fn frame(&self, grain: usize) -> u32 {
        // Every grain of the pages is there, and nothing else is asked for.
        self.frames[self.frames.partition_point(|f| f.0 < grain)].1
    }

    fn at(&self, grain: usize, offset: u64) -> CopyEnd {
        CopyEnd::Frames { first: self.frame(grain), offset }
    }
}

/// Pages that are not at home alone.
fn elsewhere(body: &Body) -> Mask {
    body.gone | body.replicated()
}

/// Pages of a segment.
type Kept = (Arc<Segment>, Vec<Span>);

/// The pages of `touches` that are kept at home, or on a device that faults whose grains hold such, by segment and block, each once.
fn kept(free: &mut Free, mirror: &DeviceMirror, touches: &[Touch]) -> Result<Vec<Kept>, Error> {
    let mut all: Vec<Kept> = Vec::new();
    let per = if mirror.is_rigid() { 1 } else { mirror.rec().pages_per_grain() };
    for t in touches {
        if t.seg.pins.lock().is_empty() {
            continue;
        }
        let mut spans = Vec::new();
        for (block, mask) in t.seg.pages_of(&t.bytes).blocks() {
            let mask = mask & t.seg.claim(block).lock(free).kept_from(mirror.slot()).widened(per);
            spans.push(Span { block, mask });
        }
        spans.retain(|s| !s.mask.is_empty());
        for run in runs_of(&spans) {
            prot::allowed(free, &t.seg, &run, t.access)?;
        }
        if spans.is_empty() {
            continue;
        }
        match all.iter_mut().find(|(s, _)| Arc::ptr_eq(s, &t.seg)) {
            Some((_, have)) => {
                for s in spans {
                    match have.iter_mut().find(|h| h.block == s.block) {
                        Some(h) => h.mask |= s.mask,
                        None => have.push(s),
                    }
                }
                have.sort_unstable_by_key(|s| s.block);
            }
            None => all.push((Arc::clone(&t.seg), spans)),
        }
    }
    Ok(all)
}

/// Waits for a launch whose own copies keep some of `pages` at home, or for a moment where it is about to be submitted; at most
/// `most`. Nothing of the caller's may be busy.
pub(crate) fn wait_for_borders(free: &mut Free, seg: &Segment, pages: &Pages, most: Option<Duration>) {
    let near: Vec<Arc<InFlight>> = {
        let uses = seg.uses.lock();
        uses.overlapping(Of::Any, &seg.bytes_in(pages), true).map(|u| Arc::clone(&u.launch)).collect()
    };
    let keeps = |l: &&Arc<InFlight>| l.own(seg).iter().any(|s| pages.part_of(s.block).meets(s.mask));
    match near.iter().find(keeps) {
        Some(launch) if launch.is_submitted() => {
            launch.wait(free, most);
        }
        _ => std::thread::sleep(most.map_or(MOMENT, |most| most.min(MOMENT))),
    }
}

/// Bytes of the segment that such touches have of a block, in order and apart.
fn declared(seg: &Arc<Segment>, s: Span, touches: &[Touch], such: impl Fn(&Touch) -> bool) -> Vec<Range<u64>> {
    let start = s.block.offset() - seg.offset();
    let block = start..start + PAGES_PER_BLOCK as u64 * PAGE;
    let mine = touches.iter().filter(|t| Arc::ptr_eq(&t.seg, seg) && such(t));
    let mut all: Vec<Range<u64>> = mine.map(|t| t.bytes.start.max(block.start)..t.bytes.end.min(block.end)).collect();
    all.retain(|r| r.start < r.end);
    all.sort_unstable_by_key(|r| r.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for r in all {
        match out.last_mut() {
            Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
            _ => out.push(r),
        }
    }
    out
}

/// What of a span's block is not `declared`.
fn gaps(seg: &Segment, s: Span, declared: &[Range<u64>]) -> Vec<Range<u64>> {
    let start = s.block.offset() - seg.offset();
    let whole = std::iter::once(start..start + PAGES_PER_BLOCK as u64 * PAGE).collect();
    declared.iter().fold(whole, |left: Vec<_>, d| left.iter().flat_map(|l| without(l, d)).collect())
}

/// Bytes in one grain and in one piece of the host's storage.
struct Piece {
    grain: usize,
    /// In the grain.
    offset: u64,
    storage: u64,
    bytes: u64,
}

/// What of pages `mask` of a block lies in `bytes` of the segment.
fn pieces(seg: &Segment, (id, block): (BlockId, &Block), mask: Mask, per: usize, bytes: &[Range<u64>]) -> Vec<Piece> {
    let start = id.offset() - seg.offset();
    let mut out = Vec::new();
    for (grain, r, storage) in by_place(block, id, mask, per) {
        let here = start + r.start as u64 * PAGE..start + r.end as u64 * PAGE;
        for b in bytes {
            let part = b.start.max(here.start)..b.end.min(here.end);
            if part.start < part.end {
                let offset = part.start - start - grain as u64 * per as u64 * PAGE;
                out.push(Piece {
                    grain,
                    offset,
                    storage: storage + (part.start - here.start),
                    bytes: part.end - part.start,
                });
            }
        }
    }
    out
}
