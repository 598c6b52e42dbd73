//! What all handles are: a stretch of a segment that derefs to a slice, and the gate in front of it.

use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytemuck::Pod;

use crate::hmm::discard::{discard, make_way};
use crate::hmm::fork;
use crate::hmm::gate::Gate;
use crate::hmm::lock::Free;
use crate::hmm::migrate::{self, Asks, Home, Moved};
use crate::hmm::os;
use crate::hmm::pin::Pin;
use crate::hmm::source;
use crate::hmm::{BLOCK, Mechanism, PAGE, Pages, Segment};
use crate::runtime::Runtime;
use crate::stats::Cause;
use crate::{Device, Error};

/// What a handle or view stands for. On the heap, so that the cold path gets an address that does not lead into the handle.
#[derive(Debug)]
pub(crate) struct SharedBytes {
    // Dropped before the runtime: a segment gives its device memory back.
    pub(crate) seg: Arc<Segment>,
    /// Bytes of the segment.
    pub(crate) bytes: Range<u64>,
    pub(crate) rt: Runtime,
    /// It owns these bytes, and others own other bytes of the segment, which outlives it.
    pub(crate) part: bool,
}

impl Drop for SharedBytes {
    fn drop(&mut self) {
        if !self.part || fork::forked() {
            return;
        }
        self.seg.extent.vacate(&self.bytes);
        let pages = self.seg.pages_of(&self.whole_pages(&self.bytes));
        if !pages.is_empty() {
            // Not here: a launch may still be using them.
            self.rt.0.sched.discard(Arc::clone(&self.seg), pages, self.bytes.clone());
        }
    }
}

/// The part of handles and views that `deref` needs.
pub(crate) struct Handle<T> {
    pub(super) ptr: NonNull<T>,
    pub(super) len: usize,
    /// A launch that writes may be unfinished. Stored only through `&mut`.
    written: u32,
    /// A launch that reads, or a move, may be unfinished.
    read: AtomicU32,
    gate: NonNull<Gate>,
    pub(crate) core: Box<SharedBytes>,
    own: PhantomData<T>,
}

// SAFETY: the handle owns its range as a `Vec<T>` or a borrow of one does; the gate is atomic words that live for ever.
unsafe impl<T: Send> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Handle<T> {}

impl<T: Pod> Handle<T> {
    pub(super) fn new(core: SharedBytes, launched: bool) -> Self {
        let at = core.seg.offset() + core.bytes.start;
        debug_assert!(at.is_multiple_of(align_of::<T>() as u64), "an allocation of elements that cannot be aligned");
        Self {
            ptr: core.seg.space().window_at(at).cast(),
            len: ((core.bytes.end - core.bytes.start) / size_of::<T>() as u64) as usize,
            written: u32::from(launched),
            read: AtomicU32::new(u32::from(launched)),
            gate: NonNull::from(&core.seg.rec().gate),
            core: Box::new(core),
            own: PhantomData,
        }
    }

