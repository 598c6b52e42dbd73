//! The checks, one function a property.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::check::{Bench, Check, PATIENCE, Segment, Verdict, ensure, said};
use crate::kernel::{Group, Kernel, each, each_mut, each_out, scatter, whole};
use crate::{
    Absent, Access, CopyRun, DeviceError, Edit, Frames, Groups, HostAt, KernelError, Outcome, Place, Point, Role, Target,
    in_kernel,
};

type Checked = Result<Verdict, String>;

macro_rules! list {
    ($($name:ident),* $(,)?) => {
        /// Every check with its name, in the order in which they run.
        pub const LIST: &[(&str, Check)] = &[$((stringify!($name), $name)),*];
    };
}
list! {
    caps_are_sane, addresses_are_aligned_and_come_back, too_big_a_reservation_is_told_apart, allocation_is_all_or_nothing,
    frames_come_back, copies_keep_every_byte, many_runs_in_one_copy, zero_is_a_source, copies_wait_for_their_points,
    points_are_reached_in_order, waiting_can_time_out, every_group_runs_once, parts_of_a_grid, plain_values_arrive,
    launches_run_in_order, launches_wait_for_copies, entries_can_be_changed, read_only_entries_can_be_read,
    host_storage_can_be_aliased, a_panic_is_a_failed_launch, kernels_know_where_they_are, a_kernel_without_a_form_is_refused,
    threads_may_call_at_once,
}

const TOO_SMALL: Checked = Ok(Verdict::Skipped("too little device memory"));

/// Passes, or says that the device is too small for this check.
macro_rules! room {
    ($bench:expr, $grains:expr) => {
        if !$bench.room($grains) {
            return TOO_SMALL;
        }
    };
}

/// Bytes that differ from their neighbours and from those at other offsets.
fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn first_difference(got: &[u8], want: &[u8]) -> String {
    let at = got.iter().zip(want).position(|(a, b)| a != b);
    at.map_or_else(
        || "lengths differ".into(),
        |i| format!("byte {i} of {} is {} instead of {}", want.len(), got[i], want[i]),
    )
}

/// Capabilities fit together.
pub fn caps_are_sane(b: &Bench<'_>) -> Checked {
    let (caps, memory, info) = (b.device.caps(), b.device.memory(), b.device.info());
    ensure!(caps.grain.is_power_of_two() && caps.grain >= 4096, "a grain of {} bytes", caps.grain);
    for role in [Role::Compute, Role::Copy] {
        ensure!(caps.queues.contains(&role), "no queue of role {role:?} in {:?}", caps.queues);
    }
    ensure!(!caps.queued_edits || caps.queues.contains(&Role::Table), "edits are queued, but on no queue");
    ensure!(caps.max_reservation >= caps.grain, "reservations of up to {} bytes", caps.max_reservation);
    ensure!(memory.in_use <= memory.budget && memory.budget >= caps.grain, "{memory:?}");
    ensure!(
        (caps.absent == Absent::Faults) == b.device.window().is_some(),
        "a window goes with faults and only with faults"
    );
    if let Some(window) = b.device.window() {
        ensure!(!window.is_empty() && caps.min_frames > 0, "window {window:x?}, min_frames {}", caps.min_frames);
    }
    ensure!(info.id.contains(':') && !info.name.is_empty(), "{info:?}");
    Ok(Verdict::Passed)
}

/// Reservations are aligned, disjoint, inside the window, and can be made again after they were given back.
pub fn addresses_are_aligned_and_come_back(b: &Bench<'_>) -> Checked {
    let sizes = [1, b.grain(), 3 << 20, 2 << 20, 64 << 20].map(|n: u64| n.min(b.device.caps().max_reservation));
    for round in 0..3 {
        let mut ranges = Vec::new();
        for size in sizes {
            match b.device.reserve(size) {
                Ok(r) => ranges.push((r, size)),
                // Devices whose addresses are memory may run out.
                Err(DeviceError::OutOfMemory { .. }) => {}
                Err(e) => return Err(format!("round {round}: {e}")),
            }
        }
        ensure!(!ranges.is_empty(), "round {round}: nothing could be reserved");
        ranges.sort_by_key(|(r, _)| r.at);
        for (r, size) in &ranges {
            ensure!(r.at.0 % (2 << 20) == 0 && r.bytes >= *size, "{r:x?} for {size} bytes");
            let inside = b.device.window().is_none_or(|w| w.start as u64 <= r.at.0 && r.end().0 <= w.end as u64);
            ensure!(inside, "{r:x?} is outside the window");
        }
        for pair in ranges.windows(2) {
            ensure!(pair[0].0.end() <= pair[1].0.at, "{:x?} and {:x?} overlap", pair[0].0, pair[1].0);
        }
        for (r, _) in ranges {
            // SAFETY: reserved above, never used.
            unsafe { b.device.unreserve(r) };
        }
    }
    // Addresses given back are given out again: far more in all than there are.
    let half = b.device.caps().max_reservation / 2 + 1;
    if b.device.memory().budget < half {
        for i in 0..8 {
            match b.device.reserve(half) {
                // SAFETY: never used.
                Ok(r) => unsafe { b.device.unreserve(r) },
                Err(DeviceError::OutOfMemory { .. }) => break,
                Err(e) => return Err(format!("reservation {i} of half the addresses: {e}")),
            }
        }
    }
    Ok(Verdict::Passed)
}

