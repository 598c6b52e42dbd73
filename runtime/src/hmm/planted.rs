//! Defects that a test can switch on, one place each: negative controls, which show that the tests see what they are there to
//! see. Exists only with the feature `planted`.

use std::sync::atomic::{AtomicBool, Ordering};

/// A migration to a device copies the bytes before it takes the pages away.
pub static COPY_BEFORE_UNMAP: AtomicBool = AtomicBool::new(false);
/// Pages come home inside a fault although a launch may be using them.
pub static INLINE_WHILE_ACTIVE: AtomicBool = AtomicBool::new(false);
/// A page that a copy has yet to fetch may be written.
pub static NO_SETTLE: AtomicBool = AtomicBool::new(false);
/// The contents of pages are dropped, and devices keep their copies.
pub static KEEP_COPIES: AtomicBool = AtomicBool::new(false);
/// The kernel has no guard markers, so that mechanism `guard` protects pages instead: no defect, and only before the first runtime.
pub static NO_MARKERS: AtomicBool = AtomicBool::new(false);
/// Remapping leaves the old place mapped to the bytes that have gone.
pub static REMAP_LEAVES_OLD: AtomicBool = AtomicBool::new(false);
/// Pages without storage leave for a device although the window does not report touches of them.
pub static NO_MISSING: AtomicBool = AtomicBool::new(false);
/// A host store does not wait for launches that only read.
pub static GATE_DOWN_FOR_READS: AtomicBool = AtomicBool::new(false);
/// A launch may count on entries that are on their way out.
pub static LEAVING_IGNORED: AtomicBool = AtomicBool::new(false);
/// Entries that name bytes out of date are left to a launch that faults.
pub static STALE_LEFT: AtomicBool = AtomicBool::new(false);
/// Entries are removed under a launch of a device that cannot fault.
pub static RIGID_NOT_AWAITED: AtomicBool = AtomicBool::new(false);
/// A launch does not wait for what another device's launch writes.
pub static NO_ORDER_BETWEEN_DEVICES: AtomicBool = AtomicBool::new(false);

pub(crate) fn on(defect: &AtomicBool) -> bool {
    defect.load(Ordering::Relaxed)
}
