//! Ranges of bytes, numbered in the order in which they came, found by what they overlap.
//!
//! **Guarantee.** Adding, removing and finding cost by the number of different cells that the ranges stand in, logarithmically, and by
//! how many different lengths there are, never by the number of ranges: a hundred thousand launches over one range are one cell.
//!
//! **How.** Lengths have levels: those of level `n` are longer than 2ⁿ bytes and at most twice as long (level 0: one byte and two). The
//! ranges of one level that begin in the same 2ⁿ bytes are a cell: all of them have the last of these bytes in common. A range of that level
//! that overlaps bytes `a..b` begins in them or in one of the two cells before that of `a`. Only levels that there are are looked at.
//!
//! **Locks:** none of its own.

use std::collections::VecDeque;
use std::ops::Range;

use super::extent::overlap;
use super::places::Places;

/// A cell's number: its level above this bit, its place among those of that level below. Addresses have fewer bits.
const LEVEL: u32 = 58;
/// Room for so many ranges is kept when a cell goes, for the next one.
const KEPT: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stretches<T> {
    cells: Places<Cell<T>>,
    /// The levels that there are, by bits.
    levels: u64,
    /// A list with room, of a cell that went.
    spare: List<T>,
}

/// In the order of their numbers. What was removed from between stays as nothing for a while.
type List<T> = VecDeque<(u64, Range<u64>, Option<T>)>;

#[derive(Debug)]
struct Cell<T> {
    /// What its ranges cover; more, once some were removed.
    hull: Range<u64>,
    list: List<T>,
    /// How many of them are nothing.
    gone: usize,
}

impl<T> Default for Stretches<T> {
    fn default() -> Self {
        Self { cells: Places::default(), levels: 0, spare: VecDeque::new() }
    }
}

/// The level of a range. It has a byte.
fn level_of(range: &Range<u64>) -> u32 {
    (range.end - range.start - 1).max(1).ilog2()
}

fn cell_of(range: &Range<u64>) -> u64 {
    let level = level_of(range);
    u64::from(level) << LEVEL | range.start >> level
}

