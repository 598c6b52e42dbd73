//! **Question.** How much later than who waits is who awaits told that a launch has ended, whatever else is pending?
//!
//! **Floor.** `wait` on the same launch, in turns: from the last instruction of its kernel until the call returns. A future is told by way
//! of two threads, one that waits for the device's queue and one that calls wakers, so a difference remains; it must not grow with what
//! others await.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Pending, Runtime, Shared};

use super::Row;
use crate::measure::{Runs, Unit};
use crate::table::Sheet;

pub(super) const ROW: Row =
    Row { name: "futures", question: "how late is who awaits a launch told of its end?", variants: &[""], run };

const ROUNDS: usize = 31;
/// The difference that is allowed.
const MOST: f64 = 1e-3;

/// When the last kernel ended, in nanoseconds since the first look at the clock.
static ENDED: AtomicU64 = AtomicU64::new(0);

fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn since_the_end() -> f64 {
    (now() - ENDED.load(SeqCst)) as f64 * 1e-9
}

/// Sleeps for a while, with `note` notes when it has ended.
fn sleeps(ms: u16, note: bool) -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, [ms, note]: [u16; 2], _: &mut [u32]) {
        std::thread::sleep(Duration::from_millis(ms.into()));
        if note > 0 {
            ENDED.store(now(), SeqCst);
        }
    }
    Kernel::new("sleeps", [ms, note.into()], (each_mut(64),), body)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on(p: Pending) -> Result<(), sterna::Error> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut p = pin!(p);
    loop {
        match p.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn polled(mut p: Pending) -> Pending {
    let _ = pin!(&mut p).poll(&mut Context::from_waker(Waker::noop()));
    p
}

fn run(sheet: &mut Sheet) -> Result<()> {
    let open = |selector| Runtime::builder().device(selector).memory(64 << 20).build();
    let (rt, other) = (open("cpu:0")?, open("cpu:1")?);
    let (mut x, mut y) = (rt.shared::<u32>(64)?, other.shared::<u32>(64)?);
    beside(sheet, "alone", (&rt, &mut x))?;
    let slow = polled(other.launch(&sleeps(5000, false), (&mut y,))?);
    beside(sheet, "beside one of another runtime that takes 5 s", (&rt, &mut x))?;
    drop(slow);
    beside(sheet, "after that was dropped", (&rt, &mut x))?;
    Ok(())
}

fn beside(sheet: &mut Sheet, what: &str, (rt, x): (&Runtime, &mut Shared<u32>)) -> Result<()> {
    let (mut by_wait, mut by_future) = (Runs::default(), Runs::default());
    for _ in 0..ROUNDS {
        rt.launch(&sleeps(2, true), (&mut *x,))?.wait()?;
        by_wait.push(since_the_end());
        block_on(rt.launch(&sleeps(2, true), (&mut *x,))?)?;
        by_future.push(since_the_end());
    }
    sheet.above(what, Unit::Time, &by_future, &by_wait, MOST);
    Ok(())
}
