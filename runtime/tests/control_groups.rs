//! Programs in a control group that limits memory: what is beyond the limit is refused with numbers, and whatever the engine itself
//! takes is asked for first. Only plain stores of the program's own may have it ended. Each test in a child of its own; a child that
//! the kernel ends is the failure.

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::limits::*;
use common::vulkan::{TABLES, required, vulkan};
use common::*;
use sterna::{Error, Runtime, Shared};

/// A control group with this limit on memory, gone again when dropped; `None` where none can be made.
struct Group(PathBuf);

impl Group {
    /// `None`, said aloud, where this user or system has no such groups.
    fn new(name: &str, bytes: u64) -> Option<Self> {
        let made = Self::made(name, bytes);
        if made.is_none() {
            println!("SKIP: no control group for memory can be made here");
            assert!(!required("groups"), "STERNA_REQUIRE names groups, which cannot be made");
        }
        made
    }

    fn made(name: &str, bytes: u64) -> Option<Self> {
        let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let (top, file) = if unified {
            (PathBuf::from("/sys/fs/cgroup"), "memory.max")
        } else {
            (PathBuf::from("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
        };
        let this = Self(top.join(format!("sterna-{name}-{}", std::process::id())));
        std::fs::create_dir(&this.0).ok()?;
        std::fs::write(this.0.join(file), bytes.to_string()).ok()?;
        Some(this)
    }

    fn join(&self, c: &mut Command) {
        c.env("GROUP", self.0.join("cgroup.procs"));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = || std::fs::remove_dir(&self.0).is_ok();
        for _ in 0..100 {
            if gone() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn enter() {
    let group = std::env::var_os("GROUP").unwrap();
    std::fs::write(group, std::process::id().to_string()).unwrap();
}

#[test]
fn what_a_control_group_does_not_allow_is_refused() {
    let name = "what_a_control_group_does_not_allow_is_refused";
    let _limit = limit();
    if !is_child() {
        let Some(group) = Group::new("limit", 200 << 20) else { return };
        under_each_mechanism(name, |c| group.join(c));
        return;
    }
    enter();
    let rt = Runtime::new().unwrap();
    let budget = rt.devices()[0].memory().budget;
    assert!(budget <= 64 << 20, "a quarter of what there can be, and not of the machine's: {budget}");
    let e = rt.shared_with(512 * MIB, |_| 1_u8).expect_err("beyond the group's limit");
    assert!(matches!(e, Error::TooBig { requested, limit, .. } if (requested, limit) == (512 << 20, 200 << 20)), "{e:?}");
    assert!(e.to_string().contains("control group"), "{e}");
    // Sums: whoever asks is refused.
    let mut kept = Vec::new();
    let e = loop {
        match rt.shared_with(32 * MIB, |i| i as u8) {
            Ok(x) => kept.push(x),
            Err(e) => break e,
        }
        assert!(kept.len() < 7, "a limit of 200 MiB");
    };
    assert!(matches!(e, Error::OutOfHostMemory { .. }), "{e:?}");
    assert!(kept.len() >= 3, "only {} of 32 MiB", kept.len());
    // What has storage is not asked for again, and what was there is as it was.
    let mut last = kept.pop().unwrap();
    last.fill_with(|_| 5).unwrap();
    assert!(kept.iter().all(|x| x.iter().enumerate().all(|(i, v)| *v == i as u8)) && last.iter().all(|v| *v == 5));
    drop(last);
    right(&rt);
}

#[test]
fn moves_in_a_full_control_group_end() {
    let name = "moves_in_a_full_control_group_end";
    let _limit = limit();
    if !is_child() {
        let Some(group) = Group::new("moves", 200 << 20) else { return };
        under_each_mechanism(name, |c| group.join(c.env("STERNA_DEVICE_MEMORY", "100MiB")));
        return;
    }
    enter();
    let rt = Runtime::new().unwrap();
    // Host storage for most of what there is; devices need frames beside it.
    let mut many: Vec<_> = (0..4).map(|k| rt.shared_with(8 * MIB, move |i| i as u32 + k).unwrap()).collect();
    let mut done = [0; 4];
    for _ in 0..4 {
        for (x, n) in many.iter_mut().zip(&mut done) {
            match rt.launch(&add(1), (&mut *x,)).and_then(|p| p.wait()) {
                Ok(()) => *n += 1,
                Err(e) => {
                    let told = matches!(
                        e,
                        Error::OutOfDeviceMemory { .. } | Error::OutOfHostMemory { .. } | Error::WorkingSet { .. }
                    );
                    assert!(told, "{e:?}");
                    let k = *n;
                    x.fill_with(|i| i as u32 + k).unwrap(); // what a failed launch would have written is nobody's
                }
            }
        }
    }
    assert!(done.iter().sum::<u32>() > 0, "not one launch ran");
    rt.sync().unwrap_or_default();
}

/// Whether an error says that there is no memory, with numbers.
fn is_told(e: &Error) -> bool {
    matches!(e, Error::OutOfDeviceMemory { .. } | Error::OutOfHostMemory { .. } | Error::WorkingSet { .. })
}

/// The device that the environment names: the CPU's, or Vulkan's with a page table.
fn runtime_with(budget: usize) -> Option<Runtime> {
    match std::env::var("TABLE").unwrap().as_str() {
        "cpu" => Some(runtime(small(budget))),
        table => vulkan(table, budget as u64, None).ok().map(|d| over(&Arc::new(d))),
    }
}

/// The test again in a group, for each device and mechanism; `false` in the child.
fn in_a_group(name: &str, bytes: usize) -> bool {
    if is_child() {
        enter();
        return false;
    }
    let Some(group) = Group::new(name, bytes as u64) else { return true };
    for table in ["cpu"].into_iter().chain(TABLES) {
        under_each_mechanism(name, |c| group.join(c.env("TABLE", table)));
    }
    true
}

const N: usize = 2 << 20;

/// What was made, and what was added to it.
type Kept = Vec<(Shared<u32>, u32)>;

/// Makes an allocation and launches over it; with `copies` it is copied and launched over again, which takes the other's bytes.
fn makes(rt: &Runtime, kept: &mut Kept, copies: bool, a: u32) -> Result<(), Error> {
    let mut x = if copies { rt.shared_with(N, |i| i as u32) } else { rt.shared(N) }?;
    rt.launch(&add(a), (&mut x,))?.wait()?;
    let copy = if copies { Some(x.cow_clone()?) } else { None };
    let written = if copies { rt.launch(&add(0), (&mut x,)).and_then(|p| p.wait()) } else { Ok(()) };
    if written.is_ok() {
        kept.push((x, a));
    }
    kept.extend(copy.map(|copy| (copy, a)));
    written
}

/// Makes more and more until it is refused, and says how many bytes there were then.
fn until_refused(rt: &Runtime, copies: bool) -> usize {
    let mut kept = Kept::new();
    let refused = |e: Error| assert!(is_told(&e), "{e:?}");
    if let Some(e) = (0..60).find_map(|round| makes(rt, &mut kept, copies, round).err()) {
        refused(e);
    }
    // What was made is as it was: read through guards, which can be refused, as plain loads cannot.
    for (x, a) in kept.iter().step_by(3) {
        match x.host(N - 1000..) {
            Ok(some) => {
                let first = if copies { N as u32 - 1000 } else { 0 };
                let right = |(i, v): (usize, &u32)| *v == a + if copies { first + i as u32 } else { 0 };
                assert!(some.iter().enumerate().all(right), "round {a}: {:?}", &some[..4]);
            }
            Err(e) => refused(e),
        }
    }
    4 * N * kept.len()
}

/// As much as there can be, with a budget that leaves something beside it, and with a small one, which evicts.
#[test]
fn launches_beyond_a_control_group_are_refused() {
    if in_a_group("launches_beyond_a_control_group_are_refused", 300 * MIB) {
        return;
    }
    let _limit = limit();
    for budget in [200 * MIB, 40 * MIB] {
        let Some(rt) = runtime_with(budget) else { return };
        let had = until_refused(&rt, false);
        assert!(had >= 100 * MIB, "refused beyond {had} bytes");
    }
}

/// One launch over more than there is memory for, of which a part fits on the device and the rest would come by faults.
#[test]
fn a_launch_longer_than_a_control_group_is_refused() {
    if in_a_group("a_launch_longer_than_a_control_group_is_refused", 200 * MIB) {
        return;
    }
    let _limit = limit();
    let Some(rt) = runtime_with(50 * MIB) else { return };
    let x = rt.shared_with(120 << 18, |i| i as u32).unwrap();
    // As much again as is left, and more than that.
    let mut fits = rt.shared::<u32>(8 << 18).unwrap();
    rt.launch(&add(2), (&mut fits,)).and_then(|p| p.wait()).unwrap();
    let mut y = rt.shared::<u32>(80 << 18).unwrap();
    let e = rt.launch(&add(2), (&mut y,)).and_then(|p| p.wait()).expect_err("more than 200 MiB");
    assert!(is_told(&e), "{e:?}");
    drop(y);
    assert_eq!((x[5], fits.host(7..8).unwrap()[0]), (5, 2));
}

/// One thread's share of random work; what is left of it is right.
fn mixed(rt: &Runtime, mut seed: u64) {
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 33) as usize % n
    };
    let (device, end) = (rt.devices()[0].clone(), Instant::now() + Duration::from_secs(2));
    let mut live = Kept::new();
    while Instant::now() < end {
        let op = if live.is_empty() { 0 } else { random(8) };
        let i = random(live.len().max(1));
        let value = random(1000) as u32;
        let done = match op {
            0 => rt.shared_with(1 + random(10 << 18), |_| value).map(|x| live.push((x, value))),
            1 => live[i].0.cow_clone().map(|copy| live.push((copy, live[i].1))),
            2..=4 => match rt.launch(&add(value), (&mut live[i].0,)).and_then(|p| p.wait()) {
                Ok(()) => {
                    live[i].1 += value;
                    Ok(())
                }
                Err(e) => {
                    live.swap_remove(i);
                    Err(e)
                }
            },
            5 => {
                live[i].0.prefetch_to(&device);
                rt.sync()
            }
            6 => {
                live[i].0.prefetch_to_host();
                rt.sync()
            }
            _ => live[i].0.discard(..).map(|()| live[i].1 = 0),
        };
        done.unwrap_or_else(|e| assert!(is_told(&e), "{e:?}"));
        while live.len() > 6 || !live.is_empty() && random(4) == 0 {
            live.swap_remove(random(live.len()));
        }
    }
    for (x, value) in &live {
        match x.host(..1) {
            Ok(first) => assert_eq!(first[0], *value),
            Err(e) => assert!(is_told(&e), "{e:?}"),
        }
    }
}

#[test]
fn mixed_work_in_a_full_control_group_ends() {
    if in_a_group("mixed_work_in_a_full_control_group_ends", 180 * MIB) {
        return;
    }
    let _limit = limit();
    let Some(rt) = runtime_with(90 * MIB) else { return };
    std::thread::scope(|s| {
        for seed in 1..4 {
            let rt = &rt;
            s.spawn(move || mixed(rt, seed * 7919));
        }
    });
}

/// What is granted is there until it is filled, however long that takes; also where a launch is waited for first.
#[test]
fn what_is_granted_stays_there_until_it_is_filled() {
    if in_a_group("what_is_granted_stays_there_until_it_is_filled", 200 * MIB) {
        return;
    }
    let _limit = limit();
    let Some(rt) = runtime_with(8 * MIB) else { return };
    let fill = &|start: u64| {
        std::thread::sleep(Duration::from_millis(start));
        let mut x = rt.shared::<u32>(100 << 18)?;
        x.range_mut(1024..)?.fill_with(|i| {
            if i % (1 << 20) == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            i as u32
        })?;
        assert_eq!(x.host(1 << 20..(1 << 20) + 1)?[0], (1 << 20) - 1024);
        Ok(())
    };
    let done = std::thread::scope(|s| [0, 150].map(|start| s.spawn(move || fill(start))).map(|t| t.join().unwrap()));
    let refused = done.iter().filter_map(|r: &Result<(), Error>| r.as_ref().err());
    assert!(refused.clone().all(is_told) && refused.count() <= 1, "{done:?}");
}

/// Memory of a driver that was had and not touched yet is there when it is.
#[test]
fn memory_of_a_driver_is_had_before_it_is_used() {
    if in_a_group("memory_of_a_driver_is_had_before_it_is_used", 270 * MIB) {
        return;
    }
    let _limit = limit();
    let Some(rt) = runtime_with(100 * MIB) else { return };
    let mut y = rt.shared::<u32>(80 << 18).unwrap();
    rt.launch(&add(1), (&mut y.range_mut(..16384).unwrap(),)).and_then(|p| p.wait()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let x = rt.shared_with(150 << 18, |i| i as u32);
    let done = rt.launch(&add(1), (&mut y,)).and_then(|p| p.wait());
    let refused = [x.as_ref().err(), done.as_ref().err()];
    assert!(refused.into_iter().flatten().all(is_told), "{refused:?}");
}

#[test]
fn copies_beyond_a_control_group_are_refused() {
    if in_a_group("copies_beyond_a_control_group_are_refused", 300 * MIB) {
        return;
    }
    let _limit = limit();
    for budget in [200 * MIB, 40 * MIB] {
        let Some(rt) = runtime_with(budget) else { return };
        let had = until_refused(&rt, true);
        assert!(had >= 100 * MIB, "refused beyond {had} bytes");
    }
}

#[test]
fn threads_beyond_a_control_group_are_refused() {
    if in_a_group("threads_beyond_a_control_group_are_refused", 300 * MIB) {
        return;
    }
    let _limit = limit();
    let Some(rt) = runtime_with(40 * MIB) else { return };
    std::thread::scope(|s| {
        for copies in [true, false, true] {
            s.spawn({
                let rt = &rt;
                move || until_refused(rt, copies)
            });
        }
    });
}
