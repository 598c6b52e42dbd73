//! Pins: pages that stay at home, for system calls and everything else that no fault serves.
//!
//! **Guarantee.** While a [`Pin`] lives its pages are mapped, and refused by every migration. With a long pin, and with a guard of
//! the program's, they are at home, and devices that can use them there do. With a short one pages that a coherent device alone
//! has are used in its memory, and every other page is at home. Pins of the same pages count.
//!
//! **Who needs pages elsewhere** waits for a short pin for up to a second, then fails with [`Pinned`](Error::Pinned): another
//! device's launch, a long pin. Faults wait for as long as it takes. Eviction passes such pages over.
//!
//! **Launches** on a device that cannot use host pages in place would wait for a long pin without end, and whoever holds the pin
//! perhaps for them: they get copies of their own ([`Borders`](super::migrate::Borders)). A long pin comes behind those without. On a
//! device that cannot fault it comes behind those only that write its pages there and have been submitted. On one that faults a launch
//! may come to need a page at any time: so a long pin comes behind those that were asked for before it. That is decided under the
//! driver lock, which a pin takes once between marking its pages and looking for launches.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_hal::Access;

use super::addr::{Mask, PAGES_PER_BLOCK, Pages, Span};
use super::discard::make_way;
use super::host::coherent::resident;
use super::inflight::{InFlight, Touch};
use super::lock::Free;
use super::migrate::{self, Asks, Home};
use super::mirror::DeviceMirror;
use super::prot;
use super::running;
use super::segment::Segment;
use super::space::Space;
use super::uses::{Of, Use};
use crate::Error;
use crate::stats::Cause;

/// For how long pages are pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinKind {
    /// For one operation (`get_user_pages`): a page stays where the host can use it, which may be a coherent device's memory.
    Short,
    /// For longer (`FOLL_LONGTERM`): a page comes home.
    Long,
}

/// Who keeps pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keeper {
    Pin(PinKind),
    /// A launch that has copies of its own: it ends, and lets go, by itself.
    Launch,
}

/// How long another's short pin is waited for.
pub(crate) const BUDGET: Duration = Duration::from_millis(1000);

/// Pages that stay where they are until this is dropped.
#[derive(Debug)]
pub struct Pin {
    parts: Vec<(Arc<Segment>, Pages, Keeper)>,
}

