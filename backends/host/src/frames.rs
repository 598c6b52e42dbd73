//! Which grains of device memory are free.
//!
//! **Guarantee:** a grain is handed out at most once until it is given back; an allocation gets all that it asked for or nothing.
//! The same calls in the same order give the same grains.
//!
//! **States:** a grain is free or taken (one bit). A *chunk* of 2 MiB is whole (all free), partial, or full; large requests are
//! served from whole chunks and small ones from partial chunks where that is possible, so that contiguity survives. A chunk is
//! *fresh* until the first time that any of it is handed out.
//!
//! **Locks:** none; the owner holds one around every call.

use std::cmp::Reverse;

use smallvec::SmallVec;
use sterna_hal::Frames;

/// Chunks that were handed out for the first time, as (first, count).
pub type Fresh = SmallVec<[(u32, u32); 4]>;

/// Free grains of device memory.
#[derive(Debug)]
pub struct FrameTable {
    /// Grains a chunk: 1, 2, 4 … 512.
    per_chunk: u32,
    /// Words of `free` a chunk.
    words: usize,
    /// A set bit is a free grain. Grains behind the budget are never free.
    free: Vec<u64>,
    /// By chunk, length of the longest stretch of free grains; `per_chunk` means whole.
    longest: Vec<u16>,
    fresh: Vec<bool>,
    /// As `free`: grains that have storage, as far as is known.
    stored: Vec<u64>,
    /// By chunk, how many are free and have storage; and all of them.
    kept_in: Vec<u16>,
    kept: u32,
    /// By chunk, the round in which it last changed; see [`idle`](Self::idle).
    changed: Vec<u32>,
    round: u32,
    available: u32,
    total: u32,
}

impl FrameTable {
    /// All of `total` grains are free; `per_chunk` of them are 2 MiB.
    #[must_use]
    pub fn new(total: u32, per_chunk: u32) -> Self {
        let chunks = total.div_ceil(per_chunk) as usize;
        let words = per_chunk.div_ceil(64) as usize;
        let mut this = Self {
            per_chunk,
            words,
            free: vec![0; chunks * words],
            longest: vec![0; chunks],
            fresh: vec![true; chunks],
            stored: vec![0; chunks * words],
            kept_in: vec![0; chunks],
            kept: 0,
            changed: vec![0; chunks],
            round: 0,
            available: 0,
            total,
        };
        this.give(0, total);
        this
    }

