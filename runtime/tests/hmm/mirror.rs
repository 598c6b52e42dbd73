//! Mirrors with a table of their own: the retry check, callbacks, budgets (sections 3.1 and 3.6, rules 4.1 and 4.2).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna::Error;
use sterna::hmm::names::{self, hmm_mirror_register, hmm_mirror_register_locked, hmm_mirror_unregister};
use sterna::hmm::{Action, MigrateFlags, Mirror, MirrorOps, PAGE, Pages, Pfn, Prot, Range, Segment};

use crate::access::ONCE;
use crate::device::{Errno, eventually};
use crate::memory::{Memory, WORDS};
use crate::{Ctx, N, Outcome, Test, adapted, direct};

pub(crate) const TESTS: &[Test] = &[
    adapted(
        "hmm.userfaultfd_read",
        "the runtime fills the pages itself, from a file, beside host threads that touch them",
        userfaultfd_read,
    ),
    adapted(
        "hmm.userfaultfd_timeout",
        "pages on their way for longer than the budget stand for a handler that is gone",
        userfaultfd_timeout,
    ),
    direct("blind.retry_check", retry_check),
    direct("blind.no_entry_outlives_its_page", no_entry_outlives_its_page),
    direct("blind.callbacks_come_first", callbacks_come_first),
    direct("blind.unregister", unregister),
    direct("blind.register_locked", register_locked),
    direct("blind.range_errors", range_errors),
    direct("blind.names", names_do_what_they_say),
];

/// A driver: its lock and, under it, its table.
#[derive(Clone, Default)]
struct Driver(Arc<Mutex<HashMap<u64, Pfn>>>, Arc<AtomicU32>);

impl Driver {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, Pfn>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn populate(&self, mirror: &Arc<Mirror>, pages: &Pages, write: bool) -> Result<(), Error> {
        loop {
            let mut range = Range::new(mirror, pages.clone())?;
            range.fault(write, true)?;
            let mut table = self.table();
            if range.done() {
                table.extend(range.pfns());
                return Ok(());
            }
        }
    }
}

impl MirrorOps for Driver {
    fn update(&self, _: Action, pages: &Pages) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.table().retain(|page, _| !pages.0.contains(page));
    }
}

/// A file of bytes 0xAB.
fn of_bytes(ctx: &Ctx<'_>, pages: u64) -> Memory {
    use std::io::Write;
    let path = std::env::temp_dir().join(format!("sterna-hmm-ab-{}", std::process::id()));
    let mut f = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("its name");
    f.write_all(&vec![0xab; (pages * PAGE) as usize]).expect("its contents");
    Memory::of(Segment::of_file(ctx.space, f, 0, pages * PAGE, true).expect("a segment"), pages)
}

fn userfaultfd_read(ctx: &Ctx<'_>) -> Outcome {
    for _ in 0..10 {
        let (dev, m) = (ctx.dev(0), of_bytes(ctx, 4));
        let mut out = vec![0; 4 * WORDS];
        let read = std::thread::scope(|s| {
            for p in 0..4 {
                let m = &m;
                s.spawn(move || assert_eq!(m.page(p)[p as usize], 0xabab_abab));
            }
            dev.read(&m, m.all(), &mut out)
        });
        assert_eq!(read.map(|c| c.cpages), Ok(4));
        assert!(out.iter().all(|w| *w == 0xabab_abab));
    }
    Ok(())
}

fn userfaultfd_timeout(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m, driver) = (ctx.dev(0), ctx.filled(N), Driver::default());
    let mirror = hmm_mirror_register(ctx.space, driver);
    dev.device.delay_copies(Duration::from_millis(800));
    let before = dev.device.copies();
    std::thread::scope(|s| {
        s.spawn(|| dev.attached.migrate(&m.pages(m.all())).unwrap());
        eventually(|| dev.device.copies() > before);
        let ask = |timeout| {
            let mut range = Range::new(&mirror, m.pages(m.all())).expect("no window is open");
            range.fault_within(false, timeout).map_err(Errno::from)
        };
        let start = Instant::now();
        assert_eq!(ask(Some(Duration::from_millis(30))), Err(Errno::Busy));
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(ask(Some(Duration::ZERO)), Err(Errno::Busy), "without waiting");
        assert_eq!(ask(None), Ok(()), "for as long as it takes");
    });
    m.expect(m.all(), 0);
    Ok(())
}

