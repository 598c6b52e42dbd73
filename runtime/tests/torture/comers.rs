//! Allocations that come and go beside the others, and what their owner does with them meanwhile.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sterna::hmm::{Attached, Operand, PAGE, Pages, Prot, Segment};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::policy::Place;
use sterna::{Device, Error, ForkPolicy, Mechanism, Runtime, Shared};

use crate::support::{Random, tick};

/// Elements a granule of 64 KiB: what is remapped.
const GRANULE: usize = 8192;

/// How far elements are from what they must be; says where they are not.
fn off(what: &str, x: &[u64], must: impl Fn(usize) -> u64) -> u64 {
    let wrong: Vec<_> = x.iter().enumerate().filter(|(i, v)| **v != must(*i)).collect();
    if let (Some((first, v)), Some((last, _))) = (wrong.first(), wrong.last()) {
        println!("{what}: {} of {} elements, {first} to {last}: {v} instead of {}", wrong.len(), x.len(), must(*first));
    }
    wrong.iter().map(|(i, v)| v.abs_diff(must(*i))).sum()
}

/// Makes one, has a device add to it, does something with it; says how much is lost.
pub(crate) fn one(rt: &Runtime, device: &Device, taker: &Attached, m: Mechanism, random: &mut Random) -> u64 {
    let len = 2 * GRANULE + random.below(20_000);
    let mut x = rt.shared_with(len, |i| i as u64).unwrap();
    let add = |x: &mut Shared<u64>| drop(rt.on(device).launch(&tick(1024), (x,)).unwrap());
    add(&mut x);
    match random.below(12) {
        // A copy keeps what the original was.
        0 => {
            let before = x.cow_clone().unwrap();
            add(&mut x);
            off("a copy", &before, |i| i as u64 + 1) + off("a copied one", &x, |i| i as u64 + 2)
        }
        1 => {
            x.discard(GRANULE..).unwrap();
            add(&mut x);
            off("discarded", &x, |i| if i < GRANULE { i as u64 + 2 } else { 1 })
        }
        // Without faults a launch's borders are a device's grains.
        2 if m != Mechanism::None => {
            let mut rest = x.split_off(GRANULE).unwrap();
            add(&mut x);
            add(&mut rest);
            drop(x);
            off("split off", &rest, |i| (i + GRANULE) as u64 + 2)
        }
        3 => {
            x.truncate(GRANULE).unwrap();
            add(&mut x);
            off("shortened", &x, |i| i as u64 + 2)
        }
        4 if m != Mechanism::None => by_the_driver(rt, &mut x, random),
        5 if random.below(16) == 0 => forked(rt, x),
        6 => flushed(rt, device, &x),
        // Another device has the pages to itself, for atomic operations, until somebody touches them.
        7 if m != Mechanism::None => {
            let _ = x.settle().unwrap(); // no launch is under way
            match taker.make_exclusive(&x.pages()) {
                Ok(()) | Err(Error::Busy { .. } | Error::Pinned) => {}
                Err(e) => panic!("{e}"),
            }
            if random.below(2) == 0 {
                add(&mut x);
                off("taken and added to", &x, |i| i as u64 + 2)
            } else {
                off("taken", &x, |i| i as u64 + 1)
            }
        }
        8 if device.info().id.starts_with("cpu") => dropped_in_a_kernel(rt, device, x),
        9 if m != Mechanism::None => from_a_file(rt, taker, &x, random),
        _ => off("added to", &x, |i| i as u64 + 1),
    }
}

/// Protected, unmapped and mapped again, or moved.
fn by_the_driver(rt: &Runtime, x: &mut Shared<u64>, random: &mut Random) -> u64 {
    let _ = x.settle().unwrap(); // no launch is under way
    let (space, first) = (rt.space(), x.pages().0.start);
    let pages = |r: std::ops::Range<usize>| Pages(first + (r.start * 8) as u64 / PAGE..first + (r.end * 8) as u64 / PAGE);
    let (low, high) = (pages(0..GRANULE), pages(GRANULE..2 * GRANULE));
    // SAFETY: its owner has it exclusively, and uses the pages as they allow.
    unsafe {
        match random.below(3) {
            0 => {
                space.protect(&low, Prot::Read).unwrap();
                let lost = off("protected", x, |i| i as u64 + 1);
                space.protect(&low, Prot::Write).unwrap();
                x[0] += 1;
                lost + off("stored to", &x[..1], |_| 2)
            }
            1 => {
                space.unmap(&low).unwrap();
                space.map(&low).unwrap();
                off("unmapped", x, |i| if i < GRANULE { 0 } else { i as u64 + 1 })
            }
            _ => {
                space.remap(&low, &high, true).unwrap();
                off("remapped", x, |i| match i {
                    _ if i < GRANULE => 0,
                    _ if i < 2 * GRANULE => (i - GRANULE) as u64 + 1,
                    _ => i as u64 + 1,
                })
            }
        }
    }
}

/// As a mapped file, to which a device adds and which is written back.
fn flushed(rt: &Runtime, device: &Device, x: &Shared<u64>) -> u64 {
    let path = std::env::temp_dir().join(format!("sterna-torture-{}-{:p}", std::process::id(), x.as_host_ptr()));
    std::fs::write(&path, sterna::bytemuck::cast_slice(&x.host(..).unwrap())).unwrap();
    // SAFETY: nobody else writes it.
    let mut mapped = unsafe { rt.map_file::<u64>(&path) }.unwrap();
    rt.on(device).launch(&tick(1024), (&mut mapped,)).unwrap();
    mapped.flush().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let there: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_ne_bytes(*b)).collect();
    assert_eq!(there.len(), x.len());
    off("the file", &there, |i| i as u64 + 2) + off("flushed", &mapped, |i| i as u64 + 2)
}