    /// Grains that are taken.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.total - self.available
    }

    /// Takes `grains` grains and appends them to `out`; false, and nothing taken, if there are not as many.
    pub fn alloc(&mut self, grains: u32, out: &mut Vec<Frames>, fresh: &mut Fresh) -> bool {
        if grains > self.available {
            return false;
        }
        let start = out.len();
        let mut left = grains - self.take_whole(grains / self.per_chunk, start, out, fresh) * self.per_chunk;
        if left > 0
            && let Some(first) = self.place_small(left, out.get(start..).and_then(<[_]>::last))
        {
            self.take(first, left, start, out, fresh);
            left = 0;
        }
        if left > 0 {
            self.take_pieces(left, start, out, fresh);
        }
        true
    }

    /// Gives grains back.
    pub fn free(&mut self, frames: Frames) {
        let end = u64::from(frames.first) + u64::from(frames.grains);
        debug_assert!(end <= u64::from(self.total), "{frames:?} is not of this device");
        if end <= u64::from(self.total) {
            let given = self.give(frames.first, frames.grains);
            debug_assert_eq!(given, frames.grains, "{frames:?} was given back twice");
        }
    }

    /// Chunks that were handed out for the first time turned out not to be had: they are fresh again.
    pub fn untouched(&mut self, chunk: u32, count: u32) {
        self.fresh[chunk as usize..][..count as usize].fill(true);
    }

    /// Free grains that have storage.
    #[must_use]
    pub fn kept(&self) -> u32 {
        self.kept
    }

    fn count_kept(&mut self, chunk: usize) {
        let words = chunk * self.words..(chunk + 1) * self.words;
        let both = self.free[words.clone()].iter().zip(&self.stored[words]);
        let now: u32 = both.map(|(free, stored)| (free & stored).count_ones()).sum();
        self.kept = self.kept - u32::from(self.kept_in[chunk]) + now;
        self.kept_in[chunk] = now as u16;
    }

    /// Begins a round; what changes from now on is told apart from what does not.
    pub fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Takes the free grains with storage of the first chunk from `from` on in which nothing changed since the round before this one
    /// began: the chunk, and the grains. They go back with [`stripped`](Self::stripped).
    pub fn idle(&mut self, from: usize) -> Option<(usize, Vec<Frames>)> {
        let last = self.round.wrapping_sub(1);
        let idle = |this: &Self, chunk: usize| {
            this.kept_in[chunk] > 0 && this.changed[chunk] != this.round && this.changed[chunk] != last
        };
        let chunk = (from..self.longest.len()).find(|chunk| idle(self, *chunk))?;
        let mut out = Vec::new();
        for (first, grains) in self.runs(chunk) {
            self.take(first, grains, 0, &mut out, &mut Fresh::new());
        }
        Some((chunk, out))
    }

    /// Gives back what [`idle`](Self::idle) took of a chunk; with `gone` it has no storage any more.
    pub fn stripped(&mut self, chunk: usize, frames: &[Frames], gone: bool) {
        for f in frames {
            self.give(f.first, f.grains);
            if gone {
                for (word, mask) in masks(f.first % self.per_chunk, f.grains) {
                    self.stored[chunk * self.words + word] &= !mask;
                }
            }
        }
        self.count_kept(chunk);
        // In one piece again when it is next handed out.
        self.fresh[chunk] |= gone && u32::from(self.longest[chunk]) == self.per_chunk;
    }

    /// Takes up to `chunks` whole chunks in as few stretches as possible; says how many it took.
    fn take_whole(&mut self, chunks: u32, start: usize, out: &mut Vec<Frames>, fresh: &mut Fresh) -> u32 {
        if chunks == 0 {
            return 0;
        }
        let mut runs: SmallVec<[(u32, u32); 32]> = SmallVec::new();
        for (i, _) in self.longest.iter().enumerate().filter(|(_, l)| u32::from(**l) == self.per_chunk) {
            match runs.last_mut() {
                Some((first, len)) if *first + *len == i as u32 => *len += 1,
                _ => runs.push((i as u32, 1)),
            }
        }
        // The shortest stretch that is long enough, else the longest ones.
        if let Some(&(first, _)) = runs.iter().filter(|r| r.1 >= chunks).min_by_key(|r| r.1) {
            self.take(first * self.per_chunk, chunks * self.per_chunk, start, out, fresh);
            return chunks;
        }
        runs.sort_by_key(|r| Reverse(r.1));
        let mut left = chunks;
        for (first, len) in runs {
            let n = len.min(left);
            if n > 0 {
                self.take(first * self.per_chunk, n * self.per_chunk, start, out, fresh);
            }
            left -= n;
        }
        chunks - left
    }

    /// Where `grains` (less than a chunk) fit in one stretch: the tightest partial chunk, else a whole one, if possible the one
    /// behind `last`. A last chunk that is shorter counts as a whole one while it is fresh: what lies highest is used last, since all
    /// memory below what is used can be accessed. `None` for a chunk or more, which is left over only when whole chunks have run out.
    fn place_small(&self, grains: u32, last: Option<&Frames>) -> Option<u32> {
        let whole = self.per_chunk as u16;
        let mut best: Option<(u16, usize)> = None;
        for (i, &l) in self.longest.iter().enumerate() {
            let rank = if self.fresh[i] { whole } else { l };
            if u32::from(l) >= grains && best.is_none_or(|(b, _)| rank < b) {
                best = Some((rank, i));
                if u32::from(rank) == grains {
                    break;
                }
            }
        }
        let (longest, mut chunk) = best?;
        if longest == whole {
            let behind = last.map(|f| ((f.first + f.grains) / self.per_chunk) as usize);
            chunk = behind.filter(|c| self.longest.get(*c) == Some(&longest)).unwrap_or(chunk);
        }
        self.runs(chunk).into_iter().find(|r| r.1 >= grains).map(|r| r.0)
    }

    /// Takes `left` grains wherever they are, from the longest stretches on.
    fn take_pieces(&mut self, mut left: u32, start: usize, out: &mut Vec<Frames>, fresh: &mut Fresh) {
        let mut chunks: Vec<(Reverse<u16>, usize)> =
            self.longest.iter().enumerate().filter(|(_, l)| **l > 0).map(|(i, l)| (Reverse(*l), i)).collect();
        chunks.sort_unstable();
        for (_, chunk) in chunks {
            let mut runs = self.runs(chunk);
            runs.sort_by_key(|r| Reverse(r.1));
            for (first, len) in runs {
                let n = len.min(left);
                self.take(first, n, start, out, fresh);
                left -= n;
                if left == 0 {
                    return;
                }
            }
        }
        debug_assert_eq!(left, 0, "the count of free grains was wrong");
    }

    /// Marks grains taken and appends them to `out`, joined to the last stretch if they follow it. Stretches before `start` are
    /// somebody else's.
    fn take(&mut self, first: u32, grains: u32, start: usize, out: &mut Vec<Frames>, fresh: &mut Fresh) {
        self.each_chunk(first, grains, |this, chunk, from, n| {
            for (word, mask) in masks(from, n) {
                let w = &mut this.free[chunk * this.words + word];
                debug_assert_eq!(*w & mask, mask, "a grain was handed out twice");
                *w &= !mask;
                this.stored[chunk * this.words + word] |= mask;
            }
            if std::mem::take(&mut this.fresh[chunk]) {
                // It gets all of its storage at once.
                this.stored[chunk * this.words..][..this.words].fill(u64::MAX);
                let chunk = chunk as u32;
                match fresh.last_mut() {
                    Some((first, n)) if *first + *n == chunk => *n += 1,
                    _ => fresh.push((chunk, 1)),
                }
            }
        });
        self.available -= grains;
        match out.get_mut(start..).and_then(<[_]>::last_mut) {
            Some(last) if last.first + last.grains == first => last.grains += grains,
            _ => out.push(Frames { first, grains }),
        }
    }

    /// Marks grains free; says how many were not.
    fn give(&mut self, first: u32, grains: u32) -> u32 {
        let mut given = 0;
        self.each_chunk(first, grains, |this, chunk, from, n| {
            for (word, mask) in masks(from, n) {
                let w = &mut this.free[chunk * this.words + word];
                given += (mask & !*w).count_ones();
                *w |= mask;
            }
        });
        self.available += given;
        given
    }

    /// Calls `change(self, chunk, first grain within it, grains)` for every chunk of a stretch, then measures the chunk anew.
    fn each_chunk(&mut self, first: u32, grains: u32, mut change: impl FnMut(&mut Self, usize, u32, u32)) {
        let (mut at, end) = (first, first + grains);
        while at < end {
            let (chunk, from) = ((at / self.per_chunk) as usize, at % self.per_chunk);
            let n = (self.per_chunk - from).min(end - at);
            change(self, chunk, from, n);
            self.changed[chunk] = self.round;
            self.count_kept(chunk);
            self.longest[chunk] = self.runs(chunk).into_iter().map(|r| r.1).max().unwrap_or(0) as u16;
            at += n;
        }
    }

    /// The free stretches of a chunk, as (first grain, grains).
    fn runs(&self, chunk: usize) -> SmallVec<[(u32, u32); 16]> {
        let mut runs: SmallVec<[(u32, u32); 16]> = SmallVec::new();
        let base = chunk as u32 * self.per_chunk;
        for (i, &word) in self.free[chunk * self.words..][..self.words].iter().enumerate() {
            let (mut rest, mut bit) = (word, i as u32 * 64);
            while rest != 0 {
                let skip = rest.trailing_zeros();
                rest >>= skip;
                let len = rest.trailing_ones();
                match runs.last_mut() {
                    Some((first, n)) if *first + *n == base + bit + skip => *n += len,
                    _ => runs.push((base + bit + skip, len)),
                }
                bit += skip + len;
                rest = rest.checked_shr(len).unwrap_or(0);
            }
        }
        runs
    }
}

