//! How many mappings this process may still make (`vm.max_map_count`), for whoever makes many.
//!
//! When a process has used them up, its allocator and its threads fail, far from whoever used them. So what could make many asks
//! here first: entries of page tables made of mappings, binds of drivers that map what they bind, borders in the window.
//!
//! **Guarantee.** [`room`] leaves an eighth of all there may be to the rest of the program, and [`reserve`], for what has been begun,
//! a sixteenth, less what the rest of the process makes between two counts.
//!
//! **States.** A count of the process's mappings, and what was asked for since then, as if all of it had made mappings and nothing had
//! gone. Counted is where that would be too many, and for a hundredth of the time. What was too many by the count itself stays so for as
//! long as that took, and for [`plenty`] until the count is too old, unless [`gone`] was told of some. While nothing can be counted (no
//! `/proc`, no descriptor left) it is as many as were asked for less those that [`gone`] was told of, of the kernel's default.
//!
//! **Lock**: one mutex, held over a count, which takes some milliseconds when there are tens of thousands. Who holds a lock for which
//! others wait asks before he takes it, and under it [by the last count](by_last_count). [`gone`] takes none.

use std::cell::Cell;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sterna_hal::DeviceError;

/// What there may be where the system does not say.
const DEFAULT: u64 = 65_530;
/// A count is too old after so many times as long as it took, and no sooner than this: the program makes mappings, too.
const PART: u32 = 100;
const LEAST: Duration = Duration::from_millis(5);

/// The share that [`plenty`] leaves.
const HALF: u64 = 2;

static PROCESS: Mutex<Mappings> = Mutex::new(Mappings::new(&GONE));

/// Mappings that have gone since the last look.
static GONE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This thread counts nothing now.
    static HURRIES: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
struct Mappings {
    most: u64,
    /// At the last count.
    used: u64,
    /// Since then, at most.
    spent: u64,
    /// When the last count is too old; `None` before the first.
    until: Option<Instant>,
    /// Until when a refusal is believed that could come before an error.
    refuses: Option<Instant>,
    /// Whether there was nothing to count last time.
    blind: bool,
    gone: &'static AtomicU64,
    counted: fn() -> Option<u64>,
    limit: fn() -> u64,
}

impl Mappings {
    const fn new(gone: &'static AtomicU64) -> Self {
        let (until, refuses) = (None, None);
        Self { most: DEFAULT, used: 0, spent: 0, until, refuses, blind: false, gone, counted: count, limit: most }
    }

    /// Whether `made` more leave a share `1 / reserve` of all to others.
    fn take(&mut self, made: u64, reserve: u64) -> bool {
        if self.blind {
            self.used = self.used.saturating_sub(self.gone.swap(0, Ordering::Relaxed));
        }
        let fits = |all: &Self, spent: u64| all.used + spent + made <= all.most - all.most / reserve;
        let now = Instant::now();
        let is_old = self.until.is_none_or(|until| now > until);
        // By the count alone, and nothing has gone since.
        let believed = if reserve == HALF { self.until } else { self.refuses };
        let is_known = !fits(self, 0) && believed.is_some_and(|b| now <= b) && self.gone.load(Ordering::Relaxed) == 0;
        if (is_old || !fits(self, self.spent) && !is_known) && !HURRIES.get() {
            self.count(now);
        }
        let fits = fits(self, self.spent);
        self.spent += if fits { made } else { 0 };
        fits
    }

    fn count(&mut self, now: Instant) {
        if self.until.is_none() {
            self.most = (self.limit)();
        }
        // What goes during the count may be in it or not.
        let gone = self.gone.swap(0, Ordering::Relaxed);
        let counted = (self.counted)();
        self.blind = counted.is_none();
        self.used = counted.unwrap_or_else(|| (self.used + self.spent).saturating_sub(gone));
        self.spent = 0;
        let took = now.elapsed();
        self.until = Some(now + (took * PART).max(LEAST));
        self.refuses = Some(now + took * 2);
    }
}

