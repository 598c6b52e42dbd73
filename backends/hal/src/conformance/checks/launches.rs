//! Launches: which groups run, with what, in which order, and how they end.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Checked, both, form, room, rust_forms, step, stepping};
use crate::conformance::check::{Bench, Verdict, ensure, said};
use crate::kernel::{EachMut, Group, Kernel, Scatter, each_mut, each_out, scatter};
use crate::{DevAddr, DevRange, DeviceError, Groups, KernelError, Outcome, in_kernel};

fn count(group: Group, _: (), counts: &[AtomicU32]) {
    counts[group.index()].fetch_add(1, Ordering::Relaxed);
}

fn counting() -> Kernel<(Scatter<u32>,)> {
    both(Kernel::new("count", (), (scatter::<u32>(),), count), form!("count"))
}

/// Every group of a grid runs exactly once, whatever its shape.
pub fn every_group_runs_once(b: &Bench<'_>) -> Checked {
    room!(b, 2);
    let seg = b.segment(2)?;
    for grid in [[1, 1, 1], [2, 1, 1], [64, 1, 1], [7, 5, 3], [1, 1, 13], [1000, 1, 1], [32, 64, 1]] {
        let n = grid.iter().product::<u32>() as usize;
        seg.write(&vec![0_u32; n])?;
        b.run(&counting(), grid, &[seg.elems::<u32>(n)])?;
        let got = seg.read::<u32>(n)?;
        let wrong = got.iter().position(|c| *c != 1);
        ensure!(wrong.is_none(), "grid {grid:?}: group {} ran {} times", wrong.unwrap_or(0), got[wrong.unwrap_or(0)]);
    }
    Ok(Verdict::Passed)
}

/// Each group leaves 1 + the number of groups of the whole grid in its two elements.
fn marking() -> Kernel<(EachMut<u32>,)> {
    fn mark(group: Group, _: (), y: &mut [u32]) {
        let [x, y_, z] = group.grid;
        y.fill(1 + x * y_ * z);
    }
    both(Kernel::new("mark", (), (each_mut::<u32>(2),), mark), form!("mark"))
}

