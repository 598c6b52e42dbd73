//! Pages, granules, blocks, ranges and masks: every conversion between them, and nowhere else.
//!
//! The arena is numbered in pages from 0. A *window address* is where the program's pointers live; it equals the arena's
//! window base plus the page's offset, and only [`Space`](super::Space) knows the base.

use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not, Range};

/// 4 KiB: one bit of a mask.
pub const PAGE: u64 = 4 << 10;
/// 64 KiB: what the host brings home at once, and the border that no two allocations share.
pub const GRANULE: u64 = 64 << 10;
/// 2 MiB: the unit of locking, of promotion to one mapping, and of eviction.
pub const BLOCK: u64 = 2 << 20;

/// Pages in a block.
pub(crate) const PAGES_PER_BLOCK: usize = (BLOCK / PAGE) as usize;
/// Pages in a granule.
pub(crate) const PAGES_PER_GRANULE: usize = (GRANULE / PAGE) as usize;
/// Granules in a block.
pub(crate) const GRANULES_PER_BLOCK: usize = (BLOCK / GRANULE) as usize;

/// A page of the arena, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Page(pub u64);

/// A block of the arena, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Its first page.
    #[must_use]
    pub fn first_page(self) -> Page {
        Page(u64::from(self.0) * PAGES_PER_BLOCK as u64)
    }

    /// Byte offset of its first byte in the arena.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0) * BLOCK
    }

    /// The block `n` further on; behind the last number come the first ones, which are no block of any arena's.
    #[must_use]
    pub fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl Page {
    /// The block it lies in.
    #[must_use]
    pub fn block(self) -> BlockId {
        // The arena has fewer than 2^32 blocks: `Space` refuses a larger one. A page outside is in the last block there could be.
        BlockId(u32::try_from(self.0 / PAGES_PER_BLOCK as u64).unwrap_or(u32::MAX))
    }

    /// Its number within its block.
    #[must_use]
    pub fn in_block(self) -> usize {
        (self.0 % PAGES_PER_BLOCK as u64) as usize
    }

    /// Byte offset of its first byte in the arena.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0.saturating_mul(PAGE)
    }
}

/// A range of arena pages, possibly empty.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pages(pub Range<u64>);

impl Pages {
    /// The pages that hold the bytes `bytes` (offsets into the arena).
    #[must_use]
    pub fn covering(bytes: Range<u64>) -> Self {
        if bytes.start >= bytes.end {
            return Self(bytes.start / PAGE..bytes.start / PAGE);
        }
        Self(bytes.start / PAGE..bytes.end.div_ceil(PAGE))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.end.saturating_sub(self.0.start)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length in bytes, at most `u64::MAX`.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len().saturating_mul(PAGE)
    }

    /// Whether the two have a page in common.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.start < other.0.end && other.0.start < self.0.end
    }

    /// Widened to whole units of `pages_per` pages.
    #[must_use]
    pub fn widened(&self, pages_per: u64) -> Self {
        if self.is_empty() {
            return self.clone();
        }
        let per = pages_per.max(1);
        Self(self.0.start / per * per..self.0.end.checked_next_multiple_of(per).unwrap_or(u64::MAX))
    }

    /// The part of block `id` that lies in the range.
    #[must_use]
    pub fn part_of(&self, id: BlockId) -> Mask {
        let first = id.first_page().0;
        let within = |at: u64| at.clamp(first, first + PAGES_PER_BLOCK as u64) - first;
        Mask::range(within(self.0.start) as usize..within(self.0.end) as usize)
    }

    /// The blocks it touches, each with the part of it that lies in the range.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = (BlockId, Mask)> + '_ {
        let n = PAGES_PER_BLOCK as u64;
        let last = if self.is_empty() { self.0.start / n } else { (self.0.end - 1) / n + 1 };
        // What lies behind the last block that has a number is in no arena.
        let last = last.min(u64::from(u32::MAX));
        (self.0.start / n..last).map(|b| BlockId(b as u32)).map(|id| (id, self.part_of(id)))
    }
}

/// One bit for each of a block's 512 pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Mask(pub [u64; 8]);

impl Mask {
    /// No page.
    pub const EMPTY: Self = Self([0; 8]);
    /// Every page.
    pub const FULL: Self = Self([!0; 8]);

    /// The pages of `range` (numbers within the block, at most 512).
    #[must_use]
    pub fn range(range: Range<usize>) -> Self {
        let below = |n: usize| {
            let mut m = [0_u64; 8];
            for (i, w) in m.iter_mut().enumerate() {
                let bits = n.saturating_sub(i * 64).min(64);
                *w = if bits == 64 { !0 } else { (1 << bits) - 1 };
            }
            Self(m)
        };
        below(range.end) & !below(range.start.min(range.end))
    }

