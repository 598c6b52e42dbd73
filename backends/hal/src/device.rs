//! The device trait.

use std::ops::Range;
use std::ptr::NonNull;
use std::time::Duration;

use crate::kernel::{Code, KernelId, Mapping};
use crate::{
    Access, Caps, CopyRun, DevAddr, DevRange, DeviceError, DeviceInfo, Edit, FaultBatch, Frames, HostAt, Memory, Outcome,
    Point, RegionId, Ticket,
};

/// One argument of a launch.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A range of the device's address space.
    Range {
        /// Where it is. Only what the launch's groups may touch of it need be reserved: the rest of the range may lie where
        /// nothing, or something else, is, and its start may have wrapped around.
        at: DevRange,
        /// Bytes an element.
        elem: u64,
        /// What the kernel may do with it.
        access: Access,
        /// Which of its elements each group gets.
        mapping: Mapping,
    },
    /// Bytes handed over by value.
    Plain(&'a [u8]),
}

impl Arg<'_> {
    /// The addresses of it that `groups` may touch, in one stretch; `None` for a plain value, and where there are none.
    #[must_use]
    pub fn touched(&self, groups: Groups<'_>) -> Option<DevRange> {
        let Self::Range { at, elem, mapping, .. } = *self else { return None };
        let (first, last) = match groups {
            Groups::All => return Some(at),
            Groups::Range(first, end) => (first, end.checked_sub(1).filter(|last| *last >= first)?),
            Groups::List(list) => (*list.iter().min()?, *list.iter().max()?),
        };
        let len = at.bytes / elem.max(1);
        let (start, end) = (mapping.touched(u64::from(first), len).start, mapping.touched(u64::from(last), len).end);
        let bytes = end.checked_sub(start).filter(|n| *n > 0)? * elem;
        Some(DevRange { at: DevAddr(at.at.0.wrapping_add(start * elem)), bytes })
    }
}

/// Which groups of the grid a launch runs. The kernel always sees the whole grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups<'a> {
    /// Every group.
    All,
    /// Groups with linear numbers from the first up to, but not including, the second.
    Range(u32, u32),
    /// These groups, by linear number (replay after [`Outcome::Missed`]).
    List(&'a [u32]),
}

/// A kernel with its arguments. Everything it needs is copied before [`Device::submit`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// A kernel loaded on this device.
    pub kernel: KernelId,
    /// Workgroups in x, y and z, each at least 1.
    pub grid: [u32; 3],
    /// The part of the grid to run.
    pub groups: Groups<'a>,
    /// The arguments, in the kernel's order.
    pub args: &'a [Arg<'a>],
}

