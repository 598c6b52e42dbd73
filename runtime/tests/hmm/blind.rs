//! What the kernel's suite does not cover (the end of the specification's section 3): races, roll-back, budgets, accounting, bad
//! input.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sterna::hal::Device as _;
use sterna::hmm::{Pages, Prot};
use sterna::kernel::{EachMut, Group, Kernel, Spirv, each_mut};

use crate::access::ONCE;
use crate::device::{Errno, eventually};
use crate::memory::{Memory, WORDS, counting};
use crate::{BLOCK, Ctx, N, Outcome, Test, direct};

pub(crate) const TESTS: &[Test] = &[
    direct("blind.device_to_device", device_to_device),
    direct("blind.host_and_two_devices", host_and_two_devices),
    direct("blind.hole_race", hole_race),
    direct("blind.migrate_both_ways", migrate_both_ways),
    direct("blind.bounded_fault", bounded_fault),
    direct("blind.failed_entry", failed_entry),
    direct("blind.failed_copies", failed_copies),
    direct("blind.late_copies", late_copies),
    direct("blind.stale_entry", stale_entry),
    direct("blind.write_beside_a_replica", write_beside_a_replica),
    direct("blind.accounting", accounting),
    direct("blind.detach", detach),
    direct("blind.lost_device", lost_device),
    direct("blind.touch_of_a_hole", touch_of_a_hole),
    direct("blind.reuse_of_addresses", reuse_of_addresses),
    direct("blind.permissions_split_and_merge", permissions_split_and_merge),
    direct("blind.remapped_pages", remapped_pages),
    direct("blind.bad_input", bad_input),
];

/// Adds one to every number.
pub(crate) fn increment() -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, _: u32, y: &mut [u32]) {
        y.iter_mut().for_each(|y| *y = y.wrapping_add(1));
    }
    let kernel = Kernel::new("increment", 1, (each_mut(WORDS),), body);
    // SAFETY: with 1 the module does what `body` does, to the group's own part.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("../common/glsl/add.spv"))) }
}

fn device_to_device(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.mem(N));
    assert_eq!(dev0.write(&m, m.all(), &counting(N, 3)), ONCE(N));
    let mut out = vec![0; N as usize * WORDS];
    dev1.read(&m, m.all(), &mut out).unwrap();
    assert_eq!(out, counting(N, 3));
    dev1.write(&m, m.all(), &counting(N, 9)).unwrap();
    dev0.read(&m, m.all(), &mut out).unwrap();
    assert_eq!(out, counting(N, 9), "a device reads what it had, not what the other wrote");
    m.expect(m.all(), 9);
    Ok(())
}

/// Three parties in turn, each adding one.
fn host_and_two_devices(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(64));
    for _ in 0..20 {
        for dev in [&dev0, &dev1] {
            dev.run(&increment(), &[m.operand(m.all())]).unwrap();
        }
        m.words_mut().iter_mut().for_each(|w| *w += 1);
    }
    m.expect(m.all(), 60);
    Ok(())
}

/// The host touches pages for the first time while they are being moved.
fn hole_race(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    for round in 0..20 {
        let m = ctx.mem(BLOCK);
        std::thread::scope(|s| {
            s.spawn(|| {
                for p in 0..BLOCK {
                    m.page_mut(p)[7] = p as u32 + 1;
                }
            });
            let pages = m.pages(m.all());
            dev.attached.migrate(&pages).unwrap();
            if round % 2 == 0 {
                dev.to_sys(&m, m.all()).unwrap();
            }
        });
        m.expect_all(|i| if i % WORDS == 7 { (i / WORDS) as u32 + 1 } else { 0 });
    }
    Ok(())
}

