//! What may be done with pages: protection, and parts of a segment that are unmapped.
//!
//! **Guarantee.** When a call returns, no side can do with the pages what they no longer allow: device entries are gone before
//! the host's change. Bytes stay where they are, device memory included; unmapped pages lose theirs, and their frames are freed.
//!
//! **States of a page** (masks of the block): nothing set: may be written · `readonly` · `readonly` and `unreadable` · all three,
//! `unmapped`: as if no segment were there. Changed under the block's lock while the page is leased ([`Lease`]).
//!
//! Permission is by page. A device whose grain is larger has entries for whole grains: what forbids one page of a grain forbids
//! the grain there.

use std::sync::Arc;

use sterna_hal::Access;

use super::addr::{BlockId, Mask, PAGE, Pages, Span, runs_of};
use super::discard;
use super::lease::Lease;
use super::lock::Free;
use super::mirror::Action;
use super::segment::{Kind, Segment};
use super::space::Space;
use crate::Error;

/// What may be done with pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Prot {
    /// Nothing.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
    Write,
}

impl Prot {
    pub(crate) fn reads(self) -> bool {
        self >= Self::Read
    }

    pub(crate) fn writes(self) -> bool {
        self == Self::Write
    }
}

impl Space {
    /// Says what may be done with `pages` from now on, on every side (`mprotect`). Bytes stay where they are.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for an empty range; [`Fault`](Error::Fault) where there is no segment; a system or device
    /// call that fails, after which pages before the failing block are changed; [`InsideKernel`](Error::InsideKernel) in a kernel.
    ///
    /// # Safety
    /// While the pages forbid it nobody uses them through a reference, and no launch that may fault touches them: such an access
    /// ends the process.
    pub unsafe fn protect(&'static self, pages: &Pages, prot: Prot) -> Result<(), Error> {
        let mut free = super::entry::enter()?;
        for (seg, part) in self.segments_in(pages)? {
            present(&mut free, &seg, &part)?;
            if prot > most(&seg) {
                return Err(Error::Permission { page: part.0.start });
            }
            for (id, mask) in part.blocks() {
                set(&mut free, &seg, id, mask, Some(prot))?;
            }
        }
        Ok(())
    }

    /// Unmaps `pages`: their bytes are gone on every side, their device memory is freed, and a touch is a bad access. The
    /// addresses stay the segment's: [`map`](Self::map) gives them pages again.
    ///
    /// # Errors
    /// As [`protect`](Self::protect); pages that are unmapped already are left as they are.
    ///
    /// # Safety
    /// Nobody uses the pages through a reference any more, and no launch that may fault touches them.
    pub unsafe fn unmap(&'static self, pages: &Pages) -> Result<(), Error> {
        let mut free = super::entry::enter()?;
        for (seg, part) in self.segments_in(pages)? {
            for (id, mask) in part.blocks() {
                set(&mut free, &seg, id, mask, None)?;
            }
            discard::discard(&mut free, &seg, &part)?;
        }
        Ok(())
    }

    /// Drops the bytes of `pages` on every side: they read as zeros (`MADV_DONTNEED` of private memory).
    ///
    /// # Errors
    /// As [`protect`](Self::protect).
    ///
    /// # Safety
    /// Nobody relies on the bytes, or uses them meanwhile: neither the program nor a launch.
    pub unsafe fn discard(&'static self, pages: &Pages) -> Result<(), Error> {
        let mut free = super::entry::enter()?;
        for (seg, part) in self.segments_in(pages)? {
            present(&mut free, &seg, &part)?;
            discard::discard(&mut free, &seg, &part)?;
        }
        Ok(())
    }

