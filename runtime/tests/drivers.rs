//! What the author of a driver may count on: mirrors and their callbacks, look-ups, and an attached device, where the HMM suite
//! does not reach.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Access, Device as _};
use sterna::hmm::{
    Action, Attached, Mirror, MirrorOps, PAGE, Page, Pages, Pfn, PfnFlags, PinKind, Prot, Range, Segment, Space,
};
use sterna::policy::Place;
use sterna::{Error, Mechanism, Runtime};
use support::{runtime, tick, under_each};

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: u64 = 512;

/// A mirror is told of every change in the space, those of other tests too.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body` under each mechanism that serves faults: without faults there is nothing to test.
fn served(test: &str, body: impl FnOnce(&'static Space)) {
    under_each(test, LIMIT, |m| {
        if m != Mechanism::None {
            let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            body(Space::process(Some(m)).unwrap());
        }
    });
}

/// A device that moves single pages.
fn by_page() -> CpuConfig {
    CpuConfig { memory: 64 << 20, grain: PAGE, ..CpuConfig::default() }
}

fn attached(space: &'static Space, config: CpuConfig) -> (Attached, Arc<CpuDevice>) {
    let cpu = Arc::new(CpuDevice::new(0, config).unwrap());
    (Attached::new(space, Arc::clone(&cpu) as _).unwrap(), cpu)
}

/// A segment whose page `p` begins with the number `p + 1`.
fn filled(space: &'static Space, pages: u64) -> Arc<Segment> {
    let seg = Segment::new(space, pages * PAGE).unwrap();
    (0..pages).for_each(|p| set(&seg, p, p as u32 + 1));
    seg
}

fn pages(seg: &Segment, r: std::ops::Range<u64>) -> Pages {
    let first = seg.pages().0.start;
    Pages(first + r.start..first + r.end)
}

fn word(seg: &Segment, page: u64) -> u32 {
    // SAFETY: inside the segment, whose pages the tests use one after the other.
    unsafe { seg.as_host_ptr().cast::<u32>().add((page * PAGE / 4) as usize).read_volatile() }
}

fn set(seg: &Segment, page: u64, value: u32) {
    // SAFETY: as above.
    unsafe { seg.as_host_ptr().cast::<u32>().add((page * PAGE / 4) as usize).write_volatile(value) }
}

struct Nothing;

impl MirrorOps for Nothing {
    fn update(&self, _: Action, _: &Pages) {}
}

/// Whether the process's page table has a page there.
fn mapped(at: *const u8) -> bool {
    let mut entry = [0; 8];
    let table = File::open("/proc/self/pagemap").unwrap();
    table.read_exact_at(&mut entry, at.addr() as u64 / PAGE * 8).unwrap();
    u64::from_ne_bytes(entry) >> 63 == 1
}

/// At the first callback, stores again what is there, if it is mapped: a crash where that is not allowed any more.
#[derive(Clone)]
struct Watch {
    seg: Arc<Segment>,
    seen: Arc<Mutex<Option<Seen>>>,
}

/// Why, and what was mapped.
type Seen = (Action, Option<u32>);

impl MirrorOps for Watch {
    fn update(&self, action: Action, over: &Pages) {
        let mut seen = self.seen.lock().unwrap();
        if self.seg.pages().intersects(over) && seen.is_none() {
            let value = mapped(self.seg.as_host_ptr()).then(|| word(&self.seg, 0));
            value.iter().for_each(|v| set(&self.seg, 0, *v));
            *seen = Some((action, value));
        }
    }
}

/// Fails if the host's side of a page is changed before every mirror has been told.
#[test]
fn callbacks_come_before_the_change() {
    served("callbacks_come_before_the_change", |space| {
        let (dev, _) = attached(space, by_page());
        // SAFETY: the pages are the test's, which uses them as they are allowed to be used.
        let change = |what, p: &Pages| unsafe {
            match what {
                "migrate" => dev.migrate(p).map(|done| assert_eq!(done.moved, 16)),
                "discard" => space.discard(p),
                "protect" => space.protect(p, Prot::Read),
                _ => space.unmap(p),
            }
        };
        for what in ["migrate", "discard", "protect", "unmap"] {
            let watch = Watch { seg: filled(space, 16), seen: Arc::default() };
            let mirror = Mirror::register(space, watch.clone());
            change(what, &watch.seg.pages()).unwrap();
            mirror.unregister();
            let seen = watch.seen.lock().unwrap();
            assert_eq!(seen.map(|s| s.1), Some(Some(1)), "{what}: {seen:?}");
        }
    });
}

/// Waits, launches and allocates where it is told of a change; notes what came of it.
struct Waits(Runtime, Arc<Mutex<Vec<[bool; 2]>>>);

impl MirrorOps for Waits {
    fn update(&self, _: Action, _: &Pages) {
        let mut y = self.0.shared::<u64>(1000).unwrap();
        let results = [self.0.sync(), self.0.launch(&tick(1000), (&mut y,)).map(drop)];
        self.1.lock().unwrap().push(results.map(|r| matches!(r, Err(Error::InsideKernel))));
    }
}

/// Fails if a callback may wait for launches, one of which waits for it: both would for good.
#[test]
fn a_callback_neither_launches_nor_waits() {
    under_each("a_callback_neither_launches_nor_waits", LIMIT, |_| {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (rt, seen) = (runtime("declared", [CpuConfig::default()]), Arc::default());
        let mirror = Mirror::register(rt.space(), Waits(rt.clone(), Arc::clone(&seen)));
        let mut y = rt.shared_with(1000, |_| 0_u64).unwrap();
        rt.launch(&tick(1000), (&mut y,)).unwrap().wait().unwrap();
        assert!(y.iter().all(|v| *v == 1));
        mirror.unregister();
        let seen = seen.lock().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|refused| *refused == [true, true]), "{seen:?}");
    });
}

