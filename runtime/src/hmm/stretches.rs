//! Ranges of bytes, numbered in the order in which they came, found by what they overlap.
//!
//! **Guarantee.** Adding, removing and finding cost by the number of different places in the ranges, logarithmically, never by the
//! number of ranges: a hundred thousand launches over one range are one place.
//!
//! **How.** A range stands at the byte in it whose number has the most trailing zeros. All ranges of one place have that byte in
//! common, and a range that overlaps bytes `a..b` stands in them, or at one of the few places that lead to `a` or to `b - 1`.
//!
//! **Locks:** none of its own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::extent::overlap;

/// Places up to this number are all looked at: cheaper than asking for each that may be there.
const FEW: usize = 24;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stretches<T> {
    places: BTreeMap<u64, Place<T>>,
}

#[derive(Debug)]
struct Place<T> {
    /// What its ranges cover; more, once some were removed.
    hull: Range<u64>,
    /// In the order of their numbers. What was removed from between stays as nothing for a while.
    list: VecDeque<(u64, Range<u64>, Option<T>)>,
    /// How many of them are nothing.
    gone: usize,
}

impl<T> Default for Stretches<T> {
    fn default() -> Self {
        Self { places: BTreeMap::new() }
    }
}

/// Where a range stands. It has a byte.
fn place_of(range: &Range<u64>) -> u64 {
    let last = range.end - 1;
    let differ = range.start ^ last;
    if differ == 0 { last } else { last & (u64::MAX << differ.ilog2()) }
}

impl<T> Stretches<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a range with a number above all others.
    pub(crate) fn add(&mut self, number: u64, range: Range<u64>, value: T) {
        let new = || Place { hull: range.clone(), list: VecDeque::new(), gone: 0 };
        let place = self.places.entry(place_of(&range)).or_insert_with(new);
        debug_assert!(place.list.back().is_none_or(|(n, ..)| *n < number));
        place.hull = place.hull.start.min(range.start)..place.hull.end.max(range.end);
        place.list.push_back((number, range, Some(value)));
    }

    /// Removes the range that was added with this number.
    pub(crate) fn remove(&mut self, number: u64, range: &Range<u64>) -> Option<T> {
        let at = place_of(range);
        let place = self.places.get_mut(&at)?;
        let i = place.list.binary_search_by_key(&number, |(n, ..)| *n).ok()?;
        let value = place.list[i].2.take()?;
        place.gone += 1;
        while place.list.front().is_some_and(|(.., v)| v.is_none()) {
            place.list.pop_front();
            place.gone -= 1;
        }
        if place.list.is_empty() {
            self.places.remove(&at);
        } else if place.gone > 32 && place.gone > place.list.len() / 2 {
            place.list.retain(|(.., v)| v.is_some());
            place.gone = 0;
        }
        Some(value)
    }

    /// The places at which a range that overlaps `bytes` may stand.
    fn near(&self, bytes: &Range<u64>) -> impl Iterator<Item = &Place<T>> {
        let few = self.places.len() <= FEW;
        let all = few.then(|| self.places.values()).into_iter().flatten();
        let (a, last) = (bytes.start, bytes.end.max(1) - 1);
        let within = (!few).then(|| self.places.range(a..=last).map(|(_, p)| p)).into_iter().flatten();
        // A place before `a` is `a` without some of its last bits; one behind `last` has a bit set that `last` has not, and none after it.
        let steps = if few { 0..0 } else { 0..u64::BITS - self.places.keys().next_back().map_or(0, |k| k.leading_zeros()) };
        let before = steps.clone().filter(move |k| a >> k & 1 == 1).map(move |k| a >> k >> 1 << k << 1);
        let behind = steps.filter(move |k| last >> k & 1 == 0).map(move |k| (last >> k | 1) << k);
        let outside = before.chain(behind).filter_map(|at| self.places.get(&at));
        let bytes = bytes.clone();
        all.chain(within).chain(outside).filter(move |p| overlap(&p.hull, &bytes))
    }

    /// The ranges that overlap `bytes`, the oldest of each place first.
    pub(crate) fn overlapping(&self, bytes: &Range<u64>) -> impl Iterator<Item = &T> {
        let b = bytes.clone();
        let of = move |(_, range, value)| if overlap(range, &b) { Option::as_ref(value) } else { None };
        self.near(bytes).flat_map(|p| p.list.iter().map(|(n, r, v)| (*n, r, v))).filter_map(of)
    }

    /// The newest range with a number below `before` that overlaps `bytes`, and its number.
    pub(crate) fn newest(&self, bytes: &Range<u64>, before: u64) -> Option<(u64, &T)> {
        let mut best: Option<(u64, &T)> = None;
        for p in self.near(bytes) {
            let end = p.list.partition_point(|(n, ..)| *n < before);
            let floor = best.map_or(0, |(n, _)| n);
            let older = p.list.range(..end).rev().take_while(|(n, ..)| *n >= floor);
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