/// Two threads move overlapping ranges in opposite order, beside a host that writes.
fn migrate_both_ways(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(4 * BLOCK));
    let (stop, m) = (AtomicBool::new(false), &m);
    std::thread::scope(|s| {
        for (dev, backwards) in [(&dev0, false), (&dev1, true)] {
            let stop = &stop;
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for i in 0..4 {
                        let b = if backwards { 3 - i } else { i };
                        dev.attached.migrate(&m.pages(b * BLOCK..(b + 1) * BLOCK)).unwrap();
                    }
                    dev.attached.migrate_home(&m.pages(m.all())).unwrap();
                }
            });
        }
        for _ in 0..30 {
            m.words_mut().iter_mut().step_by(WORDS / 2).for_each(|w| *w += 1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    m.expect_all(|i| i as u32 + if i % (WORDS / 2) == 0 { 30 } else { 0 });
    Ok(())
}

/// A fault with a budget says so when the pages are on their way for longer; one without waits.
fn bounded_fault(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(N));
    dev0.device.delay_copies(Duration::from_millis(500));
    let before = dev0.device.copies();
    std::thread::scope(|s| {
        s.spawn(|| dev0.attached.migrate(&m.pages(m.all())).unwrap());
        eventually(|| dev0.device.copies() > before);
        let mut out = vec![1; N as usize * WORDS];
        let bounded = dev1.read_within(&m, m.all(), &mut out, Some(Duration::from_millis(30)));
        assert_eq!(bounded, Err(Errno::Busy));
        assert!(out.iter().all(|w| *w == 1));
        dev1.read(&m, m.all(), &mut out).unwrap();
        assert_eq!(out, counting(N, 0));
    });
    Ok(())
}

/// An entry that cannot be made: the pages stay where they are, and the next attempt brings them.
fn failed_entry(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    for nth in [0, 1] {
        dev.device.fail_edit(nth);
        let failed = dev.to_dev(&m, m.all());
        assert!(nth > 0 || failed == Err(Errno::Other), "{:?}", failed.err());
        m.expect(m.all(), 0);
        assert_eq!(dev.to_dev(&m, m.all()).map(|d| d.0), Ok(N));
        m.expect(m.all(), 0);
        dev.attached.release_memory().unwrap();
    }
    dev.expect_frames(0);
    Ok(())
}

/// Copies that fail, all at once and each alone: a page stays where it was, with what was stored last.
fn failed_copies(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(64));
    dev.device.fail_copies(1000);
    let out = dev.attached.migrate(&m.pages(m.all())).unwrap();
    assert_eq!((out.moved, out.refused), (0, 64));
    m.expect(m.all(), 0);
    dev.device.fail_copies(0);
    dev.to_dev(&m, m.all()).unwrap();
    dev.write(&m, m.all(), &counting(64, 7)).unwrap();
    dev.device.fail_copies(1000);
    assert_eq!(dev.to_sys(&m, m.all()), Ok(0));
    dev.device.fail_copies(0);
    dev.expect_frames(64);
    dev.attached.migrate(&m.pages(m.all())).unwrap();
    assert_eq!(dev.peek(&m, m.all()), Some(counting(64, 7)), "what stayed is still the device's");
    m.expect(m.all(), 7);
    Ok(())
}

/// Nobody uses a frame before what is copied into it, or out of it, has arrived.
fn late_copies(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    for round in 0..2 {
        let (a, b) = (ctx.mem(4 * N), ctx.mem(4 * N));
        a.fill(round);
        b.fill(round + 50);
        assert_eq!(dev.attached.migrate(&a.pages(a.all())).unwrap().moved, 4 * N);
        let mut out = vec![0; (4 * N) as usize * WORDS];
        dev.read(&a, a.all(), &mut out).unwrap();
        assert_eq!(out, counting(4 * N, round));
        dev.to_sys(&a, a.all()).unwrap();
        dev.attached.migrate(&b.pages(b.all())).unwrap();
        a.expect(a.all(), round);
        b.expect(b.all(), round + 50);
    }
    // Bytes that have arrived without a word are not counted on: the point says so.
    let (m, late) = (ctx.filled(4 * N), Duration::from_millis(60));
    dev.device.delay_copies(late);
    let start = std::time::Instant::now();
    dev.attached.migrate(&m.pages(m.all())).unwrap();
    assert!(start.elapsed() >= late, "pages were used before their copy's point: {:?}", start.elapsed());
    Ok(())
}

