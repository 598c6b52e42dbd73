//! Pages that the program may load while devices have replicas of them.
//!
//! **Guarantee.** A store through the window to a page of the block's `duplicated` mask is noticed before it lands: the fault that
//! it takes ends every replica first. Loads take no fault once the page is mapped, and leave devices what they have.
//!
//! **States.** *revoked*, with replicas: a load, in a block that is `read_mostly`, makes it *duplicated*; there it stays until a
//! store of the host makes it the host's alone, or a device that writes it, or whoever moves it, revokes it. A page in `duplicated`
//! may have lost its replicas meanwhile: then its next store finds nothing to end.
//!
//! **How.** userfaultfd reports stores where a stretch is registered for that, which splits no page but rules out huge entries, so
//! it is done for blocks that are advised so, and for those that the host loads while a launch reads them, and for no others.
//! Guards protect the pages.
//!
//! **Locks**: the block's, over one system call; `registering` before it, so that what a block's faults are reported for is
//! changed by one thread at a time.

use sterna_host::mappings;

use super::super::addr::{BLOCK, BlockId, Mask, PAGE, Span};
use super::super::block::Body;
use super::super::os;
use super::super::space::Space;
use super::{Door, Host, Mechanism, parts};

/// A hint that stores contradict is dropped: so many stores of the host that ended replicas, per block.
pub(super) const CONTRADICTED: u8 = 16;

impl Host {
    /// Whether a page can be mapped for loads alone with its stores noticed. A handler that is not told what a fault was for
    /// cannot tell a store from a load.
    pub(crate) fn can_duplicate(&self) -> bool {
        match &self.door {
            Door::Uffd(uffd) => {
                uffd.watches_stores() && (self.mechanism == Mechanism::Transparent || cfg!(target_arch = "x86_64"))
            }
            Door::Guard(_) => cfg!(target_arch = "x86_64"),
            Door::None => false,
        }
    }

    /// From now on the host's loads of a block leave devices their replicas, or with `on` false end them. A hint: where that
    /// cannot be, nothing changes.
    pub(crate) fn read_mostly(&self, space: &Space, id: BlockId, on: bool) {
        if !self.can_duplicate() {
            return;
        }
        let _registering = self.registering.hold();
        let mut body = space.block(id).lock_in_handler();
        body.forget_collapses();
        let on = on && self.watch_stores(space, id, &mut body);
        body.mostly_read(on);
    }

    /// The host loads what a launch that is running reads: from now on they share the block's pages, as far as stores have not
    /// contradicted that, or the advice. Says whether they do.
    pub(super) fn share(&self, space: &Space, id: BlockId) -> bool {
        if !self.can_duplicate() {
            return false;
        }
        let _ = mappings::plenty(0); // counts before the locks, if need be
        let _registering = self.registering.hold();
        let mut body = space.block(id).lock_in_handler();
        if body.collapses < CONTRADICTED && self.watch_stores(space, id, &mut body) {
            body.mostly_read(true);
        }
        body.read_mostly
    }

    /// Has stores to pages of a block reported that are mapped for loads; says whether they are. By the last count of mappings.
    fn watch_stores(&self, space: &Space, id: BlockId, body: &mut Body) -> bool {
        if let Some(uffd) = self.uffd()
            && !body.stores_watched
        {
            let at = space.window_at(id.offset()).as_ptr().addr();
            let modes = os::uffd::STORES | reports(body);
            let plenty = mappings::by_last_count(|| mappings::plenty(2));
            if !plenty || uffd.register(at, BLOCK as usize, modes).is_err() {
                return false; // too many mappings: the hint does nothing
            }
            self.watched.lock().insert(id);
        }
        body.watch_stores();
        true
    }

    /// Maps a run of the window for loads. Signal-safe. False: that could not be done, and nothing is mapped.
    pub(super) fn open_for_loads(&self, at: usize, bytes: usize) -> bool {
        match &self.door {
            Door::Uffd(uffd) => uffd.map(at, bytes, false).is_ok(),
            Door::Guard(guard) => {
                // SAFETY: the window is a shared mapping of the engine's. Before the guard goes, so that no store slips through.
                let shut = unsafe { os::protect(at, bytes, true, false) }.is_ok();
                if shut {
                    guard.open(at, bytes, false);
                }
                shut
            }
            Door::None => true,
        }
    }

    /// Pages whose stores were noticed may be stored to from now on, as far as their protection allows. With the block's lock
    /// held and no replica of them left. Signal-safe.
    pub(crate) fn admit_stores(&self, space: &Space, body: &mut Body, s: Span) {
        body.admit_stores(s.mask);
        let window = space.window_at(s.block.offset()).as_ptr().addr();
        match &self.door {
            Door::Uffd(uffd) => {
                for r in s.mask.runs() {
                    // Fails where stores are not watched: then none is noticed.
                    let _ = uffd.admit_stores(window + r.start * PAGE as usize, r.len() * PAGE as usize);
                }
            }
            Door::Guard(guard) => {
                let [(write, _), _] = parts(body, s.mask & !body.revoked);
                write.runs().for_each(|r| guard.lift(window + r.start * PAGE as usize, r.len() * PAGE as usize));
            }
            Door::None => {}
        }
    }
}

/// What a block's faults are reported for.
pub(super) fn reports(body: &Body) -> u64 {
    os::uffd::MINOR
        | if body.missing { os::uffd::MISSING } else { 0 }
        | if body.stores_watched { os::uffd::STORES } else { 0 }
}

/// The pages of `s` whose stores are to be noticed, and the others.
pub(super) fn split(body: &Body, mask: Mask) -> (Mask, Mask) {
    (mask & body.duplicated, mask & !body.duplicated)
}