/// A range and a list of groups run those and no others, and see the whole grid.
pub fn parts_of_a_grid(b: &Bench<'_>) -> Checked {
    room!(b, 1);
    let seg = b.segment(1)?;
    let (grid, n) = ([10, 6, 2], 120_u32);
    let kernel = marking();
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

/// Some groups of a grid run over the addresses of their own elements, when nobody else's are reserved.
pub fn a_part_needs_its_own_addresses(b: &Bench<'_>) -> Checked {
    room!(b, 2);
    let seg = b.segment(2)?;
    let kernel = marking();
    // Groups 1000 to 1999 of 3000 have addresses.
    let (n, here) = (3000_u32, 1000 * 8);
    let all = DevRange { at: DevAddr(seg.at.at.0.wrapping_sub(here)), bytes: 3 * here };
    let some: Vec<u32> = (1000..2000).filter(|g| g % 3 == 0).collect();
    for part in [Groups::Range(1000, 2000), Groups::List(&some)] {
        seg.write(&[0_u32; 2000])?;
        let ticket = b.submit(&kernel, [n, 1, 1], part, &[all], &[])?;
        ensure!(matches!(b.ended(ticket)?, Outcome::Done), "{part:?} failed");
        for (g, pair) in (1000..).zip(seg.read::<u32>(2000)?.chunks(2)) {
            let want = if matches!(part, Groups::Range(..)) || g % 3 == 0 { 1 + n } else { 0 };
            ensure!(pair == [want; 2], "group {g} left {pair:?} instead of {want}");
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
    let kernel = both(Kernel::new("small", value, (each_out::<u32>(3),), small), form!("small"));
    b.run(&kernel, [1; 3], &[seg.elems::<u32>(3)])?;
    ensure!(seg.read::<u32>(3)? == [7, 0xFFFF, 1], "three small numbers");
    let value: [u64; 16] = std::array::from_fn(|i| u64::MAX / (i as u64 + 1));
    let ticket = {
        let kernel = both(Kernel::new("large", value, (each_out::<u64>(16),), large), form!("large"));
        b.submit(&kernel, [1; 3], Groups::All, &[seg.elems::<u64>(16)], &[])?
    };
    ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
    ensure!(seg.read::<u64>(16)? == value, "128 bytes of plain value");
    Ok(Verdict::Passed)
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
        let kernel = stepping(add, 16);
        tickets.push(b.submit(&kernel, [n as u32 / 16, 1, 1], Groups::All, &[seg.elems::<u32>(n)], &[])?);
        step(Group::nth(0, [1; 3]), add, &mut want);
    }
    for pair in tickets.windows(2) {
        ensure!(pair[0].id() != pair[1].id(), "a ticket's number came twice");
        ensure!(
            pair[0].point().queue != pair[1].point().queue || pair[0].point().value <= pair[1].point().value,
            "points go back"
        );
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
        let kernel = stepping(10, 4096);
        let ticket = b.submit(&kernel, [n.div_ceil(4096) as u32, 1, 1], Groups::All, &[seg.elems::<u32>(n)], &[moved])?;
        // SAFETY: as above, behind the launch.
        let back = unsafe { b.device.copy(&seg.runs(0, bytes, 0, false), &[ticket.point()]) }.map_err(said("copy"))?;
        b.reach("copy", back)?;
        ensure!(matches!(b.ended(ticket)?, Outcome::Done), "the kernel failed");
        let got: Vec<u32> = b.values(0, n);
        let wrong = got.iter().position(|v| *v != round * 3 + 10);
        ensure!(wrong.is_none(), "round {round}: element {} is {}", wrong.unwrap_or(0), got[wrong.unwrap_or(0)]);
    }
    Ok(Verdict::Passed)
}

/// A kernel that panics ends as failed with its message; launches before and after it are untouched by that.
pub fn a_panic_is_a_failed_launch(b: &Bench<'_>) -> Checked {
    fn panics(group: Group, at: u32, _: &mut [u32]) {
        assert!(group.index() as u32 != at, "meant to panic: group {at}");
    }
    rust_forms!(b);
    room!(b, 1);
    let seg = b.segment(1)?;
    let n = 64;
    seg.write(&vec![1_u32; n])?;
    let add = stepping(4, 8);
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
    rust_forms!(b);
    room!(b, 1);
    let seg = b.segment(1)?;
    b.run(&Kernel::new("ask", (), (each_out::<u32>(1),), ask), [50, 1, 1], &[seg.elems::<u32>(50)])?;
    ensure!(seg.read::<u32>(50)? == [1; 50], "a kernel does not know that it is one");
    ensure!(!in_kernel(), "the host believes that it is a kernel");
    Ok(Verdict::Passed)
}

/// A kernel that the device cannot run is refused, and the same code twice gives the same kernel.
pub fn a_kernel_without_a_form_is_refused(b: &Bench<'_>) -> Checked {
    let none = crate::kernel::Code { name: "formless", rust: None, spirv: None, takes: Default::default() };
    // SAFETY: no code at all.
    match unsafe { b.device.load(&none) } {
        Err(DeviceError::NoForm { kernel, .. }) => ensure!(kernel == "formless", "names {kernel}"),
        other => return Err(format!("a kernel without any form: {other:?}")),
    }
    let kernel = counting();
    // SAFETY: a kernel's code.
    let load = || unsafe { b.device.load(kernel.code()) };
    let (first, again) = (load(), load());
    ensure!(first.is_ok() && first == again, "{first:?}, then {again:?}");
    Ok(Verdict::Passed)
}

/// A kernel that was unloaded can be loaded again, and others are as before.
pub fn kernels_are_unloaded(b: &Bench<'_>) -> Checked {
    room!(b, 1);
    let seg = b.segment(1)?;
    for round in 0..4 {
        seg.write(&[0_u32; 50])?;
        b.run(&counting(), [50, 1, 1], &[seg.elems::<u32>(50)])?;
        ensure!(seg.read::<u32>(50)? == [1; 50], "round {round}: `count` did not run");
        b.run(&stepping(7, 1), [50, 1, 1], &[seg.elems::<u32>(50)])?;
        ensure!(seg.read::<u32>(50)? == [10; 50], "round {round}: `step` did not run");
        // SAFETY: kernels' code.
        let (count, step) = unsafe { (b.device.load(counting().code()), b.device.load(stepping(7, 1).code())) };
        let ids = [count.map_err(said("load"))?, step.map_err(said("load"))?];
        for id in ids.into_iter().skip(round % 2).take(1 + round / 2) {
            // SAFETY: loaded, and not unloaded since; its launches have ended and were asked for.
            unsafe { b.device.unload(id) };
        }
    }
    Ok(Verdict::Passed)
}