    /// Its 512 bits, lowest page first.
    pub(crate) fn words(self) -> [u64; 8] {
        self.0
    }

    /// One page; none if a block has none of that number.
    #[must_use]
    pub fn page(page: usize) -> Self {
        let mut m = Self::EMPTY;
        if let Some(word) = m.0.get_mut(page / 64) {
            *word = 1 << (page % 64);
        }
        m
    }

    /// Whether page `page` is in it.
    #[must_use]
    pub fn has(&self, page: usize) -> bool {
        self.0.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// How many pages.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// Whether every page of `other` is in it.
    #[must_use]
    pub fn covers(&self, other: Self) -> bool {
        (other & !*self).is_empty()
    }

    /// Whether the two have a page in common.
    #[must_use]
    pub fn meets(&self, other: Self) -> bool {
        !(*self & other).is_empty()
    }

    /// Widened to whole units of `per` pages (a power of two up to 512): a unit with one page gets all.
    #[must_use]
    pub fn widened(self, per: usize) -> Self {
        if per <= 1 || self.is_empty() {
            return self;
        }
        let mut out = Self::EMPTY;
        for unit in (0..PAGES_PER_BLOCK).step_by(per) {
            let m = Self::range(unit..unit + per);
            if self.meets(m) {
                out |= m;
            }
        }
        out
    }

    /// The shortest run that has all its pages.
    #[must_use]
    pub(crate) fn hull(self) -> Range<usize> {
        let last = self.0.iter().rposition(|w| *w != 0).map(|i| i * 64 + 63 - self.0[i].leading_zeros() as usize);
        last.map_or(0..0, |last| self.next(0, true)..last + 1)
    }

    /// The granules with at least one page, a bit each.
    #[must_use]
    pub(crate) fn granules(self) -> u32 {
        const PER_WORD: usize = 64 / PAGES_PER_GRANULE;
        let has =
            |g: usize| self.0[g / PER_WORD] >> (g % PER_WORD * PAGES_PER_GRANULE) & ((1 << PAGES_PER_GRANULE) - 1) != 0;
        (0..GRANULES_PER_BLOCK).fold(0, |out, g| out | u32::from(has(g)) << g)
    }

    /// Number of the first page at or behind `from` whose bit is `set`, or 512.
    fn next(&self, from: usize, set: bool) -> usize {
        let mut i = from;
        while i < PAGES_PER_BLOCK {
            let w = if set { self.0[i / 64] } else { !self.0[i / 64] } >> (i % 64);
            if w != 0 {
                return i + w.trailing_zeros() as usize;
            }
            i = (i / 64 + 1) * 64;
        }
        PAGES_PER_BLOCK
    }

    /// The runs of neighbouring pages, in order.
    pub fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true);
            if start >= PAGES_PER_BLOCK {
                return None;
            }
            at = self.next(start, false);
            Some(start..at)
        })
    }
}

impl BitAnd for Mask {
    type Output = Self;
    fn bitand(self, o: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & o.0[i]))
    }
}
impl BitOr for Mask {
    type Output = Self;
    fn bitor(self, o: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | o.0[i]))
    }
}
impl Not for Mask {
    type Output = Self;
    fn not(self) -> Self {
        Self(self.0.map(|w| !w))
    }
}
impl BitOrAssign for Mask {
    fn bitor_assign(&mut self, o: Self) {
        *self = *self | o;
    }
}
impl BitAndAssign for Mask {
    fn bitand_assign(&mut self, o: Self) {
        *self = *self & o;
    }
}

/// A part of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// Which block.
    pub(crate) block: BlockId,
    /// Which of its pages.
    pub(crate) mask: Mask,
}

impl Span {
    /// The shortest run of the arena that has all its pages.
    #[must_use]
    pub(crate) fn hull(self) -> Pages {
        let (first, hull) = (self.block.first_page().0, self.mask.hull());
        Pages(first + hull.start as u64..first + hull.end as u64)
    }
}

/// The runs of neighbouring pages of `spans` (in ascending order of blocks), joined across block borders.
#[must_use]
pub(crate) fn runs_of(spans: &[Span]) -> Vec<Pages> {
    let mut out: Vec<Pages> = Vec::new();
    for s in spans {
        let first = s.block.first_page().0;
        for r in s.mask.runs() {
            let (a, b) = (first + r.start as u64, first + r.end as u64);
            match out.last_mut() {
                Some(last) if last.0.end == a => last.0.end = b,
                _ => out.push(Pages(a..b)),
            }
        }
    }
    out
}

