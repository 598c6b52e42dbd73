//! Memory that is granted before it is taken: of what the machine and the process's control groups have left ([`groups`]).
//!
//! The kernel ends a process that stores to memory beyond its groups' limit; nothing can be answered to a store. So who gives out
//! memory for more than a page or two asks here first, and has a typed error where there is none.
//!
//! **Guarantee.** What [`take`] grants was there when it was last looked, less what others were granted and may not be in use yet: a
//! [`Grant`] counts until it is dropped, when its memory is in use; one that [lapses](Grant::lapse) for some 100 ms more. Where little is
//! left, who cannot hold on to a grant until all is in use takes the memory at once ([`give`]). It is looked again after 5 ms, or 100 ms
//! while more than a gibibyte is left, and before anything is refused. While nothing can be read (no descriptor is left), what was read
//! last holds.
//!
//! **Locks**: a mutex around the last look, held over the next.
//! Never called from a signal handler.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::groups;
use crate::sys::{self, to_usize};

/// A look is as good as this.
const GOOD_FOR: Duration = Duration::from_millis(5);
/// As long as so much is left, it is good for longer.
const PLENTY: u64 = 1 << 30;
const GOOD_FOR_PLENTY: Duration = Duration::from_millis(100);

/// For how long a grant that has lapsed counts.
const TO_LAPSE: Duration = Duration::from_millis(100);
/// How long [`wait_to_take`] waits for others.
const PATIENCE: Duration = Duration::from_millis(300);

/// The last look, and what was granted that it may not have seen.
#[derive(Debug)]
struct Last {
    /// When it was, and how much there was.
    look: Option<(Instant, u64)>,
    /// Grants that have lapsed: until when each counts, and of how many bytes it was.
    lapsed: VecDeque<(Instant, u64)>,
    /// All that counts, lapsed or not.
    granted: u64,
}

static LAST: Mutex<Last> = Mutex::new(Last::NEW);

/// Why nothing is granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused {
    /// What is left beside earlier grants.
    left: u64,
    /// What there was when it was looked.
    there: u64,
}

impl Last {
    const NEW: Self = Self { look: None, lapsed: VecDeque::new(), granted: 0 };

    /// As [`take`](self::take) at `now`, with `look` for another look, which there may be none of.
    fn take(&mut self, now: Instant, bytes: u64, look: impl FnOnce() -> Option<u64>) -> Result<(), Refused> {
        let (left, there) = self.left(now, bytes, look);
        if left < bytes {
            return Err(Refused { left, there });
        }
        self.granted += bytes;
        Ok(())
    }

    /// What is left beside earlier grants, and what there was, as far as that matters to who wants `bytes` bytes.
    fn left(&mut self, now: Instant, bytes: u64, look: impl FnOnce() -> Option<u64>) -> (u64, u64) {
        let good = self.look.filter(|(at, there)| {
            let age = now.saturating_duration_since(*at);
            let left = there.saturating_sub(self.granted);
            left >= bytes && (age < GOOD_FOR || left - bytes >= PLENTY && age < GOOD_FOR_PLENTY)
        });
        if good.is_none()
            && let Some(there) = look()
        {
            self.look = Some((now, there));
            while let Some((_, bytes)) = self.lapsed.front().copied().filter(|(until, _)| *until <= now) {
                self.lapsed.pop_front();
                self.granted -= bytes;
            }
        }
        let there = self.look.get_or_insert_with(|| (now, groups::available())).1;
        (there.saturating_sub(self.granted), there)
    }

    /// A grant ends: its memory is in use, which the last look may not have seen.
    fn end(&mut self, bytes: u64) {
        self.granted -= bytes;
        if let Some((_, there)) = &mut self.look {
            *there = there.saturating_sub(bytes);
        }
    }

    fn lapse(&mut self, now: Instant, bytes: u64) {
        let until = now + TO_LAPSE;
        // In the order in which they end, some at once: a millisecond is near enough.
        match self.lapsed.back_mut() {
            Some((last, sum)) if until <= *last + Duration::from_millis(1) => *sum += bytes,
            _ => self.lapsed.push_back((until, bytes)),
        }
    }
}

