//! How many mappings this process may still make (`vm.max_map_count`), for whoever makes many.
//!
//! When a process has used them up, its allocator and its threads fail, far from whoever used them. So what could make many asks
//! here first: entries of page tables made of mappings, binds of drivers that map what they bind, borders in the window.
//!
//! **Guarantee.** [`room`] leaves an eighth of all there may be to the rest of the program, and [`reserve`], for what has been begun,
//! a sixteenth, less what the rest of the process makes between two counts.
//!
//! **States.** A count of the process's mappings, and what was asked for since then, as if all of it had made mappings and nothing had
//! gone. Counted is where that would be too many, and for a hundredth of the time. Without `/proc` there is nothing to count: then
//! it is as many as were asked for less those that [`gone`] was told of, of the kernel's default.
//!
//! **Lock**: one mutex, held over a count, which takes some milliseconds when there are tens of thousands.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sterna_hal::DeviceError;

/// What there may be where the system does not say.
const DEFAULT: u64 = 65_530;
/// A count is too old after so many times as long as it took, and no sooner than this: the program makes mappings, too.
const PART: u32 = 100;
const LEAST: Duration = Duration::from_millis(5);

static PROCESS: Mutex<Mappings> = Mutex::new(Mappings::new());

/// Whether there is nothing to count.
static BLIND: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Mappings {
    most: u64,
    /// At the last count.
    used: u64,
    /// Since then, at most.
    spent: u64,
    /// When the last count is too old; `None` before the first.
    until: Option<Instant>,
    counted: fn() -> Option<u64>,
    limit: fn() -> u64,
}

impl Mappings {
    const fn new() -> Self {
        Self { most: DEFAULT, used: 0, spent: 0, until: None, counted: count, limit: most }
    }

    /// Whether `made` more leave a share `1 / reserve` of all to others.
    fn take(&mut self, made: u64, reserve: u64) -> bool {
        let fits = |all: &Self| all.used + all.spent + made <= all.most - all.most / reserve;
        let now = Instant::now();
        if !fits(self) || self.until.is_none_or(|until| now > until) {
            self.count(now);
        }
        let fits = fits(self);
        self.spent += if fits { made } else { 0 };
        fits
    }

    fn count(&mut self, now: Instant) {
        if self.until.is_none() {
            self.most = (self.limit)();
        }
        match (self.counted)() {
            Some(n) => (self.used, self.spent) = (n, 0),
            None => {
                BLIND.store(true, Ordering::Relaxed);
                (self.used, self.spent) = (self.used + self.spent, 0);
            }
        }
        self.until = Some(now + (now.elapsed() * PART).max(LEAST));
    }
}

/// Whether there is room for `made` further mappings, for which [`reserve`] is asked when they are made; false where they would not
/// leave an eighth of all to others. Whoever asks then frees some, or does without.
#[must_use]
pub fn room(made: u64) -> bool {
    let mut all = PROCESS.lock();
    let fits = all.take(made, 8);
    all.spent -= if fits { made } else { 0 };
    fits
}

/// As [`room`], for what can be had otherwise at a price: false where they would not leave half.
#[must_use]
pub fn plenty(made: u64) -> bool {
    PROCESS.lock().take(made, 2)
}

/// As [`room`], for what has been begun: false where they would not leave a sixteenth.
#[must_use]
pub fn reserve(made: u64) -> bool {
    PROCESS.lock().take(made, 16)
}

/// So many have gone. Where mappings are counted that shows by itself.
pub fn gone(mappings: u64) {
    if BLIND.load(Ordering::Relaxed) {
        let mut all = PROCESS.lock();
        all.used = all.used.saturating_sub(mappings);
    }
}

/// The error of whoever could not do without, with the number in use as far as it is known.
#[must_use]
pub fn exhausted() -> DeviceError {
    let all = PROCESS.lock();
    DeviceError::TooManyMappings { in_use: all.used + all.spent, limit: all.most }
}

/// How many there may be.
fn most() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    text.and_then(|t| t.trim().parse().ok()).unwrap_or(DEFAULT)
}

/// Mappings of this process now, if it can be known.
fn count() -> Option<u64> {
    let mut maps = std::fs::File::open("/proc/self/maps").ok()?;
    let mut part = [0; 32 << 10];
    let mut lines = 0;
    loop {
        match maps.read(&mut part) {
            Ok(0) => return Some(lines),
            Ok(n) => lines += part[..n].iter().filter(|b| **b == b'\n').count() as u64,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_less_is_not() {
        fn some() -> Option<u64> {
            Some(1000)
        }
        let mut all = Mappings { counted: some, limit: || 8000, ..Mappings::new() };
        assert!(all.take(4000, 8));
        assert!(!all.take(6100, 8));
        assert!(all.take(2000, 8));
        // Counted again: those were none of this process.
        assert!(all.take(5900, 8));
        assert!(!all.take(6100, 8) && all.take(6100, 16));
    }

    #[test]
    fn without_a_count_all_that_was_asked_for_counts() {
        let mut all = Mappings { counted: || None, limit: || 8000, ..Mappings::new() };
        assert!((0..7).all(|_| all.take(1000, 8)));
        assert!(!all.take(1000, 8) && all.take(500, 16) && !all.take(1000, 16));
    }

    #[test]
    fn what_is_counted_is_what_the_system_lists() {
        let before = count().unwrap();
        let maps: Vec<_> = (0..64).map(|_| crate::sys::Mapped::new(4096, crate::sys::Backing::Nothing).unwrap()).collect();
        let with = count().unwrap();
        assert!(with > before, "{before} {with}");
        drop(maps);
        assert!(with < most());
    }
}