/// A segment over a file with the elements, from a place on that need be none of theirs, and longer than the file: another device
/// adds to it.
fn from_a_file(rt: &Runtime, taker: &Attached, x: &Shared<u64>, random: &mut Random) -> u64 {
    let path = std::env::temp_dir().join(format!("sterna-torture-from-{}-{:p}", std::process::id(), x.as_host_ptr()));
    let mut contents: Vec<u8> = sterna::bytemuck::cast_slice(&x.host(..).unwrap()).to_vec();
    std::fs::write(&path, &contents).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let (offset, len, shared) = (random.below(contents.len() + 5000), 1 + random.below(20_000), random.below(2) == 0);
    let bytes = 8 * len as u64;
    let seg = Segment::of_file(rt.space(), file, offset as u64, bytes, shared).unwrap();
    let behind = contents.get(offset..).unwrap_or_default();
    let mut expect: Vec<u8> = behind.iter().copied().chain(std::iter::repeat(0)).take(8 * len).collect();
    expect.as_chunks_mut::<8>().0.iter_mut().for_each(|b| *b = u64::from_ne_bytes(*b).wrapping_add(1).to_ne_bytes());
    let operand = [Operand { segment: seg.clone(), bytes: 0..bytes }];
    // SAFETY: nobody else uses the segment.
    let _ = unsafe { taker.run(&tick(1024), &operand, Place::Migrate, None) }.unwrap();
    // SAFETY: its own bytes, aligned to a page.
    let there = unsafe { std::slice::from_raw_parts(seg.as_host_ptr().cast::<u64>(), len) };
    let must = |i: usize| u64::from_ne_bytes(expect.as_chunks::<8>().0[i]);
    let lost = off("from a file", there, must);
    seg.flush().unwrap();
    if shared && offset < contents.len() {
        let n = expect.len().min(contents.len() - offset);
        contents[offset..offset + n].copy_from_slice(&expect[..n]);
    }
    let written = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(written.len(), contents.len(), "a file that grew");
    lost + written.iter().zip(&contents).filter(|(a, b)| a != b).count() as u64
}

/// What kernels are to drop, by their numbers.
static HANDS: Mutex<Vec<(u32, Shared<u64>)>> = Mutex::new(Vec::new());
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Adds one to every element; its first group then drops what it finds under its number, and adds one more.
fn drops(key: u32) -> Kernel<(EachMut<u64>,)> {
    fn body(g: Group, key: u32, y: &mut [u64]) {
        y.iter_mut().for_each(|y| *y += 1);
        let end = Instant::now() + Duration::from_secs(20);
        while g.index() == 0 && Instant::now() < end {
            let mut hands = HANDS.lock().unwrap();
            if let Some(n) = hands.iter().position(|(k, _)| *k == key) {
                let found = hands.swap_remove(n);
                drop(hands);
                drop(found);
                y.iter_mut().for_each(|y| *y += 1);
                return;
            }
            drop(hands);
            std::thread::yield_now();
        }
    }
    Kernel::new("drops", key, (each_mut(512),), body)
}

/// A kernel drops the last handle of its own argument, or of another allocation that a launch may still be adding to.
fn dropped_in_a_kernel(rt: &Runtime, device: &Device, mut x: Shared<u64>) -> u64 {
    // Not its address: what comes next may be there before this thread looks whether its own has gone.
    let key = NEXT.fetch_add(1, Ordering::Relaxed);
    if key.is_multiple_of(2) {
        let pending = rt.on(device).launch(&drops(key), (&mut x,)).unwrap();
        HANDS.lock().unwrap().push((key, x));
        pending.wait().unwrap();
        let is_left = HANDS.lock().unwrap().iter().any(|(k, _)| *k == key);
        if is_left {
            println!("a kernel has not dropped its own argument");
        }
        return u64::from(is_left);
    }
    let mut beside = rt.shared::<u64>(2000).unwrap();
    let add = tick(1024);
    drop(rt.on(device).launch(&add, (&mut x,)).unwrap());
    HANDS.lock().unwrap().push((key, x));
    drop(rt.on(device).launch(&drops(key), (&mut beside,)).unwrap());
    off("beside what a kernel dropped", &beside, |i| if i < 512 { 2 } else { 1 })
}

/// A child finds the elements, writes them, drops its handles, and the parent does not see that.
fn forked(rt: &Runtime, x: Shared<u64>) -> u64 {
    x.set_fork_policy(ForkPolicy::Preserve).unwrap();
    // SAFETY: the child loads, stores and leaves by `_exit`: other threads may have held any lock at the fork.
    let status = unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::alarm(20);
            let at = x.as_host_ptr().cast_mut();
            let wrong = (0..x.len()).any(|i| at.add(i).read_volatile() != i as u64 + 1);
            (0..x.len()).for_each(|i| at.add(i).write_volatile(7));
            drop((x, rt.clone()));
            libc::_exit(i32::from(wrong));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    };
    assert_eq!(status, 0, "the child's exit code is {} (signal {})", status >> 8, status & 127);
    off("forked", &x, |i| i as u64 + 1)
}
