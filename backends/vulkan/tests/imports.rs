//! Copies by import: which bytes are reached, what is imported for that, and what becomes of it when storage is freed.
#![cfg(target_os = "linux")]

mod common;

use std::time::Duration;

use sterna_hal::{CopyEnd, CopyRun, DevRange, Device, Frames, HostAt, RegionId};
use sterna_host::testing::Host;
use sterna_vulkan::{Copies, PageTable, VulkanConfig, VulkanDevice};

const BLOCK: u64 = 2 << 20;
const PIECE: u64 = 64 << 20;

/// A device, host storage, and frames for a stretch of `bytes`.
struct Bench {
    device: VulkanDevice,
    host: Host,
    region: RegionId,
    range: DevRange,
    frames: Vec<Frames>,
}

impl Bench {
    /// With each page table that can be had; storage that nobody has touched, twice as long as the frames.
    fn all(bytes: u64) -> Vec<Self> {
        [PageTable::Sparse, PageTable::Fixed].into_iter().filter_map(|kind| Self::new(kind, bytes)).collect()
    }

    fn new(kind: PageTable, bytes: u64) -> Option<Self> {
        let config = VulkanConfig {
            memory: Some(bytes + PIECE),
            page_table: Some(kind),
            copies: Some(Copies::Imported),
            ..VulkanConfig::default()
        };
        let device = common::device(&config)?;
        assert_eq!((device.copies(), device.staged_because()), (Copies::Imported, None));
        let host = Host::new(2 * bytes);
        let region = host.attach(&device);
        let range = device.reserve(bytes).unwrap();
        let mut frames = Vec::new();
        device.alloc(range.at, (bytes / device.caps().grain) as u32, &mut frames).unwrap();
        assert_eq!(frames.len(), 1, "one stretch");
        Some(Self { device, host, region, range, frames })
    }

    fn at(&self, offset: u64) -> HostAt {
        HostAt { region: self.region, offset }
    }

    /// Copies between storage and frames, as far into the one as into the other.
    fn run(&self, host: u64, frame: u64, bytes: u64, there: bool) -> CopyRun {
        let (host, frame) = (CopyEnd::Host(self.at(host)), CopyEnd::Frames { first: self.frames[0].first, offset: frame });
        let (from, to) = if there { (host, frame) } else { (frame, host) };
        CopyRun { from, to, bytes }
    }

    fn copy(&self, runs: &[CopyRun]) {
        // SAFETY: frames and storage of this test's own, left alone until the copies have ended.
        let point = unsafe { self.device.copy(runs, &[]) }.unwrap();
        assert!(self.device.wait(point, Duration::from_secs(30)).unwrap(), "it does not end");
    }

    /// Writes a pattern, which is another for another `seed`.
    fn fill(&self, offset: u64, bytes: u64, seed: u64) {
        for i in (0..bytes).step_by(8) {
            // SAFETY: inside the storage; no copy is under way.
            unsafe { self.host.base().add((offset + i) as usize).cast::<u64>().write(value(i, seed)) };
        }
    }

    #[track_caller]
    fn check(&self, offset: u64, bytes: u64, seed: u64) {
        let words = self.host.slice()[offset as usize..(offset + bytes) as usize].as_chunks::<8>().0;
        let wrong = words.iter().enumerate().find(|(i, w)| u64::from_ne_bytes(**w) != value(8 * *i as u64, seed));
        assert_eq!(wrong.map(|w| w.0 * 8), None, "{}, the first byte that is not right", self.device.page_table());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: nothing is under way; each is given back once.
        unsafe {
            self.device.unreserve(self.range);
            self.device.free(&self.frames);
        }
    }
}

