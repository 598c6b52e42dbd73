//! Faults taken in awkward places: with standard output locked, inside the program's allocator, in a thread pool, in a signal
//! handler, with all signals blocked, and by many threads at once. Nothing of the program may run while a fault is served.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use sterna::cpu::CpuConfig;
use sterna::kernel::{Group, Kernel, each_mut};
use sterna::{Mechanism, Pending, Runtime, Shared, ViewMut};
use support::{child, plain, runtime, tick, under_each};

const LIMIT: Duration = Duration::from_secs(20);
const LEN: usize = 32 << 10;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
}
static LOCKED: AtomicBool = AtomicBool::new(false);
static TOUCH: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
static TOUCHED: AtomicU64 = AtomicU64::new(0);

/// The system's allocator behind a lock; on a thread that is armed it looks at a shared element with the lock held.
struct Nosy;

// SAFETY: memory comes from the system's allocator.
unsafe impl GlobalAlloc for Nosy {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ARMED.with(|a| a.replace(false)) {
            while LOCKED.swap(true, Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // SAFETY: an element of a shared allocation that lives longer than its thread is armed.
            TOUCHED.store(unsafe { TOUCH.load(Ordering::Acquire).read_volatile() }, Ordering::Release);
            LOCKED.store(false, Ordering::Release);
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Nosy = Nosy;

/// An allocation whose every element is 1 and on the device.
fn on_device(rt: &Runtime) -> Shared<u64> {
    let mut y = rt.shared::<u64>(LEN).unwrap();
    rt.launch(&tick(1024), (&mut y,)).unwrap().wait().unwrap();
    assert!(y.residency().devices[0].pages > 0);
    y
}

static GO_ON: AtomicU32 = AtomicU32::new(1);

fn until_told(_: Group, _: u32, y: &mut [u64]) {
    let start = Instant::now();
    while GO_ON.load(Ordering::Acquire) == 0 && start.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    y[0] += 1;
}

/// Calls `body` with elements that are on the device: first while nothing runs there, then while a kernel uses their neighbours
/// and the page has to be fetched by another thread.
fn idle_and_busy(mechanism: Mechanism, body: impl Fn(&mut ViewMut<'_, u64>)) {
    for busy in [false, true] {
        let rt = plain();
        let mut y = on_device(&rt);
        let grain = 8192;
        let (mut first, mut rest) = y.split_at_mut(grain).unwrap();
        if busy && mechanism != Mechanism::None {
            GO_ON.store(0, Ordering::Release);
        }
        let kernel = Kernel::new("until_told", 0_u32, (each_mut(grain),), until_told);
        let pending: Option<Pending> = busy.then(|| rt.launch(&kernel, (&mut first,)).unwrap());
        body(&mut rest);
        GO_ON.store(1, Ordering::Release);
        if let Some(p) = pending {
            p.wait().unwrap();
            assert_eq!(first[0], 2);
        }
    }
}

/// Fails if serving a fault prints, or waits for a thread that prints.
#[test]
fn with_standard_output_locked() {
    under_each("with_standard_output_locked", LIMIT, |m| {
        idle_and_busy(m, |y| {
            println!("{}", y[7]);
            let mut out = std::io::stdout().lock();
            for i in (0..y.len()).step_by(1000) {
                write!(out, "{}", y[i]).unwrap();
            }
            writeln!(out).unwrap();
        });
    });
}

/// Fails if serving a fault allocates while the program's allocator waits for it. Only the case that is served inline: the
/// thread that fetches pages from under a running kernel does allocate, on its own.
#[test]
fn inside_the_programs_allocator() {
    under_each("inside_the_programs_allocator", LIMIT, |m| {
        idle_and_busy(m, |y| {
            if m == Mechanism::None {
                assert_eq!(y[0], 1); // brings it home
            }
            TOUCH.store(y.as_host_ptr().cast_mut(), Ordering::Release);
            TOUCHED.store(0, Ordering::Release);
            ARMED.with(|a| a.set(true));
            drop(std::hint::black_box(Box::new(5)));
            assert_eq!(TOUCHED.load(Ordering::Acquire), 1);
        });
    });
}

/// Fails if faults of pool threads depend on each other.
#[test]
fn inside_a_thread_pool() {
    under_each("inside_a_thread_pool", LIMIT, |m| {
        idle_and_busy(m, |y| assert_eq!(y.par_iter().sum::<u64>(), y.len() as u64));
    });
}

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn look(_: libc::c_int) {
    // SAFETY: an element of a shared allocation that lives while the handler may run.
    SEEN.store(unsafe { TOUCH.load(Ordering::Acquire).read_volatile() }, Ordering::Release);
}

fn on_signal(signal: libc::c_int) {
    // SAFETY: an action with a handler that only loads and stores.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = look as *const () as usize;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Fails if a fault in a signal handler of the program is not served. (Legal where the interrupted code is the program's own;
/// the thread here is not inside a call of this crate.)
#[test]
fn in_a_signal_handler_of_the_program() {
    under_each("in_a_signal_handler_of_the_program", LIMIT, |m| {
        on_signal(libc::SIGUSR1);
        idle_and_busy(m, |y| {
            if m == Mechanism::None {
                assert_eq!(y[0], 1);
            }
            TOUCH.store(y.as_host_ptr().cast_mut(), Ordering::Release);
            SEEN.store(0, Ordering::Release);
            // SAFETY: a handler is installed.
            unsafe { libc::raise(libc::SIGUSR1) };
            assert_eq!(SEEN.load(Ordering::Acquire), 1);
        });
    });
}

fn block_all_signals() {
    // SAFETY: changes this thread's mask only.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

/// Fails if a thread with all signals blocked cannot fault where the documentation says that it can.
#[test]
fn with_all_signals_blocked() {
    under_each("with_all_signals_blocked", LIMIT, |m| {
        if matches!(m, Mechanism::Signal | Mechanism::Guard) {
            return; // see `signal_mode_needs_its_signal`
        }
        idle_and_busy(m, |y| {
            let y: &mut ViewMut<'_, u64> = y;
            std::thread::scope(|s| {
                s.spawn(move || {
                    block_all_signals();
                    assert_eq!(y.iter().sum::<u64>(), y.len() as u64);
                });
            });
        });
    });
}

/// Fails if a thread that blocks SIGBUS in mode `signal` does anything but end the process, as is documented: going on would
/// mean that it read something else.
#[test]
fn signal_mode_needs_its_signal() {
    const DIE: &str = "STERNA_TEST_DIE";
    if std::env::var_os(DIE).is_some() {
        let rt = plain();
        let y = on_device(&rt);
        block_all_signals();
        println!("read {}", std::hint::black_box(y[7]));
        return;
    }
    if support::available(Mechanism::Signal) {
        let out = child("signal_mode_needs_its_signal").env(DIE, "1").env("STERNA_HOST_FAULTS", "signal").output().unwrap();
        assert_eq!(out.status.signal(), Some(libc::SIGBUS), "{out:?}");
    }
}

/// Fails if one page is fetched more than once, or a thread that waits for it is forgotten.
#[test]
fn many_threads_touch_one_page_at_once() {
    under_each("many_threads_touch_one_page_at_once", LIMIT, |m| {
        for _ in 0..50 {
            let rt = plain();
            let y = on_device(&rt);
            let (before, barrier) = (rt.stats().to_host(), Barrier::new(8));
            std::thread::scope(|s| {
                for _ in 0..8 {
                    s.spawn(|| {
                        barrier.wait();
                        assert_eq!(y[9000], 1);
                    });
                }
            });
            let fetched = rt.stats().to_host() - before;
            if m != Mechanism::None {
                assert_eq!(fetched, 64 << 10, "one granule");
            }
        }
    });
}

/// Keeps this thread on one of the processors that it may use, the `n`th in turn; with one processor, there.
fn move_to(n: usize, allowed: &libc::cpu_set_t) {
    // SAFETY: plain old data, and numbers of the set.
    unsafe {
        let numbers: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, allowed)).collect();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(numbers[n % numbers.len()], &mut one);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one), 0);
    }
}

/// Touches a page of every granule from `from` on, which only the device has; how long the slowest touch took.
fn touch_all(y: &[u64], from: usize, mut before: impl FnMut(usize)) -> Duration {
    let mut slowest = Duration::ZERO;
    for (k, granule) in y.chunks((64 << 10) / 8).enumerate().skip(from) {
        before(k);
        let start = Instant::now();
        assert_eq!(granule[5], 1);
        slowest = slowest.max(start.elapsed());
    }
    slowest
}

/// Who serves follows who faults: with `transparent` one reader serves a thread that faults alone, on that thread's processor.
#[test]
fn a_thread_that_moves_and_others_that_begin_and_stop_are_served_at_once() {
    under_each("a_thread_that_moves_and_others_that_begin_and_stop_are_served_at_once", 3 * LIMIT, |_| {
        const LEN: usize = 32 << 20;
        let rt = runtime("declared", [CpuConfig { memory: 512 << 20, ..CpuConfig::default() }]);
        let mut y = rt.shared::<u64>(LEN).unwrap();
        // SAFETY: plain old data, which the call fills.
        let allowed = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set), 0);
            set
        };
        let again = |y: &mut Shared<u64>| {
            y.fill(0);
            rt.launch(&tick(1024), (y,)).unwrap().wait().unwrap();
        };
        // Moves after each 100 of 4096 touches.
        again(&mut y);
        let alone = std::thread::scope(|s| {
            let y = &y;
            s.spawn(move || {
                touch_all(y, 0, |k| {
                    if k % 100 == 99 {
                        move_to(k / 100, &allowed)
                    }
                })
            })
            .join()
            .unwrap()
        });
        again(&mut y);
        // Another begins in the middle, and stops again; then they take turns.
        let turn = &AtomicU32::new(0);
        let (first, second) = std::thread::scope(|s| {
            let (upper, lower) = y.split_at(LEN / 2);
            let wait_for = move |mine: u32| {
                move |k: usize| {
                    if k > 1500 {
                        while turn.load(Ordering::Acquire) % 2 != mine && k < 2000 {
                            std::thread::yield_now();
                        }
                        turn.fetch_add(u32::from(k < 2000), Ordering::AcqRel);
                    }
                }
            };
            let first = s.spawn(move || touch_all(upper, 0, wait_for(0)));
            let second = s.spawn(move || touch_all(lower, 700, wait_for(1)));
            (first.join().unwrap(), second.join().unwrap())
        });
        let slowest = alone.max(first).max(second);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}: alone {alone:?}, two {first:?}, {second:?}");
    });
}

