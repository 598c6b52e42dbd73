//! Forked children: devices stay with the parent, and of shared memory a child gets what was asked for.
//!
//! **Guarantee.** The arena's mappings are not inherited, so a child that touches shared memory dies of SIGSEGV instead of reading
//! half of it; every call that would use the engine returns [`Forked`](crate::Error::Forked), and every drop does nothing. Where
//! [`ForkPolicy`] says so a child finds ordinary memory of its own at the same addresses: the bytes as they were at the fork, or
//! zeros. Neither side sees what the other writes afterwards.
//!
//! **How.** Before the fork the bytes to be kept come home and are copied to private memory, which the child inherits and moves to
//! where the window was. The gate's records are replaced by zeros in the child: nobody has to be waited for there.
//!
//! **Lock**: `PLAN`, from before the fork until it is done, on both sides; it is above every other.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, Weak};

use parking_lot::{Mutex, MutexGuard};
use sterna_hal::Access;

use super::host::coherent::places;
use super::lock::Free;
use super::migrate::{self, Home};
use super::os;
use super::pin::Pin;
use super::segment::Segment;
use super::source::{self, How};
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

/// What a forked child finds where an allocation was. From [`Shared::set_fork_policy`](crate::Shared::set_fork_policy).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub enum ForkPolicy {
    /// Nothing: a touch is SIGSEGV. Forking costs nothing.
    #[default]
    DontFork,
    /// A copy of its own, as it was at the fork. Each fork brings it home and copies it.
    Preserve,
    /// Zeros, in memory of its own.
    Wipe,
}

static FORKED: AtomicBool = AtomicBool::new(false);

/// What children are to find, and between *prepare* and the end of a fork, what was made for the child.
static PLAN: Mutex<Plan> = Mutex::new(Plan { kept: Vec::new(), made: Vec::new() });

struct Plan {
    kept: Vec<Kept>,
    made: Vec<Made>,
}

struct Kept {
    seg: Weak<Segment>,
    bytes: Range<u64>,
    policy: ForkPolicy,
}

/// Memory for the child: where it belongs, how much, and where it is meanwhile (0: zeros are made in the child).
struct Made {
    at: usize,
    bytes: usize,
    copy: usize,
}

/// Whether this process was forked from one that had a space. Signal-safe.
pub(crate) fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

pub(crate) fn check() -> Result<(), Error> {
    if forked() { Err(Error::Forked) } else { Ok(()) }
}

/// Says what children find where bytes `bytes` of a segment are, instead of what was said before of any of them.
pub(crate) fn plan(seg: &Arc<Segment>, bytes: &Range<u64>, policy: ForkPolicy) {
    let mut plan = PLAN.lock();
    let here = Arc::downgrade(seg);
    for k in std::mem::take(&mut plan.kept) {
        if !k.seg.ptr_eq(&here) {
            plan.kept.push(k);
            continue;
        }
        // The rest of what was said stays: a part may have another owner.
        let rest = super::segment::without(&k.bytes, bytes);
        plan.kept.extend(rest.map(|bytes| Kept { seg: Weak::clone(&k.seg), bytes, policy: k.policy }));
    }
    plan.kept.retain(|k| k.seg.strong_count() > 0);
    if policy != ForkPolicy::DontFork {
        plan.kept.push(Kept { seg: Arc::downgrade(seg), bytes: bytes.clone(), policy });
    }
}

extern "C" fn before_fork() {
    let mut plan = PLAN.lock();
    if !plan.kept.is_empty() && !forked() && !sterna_hal::in_kernel() {
        plan.kept.retain(|k| k.seg.strong_count() > 0);
        let made = plan.kept.iter().filter_map(make).collect();
        plan.made = made;
    }
    MutexGuard::leak(plan);
}

/// Memory for the child; what cannot be had is left out, as without a policy.
fn make(kept: &Kept) -> Option<Made> {
    let seg = kept.seg.upgrade()?;
    let space = seg.space();
    let pages = seg.pages_of(&kept.bytes);
    let at = space.window_at(pages.0.start * super::PAGE).as_ptr().addr();
    let bytes = pages.bytes() as usize;
    if kept.policy == ForkPolicy::Wipe {
        return Some(Made { at, bytes, copy: 0 });
    }
    let mut free = Free::at_entry();
    seg.wait_unused(&mut free, &kept.bytes, false);
    source::fetch_for(&mut free, &seg, &pages, Access::Read, How::CALL).ok()?;
    #[cfg(feature = "planted")]
    let away = super::planted::on(&super::planted::FORK_WITHOUT_HOME);
    #[cfg(not(feature = "planted"))]
    let away = false;
    if !away {
        let home = Home { map: false, ..Home::SHARED };
        migrate::bring_home(&mut free, &seg, &pages, home, Cause::HostAccess).ok()?.complete(&seg, &pages).ok()?;
    }
    let _kept = space.has_coherent().then(|| Pin::hold(&mut free, &seg, &pages));
    let copy = os::private_memory(bytes).ok()?;
    for (id, mask) in pages.blocks() {
        let block = space.block(id);
        let found = places(space, (id, block), &block.lock(&mut free), mask);
        for piece in found {
            let (run, from) = (piece.pages, piece.offset);
            let to = copy + (id.first_page().0 + run.start as u64 - pages.0.start) as usize * super::PAGE as usize;
            for data in os::extents(piece.fd, from..from + run.len() as u64 * super::PAGE, super::GRANULE) {
                let skip = (data.start - from) as usize;
                // SAFETY: private memory made just now, as long as the pages.
                if unsafe { os::read_at(piece.fd, std::ptr::without_provenance_mut(to + skip), data) }.is_err() {
                    // SAFETY: as above, and nobody knows of it.
                    unsafe { os::unmap(copy, bytes) };
                    return None;
                }
            }
        }
    }
    Some(Made { at, bytes, copy })
}

extern "C" fn parent() {
    // SAFETY: `prepare` locked it on this thread, and leaked its guard.
    let mut plan = unsafe { PLAN.make_guard_unchecked() };
    for m in plan.made.drain(..).filter(|m| m.copy != 0) {
        // SAFETY: made for the child, which has a copy of it.
        unsafe { os::unmap(m.copy, m.bytes) };
    }
}

extern "C" fn child() {
    FORKED.store(true, Ordering::Relaxed);
    // SAFETY: `prepare` locked it on the thread that forked, which is this one, and leaked its guard.
    let mut plan = unsafe { PLAN.make_guard_unchecked() };
    if plan.made.is_empty() {
        return;
    }
    let Some(space) = Space::existing() else { return };
    for (at, bytes) in space.records() {
        // SAFETY: the records' addresses, where a child has nothing; all zero is a record.
        unsafe { os::zeros_over(at, bytes) };
    }
    for m in plan.made.drain(..) {
        // SAFETY: addresses of the window, where a child has nothing; memory that `prepare` made for it.
        unsafe { if m.copy == 0 { os::zeros_over(m.at, m.bytes) } else { os::move_over(m.copy, m.bytes, m.at) } }
    }
}

/// Has children learn that they are.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handlers are plain functions. If registering fails (no memory), children are not told and die at their first
        // touch.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(parent), Some(child)) };
    });
}
