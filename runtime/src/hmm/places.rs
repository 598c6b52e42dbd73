//! Values by number, in order: a plain list as long as there are few of them, and a tree beyond.
//!
//! **Guarantee.** Adding, removing and finding cost logarithmically by how many there are. Where they come and go by ones and twos, as with
//! launches that are waited for one by one, nothing is allocated and nothing given back.
//!
//! **Locks:** none of its own.

use std::collections::BTreeMap;
use std::ops::Range;

/// So many are a list, in which they are moved about.
const FEW: usize = 16;

/// See the module. One of the two is empty.
#[derive(Debug)]
pub(crate) struct Places<V> {
    few: Vec<(u64, V)>,
    many: BTreeMap<u64, V>,
}

impl<V> Default for Places<V> {
    fn default() -> Self {
        Self { few: Vec::new(), many: BTreeMap::new() }
    }
}

impl<V> Places<V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_empty()
    }

    /// Where in the list it stands or would stand.
    fn index(&self, at: u64) -> usize {
        self.few.iter().position(|(k, _)| *k >= at).unwrap_or(self.few.len())
    }

    pub(crate) fn get_mut(&mut self, at: u64) -> Option<&mut V> {
        if self.many.is_empty() {
            self.few.iter_mut().find(|(k, _)| *k == at).map(|(_, v)| v)
        } else {
            self.many.get_mut(&at)
        }
    }

    /// What stands there, from now on if nothing did.
    pub(crate) fn get_or_insert_with(&mut self, at: u64, new: impl FnOnce() -> V) -> &mut V {
        if self.many.is_empty() {
            let i = self.index(at);
            let known = self.few.get(i).is_some_and(|(k, _)| *k == at);
            if known || self.few.len() < FEW {
                if !known {
                    self.few.insert(i, (at, new()));
                }
                return &mut self.few[i].1;
            }
            self.many = self.few.drain(..).collect();
        }
        self.many.entry(at).or_insert_with(new)
    }

    /// Puts a value there, in place of what stood there.
    pub(crate) fn insert(&mut self, at: u64, value: V) {
        if self.many.is_empty() {
            let (i, room) = (self.index(at), self.few.len() < FEW);
            match self.few.get_mut(i) {
                Some((k, v)) if *k == at => *v = value,
                _ if room => self.few.insert(i, (at, value)),
                _ => {
                    self.many = self.few.drain(..).collect();
                    self.many.insert(at, value);
                }
            }
        } else {
            self.many.insert(at, value);
        }
    }

    pub(crate) fn remove(&mut self, at: u64) -> Option<V> {
        if !self.many.is_empty() {
            return self.many.remove(&at);
        }
        let i = self.index(at);
        self.few.get(i).is_some_and(|(k, _)| *k == at).then(|| self.few.remove(i).1)
    }

    /// Those with numbers in `range`, in order.
    pub(crate) fn range(&self, range: Range<u64>) -> impl DoubleEndedIterator<Item = (u64, &V)> {
        let (start, end) = (range.start, range.end.max(range.start));
        let few = self.few.iter().filter(move |(k, _)| (start..end).contains(k)).map(|(k, v)| (*k, v));
        few.chain(self.many.range(start..end).map(|(k, v)| (*k, v)))
    }

    /// The last one up to number `at`.
    pub(crate) fn last_up_to(&self, at: u64) -> Option<(u64, &V)> {
        if self.many.is_empty() {
            self.few.iter().rev().find(|(k, _)| *k <= at).map(|(k, v)| (*k, v))
        } else {
            self.many.range(..=at).next_back().map(|(k, v)| (*k, v))
        }
    }

    /// All of them in order, as long as they are few.
    pub(crate) fn few(&self) -> Option<&[(u64, V)]> {
        self.many.is_empty().then_some(&self.few)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with a tree, above and below the number of a list.
    #[test]
    fn they_are_found_as_in_a_tree() {
        let (mut places, mut tree) = (Places::default(), BTreeMap::new());
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let (mut lists, mut trees) = (0, 0);
        for round in 0..20_000_u64 {
            // Some are added for a while, then all are removed: a tree is a list again when it is empty.
            let at = random(64);
            if round / 500 % 2 == 0 && random(10) < 6 {
                if random(2) == 0 {
                    places.insert(at, round);
                    tree.insert(at, round);
                } else {
                    assert_eq!(places.get_or_insert_with(at, || round), tree.entry(at).or_insert(round));
                }
            } else {
                assert_eq!(places.remove(at), tree.remove(&at));
            }
            let (a, b) = (random(64), random(64));
            assert!(places.range(a..b).eq(tree.range(a..b.max(a)).map(|(k, v)| (*k, v))));
            assert!(places.range(a..b).rev().eq(tree.range(a..b.max(a)).rev().map(|(k, v)| (*k, v))));
            assert_eq!(places.last_up_to(a), tree.range(..=a).next_back().map(|(k, v)| (*k, v)));
            assert_eq!(places.get_mut(a), tree.get_mut(&a));
            assert_eq!(places.is_empty(), tree.is_empty());
            if let Some(few) = places.few() {
                assert!(few.iter().map(|(k, v)| (k, v)).eq(&tree));
                lists += 1;
            } else {
                trees += 1;
            }
        }
        assert!(lists > 1000 && trees > 1000, "{lists}, {trees}");
    }
}
