//! A device between the engine and another one, which makes calls fail when it is told to, and counts them: what tests of error paths
//! need, the same for every backend.
//!
//! **Guarantee:** what nobody asks for does not change: every call goes to the device beneath, with the same numbers, and its answer
//! comes back as it is. A call that fails on demand changes nothing, but for an edit: the entries before the failing one are made.
//!
//! **States:** those of each [`Trigger`]. Late points are on a queue of their own, behind those of the device, and are reached in
//! order. **Lock:** `late`, over list operations.

use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::kernel::{Code, KernelId};
use crate::{
    Caps, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, Edit, FaultBatch, Frames, HostAt, Launch, Memory,
    Outcome, Point, RegionId, Role, Ticket, Trigger,
};

/// The number that failures on demand carry: `EIO`.
const EIO: i32 = 5;
/// How long a wait is at most before late points are looked at again.
const PIECE: Duration = Duration::from_millis(5);

/// A device whose calls fail on demand.
///
/// ```
/// # fn with<D: sterna_hal::Device + 'static>(device: std::sync::Arc<D>) {
/// use sterna_hal::{Device, Injected};
///
/// let device = Injected::new(device, |_| {});
/// device.fail_copy(0);
/// // SAFETY: no runs, no places.
/// assert!(unsafe { device.copy(&[], &[]) }.is_err());
/// # }
/// ```
pub struct Injected {
    device: Arc<dyn Device>,
    caps: Caps,
    lose: Box<dyn Fn() + Send + Sync>,
    alloc: Trigger,
    copy: Trigger,
    copies: AtomicU64,
    edit: Trigger,
    submit: Trigger,
    waits: AtomicU64,
    loss: Trigger,
    lost: AtomicBool,
    point: Trigger,
    point_nanos: AtomicU64,
    copy_nanos: AtomicU64,
    counts: [AtomicU64; 5],
    late: Mutex<Late>,
}

impl std::fmt::Debug for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injected").field("device", self.device.info()).finish_non_exhaustive()
    }
}

/// Points that are reached later than those of the device which they stand for.
#[derive(Debug, Default)]
struct Late {
    issued: u64,
    reached: u64,
    /// The device's point, how much later, and when that was found out to be over.
    list: VecDeque<(Point, Duration, Option<Instant>)>,
}

#[derive(Clone, Copy)]
enum Count {
    Allocs,
    Copies,
    CopyBytes,
    Edits,
    Submits,
}

fn nanos(by: Duration) -> u64 {
    u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)
}

fn failed(call: &'static str) -> DeviceError {
    DeviceError::Driver { call, code: EIO, text: "a failure that a test asked for".into() }
}

