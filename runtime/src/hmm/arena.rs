//! The arena: the file in memory, its two mappings, and the tables of blocks and of segments' records; those of devices reach as far.
//!
//! **Guarantee.** Everything here has addresses for the whole arena, and can be accessed up to the *reach*: the highest block that was
//! ever handed out, rounded up. So a program that locks all its memory (`mlockall`) gets that much filled, and no terabytes; and the
//! tables count against limits on a process's data as they are used. The reach only grows; what lies before it stays accessible, is
//! never unmapped, and its records begin as zeros, which is a record.
//!
//! **Lock**: `growing`, a mutex, while the reach grows; held over the calls that open a stretch. Whoever hands out blocks calls
//! [`reach`](Arena::reach) first, so signal handlers find records behind every address that a program was given.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use sterna_hal::DeviceError;

use super::addr::{BLOCK, BlockId, PAGE, Page};
use super::block::Block;
use super::os;
use super::parts::Tables;
use super::segment::SegRec;
use crate::Error;

/// Where the arena would like to be: an odd high address, so that a stray pointer is recognised.
const HINT: usize = 0x2000_0000_0000;
const LARGEST: u64 = 8 << 40;
const SMALLEST: u64 = 64 << 30;

/// By how many blocks and records the reach grows at least: 16 MiB.
const STEP: u32 = 8;

/// The file, its mappings, and the tables.
#[derive(Debug)]
pub(crate) struct Arena {
    fd: OwnedFd,
    window: os::Mapping,
    view: os::Mapping,
    blocks: os::Mapping,
    recs: os::Mapping,
    bytes: u64,
    storage_limit: Option<u64>,
    /// Blocks, and records, that can be accessed.
    reach: (AtomicU32, AtomicU32),
    growing: Mutex<()>,
}

impl Arena {
    /// As large as the limits of the process allow; `tables` are those of a first device.
    pub(super) fn new(tables: &Tables) -> Result<Self, Error> {
        let file_limit = os::process_limit(libc::RLIMIT_FSIZE).unwrap_or(u64::MAX);
        let mut bytes = LARGEST;
        while bytes > file_limit && bytes / 2 >= SMALLEST {
            bytes /= 2;
        }
        loop {
            match Self::of(bytes, tables) {
                Err(DeviceError::Driver { code: libc::ENOMEM, .. }) if bytes / 2 >= SMALLEST => bytes /= 2,
                made => return made.map_err(|source| Error::Arena { smallest: SMALLEST, source }),
            }
        }
    }

    fn of(bytes: u64, tables: &Tables) -> Result<Self, DeviceError> {
        let n = (bytes / BLOCK) as usize;
        let fd = os::memory_file(c"sterna-arena", bytes)?;
        let window = os::Mapping::shared(&fd, bytes as usize, BLOCK as usize, HINT)?;
        let view = os::Mapping::shared(&fd, bytes as usize, BLOCK as usize, 0)?;
        let blocks = os::Mapping::table(n * size_of::<Block>())?;
        let recs = os::Mapping::table(n * size_of::<SegRec>())?;
        let reach = (AtomicU32::new(0), AtomicU32::new(0));
        let storage_limit = os::file_system(fd.as_fd()).map(|(all, _)| all);
        let this = Self { fd, window, view, blocks, recs, bytes, storage_limit, reach, growing: Mutex::new(()) };
        // Who looks what the kernel can do tries it on the first page.
        this.reach(1, 1, std::iter::empty)?;
        this.make(tables)?;
        Ok(this)
    }

