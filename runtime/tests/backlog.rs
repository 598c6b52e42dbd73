//! Chains and backlogs: what a launch costs does not depend on how many are on their way, and a failure costs each of those behind it the
//! same. Times of one run are compared with each other.

mod common;

use std::error::Error as _;
use std::time::{Duration, Instant};

use common::*;
use sterna::cpu::CpuConfig;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Error, Mechanism, Pending, Runtime, Shared};

/// How many times the launches of the first round the second has.
const MORE: usize = 8;

/// Seconds that a launch may cost more for memory that was never touched before, on a busy machine.
const NEW: f64 = 8e-6;

/// As `add`, of a few elements a group, and holds the device up until the hold is opened.
fn blocks(hold: &'static Hold) -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, at: usize, y: &mut [u32]) {
        // SAFETY: the address of a static.
        unsafe { &*std::ptr::with_exposed_provenance::<Hold>(at) }.wait();
        y.iter_mut().for_each(|y| *y += 1);
    }
    Kernel::new("blocks", std::ptr::from_ref(hold).expose_provenance(), (each_mut(1 << 20),), body)
}

/// What a program with a backlog has.
struct Parts {
    rt: Runtime,
    x: Shared<u32>,
    y: Shared<u32>,
    tiles: Shared<u32>,
    /// Elements of a tile: few, or where no fault tells apart what a grain holds, a grain's.
    tile: usize,
}

const GRAIN: usize = 4096;
const TILES: usize = 1 << 12;

/// Asks for `n` launches with `ask` while the first device is held up, and has them done: seconds a launch for both.
fn backlog(parts: &mut Parts, n: usize, ask: fn(&mut Parts, usize)) -> (f64, f64) {
    let hold: &'static Hold = Box::leak(Box::new(Hold::new()));
    let mut first = parts.rt.shared::<u32>(100).unwrap();
    let blocker = parts.rt.launch(&blocks(hold), (&mut first,)).unwrap();
    hold.entered();
    let start = Instant::now();
    (0..n).for_each(|i| ask(parts, i));
    let asked = start.elapsed();
    assert!(!blocker.is_done());
    hold.release();
    let start = Instant::now();
    parts.rt.sync().unwrap();
    let each = |t: Duration| t.as_secs_f64() / n as f64;
    (each(asked), each(start.elapsed()))
}

/// The same for many times as many: neither asking nor retiring may cost a launch much more.
#[track_caller]
fn is_linear(how: &str, n: usize, ask: fn(&mut Parts, usize)) {
    let _alone = alone();
    let config = || CpuConfig { grain: GRAIN as u64, ..small(32 * MIB) };
    let rt = runtime_of(&[config(), config()]);
    let tile = if rt.stats().mechanism == Mechanism::None { GRAIN / 4 } else { 32 };
    let (x, y) = (rt.shared_with(2 * tile, |i| i as u32).unwrap(), rt.shared::<u32>(2 * tile).unwrap());
    let tiles = rt.shared::<u32>(tile * TILES).unwrap();
    let mut parts = Parts { rt, x, y, tiles, tile };
    backlog(&mut parts, n / 4, ask); // everything is resident, and what grows has grown
    // What disturbs one pair of rounds does not disturb three.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (few, many) = (backlog(&mut parts, n, ask), backlog(&mut parts, n * MORE, ask));
        seen.push(format!(
            "asking {:.2} and {:.2} µs, retiring {:.2} and {:.2} µs",
            few.0 * 1e6,
            many.0 * 1e6,
            few.1 * 1e6,
            many.1 * 1e6
        ));
        // Something that looks at each of those on their way looks at thousands.
        if many.0 < few.0 * 2.0 + NEW && many.1 < few.1 * 2.0 + NEW {
            println!("{how}: {n} and {} launches: {}", n * MORE, seen.join("; "));
            return;
        }
    }
    panic!("{how}: {n} and {} launches: {}", n * MORE, seen.join("; "));
}

#[test]
fn launches_on_the_same_bytes_cost_the_same_however_many_wait() {
    let _limit = limit();
    is_linear("same bytes", 3000, |p, _| drop(p.rt.launch(&copy_add(1), (&p.x, &mut p.y)).unwrap()));
}

#[test]
fn launches_on_many_small_ranges_cost_the_same_however_many_wait() {
    let _limit = limit();
    is_linear("small ranges", 3000, |p, i| {
        let at = i * 2654435761 % TILES * p.tile;
        drop(p.rt.launch(&add(1), (&mut p.tiles.range_mut(at..at + p.tile).unwrap(),)).unwrap());
    });
}

/// All read what the first wrote, and each writes a part of its own; now and then one reads all parts.
#[test]
fn launches_that_read_what_one_wrote_cost_the_same_however_many_wait() {
    let _limit = limit();
    is_linear("one writer, many readers", 3000, |p, i| {
        if i == 0 {
            p.rt.launch(&add(1), (&mut p.x,)).unwrap();
        }
        let at = i % TILES * p.tile;
        let read = p.x.range(..p.tile).unwrap();
        drop(p.rt.launch(&copy_add(1), (&read, &mut p.tiles.range_mut(at..at + p.tile).unwrap())).unwrap());
    });
}

/// They cannot be submitted before a launch of the other device has ended.
#[test]
fn launches_behind_another_device_cost_the_same_however_many_wait() {
    let _limit = limit();
    is_linear("behind another device", 1500, |p, i| {
        if i == 0 {
            p.rt.launch(&add(1), (&mut p.y,)).unwrap(); // on the device that is held up
        }
        drop(p.rt.on(&p.rt.devices()[1]).launch(&add(1), (&mut p.y,)).unwrap());
    });
}