/// A reservation that never fits is `TooBig`, not `OutOfMemory`.
pub fn too_big_a_reservation_is_told_apart(b: &Bench<'_>) -> Checked {
    let limit = b.device.caps().max_reservation;
    for bytes in [limit.saturating_add(1), u64::MAX] {
        match b.device.reserve(bytes) {
            Err(DeviceError::TooBig { requested, limit: l }) => {
                ensure!((requested, l) == (bytes, limit), "{requested}, {l}")
            }
            other => return Err(format!("{bytes} bytes: {other:?}")),
        }
    }
    Ok(Verdict::Passed)
}

/// An allocation that does not fit changes nothing; frames are disjoint and within the budget.
pub fn allocation_is_all_or_nothing(b: &Bench<'_>) -> Checked {
    room!(b, 4);
    let (grain, memory) = (b.grain(), b.device.memory());
    let free = (memory.budget - memory.in_use) / grain;
    // On devices whose frames belong to a place, the place is as large as what is asked for.
    let place = b.device.reserve((free.min(64)) * grain).map_err(said("reserve"))?;
    let before = vec![Frames { first: 0, grains: 0 }];
    let mut out = before.clone();
    let too_many = u32::try_from(free + 1).unwrap_or(u32::MAX);
    match b.device.alloc(place.at, too_many, &mut out) {
        Err(DeviceError::OutOfMemory { requested, budget, .. }) => {
            ensure!(requested == u64::from(too_many) * grain && budget == memory.budget, "{requested} of {budget}");
        }
        other => return Err(format!("{too_many} grains with {free} free: {other:?}")),
    }
    ensure!(out == before && b.device.memory() == memory, "a refused allocation left something behind");
    // The rest grain by grain and in larger requests, until nothing is left.
    let mut step = 1;
    let mut got: Vec<Frames> = Vec::new();
    let mut refused = false;
    for _ in 0..64 {
        match b.device.alloc(place.at, step, &mut got) {
            Ok(()) => step = step % 7 + 1,
            Err(DeviceError::OutOfMemory { .. }) => {
                refused = true;
                break;
            }
            Err(e) => return Err(format!("alloc: {e}")),
        }
    }
    let taken: u64 = got.iter().map(|f| u64::from(f.grains)).sum();
    let now = b.device.memory();
    ensure!(now.in_use - memory.in_use == taken * grain, "{taken} grains, {} bytes in use", now.in_use - memory.in_use);
    ensure!(now.in_use <= now.budget, "{now:?}");
    ensure!(!refused || u64::from(step) > free - taken, "{step} grains were refused with {} free", free - taken);
    let mut sorted = got.clone();
    sorted.sort_by_key(|f| f.first);
    for pair in sorted.windows(2) {
        ensure!(pair[0].first + pair[0].grains <= pair[1].first, "{:?} and {:?} overlap", pair[0], pair[1]);
    }
    // SAFETY: allocated here, never mapped, given back once; addresses never used.
    unsafe {
        b.device.free(&got);
        b.device.unreserve(place);
    }
    ensure!(b.device.memory() == memory, "not all of it came back");
    Ok(Verdict::Passed)
}

/// Frames that were given back, also in parts, are handed out again, and frames still held keep their bytes.
pub fn frames_come_back(b: &Bench<'_>) -> Checked {
    room!(b, 8);
    let kept = b.segment(2)?;
    let words = pattern(1, 4096);
    kept.write(&words)?;
    let memory = b.device.memory();
    let free = ((memory.budget - memory.in_use) / b.grain()).min(32);
    for round in 0..20_u8 {
        let other = b.segment(free.min(u64::from(round) % 6 + 1))?;
        other.write(&[round; 4096])?;
        ensure!(other.read::<u8>(4096)? == [round; 4096], "round {round}: bytes of new frames are not what was written");
    }
    ensure!(kept.read::<u8>(4096)? == words, "frames in use were handed out again");
    // In parts: the stretches of one allocation grain by grain, last one first.
    let place = b.device.reserve(4 * b.grain()).map_err(said("reserve"))?;
    let mut out = Vec::new();
    b.device.alloc(place.at, 4, &mut out).map_err(said("alloc"))?;
    let grains = out.iter().flat_map(|f| f.first..f.first + f.grains);
    let single: Vec<Frames> = grains.map(|first| Frames { first, grains: 1 }).collect();
    ensure!(single.len() == 4, "4 grains asked, {} got", single.len());
    for f in single.iter().rev() {
        // SAFETY: allocated above, never mapped, each given back once.
        unsafe { b.device.free(std::slice::from_ref(f)) };
    }
    // SAFETY: never used.
    unsafe { b.device.unreserve(place) };
    ensure!(b.device.memory() == memory, "not all of it came back");
    Ok(Verdict::Passed)
}

