//! Segments whose pages begin with somebody else's bytes: a file's, or those of a segment of which they are a copy.
//!
//! **Guarantee.** A page that nobody has touched costs nothing. Before anybody can see it, it has the bytes that its source had
//! when the segment was made. A copy's source cannot change before the copy has its page; a file must not be written by others.
//! While a segment with a source is being made nobody finds it: pages of a copy are not fetched before those of its source are at home
//! and lent.
//!
//! **States**, two masks of a block beside the others:
//!
//! | mask | of | meaning | ends with |
//! |---|---|---|---|
//! | `unread` | the segment with the source | the page's bytes have not been fetched: nobody has a mapping or an entry | [`fill`] |
//! | `lent` | the segment that was copied | a copy may have yet to fetch the page: nobody can write it | [`unlend`] |
//!
//! Both imply `revoked`, so the host's touch is noticed and parked for the service thread; and the engine's ways to a page call
//! [`fetch_for`] before they begin. With mechanism `none`, where no touch is noticed, segments are filled when they are made.
//!
//! **Who may change them.** `unread`: whoever has the page busy. `lent`: set with the page busy; cleared under the block's lock when
//! every copy that was made before has its page. **Bytes** come straight into the storage: a file's as [`Backing`] says, a copy's by
//! `pread` from the arena's own.
//!
//! **Memory.** Whoever can answer with an error asks first for what the pages will take ([`How::asks`]): launches, guards, hints and
//! calls. A touch of the host's or of a kernel's cannot, and takes what it needs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sterna_hal::Access;

use super::addr::{BlockId, GRANULE, Mask, PAGE, PAGES_PER_BLOCK, Page, Pages, Span, runs_of};
use super::backing::Backing;
use super::block::Block;
use super::host::coherent::{places, resident};
use super::lock::Free;
use super::migrate::{self, Asks, Home, end_busy, wait_blocked};
use super::mirror::Action;
use super::os;
use super::pin::Pin;
use super::segment::{Kind, Segment};
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

/// Blocks a round: how many are busy at once.
const ROUND: usize = 32;

/// A copy of a copy of a copy …: from here on the one that is copied fetches its bytes first, which lets go of those before it.
const LONGEST_CHAIN: usize = 16;

/// Where a segment's bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file.
    File(Backing),
    /// Another segment's pages, from this one on.
    Segment { of: Arc<Segment>, first: Page },
}

/// How pages are made fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Waits for pages that another batch has.
    pub(crate) wait: bool,
    /// Whether it fails before pages take more memory than there is.
    pub(crate) asks: Asks,
}

impl How {
    /// For a call that may take its time and can fail.
    pub(crate) const CALL: Self = Self { wait: true, asks: Asks::Patiently };
}

/// A page that another batch had, for the caller to wait for.
pub(crate) type Blocked = Option<(BlockId, u32)>;

/// A new segment of `bytes` bytes that are `source`'s, which nobody finds yet.
fn segment_with(space: &'static Space, bytes: u64, kind: Kind, source: Source) -> Result<Arc<Segment>, Error> {
    let seg = Segment::unpublished(space, bytes, kind)?;
    let mut free = Free::at_entry();
    let pages = seg.pages_of(&(0..bytes));
    // What lies behind a file's end is memory as any other.
    let unread = seg.pages_of(&(0..if let Source::File(b) = &source { b.bytes() } else { bytes }));
    seg.set_source(source, unread.len());
    for (id, mask) in pages.blocks() {
        let mut body = seg.claim(id).lock(&mut free);
        body.begin_unread(unread.part_of(id), if space.host.faults() { mask } else { Mask::EMPTY });
    }
    if space.host.faults() {
        space.host.close(space, &mut free, &seg)?;
    } else {
        // Nobody would notice the first touch.
        fill(&mut free, &seg, &pages, How::CALL)?;
    }
    Ok(seg)
}

/// A new segment of `bytes` bytes that are those of a file from `offset` on.
pub(crate) fn segment_of_file(
    space: &'static Space,
    (file, name): (File, String),
    offset: u64,
    bytes: u64,
    shared: bool,
) -> Result<Arc<Segment>, Error> {
    let source = Source::File(Backing::new((file, name), offset, bytes, shared)?);
    let seg = segment_with(space, bytes, Kind::File { shared }, source)?;
    space.publish(&seg);
    Ok(seg)
}