fn value(i: u64, seed: u64) -> u64 {
    (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed
}

#[test]
fn runs_across_the_borders_of_pieces_arrive_whole() {
    let bytes = 3 * PIECE - BLOCK;
    for b in Bench::all(bytes) {
        b.fill(0, bytes, 1);
        assert_eq!(b.device.imported(), 0);
        b.copy(&[b.run(0, 0, bytes, true)]);
        assert_eq!(b.device.imported(), bytes, "three pieces");
        // Home to storage that is not there yet, at other distances from the borders.
        let home = bytes + BLOCK;
        b.copy(&[b.run(home, 0, bytes - BLOCK, false)]);
        b.check(home, bytes - BLOCK, 1);
        assert_eq!(b.device.imported(), 2 * bytes - BLOCK);
        // A few bytes beside each border, both ways, all in one batch.
        b.fill(0, bytes, 2);
        let spots: Vec<u64> = (1..3).flat_map(|i| [i * PIECE - 12, i * PIECE - 4, i * PIECE + 4]).collect();
        b.copy(&spots.iter().map(|at| b.run(*at, *at, 8, true)).collect::<Vec<_>>());
        b.copy(&[b.run(home, 0, bytes - BLOCK, false)]);
        for i in (0..bytes - BLOCK).step_by(4) {
            let new = spots.iter().any(|at| (*at..at + 8).contains(&i));
            let want = value(i / 8 * 8, if new { 2 } else { 1 }).to_ne_bytes();
            let at = (home + i) as usize;
            assert_eq!(b.host.slice()[at..at + 4], want[(i % 8) as usize..][..4], "byte {i}");
        }
    }
}

#[test]
fn what_has_no_storage_gets_none_by_being_near() {
    for b in Bench::all(PIECE) {
        // A block that is there but for one page, and the end of one that is.
        b.fill(0, BLOCK - 4096, 3);
        b.fill(4 * BLOCK, BLOCK, 4);
        let stored = b.host.stored();
        b.copy(&[b.run(64 << 10, 0, 1 << 20, true), b.run(4 * BLOCK + 8, 1 << 20, BLOCK - 16, true)]);
        assert_eq!((b.host.stored(), b.device.imported()), (stored, BLOCK), "the whole block only");
        b.copy(&[b.run(6 * BLOCK, 0, 1 << 20, false), b.run(8 * BLOCK, 1 << 20, BLOCK - 16, false)]);
        assert!(b.host.stored() - stored <= (1 << 20) + BLOCK, "{} bytes", b.host.stored() - stored);
        assert_eq!(b.device.imported(), BLOCK);
        assert_eq!(
            b.host.slice()[(8 * BLOCK) as usize..][..(BLOCK - 16) as usize],
            b.host.slice()[(4 * BLOCK + 8) as usize..][..(BLOCK - 16) as usize]
        );
        // Once it has all, it is taken.
        b.fill(BLOCK - 4096, 4096, 3);
        b.copy(&[b.run(64 << 10, 0, 1 << 20, true)]);
        assert_eq!(b.device.imported(), 2 * BLOCK);
    }
}

#[test]
fn freed_storage_is_let_go_of() {
    for mut b in Bench::all(2 * PIECE) {
        let bytes = 2 * PIECE;
        b.fill(0, bytes, 5);
        b.copy(&[b.run(0, 0, bytes, true)]);
        assert_eq!(b.device.imported(), bytes);
        for (freed, left) in [(PIECE - 4096..PIECE, PIECE), (PIECE - BLOCK..PIECE + 4096, 0)] {
            b.host.punch(freed.start, freed.end - freed.start);
            // SAFETY: no copy is under way.
            unsafe { b.device.host_freed(b.at(freed.start), freed.end - freed.start) };
            assert_eq!(b.device.imported(), left, "{freed:?}");
            // The pages that come there now are what is copied.
            b.fill(0, bytes, left);
            b.copy(&[b.run(0, 0, bytes, true)]);
            assert_eq!(b.device.imported(), bytes);
            b.copy(&[b.run(bytes, 0, bytes, false)]);
            b.check(bytes, bytes, left);
            b.host.punch(bytes, bytes);
            // SAFETY: no copy is under way.
            unsafe { b.device.host_freed(b.at(bytes), bytes) };
        }
        // Beside it nothing happens.
        // SAFETY: no copy is under way.
        unsafe { b.device.host_freed(b.at(bytes), bytes) };
        // SAFETY: no copy is under way.
        unsafe { b.device.host_freed(HostAt { region: RegionId(7), offset: 0 }, bytes) };
        assert_eq!(b.device.imported(), bytes);
    }
}

#[test]
fn imports_that_are_asked_for_and_cannot_be_had_are_refused_by_name() {
    let config = |page_table| VulkanConfig { page_table, copies: Some(Copies::Imported), ..VulkanConfig::default() };
    let Some(name) = common::name() else { return };
    let e = VulkanDevice::open(&name, &config(Some(PageTable::Mmu))).unwrap_err().to_string();
    assert!(e.contains("mmu") && (e.contains("imported") || e.contains("processors")), "{e}");
    // Without a page table that is asked for, one that can.
    if let Some(device) = common::device(&config(None)) {
        assert_ne!(device.page_table(), PageTable::Mmu);
    }
}