fn until_told_quietly(_: Group, _: u32, _: &mut [u64]) {
    let start = Instant::now();
    while GO_ON.load(Ordering::Acquire) == 0 && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How long `threads` threads take for one touch of each of `granules` granules that only the device has, while a kernel uses other
/// bytes of the allocation, so that all of them are fetched by another thread; all begin at once.
fn all_at_once(rt: &Runtime, granules: usize, threads: usize) -> Duration {
    const EACH: usize = (64 << 10) / 8;
    let mut y = rt.shared::<u64>((granules + 32) * EACH).unwrap();
    rt.launch(&tick(EACH), (&mut y,)).unwrap().wait().unwrap();
    let (mut used, rest) = y.split_at_mut(32 * EACH).unwrap();
    GO_ON.store(0, Ordering::Release);
    let kernel = Kernel::new("until_told_quietly", 0_u32, (each_mut(32 * EACH),), until_told_quietly);
    let pending = rt.launch(&kernel, (&mut used,)).unwrap();
    let (rest, per): (&[u64], _) = (&rest, granules / threads);
    let barrier = Barrier::new(threads + 1);
    let touch = |i: usize| {
        barrier.wait();
        assert!((0..per).all(|k| rest[(k * threads + i) * EACH + 5] == 1));
    };
    let touch = &touch;
    let took = std::thread::scope(|s| {
        let start = |i| std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(s, move || touch(i)).unwrap();
        let all: Vec<_> = (0..threads).map(start).collect();
        barrier.wait();
        let start = Instant::now();
        all.into_iter().for_each(|t| t.join().unwrap());
        start.elapsed()
    });
    GO_ON.store(1, Ordering::Release);
    pending.wait().unwrap();
    took
}

/// Fails if a thread that has to wait looks again and again, or wakes those that wait for something else: then a thousand of them leave
/// nothing for the one that serves them.
#[test]
fn fifteen_hundred_threads_fault_at_once() {
    under_each("fifteen_hundred_threads_fault_at_once", Duration::from_secs(120), |m| {
        if m == Mechanism::None {
            return; // nothing faults
        }
        let rt = runtime("declared", [CpuConfig { memory: 512 << 20, workers: 2, ..CpuConfig::default() }]);
        let _ = all_at_once(&rt, 600, 600);
        let mut ratios: Vec<f64> = (0..3)
            .map(|_| all_at_once(&rt, 3000, 600))
            .map(|few| all_at_once(&rt, 3000, 1500).as_secs_f64() / few.as_secs_f64())
            .collect();
        ratios.sort_by(f64::total_cmp);
        println!("1500 threads beside 600, {m}: {ratios:.2?}");
        assert!(ratios[1] <= 3.0, "{ratios:?}");
        let took = all_at_once(&rt, 5000, 5000);
        println!("5000 threads, {m}: {took:?}");
    });
}

/// Fails if a device's worker that faults while many others do is turned away: it would fault again and again.
#[test]
fn a_thousand_workers_fault_at_once() {
    under_each("a_thousand_workers_fault_at_once", Duration::from_secs(120), |_| {
        let rt = runtime("demand", [CpuConfig { memory: 512 << 20, workers: 1024, ..CpuConfig::default() }]);
        let mut y = rt.shared::<u64>(1024 << 13).unwrap();
        rt.launch(&tick(1 << 13), (&mut y,)).unwrap().wait().unwrap();
        assert!(rt.stats().devices[0].device_faults > 0);
        assert!(y.iter().step_by(1 << 12).all(|v| *v == 1));
    });
}

/// A signal of the program's that a thread of the engine would take, with the thread's name.
fn may_run_on_the_engine() -> Option<(libc::c_int, String)> {
    let engine = ["sterna-fault", "sterna-host", "sterna-device-f", "sterna-schedule"];
    let mut seen = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue };
        if !engine.iter().any(|e| name.starts_with(e)) {
            continue;
        }
        seen += 1;
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let mask = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap();
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        let signals = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGPROF, libc::SIGINT, libc::SIGTERM];
        if let Some(s) = signals.into_iter().find(|s| mask >> (s - 1) & 1 == 0) {
            return Some((s, name));
        }
    }
    assert!(seen > 0);
    None
}

/// Fails if the program's signal handlers may run on threads of the engine: one that touches shared memory would then wait
/// for the very thread that it interrupted.
#[test]
fn the_programs_signals_stay_off_the_engines_threads() {
    under_each("the_programs_signals_stay_off_the_engines_threads", LIMIT, |_| {
        let rt = plain();
        drop(on_device(&rt)); // every thread is there
        let start = Instant::now();
        // A thread that has not run yet still has the mask that it was born with.
        while let Some((signal, name)) = may_run_on_the_engine() {
            assert!(start.elapsed() < Duration::from_secs(5), "signal {signal} may run on {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}