/// The region to bring in around `page` when the pages of `there` are there already: the largest aligned power-of-two region
/// of granules around it of which more than `percent` of a hundred would be there, `page`'s own granule at least.
///
/// This is the density rule of NVIDIA's UVM driver (`uvm_perf_prefetch.c`): with 51 % a block touched in sequence one granule
/// at a time takes six faults. Above 100 nothing grows; at 0 the whole block comes.
#[must_use]
pub(crate) fn grow(page: usize, there: Mask, percent: u32) -> Mask {
    let granule = page / PAGES_PER_GRANULE;
    let have = there.granules() | 1 << granule;
    let mut best = granule..granule + 1;
    let mut size = 2;
    while size <= GRANULES_PER_BLOCK {
        let start = granule / size * size;
        let bits = (((1_u64 << size) - 1) << start) as u32;
        if (have & bits).count_ones() * 100 > size as u32 * percent {
            best = start..start + size;
        }
        size *= 2;
    }
    Mask::range(best.start * PAGES_PER_GRANULE..best.end * PAGES_PER_GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_touched_in_sequence_takes_six_faults() {
        let mut there = Mask::EMPTY;
        let mut faults = Vec::new();
        for g in 0..GRANULES_PER_BLOCK {
            if !there.has(g * PAGES_PER_GRANULE) {
                faults.push(g);
                there |= grow(g * PAGES_PER_GRANULE, there, 51);
            }
        }
        assert_eq!(faults, [0, 1, 2, 4, 8, 16]);
    }

    #[test]
    fn growth_never_exceeds_what_the_percentage_allows() {
        assert_eq!(grow(17, Mask::EMPTY, 101), Mask::range(16..32));
        assert_eq!(grow(17, Mask::FULL, 101), Mask::range(16..32));
        assert_eq!(grow(17, Mask::EMPTY, 0), Mask::FULL);
    }

    #[test]
    fn a_hull_has_all_pages_and_begins_and_ends_with_one() {
        assert_eq!(Mask::EMPTY.hull(), 0..0);
        assert_eq!((Mask::page(0).hull(), Mask::page(511).hull(), Mask::FULL.hull()), (0..1, 511..512, 0..512));
        assert_eq!((Mask::page(63) | Mask::page(64) | Mask::page(200)).hull(), 63..201);
        let span = Span { block: BlockId(2), mask: Mask::page(5) | Mask::page(7) };
        assert_eq!(span.hull(), Pages(1029..1032));
    }

    #[test]
    fn blocks_of_a_range_that_crosses_a_border() {
        let p = Pages(510..1025);
        let b: Vec<_> = p.blocks().collect();
        assert_eq!(b.len(), 3);
        assert_eq!(b[0], (BlockId(0), Mask::range(510..512)));
        assert_eq!(b[1], (BlockId(1), Mask::FULL));
        assert_eq!(b[2], (BlockId(2), Mask::page(0)));
        assert_eq!(Pages(5..5).blocks().count(), 0);
    }

    proptest! {
        #[test]
        fn masks_agree_with_sets(ranges in prop::collection::vec((0_usize..512, 0_usize..=512), 0..6), per in 0_u32..=9) {
            let mut m = Mask::EMPTY;
            let mut set = [false; 512];
            for (a, b) in ranges {
                m |= Mask::range(a..b.max(a));
                for s in &mut set[a..b.max(a)] { *s = true; }
            }
            for (i, s) in set.iter().enumerate() { prop_assert_eq!(m.has(i), *s); }
            prop_assert_eq!(m.count() as usize, set.iter().filter(|s| **s).count());
            let mut from_runs = [false; 512];
            for r in m.runs() { for s in &mut from_runs[r] { prop_assert!(!*s); *s = true; } }
            prop_assert_eq!(from_runs, set);
            let per = 1_usize << per;
            let w = m.widened(per);
            for i in 0..512 { prop_assert_eq!(w.has(i), set[i / per * per..(i / per + 1) * per].iter().any(|s| *s)); }
        }

        #[test]
        fn runs_join_across_blocks(a in 0_u64..2000, n in 1_u64..2000) {
            let pages = Pages(a..a + n);
            let spans: Vec<Span> = pages.blocks().map(|(block, mask)| Span { block, mask }).collect();
            prop_assert_eq!(runs_of(&spans), vec![pages]);
        }
    }
}
