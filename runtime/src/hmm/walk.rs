//! Faults of the host that walk through an allocation: how far each of them reaches.
//!
//! **Guarantee.** A fault that goes on where the one before it stopped, upwards or downwards, brings as many granules as the walk has
//! passed so far, its own at least, and none beyond its block; the next block goes on with the same number. So whoever goes through an
//! allocation takes the six faults of the density rule (`addr::grow`) in its first block and one in each block behind, and who
//! stops has brought, beside what that rule brings, no more than was used. A fault anywhere else reaches as far as that rule says.
//!
//! **State.** One word a block: the granule of its last fault, which way the walk went, how many granules it had passed, and whether
//! everything from there to the block's first and to its last granule is at home. A fault looks at the word of its own block, and where
//! it is the first beyond a border at its neighbour's. The word goes when pages of its block leave.
//!
//! **Who may change it.** Whoever serves a fault in the block or takes pages away, with the block's lock held. Neighbours read it
//! without: it is a hint, and what is out of date brings too much or too little, never wrong bytes.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::addr::{BlockId, GRANULES_PER_BLOCK, Mask, PAGES_PER_GRANULE, grow};
use super::block::{Block, Body, Grow};
use super::space::Space;

/// Longer walks need not be told apart: their faults bring whole blocks.
const MOST: u32 = GRANULES_PER_BLOCK as u32;

/// A block's word; all zero: nothing is known.
#[derive(Debug, Default)]
pub(crate) struct Walk(AtomicU32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// One fault, that may go on either way.
    Either,
    Up,
    Down,
}

/// A fault as part of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    granule: u32,
    way: Way,
    /// Granules that the walk had passed before this one, up to [`MOST`].
    passed: u32,
    /// Everything from it to the block's last granule is at home.
    to_last: bool,
    /// … to the block's first.
    to_first: bool,
}

impl Walk {
    /// Nothing is known any more.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn last(&self) -> Option<Step> {
        let word = self.0.load(Ordering::Relaxed);
        let bit = |n: u32| word >> n & 1 == 1;
        bit(31).then(|| Step {
            granule: word & 0xff,
            way: if bit(16) { Way::Up } else { [Way::Either, Way::Down][usize::from(bit(17))] },
            passed: word >> 8 & 0xff,
            to_last: bit(18),
            to_first: bit(19),
        })
    }

    fn note(&self, s: Step) {
        let bits = [(16, s.way == Way::Up), (17, s.way == Way::Down), (18, s.to_last), (19, s.to_first), (31, true)];
        let flags = bits.into_iter().fold(0, |word, (n, set)| word | u32::from(set) << n);
        self.0.store(flags | s.passed << 8 | s.granule, Ordering::Relaxed);
    }
}

impl Step {
    /// The fault at `granule`, where the granules `away` of its block are not at home, behind the last faults of its own block and of
    /// the blocks before and behind it.
    fn after([own, before, behind]: [Option<Self>; 3], granule: u32, away: u32) -> Self {
        let home = |r: Range<u32>| (bits(r) & away) == 0;
        let (up, down) = (|s: &Self| s.way != Way::Down, |s: &Self| s.way != Way::Up);
        let within = own.and_then(|s| match granule {
            g if g == s.granule => Some((s.way, s.passed)),
            g if g > s.granule && up(&s) && home(s.granule + 1..g) => Some((Way::Up, s.passed + g - s.granule)),
            g if g < s.granule && down(&s) && home(g + 1..s.granule) => Some((Way::Down, s.passed + s.granule - g)),
            _ => None,
        });
        let from_before = || {
            let s = before.filter(|s| s.to_last && up(s) && home(0..granule))?;
            Some((Way::Up, s.passed + MOST - s.granule + granule))
        };
        let from_behind = || {
            let s = behind.filter(|s| s.to_first && down(s) && home(granule + 1..MOST))?;
            Some((Way::Down, s.passed + s.granule + MOST - granule))
        };
        let (way, passed) = within.or_else(from_before).or_else(from_behind).unwrap_or((Way::Either, 0));
        Self { granule, way, passed: passed.min(MOST), to_last: false, to_first: false }
    }

    /// The granules that it brings.
    fn ahead(self) -> Range<u32> {
        let n = self.passed.max(1);
        match self.way {
            Way::Down => (self.granule + 1).saturating_sub(n)..self.granule + 1,
            _ => self.granule..(self.granule + n).min(MOST),
        }
    }

    /// The fault brings `coming`: notes it for those that come after it, which may be as soon as a page is mapped. With the block's
    /// lock held.
    pub(crate) fn note(self, block: &Block, body: &Body, coming: Mask) {
        let away = (body.revoked & block.limit() & !coming).granules();
        let to_last = bits(self.granule..MOST) & away == 0;
        let to_first = bits(0..self.granule + 1) & away == 0;
        block.walk.note(Self { to_last, to_first, ..self });
    }
}

/// How far a host fault on page `p` of a block reaches: the pages, of which some may be at home, and the step that it is. With the
/// block's lock held. Signal-safe.
pub(crate) fn reach(space: &Space, (id, block): (BlockId, &Block), body: &Body, p: usize) -> (Mask, Step) {
    let (away, granule) = (body.revoked & block.limit(), (p / PAGES_PER_GRANULE) as u32);
    let last = |neighbour: Option<&Block>| neighbour.and_then(|b| b.walk.last());
    let before = || last(space.neighbour(id, block, false));
    let step = Step::after([block.walk.last(), before(), last(space.neighbour(id, block, true))], granule, away.granules());
    let near = grow(p, !body.revoked & block.limit(), body.host_grow.percent());
    let ahead = if body.host_grow == Grow::DENSITY { step.ahead() } else { granule..granule + 1 };
    let pages = |g: u32| g as usize * PAGES_PER_GRANULE;
    ((near | Mask::range(pages(ahead.start)..pages(ahead.end))) & block.limit(), step)
}