/// Asks for `n` launches, each reading what the one before wrote, of which the first fails; gives the last, and the time for all.
fn failing_chain(rt: &Runtime, n: usize) -> (Pending, Duration) {
    let mut x = rt.shared::<u32>(64).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    let start = Instant::now();
    rt.launch(&panics(), (&mut x,)).unwrap();
    let mut last = None;
    for _ in 0..n {
        last = Some(rt.launch(&add(1), (&mut x,)).unwrap());
    }
    let last = last.unwrap();
    last.wait().unwrap_err();
    let took = start.elapsed();
    assert!(x.try_read().is_err());
    (last, took)
}

#[test]
fn the_end_of_a_long_chain_is_told_what_went_wrong_first() {
    let _limit = limit();
    let _alone = alone();
    let rt = runtime(small(8 * MIB));
    let (last, _) = failing_chain(&rt, 3000);
    let e = last.wait().unwrap_err();
    let Error::Upstream { kernel: "add", source } = &e else { panic!("{e:?}") };
    assert!(matches!(**source, Error::Kernel { kernel: "panics", .. }), "{source:?}");
    assert!(e.to_string().contains("as planned") && e.to_string().len() < 300, "{e}");
    let depth = std::iter::successors(e.source(), |&e| e.source()).count();
    assert!(depth <= 3, "{depth} causes");
    rt.sync().unwrap_err();
}

#[test]
fn a_failure_costs_each_launch_behind_it_the_same() {
    let _limit = limit();
    let _alone = alone();
    let rt = runtime(small(8 * MIB));
    failing_chain(&rt, 1000);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (n, before) = (3000, resident());
        let few = failing_chain(&rt, n).1.as_secs_f64() / n as f64;
        let many = failing_chain(&rt, n * MORE).1.as_secs_f64() / (n * MORE) as f64;
        let grown = resident().saturating_sub(before) / (n * MORE) as u64;
        seen.push(format!("{:.2} and {:.2} µs, {grown} bytes", few * 1e6, many * 1e6));
        if many < few * 3.0 && grown < 3000 {
            return;
        }
    }
    panic!("each of many costs more than each of few: {}", seen.join("; "));
}

/// How often this thread has gone to sleep.
fn sleeps() -> i64 {
    // SAFETY: plain old data, which the call fills.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage.ru_nvcsw
    }
}

/// Whoever waits for a backlog has nothing to do with each launch of it that is carried out.
#[test]
fn who_waits_for_a_backlog_sleeps_until_it_is_gone() {
    let _limit = limit();
    let _alone = alone();
    const N: usize = 30_000;
    let rt = runtime_of(&[small(32 * MIB)]);
    let (mut first, mut y) = (rt.shared::<u32>(100).unwrap(), rt.shared::<u32>(64).unwrap());
    rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
    let hold: &'static Hold = Box::leak(Box::new(Hold::new()));
    rt.launch(&blocks(hold), (&mut first,)).unwrap();
    hold.entered();
    (0..N).for_each(|_| drop(rt.launch(&add(1), (&mut y,)).unwrap()));
    hold.release();
    let before = sleeps();
    rt.sync().unwrap();
    let slept = sleeps() - before;
    println!("slept {slept} times for {N} launches");
    assert!(slept < N as i64 / 100, "slept {slept} times for {N} launches");
    assert_eq!(y[5], N as u32 + 1);
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") * 4096
}

/// What is kept of launches that nobody waited for, once they have ended. On a Vulkan device each had a command buffer of its own.
#[test]
fn a_flood_of_launches_leaves_nothing_behind() {
    let _limit = limit();
    let _alone = alone();
    let name = "a_flood_of_launches_leaves_nothing_behind";
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    let cpu = || Ok(over(&device(small(64 * MIB))));
    let on_vulkan = || common::vulkan::vulkan("mmu", 64 << 20, None).map(|d| over(&std::sync::Arc::new(d)));
    for (how, rt) in [("cpu", cpu()), ("vulkan", on_vulkan())] {
        let Ok(rt): Result<Runtime, String> = rt else { continue };
        let (mut pos, mut vel) = (rt.shared::<[f32; 4]>(8192).unwrap(), rt.shared::<[f32; 4]>(8192).unwrap());
        let mut out = rt.shared::<[f32; 4]>(8192).unwrap();
        pos.fill_with(|i| [i as f32, 1.0, 2.0, 3.0]).unwrap();
        let mut y = rt.shared::<u32>(64).unwrap();
        let mut flood = |n: usize| {
            // It takes longer than asking for the others.
            rt.launch(&sterna::kernels::nbody_step(0.01, 0.1), (&pos, &mut vel, &mut out)).unwrap();
            for _ in 0..n {
                rt.launch(&add(1), (&mut y,)).unwrap();
            }
            rt.sync().unwrap();
        };
        const N: u64 = 6000;
        // What a flood takes while it lasts may stay for the next one.
        flood(N as usize);
        let before = resident();
        flood(N as usize);
        // SAFETY: gives memory back that nobody uses.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0)
        };
        let each = resident().saturating_sub(before) / N;
        println!("{how}: {each} bytes kept for each of {N} launches");
        assert!(each < 200, "{how}: {each} bytes are kept for each of {N} launches that have ended");
        assert_eq!(y[5], 2 * N as u32, "{how}");
    }
}
