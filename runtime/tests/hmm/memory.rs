//! The tests' memory: a segment by page, as the program sees it.

use std::ops::Range;
use std::sync::Arc;

use sterna::hmm::{Operand, PAGE, Pages, Prot, Segment, Space};

use crate::device::{operand, pages_of};

/// Numbers a page.
pub(crate) const WORDS: usize = PAGE as usize / 4;

pub(crate) struct Memory {
    pub(crate) space: &'static Space,
    pub(crate) seg: Arc<Segment>,
    pub(crate) len: u64,
}

/// `0, 1, 2 …` plus `from`, for `pages` pages.
pub(crate) fn counting(pages: u64, from: u32) -> Vec<u32> {
    (0..pages as u32 * WORDS as u32).map(|i| i.wrapping_add(from)).collect()
}

/// Minus each of them.
pub(crate) fn negative(pages: u64) -> Vec<u32> {
    (0..pages as u32 * WORDS as u32).map(u32::wrapping_neg).collect()
}

impl Memory {
    pub(crate) fn new(space: &'static Space, pages: u64) -> Self {
        Self::of(Segment::new(space, pages * PAGE).expect("a segment"), pages)
    }

    pub(crate) fn of(seg: Arc<Segment>, pages: u64) -> Self {
        let space = Space::existing().expect("the space");
        Self { space, seg, len: pages }
    }

    /// Filled with `0, 1, 2 …` by the host.
    pub(crate) fn filled(space: &'static Space, pages: u64) -> Self {
        let m = Self::new(space, pages);
        m.fill(0);
        m
    }

    pub(crate) fn fill(&self, from: u32) {
        for (i, w) in self.words_mut().iter_mut().enumerate() {
            *w = (i as u32).wrapping_add(from);
        }
    }

    pub(crate) fn pages(&self, pages: Range<u64>) -> Pages {
        pages_of(&self.seg, pages)
    }

    pub(crate) fn all(&self) -> Range<u64> {
        0..self.len
    }

    pub(crate) fn operand(&self, pages: Range<u64>) -> Operand {
        operand(&self.seg, pages.start * PAGE..pages.end * PAGE)
    }

    /// What the host sees; each load may fault.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: the segment's bytes; the tests write them, and have devices write them, one after the other.
        unsafe { std::slice::from_raw_parts(self.seg.as_host_ptr().cast(), self.len as usize * WORDS) }
    }

    pub(crate) fn page(&self, page: u64) -> &[u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.seg.as_host_ptr().cast::<u32>().add(page as usize * WORDS), WORDS) }
    }

    #[expect(clippy::mut_from_ref, reason = "memory of the program's, used as C would use it")]
    pub(crate) fn words_mut(&self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.seg.as_host_ptr().cast(), self.len as usize * WORDS) }
    }

    #[expect(clippy::mut_from_ref, reason = "as above")]
    pub(crate) fn page_mut(&self, page: u64) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.seg.as_host_ptr().cast::<u32>().add(page as usize * WORDS), WORDS) }
    }

    pub(crate) fn protect(&self, pages: Range<u64>, prot: Prot) {
        // SAFETY: the tests use pages only as they are allowed to.
        unsafe { self.space.protect(&self.pages(pages), prot) }.expect("protect");
    }

    pub(crate) fn unmap(&self, pages: Range<u64>) {
        // SAFETY: as above.
        unsafe { self.space.unmap(&self.pages(pages)) }.expect("unmap");
    }

    pub(crate) fn remap(&self, from: Range<u64>, to: Range<u64>, keep_old: bool) {
        // SAFETY: as above.
        unsafe { self.space.remap(&self.pages(from), &self.pages(to), keep_old) }.expect("remap");
    }

    /// The host sees `0, 1, 2 …` plus `from` in these pages.
    #[track_caller]
    pub(crate) fn expect(&self, pages: Range<u64>, from: u32) {
        for p in pages {
            for (i, w) in self.page(p).iter().enumerate() {
                let n = p as usize * WORDS + i;
                assert_eq!(*w, (n as u32).wrapping_add(from), "page {p}, number {i}");
            }
        }
    }

    /// The host sees these numbers.
    #[track_caller]
    pub(crate) fn expect_all(&self, value: impl Fn(usize) -> u32) {
        let bad = self.words().iter().enumerate().find(|(i, w)| **w != value(*i));
        assert_eq!(bad.map(|(i, w)| (i, *w)), None, "expected {:?}", bad.map(|(i, _)| value(i)));
    }
}
