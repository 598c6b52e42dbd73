//! Which of the threads that read userfaultfd's messages reads.
//!
//! **Guarantee.** A message is read by a reader that sleeps on the descriptor when it comes, or at most [`LOOK`] later. While one
//! thread of the program alone faults, its faults are served on its own processor.
//!
//! **States.** One word says who reads:
//!
//! | word | who reads | left when |
//! |---|---|---|
//! | [`ALL`] | every reader; a message wakes each of them, and one gets it | the last [`STREAK`] messages were of one thread: the reader of that thread's processor reads alone |
//! | a reader's number | that reader | its thread is seen on another processor: the reader there reads alone; a message of another thread comes, or none was read for [`LOOK`]: everybody reads |
//!
//! **Why.** A message wakes the readers on idle processors, too, and one of them often gets it first: it works with cold caches,
//! and the faulting thread is then woken from another processor. Where an idle processor is halted (a virtual machine) this costs
//! 20 to 50 µs a fault. A message does not say which processor it comes from, but it names the thread, and the system knows where
//! that runs: a look costs 3 µs, once in [`AGAIN`] faults. With several threads all readers are needed.
//!
//! **Who changes it.** The reader of a message, by [`Duty::note`] and [`Duty::hand_over`]; a reader that is off duty, by
//! [`Duty::rest`]: it looks each [`LOOK`] whether anything was read, so that a reader whose processor is taken from it (by a
//! real-time thread, for instance) is not waited for. Where nothing is read everybody is back soon, and sleeps for as long as it
//! takes. No lock; a message that is read between two states is served by whoever read it.

use std::array;
use std::time::{Duration, Instant};

use super::super::park;
use super::super::sync::{AtomicU32, Ordering};
use std::sync::atomic::AtomicU64;

/// The most readers.
pub(super) const MOST: usize = 4;

/// Everybody reads.
const ALL: u32 = u32::MAX;

/// So many messages of one thread in a row have one reader read alone.
const STREAK: u32 = 64;

/// After so many more messages it looks again where the thread runs: a scheduler that sees two threads on one processor and none on
/// another moves one of them now and then, after some hundred faults on a machine with two.
const AGAIN: u32 = 8;

/// How long nothing may be read before everybody reads again.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// How long a reader that hands over waits for the next one to serve; a halted processor takes some 50 µs to begin.
const TURN: Duration = Duration::from_micros(300);

/// And how long for the thread that was served to run again.
const RETURN: Duration = Duration::from_micros(20);

/// Nobody's processor.
const NOWHERE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Duty {
    word: AtomicU32,
    sleepers: AtomicU32,
    /// The thread of the last message, and how many of its messages came in a row. Only read and written whole: where two readers
    /// write at once one of the messages may not be counted.
    streak: AtomicU64,
    /// How many messages were served.
    served: AtomicU32,
    /// On which processor each reader stays.
    homes: [AtomicU32; MOST],
}

/// What the reader of a message does before it serves it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Serve,
    /// It looks where the faulting thread runs, and has the reader there read alone ([`Duty::hand_over`]).
    Look,
}

impl Duty {
    pub(super) fn new() -> Self {
        Self {
            word: AtomicU32::new(ALL),
            sleepers: AtomicU32::new(0),
            streak: AtomicU64::new(0),
            served: AtomicU32::new(0),
            homes: array::from_fn(|_| AtomicU32::new(NOWHERE)),
        }
    }

    /// `reader` stays on this processor from now on.
    pub(super) fn stays(&self, reader: u32, processor: usize) {
        self.homes[reader as usize].store(processor as u32, Ordering::Relaxed);
    }

    /// Whether `reader` may read.
    pub(super) fn is_on(&self, reader: u32) -> bool {
        matches!(self.word.load(Ordering::Relaxed), word if word == ALL || word == reader)
    }

    /// A message of `thread` was read. If others are to read beside, they are woken now, before it is served.
    pub(super) fn note(&self, thread: u32) -> Next {
        let (last, n) = unpack(self.streak.load(Ordering::Relaxed));
        let n = if last == thread { n.wrapping_add(1) } else { 1 };
        self.streak.store(pack(thread, n), Ordering::Relaxed);
        if last != thread {
            self.everybody();
        }
        if n >= STREAK && n.is_multiple_of(AGAIN) { Next::Look } else { Next::Serve }
    }