/// What was looked up is worth nothing when a window was opened since.
fn retry_check(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m, driver) = (ctx.dev(0), ctx.filled(16), Driver::default());
    let mirror = hmm_mirror_register(ctx.space, driver.clone());
    let mut range = Range::new(&mirror, m.pages(0..8)).unwrap();
    range.fault(true, true).unwrap();
    assert!(range.done(), "nothing has happened");
    dev.to_dev(&m, 7..9).unwrap();
    assert!(!range.done(), "a page of the range has moved");
    let mut range = Range::new(&mirror, m.pages(0..4)).unwrap();
    range.fault(true, true).unwrap();
    m.protect(8..12, Prot::Read);
    assert!(range.done(), "a window elsewhere");
    m.protect(3..4, Prot::Read);
    assert!(!range.done(), "a protection");
    driver.populate(&mirror, &m.pages(0..8), false).unwrap();
    assert_eq!(driver.table().len(), 8);
    assert!(!driver.table()[&m.pages(3..4).0.start].is_writable());
    Ok(())
}

/// One thread fills the driver's table, another takes the pages away: an entry never stands beside a page that has gone.
fn no_entry_outlives_its_page(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m, driver) = (ctx.dev(0), ctx.filled(1), Driver::default());
    let mirror = hmm_mirror_register(ctx.space, driver.clone());
    let (page, stop) = (m.pages(0..1), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut range = Range::new(&mirror, page.clone()).unwrap();
                if range.fault_within(true, None).is_ok() {
                    std::thread::yield_now();
                    let mut table = driver.table();
                    if range.done() {
                        table.extend(range.pfns());
                    }
                }
            }
        });
        for _ in 0..300 {
            dev.attached.migrate(&page).unwrap();
            // With the driver's lock nothing can be installed, and what comes home does so without an entry.
            let table = driver.table();
            let there = dev.attached.mapped(&page, true).unwrap()[0];
            if there && table.contains_key(&page.0.start) {
                stop.store(true, Ordering::Relaxed);
                panic!("an entry for a page that the device has");
            }
            drop(table);
            std::thread::sleep(Duration::from_micros(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    m.expect(m.all(), 0);
    Ok(())
}

/// Starts to let go in `update`, has let go at the end of `finish`, and looks whether bytes have moved before.
struct Slow {
    dev_copies: Box<dyn Fn() -> u64 + Send + Sync>,
    before: AtomicU32,
    late: Arc<AtomicU32>,
    done: Arc<AtomicU32>,
}

impl MirrorOps for Slow {
    fn update(&self, _: Action, _: &Pages) {
        self.before.store((self.dev_copies)() as u32, Ordering::SeqCst);
    }

    fn finish(&self, _: Action, _: &Pages) {
        std::thread::sleep(Duration::from_millis(5));
        let now = (self.dev_copies)() as u32;
        self.late.fetch_add(now - self.before.load(Ordering::SeqCst), Ordering::SeqCst);
        self.done.fetch_add(1, Ordering::SeqCst);
    }
}

/// The change comes after every callback, both passes of them.
fn callbacks_come_first(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(16));
    let (late, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let device = Arc::clone(&dev.device);
    let mirror = Mirror::register(
        ctx.space,
        Slow {
            dev_copies: Box::new(move || device.copies()),
            before: AtomicU32::new(0),
            late: Arc::clone(&late),
            done: Arc::clone(&done),
        },
    );
    for _ in 0..5 {
        let before = done.load(Ordering::SeqCst);
        dev.attached.migrate(&m.pages(m.all())).unwrap();
        assert!(done.load(Ordering::SeqCst) > before, "pages moved before the callback was done");
        let before = done.load(Ordering::SeqCst);
        dev.to_sys(&m, m.all()).unwrap();
        assert!(done.load(Ordering::SeqCst) > before, "pages came home before the callback was done");
    }
    assert_eq!(late.load(Ordering::SeqCst), 0, "bytes moved while a callback ran");
    drop(mirror);
    Ok(())
}

fn unregister(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m, driver) = (ctx.dev(0), ctx.filled(16), Driver::default());
    let mirror = hmm_mirror_register(ctx.space, driver.clone());
    dev.to_dev(&m, m.all()).unwrap();
    let seen = driver.1.load(Ordering::SeqCst);
    assert!(seen > 0);
    hmm_mirror_unregister(&mirror);
    dev.to_sys(&m, m.all()).unwrap();
    m.protect(0..4, Prot::Read);
    assert_eq!(driver.1.load(Ordering::SeqCst), seen, "a callback after the mirror's end");
    Ok(())
}

/// While the space is locked nothing moves, and a mirror that is added then sees the first thing that does.
fn register_locked(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m, driver) = (ctx.dev(0), ctx.filled(16), Driver::default());
    std::thread::scope(|s| {
        let mut locked = ctx.space.lock();
        let moved = s.spawn(|| dev.attached.migrate(&m.pages(m.all())).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!moved.is_finished(), "pages moved while the space was locked");
        let mirror = hmm_mirror_register_locked(&mut locked, driver.clone());
        drop(locked);
        assert_eq!(moved.join().unwrap().moved, 16);
        assert!(driver.1.load(Ordering::SeqCst) > 0, "the new mirror was not told");
        drop(mirror);
    });
    m.expect(m.all(), 0);
    Ok(())
}

