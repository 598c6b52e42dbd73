//! Page-table entries, and everything at once.

use super::{Checked, both, form, room, stepping};
use crate::conformance::check::{Bench, PATIENCE, Segment, Verdict, ensure, said};
use crate::kernel::{Group, Kernel, each, each_out, whole};
use crate::{Access, CopyEnd, CopyRun, Edit, Groups, HostAt, Outcome, Target};

/// Entries can be moved to other frames, made absent, and made again; the next launch sees the new ones and frames keep their bytes.
pub fn entries_can_be_changed(b: &Bench<'_>) -> Checked {
    if b.device.caps().placed {
        return PLACED;
    }
    room!(b, 6);
    let (seg, other) = (b.segment(3)?, b.segment(3)?);
    let n = 64;
    let add_ten = stepping(10, 8);
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

const PLACED: Checked = Ok(Verdict::Skipped("frames belong to their addresses"));

/// Where frames belong to addresses, a place gives the same frames each time, in the order of the addresses, and an entry that
/// names others is refused.
pub fn frames_of_a_place_are_its_own(b: &Bench<'_>) -> Checked {
    if !b.device.caps().placed {
        return Ok(Verdict::Skipped("any frames can be entered anywhere"));
    }
    room!(b, 8);
    let (grain, at) = (b.grain(), b.device.reserve(4 * b.grain()).map_err(said("reserve"))?);
    let take = |place, grains| {
        let mut out = Vec::new();
        b.device.alloc(place, grains, &mut out).map_err(said("alloc"))?;
        Ok::<_, String>(out)
    };
    let all = take(at.at, 4)?;
    ensure!(all.len() == 1 && all[0].grains == 4, "four grains of one place: {all:?}");
    let last = take(at.at.plus(3 * grain), 1)?;
    ensure!(last[0].first == all[0].first + 3, "{last:?} behind {all:?}");
    let edit = |first| Edit { at: at.part(0, grain), to: Target::Frames { first }, access: Access::ReadWrite };
    b.edit(&[edit(all[0].first)], &[])?;
    // SAFETY: the device must refuse it.
    let answer = unsafe { b.device.edit(&[edit(all[0].first + 1)], &[]) };
    ensure!(answer.is_err(), "an entry that names another place's frames was accepted");
    ensure!(b.device.alloc(at.at, 1 << 20, &mut Vec::new()).is_err(), "frames beyond the end of a reservation");
    // SAFETY: allocated here, never used by a launch, given back once.
    unsafe {
        b.device.free(&all);
        b.device.unreserve(at);
    }
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
    let kernel = both(kernel, form!("double"));
    let grid = [n.div_ceil(9) as u32, 1, 1];
    b.run(&kernel, grid, &[source.elems::<u32>(n), source.elems::<u32>(n), out.elems::<u32>(n)])?;
    ensure!(out.read::<u32>(n)? == (1..=n as u32).map(|v| 2 * v + 1).collect::<Vec<_>>(), "read through read-only entries");
    source.map(Access::ReadWrite)?;
    b.run(&stepping(1, 9), grid, &[source.elems::<u32>(n)])?;
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
        let kernel = stepping(1, 1024);
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
                let place = CopyEnd::Frames { first: f.first, offset: 0 };
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
            let kernel = stepping(5, 512);
            let ticket = b.submit(&kernel, [n.div_ceil(512) as u32, 1, 1], Groups::All, &[at.part(0, bytes)], &[moved])?;
            // SAFETY: as above.
            let home = unsafe { b.device.copy(&back, &[ticket.point()]) }.map_err(said("copy"))?;
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