/// Host to frames to host gives the same bytes, at odd offsets and lengths, and touches nothing beside them.
pub fn copies_keep_every_byte(b: &Bench<'_>) -> Checked {
    room!(b, 4);
    let seg = b.segment(4)?;
    let all = (4 * b.grain()).min(b.host_bytes() / 4);
    let cases = [
        (0, all),
        (1, 1),
        (3, 4093),
        (b.grain() - 5, 11),
        (4095, 4098),
        (all / 3, all / 2 + 1),
        (all - 1, 1),
        (0, 0),
        (7, 64),
    ];
    for (i, (offset, bytes)) in cases.into_iter().enumerate() {
        let bytes = bytes.min(all - offset.min(all));
        let (source, back) = (1 + i as u64, b.host_bytes() / 2 + 3);
        let want = pattern(i as u64 + 7, bytes);
        b.put(source, &want);
        seg.zero()?;
        b.put(back, &vec![0xEE; (bytes + 2) as usize]);
        b.copy(&seg.runs(offset, bytes, source, true))?;
        b.copy(&seg.runs(offset, bytes, back + 1, false))?;
        let got = b.get(back, bytes + 2);
        let inner = &got[1..=bytes as usize];
        ensure!(inner == want, "{bytes} bytes at {offset}: {}", first_difference(inner, &want));
        ensure!(got[0] == 0xEE && got[bytes as usize + 1] == 0xEE, "{bytes} bytes to the host: wrote beside them");
        let around = seg.read::<u8>(all as usize)?;
        let beside = around.iter().enumerate().position(|(j, v)| !(offset..offset + bytes).contains(&(j as u64)) && *v != 0);
        ensure!(beside.is_none(), "{bytes} bytes to offset {offset} changed byte {}", beside.unwrap_or(0));
    }
    Ok(Verdict::Passed)
}

/// Many small runs in one call, of all kinds, all arrive; a large batch too.
pub fn many_runs_in_one_copy(b: &Bench<'_>) -> Checked {
    room!(b, 8);
    let seg = b.segment(8)?;
    let all = (8 * b.grain()).min(b.host_bytes() / 4);
    let want = pattern(99, all);
    b.put(0, &want);
    // Runs of changing length, shuffled: their order is free.
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < all {
        let bytes = (1 + (at * 7919) % 5003).min(all - at);
        runs.extend(seg.runs(at, bytes, at, true));
        at += bytes;
    }
    let n = runs.len();
    (0..n).for_each(|i| runs.swap(i, (i * 31 + 17) % n));
    b.copy(&runs)?;
    let back = b.host_bytes() / 2;
    b.copy(&seg.runs(0, all, back, false))?;
    let got = b.get(back, all);
    ensure!(got == want, "{n} runs: {}", first_difference(&got, &want));
    b.copy(&[])?;
    // Frames to frames, host to host.
    let other = b.segment(8)?;
    let mut runs = Vec::new();
    for g in 0..all / b.grain() {
        let place = |s: &Segment<'_>| {
            let (at, _, first) = s.pieces().into_iter().rfind(|p| p.0 <= g * b.grain()).expect("the first starts at 0");
            Place::Frames { first, offset: g * b.grain() - at }
        };
        runs.push(CopyRun { from: place(&seg), to: place(&other), bytes: b.grain() });
    }
    runs.push(CopyRun { from: b.host(5), to: b.host(back + 1), bytes: 1000 });
    b.copy(&runs)?;
    ensure!(b.get(back + 1, 1000) == want[5..1005], "host to host");
    let len = (all / b.grain() * b.grain()) as usize;
    b.copy(&other.runs(0, len as u64, back, false))?;
    ensure!(b.get(back, len as u64) == want[..len], "frames to frames");
    Ok(Verdict::Passed)
}