impl Segment {
    /// A segment of `bytes` bytes that are those of `file` from `offset` on, read at their first touch; zeros behind its end. With
    /// `shared` they are written back by [`flush`](Self::flush), and do not migrate for good; without, stores stay in memory, as
    /// those behind the file's end do. The program's pointers lead to shared memory, never into the file. A page that cannot be read
    /// later, since the file has become shorter or its medium fails, ends the process at a plain load, as with
    /// [`map_file`](crate::Runtime::map_file).
    ///
    /// # Errors
    /// As [`Segment::new`]; [`File`](Error::File) for what is no regular file, is not open for reading, is open for appending (with
    /// `shared`), or does not have the bytes that it says; [`Invalid`](Error::Invalid) for an offset that no file has; the system
    /// refuses what watching its pages needs, or to read the file, with mechanism `none`.
    pub fn of_file(space: &'static Space, file: File, offset: u64, bytes: u64, shared: bool) -> Result<Arc<Self>, Error> {
        super::entry::check()?;
        Ok(segment_of_file(space, (file, "of a segment".into()), offset, bytes, shared)?.bared())
    }

    /// Writes what was touched of a shared file's segment to the file; devices' stores come home first. Does nothing for others.
    ///
    /// # Errors
    /// The file cannot be written; a device that fails; [`InsideKernel`](Error::InsideKernel) in a kernel.
    pub fn flush(self: &Arc<Self>) -> Result<(), Error> {
        super::fork::check()?;
        match self.kind() {
            Kind::File { shared: true } => write_back(&mut super::entry::enter()?, self, &(0..self.bytes())),
            _ => Ok(()),
        }
    }
}

/// Makes `pages` of `seg` fit for `access`: their bytes are there and, for writing, every copy has its own. Says which page of
/// another batch stands in the way; where it waits none does.
pub(crate) fn fetch_for(
    free: &mut Free,
    seg: &Arc<Segment>,
    pages: &Pages,
    access: Access,
    how: How,
) -> Result<Blocked, Error> {
    if seg.unread() > 0
        && let Some(blocked) = fill(free, seg, pages, how)?
    {
        return Ok(Some(blocked));
    }
    if access.writes() { unlend(free, seg, pages, how) } else { Ok(None) }
}