/// A word with these bits set.
fn bits(r: Range<u32>) -> u32 {
    let below = |n: u32| ((1_u64 << n) - 1) as u32;
    below(r.end.max(r.start)) & !below(r.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Blocks side by side, without devices.
    struct Row {
        away: Vec<u32>,
        last: Vec<Walk>,
        faults: Vec<usize>,
        /// Without it there is the density rule alone.
        walks: bool,
    }

    impl Row {
        fn new(blocks: usize) -> Self {
            let last = (0..blocks).map(|_| Walk::default()).collect();
            Self { away: vec![u32::MAX; blocks], last, faults: vec![0; blocks], walks: true }
        }

        /// Touches a granule; says how many came.
        fn touch(&mut self, granule: usize) -> u32 {
            let (b, g) = (granule / 32, (granule % 32) as u32);
            if self.away[b] >> g & 1 == 0 {
                return 0;
            }
            self.faults[b] += 1;
            let of = |b: Option<usize>| b.and_then(|b| self.last.get(b)).and_then(Walk::last);
            let step = Step::after([of(Some(b)), of(b.checked_sub(1)), of(b.checked_add(1))], g, self.away[b]);
            let home = (0..512).filter(|p| self.away[b] >> (p / 16) & 1 == 0).fold(Mask::EMPTY, |m, p| m | Mask::page(p));
            let ahead = if self.walks { bits(step.ahead()) } else { 0 };
            let brought = (grow(g as usize * 16, home, 51).granules() | ahead) & self.away[b];
            self.away[b] &= !brought;
            let (to_last, to_first) = (bits(g..32) & self.away[b] == 0, bits(0..g + 1) & self.away[b] == 0);
            self.last[b].note(Step { to_last, to_first, ..step });
            brought.count_ones()
        }

        fn touch_all(&mut self, granules: impl Iterator<Item = usize>) -> u32 {
            granules.map(|g| self.touch(g)).sum()
        }
    }

    #[test]
    fn a_walk_takes_one_fault_a_block_after_its_first() {
        let mut row = Row::new(8);
        row.touch_all(0..256);
        assert_eq!(row.faults, [6, 1, 1, 1, 1, 1, 1, 1]);
        let mut row = Row::new(8);
        row.touch_all((0..256).rev());
        assert_eq!(row.faults, [1, 1, 1, 1, 1, 1, 1, 6]);
    }

    #[test]
    fn a_walk_that_begins_within_a_block_doubles() {
        let mut row = Row::new(3);
        let brought: Vec<u32> = (28..96).map(|g| row.touch(g)).filter(|n| *n > 0).collect();
        assert_eq!(brought[..5], [1, 1, 2, 4, 8], "{brought:?}");
        assert_eq!(row.faults[2], 1);
    }

    #[test]
    fn what_turns_round_or_jumps_is_no_walk() {
        let mut row = Row::new(4);
        row.touch_all(32..96);
        assert_eq!(row.touch(31), 1, "below an upward walk");
        assert_eq!(row.touch(100), 1, "beyond its end");
        assert_eq!(row.touch(96), 31, "where it stopped it goes on");
    }

    #[test]
    fn touches_at_random_bring_hardly_more_than_by_the_density_rule() {
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % (64 * 32)
        };
        for n in [100, 300, 600, 1000] {
            let touches: Vec<usize> = (0..n).map(|_| random()).collect();
            let [walks, density] = [true, false].map(|walks| {
                let mut row = Row { walks, ..Row::new(64) };
                (row.touch_all(touches.iter().copied()), row.faults.iter().sum::<usize>())
            });
            assert!(walks.0 * 100 <= density.0 * 103 && walks.1 <= density.1, "{n} touches: {walks:?}, {density:?}");
        }
    }

    #[test]
    fn granules_far_from_each_other_come_alone() {
        let mut row = Row::new(164 * 3);
        for i in 0..164 {
            assert_eq!(row.touch(i * 93), 1);
        }
    }

    proptest! {
        #[test]
        fn a_word_keeps_what_is_noted(granule in 0_u32..32, passed in 0_u32..=32, way in 0..3_usize, to_last: bool, to_first: bool) {
            let step = Step { granule, way: [Way::Either, Way::Up, Way::Down][way], passed, to_last, to_first };
            let walk = Walk::default();
            prop_assert_eq!(walk.last(), None);
            walk.note(step);
            prop_assert_eq!(walk.last(), Some(step));
            walk.forget();
            prop_assert_eq!(walk.last(), None);
        }

        /// Wherever a walk begins and ends, at most as much comes unused as was used, and what the density rule brings to the
        /// walk's first and last block.
        #[test]
        fn a_walk_that_stops_has_used_half(start in 0_usize..200, n in 1_usize..200, down: bool) {
            let mut row = Row::new(13);
            let brought = row.touch_all((0..n).map(|i| if down { start + n - 1 - i } else { start + i }));
            prop_assert!(brought as usize <= 2 * n + 2 * 15, "{brought} for {n}");
        }
    }
}
