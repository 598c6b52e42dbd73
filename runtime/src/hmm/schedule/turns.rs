//! The turns themselves.
//!
//! **States of a seat:** `FREE`, `READY` (its thread can go on), `ASLEEP` (it can when `*word != expected`, or when a timed sleep is over,
//! which a schedule decides). The thread whose turn it is passes it on; nobody else changes anything, so the order is the seed's alone,
//! as far as no thread that takes no part (a copy thread of a device) decides what is ready.
//!
//! Everything is atomic words and futex calls: points lie in signal handlers too.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::os;
use super::{Server, Serving};

const SEATS: usize = 24;
/// The first seat of a body; those before are the engine's threads.
const FIRST: usize = 8;

const FREE: u32 = 0;
const READY: u32 = 1;
const ASLEEP: u32 = 2;

struct Seat {
    state: AtomicU32,
    /// 1: it is this seat's turn.
    go: AtomicU32,
    word: AtomicPtr<AtomicU32>,
    expected: AtomicU32,
    timed: AtomicBool,
}

static SEAT: [Seat; SEATS] = [const {
    Seat {
        state: AtomicU32::new(FREE),
        go: AtomicU32::new(0),
        word: AtomicPtr::new(ptr::null_mut()),
        expected: AtomicU32::new(0),
        timed: AtomicBool::new(false),
    }
}; SEATS];

static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Bit `n`: the engine's thread of seat `n` lives.
static SERVING: AtomicU32 = AtomicU32::new(0);
static BODIES: AtomicU32 = AtomicU32::new(0);
static RANDOM: AtomicU64 = AtomicU64::new(1);
/// Of 256 points, how many pass the turn on.
static SWITCH: AtomicU32 = AtomicU32::new(256);
static STEPS: AtomicU64 = AtomicU64::new(0);
static ORDER: AtomicU64 = AtomicU64::new(0);
static BEGAN: AtomicU64 = AtomicU64::new(0);
/// How far the clock is ahead of the system's.
static AHEAD: AtomicU64 = AtomicU64::new(0);
/// Bit `n`: the engine's thread of seat `n` has nothing to do.
static IDLE: AtomicU32 = AtomicU32::new(0);
/// How often each of the engine's threads went to sleep really, and for how long it does at most.
static NAPS: [AtomicU32; FIRST] = [const { AtomicU32::new(0) }; FIRST];
const NAP: Duration = Duration::from_micros(200);

/// Nanoseconds a step counts for: time slices end after some dozen points.
const STEP_NS: u64 = 4_000;

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(0) };
    static RESERVED: Cell<usize> = const { Cell::new(0) };
}

/// What a schedule was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Points passed.
    pub steps: u64,
    /// A hash of who went when: equal for equal schedules.
    pub order: u64,
}