/// Fetches what is still in a file, its own or that of what it is a copy of. A copy's own pages stay where they are.
pub(crate) fn fetch_file(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Result<(), Error> {
    let (true, Some(source)) = (seg.unread() > 0, seg.source()) else { return Ok(()) };
    let Source::Segment { of, first } = &*source else { return fill(free, seg, pages, How::CALL).map(drop) };
    for run in runs_of(&unread(free, seg, &within(pages, &seg.pages()))) {
        fetch_file(free, of, &shifted(&run, seg.pages().0.start, first.0))?;
    }
    Ok(())
}

/// Those of `pages` that have no bytes yet.
fn unread(free: &mut Free, seg: &Segment, pages: &Pages) -> Vec<Span> {
    let all = pages.blocks().map(|(block, mask)| Span { block, mask: mask & seg.claim(block).lock(free).unread });
    all.filter(|s| !s.mask.is_empty()).collect()
}

/// Fetches the bytes of those of `pages` that have none yet.
fn fill(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, how: How) -> Result<Blocked, Error> {
    let (space, Some(source)) = (seg.space(), seg.source()) else { return Ok(None) };
    let source = &*source;
    let pages = within(pages, &seg.pages());
    loop {
        let mut blocked = None;
        let unread = unread(free, seg, &pages);
        // A copy's source may itself have to be fetched; before anything of ours is busy.
        if let Source::Segment { of, first } = source {
            for run in runs_of(&unread) {
                let theirs = shifted(&run, seg.pages().0.start, first.0);
                if let Some(b) = fill(free, of, &theirs, how)? {
                    return Ok(Some(b));
                }
            }
        }
        for round in unread.chunks(ROUND) {
            let mut taken = Vec::new();
            for s in round {
                let block = space.block(s.block);
                let mut body = block.lock(free);
                let mask = s.mask & body.unread & !body.busy;
                if body.busy.meets(s.mask & body.unread) {
                    blocked = blocked.or(Some((s.block, block.epoch())));
                }
                body.take(mask);
                taken.push(Span { block: s.block, mask });
            }
            let mut done = Ok(());
            for s in &taken {
                done = done.and_then(|()| fetch(free, seg, source, *s, how.asks));
                end_busy(space, free, *s);
            }
            seg.let_source_go();
            done?;
        }
        match blocked {
            None => return Ok(None),
            Some(b) if !how.wait => return Ok(Some(b)),
            Some(b) => wait_blocked(free, space, b),
        }
    }
}

/// Fetches pages that are busy and unread; if it asks, not before there is memory for them.
fn fetch(free: &mut Free, seg: &Segment, source: &Source, s: Span, asks: Asks) -> Result<(), Error> {
    let filled = match source {
        Source::File(backing) => {
            let _until_there = asks.for_storage(u64::from(s.mask.count()) * PAGE)?;
            let at = (s.block, seg.space().block(s.block));
            read_file(seg.space(), at, backing, seg.offset(), s.mask).map_err(|e| backing.error(e))?
        }
        Source::Segment { first, .. } => copy_pages(free, seg, *first, s, asks)?,
    };
    let mut body = seg.space().block(s.block).lock(free);
    body.fetched(s.mask, filled);
    seg.has_read(u64::from(s.mask.count()));
    Ok(())
}

/// Copies pages that are busy and unread from those of which `theirs` is the first, where these have storage; says which got some.
fn copy_pages(free: &mut Free, seg: &Segment, theirs: Page, s: Span, asks: Asks) -> Result<Mask, Error> {
    let space = seg.space();
    let block = space.block(s.block);
    let first = s.block.first_page().0;
    let (mut reads, mut filled, mut bytes) = (Vec::new(), Mask::EMPTY, 0);
    for (r, to) in block.pieces(s.block, s.mask) {
        for (fd, from, pages) in origin(free, seg, theirs, first + r.start as u64..first + r.end as u64) {
            let start = (pages.start - first) as usize;
            let to = space.direct_at(to + (start - r.start) as u64 * PAGE);
            for data in os::extents(fd, from.clone(), GRANULE) {
                let (a, b) = (data.start - from.start, data.end - from.start);
                filled |= Mask::range(start + (a / PAGE) as usize..start + b.div_ceil(PAGE) as usize);
                bytes += (b - a).next_multiple_of(PAGE);
                // SAFETY: inside the view, of the pages that are copied.
                reads.push((fd, unsafe { to.as_ptr().add(a as usize) }, data));
            }
        }
    }
    let _until_there = asks.for_storage(bytes)?;
    for (fd, to, data) in reads {
        // SAFETY: the pages are busy and nobody has a mapping or a copy of them.
        unsafe { os::read_at(fd, to, data) }.map_err(|e| Error::driver("pread", &e))?;
    }
    Ok(filled)
}

/// Reads pages of a block, of a segment that begins at byte `start` of the window, from the file behind it: says which of them got
/// storage. They are busy, and nobody has a mapping or a copy of them. Signal-safe; may wait for a medium.
pub(crate) fn read_file(
    space: &Space,
    (id, block): (BlockId, &Block),
    backing: &Backing,
    start: u64,
    mask: Mask,
) -> io::Result<Mask> {
    let mut filled = Mask::EMPTY;
    for (r, to) in block.pieces(id, mask) {
        let part = id.offset() - start + r.start as u64 * PAGE..id.offset() - start + r.end as u64 * PAGE;
        backing.read((space.raw_fd(), space.direct_at(to).as_ptr(), to), &part, |came| {
            filled |= Mask::range(r.start + (came.start / PAGE) as usize..r.start + came.end.div_ceil(PAGE) as usize);
        })?;
    }
    Ok(filled)
}

/// Where pages of a copy are read from, of which the first is a copy of page `theirs`: descriptor, bytes of that file, and which of the
/// pages they are.
fn origin(free: &mut Free, seg: &Segment, theirs: Page, pages: Range<u64>) -> Vec<(RawFd, Range<u64>, Range<u64>)> {
    let (space, here) = (seg.space(), seg.pages().0.start);
    let mut parts = Vec::new();
    for (id, mask) in shifted(&Pages(pages), here, theirs.0).blocks() {
        let block = space.block(id);
        let body = block.lock(free);
        let away = body.gone & !body.lost & !resident(space, &body);
        debug_assert!(!away.meets(mask), "fetched where the bytes are not");
        // Nobody writes or moves them: they are lent, or kept by a guard or a pin.
        for piece in places(space, (id, block), &body, mask) {
            let at = id.first_page().0 + piece.pages.start as u64;
            let (mine, n) = (at - theirs.0 + here, piece.pages.len() as u64);
            parts.push((piece.fd, piece.offset..piece.offset + n * PAGE, mine..mine + n));
        }
    }
    parts
}

/// Gives every copy of `seg` its own of those of `pages` that are lent: they may be written afterwards.
pub(crate) fn unlend(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, how: How) -> Result<Blocked, Error> {
    if !seg.was_copied() {
        return Ok(None);
    }
    let space = seg.space();
    #[cfg(feature = "planted")]
    if super::planted::on(&super::planted::NO_SETTLE) {
        for (id, mask) in seg.claimed_of(pages) {
            space.block(id).lock(free).given_back(mask);
        }
    }
    loop {
        let count = seg.copies_made();
        let mut lent = Vec::new();
        for (id, mask) in seg.claimed_of(pages) {
            let mask = mask & space.block(id).lock(free).lent;
            if !mask.is_empty() {
                lent.push(Span { block: id, mask });
            }
        }
        if lent.is_empty() {
            return Ok(None);
        }
        for copy in seg.copies() {
            let Some(source) = copy.source() else { continue }; // it has all its pages
            let Source::Segment { first, .. } = &*source else { continue };
            for run in runs_of(&lent) {
                let run = within(&run, &Pages(first.0..first.0 + copy.pages().len()));
                if run.is_empty() {
                    continue;
                }
                let theirs = shifted(&run, first.0, copy.pages().0.start);
                if let Some(b) = fill(free, &copy, &theirs, how)? {
                    return Ok(Some(b));
                }
            }
        }
        // A copy that was made meanwhile has lent pages again, after it was counted.
        let mut again = false;
        for s in &lent {
            let mut body = space.block(s.block).lock(free);
            if seg.copies_made() == count {
                body.given_back(s.mask);
            } else {
                again = true;
            }
        }
        if !again {
            return Ok(None);
        }
    }
}

/// A copy of bytes `bytes` of `seg`, which nobody writes during the call: a segment whose page `n` is page `n` of those that hold
/// the bytes. It costs the taking away of mappings; bytes move when either side is touched, except those that only a device
/// has, which come home, and those that a guard keeps, which are copied at once.
pub(crate) fn copy_of(free: &mut Free, seg: &Arc<Segment>, bytes: &Range<u64>) -> Result<Arc<Segment>, Error> {
    let space = seg.space();
    let pages = seg.pages_of(bytes);
    let first = Page(pages.0.start);
    if depth(seg) >= LONGEST_CHAIN {
        fill(free, seg, &pages, How::CALL)?;
    }
    if !space.host.faults() {
        // Its bytes are read at once, from the storage.
        let home = Home { map: false, ..Home::SHARED };
        migrate::bring_home(free, seg, &pages, home, Cause::HostAccess)?.complete(seg, &pages)?;
    }
    let source = Source::Segment { of: Arc::clone(seg), first };
    let copy = segment_with(space, pages.len() * PAGE, Kind::Private, source)?;
    if space.host.faults() {
        lend_to(free, seg, &pages, &copy)?;
    }
    space.publish(&copy);
    Ok(copy)
}

/// Makes `pages` of `seg` the source of a copy: those that only a device has come home, and all are lent or copied. Nobody finds the
/// copy meanwhile, or its pages could be fetched before those of the source are at home.
fn lend_to(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, copy: &Arc<Segment>) -> Result<(), Error> {
    let space = seg.space();
    let first = pages.0.start;
    seg.add_copy(copy);
    let mut todo: Vec<Span> = pages.blocks().map(|(block, mask)| Span { block, mask }).collect();
    while !todo.is_empty() {
        let mut blocked = None;
        let (mut taken, mut kept, mut away) = (Vec::new(), Vec::new(), Vec::new());
        let mut lost = false;
        todo.retain_mut(|s| {
            let block = seg.claim(s.block);
            let mut body = block.lock(free);
            lost |= body.lost.meets(s.mask);
            let dirty = body.devices().fold(Mask::EMPTY, |m, d| m | body.dev[d].dirty) & s.mask;
            // What a pin keeps on a device is copied from there.
            let dirty = dirty & !(body.held & resident(space, &body));
            if taken.len() == ROUND || body.busy.meets(s.mask) || !dirty.is_empty() {
                if body.busy.meets(s.mask) {
                    blocked = blocked.or(Some((s.block, block.epoch())));
                } else if !dirty.is_empty() {
                    away.push(Span { block: s.block, mask: dirty });
                }
                return true;
            }
            let pinned = s.mask & body.stays();
            kept.push(Span { block: s.block, mask: pinned });
            let mask = s.mask & !pinned;
            body.take(mask);
            taken.push(Span { block: s.block, mask });
            false
        });
        let done = lend(free, seg, &taken);
        for s in &taken {
            end_busy(space, free, *s);
        }
        done?;
        if lost {
            return Err(seg.loss(pages));
        }
        // What a guard keeps stays mapped; nobody writes the bytes that are copied, and only those.
        for run in runs_of(&kept) {
            fill(free, copy, &shifted(&run, first, copy.pages().0.start), How::CALL)?;
        }
        for run in runs_of(&away) {
            let home = Home { map: false, ..Home::EXCLUSIVE };
            migrate::bring_home(free, seg, &run, home, Cause::HostAccess)?.complete(seg, &run)?;
        }
        if let (Some(blocked), true) = (blocked, taken.is_empty()) {
            wait_blocked(free, space, blocked);
        }
    }
    Ok(())
}

/// Takes every mapping of busy pages away and marks them lent.
fn lend(free: &mut Free, seg: &Arc<Segment>, spans: &[Span]) -> Result<(), Error> {
    let space = seg.space();
    let spans: Vec<Span> = spans.iter().copied().filter(|s| !s.mask.is_empty()).collect();
    let runs = runs_of(&spans);
    // As a move: a launch that reads the pages takes them again.
    let window = space.invalidate(free, Action::Migrate { to: None }, &runs)?;
    space.host.revoke(space, free, seg, &spans, &runs)?;
    drop(window);
    for s in &spans {
        space.block(s.block).lock(free).lend(s.mask);
    }
    Ok(())
}

/// Writes those of bytes `bytes` of `seg` that have been fetched back to its file.
pub(crate) fn write_back(free: &mut Free, seg: &Arc<Segment>, bytes: &Range<u64>) -> Result<(), Error> {
    let space = seg.space();
    let source = seg.source();
    let Some(Source::File(backing)) = source.as_deref() else {
        return Err(Error::Invalid { what: "a flush of an allocation that no file is behind" });
    };
    let pages = within(&seg.pages_of(bytes), &seg.pages());
    let home = Home { map: false, leave_coherent: true, ..Home::SHARED };
    migrate::bring_home(free, seg, &pages, home, Cause::HostAccess)?.complete(seg, &pages)?;
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        // What a coherent device has is written from there, and stays there meanwhile.
        let first = id.first_page().0;
        let all = Pages(first..first + PAGES_PER_BLOCK as u64);
        let _kept = space.has_coherent().then(|| Pin::hold(free, seg, &all));
        let body = block.lock(free);
        let pieces = places(space, (id, block), &body, mask & !body.unread);
        drop(body);
        for piece in pieces {
            let base = id.offset() - seg.offset();
            let (from, to) = (base + piece.pages.start as u64 * PAGE, base + piece.pages.end as u64 * PAGE);
            let part = from.max(bytes.start)..to.min(bytes.end).min(backing.bytes());
            if part.is_empty() {
                continue; // behind the file's end
            }
            let at = piece.at.wrapping_add((part.start - from) as usize);
            // SAFETY: the segment's own storage or frames. The program may store to other bytes meanwhile, or, where a driver asks
            // for it, to these: the kernel's view of bytes that change is its own business.
            unsafe { backing.write(at, &part) }?;
        }
    }
    backing.sync()
}

