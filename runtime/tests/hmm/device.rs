//! The tests' device: the commands of the kernel's test device, over an attached device and kernels that read and write through
//! its page table.

use std::sync::Arc;
use std::time::Duration;

use sterna::Error;
use sterna::hal::{Access, Injected};
use sterna::hmm::{Attached, Operand, Pages, PfnFlags, Segment, Space};
use sterna::kernel::{Each, EachMut, EachOut, Group, Kernel, Spirv, each, each_mut, each_out};
use sterna::policy::Place;

use crate::kinds::Config;
use crate::memory::{Memory, WORDS};

/// The errors of the kernel's interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Errno {
    Fault,
    Perm,
    Invalid,
    NoEntry,
    Busy,
    NoMem,
    TooBig,
    NotSupported,
    Pinned,
    Other,
}

impl From<Error> for Errno {
    fn from(e: Error) -> Self {
        match e {
            Error::Fault { .. } => Self::Fault,
            Error::Permission { .. } => Self::Perm,
            Error::Invalid { .. } => Self::Invalid,
            Error::Busy { .. } => Self::Busy,
            Error::OutOfDeviceMemory { .. } => Self::NoMem,
            Error::TooBig { .. } => Self::TooBig,
            Error::Unsupported { .. } => Self::NotSupported,
            Error::Pinned => Self::Pinned,
            _ => Self::Other,
        }
    }
}

/// What a command that succeeds says: pages, and batches of faults that it took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) cpages: u64,
    pub(crate) faults: u64,
}

/// A page as a snapshot reports it; the names of the kernel's test.
pub(crate) mod seen {
    pub(crate) const ERROR: u8 = 0xff;
    pub(crate) const NONE: u8 = 0;
    pub(crate) const READ: u8 = 1;
    pub(crate) const WRITE: u8 = 2;
    pub(crate) const PMD: u8 = 4;
    pub(crate) const PRIVATE_LOCAL: u8 = 0x20;
    pub(crate) const COHERENT_LOCAL: u8 = 0x40;
    pub(crate) const COHERENT_REMOTE: u8 = 0x50;
}

