//! What is bound in the sparse buffers of a device, and which of it are entries.
//!
//! **Guarantee:** what [`change`](Entries::change) says is to be bound makes every entry name the frame that the last edit gave it. A frame is
//! bound where it is an entry, and beside that at most where it was one last: an entry that goes stays bound until its frame becomes
//! another entry or its place gets another frame. So pages that leave and come back to the frames that they keep cost no call of the
//! driver. Nobody can tell: what a launch finds where there is no entry is not defined on devices that cannot fault.
//!
//! **States of a grain:** unbound; entry; *idle*, bound and no entry; *unknown* after a call that failed: bound anew whatever comes.
//! No locks: the owner has one around every call.

use std::collections::BTreeMap;

use ash::vk;
use sterna_hal::{DevRange, DeviceError};
use sterna_host::sys::{invalid, to_usize};

/// In `frames`: the driver may have anything there.
const UNKNOWN: u32 = u32::MAX;

/// A sparse buffer and what of it is bound.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) buffer: vk::Buffer,
    /// The buffer's first address.
    pub(crate) base: u64,
    /// The first address that is given out.
    pub(crate) at: u64,
    pub(crate) bytes: u64,
    /// How much longer the buffer is.
    pub(crate) slack: u64,
    /// By grain: the frame that is bound and one, or 0.
    frames: Vec<u32>,
    /// Which of them are entries.
    live: Vec<u64>,
    /// Grains that are bound.
    count: u64,
}

impl Region {
    pub(crate) fn new(buffer: vk::Buffer, (base, at): (u64, u64), (bytes, slack): (u64, u64), grain: u64) -> Self {
        let grains = bytes / grain;
        let (frames, live) = (vec![0; to_usize(grains)], vec![0; to_usize(grains.div_ceil(64))]);
        Self { buffer, base, at, bytes, slack, frames, live, count: 0 }
    }

    fn is_live(&self, g: usize) -> bool {
        self.live[g / 64] >> (g % 64) & 1 == 1
    }

    fn set_live(&mut self, g: usize, live: bool) {
        let bit = 1 << (g % 64);
        if live { self.live[g / 64] |= bit } else { self.live[g / 64] &= !bit }
    }

    fn set(&mut self, g: usize, frame: u32) {
        let was = std::mem::replace(&mut self.frames[g], frame);
        self.count = self.count + u64::from(frame != 0) - u64::from(was != 0);
    }
}

/// A stretch of addresses that is to be bound to frames in a row, or unbound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// Where the region begins.
    pub(crate) region: u64,
    pub(crate) at: u64,
    pub(crate) grains: u64,
    pub(crate) first: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Entries {
    by_address: BTreeMap<u64, Region>,
    /// By frame: where it was bound last, if it still is; 0 for nowhere.
    places: Vec<u64>,
    grain: u64,
}

impl Entries {
    pub(crate) fn new(frames: u32, grain: u64) -> Self {
        Self { by_address: BTreeMap::new(), places: vec![0; frames as usize], grain }
    }

    pub(crate) fn add(&mut self, region: Region) {
        self.by_address.insert(region.at, region);
    }

    pub(crate) fn remove(&mut self, at: u64) -> Option<Region> {
        self.by_address.remove(&at)
    }

    /// The region that has all of `range`.
    pub(crate) fn of(&self, call: &'static str, range: DevRange) -> Result<&Region, DeviceError> {
        let inside = |r: &Region| range.at.0.checked_add(range.bytes).is_some_and(|end| end <= r.at + r.bytes);
        let found = self.by_address.range(..=range.at.0).next_back().map(|(_, r)| r).filter(|r| inside(r));
        found.ok_or_else(|| invalid(call, format!("{range:x?} is outside every reservation")))
    }

    /// The grain at an address, if it has this frame.
    fn bound(&mut self, at: u64, frame: u32) -> Option<(&mut Region, usize)> {
        let grain = self.grain;
        let region = self.by_address.range_mut(..=at).next_back().map(|(_, r)| r).filter(|r| at < r.at + r.bytes)?;
        let g = to_usize((at - region.at) / grain);
        (region.frames[g] == frame + 1).then_some((region, g))
    }