/// Notes its calls, by its name.
struct Notes(&'static str, Arc<Mutex<Vec<String>>>);

impl MirrorOps for Notes {
    fn update(&self, _: Action, _: &Pages) {
        self.1.lock().unwrap().push(format!("update {}", self.0));
    }
    fn finish(&self, _: Action, _: &Pages) {
        self.1.lock().unwrap().push(format!("finish {}", self.0));
    }
}

/// Fails if a mirror is waited for before the others have begun, or left out, or if the end of a segment is kept from it.
#[test]
fn every_mirror_begins_before_any_finishes() {
    served("every_mirror_begins_before_any_finishes", |space| {
        let (dev, _) = attached(space, by_page());
        let notes = Arc::<Mutex<Vec<String>>>::default();
        let seg = filled(space, 4);
        let mirrors = ["a", "b"].map(|name| Mirror::register(space, Notes(name, Arc::clone(&notes))));
        // In which order the mirrors are called does not matter.
        let calls = || {
            let mut calls = std::mem::take(&mut *notes.lock().unwrap());
            calls.chunks_mut(2).for_each(<[String]>::sort);
            calls
        };
        let want = ["update a", "update b", "finish a", "finish b"];
        dev.migrate(&seg.pages()).unwrap();
        assert_eq!(calls(), want, "a migration");
        drop(seg);
        assert_eq!(calls(), want, "a segment's end");
        mirrors.iter().for_each(|m| m.unregister());
    });
}

/// Says that it is running, for a while.
#[derive(Clone, Default)]
struct Slow(Arc<(AtomicBool, AtomicU32)>);

impl MirrorOps for Slow {
    fn update(&self, _: Action, _: &Pages) {
        self.0.1.fetch_add(1, SeqCst);
        self.0.0.store(true, SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        self.0.0.store(false, SeqCst);
    }
}

/// Fails if a callback runs, or begins, after the mirror was unregistered.
#[test]
fn no_callback_after_unregistering() {
    served("no_callback_after_unregistering", |space| {
        let (dev, _) = attached(space, by_page());
        let (seg, slow) = (filled(space, 4), Slow::default());
        let mirror = Mirror::register(space, slow.clone());
        std::thread::scope(|s| {
            s.spawn(|| dev.migrate(&seg.pages()).unwrap());
            while !slow.0.0.load(SeqCst) {
                std::thread::yield_now();
            }
            sterna::hmm::names::hmm_mirror_unregister(&mirror);
            assert!(!slow.0.0.load(SeqCst), "its callback is still running");
        });
        dev.migrate_home(&seg.pages()).unwrap();
        assert_eq!(slow.0.1.load(SeqCst), 1);
        mirror.unregister();
    });
}

/// Fails if a snapshot mixes what was before a move of two blocks and what was after it.
#[test]
fn a_snapshot_is_of_one_instant() {
    served("a_snapshot_is_of_one_instant", |space| {
        let (dev, _) = attached(space, by_page());
        let seg = filled(space, 2 * BLOCK);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(SeqCst) {
                    dev.migrate(&seg.pages()).unwrap();
                    dev.migrate_home(&seg.pages()).unwrap();
                }
            });
            let (start, mut sides) = (Instant::now(), [0, 0]);
            while start.elapsed() < Duration::from_secs(2) {
                let Ok(seen) = dev.snapshot(&seg.pages()) else { continue }; // overtaken again and again
                let side = |p: &Pfn| p.is_valid().then(|| p.flags().contains(PfnFlags::DEVICE_PRIVATE));
                let (first, last) = (side(&seen[0]), side(&seen[2 * BLOCK as usize - 1]));
                if let (Some(a), Some(b)) = (first, last) {
                    sides[usize::from(a)] += 1;
                    if a != b {
                        stop.store(true, SeqCst);
                    }
                    assert_eq!(a, b, "one block is at home, the other on the device");
                }
            }
            stop.store(true, SeqCst);
            println!("snapshots of pages at home and on the device: {sides:?}");
        });
    });
}

