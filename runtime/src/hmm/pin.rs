//! Pins: pages that stay at home, for system calls and everything else that no fault serves.
//!
//! **Guarantee.** While a [`Pin`] lives its pages are at home, mapped, and refused by every migration; devices that can use them
//! there do. Pins of the same pages count.

use std::sync::Arc;

use sterna_hal::Access;

use super::addr::Pages;
use super::lock::Free;
use super::migrate::{self, Home};
use super::prot;
use super::segment::Segment;
use super::space::Space;
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

/// Pages that stay at home until this is dropped.
#[derive(Debug)]
pub struct Pin {
    parts: Vec<(Arc<Segment>, Pages)>,
}

impl Pin {
    /// Brings pages of one segment home as `home` says, and keeps them. Waits for pages that are being moved.
    pub(crate) fn new(free: &mut Free, seg: &Arc<Segment>, pages: &Pages, home: Home) -> Result<Self, Error> {
        let this = Self { parts: vec![(Arc::clone(seg), pages.clone())] };
        // Pinned first: what comes home from here on stays. What was on its way out before has to arrive to be fetched.
        seg.pins.lock().push(pages.clone());
        seg.apply_pins(free, pages);
        migrate::wait_arrived(free, seg, pages);
        migrate::bring_home(free, seg, pages, home, Cause::HostAccess)?.complete(seg, pages)?;
        seg.space().host.map(seg.space(), pages);
        Ok(this)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if crate::hmm::fork::forked() {
            return;
        }
        for (seg, pages) in std::mem::take(&mut self.parts) {
            let mut pins = seg.pins.lock();
            if let Some(i) = pins.iter().position(|p| *p == pages) {
                pins.swap_remove(i);
            }
            drop(pins);
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
    /// not be written; [`Lost`](Error::Lost); a device that fails. Nothing is pinned then.
    #[doc(alias = "get_user_pages")]
    #[doc(alias = "pin_user_pages")]
    pub fn pin(&'static self, pages: &Pages, kind: PinKind, write: bool) -> Result<Pin, Error> {
        super::fork::check()?;
        let mut free = Free::at_entry();
        let mut all = Pin { parts: Vec::new() };
        let _ = kind; // no device's memory is used in place so far
        for (seg, part) in self.segments_in(pages)? {
            prot::allowed(&mut free, &seg, &part, if write { Access::ReadWrite } else { Access::Read })?;
            let mut pin = Pin::new(&mut free, &seg, &part, Home::EXCLUSIVE)?;
            all.parts.append(&mut pin.parts);
        }
        Ok(all)
    }
}