impl Pin {
    /// Brings pages of one segment home as `home` says, and keeps them. Waits for pages that are being moved.
    pub(crate) fn long(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, home: Home) -> Result<Self, Error> {
        let this = Self::behind_launches(free, seg, pages);
        let start = Instant::now();
        #[cfg(feature = "planted")]
        let home = Home { leave_coherent: super::planted::on(&super::planted::LONG_PIN_IN_PLACE), ..home };
        loop {
            let moved = migrate::bring_home(free, seg, pages, home, Cause::HostAccess)?;
            if !moved.pinned {
                moved.complete(seg, pages)?;
                break;
            }
            if start.elapsed() > BUDGET {
                return Err(Error::Pinned);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        seg.space().host.map(seg.space(), pages);
        Ok(this)
    }

    /// Keeps pages of one segment, of which `whole` are replaced, at home while they are written through the runtime's view, which no
    /// fault watches: every migration refuses them. `None` where a short pin keeps some of them on a device.
    pub(crate) fn filling(
        free: &mut Free,
        seg: &Arc<Segment>,
        (pages, whole): (&Pages, &Pages),
    ) -> Result<Option<Self>, Error> {
        let this = Self::behind_launches(free, seg, pages);
        let home = Home { asks: Asks::Not, ..Home::EXCLUSIVE }; // who fills has asked
        let moved = make_way(free, seg, (pages, whole), home)?;
        Ok((!moved.pinned).then_some(this))
    }

    /// Keeps pages of one segment where the host can use them: in the memory of a coherent device, or at home.
    fn short(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Result<Self, Error> {
        let this = Self::mark(free, seg, pages, Keeper::Pin(PinKind::Short));
        let home = Home { leave_coherent: true, ..Home::EXCLUSIVE };
        migrate::bring_home(free, seg, pages, home, Cause::HostAccess)?;
        if show(free, seg, pages) {
            seg.space().host.map(seg.space(), pages);
            return Ok(this);
        }
        drop(this);
        Self::long(free, seg, pages, Home::EXCLUSIVE)
    }

    /// Keeps pages at home for a launch that has copies of its own, behind whoever keeps them there already.
    pub(crate) fn stay(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Self {
        Self::mark(free, seg, pages, Keeper::Launch)
    }

    /// Keeps pages where they are, wherever that is.
    pub(crate) fn hold(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Self {
        Self::mark(free, seg, pages, Keeper::Pin(PinKind::Short))
    }

    /// Pages for a long pin, of which no launch that could not use them at home is unfinished.
    fn behind_launches(free: &mut Free, seg: &Arc<Segment>, pages: &Pages) -> Self {
        loop {
            while let Some(l) = barred(free, seg, pages) {
                l.wait(free, None);
            }
            let this = Self::mark(free, seg, pages, Keeper::Pin(PinKind::Long));
            for m in seg.space().devices().iter().filter(|m| !m.may_alias()) {
                drop(m.rec().lock.hold()); // whoever found no pin has listed what it uses
            }
            if barred(free, seg, pages).is_none() {
                return this;
            }
        }
    }

    /// Has pages stay where they are from here on. What was on its way before has arrived.
    fn mark(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, keeper: Keeper) -> Self {
        let this = Self { parts: vec![(Arc::clone(seg), pages.clone(), keeper)] };
        seg.change_pins(|pins| pins.push((pages.clone(), keeper)));
        seg.apply_pins(free, pages);
        migrate::wait_arrived(free, seg, pages);
        this
    }
}

/// A launch that keeps the pages from coming home, or from staying there, on a device that cannot use them at home.
fn barred(free: &mut Free, seg: &Segment, pages: &Pages) -> Option<Arc<InFlight>> {
    for m in seg.space().devices().iter().filter(|m| m.is_rigid() && !m.may_alias()) {
        for (id, mask) in pages.blocks() {
            let private = seg.claim(id).lock(free).dev[m.slot()].private;
            if let Some(writer) = running::user(seg, id, m.slot(), mask & !private, true) {
                return Some(writer);
            }
        }
    }
    user_without_copies(seg, Of::Any, pages, |launch| !launch.is_finished())
}

/// A launch, such as is asked for, on a device that faults and cannot use pages at home, which may come to need grains of `pages` there:
/// it has no copies of its own of them.
pub(crate) fn user_without_copies(
    seg: &Segment,
    of: Of,
    pages: &Pages,
    such: impl Fn(&InFlight) -> bool,
) -> Option<Arc<InFlight>> {
    // Entries are for whole grains, of which none is longer than a block.
    let near = pages.widened(PAGES_PER_BLOCK as u64);
    let may = |m: &DeviceMirror| !m.may_alias() && !m.is_rigid();
    let near: Vec<Use> = {
        let uses = seg.uses.lock();
        uses.overlapping(of, &seg.bytes_in(&near), true)
            .filter(|u| may(u.launch.mirror()) && such(&u.launch))
            .cloned()
            .collect()
    };
    let found = near.into_iter().find(|u| {
        let (per, wanted) = wanted(u.launch.mirror(), seg, &u.bytes);
        let pages = pages.widened(per as u64);
        wanted.intersects(&pages) && !covers(&u.launch.own(seg), per, &wanted, &pages)
    });
    found.map(|u| u.launch)
}

/// Whether a long pin, or another launch's copies, keep at home what a device that cannot use it there wants for `bytes` of a segment,
/// but for `own`, of which the launch has copies.
pub(crate) fn bars(mirror: &DeviceMirror, seg: &Segment, bytes: &Range<u64>, own: &[Span]) -> bool {
    let pins = seg.pins.lock();
    if mirror.may_alias() || pins.is_empty() {
        return false;
    }
    let mut long = pins.iter().filter(|(_, keeper)| *keeper != Keeper::Pin(PinKind::Short));
    let (per, wanted) = wanted(mirror, seg, bytes);
    long.any(|(p, _)| p.intersects(&wanted) && !covers(own, per, &wanted, p))
}

/// The pages that a launch on a device needs for `bytes` of a segment, and how many an entry is for: where it faults, whole grains.
fn wanted(mirror: &DeviceMirror, seg: &Segment, bytes: &Range<u64>) -> (usize, Pages) {
    let per = if mirror.is_rigid() { 1 } else { mirror.rec().pages_per_grain() };
    (per, seg.pages_of(bytes).widened(per as u64))
}

/// Whether a launch has copies of all that is both `wanted` and kept.
fn covers(own: &[Span], per: usize, wanted: &Pages, kept: &Pages) -> bool {
    let owned = |id| own.iter().filter(|s| s.block == id).fold(Mask::EMPTY, |m, s| m | s.mask).widened(per);
    wanted.blocks().all(|(id, mask)| owned(id).covers(mask & kept.part_of(id)))
}

/// Whether a guard or a long pin keeps some of the pages of a use at home, or of their grains on that device.
pub(crate) fn is_pinned(mirror: &DeviceMirror, t: &Touch) -> bool {
    let wanted = t.seg.pages_of(&t.bytes).widened(mirror.rec().pages_per_grain() as u64);
    t.seg.pins.lock().iter().any(|(p, keeper)| *keeper == Keeper::Pin(PinKind::Long) && p.intersects(&wanted))
}

/// Maps pages that coherent devices have, and that stay there; false if there is no mapping for all of them.
fn show(free: &mut Free, seg: &Segment, pages: &Pages) -> bool {
    let space = seg.space();
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        loop {
            let mut body = block.lock(free);
            let hidden = mask & resident(space, &body) & !body.shown & !body.unreadable;
            let Some(r) = hidden.runs().next() else { break };
            if body.busy.has(r.start) {
                let epoch = block.epoch();
                drop(body);
                block.wait_epoch(epoch, Some(Duration::from_millis(10)));
            } else if space.host.show(space, (id, block), &mut body, r.start).is_none() {
                return false;
            }
        }
    }
    true
}

impl Segment {
    /// Changes the list of pins.
    pub(crate) fn change_pins(&self, change: impl FnOnce(&mut Vec<(Pages, Keeper)>)) {
        let mut pins = self.pins.lock();
        change(&mut pins);
        self.has_pins.store(!pins.is_empty(), Ordering::SeqCst);
    }

    /// Whether some of its pages are pinned.
    pub(crate) fn has_pins(&self) -> bool {
        self.has_pins.load(Ordering::Acquire)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if crate::hmm::fork::forked() {
            return;
        }
        for (seg, pages, keeper) in std::mem::take(&mut self.parts) {
            seg.change_pins(|pins| {
                if let Some(i) = pins.iter().position(|p| (&p.0, p.1) == (&pages, keeper)) {
                    pins.swap_remove(i);
                }
            });
            seg.apply_pins(&mut Free::at_entry(), &pages);
            seg.space().device_faults.retry();
        }
    }
}

impl Space {
    /// Pins pages, to be read or with `write` written by what does not take faults: system calls, other devices.
    ///
    /// # Errors
    /// [`Fault`](Error::Fault) for pages that do not exist or may not be read, [`Permission`](Error::Permission) for those that may
    /// not be written; [`Lost`](Error::Lost); [`Pinned`](Error::Pinned) where a short pin keeps pages on a device that a long one
    /// wants at home, for more than a second; a device that fails. Nothing is pinned then.
    #[doc(alias = "get_user_pages")]
    #[doc(alias = "pin_user_pages")]
    pub fn pin(&'static self, pages: &Pages, kind: PinKind, write: bool) -> Result<Pin, Error> {
        let mut free = super::entry::enter()?;
        let mut all = Pin { parts: Vec::new() };
        for (seg, part) in self.segments_in(pages)? {
            prot::allowed(&mut free, &seg, &part, if write { Access::ReadWrite } else { Access::Read })?;
            let mut pin = match kind {
                PinKind::Short => Pin::short(&mut free, &seg, &part)?,
                PinKind::Long => Pin::long(&mut free, &seg, &part, Home::EXCLUSIVE)?,
            };
            all.parts.append(&mut pin.parts);
        }
        Ok(all)
    }
}