/// Zeros can be copied to frames and to the host, and places outside everything are an error.
pub fn zero_is_a_source(b: &Bench<'_>) -> Checked {
    room!(b, 2);
    let seg = b.segment(2)?;
    let n = 10_001;
    let n = n.min(2 * b.grain() as usize);
    seg.write(&vec![0xAB_u8; n])?;
    let (_, _, first) = seg.pieces()[0];
    let part = (n as u64 / 2).min(b.grain() - 3);
    b.copy(&[CopyRun { from: Place::Zero, to: Place::Frames { first, offset: 3 }, bytes: part }])?;
    let got = seg.read::<u8>(n)?;
    let wrong = (0..n).find(|i| got[*i] != if (3..3 + part as usize).contains(i) { 0 } else { 0xAB });
    ensure!(wrong.is_none(), "byte {} of the frames", wrong.unwrap_or(0));
    b.put(0, &[0xCD; 100]);
    b.copy(&[CopyRun { from: Place::Zero, to: b.host(10), bytes: 80 }])?;
    let want: Vec<u8> = (0..100).map(|i| if (10..90).contains(&i) { 0 } else { 0xCD }).collect();
    ensure!(b.get(0, 100) == want, "zeros to the host");
    let outside = [
        CopyRun { from: b.host(0), to: Place::Zero, bytes: 1 },
        CopyRun { from: b.host(b.host_bytes()), to: Place::Frames { first, offset: 0 }, bytes: 1 },
        CopyRun { from: b.host(u64::MAX), to: Place::Frames { first, offset: 0 }, bytes: 2 },
        CopyRun { from: Place::Zero, to: Place::Frames { first: u32::MAX, offset: 0 }, bytes: 1 },
        CopyRun { from: Place::Zero, to: Place::Frames { first, offset: u64::MAX - 7 }, bytes: 16 },
    ];
    for run in outside {
        // SAFETY: the device must refuse it without touching anything.
        let answer = unsafe { b.device.copy(&[run], &[]) };
        ensure!(answer.is_err(), "{run:?} was accepted");
    }
    Ok(Verdict::Passed)
}

fn slow(_: Group, millis: u32, y: &mut [u32]) {
    std::thread::sleep(Duration::from_millis(u64::from(millis)));
    y.fill(millis);
}

/// A copy sees what the points in its `after` have made: a slow kernel's results, an earlier copy's bytes.
pub fn copies_wait_for_their_points(b: &Bench<'_>) -> Checked {
    room!(b, 2);
    let seg = b.segment(2)?;
    let n = 256;
    for (round, millis) in [20_u32, 5, 30].into_iter().enumerate() {
        seg.write(&vec![0_u32; n])?;
        let ticket = b.submit(
            &Kernel::new("slow", millis, (each_mut::<u32>(n),), slow),
            [1; 3],
            Groups::All,
            &[seg.elems::<u32>(n)],
            &[],
        )?;
        // SAFETY: frames and host bytes of this check, ordered behind the launch.
        let out = unsafe { b.device.copy(&seg.runs(0, 4 * n as u64, 64, false), &[ticket.point]) }.map_err(said("copy"))?;
        // A second hop behind the first, to another place.
        let hop = CopyRun { from: b.host(64), to: b.host(1 << 20), bytes: 4 * n as u64 };
        // SAFETY: ordered behind the copy that writes its source.
        let hop = unsafe { b.device.copy(&[hop], &[out]) }.map_err(said("copy"))?;
        b.reach("second copy", hop)?;
        ensure!(b.device.reached(out) && b.device.reached(ticket.point), "round {round}: a later point came first");
        let got: Vec<u32> = b.values(1 << 20, n);
        ensure!(got == vec![millis; n], "round {round}: copied before the kernel had written: {:?}…", &got[..4]);
        ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
    }
    Ok(Verdict::Passed)
}

/// Points of a queue grow, are reached in order, and bytes are there when theirs is reached.
pub fn points_are_reached_in_order(b: &Bench<'_>) -> Checked {
    room!(b, 8);
    ensure!(b.device.reached(Point::REACHED), "the point that is always reached is not");
    let seg = b.segment(8)?;
    let bytes = (8 * b.grain()).min(b.host_bytes() / 16);
    let mut points = Vec::new();
    for i in 0..6_u8 {
        b.put(u64::from(i) * bytes, &vec![i + 1; bytes as usize]);
    }
    // Each overwrites the same frames and brings them home; every pair is ordered behind the one before.
    let mut last = Point::REACHED;
    for i in 0..6_u64 {
        // SAFETY: frames and host bytes of this check, each use ordered behind the one before.
        unsafe {
            let inward = b.device.copy(&seg.runs(0, bytes, i * bytes, true), &[last]).map_err(said("copy"))?;
            let back = seg.runs(0, bytes, (6 + i) * bytes, false);
            last = b.device.copy(&back, &[inward]).map_err(said("copy"))?;
        }
        points.push(last);
    }
    for (i, point) in points.iter().enumerate().rev() {
        b.reach("copy", *point)?;
        for earlier in &points[..i] {
            ensure!(earlier.queue != point.queue || b.device.reached(*earlier), "{point:?} was reached before {earlier:?}");
            ensure!(earlier.queue != point.queue || earlier.value <= point.value, "{earlier:?} came before {point:?}");
        }
        let got = b.get((6 + i as u64) * bytes, bytes);
        ensure!(got.iter().all(|v| usize::from(*v) == i + 1), "copy {i} brought other bytes home");
    }
    Ok(Verdict::Passed)
}

