//! Dropping contents: pages go back to the state in which nobody has touched them (`MADV_DONTNEED` of private memory).
//!
//! **Guarantee.** When [`discard`] returns, the pages read as zeros from every side, have no storage, no device has a copy or an
//! entry for them, and the frames that held nothing else are free.
//!
//! **Order**: the pages are made busy; a window takes the devices' entries away; then the storage goes, which unmaps the host's
//! side in the same step; then the books change. The caller sees to it that neither the host nor a launch uses the bytes.

use std::ops::Range;
use std::sync::Arc;

use super::addr::{BlockId, Mask, PAGE, PAGES_PER_BLOCK, Page, Pages, Span, runs_of};
use super::lock::Free;
use super::migrate::{Home, Moved, bring_home, end_busy, free_frames, wait_blocked};
use super::mirror::Action;
use super::parts::MAX_DEVICES;
use super::segment::Segment;
use super::source::{self, How};
use crate::Error;
use crate::stats::Cause;

/// Blocks a round: how many are busy at once.
const ROUND: usize = 32;

/// Drops the contents of `pages` of `seg`. Waits for pages that are on their way. A device that is lost meanwhile, or by not giving up its
/// entries, takes along what nobody needs any more.
///
/// # Errors
/// Storage that the system does not take back. Pages before the failing ones have been dropped.
pub(crate) fn discard(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Result<(), Error> {
    despite_losses(|| discard_once(free, seg, pages))
}

/// Has who needs none of the old bytes go on when a device is lost under it: that is passed over from then on, and no device is lost twice.
pub(crate) fn despite_losses<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..MAX_DEVICES {
        match attempt() {
            Err(e) if e.is_loss() => {}
            done => return done,
        }
    }
    attempt()
}

/// Makes way on the host for bytes that are to replace pages `whole` of `pages`, and some bytes of the others: brings home what comes as
/// `home` says. Of the whole ones nothing is needed: what is lost under way is no error, and what a device does not hand over is
/// dropped there.
///
/// # Errors
/// A copy that a device refuses, of bytes beside those that are replaced.
pub(crate) fn make_way(
    free: &mut Free,
    seg: &Arc<Segment>,
    (pages, whole): (&Pages, &Pages),
    home: Home,
) -> Result<Moved, Error> {
    let bring = |free: &mut Free, pages: &Pages| despite_losses(|| bring_home(free, seg, pages, home, Cause::HostAccess));
    let moved = bring(free, pages)?;
    if moved.failed.is_none() {
        return Ok(moved);
    }
    let (start, end) = (whole.0.start.min(pages.0.end), whole.0.end.min(pages.0.end));
    if start < end {
        discard(free, seg, whole)?;
    }
    let mut all = Moved::default();
    for beside in [Pages(pages.0.start..start), Pages(end.max(start)..pages.0.end)] {
        all.add(bring(free, &beside)?.unrefused()?);
    }
    Ok(all)
}