fn within(pages: &Pages, limits: &Pages) -> Pages {
    let start = pages.0.start.clamp(limits.0.start, limits.0.end);
    Pages(start..pages.0.end.clamp(start, limits.0.end))
}

/// The same pages where what is at `from` here is at `to`.
fn shifted(pages: &Pages, from: u64, to: u64) -> Pages {
    Pages(pages.0.start - from + to..pages.0.end - from + to)
}

/// How many sources lie behind a segment.
fn depth(seg: &Segment) -> usize {
    let mut n = 0;
    let mut source = seg.source();
    while let Some(s) = source {
        n += 1;
        let Source::Segment { of, .. } = &*s else { break };
        source = of.source();
    }
    n
}

/// What a segment knows of where its bytes come from, and of its copies.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    source: Mutex<Option<Arc<Source>>>,
    copies: Mutex<Vec<Weak<Segment>>>,
    copies_made: AtomicU64,
}

impl Sources {
    /// Lets go of the source without going deep: it may be the last link of a chain.
    pub(crate) fn end(&mut self) {
        let mut next = self.source.get_mut().take();
        while let Some(Source::Segment { of, .. }) = next.and_then(Arc::into_inner) {
            next = Arc::into_inner(of).and_then(|mut seg| seg.sources.source.get_mut().take());
        }
    }
}