/// Fails if a fault says yes and leaves a page without an entry, or without one for stores; or if one that fails gives entries.
#[test]
fn a_fault_gives_what_was_asked_for() {
    served("a_fault_gives_what_was_asked_for", |space| {
        let (dev, _) = attached(space, by_page());
        let mirror = Mirror::register(space, Nothing);
        let seg = Segment::new(space, 16 * PAGE).unwrap();
        let away = || {
            (4..8).for_each(|p| set(&seg, p, p as u32));
            dev.migrate(&pages(&seg, 6..8)).unwrap();
            dev.populate(&pages(&seg, 4..6), Access::Read, Place::Migrate, None).unwrap();
        };
        for write in [false, true] {
            away();
            let mut range = Range::new(&mirror, seg.pages()).unwrap();
            range.fault(write, true).unwrap();
            let seen: Vec<Pfn> = range.pfns().map(|(_, p)| p).collect();
            assert!(seen.iter().all(|p| p.is_valid() && (!write || p.is_writable())), "write {write}: {seen:?}");
        }
        away();
        // SAFETY: nobody uses the page.
        unsafe { space.protect(&pages(&seg, 0..1), Prot::Read) }.unwrap();
        let mut range = Range::new(&mirror, seg.pages()).unwrap();
        assert!(matches!(range.fault(true, true), Err(sterna::Error::Permission { .. })));
        assert_eq!(range.pfns().count(), 0, "entries of a fault that failed");
        range.fault(false, true).unwrap();
        assert!((4..8).all(|p| word(&seg, p) == p as u32));
    });
}

/// Fails if frames are kept for pages that were refused.
#[test]
fn refused_pages_keep_no_frames() {
    served("refused_pages_keep_no_frames", |space| {
        let (dev, cpu) = attached(space, by_page());
        let seg = filled(space, 16);
        let pin = space.pin(&pages(&seg, 3..5), PinKind::Long, true).unwrap();
        let done = dev.migrate(&seg.pages()).unwrap();
        assert_eq!((done.moved, done.refused, cpu.memory().in_use), (14, 2, 14 * PAGE));
        drop(pin);
    });
}

/// Fails if the place of a page in one device's memory, or bytes of the host's that are out of date, are shown to another.
#[test]
fn anothers_memory_is_not_shown() {
    served("anothers_memory_is_not_shown", |space| {
        let ((one, _), (two, _)) = (attached(space, by_page()), attached(space, by_page()));
        let (seg, mirror) = (filled(space, 16), Mirror::register(space, Nothing));
        one.migrate(&seg.pages()).unwrap();
        assert!(two.snapshot(&seg.pages()).unwrap().iter().all(|p| p.is_none()));
        let mut range = Range::new(&mirror, seg.pages()).unwrap();
        range.get_pfns();
        assert!(range.pfns().all(|(_, p)| p.is_none()));
    });
}