    /// Makes the entries of `range`, which is in a region, name frames from `first` on, or nothing. Appends what has to be bound for that.
    fn enter(&mut self, range: DevRange, first: Option<u32>, out: &mut Vec<Change>, moved: &mut Vec<(u64, u32)>) {
        let (grain, places) = (self.grain, &mut self.places);
        let Some((_, region)) = self.by_address.range_mut(..=range.at.0).next_back() else { return };
        for i in 0..range.bytes / grain {
            let at = range.at.0 + i * grain;
            let g = to_usize((at - region.at) / grain);
            region.set_live(g, first.is_some());
            let now = region.frames[g];
            let frame = first.map(|f| f + i as u32);
            match frame {
                Some(f) => {
                    if now == f + 1 && places[f as usize] == at {
                        continue;
                    }
                    let before = std::mem::replace(&mut places[f as usize], at);
                    region.set(g, f + 1);
                    if before != 0 && before != at {
                        moved.push((before, f));
                    }
                }
                // An entry of the frame's own place may stay bound.
                None if now == 0 || now != UNKNOWN && places[now as usize - 1] == at => continue,
                None => region.set(g, 0),
            }
            push(out, grain, Change { region: region.at, at, grains: 1, first: frame });
        }
    }

    /// Makes edits, which are of regions and do not overlap; says what the driver has to do for them, in any order.
    pub(crate) fn change(&mut self, edits: impl Iterator<Item = (DevRange, Option<u32>)>) -> Vec<Change> {
        let (mut out, mut moved) = (Vec::new(), Vec::new());
        for (range, first) in edits {
            self.enter(range, first, &mut out, &mut moved);
        }
        self.unbind(&moved, &mut out);
        out
    }

    /// Unbinds everything that is no entry.
    pub(crate) fn sweep(&mut self) -> Vec<Change> {
        let mut out = Vec::new();
        let bound: Vec<(u64, u32)> =
            self.places.iter().enumerate().filter(|(_, at)| **at != 0).map(|(f, at)| (*at, f as u32)).collect();
        self.unbind(&bound, &mut out);
        out
    }

    /// Unbinds frames from places where they are idle.
    fn unbind(&mut self, places: &[(u64, u32)], out: &mut Vec<Change>) {
        let grain = self.grain;
        for &(at, frame) in places {
            if let Some((region, g)) = self.bound(at, frame)
                && !region.is_live(g)
            {
                region.set(g, 0);
                push(out, grain, Change { region: region.at, at, grains: 1, first: None });
            }
        }
    }

    /// The driver did not do it, or not all.
    pub(crate) fn failed(&mut self, changes: &[Change]) {
        for c in changes {
            if let Some(region) = self.by_address.get_mut(&c.region) {
                let first = to_usize((c.at - region.at) / self.grain);
                (first..first + to_usize(c.grains)).for_each(|g| region.set(g, UNKNOWN));
            }
        }
    }

    /// The region of a change; the second is whether nothing of it is bound any more.
    pub(crate) fn region(&self, at: u64) -> (&Region, bool) {
        let region = &self.by_address[&at];
        (region, region.count == 0)
    }

    pub(crate) fn take(&mut self) -> impl Iterator<Item = Region> + use<> {
        std::mem::take(&mut self.by_address).into_values()
    }
}

/// Appends a change, or makes the last one longer.
fn push(out: &mut Vec<Change>, grain: u64, change: Change) {
    if let Some(last) = out.last_mut()
        && last.region == change.region
        && last.at + last.grains * grain == change.at
        && last.first.map(|f| u64::from(f) + last.grains) == change.first.map(u64::from)
    {
        last.grains += change.grains;
    } else {
        out.push(change);
    }
}

#[cfg(test)]
mod tests {
    use ash::vk::Handle;
    use sterna_hal::DevAddr;

    use super::*;

    const GRAIN: u64 = 1 << 16;

