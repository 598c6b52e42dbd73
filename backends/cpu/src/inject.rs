//! Faults on demand, and counters: what tests of the engine need of a device.
//!
//! **Guarantee:** nothing here changes what a device does unless a test asks for it; a check costs one relaxed load.
//!
//! **States:** those of each [`Trigger`]. No locks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use sterna_hal::Trigger;

use crate::CpuDevice;

/// Makes a device fail when told to, and counts what it does. Got from [`CpuDevice::inject`].
#[derive(Clone, Copy, Debug)]
pub struct Inject<'a> {
    pub(crate) device: &'a CpuDevice,
    pub(crate) triggers: &'a Triggers,
}

/// The state behind [`Inject`].
#[derive(Debug)]
pub(crate) struct Triggers {
    alloc: Trigger,
    copy: Trigger,
    copies: AtomicU64,
    edit: Trigger,
    submit: Trigger,
    delay_nanos: AtomicU64,
    late: Trigger,
    late_nanos: AtomicU64,
    /// The copy that ends next is the late one.
    copy_is_late: AtomicBool,
    loss: Trigger,
    lost: AtomicBool,
    counts: [AtomicU64; 6],
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Edits,
    Mappings,
    Copies,
    CopyBytes,
    Submits,
    Allocs,
}

impl Triggers {
    pub(crate) fn new() -> Self {
        Self {
            alloc: Trigger::off(),
            copy: Trigger::off(),
            copies: AtomicU64::new(0),
            edit: Trigger::off(),
            submit: Trigger::off(),
            delay_nanos: AtomicU64::new(0),
            late: Trigger::off(),
            late_nanos: AtomicU64::new(0),
            copy_is_late: AtomicBool::new(false),
            loss: Trigger::off(),
            lost: AtomicBool::new(false),
            counts: [const { AtomicU64::new(0) }; 6],
        }
    }

    fn count(&self, what: Count) -> u64 {
        self.counts[what as usize].load(Relaxed)
    }

    pub(crate) fn add(&self, what: Count, n: u64) {
        self.counts[what as usize].fetch_add(n, Relaxed);
    }

    pub(crate) fn alloc_fails(&self) -> bool {
        self.alloc.fires()
    }

    pub(crate) fn copy_fails(&self) -> bool {
        self.copy.fires() || self.copies.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
    }

    pub(crate) fn edit_fails(&self) -> bool {
        self.edit.fires()
    }

    pub(crate) fn submit_fails(&self) -> bool {
        self.submit.fires()
    }

    pub(crate) fn loss_fires(&self) -> bool {
        self.loss.fires()
    }

    /// How much later than its bytes the copy that has just been made is to arrive.
    pub(crate) fn delay(&self) -> Duration {
        let late = if self.copy_is_late.swap(false, SeqCst) { self.late_nanos.load(Relaxed) } else { 0 };
        Duration::from_nanos(self.delay_nanos.load(Relaxed) + late)
    }

    /// Whether a copy that is asked for now would arrive later than its bytes.
    pub(crate) fn copies_are_late(&self) -> bool {
        if self.late.fires() {
            self.copy_is_late.store(true, SeqCst);
        }
        self.copy_is_late.load(Relaxed) || self.delay_nanos.load(Relaxed) > 0
    }

    /// How much later than its end the launch that is asked for now is to be reached.
    pub(crate) fn launch_delay(&self) -> Duration {
        Duration::from_nanos(if self.late.fires() { self.late_nanos.load(Relaxed) } else { 0 })
    }

    pub(crate) fn set_lost(&self) {
        self.lost.store(true, SeqCst);
    }

    /// The flag itself, for loops that look at it often.
    pub(crate) fn lost_flag(&self) -> &AtomicBool {
        &self.lost
    }
}

impl Inject<'_> {
    /// The `n`-th next allocation fails with `OutOfMemory`; 0 is the very next one. Once.
    pub fn fail_alloc(self, n: u64) {
        self.triggers.alloc.arm(n);
    }

    /// The `n`-th next copy fails with a driver error and copies nothing; 0 is the very next one. Once.
    pub fn fail_copy(self, n: u64) {
        self.triggers.copy.arm(n);
    }

    /// The next `n` copies fail with a driver error and copy nothing.
    pub fn fail_copies(self, n: u64) {
        self.triggers.copies.store(n, SeqCst);
    }

    /// The `n`-th next entry handed to `edit` fails with a driver error, those before it in the same call having been made;
    /// 0 is the very next one. Once.
    pub fn fail_edit(self, n: u64) {
        self.triggers.edit.arm(n);
    }

    /// The `n`-th next launch is refused with a driver error; 0 is the very next one. Once.
    pub fn fail_submit(self, n: u64) {
        self.triggers.submit.arm(n);
    }

    /// From now on every copy's point is reached this much later than its bytes have arrived. Zero turns it off.
    pub fn delay_copies(self, by: Duration) {
        self.triggers.delay_nanos.store(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), SeqCst);
    }

    /// The point of the `n`-th next copy or launch is reached this much later than it could be; 0 is the very next one. Once.
    pub fn late_point(self, n: u64, by: Duration) {
        self.triggers.late_nanos.store(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), SeqCst);
        self.triggers.late.arm(n);
    }

    /// The device is [lost](CpuDevice::lose) at the `n`-th next call that needs it, which is all but `free`, `unreserve`, and
    /// those that ask or wait; 0 is the very next one. An edit counts twice: before and after.
    pub fn lose_at(self, n: u64) {
        self.triggers.loss.arm(n);
    }

    /// Calls of `alloc`.
    pub fn allocs(self) -> u64 {
        self.triggers.count(Count::Allocs)
    }

    /// Entries changed by `edit`.
    pub fn edits(self) -> u64 {
        self.triggers.count(Count::Edits)
    }

    /// System calls that `edit` made for them.
    pub fn mappings(self) -> u64 {
        self.triggers.count(Count::Mappings)
    }

    /// Calls of `copy` that were accepted.
    pub fn copies(self) -> u64 {
        self.triggers.count(Count::Copies)
    }

    /// Bytes of the accepted copies.
    pub fn copy_bytes(self) -> u64 {
        self.triggers.count(Count::CopyBytes)
    }

    /// Launches that were accepted.
    pub fn submits(self) -> u64 {
        self.triggers.count(Count::Submits)
    }

    /// Whether the device is lost.
    pub fn is_lost(self) -> bool {
        self.triggers.lost.load(SeqCst)
    }

    /// Loses the device: [`CpuDevice::lose`].
    pub fn lose(self) {
        self.device.lose();
    }
}