/// A kernel that takes what it touches while it runs sees what the host stored since the pages came home.
fn stale_entry(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(64));
    for round in 1..5 {
        dev.to_dev(&m, m.all()).unwrap();
        dev.to_sys(&m, m.all()).unwrap();
        m.fill(round);
        assert_eq!(dev.read_on_demand(&m, m.all()), counting(64, round));
    }
    Ok(())
}

/// Two devices have read a page; one of them writes it: the other's copy is no longer used.
fn write_beside_a_replica(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(32));
    let mut out = vec![0; 32 * WORDS];
    for round in 1..5 {
        dev0.read(&m, m.all(), &mut out).unwrap();
        dev1.read(&m, m.all(), &mut out).unwrap();
        assert_eq!(out, counting(32, round - 1));
        dev1.write(&m, m.all(), &counting(32, round)).unwrap();
        dev0.read(&m, m.all(), &mut out).unwrap();
        assert_eq!(out, counting(32, round), "a device reads a copy from before the other's write");
        m.expect(m.all(), round);
    }
    Ok(())
}

/// Grains in use are the pages that are there, after every step.
fn accounting(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    let resident = || dev.attached.mapped(&m.pages(m.all()), true).unwrap().iter().filter(|p| **p).count() as u64;
    dev.to_dev(&m, 0..N).unwrap();
    dev.expect_frames_of(&m, N);
    assert_eq!(resident(), N);
    dev.to_sys(&m, 0..N / 2).unwrap();
    dev.expect_frames_of(&m, N / 2);
    assert_eq!(resident(), N / 2);
    m.unmap(N / 2..N / 2 + 10);
    dev.expect_frames_of(&m, N / 2 - 10);
    drop(m);
    dev.expect_frames(0);
    Ok(())
}

/// What a device has when it goes comes home.
fn detach(ctx: &Ctx<'_>) -> Outcome {
    let m = ctx.mem(N);
    for round in 0..10 {
        let dev = ctx.dev(0);
        dev.write(&m, m.all(), &counting(N, round)).unwrap();
        drop(dev);
        m.expect(m.all(), round);
    }
    Ok(())
}

fn lost_device(ctx: &Ctx<'_>) -> Outcome {
    let (dev, other, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(N));
    dev.to_dev(&m, 0..N / 2).unwrap();
    dev.device.lose();
    assert_eq!(dev.attached.migrate(&m.pages(N / 2..N)).map_err(Errno::from).err(), Some(Errno::Other));
    let mut out = vec![3; N as usize * WORDS];
    assert_eq!(dev.read(&m, m.all(), &mut out), Err(Errno::Other));
    assert_eq!(other.read(&m, m.all(), &mut out), Err(Errno::Other), "pages of which no copy is left");
    assert!(out.iter().all(|w| *w == 3));
    m.expect(N / 2..N, 0);
    let left = (N / 2) as usize * WORDS;
    other.read(&m, N / 2..N, &mut out[left..]).unwrap();
    assert_eq!(out[left..], counting(N, 0)[left..]);
    Ok(())
}

/// Whether the system can read a byte of the program's there; a bad address is an error, no crash.
fn readable(m: &Memory, page: u64) -> bool {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors of our own; the system checks the address itself.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let n = libc::write(pipe[1], m.seg.as_host_ptr().add(page as usize * 4096).cast(), 1);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        n == 1
    }
}

fn touch_of_a_hole(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(BLOCK));
    dev.to_dev(&m, m.all()).unwrap();
    m.unmap(100..200);
    m.protect(300..310, Prot::None);
    m.expect(0..100, 0);
    assert!(readable(&m, 99) && !readable(&m, 100) && !readable(&m, 199) && !readable(&m, 305));
    m.protect(300..310, Prot::Read);
    m.expect(200..BLOCK, 0);
    Ok(())
}

