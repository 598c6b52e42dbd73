//! What a device says of itself, addresses and frames.

use super::{Checked, pattern, room};
use crate::conformance::check::{Bench, Verdict, ensure, said};
use crate::{Absent, DeviceError, Frames, Role};

/// Capabilities fit together.
pub fn caps_are_sane(b: &Bench<'_>) -> Checked {
    let (caps, memory, info) = (b.device.caps(), b.device.memory(), b.device.info());
    ensure!(caps.grain.is_power_of_two() && caps.grain >= 4096, "a grain of {} bytes", caps.grain);
    for role in [Role::Compute, Role::Copy] {
        ensure!(caps.queues.contains(&role), "no queue of role {role:?} in {:?}", caps.queues);
    }
    ensure!(!caps.queued_edits || caps.queues.contains(&Role::Table), "edits are queued, but on no queue");
    ensure!(caps.map_host || !caps.unified, "memory that is the host's, but entries that cannot name it");
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
            let own = size.next_power_of_two().clamp(b.grain(), 2 << 20);
            let unit = if b.device.caps().placed { b.grain() } else { own };
            ensure!(r.at.0 % unit == 0 && r.bytes >= *size, "{r:x?} for {size} bytes");
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
    if b.device.caps().placed {
        return Ok(Verdict::Skipped("frames belong to their addresses"));
    }
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