/// Answers what `f` asks here by the last count, however old that is: for whoever holds a lock for which others wait. Who has asked
/// for room for nothing before he took it has one that is not too old.
pub fn by_last_count<R>(f: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            HURRIES.set(self.0);
        }
    }
    let _before = Before(HURRIES.replace(true));
    f()
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
    PROCESS.lock().take(made, HALF)
}

/// As [`room`], for what has been begun: false where they would not leave a sixteenth.
#[must_use]
pub fn reserve(made: u64) -> bool {
    PROCESS.lock().take(made, 16)
}

/// So many have gone. Where mappings are counted that shows by itself. Signal-safe.
pub fn gone(mappings: u64) {
    GONE.fetch_add(mappings, Ordering::Relaxed);
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
        let mut all = Mappings { counted: some, limit: || 8000, ..Mappings::new(none_gone()) };
        assert!(all.take(4000, 8));
        assert!(!all.take(6100, 8));
        assert!(all.take(2000, 8));
        // Counted again: those were none of this process.
        assert!(all.take(5900, 8));
        assert!(!all.take(6100, 8) && all.take(6100, 16));
    }

    /// A count of what has gone, of a test's own.
    fn none_gone() -> &'static AtomicU64 {
        Box::leak(Box::default())
    }

    #[test]
    fn without_a_count_all_that_was_asked_for_counts_less_what_has_gone() {
        let gone = none_gone();
        let mut all = Mappings { counted: || None, limit: || 8000, ..Mappings::new(gone) };
        assert!((0..7).all(|_| all.take(1000, 8)));
        assert!(!all.take(1000, 8) && all.take(500, 16) && !all.take(1000, 16));
        gone.fetch_add(2000, Ordering::Relaxed);
        assert!(all.take(1000, 8) && !all.take(1000, 8));
    }

    #[test]
    fn one_count_that_fails_is_forgotten_with_the_next_that_does_not() {
        fn failing_once() -> Option<u64> {
            static TIMES: AtomicU64 = AtomicU64::new(0);
            (TIMES.fetch_add(1, Ordering::Relaxed) > 0).then_some(1000)
        }
        let gone = none_gone();
        let mut all = Mappings { counted: failing_once, limit: || 8000, ..Mappings::new(gone) };
        assert!(all.take(5000, 8) && all.blind);
        assert!(all.take(5000, 8) && !all.blind);
        // Now that shows in the count, and is not taken off it once more.
        gone.fetch_add(1000, Ordering::Relaxed);
        assert!(!all.take(6100, 8));
    }

    #[test]
    fn what_can_be_had_otherwise_is_counted_for_no_oftener_than_counts_age() {
        static TIMES: AtomicU64 = AtomicU64::new(0);
        fn slowly() -> Option<u64> {
            TIMES.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            Some(5000)
        }
        let gone = none_gone();
        let mut all = Mappings { counted: slowly, limit: || 8000, ..Mappings::new(gone) };
        assert!((0..100).all(|_| !all.take(2, HALF)));
        assert_eq!(TIMES.load(Ordering::Relaxed), 1);
        gone.fetch_add(2, Ordering::Relaxed);
        assert!((0..100).all(|_| !all.take(2, HALF)));
        assert_eq!(TIMES.load(Ordering::Relaxed), 2);
        // What ends in an error is believed no longer than it takes to find out.
        assert!(!all.take(2500, 8));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!all.take(2500, 8));
        assert!((3..=4).contains(&TIMES.load(Ordering::Relaxed)));
    }

    #[test]
    fn who_holds_a_lock_has_nothing_counted() {
        fn none() -> Option<u64> {
            unreachable!("counted under a lock")
        }
        let mut all = Mappings { counted: none, ..Mappings::new(none_gone()) };
        assert!(by_last_count(|| all.take(1000, 8) && !all.take(DEFAULT, 8)));
        assert!(!HURRIES.get());
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