impl Segment {
    /// Those of the blocks of `pages` that the engine has looked at, with the part of each.
    fn claimed_of(&self, pages: &Pages) -> impl Iterator<Item = (BlockId, Mask)> {
        let part = |id| (id, pages.part_of(id));
        self.claimed().into_iter().map(part).filter(|(_, mask)| !mask.is_empty())
    }

    /// Where its bytes come from; a copy that has all its pages has no source any more.
    fn source(&self) -> Option<Arc<Source>> {
        if self.rec().unread.load(Ordering::Acquire) == 0 && !self.is_file() {
            return None;
        }
        self.sources.source.lock().clone()
    }

    fn is_file(&self) -> bool {
        matches!(self.sources.source.lock().as_deref(), Some(Source::File(_)))
    }

    fn set_source(&self, source: Source, pages: u64) {
        let source = Arc::new(source);
        let rec = self.rec();
        if let Source::File(backing) = &*source {
            // It stays where it is until the segment ends, which waits for those who read.
            rec.start.store(self.offset(), Ordering::Relaxed);
            rec.backing.store(std::ptr::from_ref(backing).cast_mut(), Ordering::Release);
        }
        rec.unread.store(pages, Ordering::Release);
        *self.sources.source.lock() = Some(source);
    }

    /// Pages that have not been fetched.
    fn unread(&self) -> u64 {
        self.rec().unread.load(Ordering::Acquire)
    }