/// Fails if a device gets more than a page allows because neighbours come along: in a grain, or with a fault.
#[test]
fn what_comes_along_is_allowed() {
    served("what_comes_along_is_allowed", |space| {
        let (dev, _) = attached(space, CpuConfig { grain: 16 * PAGE, ..by_page() });
        let seg = filled(space, 32);
        // SAFETY: nobody stores to the pages.
        unsafe { space.protect(&pages(&seg, 3..4), Prot::Read) }.unwrap();
        let asked = dev.populate(&pages(&seg, 0..1), Access::ReadWrite, Place::Migrate, None);
        assert!(matches!(asked, Err(sterna::Error::Permission { .. })), "{asked:?}");
        assert_eq!(dev.mapped(&pages(&seg, 0..32), true).unwrap(), [false; 32]);
        dev.populate(&pages(&seg, 16..17), Access::ReadWrite, Place::Migrate, None).unwrap();

        let rt = runtime("demand", [by_page()]);
        let mut x = rt.shared_with(BLOCK as usize * 512, |i| i as u64).unwrap();
        let all = x.range(..).unwrap().pages().0;
        // SAFETY: as above.
        unsafe { space.protect(&Pages(all.start + BLOCK / 2..all.end), Prot::Read) }.unwrap();
        let mut part = x.range_mut(..BLOCK as usize / 2 * 512).unwrap();
        rt.launch(&tick(512), (&mut part,)).unwrap().wait().unwrap();
        let right = |i: usize| i as u64 + u64::from(i < BLOCK as usize / 2 * 512);
        assert!(x.iter().enumerate().all(|(i, v)| *v == right(i)));
    });
}

/// Fails if what was done already is an error, or does something, when it is done again.
#[test]
fn operations_may_be_repeated() {
    served("operations_may_be_repeated", |space| {
        let (dev, cpu) = attached(space, by_page());
        let seg = filled(space, 16);
        for _ in 0..2 {
            dev.migrate(&seg.pages()).unwrap();
            assert_eq!(cpu.memory().in_use, 16 * PAGE);
        }
        let copies = cpu.inject().copies();
        for _ in 0..2 {
            // SAFETY: nobody uses the pages.
            unsafe {
                space.protect(&pages(&seg, 0..4), Prot::Read).unwrap();
                space.unmap(&pages(&seg, 4..8)).unwrap();
                space.discard(&pages(&seg, 8..12)).unwrap();
            }
            assert_eq!(cpu.memory().in_use, 8 * PAGE);
        }
        assert_eq!(cpu.inject().copies(), copies, "nothing had to travel");
        for _ in 0..2 {
            dev.release_memory().unwrap();
            assert_eq!(cpu.memory().in_use, 0);
        }
        let want = |p: u64| if p < 8 { None } else { Some(if p < 12 { 0 } else { p as u32 + 1 }) };
        assert!((8..16).all(|p| Some(word(&seg, p)) == want(p)) && (0..4).all(|p| word(&seg, p) == p as u32 + 1));
        cpu.lose();
        for _ in 0..2 {
            assert!(dev.migrate(&seg.pages()).is_err());
        }
    });
}

/// Fails if moves wait for the copies of others, elsewhere.
#[test]
fn a_move_does_not_wait_for_anothers_copy() {
    const LONG: Duration = Duration::from_millis(1500);
    served("a_move_does_not_wait_for_anothers_copy", |space| {
        let (slow, cpu) = attached(space, by_page());
        let (quick, _) = attached(space, CpuConfig { host_readable: false, ..by_page() });
        let (a, b) = (filled(space, 16), filled(space, 16));
        quick.migrate(&b.pages()).unwrap();
        cpu.inject().delay_copies(LONG);
        std::thread::scope(|s| {
            let start = Instant::now();
            let t = s.spawn(|| slow.migrate(&a.pages()).unwrap());
            while cpu.inject().copies() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(word(&b, 3), 4, "a host fault");
            quick.migrate(&b.pages()).unwrap();
            quick.migrate_home(&b.pages()).unwrap();
            let took = start.elapsed();
            assert!(took < LONG && !t.is_finished(), "they waited: {took:?}");
        });
        cpu.inject().delay_copies(Duration::ZERO);
    });
}

