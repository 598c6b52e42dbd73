//! Copies, points and waiting.

use std::time::{Duration, Instant};

use super::{Checked, both, first_difference, form, pattern, room};
use crate::conformance::check::{Bench, Segment, Verdict, ensure, said};
use crate::kernel::{EachMut, Group, Kernel, each_mut};
use crate::{CopyEnd, CopyRun, Groups, Outcome, Point};

fn slow(_: Group, millis: u32, y: &mut [u32]) {
    std::thread::sleep(Duration::from_millis(u64::from(millis)));
    y.fill(millis);
}

fn slowly(millis: u32, chunk: usize) -> Kernel<(EachMut<u32>,)> {
    both(Kernel::new("slow", millis, (each_mut::<u32>(chunk),), slow), form!("slow"))
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

/// A copy long enough to be shared out arrives to its last byte, wherever it begins and ends.
pub fn large_copies_of_odd_length(b: &Bench<'_>) -> Checked {
    let half = b.host_bytes() / 2;
    let (grains, most) = (half.div_ceil(b.grain()), half - 8);
    room!(b, grains);
    let seg = b.segment(grains)?;
    for (i, (offset, bytes)) in
        [(5, most - 5), (0, most - 1), (4096, (3 << 20) + 4097), (1, (2 << 20) + 3)].into_iter().enumerate()
    {
        let bytes = bytes.min(most - offset);
        let (source, back) = (1 + i as u64, half + 3);
        let want = pattern(i as u64 + 50, bytes);
        b.put(source, &want);
        b.put(back + bytes, &[0xEE]);
        b.copy(&seg.runs(offset, bytes, source, true))?;
        b.copy(&seg.runs(offset, bytes, back, false))?;
        let got = b.get(back, bytes);
        ensure!(got == want, "{bytes} bytes at {offset}: {}", first_difference(&got, &want));
        ensure!(b.get(back + bytes, 1) == [0xEE], "{bytes} bytes to the host: wrote behind them");
        // Other bytes in the frames for the next round, so that what does not arrive is seen.
        seg.zero()?;
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
            CopyEnd::Frames { first, offset: g * b.grain() - at }
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
    b.copy(&[CopyRun { from: CopyEnd::Zero, to: CopyEnd::Frames { first, offset: 3 }, bytes: part }])?;
    let got = seg.read::<u8>(n)?;
    let wrong = (0..n).find(|i| got[*i] != if (3..3 + part as usize).contains(i) { 0 } else { 0xAB });
    ensure!(wrong.is_none(), "byte {} of the frames", wrong.unwrap_or(0));
    b.put(0, &[0xCD; 100]);
    b.copy(&[CopyRun { from: CopyEnd::Zero, to: b.host(10), bytes: 80 }])?;
    let want: Vec<u8> = (0..100).map(|i| if (10..90).contains(&i) { 0 } else { 0xCD }).collect();
    ensure!(b.get(0, 100) == want, "zeros to the host");
    let outside = [
        CopyRun { from: b.host(0), to: CopyEnd::Zero, bytes: 1 },
        CopyRun { from: b.host(b.host_bytes()), to: CopyEnd::Frames { first, offset: 0 }, bytes: 1 },
        CopyRun { from: b.host(u64::MAX), to: CopyEnd::Frames { first, offset: 0 }, bytes: 2 },
        CopyRun { from: CopyEnd::Zero, to: CopyEnd::Frames { first: u32::MAX, offset: 0 }, bytes: 1 },
        CopyRun { from: CopyEnd::Zero, to: CopyEnd::Frames { first, offset: u64::MAX - 7 }, bytes: 16 },
    ];
    for run in outside {
        // SAFETY: the device must refuse it without touching anything.
        let answer = unsafe { b.device.copy(&[run], &[]) };
        ensure!(answer.is_err(), "{run:?} was accepted");
    }
    Ok(Verdict::Passed)
}

/// A copy sees what the points in its `after` have made: a slow kernel's results, an earlier copy's bytes.
pub fn copies_wait_for_their_points(b: &Bench<'_>) -> Checked {
    room!(b, 2);
    let seg = b.segment(2)?;
    let n = 256;
    for (round, millis) in [20_u32, 5, 30].into_iter().enumerate() {
        seg.write(&vec![0_u32; n])?;
        let ticket = b.submit(&slowly(millis, n), [1; 3], Groups::All, &[seg.elems::<u32>(n)], &[])?;
        // SAFETY: frames and host bytes of this check, ordered behind the launch.
        let out =
            unsafe { b.device.copy(&seg.runs(0, 4 * n as u64, 64, false), &[ticket.point()]) }.map_err(said("copy"))?;
        // A second hop behind the first, to another place.
        let hop = CopyRun { from: b.host(64), to: b.host(1 << 20), bytes: 4 * n as u64 };
        // SAFETY: ordered behind the copy that writes its source.
        let hop = unsafe { b.device.copy(&[hop], &[out]) }.map_err(said("copy"))?;
        b.reach("second copy", hop)?;
        ensure!(b.device.reached(out) && b.device.reached(ticket.point()), "round {round}: a later point came first");
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
    let kernel = slowly(150, 8);
    let ticket = b.submit(&kernel, [1; 3], Groups::All, &[seg.elems::<u32>(8)], &[])?;
    for timeout in [Duration::ZERO, Duration::from_millis(10)] {
        let start = Instant::now();
        let answer = b.device.wait(ticket.point(), timeout).map_err(said("wait"))?;
        let took = start.elapsed();
        // A machine that was busy elsewhere may have finished the kernel meanwhile.
        ensure!(!answer || took > Duration::from_millis(20), "waited {took:?} for a kernel of 150 ms and it was done");
        ensure!(answer || took >= timeout, "gave up after {took:?} instead of {timeout:?}");
    }
    ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
    ensure!(b.device.wait(ticket.point(), Duration::ZERO) == Ok(true), "a reached point is not reached");
    ensure!(b.device.wait(ticket.point(), Duration::MAX) == Ok(true), "waiting without end for a reached point");
    Ok(Verdict::Passed)
}