    #[inline]
    pub(super) fn get(&self) -> &[T] {
        // SAFETY: the record is never unmapped.
        if self.written != 0 && !unsafe { self.gate.as_ref() }.is_readable() {
            settle(&*self.core, false);
        }
        // SAFETY: `ptr..len` is the handle's part of the window, aligned for `T` (`Runtime::bytes_of`). No device writes any of it before
        // a later `&mut`: launches that do need `&mut`, and those before have ended, with no kernel left at work. An absent page comes
        // back with the same bytes when it is touched. Where no touch is noticed (mechanism `none`) the bytes are at home: launches
        // and prefetches alone take newer ones away, they raise the gate, and whoever finds it raised brings them back first (`settle`);
        // drivers are refused (`hmm::entry`).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    #[inline]
    pub(super) fn get_mut(&mut self) -> &mut [T] {
        if self.written | *self.read.get_mut() != 0 {
            self.clear();
        }
        // SAFETY: as above, and no device reads any of it either; with mechanism `none` no device has a copy that would be out of date.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn clear(&mut self) {
        // SAFETY: the record is never unmapped.
        if !unsafe { self.gate.as_ref() }.is_writable() {
            settle(&*self.core, true);
        }
        self.written = 0;
        *self.read.get_mut() = 0;
    }

    /// A launch that reads is about to be recorded.
    pub(crate) fn note_read(&self) {
        if self.read.load(Ordering::Relaxed) == 0 {
            self.read.store(1, Ordering::Relaxed);
        }
    }

    /// A launch that writes is about to be recorded.
    pub(crate) fn note_write(&mut self) {
        self.written = 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the segment that elements `range` are.
    pub(crate) fn part(&self, range: &Range<usize>) -> Range<u64> {
        let (start, size) = (self.core.bytes.start, size_of::<T>() as u64);
        start + range.start as u64 * size..start + range.end as u64 * size
    }

    pub(crate) fn resolve(&self, range: impl RangeBounds<usize>) -> Result<Range<usize>, Error> {
        let start = match range.start_bound() {
            Bound::Included(s) => *s,
            Bound::Excluded(s) => s.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(e) => e.saturating_add(1),
            Bound::Excluded(e) => *e,
            Bound::Unbounded => self.len,
        };
        if start > end || end > self.len { Err(Error::Range { start, end, len: self.len }) } else { Ok(start..end) }
    }

    /// Gives the elements from `len` on away, to the answer.
    pub(crate) fn cut(&mut self, len: usize) -> Handle<T> {
        let range = len..self.len;
        let core =
            SharedBytes { seg: Arc::clone(&self.core.seg), bytes: self.part(&range), rt: self.core.rt.clone(), part: false };
        self.core.bytes.end = core.bytes.start;
        self.len = len;
        // A launch may be unfinished: each has its own gate.
        self.note_write();
        Self::new(core, true)
    }

    pub(super) fn view(&self, range: &Range<usize>) -> Self {
        let core =
            SharedBytes { seg: Arc::clone(&self.core.seg), bytes: self.part(range), rt: self.core.rt.clone(), part: false };
        // A launch may be unfinished: the view's gate decides, not the parent's.
        Self::new(core, true)
    }

    pub(super) fn pages(&self) -> Pages {
        self.core.seg.pages_of(&self.core.bytes)
    }

    /// The pages of the grains that hold nothing but this handle's bytes; the end of the allocation counts as a border.
    pub(super) fn whole_grains(&self, grain: u64) -> Pages {
        let Range { start, end } = self.core.bytes;
        let end = if end == self.core.seg.extent.used() { end } else { end / grain * grain };
        self.core.seg.pages_of(&(start.next_multiple_of(grain)..end))
    }

    pub(super) fn try_read(&self) -> Result<&[T], Error> {
        fork::check()?;
        self.core.settle(false)?;
        // SAFETY: as in `get`.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) })
    }

    pub(super) fn prefetch(&self, to: Option<&Device>) {
        if fork::forked() || hal_in_kernel() {
            return;
        }
        self.note_read();
        let target = to.map(|d| Arc::clone(&d.0)).filter(|m| self.core.rt.0.devices.iter().any(|x| Arc::ptr_eq(x, m)));
        if to.is_some() && target.is_none() {
            return; // another runtime's device: a hint never fails
        }
        let pages = match &target {
            // No fault tells apart what a grain holds beside this handle's bytes.
            Some(m) if self.core.seg.space().mechanism() == Mechanism::None => self.whole_grains(m.caps().grain),
            _ => self.pages(),
        };
        if !pages.is_empty() {
            self.core.rt.0.sched.prefetch(Arc::clone(&self.core.seg), pages, target);
        }
    }

    pub(crate) fn replace(&mut self, range: Range<usize>, fill: impl FnOnce(&mut [T])) -> Result<(), Error> {
        fork::check()?;
        if hal_in_kernel() {
            return Err(Error::InsideKernel);
        }
        let part = self.part(&range);
        let core = &self.core;
        core.seg.ask_for_storage(&part)?;
        let mut free = Free::at_entry();
        core.wait(&mut free, true);
        if core.seg.space().mechanism() == Mechanism::None {
            core.rt.0.sched.forget_moves(&core.seg, &core.seg.pages_of(&part)); // nothing would notice them under way
        }
        let pages = core.seg.pages_of(&part);
        let whole = core.whole_pages(&part);
        let whole = core.seg.pages_of(&(whole.start..whole.end.max(whole.start)));
        // A launch on a neighbour, or a move asked for, may need pages meanwhile: then they are written through the window.
        let quiet = !core.seg.is_altered() && part == (0..core.seg.bytes()) && !core.seg.is_awaited();
        let filling = if quiet { Pin::filling(&mut free, &core.seg, (&pages, &whole))? } else { None };
        if filling.is_none() {
            let home = Home { asks: Asks::Not, ..core.way_home(true) }; // that was asked for
            make_way(&mut free, &core.seg, (&pages, &whole), home)?;
        }
        core.seg.forgive(&mut free, &pages);
        let at = if filling.is_some() {
            core.seg.space().host.make_huge(core.seg.space(), &mut free, &core.seg, &pages);
            core.seg.space().direct_at(core.seg.offset() + part.start)
        } else {
            core.seg.space().window_at(core.seg.offset() + part.start)
        };
        // SAFETY: this handle's range, aligned as its elements; no launch uses it, as was waited for, and none can be asked for while
        // `&mut self` lives. Through the window a page that is taken away meanwhile comes home at a touch. Where no touch is noticed
        // (mechanism `none`) nobody takes one away: launches and prefetches need a handle of these bytes, those that were asked for are
        // done, other owners' are for whole grains of other bytes, and drivers are refused (`hmm::entry`). Through the runtime's view,
        // which no fault watches, `filling` keeps the pages at home: every migration, whoever asks for it, refuses them.
        fill(unsafe { std::slice::from_raw_parts_mut(at.cast::<T>().as_ptr(), range.len()) });
        drop(filling);
        core.seg.heal(&part);
        Ok(())
    }
}

fn hal_in_kernel() -> bool {
    sterna_hal::in_kernel()
}

impl SharedBytes {
    /// Waits for unfinished launches that conflict with a host access to this range.
    pub(super) fn wait(&self, free: &mut Free, write: bool) {
        #[cfg(feature = "planted")]
        let write = write && !crate::hmm::planted::on(&crate::hmm::planted::GATE_DOWN_FOR_READS);
        os::accept_faults();
        self.seg.wait_unused(free, &self.bytes, write);
    }

    /// Waits for the launches that use `bytes`, has moves asked for leave their pages alone, and drops the contents of the whole pages in them;
    /// the pages are the answer.
    pub(crate) fn discard(&self, bytes: &Range<u64>) -> Result<Range<u64>, Error> {
        let mut free = Free::at_entry();
        self.seg.wait_unused(&mut free, bytes, true);
        let inner = self.whole_pages(bytes);
        if inner.start < inner.end {
            let pages = self.seg.pages_of(&inner);
            self.rt.0.sched.forget_moves(&self.seg, &pages);
            discard(&mut free, &self.seg, &pages)?;
        }
        Ok(inner)
    }

    /// The part of `bytes` that is whole pages. Behind the end of the allocation is nothing but what its devices' grains hold.
    pub(super) fn whole_pages(&self, bytes: &Range<u64>) -> Range<u64> {
        let all = u64::from(self.seg.blocks()) * BLOCK;
        let end = if bytes.end >= self.seg.extent.used() { all } else { bytes.end / PAGE * PAGE };
        bytes.start.next_multiple_of(PAGE)..end
    }

    /// Reads what is still in a file behind the range.
    pub(super) fn fetch(&self) -> Result<(), Error> {
        if hal_in_kernel() {
            return Err(Error::InsideKernel);
        }
        source::fetch_file(&mut Free::at_entry(), &self.seg, &self.seg.pages_of(&self.bytes))
    }

    /// Makes the range fit for a host access, or says why it cannot be.
    pub(crate) fn settle(&self, write: bool) -> Result<(), Error> {
        if hal_in_kernel() {
            return Err(Error::InsideKernel);
        }
        let mut free = Free::at_entry();
        self.wait(&mut free, write);
        if let Some(e) = self.seg.taint(&self.bytes) {
            return Err(e);
        }
        if self.seg.space().mechanism() == Mechanism::None {
            let pages = self.seg.pages_of(&self.bytes);
            if write {
                self.rt.0.sched.forget_moves(&self.seg, &pages);
            }
            self.home(&mut free, &pages, write)?.complete(&self.seg, &pages)?;
            if self.bytes == (0..self.seg.extent.used()) {
                self.seg.rec().gate.all_home(write);
            }
        }
        Ok(())
    }

    /// Copies home what a device alone has of the range, so that it outlives the device. A loss that nobody has met yet is met here.
    pub(super) fn save(&self) -> Result<(), Error> {
        if !self.seg.space().host.faults() {
            return Ok(()); // it has come already
        }
        let pages = self.seg.pages_of(&self.bytes);
        let home = Home { map: false, ..Home::SHARED };
        migrate::bring_home(&mut Free::at_entry(), &self.seg, &pages, home, Cause::HostAccess)?
            .complete(&self.seg, &pages)?;
        Ok(())
    }

    /// How pages come home for reading, or for writing.
    pub(super) fn way_home(&self, write: bool) -> Home {
        // Where host faults are served a mapped page has no replica, unless its stores are watched; without them the gate ends
        // replicas before a write.
        match (write, self.seg.space().mechanism()) {
            (false, Mechanism::None) => Home::SHARED,
            (false, _) => Home::READING,
            (true, _) => Home::EXCLUSIVE,
        }
    }

    /// Brings pages home: for reading, or for writing.
    pub(crate) fn home(&self, free: &mut Free, pages: &Pages, write: bool) -> Result<Moved, Error> {
        migrate::bring_home(free, &self.seg, pages, self.way_home(write), Cause::HostAccess)
    }

    /// Brings bytes home and keeps them there.
    pub(super) fn pin(&self, bytes: &Range<u64>, write: bool) -> Result<Pin, Error> {
        Pin::long(&mut Free::at_entry(), &self.seg, &self.seg.pages_of(bytes), self.way_home(write))
    }
}

/// The cold path of `deref`: waits, and in mode `none` brings the range home.
///
/// # Panics
/// With the error of a failed launch that would have written some of it, or of a lost device; inside a kernel.
#[cold]
#[inline(never)]
fn settle(core: *const SharedBytes, write: bool) {
    if fork::forked() {
        return; // the load itself ends the child
    }
    // SAFETY: the caller's own box, alive for the call.
    if let Err(e) = unsafe { &*core }.settle(write) {
        panic!("sterna: {e}");
    }
}
