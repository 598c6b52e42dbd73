//! Device memory that the host uses in place.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Checked, room, step};
use crate::conformance::check::{Bench, Segment, Verdict, ensure};
use crate::kernel::{Group, Kernel, each_mut, scatter};
use crate::{Access, Groups, Outcome};

/// The first `n` elements of a segment where the host finds them, as cells that host and device may use at the same time.
fn cells<'a>(b: &Bench<'a>, seg: &'a Segment<'_>, n: usize) -> Result<Vec<&'a AtomicU32>, String> {
    let base = b.device.frames_base().ok_or("a coherent device without `frames_base`")?;
    let mut out = Vec::with_capacity(n);
    for (_, bytes, first) in seg.pieces() {
        for i in 0..bytes / 4 {
            if out.len() < n {
                let at = u64::from(first) * b.grain() + i * 4;
                // SAFETY: the segment's own frame, which lives as long as the segment; every access by the host is atomic, and
                // so are those of kernels that run beside one.
                out.push(unsafe { base.add(at as usize).cast::<AtomicU32>().as_ref() });
            }
        }
    }
    Ok(out)
}

/// Where the host may use device memory in place, stores of either side are seen by the other without a copy, atomic
/// operations of both on one word lose nothing, and the file shows the same bytes; elsewhere there is no such file.
pub fn coherent_frames_are_one_memory(b: &Bench<'_>) -> Checked {
    fn add_up(_: Group, _: (), words: &[AtomicU32]) {
        for w in words {
            w.fetch_add(1, Ordering::Relaxed);
        }
    }
    if !b.device.caps().coherent {
        ensure!(b.device.frames_file().is_none(), "the device is not coherent and hands out its memory's file");
        return Ok(Verdict::Skipped("the host cannot use device memory in place"));
    }
    room!(b, 3);
    let seg = b.segment(3)?;
    let n = (2 * b.grain() / 4) as usize + 100;
    let host = cells(b, &seg, n)?;
    // Stores of the host, through no copy.
    host.iter().enumerate().for_each(|(i, c)| c.store(i as u32, Ordering::Relaxed));
    let grid = [n.div_ceil(1024) as u32, 1, 1];
    b.run(&Kernel::new("step", 5_u32, (each_mut::<u32>(1024),), step), grid, &[seg.elems::<u32>(n)])?;
    let wrong = host.iter().enumerate().find(|(i, c)| c.load(Ordering::Relaxed) != (*i as u32).wrapping_mul(3) + 5);
    ensure!(wrong.is_none(), "the host sees {:?} after a kernel", wrong);
    ensure!(seg.read::<u32>(n)? == host.iter().map(|c| c.load(Ordering::Relaxed)).collect::<Vec<_>>(), "a copy differs");
    // Both at once on the same words.
    let (groups, mine, words) = (64_u32, 20_000_u32, 8);
    host.iter().for_each(|c| c.store(0, Ordering::Relaxed));
    let kernel = Kernel::new("add_up", (), (scatter::<u32>(),), add_up);
    let mut tickets = Vec::new();
    for _ in 0..50 {
        tickets.push(b.submit(&kernel, [groups, 1, 1], Groups::All, &[seg.elems::<u32>(words)], &[])?);
    }
    for i in 0..mine {
        host[i as usize % words].fetch_add(1, Ordering::Relaxed);
    }
    let launched = tickets.len() as u32;
    for ticket in tickets {
        ensure!(matches!(b.ended(ticket)?, Outcome::Done), "a launch failed");
    }
    for (i, c) in host[..words].iter().enumerate() {
        let (got, want) = (c.load(Ordering::Relaxed), launched * groups + mine / words as u32);
        ensure!(got == want, "word {i} is {got} after increments of both sides, and should be {want}");
    }
    // An entry that goes away takes nothing with it.
    seg.unmap()?;
    host[3].store(77, Ordering::Relaxed);
    seg.map(Access::ReadWrite)?;
    ensure!(seg.read::<u32>(4)?[3] == 77, "a store of the host while no entry named the frame");
    in_the_file(b, &seg, &host)
}

#[cfg(unix)]
fn in_the_file(b: &Bench<'_>, seg: &Segment<'_>, host: &[&AtomicU32]) -> Checked {
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::FileExt;

    let fd = b.device.frames_file().ok_or("a coherent device without `frames_file`")?;
    // SAFETY: the device's own descriptor, open as long as the device exists.
    let file = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map_err(|e| format!("descriptor {fd}: {e}"))?;
    let file = std::fs::File::from(file);
    let mut at = 0;
    for (_, bytes, first) in seg.pieces() {
        let cells = &host[at..(at + (bytes / 4) as usize).min(host.len())];
        let mut got = vec![0; cells.len() * 4];
        file.read_exact_at(&mut got, u64::from(first) * b.grain()).map_err(|e| format!("grain {first} of the file: {e}"))?;
        let want: Vec<u8> = cells.iter().flat_map(|c| c.load(Ordering::Relaxed).to_ne_bytes()).collect();
        ensure!(got == want, "the file does not show grain {first} and the {} bytes behind it", got.len());
        at += cells.len();
    }
    Ok(Verdict::Passed)
}

#[cfg(not(unix))]
fn in_the_file(_: &Bench<'_>, _: &Segment<'_>, _: &[&AtomicU32]) -> Checked {
    Ok(Verdict::Skipped("descriptors of files are a matter of Unix"))
}
