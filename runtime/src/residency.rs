//! Where an allocation's pages are.

use std::fmt;

use crate::hmm::fork;
use crate::hmm::lock::Free;
use crate::hmm::{Mask, PAGE};
use crate::shared::SharedBytes;
use crate::stats::human;

/// Where the pages of an allocation or view are, counted in pages of 4 KiB. A snapshot: pages move meanwhile. In a forked child
/// nothing but their number is known.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Residency {
    /// Pages in all.
    pub pages: u64,
    /// Pages whose bytes are valid on the host; never-touched pages, which read as zeros, among them.
    pub host: u64,
    /// For each device of the runtime: its selector, pages valid in its memory, pages that it uses in place.
    pub devices: Vec<DeviceResidency>,
    /// Pages that are valid on the host and on a device, or on several devices.
    pub replicated: u64,
    /// Pages of which no copy is left.
    pub lost: u64,
}

/// A device's part in a [`Residency`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeviceResidency {
    /// The device's selector.
    pub device: String,
    /// Pages valid in its memory.
    pub pages: u64,
    /// Pages that it uses where they are.
    pub in_place: u64,
}

impl Residency {
    pub(crate) fn of(core: &SharedBytes) -> Self {
        let mirrors: &[_] = if fork::forked() { &[] } else { &core.rt.0.devices };
        let seg = &core.seg;
        let pages = seg.pages_of(&core.bytes);
        let device = |id: &str| DeviceResidency { device: id.to_string(), pages: 0, in_place: 0 };
        let mut r = Self {
            pages: pages.len(),
            host: 0,
            devices: mirrors.iter().map(|m| device(&m.device().info().id)).collect(),
            replicated: 0,
            lost: 0,
        };
        if fork::forked() {
            return r; // the records stay with the parent
        }
        let mut free = Free::at_entry();
        let mut seen = 0;
        for id in seg.claimed() {
            let mask = pages.part_of(id);
            seen += u64::from(mask.count());
            let body = seg.space().block(id).lock(&mut free);
            let host = mask & !body.gone & !body.lost;
            r.host += u64::from(host.count());
            r.lost += u64::from((mask & body.lost).count());
            let (mut once, mut twice) = (host, Mask::EMPTY);
            for (m, d) in mirrors.iter().zip(&mut r.devices) {
                let dev = &body.dev[m.slot()];
                d.pages += u64::from((dev.valid & mask).count());
                d.in_place += u64::from((dev.alias & mask).count());
                twice |= once & dev.valid & mask;
                once |= dev.valid & mask;
            }
            r.replicated += u64::from(twice.count());
        }
        // Blocks that the engine has never looked at are the host's.
        r.host += r.pages - seen;
        r
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on the host", human(self.host * PAGE))?;
        for d in &self.devices {
            write!(f, ", {} on {}", human(d.pages * PAGE), d.device)?;
            if d.in_place > 0 {
                write!(f, " ({} more used in place)", human(d.in_place * PAGE))?;
            }
        }
        if self.lost > 0 {
            write!(f, ", {} lost", human(self.lost * PAGE))?;
        }
        Ok(())
    }
}
