//! The copy step of a migration: runs as few and as long as the places allow.

use std::ops::Range;
use std::sync::Arc;

use sterna_hal::{CopyEnd, CopyRun, DeviceError, HostAt};

use super::super::addr::{BlockId, Mask, PAGE, Pages, Span};
use super::super::block::Block;
use super::super::lock::Free;
use super::super::mirror::DeviceMirror;
use super::{Batch, BatchState, Copying, Refusal, Unmapped, end_busy};
use crate::Error;

impl Batch<Unmapped> {
    /// Starts the copies, in as few runs as the places allow. A run that fails alone is put back and the rest goes on.
    pub(crate) fn alloc_and_copy(mut self, free: &mut Free) -> Result<Batch<Copying>, Error> {
        let core = &mut self.core;
        let work = match core.to.clone() {
            Some((m, _)) => {
                let runs = runs_to_device(free, core, &m);
                vec![(m, runs)]
            }
            None => runs_to_host(free, core),
        };
        for (m, runs) in work {
            if runs.is_empty() {
                continue;
            }
            let plain: Vec<CopyRun> = runs.iter().map(|r| r.1).collect();
            // SAFETY: the pages are busy and unmapped on every side, so nobody else touches source or destination.
            match unsafe { m.device().copy(&plain, &[]) } {
                Ok(p) => core.points.push((m, p)),
                Err(e @ DeviceError::Lost(_)) => return Err(m.noticed(e)),
                Err(_) => {
                    for (pages, run) in runs {
                        // SAFETY: as above.
                        match unsafe { m.device().copy(&[run], &[]) } {
                            Ok(p) => core.points.push((Arc::clone(&m), p)),
                            Err(e @ DeviceError::Lost(_)) => return Err(m.noticed(e)),
                            Err(error) => {
                                let device = m.device();
                                core.result.failed.get_or_insert_with(|| Refusal { device: Arc::clone(device), error });
                                put_back(free, core, &m, &pages);
                            }
                        }
                    }
                }
            }
        }
        Ok(self.into())
    }
}

/// Takes pages whose copy failed out of the batch: they stay where they were.
fn put_back(free: &mut Free, core: &mut BatchState, mirror: &DeviceMirror, pages: &Pages) {
    let per = mirror.rec().pages_per_grain();
    for (id, mask) in pages.blocks() {
        for s in core.spans.iter_mut().filter(|s| s.block == id) {
            let out = mask.widened(per) & s.mask;
            #[cfg(feature = "planted")]
            if super::super::planted::on(&super::super::planted::DIRTY_LOST_ON_FAILURE) && core.to.is_none() {
                continue;
            }
            s.mask &= !out;
            core.result.refused += u64::from(out.count());
            core.result.moved = core.result.moved.saturating_sub(u64::from(out.count()));
            end_busy(core.seg.space(), free, Span { block: id, mask: out });
        }
    }
    core.spans.retain(|s| !s.mask.is_empty());
}

/// A copy and the pages it serves.
type PageRun = (Pages, CopyRun);

/// Appends a copy, joining it to the one before where both sides continue.
fn push_run(out: &mut Vec<PageRun>, pages: Pages, from: CopyEnd, to: CopyEnd, grain: u64) {
    let bytes = pages.bytes();
    if let Some((last, run)) = out.last_mut() {
        let follows = |a: CopyEnd, b: CopyEnd| match (a, b) {
            (CopyEnd::Host(a), CopyEnd::Host(b)) => a.region == b.region && a.offset + run.bytes == b.offset,
            (CopyEnd::Frames { first: a, offset: x }, CopyEnd::Frames { first: b, offset: y }) => {
                u64::from(a) * grain + x + run.bytes == u64::from(b) * grain + y
            }
            (CopyEnd::Zero, CopyEnd::Zero) => true,
            _ => false,
        };
        if last.0.end == pages.0.start && follows(run.from, from) && follows(run.to, to) {
            run.bytes += bytes;
            last.0.end = pages.0.end;
            return;
        }
    }
    out.push((pages, CopyRun { from, to, bytes }));
}