/// New memory at the same addresses shows nothing of what was there, on either side.
fn reuse_of_addresses(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    for _ in 0..10 {
        let m = ctx.mem(BLOCK);
        m.expect_all(|_| 0);
        m.words_mut().fill(0xdead_beef);
        dev.to_dev(&m, m.all()).unwrap();
        m.protect(3..400, Prot::Read);
        drop(m);
        let m = ctx.mem(BLOCK);
        let (_, bytes) = dev.to_dev(&m, m.all()).unwrap();
        assert!(bytes.iter().all(|w| *w == 0));
        m.words_mut().fill(1);
    }
    Ok(())
}

/// Every other page of a block that is on the device gets other permissions, and the same again.
fn permissions_split_and_merge(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(BLOCK));
    dev.to_dev(&m, m.all()).unwrap();
    for p in (0..BLOCK).step_by(2) {
        m.protect(p..p + 1, Prot::Read);
    }
    let mut out = vec![0; BLOCK as usize * WORDS];
    assert_eq!(dev.read(&m, m.all(), &mut out), ONCE(BLOCK));
    assert_eq!(out, counting(BLOCK, 0));
    for p in 0..4 {
        let want = if p % 2 == 0 { Err(Errno::Perm) } else { Ok(1) };
        assert_eq!(dev.write(&m, p..p + 1, &counting(1, 5)).map(|c| c.cpages), want, "page {p}");
    }
    m.protect(m.all(), Prot::Write);
    assert_eq!(dev.write(&m, m.all(), &counting(BLOCK, 8)).map(|c| c.cpages), Ok(BLOCK));
    m.expect(m.all(), 8);
    Ok(())
}

fn bad_input(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(6));
    let mut out = vec![9; 20 * WORDS];
    let errno = |r: Result<_, sterna::Error>| r.map(|_: ()| ()).map_err(Errno::from);
    let empty = Pages(m.pages(0..1).0.start..m.pages(0..1).0.start);
    let beyond = Pages(ctx.space.bytes() / 4096 - 1..ctx.space.bytes() / 4096 + 1);
    let nowhere = Pages(ctx.space.bytes() / 4096 - 5..ctx.space.bytes() / 4096 - 3);
    for (pages, want, moving) in [
        (&empty, Errno::Invalid, Errno::Invalid),
        (&beyond, Errno::Invalid, Errno::Invalid),
        (&nowhere, Errno::Fault, Errno::Invalid),
    ] {
        // SAFETY: there is nothing there.
        unsafe {
            assert_eq!(errno(ctx.space.protect(pages, Prot::Read)), Err(want));
            assert_eq!(errno(ctx.space.unmap(pages)), Err(want));
            assert_eq!(errno(ctx.space.discard(pages)), Err(want));
        }
        assert_eq!(errno(ctx.space.map(pages)), Err(want));
        let read = sterna::hal::Access::Read;
        assert_eq!(errno(dev.attached.populate(pages, read, sterna::policy::Place::Migrate, None)), Err(want));
        assert_eq!(errno(dev.attached.migrate(pages).map(drop)), Err(moving));
        assert_eq!(errno(dev.attached.migrate_home(pages).map(drop)), Err(moving));
        let snapshot = dev.attached.snapshot(pages).map_err(Errno::from);
        match want {
            Errno::Invalid => assert_eq!(snapshot, Err(Errno::Invalid)),
            _ => assert!(snapshot.unwrap().iter().all(|p| p.is_error())),
        }
    }
    assert_eq!(errno(ctx.space.map(&m.pages(0..2))), Err(Errno::Invalid), "mapped already");
    // Past the segment's end, and misaligned elements.
    assert_eq!(dev.read(&m, 4..8, &mut out[..4 * WORDS]), Err(Errno::Invalid));
    m.protect(5..6, Prot::None);
    assert_eq!(dev.read(&m, 0..6, &mut out[..6 * WORDS]), Err(Errno::Fault));
    assert_eq!(dev.write(&m, 0..6, &counting(6, 1)), Err(Errno::Fault), "unreadable is unwritable");
    m.protect(5..6, Prot::Read);
    assert_eq!(dev.write(&m, 0..6, &counting(6, 1)), Err(Errno::Perm));
    assert_eq!(dev.fault(&m, 5..6, true), Err(Errno::Perm));
    assert_eq!(dev.fault(&m, 5..6, false), Ok(()));
    assert!(out.iter().all(|w| *w == 9), "the output of reads that failed");
    m.expect(m.all(), 0);
    m.protect(5..6, Prot::Write);
    assert_eq!(dev.write(&m, 0..6, &counting(6, 1)).map(|c| c.cpages), Ok(6), "the same call once it is allowed");
    // Too little memory for everything at once is an error of the call, and costs nothing.
    let small = ctx.dev_with(|c| c.memory = 64 << 12);
    assert_eq!(small.device.memory().budget, 64 << 12);
    if !ctx.config.alias {
        let big = ctx.filled(128);
        let mut out = vec![9; 128 * WORDS];
        // Where addresses are memory it never fits.
        let want = if ctx.config.placed { Errno::TooBig } else { Errno::NoMem };
        assert_eq!(small.read(&big, big.all(), &mut out), Err(want));
        assert!(out.iter().all(|w| *w == 9));
        big.expect(big.all(), 0);
    }
    Ok(())
}

