//! Segments whose bytes are a file's: filled by reading at the first touch of either side, written by [`Segment::flush`].
//!
//! **Guarantee.** A page reads as the file did when it was first touched, and as what was stored since. No file is mapped: its
//! changes by others are not seen, and stores reach it by a flush only.
//!
//! **States.** A page is `filed` until it has been read, and then like any other. Filed pages are out of the window, on no
//! device, and without storage. Whoever needs one reads it: migrations and launches on their own thread, the host's faults on the
//! service thread, since a handler does not wait for a disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::addr::{Mask, PAGE, Pages, Span};
use super::lock::Free;
use super::migrate::{self, Home};
use super::segment::{Kind, Segment};
use super::space::Space;
use crate::Error;
use crate::stats::Cause;

/// Where a segment's bytes come from.
#[derive(Debug)]
pub(crate) struct Backing {
    file: File,
    /// Bytes of the file before the segment's first.
    offset: u64,
    /// Stores are written back.
    shared: bool,
}

impl Backing {
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }
}

impl Segment {
    /// A segment of `bytes` bytes that are those of `file` from `offset` on; zeros behind its end. With `shared` they are written
    /// back by [`flush`](Self::flush), and do not migrate; without, stores stay in memory.
    ///
    /// # Errors
    /// As [`Segment::new`]; the system refuses what watching its pages needs, or to read the file, with mechanism `none`.
    pub fn of_file(space: &'static Space, file: File, offset: u64, bytes: u64, shared: bool) -> Result<Arc<Self>, Error> {
        let seg = Self::with(space, bytes, Kind::File(Backing { file, offset, shared }))?;
        let mut free = Free::at_entry();
        for (id, mask) in seg.pages().blocks() {
            let block = seg.claim(id);
            {
                let mut body = block.lock(&mut free);
                body.filed |= mask;
                body.busy |= mask;
            }
            let span = Span { block: id, mask };
            let first = id.first_page().0;
            let runs: Vec<Pages> = mask.runs().map(|r| Pages(first + r.start as u64..first + r.end as u64)).collect();
            let done = space.host.revoke(space, &mut free, &seg, &[span], &runs);
            migrate::release(space, &mut free, span);
            done?;
        }
        if !space.host.faults() {
            fill(&mut free, &seg, &seg.pages())?;
        }
        Ok(seg)
    }

    /// Writes what was touched of a shared file's segment to the file; devices' stores come home first. Does nothing for others.
    ///
    /// # Errors
    /// The file cannot be written; a device that fails.
    pub fn flush(self: &Arc<Self>) -> Result<(), Error> {
        let Kind::File(Backing { file, offset, shared: true }) = self.kind() else { return Ok(()) };
        let mut free = Free::at_entry();
        let space = self.space();
        migrate::bring_home(&mut free, self, &self.pages(), Home { map: false, ..Home::SHARED }, Cause::HostAccess)?;
        for id in self.claimed() {
            let block = space.block(id);
            let touched = self.limit(id.0 - self.first().0) & !block.lock(&mut free).filed;
            for (r, storage) in block.pieces(id, touched) {
                let start = id.offset() - self.offset() + r.start as u64 * PAGE;
                let len = (r.len() as u64 * PAGE).min(self.bytes().saturating_sub(start)) as usize;
                let at = space.view_at(storage).as_ptr();
                // SAFETY: the segment's own storage in the view. The program may store to it meanwhile: the kernel's view of bytes
                // that change is its own business.
                let bytes = unsafe { std::slice::from_raw_parts(at, len) };
                file.write_all_at(bytes, offset + start).map_err(|e| Error::driver("pwrite", &e))?;
            }
        }
        Ok(())
    }
}

/// Reads those of `pages` that nobody has touched yet. Waits for whoever reads the same, which depends on nobody.
pub(crate) fn fill(free: &mut Free, seg: &Segment, pages: &Pages) -> Result<(), Error> {
    let Kind::File(backing) = seg.kind() else { return Ok(()) };
    let space = seg.space();
    for (id, mask) in pages.blocks() {
        let block = seg.claim(id);
        loop {
            let (mine, epoch) = {
                let mut body = block.lock(free);
                let want = mask & body.filed;
                let mine = want & !body.busy;
                body.busy |= mine;
                (mine, (!want.is_empty()).then(|| block.epoch()))
            };
            let Some(epoch) = epoch else { break };
            if mine.is_empty() {
                block.wait_epoch(epoch, Some(Duration::from_millis(10)));
                continue;
            }
            let read = block.pieces(id, mine).try_for_each(|(r, storage)| {
                let start = id.offset() - seg.offset() + r.start as u64 * PAGE;
                let at = space.view_at(storage).as_ptr();
                // SAFETY: the segment's own storage; the pages are busy and on no side.
                read_zeros_behind(
                    &backing.file,
                    unsafe { std::slice::from_raw_parts_mut(at, r.len() * PAGE as usize) },
                    backing.offset + start,
                )
            });
            {
                let mut body = block.lock(free);
                if read.is_ok() {
                    body.filed &= !mine;
                    body.hole &= !mine;
                }
            }
            migrate::release(space, free, Span { block: id, mask: mine });
            read.map_err(|e| Error::driver("pread", &e))?;
        }
    }
    Ok(())
}

/// The pages of `mask` could not be read: a touch of them has nothing to show.
pub(crate) fn unreadable(free: &mut Free, seg: &Segment, id: super::addr::BlockId, mask: Mask) {
    let mut body = seg.claim(id).lock(free);
    let gone = mask & body.filed;
    body.filed &= !gone;
    body.gone |= gone;
    body.lost |= gone;
}

fn read_zeros_behind(file: &File, mut to: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !to.is_empty() {
        match file.read_at(to, at) {
            Ok(0) => {
                to.fill(0);
                return Ok(());
            }
            Ok(n) => {
                to = &mut to[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