    /// Two regions of eight grains.
    fn entries() -> Entries {
        let mut e = Entries::new(16, GRAIN);
        for at in [16, 32] {
            e.add(Region::new(vk::Buffer::from_raw(at), (at * GRAIN, at * GRAIN), (8 * GRAIN, 0), GRAIN));
        }
        e
    }

    /// Edits as (first grain, grains, first frame); what has to be done as (grain, grains, first frame).
    fn change(e: &mut Entries, edits: &[(u64, u64, Option<u32>)]) -> Vec<(u64, u64, Option<u32>)> {
        let edits = edits.iter().map(|(at, n, f)| (DevRange { at: DevAddr(at * GRAIN), bytes: n * GRAIN }, *f));
        e.change(edits).iter().map(|c| (c.at / GRAIN, c.grains, c.first)).collect()
    }

    #[test]
    fn what_comes_back_to_its_frames_costs_nothing() {
        let mut e = entries();
        assert_eq!(change(&mut e, &[(16, 4, Some(2))]), [(16, 4, Some(2))]);
        assert_eq!(change(&mut e, &[(16, 4, None)]), []);
        assert_eq!(change(&mut e, &[(16, 2, Some(2)), (18, 2, Some(4))]), []);
    }

    #[test]
    fn a_frame_that_becomes_another_entry_is_unbound_where_it_was() {
        let mut e = entries();
        change(&mut e, &[(16, 4, Some(0))]);
        change(&mut e, &[(16, 4, None)]);
        assert_eq!(change(&mut e, &[(33, 2, Some(1))]), [(33, 2, Some(1)), (17, 2, None)]);
        // Unless its place gets another frame by the same edits.
        assert_eq!(change(&mut e, &[(34, 1, Some(0)), (16, 1, Some(9))]), [(34, 1, Some(0)), (16, 1, Some(9))]);
        assert_eq!(change(&mut e, &[(33, 3, None)]), []);
        assert_eq!(change(&mut e, &[(33, 2, Some(5))]), [(33, 2, Some(5))]);
    }

    #[test]
    fn two_entries_of_one_frame_are_both_bound_until_they_go() {
        let mut e = entries();
        change(&mut e, &[(16, 1, Some(3))]);
        assert_eq!(change(&mut e, &[(32, 1, Some(3))]), [(32, 1, Some(3))]);
        assert_eq!(change(&mut e, &[(16, 1, None)]), [(16, 1, None)]);
        assert_eq!(change(&mut e, &[(32, 1, None)]), []);
        assert!(e.region(32 * GRAIN).0.count == 1 && e.region(16 * GRAIN).1);
    }

    #[test]
    fn places_of_reservations_that_went_mean_nothing() {
        let mut e = entries();
        change(&mut e, &[(16, 1, Some(3))]);
        e.remove(16 * GRAIN);
        assert_eq!(change(&mut e, &[(32, 1, Some(3))]), [(32, 1, Some(3))]);
        e.add(Region::new(vk::Buffer::null(), (16 * GRAIN, 16 * GRAIN), (8 * GRAIN, 0), GRAIN));
        assert_eq!(change(&mut e, &[(16, 1, Some(4))]), [(16, 1, Some(4))]);
    }

    #[test]
    fn what_failed_is_done_again() {
        let mut e = entries();
        let edits = [(16, 2, Some(3))];
        let range = DevRange { at: DevAddr(16 * GRAIN), bytes: 2 * GRAIN };
        let done = e.change([(range, Some(3))].into_iter());
        e.failed(&done);
        assert_eq!(change(&mut e, &edits), [(16, 2, Some(3))]);
        e.failed(&done);
        assert_eq!(change(&mut e, &[(16, 2, None)]), [(16, 2, None)]);
    }

    #[test]
    fn a_sweep_leaves_entries_alone() {
        let mut e = entries();
        change(&mut e, &[(16, 4, Some(0))]);
        change(&mut e, &[(17, 2, None)]);
        let swept = e.sweep();
        assert_eq!(swept, [Change { region: 16 * GRAIN, at: 17 * GRAIN, grains: 2, first: None }]);
        assert_eq!(e.sweep(), []);
    }
}
