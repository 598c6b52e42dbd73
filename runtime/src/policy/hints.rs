//! What a program has said of its allocations: hints, which policies read.

use std::ops::Range;

use sterna_hal::Access;

use super::{ArgEvent, Place};

/// A place that pages can be at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Host memory.
    Host,
    /// A device, by its number in the process.
    Device(usize),
}

/// What was said of some bytes (CUDA's `cudaMemAdvise` names them so).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub struct Hints {
    /// They are read by several sides and seldom written.
    pub read_mostly: bool,
    /// Where they had best be.
    pub preferred: Option<Side>,
    /// Bit `d`: device `d` uses them, wherever they are.
    pub accessed_by: u64,
}

impl Hints {
    /// The devices, by bit, whose faults use pages that are at home where they are.
    pub(crate) fn in_place(&self) -> u64 {
        if self.read_mostly {
            0
        } else if self.preferred == Some(Side::Host) {
            u64::MAX
        } else {
            self.accessed_by
        }
    }
}

impl ArgEvent {
    /// What the program's hints say of the place for a launch on device `device`; nothing where they say nothing.
    ///
    /// | of bytes that | a launch gets |
    /// |---|---|
    /// | are mostly read, and it reads | copies of its own |
    /// | had best be on its device | them in its memory |
    /// | had best be on the host, or it accesses wherever they are | them where they are |
    ///
    /// The first row that applies counts, as with CUDA: read duplication goes before the others.
    #[must_use]
    pub fn advised(&self, device: usize) -> Option<Place> {
        let Hints { read_mostly, preferred, accessed_by } = self.hints;
        if (read_mostly && self.access == Access::Read) || preferred == Some(Side::Device(device)) {
            Some(Place::Migrate)
        } else if !read_mostly && (preferred == Some(Side::Host) || accessed_by >> device & 1 == 1) {
            Some(Place::Remote)
        } else {
            None
        }
    }
}

/// Hints by range of bytes: apart, in ascending order, no two neighbours alike, none that says nothing.
#[derive(Clone, Default, Debug)]
pub(crate) struct HintMap(Vec<(Range<u64>, Hints)>);

impl HintMap {
    /// Changes what is said of `bytes`.
    pub(crate) fn change(&mut self, bytes: &Range<u64>, change: impl Fn(&mut Hints)) {
        let mut out: Vec<(Range<u64>, Hints)> = Vec::new();
        for (range, hints) in self.cut(0..u64::MAX, [bytes.start, bytes.end]) {
            let mut hints = hints;
            if bytes.start <= range.start && range.end <= bytes.end {
                change(&mut hints);
            }
            match out.last_mut() {
                Some((last, same)) if last.end == range.start && *same == hints => last.end = range.end,
                _ => out.push((range, hints)),
            }
        }
        out.retain(|(_, hints)| *hints != Hints::default());
        self.0 = out;
    }

    /// The parts of `bytes` of which the same is said, in order, those of which nothing is said among them.
    pub(crate) fn parts(&self, bytes: &Range<u64>) -> Vec<(Range<u64>, Hints)> {
        self.cut(bytes.clone(), [])
    }

    fn cut<const N: usize>(&self, within: Range<u64>, at: [u64; N]) -> Vec<(Range<u64>, Hints)> {
        let ends = self.0.iter().flat_map(|(r, _)| [r.start, r.end]);
        let mut cuts: Vec<u64> = ends.chain(at).chain([within.start, within.end]).collect();
        cuts.retain(|c| within.start <= *c && *c <= within.end);
        cuts.sort_unstable();
        cuts.dedup();
        let said = |p: u64| self.0.iter().find(|(r, _)| r.contains(&p)).map_or(Hints::default(), |(_, h)| *h);
        cuts.windows(2).map(|w| (w[0]..w[1], said(w[0]))).collect()
    }

    /// What is said of any of `bytes`, taken together.
    pub(crate) fn any(&self, bytes: &Range<u64>) -> Hints {
        let mut all = Hints::default();
        for (_, h) in self.0.iter().filter(|(r, _)| r.start < bytes.end && bytes.start < r.end) {
            all.read_mostly |= h.read_mostly;
            all.preferred = all.preferred.or(h.preferred);
            all.accessed_by |= h.accessed_by;
        }
        all
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(hints: Hints, access: Access) -> ArgEvent {
        ArgEvent { segment: 1, bytes: 0..4096, access, hints }
    }

    #[test]
    fn duplication_goes_first_then_the_preferred_place() {
        let said = |h: Hints, a| event(h, a).advised(1);
        let none = Hints::default();
        assert_eq!(said(none, Access::Read), None);
        let both = Hints { read_mostly: true, preferred: Some(Side::Host), accessed_by: 2 };
        assert_eq!(said(both, Access::Read), Some(Place::Migrate));
        assert_eq!(said(both, Access::ReadWrite), None);
        assert_eq!(said(Hints { preferred: Some(Side::Host), ..none }, Access::Read), Some(Place::Remote));
        assert_eq!(
            said(Hints { preferred: Some(Side::Device(1)), accessed_by: 2, ..none }, Access::Read),
            Some(Place::Migrate)
        );
        assert_eq!(said(Hints { preferred: Some(Side::Device(0)), ..none }, Access::Read), None);
        assert_eq!(said(Hints { accessed_by: 2, ..none }, Access::ReadWrite), Some(Place::Remote));
        assert_eq!(said(Hints { accessed_by: 1, ..none }, Access::ReadWrite), None);
    }

    proptest! {
        #[test]
        fn a_map_says_what_an_array_says(changes in prop::collection::vec((0_u64..32, 0_u64..32, 0_u64..8), 0..12)) {
            let mut map = HintMap::default();
            let mut plain = [0_u64; 32];
            for (a, b, v) in changes {
                let range = a.min(b)..a.max(b);
                map.change(&range, |h| h.accessed_by = v);
                plain[range.start as usize..range.end as usize].fill(v);
            }
            let mut seen = Vec::new();
            for (range, h) in map.parts(&(0..32)) {
                prop_assert!(range.start < range.end);
                seen.extend(range.map(|_| h.accessed_by));
            }
            prop_assert_eq!(&seen[..], &plain[..]);
            prop_assert_eq!(map.any(&(3..9)).accessed_by, plain[3..9].iter().fold(0, |m, v| m | v));
            prop_assert!(map.0.windows(2).all(|w| w[0].0.end < w[1].0.start || w[0].1 != w[1].1));
            prop_assert_eq!(map.is_empty(), plain == [0; 32]);
        }
    }
}
