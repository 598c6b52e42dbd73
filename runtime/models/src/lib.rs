//! Files of the engine as they are, over `loom`'s threads and memory: every order of threads and every value that a load may
//! give are tried. The models are in `tests/`.
//!
//! What these files need of the rest of the engine, [`os`] and [`schedule`], is here in a form that the checker knows.
#![allow(dead_code, reason = "the engine's files hold more than the models use")]
#![allow(unexpected_cfgs, reason = "defects are planted in the models, not by the engine's feature")]
#![allow(unreachable_pub, missing_docs, reason = "for the models in this crate only")]

#[path = "../../src/hmm/addr.rs"]
pub mod addr;
#[path = "../../src/hmm/gate.rs"]
mod gate;
#[path = "../../src/hmm/lock.rs"]
mod lock;
#[path = "../../src/hmm/notifier.rs"]
pub mod notifier;
pub mod os;
#[path = "../../src/hmm/park.rs"]
mod park;
pub mod schedule;
pub mod sync;

pub use lock::Free;

/// The engine's lock.
#[derive(Debug)]
pub struct Futex(lock::Futex);

impl Futex {
    #[allow(clippy::new_without_default, reason = "as in the engine")]
    pub fn new() -> Self {
        Self(lock::Futex::new())
    }

    pub fn with<R>(&self, f: impl FnOnce() -> R) -> R {
        let _held = self.0.hold();
        f()
    }
}

/// The gate of an allocation, which a launch writes and the host reads.
#[derive(Debug, Default)]
pub struct Gate {
    gate: gate::Gate,
    /// The error that the launch ended with.
    taint: sync::AtomicU32,
}

impl Gate {
    pub fn launch(&self, writes: bool) {
        self.gate.raise(writes);
    }

    /// A launch retires; `early` is the planted defect: its failure is written down when the gate is open already.
    pub fn retire(&self, writes: bool, failed: bool, early: bool) {
        if early {
            self.gate.lower(writes);
        }
        if failed {
            self.gate.raise(true);
            self.taint.store(1, sync::Ordering::Relaxed);
        }
        if !early {
            self.gate.lower(writes);
        }
    }

    pub fn is_open(&self, write: bool) -> bool {
        if write { self.gate.is_writable() } else { self.gate.is_readable() }
    }

    pub fn away(&self, writes: bool) {
        self.gate.away(writes);
    }

    pub fn all_home(&self, exclusive: bool) {
        self.gate.all_home(exclusive);
    }
}

/// A word to sleep on.
#[derive(Debug, Default)]
pub struct Word {
    word: sync::AtomicU32,
    sleepers: sync::AtomicU32,
}

impl Word {
    /// Changes the word and wakes whoever sleeps; `late` is the planted defect: it looks for sleepers first.
    pub fn advance(&self, late: bool) {
        let slept = self.sleepers.load(sync::Ordering::Relaxed) > 0;
        self.word.fetch_add(1, sync::Ordering::Release);
        if !late {
            park::wake(&self.word, &self.sleepers);
        } else if slept {
            os::futex_wake(&self.word, i32::MAX);
        }
    }

    pub fn value(&self) -> u32 {
        self.word.load(sync::Ordering::Acquire)
    }

    pub fn wait_beyond(&self, seen: u32) {
        while self.value() == seen {
            park::wait(&self.word, seen, &self.sleepers, None);
        }
    }
}

/// A driver with one entry, and the page that it mirrors.
#[derive(Debug)]
pub struct Driver {
    notifier: notifier::Notifier,
    lock: Futex,
    /// The host's value of the page; the driver's copy, if it has one. Under the lock or inside a window.
    page: sync::AtomicU32,
    entry: sync::AtomicU32,
}

/// No entry.
const NONE: u32 = u32::MAX;

/// What is done wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    None,
    /// An entry is installed without the retry check.
    NoRetry,
    /// The page is changed before the entry is removed.
    ChangeBeforeUpdate,
    /// The entry is removed before the window is open.
    UpdateBeforeOpen,
}

impl Driver {
    #[allow(clippy::new_without_default, reason = "as in the engine")]
    pub fn new() -> Self {
        let (page, entry) = (sync::AtomicU32::new(0), sync::AtomicU32::new(NONE));
        Self { notifier: notifier::Notifier::default(), lock: Futex::new(), page, entry }
    }

    fn pages() -> addr::Pages {
        addr::Pages(0..1)
    }

    /// `driver_populate_range`, with a bound on its tries.
    pub fn populate(&self, defect: Defect, tries: usize) {
        let mut free = Free::at_entry();
        for _ in 0..tries {
            let Some(seen) = self.notifier.read_begin(&mut free, &Self::pages(), std::time::Duration::MAX) else { continue };
            let looked_up = self.page.load(sync::Ordering::Relaxed);
            let installed = self.lock.with(|| {
                if defect != Defect::NoRetry && self.notifier.read_retry(&Self::pages(), seen) {
                    return false;
                }
                self.entry.store(looked_up, sync::Ordering::Relaxed);
                true
            });
            if installed {
                return;
            }
        }
    }

    fn update(&self) {
        self.lock.with(|| self.entry.store(NONE, sync::Ordering::Relaxed));
    }

    /// A change of the host side, in its window.
    pub fn change(&self, to: u32, defect: Defect) {
        if defect == Defect::UpdateBeforeOpen {
            self.update();
        }
        let window = self.notifier.open(&Self::pages());
        if defect == Defect::ChangeBeforeUpdate {
            self.page.store(to, sync::Ordering::Relaxed);
            self.notifier.end(window);
            self.update();
            return;
        }
        if defect != Defect::UpdateBeforeOpen {
            self.update();
        }
        self.page.store(to, sync::Ordering::Relaxed);
        self.notifier.end(window);
    }

    /// What a device would read through the entry, and what it should.
    pub fn entry_and_page(&self) -> (Option<u32>, u32) {
        self.lock.with(|| {
            let entry = self.entry.load(sync::Ordering::Relaxed);
            ((entry != NONE).then_some(entry), self.page.load(sync::Ordering::Relaxed))
        })
    }
}