/// Fails if pages of a segment that others share leave for a device.
#[test]
fn shared_memory_does_not_migrate() {
    served("shared_memory_does_not_migrate", |space| {
        let (dev, cpu) = attached(space, CpuConfig { map_host: false, ..by_page() });
        let path = std::env::temp_dir().join(format!("sterna-drivers-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let of_file = Segment::of_file(space, file, 0, 16 * PAGE, true).unwrap();
        for seg in [of_file, Segment::shared(space, 16 * PAGE).unwrap()] {
            (0..4).for_each(|p| set(&seg, p, 7));
            let done = dev.migrate(&seg.pages()).unwrap();
            assert_eq!((done.moved, done.refused, cpu.memory().in_use), (0, 16, 0));
            assert_eq!(word(&seg, 2), 7);
        }
    });
}

/// A segment of `granules` granules, whose page `p` begins with the number `p + 1`, some of it on the device.
fn half_away(space: &'static Space, dev: &Attached, granules: u64) -> Arc<Segment> {
    let seg = filled(space, 16 * granules);
    dev.migrate(&pages(&seg, 8..16 * granules - 8)).unwrap();
    seg
}

/// Fails if remapping does not wait for a pin that is short.
#[test]
fn remapping_waits_for_a_short_pin() {
    served("remapping_waits_for_a_short_pin", |space| {
        let (dev, _) = attached(space, by_page());
        for pinned in [3..5, 16..17, 40..41] {
            let seg = half_away(space, &dev, 4);
            let pin = space.pin(&pages(&seg, pinned.clone()), PinKind::Short, true).unwrap();
            std::thread::scope(|s| {
                s.spawn(|| {
                    std::thread::sleep(Duration::from_millis(100));
                    drop(pin);
                });
                // SAFETY: nobody uses the pages meanwhile.
                unsafe { space.remap(&pages(&seg, 0..32), &pages(&seg, 32..64), true) }
                    .unwrap_or_else(|e| panic!("{pinned:?}: {e}"));
            });
            for p in 0..32 {
                assert_eq!((word(&seg, p), word(&seg, 32 + p)), (0, p as u32 + 1), "page {p}, {pinned:?}");
            }
        }
    });
}

/// Fails if a call that could not remap has moved or dropped something.
#[test]
fn remapping_moves_all_or_nothing() {
    served("remapping_moves_all_or_nothing", |space| {
        let (dev, _) = attached(space, by_page());
        for pinned in [20, 60] {
            for kind in [PinKind::Short, PinKind::Long] {
                let seg = half_away(space, &dev, 4);
                let pin = space.pin(&pages(&seg, pinned..pinned + 1), kind, true).unwrap();
                for keep_old in [true, false] {
                    // SAFETY: nobody uses the pages meanwhile.
                    let done = unsafe { space.remap(&pages(&seg, 0..32), &pages(&seg, 32..64), keep_old) };
                    assert!(matches!(done, Err(Error::Pinned)), "{done:?}");
                }
                drop(pin);
                let there = dev.mapped(&pages(&seg, 17..19), false).unwrap();
                for p in 0..64 {
                    assert_eq!(word(&seg, p), p as u32 + 1, "page {p}, pinned {pinned} {kind:?}");
                    set(&seg, p, p as u32 + 7);
                }
                println!("on the device after a refusal: {there:?}");
                // SAFETY: as above.
                unsafe { space.remap(&pages(&seg, 0..32), &pages(&seg, 32..64), false) }.unwrap();
                assert!((0..32).all(|p| word(&seg, 32 + p) == p as u32 + 7));
                assert!(
                    dev.snapshot(&pages(&seg, 0..32)).unwrap().iter().all(|pfn| pfn.is_error()),
                    "the old place is unmapped"
                );
                space.map(&pages(&seg, 0..32)).unwrap();
                assert!((0..32).all(|p| word(&seg, p) == 0));
            }
        }
    });
}

/// Fails if whoever needs pages elsewhere fails at once beside a pin that is short.
#[test]
fn who_needs_pages_elsewhere_waits_for_a_short_pin() {
    served("who_needs_pages_elsewhere_waits_for_a_short_pin", |space| {
        for map_host in [true, false] {
            let (dev, _) = attached(space, CpuConfig { map_host, ..by_page() });
            let seg = filled(space, 32);
            let beside = |f: &dyn Fn() -> Result<(), Error>| {
                let pin = space.pin(&pages(&seg, 3..5), PinKind::Short, true).unwrap();
                std::thread::scope(|s| {
                    s.spawn(|| {
                        std::thread::sleep(Duration::from_millis(100));
                        drop(pin);
                    });
                    f().unwrap_or_else(|e| panic!("map_host {map_host}: {e}"));
                });
            };
            beside(&|| dev.make_exclusive(&pages(&seg, 0..16)));
            assert_eq!(dev.exclusive(&pages(&seg, 0..16)).unwrap(), 16);
            beside(&|| dev.populate(&pages(&seg, 0..32), Access::ReadWrite, Place::Migrate, None));
            let pin = space.pin(&pages(&seg, 3..5), PinKind::Short, true).unwrap();
            let told = dev.make_exclusive(&pages(&seg, 0..16));
            assert!(matches!(told, Err(Error::Pinned)), "after a second it is told: {told:?}");
            drop(pin);
        }
    });
}

/// Fails if numbers that make no sense end in a panic, in work without end, or in anything but an error.
#[test]
fn ranges_that_make_no_sense_are_refused() {
    served("ranges_that_make_no_sense_are_refused", |space| {
        let (dev, _) = attached(space, by_page());
        let mirror = Mirror::register(space, Nothing);
        let seg = filled(space, 16);
        let (first, all) = (seg.pages().0.start, space.bytes() / PAGE);
        let bad = [
            (first, first),
            (first + 5, first),
            (all, all + 5),
            (0, u64::MAX),
            (u64::MAX - 1, u64::MAX),
            (u64::MAX, 0),
            (first, u64::MAX),
            (1 << 31, (1 << 31) + 1),
            (1 << 40, (1 << 40) + 1),
            (first, first + 300),
            (first, all),
            (0, all),
        ];
        for p in bad.map(|(a, b)| Pages(a..b)) {
            let refused = |r: Result<(), Error>| {
                assert!(matches!(r, Err(Error::Invalid { .. } | Error::Fault { .. })), "{p:?}: {r:?}");
            };
            refused(dev.populate(&p, Access::Read, Place::Migrate, None));
            refused(dev.mapped(&p, false).map(drop));
            refused(dev.migrate(&p).map(drop));
            refused(dev.migrate_home(&p).map(drop));
            refused(dev.make_exclusive(&p));
            refused(dev.exclusive(&p).map(drop));
            refused(space.pin(&p, PinKind::Short, false).map(drop));
            refused(space.pin(&p, PinKind::Long, true).map(drop));
            refused(space.map(&p));
            // SAFETY: the calls are refused.
            unsafe {
                refused(space.protect(&p, Prot::Read));
                refused(space.unmap(&p));
                refused(space.discard(&p));
                refused(space.remap(&p, &seg.pages(), false));
                refused(space.remap(&seg.pages(), &p, false));
            }
            // A look-up has an entry for each page that there is.
            for looked in [
                dev.snapshot(&p).map(|v| v.len()),
                Range::new(&mirror, p.clone()).map(|mut r| {
                    r.get_pfns();
                    r.pfns().count()
                }),
            ] {
                let fits = looked.as_ref().is_ok_and(|n| *n as u64 == p.len());
                assert!(fits || matches!(looked, Err(Error::Invalid { .. } | Error::TooBig { .. })), "{p:?}: {looked:?}");
            }
            let _ = (p.len(), p.bytes(), p.widened(16), p.widened(0), space.find(Page(p.0.start)));
        }
        assert_eq!((0..16).map(|p| word(&seg, p)).sum::<u32>(), 136, "nothing has changed");
    });
}
