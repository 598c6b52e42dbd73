//! What a device would take along: the pages that only it may have.
//!
//! A page is in danger from the moment a launch that may write it was asked for, until the host has it again. With it are those of
//! its grain, since devices have entries for whole grains, and on a device that faults those of its block, since a fault for writing
//! brings pages along. Too much may count as in danger, too little may not.

use std::collections::HashMap;
use std::ops::Range;

const PAGE: usize = 4096;
/// Beside the bits of devices: some launch that may write it has perhaps not ended, and fails with any device's loss.
const UNSETTLED: u8 = 1 << 7;

#[derive(Default)]
pub(super) struct Danger(HashMap<usize, u8>);

fn pages(addresses: &Range<usize>, grain: usize) -> Range<usize> {
    addresses.start / grain * grain / PAGE..addresses.end.next_multiple_of(grain) / PAGE
}

impl Danger {
    /// A launch on `dev` may write these addresses.
    pub(super) fn written(&mut self, dev: usize, addresses: &Range<usize>, grain: usize) {
        for p in pages(addresses, grain) {
            *self.0.entry(p).or_default() |= 1 << dev | UNSETTLED;
        }
    }

    /// The host has these addresses; a launch that has not ended may take them again, as neighbours of its own.
    pub(super) fn home(&mut self, addresses: &Range<usize>) {
        for p in pages(addresses, PAGE) {
            if self.0.get(&p).is_some_and(|m| m & UNSETTLED == 0) {
                self.0.remove(&p);
            }
        }
    }

    /// No launch is unfinished.
    pub(super) fn settled(&mut self) {
        self.0.values_mut().for_each(|m| *m &= !UNSETTLED);
    }

    /// A device is gone, and everybody knows what went with it.
    pub(super) fn gone(&mut self, dev: usize) {
        self.0.values_mut().for_each(|m| *m &= !(UNSETTLED | 1 << dev));
    }

    /// Whether the loss of `dev` may take some of these addresses along.
    pub(super) fn of(&self, dev: usize, addresses: &Range<usize>) -> bool {
        pages(addresses, PAGE).any(|p| self.0.get(&p).is_some_and(|m| m & (UNSETTLED | 1 << dev) != 0))
    }
}
