//! Storage that is freed under a device which holds on to pages, as drivers do with memory that they import.
//!
//! The device here is a CPU device that takes hold of the pages of each stretch that it first copies, by putting them into a pipe: that
//! is a reference to the pages themselves, which stay with it when the file gets others in their place. After each copy it compares
//! what it holds with what the storage has. Other bytes mean that it holds pages which are no part of the storage any more: a driver
//! would have copied from or to those.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use sterna::cpu::CpuDevice;
use sterna::hal::kernel::Code;
use sterna::hal::{
    Caps, CopyEnd, CopyRun, DevAddr, DevRange, Device, DeviceError, DeviceInfo, Edit, FaultBatch, Frames, HostAt, KernelId,
    Launch, Memory, Outcome, Point, RegionId, Ticket,
};
use sterna::{Runtime, Shared};

/// What one pipe holds, in bytes: the most that everybody may have.
const STRETCH: u64 = 1 << 20;

/// A pipe that holds so many bytes of pages.
fn pipe() -> (File, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors, which are nobody else's.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0);
        assert_eq!(libc::fcntl(ends[1], libc::F_SETPIPE_SZ, STRETCH as libc::c_int), STRETCH as libc::c_int);
        (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// Pages that are held.
struct Held {
    read: File,
    _write: OwnedFd,
}

impl Held {
    fn of(at: NonNull<u8>) -> Self {
        let (read, write) = pipe();
        let mut done = 0;
        while done < STRETCH as usize {
            // SAFETY: mapped memory; its bytes are not read here.
            let n = unsafe {
                let part = libc::iovec { iov_base: at.add(done).as_ptr().cast(), iov_len: STRETCH as usize - done };
                libc::vmsplice(write.as_raw_fd(), &part, 1, 0)
            };
            assert!(n > 0, "vmsplice: {}", std::io::Error::last_os_error());
            done += n as usize;
        }
        Self { read, _write: write }
    }

    /// What the pages hold now.
    fn bytes(&self) -> Vec<u8> {
        let (mut read, write) = pipe();
        // SAFETY: no memory is involved; the pages stay in the first pipe, too.
        let n = unsafe { libc::tee(self.read.as_raw_fd(), write.as_raw_fd(), STRETCH as usize, 0) };
        assert_eq!(n, STRETCH as isize, "tee: {}", std::io::Error::last_os_error());
        let mut bytes = vec![0; STRETCH as usize];
        read.read_exact(&mut bytes).expect("as many bytes as there are");
        bytes
    }
}

/// A device that holds on to what it copies.
struct Pinning {
    cpu: CpuDevice,
    base: Mutex<usize>,
    held: Mutex<BTreeMap<u64, Held>>,
    /// Copies that would have used pages which are no part of the storage any more.
    stale: AtomicU32,
    let_go: AtomicU32,
}

impl Pinning {
    fn new() -> Arc<Self> {
        let cpu = CpuDevice::new(0, rigid(32 * MIB)).expect("a device");
        let (stale, let_go) = (AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Self { cpu, base: Mutex::new(0), held: Mutex::default(), stale, let_go })
    }

    fn check(&self, at: HostAt, bytes: u64) {
        let mut held = self.held.lock().unwrap();
        let base = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(*self.base.lock().unwrap())).expect("a base");
        for stretch in at.offset / STRETCH..(at.offset + bytes).div_ceil(STRETCH) {
            let first = stretch * STRETCH;
            // SAFETY: inside the storage; the bytes that are compared are those of the copy, which nobody else uses.
            let there = unsafe { base.add(first as usize) };
            let has = held.entry(first).or_insert_with(|| Held::of(there)).bytes();
            let part = at.offset.max(first) - first..(at.offset + bytes).min(first + STRETCH) - first;
            // SAFETY: as above.
            let is = unsafe {
                std::slice::from_raw_parts(there.add(part.start as usize).as_ptr(), (part.end - part.start) as usize)
            };
            if has[part.start as usize..part.end as usize] != *is {
                self.stale.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

// SAFETY: every answer is the CPU device's, or withholds something of it.
unsafe impl Device for Pinning {
    fn info(&self) -> &DeviceInfo {
        self.cpu.info()
    }
    fn caps(&self) -> &Caps {
        self.cpu.caps()
    }
    fn memory(&self) -> Memory {
        self.cpu.memory()
    }
    unsafe fn attach_host(&self, base: NonNull<u8>, bytes: u64, memfd: i32) -> Result<RegionId, DeviceError> {
        *self.base.lock().unwrap() = base.as_ptr().expose_provenance();
        // SAFETY: the caller's, here and below.
        unsafe { self.cpu.attach_host(base, bytes, memfd) }
    }
    unsafe fn host_freed(&self, at: HostAt, bytes: u64) {
        self.let_go.fetch_add(1, Ordering::SeqCst);
        self.held.lock().unwrap().retain(|first, _| *first + STRETCH <= at.offset || *first >= at.offset + bytes);
    }
    fn reserve(&self, bytes: u64) -> Result<DevRange, DeviceError> {
        self.cpu.reserve(bytes)
    }
    unsafe fn unreserve(&self, range: DevRange) {
        // SAFETY: as above.
        unsafe { self.cpu.unreserve(range) }
    }
    fn alloc(&self, place: DevAddr, grains: u32, out: &mut Vec<Frames>) -> Result<(), DeviceError> {
        self.cpu.alloc(place, grains, out)
    }
    unsafe fn free(&self, frames: &[Frames]) {
        // SAFETY: as above.
        unsafe { self.cpu.free(frames) }
    }
    unsafe fn edit(&self, edits: &[Edit], after: &[Point]) -> Result<Point, DeviceError> {
        // SAFETY: as above.
        unsafe { self.cpu.edit(edits, after) }
    }
    unsafe fn copy(&self, runs: &[CopyRun], after: &[Point]) -> Result<Point, DeviceError> {
        // What a driver does before: it takes hold of what it does not have yet.
        let host = |place: CopyEnd| if let CopyEnd::Host(at) = place { Some(at) } else { None };
        for run in runs {
            host(run.from).into_iter().for_each(|at| self.check(at, run.bytes));
        }
        // SAFETY: as above.
        let point = unsafe { self.cpu.copy(runs, after) }?;
        assert!(self.cpu.wait(point, Duration::from_secs(20))?, "a copy does not end");
        for run in runs {
            host(run.to).into_iter().for_each(|at| self.check(at, run.bytes));
        }
        Ok(point)
    }
    unsafe fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        // SAFETY: the caller's.
        unsafe { self.cpu.load(code) }
    }
    unsafe fn submit(&self, launch: &Launch<'_>, after: &[Point]) -> Result<Ticket, DeviceError> {
        // SAFETY: as above.
        unsafe { self.cpu.submit(launch, after) }
    }
    unsafe fn outcome(&self, done: Ticket, missed: &mut FaultBatch) -> Outcome {
        // SAFETY: the caller's.
        unsafe { self.cpu.outcome(done, missed) }
    }
    fn reached(&self, point: Point) -> bool {
        self.cpu.reached(point)
    }
    fn wait(&self, point: Point, timeout: Duration) -> Result<bool, DeviceError> {
        self.cpu.wait(point, timeout)
    }
}

const N: usize = MIB;

/// There and home again, with other values each time.
fn round_trip(rt: &Runtime, y: &mut Shared<u32>, seed: u32) {
    for (i, v) in y.iter_mut().enumerate() {
        *v = seed.wrapping_mul(0x9E37_79B9) ^ i as u32;
    }
    rt.launch(&add(1), (&mut *y,)).unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == (seed.wrapping_mul(0x9E37_79B9) ^ i as u32).wrapping_add(1)), "{seed}");
}

/// Everything that frees storage, with a use of what comes after it. Says how many copies used wrong pages.
fn everything_that_frees() -> u32 {
    let device = Pinning::new();
    let rt = Runtime::builder().open_device(Arc::clone(&device) as _).build().unwrap();
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        seed
    };
    let told = || device.let_go.swap(0, Ordering::SeqCst);
    for _ in 0..3 {
        let mut y = rt.shared::<u32>(N).unwrap();
        round_trip(&rt, &mut y, next());
        assert!(!device.held.lock().unwrap().is_empty(), "nothing is held");
        told();
        // A part, and all.
        y.discard(N / 4 + 5..N / 2).unwrap();
        round_trip(&rt, &mut y, next());
        y.discard(..).unwrap();
        // Made by the device, where there is no storage any more.
        rt.launch(&add(7), (&mut y,)).unwrap();
        assert!(y.iter().all(|v| *v == 7));
        round_trip(&rt, &mut y, next());
        let mut rest = y.split_off(N / 2).unwrap();
        round_trip(&rt, &mut rest, next());
        y.truncate(N / 8).unwrap();
        round_trip(&rt, &mut y, next());
        // And the end of all of it: the next one begins at the same place.
    }
    device.stale.load(Ordering::SeqCst)
}

#[test]
fn no_copy_uses_pages_that_were_freed() {
    let _limit = limit();
    assert_eq!(everything_that_frees(), 0);
}

/// Without the word copies do use them: the test sees what it is there to see.
#[cfg(feature = "planted")]
#[test]
fn planted_silence_about_freed_storage_is_seen() {
    let _limit = limit();
    let name = "planted_silence_about_freed_storage_is_seen";
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    sterna::hmm::planted::FREED_UNTOLD.store(true, Ordering::SeqCst);
    let stale = everything_that_frees();
    println!("{stale} copies used pages that were freed");
    assert!(stale > 0);
}