/// What remapping refuses, what goes along, and that the addresses serve their next owner as if nothing had been.
fn remapped_pages(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev_with(|c| {
        c.grain = 2 << 20;
        c.memory = 64 << 20;
    });
    for _ in 0..3 {
        let m = ctx.filled(2 * BLOCK);
        // SAFETY: refused, each of them.
        let asked = |a: std::ops::Range<u64>, b: std::ops::Range<u64>| unsafe {
            m.space.remap(&m.pages(a), &m.pages(b), false).map_err(Errno::from)
        };
        let other = ctx.mem(BLOCK);
        // SAFETY: refused.
        let elsewhere = unsafe { m.space.remap(&m.pages(0..16), &other.pages(0..16), false) };
        assert_eq!(elsewhere.map_err(Errno::from), Err(Errno::Invalid));
        assert_eq!(asked(0..16, 8..24), Err(Errno::Invalid));
        assert_eq!(asked(0..32, 16..48), Err(Errno::Invalid), "they overlap");
        assert_eq!(asked(0..16, 32..64), Err(Errno::Invalid), "their lengths differ");
        assert_eq!(asked(0..0, 32..32), Err(Errno::Invalid));
        let pin = m.space.pin(&m.pages(3..4), sterna::hmm::PinKind::Long, false).unwrap();
        assert_eq!(asked(0..16, 64..80), Err(Errno::Pinned));
        drop(pin);
        m.expect(0..64, 0);
        // Frames larger than a granule: the pages come home first.
        dev.to_dev(&m, 0..BLOCK).unwrap();
        m.protect(32..40, Prot::Read);
        m.remap(32..48, 48..64, true);
        for (old, new) in [(32, 48), (47, 63)] {
            assert_eq!(m.page(new)[1], old * WORDS as u32 + 1);
            assert_eq!(m.page(old.into())[1], 0);
        }
        assert_eq!(dev.write(&m, 48..49, &counting(1, 0)), Err(Errno::Perm), "permissions go along");
        m.page_mut(32)[0] = 5;
        m.remap(48..64, BLOCK..BLOCK + 16, false);
        assert_eq!(dev.snapshot(&m, 48..49), Ok(vec![crate::device::seen::ERROR]));
        assert_eq!(m.page(BLOCK)[1], 32 * WORDS as u32 + 1);
        m.expect(0..32, 0);
        drop(m);
        let m = ctx.mem(2 * BLOCK);
        m.expect_all(|_| 0);
    }
    Ok(())
}
