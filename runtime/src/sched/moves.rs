//! Moves of pages that a program asked for: hints, carried out in steps.
//!
//! **Guarantee.** A move never fails and changes no byte. Between two steps, which are some mebibytes as soon as somebody waits, others
//! go first. Pages that a running launch keeps where they are are awaited aside, not on the thread.

use std::collections::VecDeque;
use std::sync::Arc;

use sterna_hal::{Absent, Access};

use super::queue::Step;
use crate::hmm::inflight::InFlight;
use crate::hmm::lock::Free;
use crate::hmm::migrate::{self, Home, Moved, Pace, Want};
use crate::hmm::mirror::DeviceMirror;
use crate::hmm::range::populate;
use crate::hmm::uses::Of;
use crate::hmm::{Mechanism, Pages, Segment};
use crate::policy::Place;
use crate::stats::Cause;

/// Blocks a batch: 8 MiB, some milliseconds.
const STEP_BLOCKS: u64 = 4;

/// A move asked for: `None` is the host.
pub(super) struct Move {
    pub(super) seg: Arc<Segment>,
    pub(super) left: VecDeque<Pages>,
    pub(super) to: Option<Arc<DeviceMirror>>,
}

impl Move {
    pub(super) fn new(seg: Arc<Segment>, pages: Pages, to: Option<Arc<DeviceMirror>>) -> Self {
        Self { seg, left: VecDeque::from([pages]), to }
    }

    /// Takes `pages` out of what is left; gives the parts that were.
    pub(super) fn cut_out(&mut self, pages: &Pages) -> Vec<Pages> {
        let mut out = Vec::new();
        let mut left = VecDeque::with_capacity(self.left.len());
        for run in self.left.drain(..) {
            let both = Pages(run.0.start.max(pages.0.start)..run.0.end.min(pages.0.end));
            if both.is_empty() {
                left.push_back(run);
                continue;
            }
            left.extend(crate::hmm::segment::without(&run.0, &both.0).map(Pages));
            out.push(both);
        }
        self.left = left;
        out
    }
}

/// A launch that keeps pages of a step where they are until it has ended: it writes them, on a device that cannot fault.
pub(super) fn kept_by(step: &Step) -> Option<Arc<InFlight>> {
    let of = step.to.as_ref().map_or(Of::Any, |m| Of::Others(m.slot()));
    running_on_rigid(&step.seg, &step.pages, of, false, u64::MAX)
}

/// A launch that has not ended, of a device that cannot fault, which may be writing, with `reads` using, the grains of `pages`; of those
/// uses up to number `upto`.
pub(super) fn running_on_rigid(seg: &Segment, pages: &Pages, of: Of, reads: bool, upto: u64) -> Option<Arc<InFlight>> {
    let rigid = |m: &Arc<DeviceMirror>| m.caps().absent == Absent::Undefined;
    let widest = seg.space().devices().iter().filter(|m| rigid(m)).map(|m| m.rec().pages_per_grain()).max()?;
    let pages = pages.widened(widest as u64);
    let bytes = seg.bytes_in(&pages);
    let book = seg.uses.lock();
    let mut uses = book.overlapping(of, &bytes, reads).filter(|u| u.number <= upto);
    let found = uses.find(|u| rigid(u.launch.mirror()) && u.launch.is_running());
    found.map(|u| Arc::clone(&u.launch))
}

/// Moves pages until all have moved or `go_on` says no; what is left is the answer.
pub(super) fn carry_out(free: &mut Free, step: &Step, go_on: &dyn Fn() -> bool) -> Pages {
    let (space, end) = (step.seg.space(), step.pages.0.end);
    let pace = Pace { blocks: STEP_BLOCKS, go_on };
    let reached = match &step.to {
        Some(m) => {
            // What cannot be brought stays where it is, and what launches use is not evicted for it.
            let want = Want { access: Access::Read, rank: space.tick(), cause: Cause::Prefetch, own: false };
            match migrate::to_device_paced(free, m, &step.seg, &step.pages, want, pace) {
                Ok((moved, at)) if is_whole(&moved) => at,
                Ok((_, at)) => by_pieces(free, m, &step.seg, &Pages(step.pages.0.start..at), want, go_on),
                Err(_) => end,
            }
        }
        None => {
            let keep = space.mechanism() == Mechanism::None;
            let home = if keep { Home::SHARED } else { Home::READING };
            let done = migrate::bring_home_paced(free, &step.seg, &step.pages, home, Cause::Prefetch, pace);
            done.map_or(end, |(_, at)| at)
        }
    };
    Pages(reached..end)
}

/// Whether nothing stood in the way that goes away.
fn is_whole(moved: &Moved) -> bool {
    !(moved.foreign || moved.pinned || moved.denied || moved.lost) && moved.blocked.is_none()
}

/// Brings what other batches, other devices or guards had.
fn by_pieces(
    free: &mut Free,
    mirror: &Arc<DeviceMirror>,
    seg: &Arc<Segment>,
    pages: &Pages,
    want: Want,
    go_on: &dyn Fn() -> bool,
) -> u64 {
    let step = STEP_BLOCKS * crate::hmm::addr::PAGES_PER_BLOCK as u64;
    let mut at = pages.0.start;
    while at < pages.0.end {
        let end = ((at / step + 1) * step).min(pages.0.end);
        if populate(free, mirror, seg, &Pages(at..end), Place::Migrate, want).is_err() {
            return pages.0.end;
        }
        at = end;
        if !go_on() {
            break;
        }
    }
    at
}