/// A number from the schedule's seed. Only whoever has the turn asks.
fn random() -> u64 {
    let mut x = RANDOM.load(Relaxed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    RANDOM.store(x, Relaxed);
    x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

/// Runs `bodies` on threads of their own, one at a time, in the order that `seed` gives. What they share must not be held over a
/// point by locks that are not the engine's.
///
/// # Panics
/// If a body does; the message names the seed. Ends the process if nobody gets on for 20 seconds.
pub fn run(seed: u64, bodies: Vec<Box<dyn FnOnce() + Send + '_>>) -> Report {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    assert!(bodies.len() <= SEATS - FIRST, "too many threads for a schedule");
    RANDOM.store(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, Relaxed);
    for _ in 0..4 {
        random();
    }
    // Some defects need threads that run on for long, some need a change at every point.
    SWITCH.store([256, 128, 40, 12][(random() % 4) as usize], Relaxed);
    STEPS.store(0, Relaxed);
    ORDER.store(0xcbf2_9ce4_8422_2325, Relaxed);
    // What the engine's threads still have to do from before would come at a moment of its own.
    let end = Instant::now() + Duration::from_secs(10);
    let naps = || NAPS.each_ref().map(|n| n.load(SeqCst));
    let before = naps();
    let rests = |n: usize| naps()[n].wrapping_sub(before[n]) > 2 && IDLE.load(SeqCst) >> n & 1 == 1;
    while (0..FIRST).any(|n| SERVING.load(SeqCst) >> n & 1 == 1 && !rests(n)) {
        assert!(Instant::now() < end, "the engine's threads have not come to rest");
        std::thread::sleep(NAP / 4);
    }
    // Later than anything that happened before: what is left of it must not depend on how long ago that was.
    BEGAN.store(os::now_ns() + 1_000_000_000, Relaxed);
    BODIES.store(bodies.len() as u32, Relaxed);
    ACTIVE.store(true, SeqCst);
    await_seats(SERVING.load(SeqCst), "the engine's threads");
    let failed = Mutex::new(None);
    std::thread::scope(|s| {
        let n = bodies.len();
        for (i, body) in bodies.into_iter().enumerate() {
            let failed = &failed;
            s.spawn(move || {
                let me = FIRST + i;
                sit(me);
                let ended = catch_unwind(AssertUnwindSafe(body));
                if let Err(panic) = ended {
                    failed.lock().get_or_insert(panic);
                }
                leave(me, BODIES.fetch_sub(1, SeqCst) == 1);
            });
        }
        let mask = (0..n).fold(0, |m, i| m | 1 << (FIRST + i));
        await_seats(mask, "the bodies");
        turn_to(FIRST);
        let (mut seen, mut since) = (0, Instant::now());
        while ACTIVE.load(SeqCst) {
            std::thread::sleep(Duration::from_micros(50));
            let steps = STEPS.load(Relaxed);
            if steps != seen {
                (seen, since) = (steps, Instant::now());
            } else if since.elapsed() > Duration::from_secs(20) {
                die(seed);
            }
        }
    });
    // The engine's threads go back to sleeping really before anybody asks for the next schedule.
    while SEAT.iter().any(|s| s.state.load(SeqCst) != FREE) {
        std::thread::yield_now();
    }
    if let Some(panic) = failed.into_inner() {
        eprintln!("the schedule of seed {seed} failed");
        resume_unwind(panic);
    }
    Report { steps: STEPS.load(Relaxed), order: ORDER.load(Relaxed) }
}

fn await_seats(mask: u32, who: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    while (0..SEATS).any(|i| mask >> i & 1 == 1 && SEAT[i].state.load(SeqCst) == FREE) {
        assert!(Instant::now() < end, "{who} did not take their seats: {mask:#x}");
        std::thread::yield_now();
    }
}

fn die(seed: u64) -> ! {
    eprintln!("nobody gets on in the schedule of seed {seed}, after {} steps:", STEPS.load(Relaxed));
    for (i, s) in SEAT.iter().enumerate().filter(|(_, s)| s.state.load(Relaxed) != FREE) {
        let state = if s.state.load(Relaxed) == ASLEEP { "asleep" } else { "ready" };
        eprintln!("  seat {i}: {state}, {}its turn", if s.go.load(Relaxed) == 1 { "" } else { "not " });
    }
    std::process::abort()
}

impl Serving {
    pub(crate) fn begin(who: Server) -> Self {
        let seat = match who {
            Server::Host => 1,
            Server::Devices => 2,
            Server::Scheduler(n) => (3 + n).min(FIRST - 1),
        };
        RESERVED.set(seat);
        SERVING.fetch_or(1 << seat, SeqCst);
        Self
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let n = RESERVED.replace(0);
        SERVING.fetch_and(!(1 << n), SeqCst);
        if MINE.get() != 0 {
            leave(MINE.get(), false);
        }
    }
}

/// Takes seat `n` and waits for its turn.
fn sit(n: usize) {
    MINE.set(n);
    SEAT[n].go.store(0, SeqCst);
    SEAT[n].state.store(READY, SeqCst);
    await_turn(n);
}

/// Gives the seat up; the last body ends the schedule.
fn leave(me: usize, last: bool) {
    MINE.set(0);
    SEAT[me].state.store(FREE, SeqCst);
    if last {
        AHEAD.store(clock(0) - os::real_ns(), SeqCst);
        ACTIVE.store(false, SeqCst);
        for s in &SEAT {
            os::futex_wake(&s.go, i32::MAX);
        }
    } else if ACTIVE.load(SeqCst) {
        turn_to(choose(None, true));
    }
}

fn turn_to(n: usize) {
    SEAT[n].go.store(1, SeqCst);
    os::futex_wake(&SEAT[n].go, 1);
}

/// Waits for this seat's turn, or for the schedule's end, which frees it.
fn await_turn(me: usize) {
    let seat = &SEAT[me];
    while seat.go.swap(0, SeqCst) == 0 {
        if !ACTIVE.load(SeqCst) {
            seat.state.store(FREE, SeqCst);
            MINE.set(0);
            return;
        }
        os::futex_sleep(&seat.go, 0, Some(Duration::from_millis(1)));
    }
}

/// This thread's seat, if it takes part now.
fn seat() -> Option<usize> {
    if ACTIVE.load(SeqCst) { Some(MINE.get()).filter(|n| *n != 0) } else { None }
}

/// As [`seat`], where a thread of the engine would sleep: there it sits down, so that it always begins at the same place.
fn seat_to_sleep() -> Option<usize> {
    if ACTIVE.load(SeqCst) && MINE.get() == 0 && RESERVED.get() != 0 {
        sit(RESERVED.get());
    }
    seat()
}

fn can_go(s: &Seat) -> bool {
    match s.state.load(SeqCst) {
        READY => true,
        ASLEEP => {
            let word = s.word.load(SeqCst);
            // SAFETY: its thread sleeps on the word, which therefore lives; null: it may only be woken by time.
            !word.is_null() && unsafe { &*word }.load(SeqCst) != s.expected.load(SeqCst)
        }
        _ => false,
    }
}

/// Who goes next: with `away` not `me`, unless nobody else can.
fn choose(me: Option<usize>, away: bool) -> usize {
    let mut idle = 0_u32;
    loop {
        if let (Some(me), false) = (me, away)
            && random() % 256 >= u64::from(SWITCH.load(Relaxed))
        {
            return me;
        }
        let mut ready = [0_u8; SEATS];
        let mut n = 0;
        for (i, s) in SEAT.iter().enumerate() {
            let timed =
                || s.state.load(SeqCst) == ASLEEP && s.timed.load(SeqCst) && (idle > 0 || random().is_multiple_of(8));
            let gives_way = away && Some(i) == me && s.state.load(SeqCst) == READY;
            if !gives_way && (can_go(s) || timed()) {
                ready[n] = i as u8;
                n += 1;
            }
        }
        if n > 0 {
            return usize::from(ready[random() as usize % n]);
        }
        if let Some(me) = me
            && SEAT[me].state.load(SeqCst) == READY
        {
            // Everybody else waits for somebody who takes no part.
            os::futex_sleep(&SEAT[me].go, 0, Some(Duration::from_micros(20)));
            return me;
        }
        idle += 1;
        if idle > 1 {
            os::futex_sleep(&SEAT[0].go, 0, Some(Duration::from_micros(50)));
            if !ACTIVE.load(SeqCst) {
                return me.unwrap_or(0);
            }
        }
    }
}

fn pass_on(me: usize, away: bool) {
    let next = choose(Some(me), away);
    STEPS.fetch_add(1, Relaxed);
    ORDER.store((ORDER.load(Relaxed) ^ next as u64).wrapping_mul(0x0100_0000_01b3), Relaxed);
    if next != me {
        turn_to(next);
        await_turn(me);
    }
}

/// Another thread may go on here. Signal-safe; nothing where no schedule runs or this thread takes no part.
pub fn point() {
    if let Some(me) = seat() {
        pass_on(me, false);
    }
}

/// Stands in for a sleep on a futex; false: sleep really, and not for longer than `timeout` says now.
pub(crate) fn sleeps(word: &AtomicU32, expected: u32, timeout: &mut Option<Duration>) -> bool {
    let Some(me) = seat_to_sleep() else {
        if RESERVED.get() != 0 {
            // Looks up now and then, so that it notices when a schedule begins.
            nap(timeout.is_none());
            *timeout = Some(timeout.unwrap_or(Duration::MAX).min(NAP));
        }
        return false;
    };
    let s = &SEAT[me];
    s.word.store(ptr::from_ref(word).cast_mut(), SeqCst);
    s.expected.store(expected, SeqCst);
    s.timed.store(timeout.is_some(), SeqCst);
    s.state.store(ASLEEP, SeqCst);
    pass_on(me, true);
    if MINE.get() == me {
        s.state.store(READY, SeqCst);
    }
    true
}

fn nap(idle: bool) {
    let n = RESERVED.get();
    if idle {
        IDLE.fetch_or(1 << n, SeqCst)
    } else {
        IDLE.fetch_and(!(1 << n), SeqCst)
    };
    NAPS[n].fetch_add(1, SeqCst);
}

/// Lets others go on until `holds`.
pub(crate) fn until(holds: impl Fn() -> bool) {
    while let Some(me) = seat() {
        if holds() {
            return;
        }
        pass_on(me, true);
    }
}

/// The time: steps while a schedule runs. It never goes back.
pub(crate) fn clock(real: u64) -> u64 {
    if ACTIVE.load(SeqCst) { BEGAN.load(Relaxed) + STEPS.load(Relaxed) * STEP_NS } else { real + AHEAD.load(SeqCst) }
}

/// Stands in for a wait on a condition variable. Wakes for nothing, too.
pub(crate) fn wait<T>(changed: &Condvar, state: &mut MutexGuard<'_, T>) {
    if gives_way(state) {
    } else if RESERVED.get() != 0 {
        nap(true);
        changed.wait_for(state, NAP);
    } else {
        changed.wait(state);
    }
}

/// As [`wait`], for a while at most.
pub(crate) fn wait_for<T>(changed: &Condvar, state: &mut MutexGuard<'_, T>, timeout: Duration) {
    if gives_way(state) {
    } else if RESERVED.get() != 0 {
        nap(false);
        changed.wait_for(state, NAP.min(timeout));
    } else {
        changed.wait_for(state, timeout);
    }
}

/// Opens the lock and lets others go on, where this thread takes part.
pub(crate) fn gives_way<T>(state: &mut MutexGuard<'_, T>) -> bool {
    if !ACTIVE.load(SeqCst) {
        return false;
    }
    MutexGuard::unlocked(state, || seat_to_sleep().map(|me| pass_on(me, true)).is_some())
}