/// A wait that is too short says `false`, in time, and is no error.
pub fn waiting_can_time_out(b: &Bench<'_>) -> Checked {
    room!(b, 1);
    let seg = b.segment(1)?;
    let kernel = Kernel::new("slow", 150_u32, (each_mut::<u32>(8),), slow);
    let ticket = b.submit(&kernel, [1; 3], Groups::All, &[seg.elems::<u32>(8)], &[])?;
    for timeout in [Duration::ZERO, Duration::from_millis(10)] {
        let start = Instant::now();
        let answer = b.device.wait(ticket.point, timeout).map_err(said("wait"))?;
        let took = start.elapsed();
        // A machine that was busy elsewhere may have finished the kernel meanwhile.
        ensure!(!answer || took > Duration::from_millis(20), "waited {took:?} for a kernel of 150 ms and it was done");
        ensure!(answer || took >= timeout, "gave up after {took:?} instead of {timeout:?}");
    }
    ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
    ensure!(b.device.wait(ticket.point, Duration::ZERO) == Ok(true), "a reached point is not reached");
    ensure!(b.device.wait(ticket.point, Duration::MAX) == Ok(true), "waiting without end for a reached point");
    Ok(Verdict::Passed)
}

fn count(group: Group, _: (), counts: &[AtomicU32]) {
    counts[group.index()].fetch_add(1, Ordering::Relaxed);
}

/// Every group of a grid runs exactly once, whatever its shape.
pub fn every_group_runs_once(b: &Bench<'_>) -> Checked {
    room!(b, 2);
    let seg = b.segment(2)?;
    for grid in [[1, 1, 1], [2, 1, 1], [64, 1, 1], [7, 5, 3], [1, 1, 13], [1000, 1, 1], [32, 64, 1]] {
        let n = grid.iter().product::<u32>() as usize;
        seg.write(&vec![0_u32; n])?;
        b.run(&Kernel::new("count", (), (scatter::<u32>(),), count), grid, &[seg.elems::<u32>(n)])?;
        let got = seg.read::<u32>(n)?;
        let wrong = got.iter().position(|c| *c != 1);
        ensure!(wrong.is_none(), "grid {grid:?}: group {} ran {} times", wrong.unwrap_or(0), got[wrong.unwrap_or(0)]);
    }
    Ok(Verdict::Passed)
}

/// A range and a list of groups run those and no others, and see the whole grid.
pub fn parts_of_a_grid(b: &Bench<'_>) -> Checked {
    fn mark(group: Group, _: (), y: &mut [u32]) {
        let [x, y_, z] = group.grid;
        y.fill(1 + x * y_ * z);
    }
    room!(b, 1);
    let seg = b.segment(1)?;
    let (grid, n) = ([10, 6, 2], 120_u32);
    let kernel = Kernel::new("mark", (), (each_mut::<u32>(2),), mark);
    let list: Vec<u32> = (0..n).filter(|g| g % 7 == 3).rev().collect();
    let parts = [
        Groups::Range(0, n),
        Groups::Range(17, 60),
        Groups::Range(119, 120),
        Groups::Range(5, 5),
        Groups::List(&list),
        Groups::List(&[]),
    ];
    for part in parts {
        seg.write(&vec![0_u32; 2 * n as usize])?;
        let ticket = b.submit(&kernel, grid, part, &[seg.elems::<u32>(2 * n as usize)], &[])?;
        ensure!(matches!(b.ended(ticket)?, Outcome::Done), "{part:?} failed");
        let ran = |g: u32| match part {
            Groups::All => true,
            Groups::Range(first, end) => (first..end).contains(&g),
            Groups::List(l) => l.contains(&g),
        };
        let got = seg.read::<u32>(2 * n as usize)?;
        for g in 0..n {
            let want = if ran(g) { 1 + n } else { 0 };
            let pair = &got[2 * g as usize..][..2];
            ensure!(pair == [want; 2], "{part:?}: group {g} left {pair:?} instead of {want}");
        }
    }
    Ok(Verdict::Passed)
}

/// Plain values of several sizes arrive as they are, though the caller's copy is gone.
pub fn plain_values_arrive(b: &Bench<'_>) -> Checked {
    fn small(_: Group, v: [u16; 3], y: &mut [u32]) {
        y.iter_mut().zip(v).for_each(|(y, v)| *y = v.into());
    }
    fn large(_: Group, v: [u64; 16], y: &mut [u64]) {
        y.copy_from_slice(&v);
    }
    room!(b, 1);
    let seg = b.segment(1)?;
    let value = [7_u16, 0xFFFF, 1];
    b.run(&Kernel::new("small", value, (each_out::<u32>(3),), small), [1; 3], &[seg.elems::<u32>(3)])?;
    ensure!(seg.read::<u32>(3)? == [7, 0xFFFF, 1], "three small numbers");
    let value: [u64; 16] = std::array::from_fn(|i| u64::MAX / (i as u64 + 1));
    let ticket = {
        let kernel = Kernel::new("large", value, (each_out::<u64>(16),), large);
        b.submit(&kernel, [1; 3], Groups::All, &[seg.elems::<u64>(16)], &[])?
    };
    ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
    ensure!(seg.read::<u64>(16)? == value, "128 bytes of plain value");
    Ok(Verdict::Passed)
}