impl Injected {
    /// Over `device`, which `lose` loses.
    pub fn new<D: Device + 'static>(device: Arc<D>, lose: fn(&D)) -> Self {
        let beneath = Arc::clone(&device);
        let lose = Box::new(move || lose(&beneath));
        let mut caps = device.caps().clone();
        caps.queues.push(Role::Copy);
        Self {
            device,
            caps,
            lose,
            alloc: Trigger::off(),
            copy: Trigger::off(),
            copies: AtomicU64::new(0),
            edit: Trigger::off(),
            submit: Trigger::off(),
            waits: AtomicU64::new(0),
            loss: Trigger::off(),
            lost: AtomicBool::new(false),
            point: Trigger::off(),
            point_nanos: AtomicU64::new(0),
            copy_nanos: AtomicU64::new(0),
            counts: [const { AtomicU64::new(0) }; 5],
            late: Mutex::default(),
        }
    }

    /// The `n`-th next allocation fails with `OutOfMemory`; 0 is the very next one. Once. Where frames are
    /// [`placed`](Caps::placed) reservations are what takes memory.
    pub fn fail_alloc(&self, n: u64) {
        self.alloc.arm(n);
    }

    /// The `n`-th next copy fails with a driver error; 0 is the very next one. Once.
    pub fn fail_copy(&self, n: u64) {
        self.copy.arm(n);
    }

    /// The next `n` copies fail with a driver error.
    pub fn fail_copies(&self, n: u64) {
        self.copies.store(n, SeqCst);
    }

    /// The `n`-th next entry handed to `edit` fails with a driver error, those before it in the same call having been made;
    /// 0 is the very next one. Once.
    pub fn fail_edit(&self, n: u64) {
        self.edit.arm(n);
    }

    /// The `n`-th next launch is refused with a driver error; 0 is the very next one. Once.
    pub fn fail_submit(&self, n: u64) {
        self.submit.arm(n);
    }

    /// The next `n` waits that would sleep fail with a driver error, at once.
    pub fn fail_waits(&self, n: u64) {
        self.waits.store(n, SeqCst);
    }

    /// From now on every copy's point is reached this much later than its bytes have arrived. Zero turns it off. Launches that are to
    /// come behind such a copy come behind its bytes.
    pub fn delay_copies(&self, by: Duration) {
        self.copy_nanos.store(nanos(by), SeqCst);
    }

    /// The point of the `n`-th next copy or launch is reached this much later than it could be; 0 is the very next one. Once.
    pub fn late_point(&self, n: u64, by: Duration) {
        self.point_nanos.store(nanos(by), SeqCst);
        self.point.arm(n);
    }

    /// The device is lost at the `n`-th next call that needs it, which is all but `free`, `unreserve`, and those that ask or
    /// wait; 0 is the very next one. An edit counts twice: before and after.
    pub fn lose_at(&self, n: u64) {
        self.loss.arm(n);
    }

    /// Loses the device.
    pub fn lose(&self) {
        self.lost.store(true, SeqCst);
        (self.lose)();
    }

    /// Whether it was lost by a call of [`lose`](Self::lose) or [`lose_at`](Self::lose_at).
    pub fn is_lost(&self) -> bool {
        self.lost.load(SeqCst)
    }

    /// Allocations that were asked for; reservations where frames are [`placed`](Caps::placed).
    pub fn allocs(&self) -> u64 {
        self.counted(Count::Allocs)
    }

    /// Copies that were accepted.
    pub fn copies(&self) -> u64 {
        self.counted(Count::Copies)
    }

    /// Bytes of the accepted copies.
    pub fn copy_bytes(&self) -> u64 {
        self.counted(Count::CopyBytes)
    }

    /// Entries that were made.
    pub fn edits(&self) -> u64 {
        self.counted(Count::Edits)
    }

    /// Launches that were accepted.
    pub fn submits(&self) -> u64 {
        self.counted(Count::Submits)
    }

    fn counted(&self, what: Count) -> u64 {
        self.counts[what as usize].load(SeqCst)
    }

    fn add(&self, what: Count, n: u64) {
        self.counts[what as usize].fetch_add(n, SeqCst);
    }

    /// The moment at which a device may be lost.
    fn moment(&self) {
        if self.loss.fires() {
            self.lose();
        }
    }

    fn fails_alloc(&self, requested: u64) -> Result<(), DeviceError> {
        self.add(Count::Allocs, 1);
        if self.alloc.fires() {
            let Memory { budget, in_use } = self.device.memory();
            return Err(DeviceError::OutOfMemory { requested, in_use, budget });
        }
        Ok(())
    }

    fn late(&self) -> MutexGuard<'_, Late> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the queue of late points.
    fn queue(&self) -> u32 {
        self.caps.queues.len() as u32 - 1
    }

    /// `point`, or one that is reached so much later.
    fn delayed(&self, point: Point, copy: bool) -> Point {
        let one = if self.point.fires() { self.point_nanos.load(SeqCst) } else { 0 };
        let by = one + if copy { self.copy_nanos.load(SeqCst) } else { 0 };
        if by == 0 {
            return point;
        }
        let mut late = self.late();
        late.issued += 1;
        late.list.push_back((point, Duration::from_nanos(by), None));
        Point { queue: self.queue(), value: late.issued }
    }

    /// The device's own points.
    fn own(&self, points: &[Point]) -> Vec<Point> {
        let late = self.late();
        points.iter().map(|p| if p.queue == self.queue() { late.beneath(p.value) } else { *p }).collect()
    }

    fn is_late_reached(&self, value: u64) -> bool {
        let mut late = self.late();
        while late.reached < value
            && let Some((point, by, over)) = late.list.front_mut()
        {
            if !self.device.reached(*point) || Instant::now() < *over.get_or_insert_with(|| Instant::now() + *by) {
                return false;
            }
            late.list.pop_front();
            late.reached += 1;
        }
        late.reached >= value
    }
}

impl Late {
    /// What late point `value` stands for.
    fn beneath(&self, value: u64) -> Point {
        let at = value.checked_sub(self.reached + 1).and_then(|n| self.list.get(n as usize));
        at.map_or(Point::REACHED, |(point, ..)| *point)
    }
}

