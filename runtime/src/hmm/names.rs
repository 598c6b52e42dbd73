//! The engine under the names of the kernel's interface, as the HMM documentation of Linux 4.14 introduced them.
//!
//! Thin functions for people who port a driver; each says what today's kernel calls it.

use std::sync::Arc;

use super::{Mirror, MirrorOps, Pages, Range, Space};
use crate::Error;

/// Registers a mirror. Today: `mmu_interval_notifier_insert`.
#[must_use]
pub fn hmm_mirror_register(space: &'static Space, ops: impl MirrorOps + 'static) -> Arc<Mirror> {
    Mirror::register(space, ops)
}

/// Ends a mirror: when it returns, no callback of it is running or will run, unless somebody else holds a clone. Today:
/// `mmu_interval_notifier_remove`.
pub fn hmm_mirror_unregister(mirror: Arc<Mirror>) {
    drop(mirror);
}

/// Looks pages up without changing anything. Today: `hmm_range_fault` with no request flags.
///
/// # Errors
/// As [`Range::new`].
pub fn hmm_vma_get_pfns(mirror: &Arc<Mirror>, pages: Pages) -> Result<Range, Error> {
    let mut range = Range::new(mirror, pages)?;
    range.get_pfns();
    Ok(range)
}

/// Makes pages present and looks them up. Today: `hmm_range_fault` with `HMM_PFN_REQ_FAULT`, and `…_WRITE`.
///
/// # Errors
/// As [`Range::fault`].
pub fn hmm_vma_fault(mirror: &Arc<Mirror>, pages: Pages, write: bool, block: bool) -> Result<Range, Error> {
    let mut range = Range::new(mirror, pages)?;
    range.fault(write, block)?;
    Ok(range)
}

/// Whether a look-up still holds; called once, with the driver's lock held. Today: `mmu_interval_read_retry`, negated.
#[must_use]
pub fn hmm_vma_range_done(range: Range) -> bool {
    range.done()
}