    /// Makes the first `blocks` blocks and the first `recs` records accessible, in the `tables` of all devices, too.
    pub(super) fn reach<'a, I: Iterator<Item = &'a Tables>>(
        &self,
        blocks: u32,
        recs: u32,
        tables: impl FnOnce() -> I,
    ) -> Result<(), DeviceError> {
        let enough = |(b, r): (usize, usize)| b >= blocks as usize && r >= recs as usize;
        if enough(self.reached()) {
            return Ok(());
        }
        let _growing = self.growing.lock();
        let (b, r) = self.reached();
        let further = |n: u32, now: usize| {
            if n as usize > now { (n.next_multiple_of(STEP) as usize).min(self.most()) } else { now }
        };
        let to = (further(blocks, b), further(recs, r));
        for t in tables() {
            t.open((b, r), to)?;
        }
        self.recs.open(r * size_of::<SegRec>()..to.1 * size_of::<SegRec>())?;
        self.blocks.open(b * size_of::<Block>()..to.0 * size_of::<Block>())?;
        let bytes = b * BLOCK as usize..to.0 * BLOCK as usize;
        self.view.open(bytes.clone())?;
        self.window.open(bytes)?;
        self.reach.1.store(to.1 as u32, Ordering::Release);
        self.reach.0.store(to.0 as u32, Ordering::Release);
        Ok(())
    }

    /// Blocks and records that can be accessed. Signal-safe.
    pub(crate) fn reached(&self) -> (usize, usize) {
        (self.reach.0.load(Ordering::Acquire) as usize, self.reach.1.load(Ordering::Acquire) as usize)
    }

    /// Makes a device's tables, unless they are there.
    pub(super) fn make(&self, tables: &Tables) -> Result<(), DeviceError> {
        let _growing = self.growing.lock();
        tables.make(self.most(), self.reached())
    }

    /// Blocks that there can be; and segments.
    pub(crate) fn most(&self) -> usize {
        (self.bytes / BLOCK) as usize
    }

    /// The number of the block whose record holds address `at`. Signal-safe.
    pub(crate) fn number_of_block(&self, at: usize) -> usize {
        (at - self.blocks.base().as_ptr().addr()) / size_of::<Block>()
    }

    /// The same for a segment's record.
    pub(crate) fn number_of_record(&self, at: usize) -> usize {
        (at - self.recs.base().as_ptr().addr()) / size_of::<SegRec>()
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The most that it can have storage for at once, where its file system limits that.
    pub(crate) fn storage_limit(&self) -> Option<u64> {
        self.storage_limit
    }

    /// Addresses of the window.
    pub(crate) fn window(&self) -> std::ops::Range<usize> {
        let base = self.window.base().as_ptr().addr();
        base..base + self.bytes as usize
    }

    pub(crate) fn window_at(&self, offset: u64) -> NonNull<u8> {
        debug_assert!(offset <= self.bytes);
        // SAFETY: inside the mapping.
        unsafe { self.window.base().add(offset as usize) }
    }

    pub(crate) fn direct_at(&self, offset: u64) -> NonNull<u8> {
        debug_assert!(offset <= self.bytes);
        // SAFETY: inside the mapping.
        unsafe { self.view.base().add(offset as usize) }
    }

    /// The page at a window address that allocations may have. Signal-safe.
    pub(crate) fn page_at(&self, at: usize) -> Option<Page> {
        let base = self.window.base().as_ptr().addr();
        let bytes = self.reached().0 * BLOCK as usize;
        (at >= base && at < base + bytes).then(|| Page((at - base) as u64 / PAGE))
    }

    /// Whether blocks up to this one can be accessed. Signal-safe.
    pub(crate) fn reaches(&self, id: u32) -> bool {
        (id as usize) < self.reached().0
    }

    /// A block's record. Signal-safe.
    pub(crate) fn block(&self, id: BlockId) -> &'static Block {
        debug_assert!(self.reaches(id.0), "{id:?}");
        // SAFETY: the table has a record for every block before the reach, behind which nobody looks, is never unmapped (the space
        // is leaked), and all-zero bytes are a block's initial state.
        unsafe { &*self.blocks.base().cast::<Block>().as_ptr().add(id.0 as usize) }
    }

    /// A segment's record. Signal-safe.
    pub(crate) fn rec(&self, slot: u32) -> &'static SegRec {
        debug_assert!((slot as usize) < self.reached().1);
        // SAFETY: as `block`: there are never more segments than blocks.
        unsafe { &*self.recs.base().cast::<SegRec>().as_ptr().add(slot as usize) }
    }

    /// Where the records of segments are: address and bytes.
    pub(crate) fn records(&self) -> (usize, usize) {
        (self.recs.base().as_ptr().addr(), self.reached().1 * size_of::<SegRec>())
    }
}