/// Cuts `mask` of a block into runs of pages inside one grain each, with the grain's number.
pub(super) fn by_grain(mask: Mask, per: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    mask.runs().flat_map(move |r| {
        (r.start / per..r.end.div_ceil(per)).map(move |g| (g, r.start.max(g * per)..r.end.min((g + 1) * per)))
    })
}

/// As [`by_grain`], and in one piece of the host's storage each, whose byte offset comes with it.
pub(super) fn by_place(
    block: &Block,
    id: BlockId,
    mask: Mask,
    per: usize,
) -> impl Iterator<Item = (usize, Range<usize>, u64)> + '_ {
    by_grain(mask, per).flat_map(move |(g, r)| block.pieces(id, Mask::range(r)).map(move |(r, storage)| (g, r, storage)))
}

fn runs_to_device(free: &mut Free, core: &mut BatchState, mirror: &Arc<DeviceMirror>) -> Vec<PageRun> {
    let space = core.seg.space();
    let (slot, per) = (mirror.slot(), mirror.rec().pages_per_grain());
    let grain = per as u64 * PAGE;
    let mut out = Vec::new();
    let mut moved = 0;
    for s in &core.spans {
        let block = space.block(s.block);
        let body = block.lock(free);
        let first = s.block.first_page().0;
        // Valid there already: only the entry or the ownership changes.
        let copy = s.mask & !body.dev[slot].valid;
        // Bytes that the launch replaces need not travel; but frames come with somebody's old bytes, so they are cleared.
        let zero = if core.access.reads() { copy & body.hole } else { copy };
        moved += u64::from(copy.count());
        for (part, is_zero) in [(copy & !zero, false), (zero, true)] {
            for (g, r, storage) in by_place(block, s.block, part, per) {
                let pages = Pages(first + r.start as u64..first + r.end as u64);
                let from =
                    if is_zero { CopyEnd::Zero } else { CopyEnd::Host(HostAt { region: mirror.region(), offset: storage }) };
                let offset = (r.start - g * per) as u64 * PAGE;
                let to = CopyEnd::Frames { first: body.dev[slot].frames[g] - 1, offset };
                push_run(&mut out, pages, from, to, grain);
            }
        }
        // What lies beside them in a frame that gets its entry now is nobody's to read, but for a launch's own copies.
        let made = core.made.iter().filter(|e| e.block == s.block).fold(Mask::EMPTY, |m, e| m | e.mask);
        for (g, r) in by_grain(made & !s.mask & !(body.dev[slot].valid | body.dev[slot].private), per) {
            let pages = Pages(first + r.start as u64..first + r.end as u64);
            let offset = (r.start - g * per) as u64 * PAGE;
            push_run(&mut out, pages, CopyEnd::Zero, CopyEnd::Frames { first: body.dev[slot].frames[g] - 1, offset }, grain);
        }
    }
    let counters = &mirror.rec().counters;
    let bytes: u64 = out.iter().filter(|(_, r)| r.from != CopyEnd::Zero).map(|(_, r)| r.bytes).sum();
    counters.moved_in(core.cause, bytes);
    core.result.moved += moved;
    out
}

fn runs_to_host(free: &mut Free, core: &mut BatchState) -> Vec<(Arc<DeviceMirror>, Vec<PageRun>)> {
    let space = core.seg.space();
    let mut work = Vec::new();
    for m in space.devices() {
        let (slot, per) = (m.slot(), m.rec().pages_per_grain());
        let mut out = Vec::new();
        for s in &core.spans {
            let block = space.block(s.block);
            let body = block.lock(free);
            let first = s.block.first_page().0;
            for (g, r, storage) in by_place(block, s.block, s.mask & body.dev[slot].dirty, per) {
                let pages = Pages(first + r.start as u64..first + r.end as u64);
                let offset = (r.start - g * per) as u64 * PAGE;
                let from = CopyEnd::Frames { first: body.dev[slot].frames[g] - 1, offset };
                let to = CopyEnd::Host(HostAt { region: m.region(), offset: storage });
                push_run(&mut out, pages, from, to, per as u64 * PAGE);
            }
        }
        let bytes: u64 = out.iter().map(|(_, r)| r.bytes).sum();
        if bytes > 0 {
            m.rec().counters.moved_out(core.cause, bytes);
            core.result.moved += bytes / PAGE;
            work.push((m, out));
        }
    }
    work
}