/// The words and bit masks of `n` bits from bit `from` on.
fn masks(from: u32, n: u32) -> impl Iterator<Item = (usize, u64)> {
    let end = from + n;
    (from / 64..end.div_ceil(64)).map(move |word| {
        let (low, high) = (from.max(word * 64) - word * 64, end.min(word * 64 + 64) - word * 64);
        (word as usize, (u64::MAX >> (64 - (high - low))) << low)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc(t: &mut FrameTable, n: u32) -> Option<Vec<Frames>> {
        let mut out = Vec::new();
        t.alloc(n, &mut out, &mut Fresh::new()).then_some(out)
    }

    #[test]
    fn whole_chunks_come_in_one_stretch_and_remainders_follow() {
        let mut t = FrameTable::new(32 * 8, 32);
        assert_eq!(alloc(&mut t, 70).unwrap(), [Frames { first: 0, grains: 70 }]);
        // Small requests fill the partial chunk, and leave the whole ones alone.
        assert_eq!(alloc(&mut t, 20).unwrap(), [Frames { first: 70, grains: 20 }]);
        assert_eq!(alloc(&mut t, 32).unwrap(), [Frames { first: 96, grains: 32 }]);
        assert!(alloc(&mut t, 256).is_none());
        assert_eq!(t.in_use(), 122);
    }

    #[test]
    fn an_end_shorter_than_a_chunk_is_used_last() {
        let mut t = FrameTable::new(32 * 3 + 5, 32);
        for first in 0..3 {
            assert_eq!(alloc(&mut t, 4).unwrap(), [Frames { first: first * 4, grains: 4 }]);
        }
        assert_eq!(alloc(&mut t, 84).unwrap().iter().map(|f| f.first + f.grains).max(), Some(96));
        assert_eq!(alloc(&mut t, 5).unwrap(), [Frames { first: 96, grains: 5 }]);
    }

    #[test]
    fn fresh_chunks_are_told_once() {
        let mut t = FrameTable::new(64, 32);
        let (mut out, mut fresh) = (Vec::new(), Fresh::new());
        assert!(t.alloc(64, &mut out, &mut fresh));
        assert_eq!(fresh.as_slice(), [(0, 2)]);
        t.free(Frames { first: 0, grains: 64 });
        fresh.clear();
        assert!(t.alloc(1, &mut out, &mut fresh) && fresh.is_empty());
        // `out` was not empty: what was in it stays as it was.
        assert_eq!(out, [Frames { first: 0, grains: 64 }, Frames { first: 0, grains: 1 }]);
    }

    #[test]
    fn an_incomplete_last_chunk_ends_at_the_budget() {
        for per_chunk in [1, 32, 512] {
            let mut t = FrameTable::new(1000, per_chunk);
            let got = alloc(&mut t, 1000).unwrap();
            assert_eq!(got, [Frames { first: 0, grains: 1000 }]);
            assert!(alloc(&mut t, 1).is_none());
        }
    }

    #[test]
    fn random_traffic_never_hands_out_a_grain_twice() {
        for per_chunk in [1_u32, 32, 512] {
            let total = per_chunk * 40 - per_chunk / 3;
            let mut t = FrameTable::new(total, per_chunk);
            let mut taken = vec![false; total as usize];
            let mut live: Vec<Vec<Frames>> = Vec::new();
            let mut seed = 0x2545_F491_4F6C_DD1D_u64;
            let mut random = |n: u32| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 33) as u32 % n
            };
            for _ in 0..4000 {
                if random(2) == 0 {
                    let n = 1 + if random(4) == 0 { random(per_chunk * 9) } else { random(per_chunk.min(20)) };
                    let room = total - t.in_use();
                    let got = alloc(&mut t, n);
                    assert_eq!(got.is_some(), n <= room);
                    let Some(got) = got else { continue };
                    assert_eq!(got.iter().map(|f| f.grains).sum::<u32>(), n);
                    for g in got.iter().flat_map(|f| f.first..f.first + f.grains) {
                        assert!(!std::mem::replace(&mut taken[g as usize], true), "grain {g} handed out twice");
                    }
                    live.push(got);
                } else if !live.is_empty() {
                    let i = random(live.len() as u32) as usize;
                    for f in live.swap_remove(i) {
                        taken[f.first as usize..(f.first + f.grains) as usize].fill(false);
                        // In two parts: stretches may be cut at any grain.
                        let half = f.grains / 2;
                        t.free(Frames { first: f.first + half, grains: f.grains - half });
                        if half > 0 {
                            t.free(Frames { first: f.first, grains: half });
                        }
                    }
                }
                assert_eq!(t.in_use() as usize, taken.iter().filter(|b| **b).count());
            }
            for f in live.drain(..).flatten() {
                t.free(f);
            }
            assert_eq!(alloc(&mut t, total).unwrap().len(), 1);
        }
    }
}
