//! Hints: what a program knows of its data and the runtime cannot see.

use std::sync::Arc;

use crate::Device;
use crate::hmm::fork;
use crate::policy::{Hints, Side};
use crate::shared::SharedBytes;

/// Where data had best be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// In host memory.
    Host,
    /// In a device's memory.
    Device(Device),
}

/// What is said of data. The names are those of CUDA's `cudaMemAdvise`; what they mean here stands with each.
///
/// A hint never fails, moves no page and changes no byte; it stays until it is taken back. What a device or the mechanism cannot
/// do is left out. Launches that find everything in place ask nobody; for the others the policy is asked, and the built-in ones
/// follow hints before their own rule. Faults follow them by blocks of 2 MiB.
///
/// ```
/// use sterna::{Advice, Runtime};
/// use sterna::kernels::saxpy;
///
/// let rt = Runtime::new()?;
/// let table = rt.shared_with(1 << 16, |i| i as f32)?;
/// let mut y = rt.shared::<f32>(table.len())?;
/// table.advise(Advice::ReadMostly);
/// for _ in 0..3 {
///     rt.launch(&saxpy(1.0), (&table, &mut y))?.wait()?; // the first copies the table
///     assert_eq!(table[7], 7.0); // loads leave the device its copy
/// }
/// # Ok::<(), sterna::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Advice {
    /// Read by several sides, seldom written: each gets a copy of its own, and the host's loads leave the devices' copies. A
    /// store of the host, or a launch that writes, ends all other copies. Blocks whose copies the host's stores end again and
    /// again are treated as all others.
    ///
    /// Costs huge page-table entries on the host. Without effect on the host's loads where stores cannot be noticed: mechanism
    /// `none` keeps copies in any case; with the others Linux 6.4 is needed, and with `signal` and `guard` x86-64.
    ReadMostly,
    /// Where it had best be. On the host: devices use it there where they can. On a device: launches there get it into the
    /// device's memory, and a host fault takes the least.
    PreferredLocation(Location),
    /// The device uses it wherever it is, and where it can does so in place: nothing moves for its launches and faults.
    AccessedBy(Device),
}

impl SharedBytes {
    /// Notes `advice`, or with `on` false takes it back.
    pub(crate) fn advise(&self, advice: &Advice, on: bool) {
        if fork::forked() {
            return;
        }
        // Another runtime's device: a hint never fails.
        let slot = |d: &Device| self.rt.0.devices.iter().any(|m| Arc::ptr_eq(m, &d.0)).then(|| d.0.slot());
        let change: Box<dyn Fn(&mut Hints)> = match advice {
            Advice::ReadMostly => Box::new(move |h| h.read_mostly = on),
            Advice::PreferredLocation(to) => {
                let side = match to {
                    Location::Host => Side::Host,
                    Location::Device(d) => match slot(d) {
                        Some(slot) => Side::Device(slot),
                        None => return,
                    },
                };
                Box::new(move |h| {
                    if on {
                        h.preferred = Some(side);
                    } else if h.preferred == Some(side) {
                        h.preferred = None;
                    }
                })
            }
            Advice::AccessedBy(d) => {
                let Some(slot) = slot(d) else { return };
                Box::new(move |h| h.accessed_by = (h.accessed_by & !(1 << slot)) | u64::from(on) << slot)
            }
        };
        self.seg.hint(&self.bytes, change);
    }
}