// SAFETY: every answer is that of the device beneath; what is late or fails on demand is told later, or as a failure, and never as
// something that has not happened. Its own points are reached behind those of the device.
unsafe impl Device for Injected {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory(&self) -> Memory {
        self.device.memory()
    }

    fn identity(&self) -> u64 {
        self.device.identity()
    }

    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        self.moment();
        // SAFETY: the caller's, here and below.
        unsafe { self.device.attach_host(base, bytes, memfd) }
    }

    unsafe fn host_freed(&self, at: HostAt, bytes: u64) {
        // SAFETY: as above.
        unsafe { self.device.host_freed(at, bytes) };
    }

    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        self.moment();
        if self.caps.placed {
            self.fails_alloc(bytes)?;
        }
        self.device.reserve(bytes)
    }

    unsafe fn unreserve(&self, range: DevRange) {
        // SAFETY: as above.
        unsafe { self.device.unreserve(range) }
    }

    fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        self.moment();
        if grains > 0 && !self.caps.placed {
            self.fails_alloc(u64::from(grains) * self.caps.grain)?;
        }
        self.device.alloc(place, grains, out)
    }

    unsafe fn free(&self, frames: &[Frames]) {
        // SAFETY: as above.
        unsafe { self.device.free(frames) }
    }

    fn frames_base(&self) -> Option<NonNull<u8>> {
        self.device.frames_base()
    }

    fn frames_file(&self) -> Option<i32> {
        self.device.frames_file()
    }

    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError> {
        self.moment();
        let fails = edits.iter().position(|_| self.edit.fires());
        let before = &edits[..fails.unwrap_or(edits.len())];
        // SAFETY: as above.
        let point = unsafe { self.device.edit(before, &self.own(after)) }?;
        self.add(Count::Edits, before.len() as u64);
        if fails.is_some() {
            while let Ok(false) = self.device.wait(point, Duration::from_secs(1)) {}
            return Err(failed("edit"));
        }
        self.moment();
        Ok(point)
    }

    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError> {
        self.moment();
        if self.copy.fires() || self.copies.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(failed("copy"));
        }
        // SAFETY: as above.
        let point = unsafe { self.device.copy(runs, &self.own(after)) }?;
        self.add(Count::Copies, 1);
        self.add(Count::CopyBytes, runs.iter().map(|r| r.bytes).sum());
        Ok(self.delayed(point, true))
    }

    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        self.moment();
        // SAFETY: as above.
        unsafe { self.device.load(code) }
    }

    unsafe fn unload(&self, kernel: KernelId) {
        // SAFETY: the caller's.
        unsafe { self.device.unload(kernel) };
    }

    fn fits(&self, kernel: KernelId, grid: [u32; 3]) -> Result<(), DeviceError> {
        self.device.fits(kernel, grid)
    }

    unsafe fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError> {
        self.moment();
        if self.submit.fires() {
            return Err(failed("submit"));
        }
        // SAFETY: as above.
        let ticket = unsafe { self.device.submit(launch, &self.own(after)) }?;
        self.add(Count::Submits, 1);
        Ok(Ticket::new(ticket.id(), self.delayed(ticket.point(), false)))
    }

    unsafe fn outcome(&self, done: Ticket, missed: &mut FaultBatch) -> Outcome {
        let point = self.own(&[done.point()])[0];
        // SAFETY: as above.
        unsafe { self.device.outcome(Ticket::new(done.id(), point), missed) }
    }

    fn reached(&self, point: Point) -> bool {
        if point.queue == self.queue() { self.is_late_reached(point.value) } else { self.device.reached(point) }
    }

    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        if self.reached(point) {
            return Ok(true);
        }
        if self.waits.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(failed("wait"));
        }
        if point.queue != self.queue() {
            return self.device.wait(point, timeout);
        }
        let end = Instant::now().checked_add(timeout);
        loop {
            if self.is_late_reached(point.value) {
                return Ok(true);
            }
            let left = end.map_or(PIECE, |e| e.saturating_duration_since(Instant::now()).min(PIECE));
            if left.is_zero() {
                return Ok(false);
            }
            // What the device knows of it, a loss above all.
            let beneath = self.late().list.front().map_or(Point::REACHED, |(p, ..)| *p);
            if self.device.wait(beneath, left)? {
                std::thread::sleep(left.min(Duration::from_micros(200)));
            }
        }
    }

    fn window(&self) -> Option<Range<usize>> {
        self.device.window()
    }
}
