//! The launches that use bytes of a segment, from their recording until they retire.
//!
//! **Guarantee.** What a launch has to know of those before it costs by what it touches and by how many wrote that last, not by how many
//! launches are on their way: see [`Stretches`].
//!
//! **Two books.** *Uses*, by device, readers and writers apart, for whoever waits until bytes are free. *Last writers*: for each byte the
//! newest unfinished launch that writes it, which answers for those before it.
//!
//! **Locks:** none of its own; the segment's `uses` mutex is around it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::inflight::InFlight;
use super::stretches::Stretches;

/// A use of a segment's bytes by a launch.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) bytes: Range<u64>,
    pub(crate) writes: bool,
    /// It writes all of them and reads none.
    pub(crate) replaces: bool,
    pub(crate) launch: Arc<InFlight>,
    /// Of the uses of its segment, in the order in which they came; given by [`Uses::add`].
    pub(crate) number: u64,
}

/// Uses by the launches of which device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Of {
    Any,
    Slot(usize),
    Others(usize),
}

impl Of {
    fn has(self, slot: usize) -> bool {
        match self {
            Self::Any => true,
            Self::Slot(s) => s == slot,
            Self::Others(s) => s != slot,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    next: u64,
    devices: SmallVec<[(usize, Device); 1]>,
    last: BTreeMap<u64, Piece>,
    /// How many pieces of `last` each use has, by its number.
    pieces: FxHashMap<u64, u32>,
}

#[derive(Debug, Default)]
struct Device {
    reads: Stretches<Use>,
    writes: Stretches<Use>,
}

/// Bytes whose newest unfinished writer is use number `by`.
#[derive(Debug)]
struct Piece {
    end: u64,
    by: u64,
    launch: Arc<InFlight>,
}

impl Uses {
    /// Adds a use; `last` says that it answers for those before it. The answer is its number.
    pub(crate) fn add(&mut self, mut used: Use, last: bool) -> u64 {
        self.next += 1;
        let number = self.next;
        used.number = number;
        if used.writes && last {
            self.cut_out(&used.bytes);
            let piece = Piece { end: used.bytes.end, by: number, launch: Arc::clone(&used.launch) };
            self.last.insert(used.bytes.start, piece);
            self.pieces.insert(number, 1);
        }
        let slot = used.launch.mirror().slot();
        let i = self.devices.iter().position(|(s, _)| *s == slot).unwrap_or_else(|| {
            self.devices.push((slot, Device::default()));
            self.devices.len() - 1
        });
        let device = &mut self.devices[i].1;
        let list = if used.writes { &mut device.writes } else { &mut device.reads };
        list.add(number, used.bytes.clone(), used);
        number
    }

    /// The number of the use that came last.
    pub(crate) fn latest(&self) -> u64 {
        self.next
    }

    /// Removes the use with this number.
    pub(crate) fn remove(&mut self, number: u64, slot: usize, bytes: &Range<u64>, writes: bool) {
        let Some(i) = self.devices.iter().position(|(s, _)| *s == slot) else { return };
        let device = &mut self.devices[i].1;
        let list = if writes { &mut device.writes } else { &mut device.reads };
        list.remove(number, bytes);
        if device.reads.is_empty() && device.writes.is_empty() {
            self.devices.swap_remove(i);
        }
        if self.pieces.remove(&number).is_some() {
            let mine: SmallVec<[u64; 4]> =
                self.pieces_in(bytes).filter(|(_, p)| p.by == number).map(|(start, _)| start).collect();
            for start in mine {
                self.last.remove(&start);
            }
        }
    }

    /// The pieces that overlap `bytes`, by their starts.
    fn pieces_in(&self, bytes: &Range<u64>) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.last.range(..=bytes.start).next_back().map_or(bytes.start, |(start, _)| *start);
        let (start, end) = (bytes.start, bytes.end);
        self.last.range(first..end.max(first)).filter(move |(_, p)| p.end > start).map(|(start, p)| (*start, p))
    }

    /// Takes `bytes` from those who wrote them last.
    fn cut_out(&mut self, bytes: &Range<u64>) {
        let old: SmallVec<[u64; 4]> = self.pieces_in(bytes).map(|(start, _)| start).collect();
        for start in old {
            let Some(Piece { end, by, launch }) = self.last.remove(&start) else { continue };
            let mut left = 0;
            for part in [start..end.min(bytes.start), start.max(bytes.end)..end] {
                if part.start < part.end {
                    left += 1;
                    self.last.insert(part.start, Piece { end: part.end, by, launch: Arc::clone(&launch) });
                }
            }
            if left != 1
                && let Some(n) = self.pieces.get_mut(&by)
            {
                *n = *n + left - 1;
                if *n == 0 {
                    self.pieces.remove(&by);
                }
            }
        }
    }

    /// Who wrote `bytes` last, in pieces, of the unfinished launches that answer for others.
    pub(crate) fn last_writers(&self, bytes: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Arc<InFlight>)> {
        self.pieces_in(bytes).map(|(start, p)| (start..p.end, &p.launch))
    }

    /// The newest use before number `before` that overlaps `bytes`.
    pub(crate) fn newest(&self, of: Of, bytes: &Range<u64>, reads: bool, before: u64) -> Option<&Arc<InFlight>> {
        let devices = self.devices.iter().filter(|(slot, _)| of.has(*slot)).map(|(_, d)| d);
        let newest = devices.filter_map(|d| {
            let read = if reads { d.reads.newest(bytes, before) } else { None };
            d.writes.newest(bytes, before).into_iter().chain(read).max_by_key(|(n, _)| *n)
        });
        newest.max_by_key(|(n, _)| *n).map(|(_, u)| &u.launch)
    }

    /// The uses that overlap `bytes`, readers only with `reads`.
    pub(crate) fn overlapping(&self, of: Of, bytes: &Range<u64>, reads: bool) -> impl Iterator<Item = &Use> {
        let devices = self.devices.iter().filter(move |(slot, _)| of.has(*slot));
        devices.flat_map(move |(_, d)| {
            let readers = reads.then(|| d.reads.overlapping(bytes));
            d.writes.overlapping(bytes).chain(readers.into_iter().flatten())
        })
    }
}