impl<T> Stretches<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Adds a range with a number above all others.
    pub(crate) fn add(&mut self, number: u64, range: Range<u64>, value: T) {
        let (at, spare) = (cell_of(&range), &mut self.spare);
        self.levels |= 1 << (at >> LEVEL);
        let new = || Cell { hull: range.clone(), list: std::mem::take(spare), gone: 0 };
        let cell = self.cells.get_or_insert_with(at, new);
        debug_assert!(cell.list.back().is_none_or(|(n, ..)| *n < number));
        cell.hull = cell.hull.start.min(range.start)..cell.hull.end.max(range.end);
        cell.list.push_back((number, range, Some(value)));
    }

    /// Removes the range that was added with this number.
    pub(crate) fn remove(&mut self, number: u64, range: &Range<u64>) -> Option<T> {
        let at = cell_of(range);
        let cell = self.cells.get_mut(at)?;
        // They mostly go in the order in which they came.
        let oldest = cell.list.front().is_some_and(|(n, ..)| *n == number);
        let i = if oldest { 0 } else { cell.list.binary_search_by_key(&number, |(n, ..)| *n).ok()? };
        let value = cell.list[i].2.take()?;
        cell.gone += 1;
        while cell.list.front().is_some_and(|(.., v)| v.is_none()) {
            cell.list.pop_front();
            cell.gone -= 1;
        }
        if cell.list.is_empty() {
            self.close(at);
        } else if cell.gone > 32 && cell.gone > cell.list.len() / 2 {
            cell.list.retain(|(.., v)| v.is_some());
            cell.gone = 0;
        }
        Some(value)
    }

    /// A cell has no range any more.
    fn close(&mut self, at: u64) {
        let list = self.cells.remove(at).map(|c| c.list).unwrap_or_default();
        if (self.spare.capacity() + 1..=KEPT).contains(&list.capacity()) {
            self.spare = list;
        }
        let level = at >> LEVEL;
        if self.cells.range(level << LEVEL..(level + 1) << LEVEL).next().is_none() {
            self.levels &= !(1 << level);
        }
    }

    /// The cells in which a range that overlaps `bytes` may stand.
    fn near(&self, bytes: &Range<u64>) -> impl Iterator<Item = &Cell<T>> {
        let few = self.cells.few();
        let (a, end) = (bytes.start, bytes.end.max(bytes.start + 1));
        let mut levels = if few.is_some() { 0 } else { self.levels };
        let each = std::iter::from_fn(move || {
            let level = levels.trailing_zeros();
            levels &= levels.wrapping_sub(1);
            (level < u64::BITS).then_some(level)
        });
        let of = move |level: u32| {
            let base = u64::from(level) << LEVEL;
            self.cells.range(base | (a >> level).saturating_sub(2)..(base | (end - 1) >> level) + 1).map(|(_, c)| c)
        };
        let bytes = bytes.clone();
        let all = few.into_iter().flatten().map(|(_, c)| c);
        all.chain(each.flat_map(of)).filter(move |c| overlap(&c.hull, &bytes))
    }

    /// The ranges that overlap `bytes`, the oldest of each cell first.
    pub(crate) fn overlapping(&self, bytes: &Range<u64>) -> impl Iterator<Item = &T> {
        let b = bytes.clone();
        let of = move |(_, range, value)| if overlap(range, &b) { Option::as_ref(value) } else { None };
        self.near(bytes).flat_map(|c| c.list.iter().map(|(n, r, v)| (*n, r, v))).filter_map(of)
    }

    /// The newest range with a number below `before` that overlaps `bytes`, and its number.
    pub(crate) fn newest(&self, bytes: &Range<u64>, before: u64) -> Option<(u64, &T)> {
        let mut best: Option<(u64, &T)> = None;
        for c in self.near(bytes) {
            let all = c.list.back().is_none_or(|(n, ..)| *n < before);
            let end = if all { c.list.len() } else { c.list.partition_point(|(n, ..)| *n < before) };
            let floor = best.map_or(0, |(n, _)| n);
            let older = c.list.range(..end).rev().take_while(|(n, ..)| *n >= floor);
            let found = older.filter(|(_, r, _)| overlap(r, bytes)).find_map(|(n, _, v)| v.as_ref().map(|v| (*n, v)));
            best = found.or(best);
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed >> 11
    }

    /// Compares with a plain list, over ranges short and long.
    #[test]
    fn they_are_found_as_in_a_list() {
        let seed = &mut 0x9E37_79B9_7F4A_7C15;
        for most in [40, 1 << 12, 1 << 43] {
            let (mut all, mut list) = (Stretches::default(), Vec::<(u64, Range<u64>)>::new());
            let range = |seed: &mut u64| {
                let start = random(seed) % most;
                let len = if random(seed).is_multiple_of(3) { random(seed) % most } else { random(seed) % 9 };
                start..start + 1 + len
            };
            for number in 0..1500 {
                let r = range(seed);
                all.add(number, r.clone(), number);
                list.push((number, r));
                if random(seed) % 5 < 2 {
                    let i = (random(seed) % list.len() as u64) as usize;
                    let (n, r) = list.remove(i);
                    assert_eq!(all.remove(n, &r), Some(n));
                }
                let asked = range(seed);
                let before = random(seed) % (number + 2);
                let right: Vec<u64> = list.iter().filter(|(_, r)| overlap(r, &asked)).map(|(n, _)| *n).collect();
                let mut found: Vec<u64> = all.overlapping(&asked).copied().collect();
                found.sort_unstable();
                assert_eq!(found, right, "{asked:?}");
                let newest = right.iter().rfind(|n| **n < before).copied();
                assert_eq!(all.newest(&asked, before).map(|(n, _)| n), newest, "{asked:?}");
            }
            for (n, r) in list {
                assert_eq!(all.remove(n, &r), Some(n));
            }
            assert!(all.is_empty());
        }
    }
}
