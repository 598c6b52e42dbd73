//! How many mappings this process may still make, for drivers that map what they bind.
//!
//! Lavapipe maps memory for every bind of a sparse buffer and does not look whether that worked: what the system refuses stays
//! unbound without a word. So it is counted here before it is asked.
//!
//! **Guarantee:** no bind is let through that the system would refuse, as long as everything else in the process makes no more
//! than [`SPARE`] mappings between two counts. The closer the end, the more often is counted; otherwise as often as costs a
//! hundredth of the time, or every [`OFTEN`].

use std::time::{Duration, Instant};

use sterna_hal::DeviceError;
use sterna_host::sys::TOO_MANY_MAPPINGS;

/// Mappings that are left to others.
const SPARE: u64 = 512;
/// A count that took long, since the thread had to wait for a processor, must not put off the next one.
const OFTEN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Mappings {
    most: u64,
    /// At the last count.
    left: u64,
    /// Since then, at most.
    spent: u64,
    /// When the last count is too old.
    until: Instant,
}

impl Mappings {
    /// `None` where the system does not say how many there may be.
    pub(crate) fn new() -> Option<Self> {
        let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
        Some(Self { most, left: 0, spent: 0, until: Instant::now() })
    }

    /// Takes room for so many binds, which may cut a mapping in three each; an error where there is none. What is to be unbound is
    /// counted and never refused: left bound it does no harm.
    pub(crate) fn take(&mut self, binds: u64, unbinds: u64) -> Result<(), DeviceError> {
        self.spent += 2 * (binds + unbinds);
        let now = Instant::now();
        if binds == 0 || (self.spent <= self.left / 2 && now < self.until) {
            return Ok(());
        }
        self.left = self.most.saturating_sub(count());
        self.spent = 2 * (binds + unbinds);
        self.until = now + (now.elapsed() * 100).clamp(Duration::from_millis(1), OFTEN);
        if self.spent + SPARE <= self.left {
            return Ok(());
        }
        let text = format!("{TOO_MANY_MAPPINGS} ({} of {} are used)", self.most - self.left, self.most);
        Err(DeviceError::Driver { call: "vkQueueBindSparse", code: libc::ENOMEM, text })
    }
}

/// Mappings of this process now.
fn count() -> u64 {
    let lines = |maps: Vec<u8>| maps.iter().filter(|b| **b == b'\n').count() as u64;
    std::fs::read("/proc/self/maps").map_or(0, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_less_is_not() {
        let now = count();
        let mut all = Mappings { most: now + SPARE + 1000, left: 0, spent: 0, until: Instant::now() };
        all.take(400, 0).unwrap();
        let e = all.take(600, 0).unwrap_err().to_string();
        assert!(e.contains("vm.max_map_count"), "{e}");
        all.take(100, 0).unwrap();
        all.take(0, 5000).unwrap();
        // Counted again: those were none of this process.
        all.take(300, 0).unwrap();
    }
}
