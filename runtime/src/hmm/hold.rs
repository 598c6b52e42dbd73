//! Launches held back: on a device that cannot fault, pages in use may move only between launches.
//!
//! **Guarantee.** Once [`quiet`] has said yes, no launch that writes the pages is running on a device that cannot fault, and none over
//! the segment is submitted until [`release`]. Whoever serves faults asks again and again and never waits; launches submitted before
//! end by themselves, and later ones wait, so that a program which launches without a gap starves nobody.
//!
//! **Why that is enough.** Entries and frames stay while launches use them; a launch that only reads goes on with what it has, and one
//! on other pages is not concerned. A launch that writes a page has to end before the page can be copied. One with copies of its own
//! ([`Borders`](super::migrate::Borders)) has ended only when it has retired, and perhaps nobody waits for it: whoever asks here has it
//! retired.
//! Entries that name host storage do not stay: whoever moves such a page away from there asks [`off_storage`] as well, which holds for
//! readers, too.
//!
//! **States.** One bit of a view's `hold` for each thread that serves faults: set under the driver lock, cleared when its fault is
//! served, *however* it is (what held launches back may be home by itself, shared, or gone when the thread looks again), and no other of the
//! same thread's faults on the segment needs it: else faults that are served at once would let pass what another waits for. A launch that
//! finds a bit set under the same lock goes to the scheduler, which waits here.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::addr::{BlockId, Mask, Pages};
use super::lock::Free;
use super::os;
use super::parts::Slots;
use super::running;
use super::segment::{SegRec, Segment};
use super::watch;

/// The thread that serves the host's faults.
pub(crate) const HOST: u32 = 1;
/// The thread that serves the devices' faults.
pub(crate) const DEVICES: u32 = 2;

/// Holds back further launches over `seg` on devices that cannot fault; says whether those before that write `pages` have ended.
pub(crate) fn quiet(seg: &Segment, who: u32, pages: &Pages) -> bool {
    let mut quiet = true;
    for m in seg.space().devices() {
        if !m.is_rigid() || seg.view(m.slot()).is_none() {
            continue;
        }
        {
            let _driver = m.rec().lock.hold();
            seg.rec().view[m.slot()].hold.fetch_or(who, Ordering::AcqRel);
        }
        quiet &= pages.blocks().all(|(id, mask)| has_quit(seg, id, m.slot(), mask, true));
    }
    quiet
}

/// Whether launches on device `slot` that use, or with `writes` that write, some of `pages` have ended. With no lock held: those that the device has finished with
/// are retired, for nobody else may be about to look at them.
fn has_quit(seg: &Segment, id: BlockId, slot: usize, pages: Mask, writes: bool) -> bool {
    while let Some(launch) = running::user(seg, id, slot, pages, writes) {
        if !launch.is_finished() || !watch::retire(&launch) {
            return false;
        }
    }
    true
}

/// Launches over a segment are held back, by this one for a moment: those slots' bits go when it is dropped, but for [`keep`](Self::keep).
#[derive(Debug)]
pub(crate) struct Held<'a> {
    seg: &'a Segment,
    who: u32,
    slots: u64,
}

impl Held<'_> {
    /// Until [`release`].
    pub(crate) fn until_released(mut self) {
        self.slots = 0;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        Slots(self.slots).for_each(|slot| give_back(self.seg.rec(), self.who, slot));
    }
}

/// As [`quiet`], for whoever moves `pages` away from host storage to device `to`: whether no launch on another device that cannot fault
/// uses them there, be it for reading. What is held back is so while the answer lives, whatever it is.
pub(crate) fn off_storage<'a>(free: &mut Free, seg: &'a Segment, who: u32, to: usize, pages: &Pages) -> (Held<'a>, bool) {
    let (mut held, mut quiet) = (Held { seg, who, slots: 0 }, true);
    for m in seg.space().devices() {
        let slot = m.slot();
        if slot == to || !m.is_rigid() || !m.may_alias() || seg.view(slot).is_none() {
            continue;
        }
        {
            let _driver = m.rec().lock.hold();
            let before = seg.rec().view[slot].hold.fetch_or(who, Ordering::AcqRel);
            held.slots |= u64::from(before & who == 0) << slot;
        }
        let per = m.rec().pages_per_grain();
        quiet &= pages.blocks().all(|(id, mask)| {
            let there = {
                let body = seg.claim(id).lock(free);
                let dev = &body.dev[slot];
                // Entries go by whole grains.
                ((dev.alias | dev.atomic) & dev.mapped & mask).widened(per) & dev.mapped
            };
            has_quit(seg, id, slot, there, false)
        });
    }
    (held, quiet)
}

/// Lets launches go on over the segment that has this record.
pub(crate) fn release(rec: &SegRec, who: u32) {
    rec.devices().for_each(|slot| give_back(rec, who, slot));
}

fn give_back(rec: &SegRec, who: u32, slot: usize) {
    let word = &rec.view[slot].hold;
    if word.load(Ordering::Acquire) & who != 0 && word.fetch_and(!who, Ordering::AcqRel) == who {
        os::futex_wake(word, i32::MAX);
    }
}

/// Whether launches on device `slot` are held back. Under the driver lock.
pub(crate) fn held(seg: &Segment, slot: usize) -> bool {
    #[cfg(feature = "planted")]
    if super::planted::on(&super::planted::HOLD_IGNORED) {
        return false;
    }
    seg.rec().view[slot].hold.load(Ordering::Acquire) != 0
}

/// Waits until launches on device `slot` are no longer held back, or a while. Never on a thread that serves faults.
pub(crate) fn wait(seg: &Segment, slot: usize) {
    let word = &seg.rec().view[slot].hold;
    let now = word.load(Ordering::Acquire);
    if now != 0 {
        os::futex_wait(word, now, Some(Duration::from_millis(10)));
    }
}
