//! What the program may do with pages of the window: protection by page, and other storage behind them.
//!
//! **Guarantee.** A call is for pages that are busy, or nobody's: until it has returned nobody is told that they may be touched. What it
//! could not do it says; what stood there before may be partly gone then. **Lock:** `Host::registering` with `watched`, where faults of
//! a stretch are reported anew.

use super::super::addr::{BlockId, Mask, PAGE, Pages};
use super::super::block::Body;
use super::super::os;
use super::super::space::Space;
use super::guard::Guard;
use super::{Door, Host};
use crate::Error;

impl Host {
    /// What the program may do with pages of a block from now on; they are busy, and `body` says it already.
    pub(crate) fn protect(&self, space: &Space, id: BlockId, body: &Body, mask: Mask) -> Result<(), Error> {
        // Where protection keeps the program out of pages that are away, they get theirs when they come back.
        let away = body.revoked & !body.shown;
        let shut = if matches!(self.door, Door::Guard(Guard::Protection)) { away } else { Mask::EMPTY };
        let [(mut write, _), (mut read, _)] = parts(body, mask & !shut);
        if let Door::Guard(_) = &self.door {
            // Their stores are noticed by the protection.
            read |= write & body.duplicated;
            write &= !body.duplicated;
        }
        let window = space.window_at(id.offset()).as_ptr().addr();
        for (mask, reads, writes) in [(write, true, true), (read, true, false), (mask & body.unreadable, false, false)] {
            for r in mask.runs() {
                // SAFETY: the window is a shared mapping of the engine's.
                unsafe { os::protect(window + r.start * PAGE as usize, r.len() * PAGE as usize, reads, writes) }
                    .map_err(|code| os::too_many_mappings("mprotect", code))?;
            }
        }
        Ok(())
    }

    /// Has a run of the window show the storage at byte `storage` of the file, and its touches noticed as before, with `stores` also
    /// stores to pages that are mapped for loads. Its pages are busy and on no device, or nobody's.
    pub(crate) fn remap(&self, space: &Space, run: &Pages, storage: u64, stores: bool) -> Result<(), Error> {
        let (at, bytes) = (space.window_at(run.0.start * PAGE).as_ptr().addr(), run.bytes() as usize);
        // SAFETY: a part of the window and of the arena's file.
        unsafe { os::map_over(space.raw_fd(), at, bytes, storage, (true, true)) }
            .map_err(|code| os::too_many_mappings("mmap", code))?;
        if let Some(uffd) = self.uffd() {
            let _registering = self.registering.hold();
            if stores {
                self.watched.lock().extend(run.blocks().map(|(id, _)| id));
            }
            let stores = if stores { os::uffd::STORES } else { 0 };
            uffd.register(at, bytes, os::uffd::MINOR | os::uffd::MISSING | stores)
                .map_err(|code| os::too_many_mappings("ioctl(UFFDIO_REGISTER)", code))?;
        }
        Ok(())
    }

    /// Pages of a block were remapped, and `body` says how they are: those that are away are kept out, the others protected.
    pub(crate) fn reenter(&self, space: &Space, id: BlockId, body: &Body, mask: Mask) -> Result<(), Error> {
        self.protect(space, id, body, mask)?;
        if let Door::Guard(_) = &self.door {
            let first = id.first_page().0;
            for r in (mask & body.revoked).runs() {
                self.shut(space, &Pages(first + r.start as u64..first + r.end as u64))?;
            }
        }
        Ok(())
    }

    /// A freed stretch may be used again.
    pub(crate) fn unprotect(&self, space: &Space, pages: &Pages) -> Result<(), Error> {
        let at = space.window_at(pages.0.start * PAGE).as_ptr().addr();
        // SAFETY: the window is a shared mapping of the engine's.
        unsafe { os::protect(at, pages.bytes() as usize, true, true) }
            .map_err(|code| os::too_many_mappings("mprotect", code))
    }
}

/// The pages that may be written and those that may only be read, each of which is a mapping of its own: a call is for one of
/// them. What may not be read needs no page.
pub(super) fn parts(body: &Body, mask: Mask) -> [(Mask, bool); 2] {
    [(mask & !body.readonly, true), (mask & body.readonly & !body.unreadable, false)]
}