fn step(_: Group, add: u32, y: &mut [u32]) {
    y.iter_mut().for_each(|y| *y = y.wrapping_mul(3).wrapping_add(add));
}

/// Launches run in the order of their submission, each seeing all that the one before wrote.
pub fn launches_run_in_order(b: &Bench<'_>) -> Checked {
    room!(b, 1);
    let seg = b.segment(1)?;
    let n = 512;
    let start: Vec<u32> = (0..n as u32).collect();
    seg.write(&start)?;
    let (mut want, mut tickets) = (start, Vec::new());
    for add in 0..200_u32 {
        let kernel = Kernel::new("step", add, (each_mut::<u32>(16),), step);
        tickets.push(b.submit(&kernel, [n as u32 / 16, 1, 1], Groups::All, &[seg.elems::<u32>(n)], &[])?);
        step(Group::nth(0, [1; 3]), add, &mut want);
    }
    for pair in tickets.windows(2) {
        ensure!(pair[0].id != pair[1].id, "a ticket's number came twice");
        ensure!(pair[0].point.queue != pair[1].point.queue || pair[0].point.value <= pair[1].point.value, "points go back");
    }
    for (i, ticket) in tickets.iter().enumerate().rev() {
        ensure!(matches!(b.ended(*ticket)?, Outcome::Done), "launch {i} failed");
    }
    ensure!(seg.read::<u32>(n)? == want, "the launches did not run one after another");
    Ok(Verdict::Passed)
}

/// A launch sees the bytes of a copy that it is ordered behind, large enough to take a while.
pub fn launches_wait_for_copies(b: &Bench<'_>) -> Checked {
    let grains = (4 << 20_u64).min(b.host_bytes() / 2).div_ceil(b.grain()).min(b.host_bytes() / 2 / b.grain());
    room!(b, grains);
    let seg = b.segment(grains)?;
    let bytes = grains * b.grain();
    let n = (bytes / 4) as usize;
    for round in 1..=4_u32 {
        b.put(0, bytemuck::cast_slice(&vec![round; n]));
        // SAFETY: host bytes and frames of this check, waited for below.
        let moved = unsafe { b.device.copy(&seg.runs(0, bytes, 0, true), &[]) }.map_err(said("copy"))?;
        let kernel = Kernel::new("step", 10_u32, (each_mut::<u32>(4096),), step);
        let ticket = b.submit(&kernel, [n.div_ceil(4096) as u32, 1, 1], Groups::All, &[seg.elems::<u32>(n)], &[moved])?;
        // SAFETY: as above, behind the launch.
        let back = unsafe { b.device.copy(&seg.runs(0, bytes, 0, false), &[ticket.point]) }.map_err(said("copy"))?;
        b.reach("copy", back)?;
        ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
        let got: Vec<u32> = b.values(0, n);
        let wrong = got.iter().position(|v| *v != round * 3 + 10);
        ensure!(wrong.is_none(), "round {round}: element {} is {}", wrong.unwrap_or(0), got[wrong.unwrap_or(0)]);
    }
    Ok(Verdict::Passed)
}

/// Entries can be moved to other frames, made absent, and made again; the next launch sees the new ones and frames keep their bytes.
pub fn entries_can_be_changed(b: &Bench<'_>) -> Checked {
    room!(b, 6);
    let (seg, other) = (b.segment(3)?, b.segment(3)?);
    let n = 64;
    let add_ten = Kernel::new("step", 10_u32, (each_mut::<u32>(8),), step);
    let run = |s: &Segment<'_>| b.run(&add_ten, [n as u32 / 8, 1, 1], &[s.elems::<u32>(n)]);
    seg.write(&vec![1_u32; n])?;
    other.write(&vec![2_u32; n])?;
    run(&seg)?;
    ensure!(seg.read::<u32>(n)? == vec![13; n], "first launch");
    // The same addresses over the other frames: one edit that replaces without an absent state between.
    let swap: Vec<Edit> = other
        .pieces()
        .into_iter()
        .map(|(at, bytes, first)| Edit {
            at: seg.at.part(at, bytes),
            to: Target::Frames { first },
            access: Access::ReadWrite,
        })
        .collect();
    other.unmap()?;
    b.edit(&swap, &[])?;
    run(&seg)?;
    ensure!(other.read::<u32>(n)? == vec![16; n], "the launch did not use the new frames");
    ensure!(seg.read::<u32>(n)? == vec![13; n], "the launch used the old frames");
    // Away and back again.
    seg.unmap()?;
    ensure!(other.read::<u32>(n)? == vec![16; n], "making entries absent changed the frames");
    seg.map(Access::ReadWrite)?;
    run(&seg)?;
    ensure!(seg.read::<u32>(n)? == vec![49; n], "after mapping again");
    // Several changes of one entry in one call: the last one holds.
    let last = swap
        .iter()
        .copied()
        .chain([Edit { at: seg.at, to: Target::Absent, access: Access::Read }])
        .chain(swap.iter().copied());
    b.edit(&last.collect::<Vec<_>>(), &[])?;
    run(&seg)?;
    ensure!(other.read::<u32>(n)? == vec![58; n], "edits of one call were not made in order");
    Ok(Verdict::Passed)
}