/// Memory that was granted. Dropped when it is in use, or is not wanted any more.
#[derive(Debug)]
#[must_use = "what was granted counts until this is dropped"]
pub struct Grant(u64);

impl Grant {
    /// Of nothing.
    pub const NONE: Self = Self(0);

    /// Goes on to count for a while: nobody sees when the memory is in use.
    pub fn lapse(mut self) {
        let bytes = std::mem::take(&mut self.0);
        if bytes > 0 {
            LAST.lock().lapse(Instant::now(), bytes);
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.0 > 0 {
            LAST.lock().end(self.0);
        }
    }
}

fn try_to_take(bytes: u64) -> Result<Grant, Refused> {
    if bytes == 0 {
        return Ok(Grant::NONE);
    }
    LAST.lock().take(Instant::now(), bytes, groups::left).map(|()| Grant(bytes))
}

/// Grants `bytes` bytes of memory that have no storage yet, or not, at once.
///
/// # Errors
/// As many are not to be had now; how many are.
pub fn take(bytes: u64) -> Result<Grant, u64> {
    try_to_take(bytes).map_err(|refused| refused.left)
}

/// As [`take`], but where only earlier grants stand in the way it waits until it can be seen what became of them.
///
/// # Errors
/// As many are not to be had; how many are.
pub fn wait_to_take(bytes: u64) -> Result<Grant, u64> {
    let end = Instant::now() + PATIENCE;
    loop {
        match try_to_take(bytes) {
            Ok(grant) => return Ok(grant),
            Err(Refused { left, there }) if there < bytes || Instant::now() >= end => return Err(left),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Sees to it that memory of this process, `bytes` bytes from `at` on, can be filled: where little is left it gets its storage now, as far
/// as it has none. Changes no byte.
///
/// # Errors
/// As many are not to be had now; how many are.
pub fn give(at: NonNull<u8>, bytes: u64) -> Result<(), u64> {
    const PAGE: usize = 4096;
    if is_plenty(bytes) {
        take(bytes)?.lapse();
        return Ok(());
    }
    let at = at.as_ptr().addr();
    // Whole pages: beside them lies what somebody else uses.
    let (start, end) = (at.next_multiple_of(PAGE), (at + to_usize(bytes)) / PAGE * PAGE);
    if start < end {
        let grant = take(sys::lacking(start, end - start))?;
        if !sys::populate(start, end - start) {
            grant.lapse();
        }
    }
    Ok(())
}

/// Whether there is so much that nobody need count how many of `bytes` bytes have storage already.
#[must_use]
pub fn is_plenty(bytes: u64) -> bool {
    LAST.lock().left(Instant::now(), bytes, groups::left).0 >= bytes.saturating_add(PLENTY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_not_granted_again() {
        const ALL: u64 = 1 << 40;
        let (mut last, now) = (Last::NEW, Instant::now());
        let refused = |left, there| Err(Refused { left, there });
        assert_eq!(last.take(now, u64::MAX, || Some(ALL)), refused(ALL, ALL));
        assert_eq!(last.take(now, ALL / 2, || unreachable!("looked again at once")), Ok(()));
        // Before it refuses it looks again; what is not to be seen is as it was.
        assert_eq!(last.take(now, ALL, || None), refused(ALL / 2, ALL));
        // What was granted is not in use yet, whatever is seen; and for a while after it has lapsed.
        assert_eq!(last.take(now + 9 * TO_LAPSE, ALL, || Some(ALL)), refused(ALL / 2, ALL));
        last.lapse(now, ALL / 2);
        assert_eq!(last.take(now, ALL, || Some(ALL)), refused(ALL / 2, ALL));
        assert_eq!(last.take(now + TO_LAPSE, ALL, || Some(ALL)), Ok(()));
        // What is in use was there at the last look.
        last.end(ALL / 2);
        assert_eq!(last.take(now + TO_LAPSE, 1, || None), refused(0, ALL / 2));
        assert_eq!(last.take(now + TO_LAPSE, ALL, || Some(ALL)), refused(ALL / 2, ALL));
        let most = take(u64::MAX).map(drop).unwrap_err();
        assert!(most <= groups::available() + (1 << 30));
    }
}