    /// The message was served.
    pub(super) fn served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// The thread whose message `reader` has read runs on `processor`: who stays there reads alone. Whether that is another, who
    /// then is to have the message, too.
    pub(super) fn hand_over(&self, reader: u32, processor: Option<usize>) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        if word != ALL && word != reader {
            return false;
        }
        let next = processor.and_then(|p| self.homes.iter().position(|h| h.load(Ordering::Relaxed) == p as u32));
        let Some(next) = next.map(|n| n as u32) else {
            self.everybody();
            return false;
        };
        if word == next || self.word.compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        if next != reader {
            park::wake(&self.word, &self.sleepers);
        }
        next != reader
    }

    /// Keeps this processor busy until the reader that was handed over to has served the message, which `again` has the thread send
    /// once more. Were it idle, the scheduler would move the thread here as soon as it is woken, since it came from here; it does
    /// so no more once it was woken where it is.
    pub(super) fn stay_busy(&self, again: impl FnOnce()) {
        let served = self.served.load(Ordering::Relaxed);
        again();
        if spin(TURN, || self.served.load(Ordering::Relaxed) != served) {
            spin(RETURN, || false);
        } else {
            // Other threads have that processor. A streak begins anew.
            self.streak.store(0, Ordering::Relaxed);
            self.everybody();
        }
    }

    /// Waits until `reader` may read.
    pub(super) fn rest(&self, reader: u32) {
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word == ALL || word == reader {
                return;
            }
            let before = self.streak.load(Ordering::Relaxed);
            park::wait(&self.word, word, &self.sleepers, Some(LOOK));
            if self.word.load(Ordering::Relaxed) == word && self.streak.load(Ordering::Relaxed) == before {
                self.everybody();
            }
        }
    }

    fn everybody(&self) {
        if self.word.swap(ALL, Ordering::Relaxed) != ALL {
            park::wake(&self.word, &self.sleepers);
        }
    }
}

/// Whether it was over in time.
fn spin(at_most: Duration, is_over: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < at_most {
        if is_over() {
            return true;
        }
        std::hint::spin_loop();
    }
    false
}

fn pack(thread: u32, n: u32) -> u64 {
    u64::from(thread) << 32 | u64::from(n)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_two() -> Duty {
        let duty = Duty::new();
        duty.stays(0, 10);
        duty.stays(1, 11);
        duty
    }

    fn note_many(duty: &Duty, thread: u32, n: u32) -> u32 {
        (0..n).filter(|_| duty.note(thread) == Next::Look).count() as u32
    }

    fn is_everybodys(duty: &Duty) -> bool {
        duty.is_on(0) && duty.is_on(1)
    }

    #[test]
    fn one_thread_has_the_reader_of_its_processor_alone_after_a_streak() {
        let duty = of_two();
        assert_eq!(note_many(&duty, 7, STREAK - 1), 0);
        assert_eq!(duty.note(7), Next::Look);
        assert!(!duty.hand_over(1, Some(11)));
        assert!(duty.is_on(1) && !duty.is_on(0));
        // It looks again now and then, and reads on alone.
        assert_eq!(note_many(&duty, 7, 10 * AGAIN), 10);
        assert!(!duty.hand_over(1, Some(11)) && !duty.is_on(0));
    }

    #[test]
    fn a_thread_that_has_moved_is_handed_over() {
        let duty = of_two();
        // By whoever read the message, or by who reads alone; by nobody else.
        assert!(duty.hand_over(1, Some(10)));
        assert!(duty.is_on(0) && !duty.is_on(1));
        assert!(!duty.hand_over(1, Some(11)) && duty.is_on(0));
        assert!(duty.hand_over(0, Some(11)) && duty.is_on(1) && !duty.is_on(0));
    }

    #[test]
    fn a_thread_on_nobodys_processor_has_everybody_read() {
        for place in [Some(12), None] {
            let duty = of_two();
            assert!(!duty.hand_over(1, Some(11)) && !is_everybodys(&duty));
            assert!(!duty.hand_over(1, place) && is_everybodys(&duty), "{place:?}");
        }
    }

    #[test]
    fn another_thread_has_everybody_read() {
        let duty = of_two();
        note_many(&duty, 7, STREAK);
        duty.hand_over(1, Some(11));
        assert_eq!(duty.note(8), Next::Serve);
        assert!(is_everybodys(&duty));
        // Two that take turns never have one reader.
        assert_eq!((0..1000).filter(|i| duty.note(7 + i % 2) == Next::Look).count(), 0);
    }

    #[test]
    fn who_hands_over_stays_busy_until_the_message_is_served_or_for_a_while() {
        let duty = of_two();
        let begin = Instant::now();
        duty.hand_over(0, Some(11));
        duty.stay_busy(|| {});
        assert!(begin.elapsed() >= TURN && is_everybodys(&duty));
        duty.hand_over(0, Some(11));
        std::thread::scope(|s| duty.stay_busy(|| drop(s.spawn(|| duty.served()))));
    }

    #[test]
    fn who_is_off_duty_reads_again_when_nothing_is_read() {
        let duty = of_two();
        duty.hand_over(1, Some(11));
        let begin = Instant::now();
        duty.rest(0);
        assert!(is_everybodys(&duty));
        assert!(begin.elapsed() >= LOOK / 2, "{:?}", begin.elapsed());
    }

    #[test]
    fn who_is_off_duty_rests_while_messages_are_read_and_is_woken_for_another_thread() {
        let duty = of_two();
        note_many(&duty, 7, STREAK);
        duty.hand_over(1, Some(11));
        std::thread::scope(|s| {
            let rested = s.spawn(|| {
                duty.rest(0);
                Instant::now()
            });
            let begin = Instant::now();
            while begin.elapsed() < 4 * LOOK {
                duty.note(7);
                std::thread::sleep(LOOK / 50);
                // On a machine that is busy with other things this thread may sleep for longer, and the other is right to read.
                if is_everybodys(&duty) {
                    return;
                }
            }
            let woken = Instant::now();
            duty.note(8);
            assert!(rested.join().unwrap() >= woken);
        });
    }
}