/// Frames behind read-only entries can be read by kernels, and written again once the entries allow it.
pub fn read_only_entries_can_be_read(b: &Bench<'_>) -> Checked {
    fn double(_: Group, _: (), x: &[u32], all: &[u32], y: &mut [u32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x * 2 + all[0]);
    }
    room!(b, 2);
    let (source, out) = (b.segment(1)?, b.segment(1)?);
    let n = 100_usize;
    source.write(&(1..=n as u32).collect::<Vec<_>>())?;
    source.map(Access::Read)?;
    let kernel = Kernel::new("double", (), (each::<u32>(9), whole::<u32>(), each_out::<u32>(9)), double);
    let grid = [n.div_ceil(9) as u32, 1, 1];
    b.run(&kernel, grid, &[source.elems::<u32>(n), source.elems::<u32>(n), out.elems::<u32>(n)])?;
    ensure!(out.read::<u32>(n)? == (1..=n as u32).map(|v| 2 * v + 1).collect::<Vec<_>>(), "read through read-only entries");
    source.map(Access::ReadWrite)?;
    b.run(&Kernel::new("step", 1_u32, (each_mut::<u32>(9),), step), grid, &[source.elems::<u32>(n)])?;
    ensure!(source.read::<u32>(n)? == (1..=n as u32).map(|v| 3 * v + 1).collect::<Vec<_>>(), "entries writable again");
    Ok(Verdict::Passed)
}

/// Where entries may name host storage, kernels read and write it in place; elsewhere such an edit is refused.
pub fn host_storage_can_be_aliased(b: &Bench<'_>) -> Checked {
    let grain = b.grain();
    let at = b.device.reserve(2 * grain).map_err(said("reserve"))?.part(0, 2 * grain);
    let host = |offset| Target::Host(HostAt { region: b.region, offset });
    // Two grains side by side in the address space that are not in the host region.
    let edits = [
        Edit { at: at.part(0, grain), to: host(3 * grain), access: Access::ReadWrite },
        Edit { at: at.part(grain, grain), to: host(grain), access: Access::ReadWrite },
    ];
    let verdict = if b.device.caps().map_host {
        b.put(grain, &vec![1; grain as usize]);
        b.put(3 * grain, &vec![2; grain as usize]);
        b.edit(&edits, &[])?;
        let n = (2 * grain / 4) as usize;
        let kernel = Kernel::new("step", 1_u32, (each_mut::<u32>(1024),), step);
        b.run(&kernel, [n.div_ceil(1024) as u32, 1, 1], &[at])?;
        for (offset, was) in [(3 * grain, 0x0202_0202_u32), (grain, 0x0101_0101)] {
            let got: Vec<u32> = b.values(offset, n / 2);
            let want = was * 3 + 1;
            ensure!(got.iter().all(|v| *v == want), "host bytes at {offset}: {:x} instead of {want:x}", got[0]);
        }
        b.edit(&[Edit { at, to: Target::Absent, access: Access::Read }], &[])?;
        Verdict::Passed
    } else {
        // SAFETY: the device must refuse it.
        let answer = unsafe { b.device.edit(&edits, &[]) };
        ensure!(answer.is_err(), "an entry that names host storage was accepted");
        Verdict::Skipped("the device holds replicas; it refuses such entries")
    };
    // SAFETY: reserved above, launches have ended.
    unsafe { b.device.unreserve(at) };
    Ok(verdict)
}

/// A kernel that panics ends as failed with its message; launches before and after it are untouched by that.
pub fn a_panic_is_a_failed_launch(b: &Bench<'_>) -> Checked {
    fn panics(group: Group, at: u32, _: &mut [u32]) {
        assert!(group.index() as u32 != at, "meant to panic: group {at}");
    }
    room!(b, 1);
    let seg = b.segment(1)?;
    let n = 64;
    seg.write(&vec![1_u32; n])?;
    let add = Kernel::new("step", 4_u32, (each_mut::<u32>(8),), step);
    let (grid, range) = ([8, 1, 1], [seg.elems::<u32>(n)]);
    let before = b.submit(&add, grid, Groups::All, &range, &[])?;
    let bad = b.submit(&Kernel::new("panics", 5_u32, (each_mut::<u32>(8),), panics), grid, Groups::All, &range, &[])?;
    let after = b.submit(&add, grid, Groups::All, &range, &[])?;
    ensure!(matches!(b.ended(after)?, Outcome::Done), "the launch behind the panic failed");
    match b.ended(bad)? {
        Outcome::Failed(KernelError::Panicked(text)) => {
            ensure!(text.contains("meant to panic: group 5"), "the message is {text:?}");
        }
        other => return Err(format!("a panicking kernel: {other:?}")),
    }
    ensure!(matches!(b.ended(before)?, Outcome::Done), "the launch before the panic failed");
    ensure!(seg.read::<u32>(n)? == vec![25; n], "launches around the panic");
    Ok(Verdict::Passed)
}