    /// Maps parts of a segment again that were unmapped: they read as zeros and may be written. Imported pages may only be read, as before.
    ///
    /// # Errors
    /// As [`protect`](Self::protect), and [`Invalid`](Error::Invalid) if some page is mapped.
    pub fn map(&'static self, pages: &Pages) -> Result<(), Error> {
        let mut free = super::entry::enter()?;
        for (seg, part) in self.segments_in(pages)? {
            for (id, mask) in part.blocks() {
                if !seg.claim(id).lock(&mut free).unmapped.covers(mask) {
                    return Err(Error::Invalid { what: "mapping pages that are mapped" });
                }
                set(&mut free, &seg, id, mask, Some(most(&seg)))?;
            }
        }
        Ok(())
    }

    /// The segments that cover `pages`, with their parts.
    pub(crate) fn segments_in(&self, pages: &Pages) -> Result<Vec<(Arc<Segment>, Pages)>, Error> {
        super::fork::check()?;
        if pages.is_empty() || pages.0.end > self.bytes() / PAGE {
            return Err(Error::Invalid { what: "a range of pages that is empty or outside the arena" });
        }
        let mut out = Vec::new();
        let mut at = pages.0.start;
        while at < pages.0.end {
            let seg = self.find(super::addr::Page(at)).filter(|s| s.pages().0.contains(&at));
            let seg = seg.ok_or(Error::Fault { page: at })?;
            let end = seg.pages().0.end.min(pages.0.end);
            out.push((seg, Pages(at..end)));
            at = end;
        }
        Ok(out)
    }
}

/// The most that may be done with pages of a segment, whatever was done before.
fn most(seg: &Segment) -> Prot {
    if matches!(seg.kind(), Kind::Imported) { Prot::Read } else { Prot::Write }
}

/// For good: its pages may only be read.
pub(crate) fn seal(seg: &Arc<Segment>) -> Result<(), Error> {
    let mut free = Free::at_entry();
    for (id, mask) in seg.pages().blocks() {
        set(&mut free, seg, id, mask, Some(Prot::Read))?;
    }
    Ok(())
}

/// Whether `access` is allowed on every page: [`Fault`](Error::Fault) for the first that may not be read, [`Permission`]
/// (Error::Permission) for the first that may be read and not written, whichever comes first.
pub(crate) fn allowed(free: &mut Free, seg: &Segment, pages: &Pages, access: Access) -> Result<(), Error> {
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        let body = block.lock(free);
        let beyond = mask & !seg.limit(id.0 - seg.first().0);
        let denied = (mask & body.denied(access)) | beyond;
        if let Some(p) = denied.runs().next().map(|r| r.start) {
            let page = id.first_page().0 + p as u64;
            let fault = (body.unreadable | beyond).has(p);
            return Err(if fault { Error::Fault { page } } else { Error::Permission { page } });
        }
    }
    Ok(())
}

/// Fails with the first page that is unmapped.
pub(crate) fn present(free: &mut Free, seg: &Segment, pages: &Pages) -> Result<(), Error> {
    for (id, mask) in pages.blocks() {
        let gone = seg.claim(id).lock(free).unmapped & mask;
        if let Some(r) = gone.runs().next() {
            return Err(Error::Fault { page: id.first_page().0 + r.start as u64 });
        }
    }
    Ok(())
}

/// Changes what may be done with pages of a block; `None` unmaps them.
fn set(free: &mut Free, seg: &Arc<Segment>, id: BlockId, mask: Mask, prot: Option<Prot>) -> Result<(), Error> {
    let space = seg.space();
    let lease = Lease::take(free, seg, id, mask);
    let runs = runs_of(&[Span { block: id, mask }]);
    let window = space.invalidate(free, Action::Protect, &runs)?;
    seg.note_altered();
    let mut body = space.block(id).lock(free);
    let before = body.permissions();
    let access = prot.unwrap_or(Prot::None);
    body.permit(mask, prot.is_some(), access.reads(), access.writes());
    let done = space.host.protect(space, id, &body, mask);
    if done.is_err() {
        body.set_permissions(before);
        let _ = space.host.protect(space, id, &body, mask); // as far as it can be undone
    }
    debug_assert_eq!(body.check(space.host.faults()), Ok(()));
    drop(body);
    drop(window);
    drop(lease);
    done
}