fn discard_once(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Result<(), Error> {
    let space = seg.space();
    source::unlend(free, seg, pages, How::CALL)?;
    // What the engine has never looked at has storage at most, and is given back in long pieces.
    let mut at = pages.0.start;
    for id in partly(pages) {
        seg.claim(id);
    }
    let part = |block| Span { block, mask: pages.part_of(block) };
    let mut todo: Vec<Span> = seg.claimed().into_iter().map(part).collect();
    todo.retain(|s| !s.mask.is_empty());
    for s in &todo {
        let first = s.block.first_page().0;
        punch(seg, at..first)?;
        at = first + PAGES_PER_BLOCK as u64;
    }
    punch(seg, at..pages.0.end)?;
    while !todo.is_empty() {
        let mut blocked = None;
        let mut taken = Vec::new();
        todo.retain(|s| {
            let block = space.block(s.block);
            let mut body = block.lock(free);
            if taken.len() == ROUND || body.busy.meets(s.mask) {
                blocked = blocked.or(body.busy.meets(s.mask).then(|| (s.block, block.epoch())));
                return true;
            }
            body.take(s.mask);
            taken.push(*s);
            false
        });
        let done = drop_contents(free, seg, &taken);
        for s in &taken {
            end_busy(space, free, *s);
        }
        seg.let_source_go();
        done?;
        if let (Some(blocked), true) = (blocked, taken.is_empty()) {
            // Nothing of ours is busy while we wait for somebody else.
            wait_blocked(free, space, blocked);
        }
    }
    Ok(())
}

/// The blocks of which only a part lies in the range.
fn partly(pages: &Pages) -> Vec<BlockId> {
    let ends = [Page(pages.0.start), Page(pages.0.end.max(pages.0.start + 1) - 1)].map(Page::block);
    ends.into_iter().filter(|id| !pages.is_empty() && pages.part_of(*id) != Mask::FULL).collect()
}

/// Frees the storage of pages of one block, or of blocks that lie where they were made.
fn punch(seg: &Segment, run: Range<u64>) -> Result<(), Error> {
    if run.start >= run.end {
        return Ok(());
    }
    let space = seg.space();
    let page = Page(run.start);
    let at = space.block(page.block()).storage(page.block(), page.in_block());
    space
        .free_storage(at..at + (run.end - run.start) * PAGE)
        .map_err(|e| Error::driver("fallocate(FALLOC_FL_PUNCH_HOLE)", &e))
}

fn drop_contents(free: &mut Free, seg: &Arc<Segment>, spans: &[Span]) -> Result<(), Error> {
    drop(seg.space().invalidate(free, Action::Invalidate, &runs_of(spans))?);
    drop_storage(free, seg, spans, punch)
}

/// Drops what is in pages that the caller has busy, and for which no device has an entry. Where the system does not take storage
/// back, it is cleared.
pub(crate) fn empty(free: &mut Free, seg: &Arc<Segment>, spans: &[Span]) {
    let clear = |seg: &Segment, run: Range<u64>| {
        if punch(seg, run.clone()).is_err() {
            let (page, space) = (Page(run.start), seg.space());
            let at = space.direct_at(space.block(page.block()).storage(page.block(), page.in_block()));
            // SAFETY: storage of pages that are the caller's, in one piece; nobody else looks at it meanwhile.
            unsafe { at.as_ptr().write_bytes(0, ((run.end - run.start) * PAGE) as usize) };
        }
        Ok(())
    };
    let _ = drop_storage(free, seg, spans, clear);
}

fn drop_storage(
    free: &mut Free,
    seg: &Arc<Segment>,
    spans: &[Span],
    drop_run: impl Fn(&Segment, Range<u64>) -> Result<(), Error>,
) -> Result<(), Error> {
    let space = seg.space();
    let devices = space.devices();
    for s in spans {
        let block = space.block(s.block);
        let first = s.block.first_page().0;
        for (r, _) in block.pieces(s.block, s.mask) {
            drop_run(seg, first + r.start as u64..first + r.end as u64)?;
        }
        let mut body = block.lock(free);
        // The storage is the page from here on, and reads as zeros; the frames are free next.
        space.host.unframe(space, (s.block, block), &mut body, s.mask);
        for m in &devices {
            let slot = m.slot();
            #[cfg(feature = "planted")]
            let s = &if super::planted::on(&super::planted::UNMAP_TAKES_THE_BLOCK) {
                Span { mask: Mask::FULL, ..*s }
            } else {
                *s
            };
            m.change(seg, s.block, &mut body, |body| {
                #[cfg(feature = "planted")]
                if super::planted::on(&super::planted::KEEP_COPIES) {
                    return body.end_copies(slot, Mask::EMPTY, s.mask);
                }
                body.end_copies(slot, s.mask, s.mask);
            });
            free_frames(m, s.block, &mut body, s.mask);
        }
        seg.has_read(u64::from((body.unread & s.mask).count()));
        body.drop_contents(s.mask);
        space.host.forget(space, &mut body, *s);
        debug_assert_eq!(body.check(space.host.faults()), Ok(()));
    }
    Ok(())
}
