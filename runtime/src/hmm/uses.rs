//! The launches that use bytes of a segment, from their recording until they retire.
//!
//! **Guarantee.** What a launch has to know of those before it costs by what it touches and by how many wrote that last, not by how many
//! launches are on their way: see [`Stretches`].
//!
//! **Two books.** *Uses*, by device, readers and writers apart, for whoever waits until bytes are free. *Last writers*: for each byte the
//! newest unfinished launch that writes it, which answers for those before it.
//!
//! **Locks:** none of its own; the segment's `uses` mutex is around it.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::inflight::InFlight;
use super::places::Places;
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
    mark: Option<Mark>,
}

/// A use that answers for those before it: its place in [`Uses::pieces`], and one more.
type Mark = NonZeroU32;

impl Use {
    pub(crate) fn new(bytes: Range<u64>, (writes, replaces): (bool, bool), launch: Arc<InFlight>) -> Self {
        Self { bytes, writes, replaces, launch, number: 0, mark: None }
    }
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
    /// Those whose launches have used the segment.
    devices: SmallVec<[(usize, Device); 1]>,
    /// By their first bytes.
    last: Places<Piece>,
    /// How many pieces of `last` each use has that has a mark.
    pieces: Vec<u32>,
    /// Marks that no use has.
    unused: Vec<Mark>,
}

#[derive(Debug, Default)]
struct Device {
    reads: Stretches<Use>,
    writes: Stretches<Use>,
}

/// Bytes whose newest unfinished writer is the use with mark `by`.
#[derive(Debug)]
struct Piece {
    end: u64,
    by: Mark,
    launch: Arc<InFlight>,
}

/// For so many marks room is kept when no use has one.
const KEPT: usize = 1024;

impl Uses {
    /// Adds a use; `last` says that it answers for those before it. The answer is its number.
    pub(crate) fn add(&mut self, mut used: Use, last: bool) -> u64 {
        self.next += 1;
        let number = self.next;
        used.number = number;
        if used.writes && last {
            used.mark = Some(self.wrote_last(&used));
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

    /// Makes it the last writer of its bytes; gives its mark.
    fn wrote_last(&mut self, used: &Use) -> Mark {
        let by = self.unused.pop().unwrap_or_else(|| {
            self.pieces.push(0);
            Mark::MIN.saturating_add(self.pieces.len() as u32 - 1)
        });
        *self.count(by) = 1;
        let (start, end) = (used.bytes.start, used.bytes.end);
        let piece = Piece { end, by, launch: Arc::clone(&used.launch) };
        match self.last.get_mut(start) {
            // Mostly it comes in the place of one over the same bytes.
            Some(same) if same.end == end => {
                let before = std::mem::replace(same, piece);
                *self.count(before.by) -= 1;
            }
            _ => {
                self.cut_out(&used.bytes);
                self.last.insert(start, piece);
            }
        }
        by
    }

    fn count(&mut self, mark: Mark) -> &mut u32 {
        &mut self.pieces[mark.get() as usize - 1]
    }

    /// Removes the use with this number.
    pub(crate) fn remove(&mut self, number: u64, slot: usize, bytes: &Range<u64>, writes: bool) {
        let Some((_, device)) = self.devices.iter_mut().find(|(s, _)| *s == slot) else { return };
        let list = if writes { &mut device.writes } else { &mut device.reads };
        let Some(by) = list.remove(number, bytes).and_then(|u| u.mark) else { return };
        let left = std::mem::take(self.count(by));
        if left > 0 {
            let mine: SmallVec<[u64; 4]> =
                self.pieces_in(bytes).filter(|(_, p)| p.by == by).map(|(start, _)| start).collect();
            debug_assert_eq!(mine.len(), left as usize);
            for start in mine {
                self.last.remove(start);
            }
        }
        self.unused.push(by);
        if self.unused.len() == self.pieces.len() && self.pieces.len() > KEPT {
            (self.pieces, self.unused) = (Vec::new(), Vec::new());
        }
    }

    /// The pieces that overlap `bytes`, by their starts.
    fn pieces_in(&self, bytes: &Range<u64>) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.last.last_up_to(bytes.start).map_or(bytes.start, |(start, _)| start);
        let start = bytes.start;
        self.last.range(first..bytes.end).filter(move |(_, p)| p.end > start)
    }

    /// Takes `bytes` from those who wrote them last.
    fn cut_out(&mut self, bytes: &Range<u64>) {
        let old: SmallVec<[u64; 4]> = self.pieces_in(bytes).map(|(start, _)| start).collect();
        for start in old {
            let Some(Piece { end, by, launch }) = self.last.remove(start) else { continue };
            *self.count(by) -= 1;
            for part in [start..end.min(bytes.start), start.max(bytes.end)..end] {
                if part.start < part.end {
                    *self.count(by) += 1;
                    self.last.insert(part.start, Piece { end: part.end, by, launch: Arc::clone(&launch) });
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