fn range_errors(ctx: &Ctx<'_>) -> Outcome {
    let (m, driver) = (ctx.filled(16), Driver::default());
    let mirror = hmm_mirror_register(ctx.space, driver);
    let ask = |pages: std::ops::Range<u64>, write| {
        names::hmm_vma_fault(&mirror, m.pages(pages), write, true).map(|r| r.pfns().count()).map_err(Errno::from)
    };
    let first = m.pages(0..1).0.start;
    assert_eq!(Range::new(&mirror, Pages(first..first)).map(drop).map_err(Errno::from), Err(Errno::Invalid));
    assert_eq!(Range::new(&mirror, Pages(u64::MAX - 1..u64::MAX)).map(drop).map_err(Errno::from), Err(Errno::Invalid));
    assert_eq!(ask(0..16, true), Ok(16));
    m.protect(4..5, Prot::Read);
    assert_eq!(ask(0..16, true), Err(Errno::Perm));
    assert_eq!(ask(0..16, false), Ok(16));
    m.protect(4..5, Prot::None);
    assert_eq!(ask(0..16, false), Err(Errno::Fault));
    assert_eq!(ask(5..16, true), Ok(11));
    m.protect(4..5, Prot::Write);
    assert_eq!(ask(0..16, true), Ok(16), "the same call once it is allowed");
    m.unmap(8..9);
    assert_eq!(ask(0..16, false), Err(Errno::Fault));
    let seen = names::hmm_vma_get_pfns(&mirror, m.pages(7..10)).unwrap();
    let seen: Vec<Pfn> = seen.pfns().map(|(_, p)| p).collect();
    assert!(seen[0].is_writable() && seen[1].is_error() && seen[2].is_writable());
    Ok(())
}

fn names_do_what_they_say(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(16));
    m.page_mut(1)[0] = 1;
    m.protect(2..3, Prot::Read);
    let pin = ctx.space.pin(&m.pages(3..4), sterna::hmm::PinKind::Long, false).unwrap();
    let flags = names::migrate_vma(&dev.attached, &m.pages(0..4)).unwrap();
    let there = MigrateFlags::MIGRATE | MigrateFlags::DEVICE;
    assert_eq!(flags[0] & !MigrateFlags::VALID, there | MigrateFlags::WRITE);
    assert_eq!(flags[1], there | MigrateFlags::WRITE | MigrateFlags::VALID);
    assert_eq!(flags[2] & !MigrateFlags::VALID, there, "what may not be written is not there either");
    assert!(!flags[3].contains(MigrateFlags::MIGRATE), "a pinned page");
    drop(pin);
    names::migrate_device_range(&dev.attached).unwrap();
    dev.expect_frames(0);
    names::make_device_exclusive(&dev.attached, &m.pages(0..2)).unwrap();
    assert_eq!(dev.attached.exclusive(&m.pages(0..2)).unwrap(), 2);
    let mut out = vec![0; WORDS];
    assert_eq!(dev.read(&m, 4..5, &mut out), ONCE(1));
    assert_eq!(m.page(1)[0], 1);
    Ok(())
}