/// A device, as the engine sees it. Object-safe.
///
/// **Threads.** Every method may be called from any thread at any time. None is called from a signal handler; what
/// [`frames_base`](Self::frames_base) returned may be *read* from one.
///
/// **A backend never** touches the program's window into shared memory, calls back into the runtime, installs a signal
/// handler, or blocks, except in [`wait`](Self::wait); a device with one queue for copies and launches may wait in
/// [`submit`](Self::submit) for the copies in `after`. A copy small enough that handing it to another thread would cost more
/// than doing it may be done before `copy` returns.
///
/// **Unsafe methods** read and write memory by number, or take what is another's. Their callers are the engine's `hmm` modules alone.
///
/// # Safety
/// Who implements it promises what its methods say, since the engine and the references that it hands out rest on every answer:
/// what [`frames_base`](Self::frames_base), [`frames_file`](Self::frames_file) and [`window`](Self::window) give is there for as long
/// as the device exists and is what they say; [`reserve`](Self::reserve) and [`alloc`](Self::alloc) give nothing twice; a
/// [`caps`](Self::caps) never changes; a point is reached, and a launch's end told, only when nothing that was asked for before it
/// touches memory any more, and a loss is told to who waits for a launch only when no kernel of it goes on. The conformance suite
/// (feature `conformance`) checks what can be checked.
pub unsafe trait Device: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// What it can do.
    fn caps(&self) -> &Caps;
    /// Its memory now.
    fn memory(&self) -> Memory;
    /// Which device it is: equal for two values through which one and the same is driven, and for no others that exist at once. The
    /// engine drives a device once at a time and refuses it, and whatever is equal to it, a second time. What wraps a device hands its
    /// number through; every other device is itself, which is what this says where it is not implemented.
    fn identity(&self) -> u64 {
        std::ptr::from_ref(self).addr() as u64
    }

    /// Announces host storage, once. The device may import it piecewise, lazily, or stage through memory of its own.
    ///
    /// # Safety
    /// `bytes` bytes at `base` are a shared mapping of `memfd` from offset 0, readable and writable for as long as the device
    /// exists, and touched by the engine only. Whoever frees storage of the file says so to [`host_freed`](Self::host_freed).
    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError>;

    /// Says that the storage of `bytes` bytes at `at` was freed: what comes there later are other pages of memory. A device that keeps
    /// hold of pages themselves, as imports of most drivers do, lets go of these, or it would use pages that are no part of the file
    /// any more; one that goes by the mapping has nothing to do. Called after the storage has gone and before anybody names it in
    /// a copy or an entry again; copies of neighbouring bytes may be under way. A system that moves pages by itself, or at
    /// `MADV_COLLAPSE`, needs no such word: it tells the driver, or leaves alone what the driver holds.
    ///
    /// # Safety
    /// The storage is of a region of this device, or of none, and no copy or entry that names it is under way.
    unsafe fn host_freed(&self, at: HostAt, bytes: u64);

    /// Addresses for one segment of `bytes` bytes, aligned to 2 MiB, or to the power of two that is not less than `bytes` nor the grain
    /// where that is less, with every entry absent. Takes no memory, except where
    /// frames are [`placed`](crate::Caps::placed): there it takes all of it, may say [`DeviceError::OutOfMemory`], and aligns to the grain.
    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError>;
    /// Gives addresses back.
    ///
    /// # Safety
    /// `range` came from `reserve` on this device and was not given back; no unfinished launch may touch it.
    unsafe fn unreserve(&self, range: DevRange);

    /// Frames meant for `place` (that place's own, where frames are [`placed`](crate::Caps::placed)), appended to `out` in as few stretches as
    /// possible. All or nothing. What the frames contain is whatever was there before.
    fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError>;
    /// Gives frames back. Infallible, any thread.
    ///
    /// # Safety
    /// Each grain came from `alloc` on this device, was not given back, and no entry names it.
    unsafe fn free(&self, frames: &[Frames]);
    /// Where frame 0 starts in this process, if all frames can be read by plain loads at `base + number · grain`.
    /// Lets a fault handler bring a page home without calling the driver. Plain stores are allowed there only on devices that
    /// are [`coherent`](crate::Caps::coherent).
    fn frames_base(&self) -> Option<NonNull<u8>> {
        None
    }

    /// Where [`Caps::coherent`](crate::Caps::coherent): a descriptor whose byte `number · grain` is the first of frame `number`,
    /// for as long as the device exists. A shared mapping of it shows what the device's own accesses see, at once and without
    /// further calls; the device stays its owner, and whoever wants to keep it duplicates it. None on every other device.
    fn frames_file(&self) -> Option<i32> {
        None
    }

    /// Page-table edits, in order, after the points in `after`. When the returned point is reached, no access through a
    /// replaced entry can happen any more, and later launches see the new entries.
    ///
    /// # Safety
    /// Ranges are reserved, frames allocated, host places attached. On devices with [`Absent::Undefined`](crate::Absent)
    /// `after` holds the last launch that may use a changed range.
    ///
    /// # Errors
    /// Edits before the failing one may have been made; the caller repeats or undoes them all.
    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError>;
    /// Copies, after the points in `after`. Runs are as few as the engine could make them; their order is free.
    ///
    /// # Safety
    /// Every place is allocated or attached, nobody else writes a source or touches a destination until the point is reached.
    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError>;

    /// Makes a kernel ready. The same code again gives the same id, until it is unloaded. Clones of `code` that the device keeps are
    /// [detached](Code::detached).
    ///
    /// # Safety
    /// The code is a [`Kernel`](crate::kernel::Kernel)'s, whose maker has promised what its forms do and that they are whole: drivers
    /// believe the modules that they are handed.
    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError>;
    /// Lets go of what `load` made. Infallible, any thread, also of a lost device; the number may stand for another kernel
    /// afterwards. A device whose kernels cost nothing to keep need not do anything.
    ///
    /// # Safety
    /// The number came from `load` on this device and was not unloaded; no launch of the kernel is unfinished or has an outcome
    /// that was not asked for, and none is submitted until it has been loaded again.
    unsafe fn unload(&self, kernel: KernelId) {
        let _ = kernel;
    }
    /// Refuses a grid that this device could never run, for a kernel that was loaded: before anything is moved for it.
    ///
    /// # Errors
    /// The grid is beyond the device's limits; the text says which.
    fn fits(&self, kernel: KernelId, grid: [u32; 3]) -> Result<(), DeviceError> {
        let _ = (kernel, grid);
        Ok(())
    }
    /// Starts a launch after the points in `after`, all of this device: order between devices is the runtime's.
    /// Launches of one device run in the order of their submission.
    ///
    /// # Safety
    /// The arguments fit the kernel (count, kinds, sizes), what the groups touch of their ranges is reserved until the point is
    /// reached, and nobody else touches what they name in a way that conflicts with their access. The device is not dropped before:
    /// what a kernel that still runs then finds is undefined.
    unsafe fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError>;
    /// How a launch ended; asked once, when its point is reached. Faults of a launch that missed are appended to `missed`.
    ///
    /// # Safety
    /// `done` is what [`submit`](Self::submit) gave the caller, and this is the one time that it is asked: the answer is kept for
    /// whoever lowers the launch's gates, and is gone afterwards.
    unsafe fn outcome(&self, done: Ticket, missed: &mut FaultBatch) -> Outcome;

    /// Whether a point is reached. An atomic load or one cheap call.
    fn reached(&self, point: Point) -> bool;
    /// Waits until a point is reached or `timeout` has passed; says whether it is reached. The only blocking method.
    ///
    /// # Errors
    /// [`Lost`](DeviceError::Lost) for a launch only when no kernel of the device goes on: whoever is told lowers the launch's gates.
    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError>;

    /// [`Absent::Faults`](crate::Absent): the addresses of this process where its accesses fault, equal to its device
    /// addresses. The runtime owns the signal (SIGSEGV), serves the fault, and resumes the thread.
    fn window(&self) -> Option<Range<usize>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_touch_their_stretch() {
        let range =
            |mapping| Arg::Range { at: DevRange { at: DevAddr(1000), bytes: 400 }, elem: 4, access: Access::Read, mapping };
        let touched = |mapping, groups| range(mapping).touched(groups).map(|r| (r.at.0, r.bytes));
        let each = Mapping::Each { chunk: 30 };
        assert_eq!(touched(each, Groups::All), Some((1000, 400)));
        assert_eq!(touched(each, Groups::Range(1, 2)), Some((1120, 120)));
        assert_eq!(touched(each, Groups::Range(2, 4)), Some((1240, 160)));
        assert_eq!(touched(each, Groups::Range(2, 2)), None);
        assert_eq!(touched(each, Groups::List(&[3, 1])), Some((1120, 280)));
        assert_eq!(touched(each, Groups::List(&[])), None);
        assert_eq!(touched(Mapping::Halo { chunk: 30, reach: 5 }, Groups::Range(1, 2)), Some((1100, 160)));
        assert_eq!(touched(Mapping::Whole, Groups::Range(1, 2)), Some((1000, 400)));
        assert_eq!(Arg::Plain(&[]).touched(Groups::All), None);
    }
}