/// Waits until `holds`, at most two seconds.
pub(crate) fn eventually(holds: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !holds() && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(crate) struct Dev {
    pub(crate) attached: Attached,
    /// The device beneath, whose calls fail on demand.
    pub(crate) device: Arc<Injected>,
    /// See [`Config::placed`].
    placed: bool,
    place: Place,
}

/// What `y = x + a` does in SPIR-V, for elements of a page a group; here with 0.
const COPY: &[u8] = include_bytes!("../common/glsl/copy_add.spv");

fn read_kernel() -> Kernel<(Each<u32>, EachOut<u32>)> {
    fn body(_: Group, _: u32, x: &[u32], y: &mut [u32]) {
        y.copy_from_slice(x);
    }
    let kernel = Kernel::new("read", 0, (each(WORDS), each_out(WORDS)), body);
    // SAFETY: with 0 the module does what `body` does, to the group's own part.
    unsafe { kernel.with_spirv(Spirv::new(COPY)) }
}

fn write_kernel() -> Kernel<(Each<u32>, EachMut<u32>)> {
    fn body(_: Group, _: u32, x: &[u32], y: &mut [u32]) {
        y.copy_from_slice(x);
    }
    let kernel = Kernel::new("write", 0, (each(WORDS), each_mut(WORDS)), body);
    // SAFETY: as above.
    unsafe { kernel.with_spirv(Spirv::new(COPY)) }
}

impl Dev {
    pub(crate) fn new(space: &'static Space, device: Injected, config: &Config) -> Self {
        let device = Arc::new(device);
        let attached = Attached::new(space, Arc::clone(&device) as _).expect("the device can be attached");
        let place = if config.alias { Place::Remote } else { Place::Migrate };
        Self { attached, device, placed: config.placed, place }
    }

    /// Grains of device memory in use.
    pub(crate) fn frames(&self) -> u64 {
        let d = self.attached.device();
        d.memory().in_use / d.caps().grain
    }

    /// Grains in use, once nothing of what was dropped is left: the thread that serves faults may hold a segment a moment longer.
    #[track_caller]
    pub(crate) fn expect_frames(&self, want: u64) {
        eventually(|| self.frames() == want);
        assert_eq!(self.frames(), want, "grains of device memory in use");
    }

    /// As [`expect_frames`](Self::expect_frames), of the one memory that has any there: where frames belong to addresses, all of
    /// it is in use from the first page that came until its addresses are given back.
    #[track_caller]
    pub(crate) fn expect_frames_of(&self, m: &Memory, want: u64) {
        self.expect_frames(if self.placed { m.len.next_multiple_of(16) } else { want });
        let snapshot = self.snapshot(m, m.all()).expect("a snapshot");
        let there = snapshot
            .iter()
            .filter(|b| **b != seen::ERROR && **b & (seen::PRIVATE_LOCAL | seen::COHERENT_LOCAL) != 0)
            .count() as u64;
        assert_eq!(there, want, "pages that are there");
    }

    /// READ: the pages through the device's page table; missing entries are faulted in. `out` changes only on success.
    pub(crate) fn read(&self, mem: &Memory, pages: std::ops::Range<u64>, out: &mut [u32]) -> Result<Counts, Errno> {
        self.read_within(mem, pages, out, None)
    }

    pub(crate) fn read_within(
        &self,
        mem: &Memory,
        pages: std::ops::Range<u64>,
        out: &mut [u32],
        budget: Option<Duration>,
    ) -> Result<Counts, Errno> {
        let n = pages.end - pages.start;
        let bounce = Memory::new(mem.space, n);
        let operands = [mem.operand(pages), bounce.operand(0..n)];
        // SAFETY: nobody else uses the bounce buffer; whoever writes the pages beside this reads what it deserves.
        let batches = unsafe { self.attached.run(&read_kernel(), &operands, self.place, budget) }?;
        out.copy_from_slice(bounce.words());
        Ok(Counts { cpages: n, faults: batches[0] })
    }

    /// WRITE: as READ, the other way.
    pub(crate) fn write(&self, mem: &Memory, pages: std::ops::Range<u64>, data: &[u32]) -> Result<Counts, Errno> {
        let n = pages.end - pages.start;
        let bounce = Memory::new(mem.space, n);
        bounce.words_mut().copy_from_slice(data);
        let operands = [bounce.operand(0..n), mem.operand(pages)];
        // SAFETY: as above.
        let batches = unsafe { self.attached.run(&write_kernel(), &operands, self.place, None) }?;
        Ok(Counts { cpages: n, faults: batches[1] })
    }

    /// READ by a kernel that is given nothing beforehand and takes what it touches.
    pub(crate) fn read_on_demand(&self, mem: &Memory, pages: std::ops::Range<u64>) -> Vec<u32> {
        let n = pages.end - pages.start;
        let bounce = Memory::new(mem.space, n);
        let operands = [mem.operand(pages), bounce.operand(0..n)];
        // SAFETY: as above.
        unsafe { self.attached.run(&read_kernel(), &operands, Place::Demand, None) }.expect("a read");
        bounce.words().to_vec()
    }

    /// Runs a kernel over one range of pages that is populated first.
    pub(crate) fn run<P: sterna::kernel::Params>(
        &self,
        kernel: &Kernel<P>,
        operands: &[Operand],
    ) -> Result<Vec<u64>, Errno> {
        // SAFETY: the tests use the ranges one at a time, or by atomic operations.
        Ok(unsafe { self.attached.run(kernel, operands, self.place, None) }?.to_vec())
    }

    /// What the device's page table shows, without any fault: `None` unless every page is mapped.
    pub(crate) fn peek(&self, mem: &Memory, pages: std::ops::Range<u64>) -> Option<Vec<u32>> {
        let mapped = self.attached.mapped(&mem.pages(pages.clone()), false).ok()?;
        if !mapped.iter().all(|m| *m) {
            return None;
        }
        let mut out = vec![0; (pages.end - pages.start) as usize * WORDS];
        let counts = self.read(mem, pages, &mut out).ok()?;
        assert_eq!(counts.faults, 0, "what was mapped is not");
        Some(out)
    }

    /// MIGRATE_TO_DEV: then reads the range back through the device's page table, and says *no entry* unless all of it is there.
    pub(crate) fn to_dev(&self, mem: &Memory, pages: std::ops::Range<u64>) -> Result<(u64, Vec<u32>), Errno> {
        self.attached.migrate(&mem.pages(pages.clone()))?;
        let there = self.peek(mem, pages.clone()).ok_or(Errno::NoEntry)?;
        Ok((pages.end - pages.start, there))
    }

    /// MIGRATE_TO_SYS: the pages that came.
    pub(crate) fn to_sys(&self, mem: &Memory, pages: std::ops::Range<u64>) -> Result<u64, Errno> {
        Ok(self.attached.migrate_home(&mem.pages(pages))?.moved)
    }

    /// SNAPSHOT.
    pub(crate) fn snapshot(&self, mem: &Memory, pages: std::ops::Range<u64>) -> Result<Vec<u8>, Errno> {
        let pfns = self.attached.snapshot(&mem.pages(pages))?;
        let byte = |p: sterna::hmm::Pfn| {
            let f = p.flags();
            if p.is_error() {
                return seen::ERROR;
            }
            if !p.is_valid() {
                return seen::NONE;
            }
            let mut b = if p.is_writable() { seen::WRITE } else { seen::READ };
            if p.order() == 9 {
                b |= seen::PMD;
            }
            b | match (
                f.contains(PfnFlags::DEVICE_PRIVATE),
                f.contains(PfnFlags::DEVICE_COHERENT),
                f.contains(PfnFlags::REMOTE),
            ) {
                (true, _, _) => seen::PRIVATE_LOCAL,
                (_, true, false) => seen::COHERENT_LOCAL,
                (_, true, true) => seen::COHERENT_REMOTE,
                _ => 0,
            }
        };
        Ok(pfns.into_iter().map(byte).collect())
    }

    /// Makes pages usable for the device, without running anything.
    pub(crate) fn fault(&self, mem: &Memory, pages: std::ops::Range<u64>, write: bool) -> Result<(), Errno> {
        let access = if write { Access::ReadWrite } else { Access::Read };
        Ok(self.attached.populate(&mem.pages(pages), access, self.place, None)?)
    }
}

/// The range of a segment.
pub(crate) fn operand(seg: &Arc<Segment>, bytes: std::ops::Range<u64>) -> Operand {
    Operand { segment: Arc::clone(seg), bytes }
}

pub(crate) fn pages_of(seg: &Segment, pages: std::ops::Range<u64>) -> Pages {
    let first = seg.pages().0.start;
    Pages(first + pages.start..first + pages.end)
}
