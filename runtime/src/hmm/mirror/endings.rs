//! How a device's mirror ends, and what of it does: a segment that is dropped, a device that is detached or lost.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_hal::{Access, Edit, Target};

use super::super::addr::{Mask, PAGE, PAGES_PER_BLOCK, Pages, Span, runs_of};
use super::super::fork;
use super::super::lock::Free;
use super::super::migrate::Home;
use super::super::reaper;
use super::super::segment::Segment;
use super::DeviceMirror;
use crate::Error;
use crate::stats::Cause;

impl DeviceMirror {
    /// The device is detached: its entries go, and every segment that had addresses on it gives them back. What the device had
    /// has come home, and nobody uses the device any more.
    pub(crate) fn detach(&self, free: &mut Free) -> Result<(), Error> {
        let segs: Vec<Arc<Segment>> = self.views.read().values().filter_map(|(_, s)| s.upgrade()).collect();
        let home = Home::off(self.slot, true);
        for seg in segs {
            for id in seg.claimed() {
                let first = id.first_page().0;
                let pages = Pages(first..first + PAGES_PER_BLOCK as u64);
                super::super::migrate::bring_home(free, &seg, &pages, home, Cause::Mirror)?;
            }
            if let Some(view) = seg.give_up_view(self) {
                self.views.write().remove(&view.at.at.0);
                // SAFETY: launches have ended, entries are gone.
                unsafe { self.device.unreserve(view.at) };
            }
        }
        Ok(())
    }

    /// A dropped segment is about to end, and nobody finds it any more: what it has here is memory on its way back.
    pub(crate) fn segment_begins_to_end(&self) {
        self.ending_segments.fetch_add(1, Ordering::SeqCst);
    }

    /// How many segments have ended. See [`some_ended_since`](Self::some_ended_since).
    pub(crate) fn ended_segments(&self) -> u64 {
        self.ended_segments.load(Ordering::SeqCst)
    }

    /// Whether a segment has given its memory back since [`ended_segments`](Self::ended_segments) said `before`, or is about to.
    pub(crate) fn some_ended_since(&self, before: u64) -> bool {
        self.ending_segments.load(Ordering::SeqCst) != before
    }

    /// A dropped segment, after [`segment_begins_to_end`](Self::segment_begins_to_end): removes its entries, frees its frames, gives its addresses back.
    pub(crate) fn forget(&self, free: &mut Free, seg: &Segment) {
        self.take_off(free, seg);
        self.ended_segments.fetch_add(1, Ordering::SeqCst);
    }

    fn take_off(&self, free: &mut Free, seg: &Segment) {
        let Some(view) = seg.view(self.slot) else { return };
        self.views.write().remove(&view.at.at.0);
        let whole = Edit { at: view.at, to: Target::Absent, access: Access::Read };
        // A failure leaves entries that name frames about to be reused; nobody can reach them through a range that is given
        // back, which removes its entries too.
        let _ = self.remove(free, &[whole]);
        let per = self.rec().pages_per_grain();
        let mut frames = Vec::new();
        for id in seg.claimed() {
            let mut body = self.space.block(id).lock(free);
            self.set_rank(id, &mut body, 0);
            for frame in (0..PAGES_PER_BLOCK / per).filter_map(|g| body.take_frame(self.slot, g)) {
                super::super::devmem::push_frame(&mut frames, frame);
            }
        }
        // SAFETY: each grain stood in exactly one block's table, from which it was taken just now. An entry that names it, if one could not
        // be removed, is of the range that is given back below, which no kernel touches.
        unsafe { self.device.free(&frames) };
        // SAFETY: the last user of the segment is gone, and a launch is one until it retires. It retires when the device has told that it
        // ended, or is lost, which it tells when no kernel of it goes on: no kernel touches the range.
        unsafe { self.device.unreserve(view.at) };
    }

    /// The device is gone: pages that only it had are lost; every other page is the host's again. Gives the segments that it held.
    pub(super) fn write_off(&self, free: &mut Free) -> Vec<Arc<Segment>> {
        let segs: Vec<Arc<Segment>> = self.views.read().values().filter_map(|(_, s)| s.upgrade()).collect();
        for seg in &segs {
            let mut lost = Vec::new();
            seg.note_lost();
            let used = seg.pages_of(&(0..seg.extent.used()));
            for id in seg.claimed() {
                let block = self.space.block(id);
                let mut body = block.lock(free);
                self.change(seg, id, &mut body, |body| {
                    let gone = body.write_off(self.slot);
                    self.space.host.forsake(self.space, (id, block), body, gone);
                    body.lose(gone);
                    // Behind the bytes there is nothing to lose, and nobody who could write it anew.
                    let bytes = used.part_of(id);
                    body.forgive(!bytes);
                    lost.push(Span { block: id, mask: gone & bytes });
                });
                self.set_rank(id, &mut body, 0);
                drop(body);
                block.bump(Mask::FULL);
            }
            for run in runs_of(&lost) {
                let start = run.0.start * PAGE - seg.offset();
                let bytes = start..(start + run.bytes()).min(seg.extent.used());
                seg.add_taint(&bytes, &Arc::new(Error::Lost { device: self.device.info().id.clone() }), 0);
            }
        }
        segs
    }
}

/// How long to wait for threads of the engine that have a mirror in hand for a moment. Who has it for longer is the program.
const IN_HAND: Duration = Duration::from_millis(20);

/// How long a device may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// Gives mirrors up and waits until their devices have ended, unless the program has them elsewhere.
///
/// A thread that has just served a fault may be the last to let go; the device must not end beside the end of the process, which
/// takes the driver's own state away.
pub(crate) fn give_up(mirrors: Vec<Arc<DeviceMirror>>) {
    mirrors.iter().for_each(|m| m.ends());
    let ends: Vec<_> = mirrors.iter().map(|m| (Arc::clone(&m.ended), Arc::downgrade(m))).collect();
    drop(mirrors);
    let begin = Instant::now();
    for (ended, mirror) in ends {
        let most = || if mirror.strong_count() == 0 { ENDING } else { IN_HAND };
        while !ended.load(Ordering::Acquire) && begin.elapsed() < most() {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for DeviceMirror {
    fn drop(&mut self) {
        if fork::forked() {
            // The device is the parent's, as is whoever holds the locks of what follows; `device` drops nothing by itself.
            return std::mem::forget(self.claim.take());
        }
        self.watch.close();
        self.ends();
        // SAFETY: taken once, here; nobody can use the mirror any more.
        let device = unsafe { ManuallyDrop::take(&mut self.device) };
        let (space, slot, ended, claim) = (self.space, self.slot, Arc::clone(&self.ended), self.claim.take());
        // A lost device ends its workers, which may be parked in a fault that this thread answers.
        reaper::end_alone(move || {
            // A lost device ends its workers, which may be parked in a fault: faults are answered until it is gone.
            drop(device);
            space.device_faults.unwatch(slot);
            space.give_slot(slot);
            drop(claim);
            ended.store(true, Ordering::Release);
        });
    }
}