/// Inside a kernel `in_kernel` is true, and not outside.
pub fn kernels_know_where_they_are(b: &Bench<'_>) -> Checked {
    fn ask(_: Group, _: (), y: &mut [u32]) {
        y.fill(u32::from(in_kernel()));
    }
    room!(b, 1);
    let seg = b.segment(1)?;
    b.run(&Kernel::new("ask", (), (each_out::<u32>(1),), ask), [50, 1, 1], &[seg.elems::<u32>(50)])?;
    ensure!(seg.read::<u32>(50)? == [1; 50], "a kernel does not know that it is one");
    ensure!(!in_kernel(), "the host believes that it is a kernel");
    Ok(Verdict::Passed)
}

/// A kernel that the device cannot run is refused, and the same code twice gives the same kernel.
pub fn a_kernel_without_a_form_is_refused(b: &Bench<'_>) -> Checked {
    let none = crate::kernel::Code { name: "formless", rust: None };
    match b.device.load(&none) {
        Err(DeviceError::NoForm { kernel, .. }) => ensure!(kernel == "formless", "names {kernel}"),
        other => return Err(format!("a kernel without any form: {other:?}")),
    }
    let kernel = Kernel::new("count", (), (scatter::<u32>(),), count);
    let (first, again) = (b.device.load(kernel.code()), b.device.load(kernel.code()));
    ensure!(first.is_ok() && first == again, "{first:?}, then {again:?}");
    Ok(Verdict::Passed)
}

/// Threads that reserve, allocate, map, copy, launch and wait at once do not disturb each other.
pub fn threads_may_call_at_once(b: &Bench<'_>) -> Checked {
    const THREADS: u64 = 4;
    room!(b, THREADS * 2);
    // Each has its own part of the host region; segments use its end, so these threads move bytes themselves.
    let part = (b.host_bytes() / THREADS).min(2 * b.grain()) & !4095;
    let one = |t: u64| -> Result<(), String> {
        for round in 0..25_u32 {
            let grains = 1 + u64::from(round % 2);
            let bytes = (grains * b.grain()).min(part);
            let n = (bytes / 4) as usize;
            let at = b.device.reserve(grains * b.grain()).map_err(said("reserve"))?;
            let mut frames = Vec::new();
            b.device.alloc(at.at, grains as u32, &mut frames).map_err(said("alloc"))?;
            let (mut edits, mut inward, mut back, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0);
            for f in &frames {
                let len = u64::from(f.grains) * b.grain();
                edits.push(Edit {
                    at: at.part(done, len),
                    to: Target::Frames { first: f.first },
                    access: Access::ReadWrite,
                });
                let place = Place::Frames { first: f.first, offset: 0 };
                let len_here = len.min(bytes.saturating_sub(done));
                inward.push(CopyRun { from: b.host(t * part + done), to: place, bytes: len_here });
                back.push(CopyRun { from: place, to: b.host(t * part + done), bytes: len_here });
                done += len;
            }
            let seed = round * 100 + t as u32;
            b.put(t * part, bytemuck::cast_slice(&vec![seed; n]));
            b.edit(&edits, &[])?;
            // SAFETY: frames, addresses and host bytes are this thread's own; everything is waited for.
            let moved = unsafe { b.device.copy(&inward, &[]) }.map_err(said("copy"))?;
            let kernel = Kernel::new("step", 5_u32, (each_mut::<u32>(512),), step);
            let ticket = b.submit(&kernel, [n.div_ceil(512) as u32, 1, 1], Groups::All, &[at.part(0, bytes)], &[moved])?;
            // SAFETY: as above.
            let home = unsafe { b.device.copy(&back, &[ticket.point]) }.map_err(said("copy"))?;
            ensure!(b.device.wait(home, PATIENCE).map_err(said("wait"))?, "a copy never ended");
            ensure!(matches!(b.ended(ticket)?, Outcome::Done), "a launch failed");
            let got: Vec<u32> = b.values(t * part, n);
            let wrong = got.iter().position(|v| *v != seed * 3 + 5);
            ensure!(
                wrong.is_none(),
                "thread {t}, round {round}: element {} is {}",
                wrong.unwrap_or(0),
                got[wrong.unwrap_or(0)]
            );
            b.edit(&[Edit { at: at.part(0, grains * b.grain()), to: Target::Absent, access: Access::Read }], &[])?;
            // SAFETY: unmapped just now, given back once, launches have ended.
            unsafe {
                b.device.free(&frames);
                b.device.unreserve(at);
            }
        }
        Ok(())
    };
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS).map(|t| s.spawn(move || one(t))).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    Ok(Verdict::Passed)
}