    /// Has nobody read the file behind it any more, from a fault that is served late: its segment ends.
    pub(crate) fn stop_reading(&self, free: &mut Free) {
        if !self.is_file() {
            return;
        }
        for id in self.claimed() {
            self.space().block(id).lock(free).forget_source();
        }
        let reading = &self.rec().reading;
        loop {
            let n = reading.load(Ordering::Acquire);
            if n == 0 {
                return;
            }
            os::futex_wait(reading, n, Some(Duration::from_millis(1)));
        }
    }

    /// Pages have been fetched, or are no longer wanted.
    pub(crate) fn has_read(&self, pages: u64) {
        self.rec().unread.fetch_sub(pages, Ordering::AcqRel);
    }

    /// A copy that has all its pages needs what it was copied from no longer. Nothing is busy or locked here: that may be its end.
    pub(crate) fn let_source_go(&self) {
        if self.unread() == 0 && !self.is_file() {
            let source = self.sources.source.lock().take();
            drop(source);
        }
    }

    /// Copies of it that exist.
    fn copies(&self) -> Vec<Arc<Segment>> {
        self.sources.copies.lock().iter().filter_map(Weak::upgrade).collect()
    }

    fn add_copy(&self, copy: &Arc<Segment>) {
        let mut copies = self.sources.copies.lock();
        copies.retain(|c| c.strong_count() > 0);
        copies.push(Arc::downgrade(copy));
        // Counted before any page is lent to it.
        self.sources.copies_made.fetch_add(1, Ordering::AcqRel);
    }

    fn copies_made(&self) -> u64 {
        self.sources.copies_made.load(Ordering::Acquire)
    }

    fn was_copied(&self) -> bool {
        self.copies_made() > 0
    }
}
