//! The engine under the names of the kernel's interface, as the HMM documentation of Linux 4.14 introduced them.
//!
//! Thin functions for people who port a driver; each says what today's kernel calls it.
//!
//! What a driver's callbacks were is the engine's own part here, over the methods of a [`Device`]:
//!
//! | there | here |
//! |---|---|
//! | `hmm_mirror_ops.update`, `sync_cpu_device_pagetables` | [`MirrorOps::update`], and `finish` for the second pass |
//! | `migrate_vma_ops.alloc_and_copy` | `Device::alloc` and `Device::copy`, when the pages are on no side any more |
//! | `migrate_vma_ops.finalize_and_map` | `Device::edit`, while nobody else can touch them |
//! | `hmm_devmem_ops.fault` (today `migrate_to_ram`) | a host fault: the page comes home |
//! | `hmm_devmem_ops.free` (today `folio_free`) | `Device::free`, once, when no entry names the frame |

use std::sync::Arc;
use std::time::Duration;

use sterna_hal::Device;

use super::{Attached, Locked, MigrateFlags, Mirror, MirrorOps, Pages, Range, Space};
use crate::Error;

/// Registers a mirror. Today: `mmu_interval_notifier_insert`.
#[must_use]
pub fn hmm_mirror_register(space: &'static Space, ops: impl MirrorOps + 'static) -> Arc<Mirror> {
    Mirror::register(space, ops)
}

/// Registers a mirror for whoever holds the space's lock. Today: `mmu_interval_notifier_insert_locked`.
#[must_use]
pub fn hmm_mirror_register_locked(space: &mut Locked, ops: impl MirrorOps + 'static) -> Arc<Mirror> {
    space.register(ops)
}

/// Ends a mirror: when it returns, no callback of it is running or will run. Today: `mmu_interval_notifier_remove`.
pub fn hmm_mirror_unregister(mirror: &Mirror) {
    mirror.unregister();
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

/// As [`hmm_vma_fault`], waiting at most `timeout` without progress; `None` waits for as long as it takes. Today:
/// `hmm_range_fault_unlocked_timeout`.
///
/// # Errors
/// As [`Range::fault_within`].
pub fn hmm_vma_fault_timeout(
    mirror: &Arc<Mirror>,
    pages: Pages,
    write: bool,
    timeout: Option<Duration>,
) -> Result<Range, Error> {
    let mut range = Range::new(mirror, pages)?;
    range.fault_within(write, timeout)?;
    Ok(range)
}

/// Attaches a device with its memory. Today: `memremap_pages`, and `mmu_interval_notifier_insert` for its page table.
///
/// # Errors
/// As [`Attached::new`].
pub fn hmm_devmem_add(space: &'static Space, device: Arc<dyn Device>) -> Result<Attached, Error> {
    Attached::new(space, device)
}

/// Detaches a device: what it has comes home. Today: `memunmap_pages`.
pub fn hmm_devmem_remove(device: Attached) {
    drop(device);
}

/// Moves pages to a device and says for each what became of it. Today: `migrate_vma_setup`, `migrate_vma_pages`,
/// `migrate_vma_finalize`.
///
/// # Errors
/// As [`Attached::migrate`].
pub fn migrate_vma(device: &Attached, pages: &Pages) -> Result<Vec<MigrateFlags>, Error> {
    device.migrate_vma(pages)
}

/// Brings everything home that a device has, and frees its memory. Today: `migrate_device_range`.
///
/// # Errors
/// As [`Attached::release_memory`].
pub fn migrate_device_range(device: &Attached) -> Result<(), Error> {
    device.release_memory()
}

/// Gives a device pages to itself, for atomic operations. Today: `make_device_exclusive`.
///
/// # Errors
/// As [`Attached::make_exclusive`].
pub fn make_device_exclusive(device: &Attached, pages: &Pages) -> Result<(), Error> {
    device.make_exclusive(pages)
}
