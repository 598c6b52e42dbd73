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
/// What a driver looked up is never too old.
pub static NO_RETRY_CHECK: AtomicBool = AtomicBool::new(false);
/// A change does not wait for the second pass of the callbacks.
pub static CALLBACK_RETURNS_EARLY: AtomicBool = AtomicBool::new(false);
/// Entries are removed in the books only.
pub static MISSING_FLUSH: AtomicBool = AtomicBool::new(false);
/// A frame is given back, and again.
pub static FREED_TWICE: AtomicBool = AtomicBool::new(false);
/// A copy counts as arrived when it was asked for.
pub static REUSED_BEFORE_ITS_POINT: AtomicBool = AtomicBool::new(false);
/// Devices are not told that storage was freed.
pub static FREED_UNTOLD: AtomicBool = AtomicBool::new(false);
/// A device that writes a page leaves other devices' copies and entries alone.
pub static REPLICA_KEPT_AT_UPGRADE: AtomicBool = AtomicBool::new(false);
/// A store of the host to a page that it may only load leaves devices their replicas.
pub static REPLICA_KEPT_AT_STORE: AtomicBool = AtomicBool::new(false);
/// A page whose copy home failed counts as come.
pub static DIRTY_LOST_ON_FAILURE: AtomicBool = AtomicBool::new(false);
/// Dropping a part of a block drops what devices have of all of it.
pub static UNMAP_TAKES_THE_BLOCK: AtomicBool = AtomicBool::new(false);
/// A touch of the host leaves a device its exclusive page.
pub static EXCLUSIVE_KEPT: AtomicBool = AtomicBool::new(false);
/// Nobody asks what may be done with a page.
pub static PROTECTION_NOT_ASKED: AtomicBool = AtomicBool::new(false);
/// What a device has does not come home before a fork.
pub static FORK_WITHOUT_HOME: AtomicBool = AtomicBool::new(false);
/// Pinned pages move.
pub static PINS_IGNORED: AtomicBool = AtomicBool::new(false);
/// Of a page of which a launch has its own copy all bytes come home, not only those that it writes.
pub static BORDER_COMES_WHOLE: AtomicBool = AtomicBool::new(false);
/// A move takes pages that another device alone has.
pub static FOREIGN_STOLEN: AtomicBool = AtomicBool::new(false);
/// Eviction takes what a kernel's thread was given last.
pub static ARRIVALS_LEAVE: AtomicBool = AtomicBool::new(false);
/// Eviction takes what a running launch uses as anything else.
pub static FRAMES_IN_USE_LEAVE: AtomicBool = AtomicBool::new(false);
/// Launches are submitted although a fault has them held back.
pub static HOLD_IGNORED: AtomicBool = AtomicBool::new(false);

/// A page leaves a coherent device while the window still shows it there.
pub static FRAMES_NOT_HIDDEN: AtomicBool = AtomicBool::new(false);
/// The window goes on naming a device's frame that is somebody else's next.
pub static FRAMES_LEFT_MAPPED: AtomicBool = AtomicBool::new(false);
/// A long pin leaves pages in a coherent device's memory.
pub static LONG_PIN_IN_PLACE: AtomicBool = AtomicBool::new(false);

/// The books are not checked, as in a release build: no defect, but what a defect does is then seen by its outcome alone.
pub static UNCHECKED: AtomicBool = AtomicBool::new(false);

/// A defect by its name, for tests that run others in processes of their own.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static AtomicBool> {
    Some(match name {
        "NO_RETRY_CHECK" => &NO_RETRY_CHECK,
        "CALLBACK_RETURNS_EARLY" => &CALLBACK_RETURNS_EARLY,
        "MISSING_FLUSH" => &MISSING_FLUSH,
        "FREED_TWICE" => &FREED_TWICE,
        "REUSED_BEFORE_ITS_POINT" => &REUSED_BEFORE_ITS_POINT,
        "REPLICA_KEPT_AT_UPGRADE" => &REPLICA_KEPT_AT_UPGRADE,
        "REPLICA_KEPT_AT_STORE" => &REPLICA_KEPT_AT_STORE,
        "DIRTY_LOST_ON_FAILURE" => &DIRTY_LOST_ON_FAILURE,
        "UNMAP_TAKES_THE_BLOCK" => &UNMAP_TAKES_THE_BLOCK,
        "REMAP_LEAVES_OLD" => &REMAP_LEAVES_OLD,
        "EXCLUSIVE_KEPT" => &EXCLUSIVE_KEPT,
        "PROTECTION_NOT_ASKED" => &PROTECTION_NOT_ASKED,
        "FORK_WITHOUT_HOME" => &FORK_WITHOUT_HOME,
        "PINS_IGNORED" => &PINS_IGNORED,
        "FOREIGN_STOLEN" => &FOREIGN_STOLEN,
        "FRAMES_NOT_HIDDEN" => &FRAMES_NOT_HIDDEN,
        "FRAMES_LEFT_MAPPED" => &FRAMES_LEFT_MAPPED,
        "LONG_PIN_IN_PLACE" => &LONG_PIN_IN_PLACE,
        _ => return None,
    })
}

pub(crate) fn on(defect: &AtomicBool) -> bool {
    defect.load(Ordering::Relaxed)
}
