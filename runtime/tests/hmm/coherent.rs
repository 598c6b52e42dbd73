//! What a coherent device adds (the specification's section 4.8): the host uses pages in the device's memory, where they stay.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sterna::hal::Access;
use sterna::hmm::{PAGE, PinKind, Prot, Segment};
use sterna::policy::Place;

use crate::blind::increment;
use crate::device::{Dev, Errno, seen};
use crate::exclusive::add_ones;
use crate::memory::{Memory, WORDS, counting};
use crate::{BLOCK, Ctx, N, Outcome, Test, direct};

pub(crate) const TESTS: &[Test] = &[
    direct("coherent.in_place", in_place),
    direct("coherent.atomics_of_both", atomics_of_both),
    direct("coherent.another_device_takes_it", another_device_takes_it),
    direct("coherent.frames_are_used_again", frames_are_used_again),
    direct("coherent.ways_out", ways_out),
    direct("coherent.short_pins", short_pins),
    direct("coherent.protection", protection),
    direct("coherent.remapped", remapped),
    direct("coherent.system_calls", system_calls),
    direct("coherent.mappings", mappings),
    direct("coherent.too_many_mappings", too_many_mappings),
    direct("coherent.flush_and_copy", flush_and_copy),
    direct("coherent.lost", lost),
];

const ELSEWHERE: Outcome = Err("the device's memory is its own: what the host touches comes home");

const LOCAL: u8 = seen::COHERENT_LOCAL | seen::WRITE;

/// How many of the pages the device has, writable.
fn resident(dev: &Dev, m: &Memory) -> usize {
    dev.attached.mapped(&m.pages(m.all()), true).unwrap().iter().filter(|p| **p).count()
}

/// Both sides write and read in turn, and no byte is copied.
fn in_place(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((N, counting(N, 0))));
    let copies = dev.device.copies();
    for round in 0..10 {
        m.expect(m.all(), 2 * round);
        m.words_mut().iter_mut().for_each(|w| *w += 1);
        let batches = dev.run(&increment(), &[m.operand(m.all())]).unwrap();
        assert_eq!(batches, [0], "a launch over pages that the host used found them there");
    }
    assert_eq!(dev.device.copies(), copies, "bytes were copied");
    assert!(dev.snapshot(&m, m.all()).unwrap().iter().all(|b| b & !seen::PMD == LOCAL));
    dev.expect_frames(N);
    let mut out = vec![0; N as usize * WORDS];
    dev.read(&m, m.all(), &mut out).unwrap();
    assert_eq!(out, counting(N, 20));
    Ok(())
}

/// Atomic additions of the host and of kernels that run at the same time, on the same words.
fn atomics_of_both(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    const ROUNDS: u32 = 200;
    let (dev, m) = (ctx.dev(0), ctx.mem(16));
    dev.to_dev(&m, m.all()).unwrap();
    let copies = dev.device.copies();
    let (stop, mut mine) = (AtomicBool::new(false), 0);
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..ROUNDS {
                dev.run(&add_ones(), &[m.operand(m.all())]).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) || mine < 100 {
            for p in 0..16 {
                // SAFETY: the segment's bytes, used by atomic operations alone while the kernels run.
                let w = unsafe { AtomicU32::from_ptr(m.seg.as_host_ptr().cast::<u32>().add(p * WORDS)) };
                w.fetch_add(1, Ordering::Relaxed);
            }
            mine += 1;
        }
    });
    let got: Vec<u32> = (0..16).map(|p| m.page(p)[0]).collect();
    assert_eq!(got, vec![mine + 4 * ROUNDS; 16]);
    assert_eq!(dev.device.copies(), copies);
    Ok(())
}

/// Host threads store to pages that go from one coherent device to another and back: every store lands.
fn another_device_takes_it(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.mem(64));
    dev0.to_dev(&m, m.all()).unwrap();
    // So that there is time for stores between a copy and what follows it.
    for dev in [&dev0, &dev1] {
        dev.device.delay_copies(Duration::from_millis(2));
    }
    let stop = AtomicBool::new(false);
    let stores: Vec<u32> = std::thread::scope(|s| {
        let (stop, m) = (&stop, &m);
        let writers: Vec<_> = (0..2)
            .map(|t| {
                s.spawn(move || {
                    let mut n = 0_u32;
                    while !stop.load(Ordering::Relaxed) {
                        for p in 0..64 {
                            let w = &mut m.page_mut(p)[t];
                            // SAFETY: this thread's own words; volatile, so that each is a load and a store.
                            unsafe { std::ptr::from_mut(w).write_volatile(std::ptr::from_ref(w).read_volatile() + 1) };
                        }
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        for i in 0..60 {
            let (from, to) = if i % 2 == 0 { (&dev0, &dev1) } else { (&dev1, &dev0) };
            from.attached.migrate_home(&m.pages(m.all())).unwrap();
            to.attached.migrate(&m.pages(m.all())).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    for p in 0..64 {
        assert_eq!(m.page(p)[..2], stores[..], "page {p}");
    }
    let mut out = vec![0; 64 * WORDS];
    dev1.read(&m, m.all(), &mut out).unwrap();
    assert!(out.chunks(WORDS).all(|page| page[..2] == stores[..]));
    Ok(())
}

/// Frames that the host used through one allocation are another's next: neither sees the other.
fn frames_are_used_again(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let dev = ctx.dev_with(|c| c.memory = PAGE * BLOCK);
    for way in 0..4 {
        let old = ctx.filled(BLOCK);
        assert_eq!(dev.to_dev(&old, old.all()), Ok((BLOCK, counting(BLOCK, 0))));
        old.expect(old.all(), 0);
        match way {
            0 => assert_eq!(dev.to_sys(&old, old.all()), Ok(BLOCK)),
            // SAFETY: nobody uses the bytes.
            1 => unsafe { ctx.space.discard(&old.pages(old.all())) }.unwrap(),
            2 => dev.attached.release_memory().unwrap(),
            // What follows takes the memory: these pages are evicted.
            _ => {}
        }
        let new = ctx.filled(BLOCK);
        dev.attached.populate(&new.pages(new.all()), Access::ReadWrite, Place::Migrate, None).unwrap();
        dev.expect_frames(BLOCK);
        new.expect(new.all(), 0);
        old.words_mut().fill(0xdead_beef);
        new.words_mut().iter_mut().for_each(|w| *w += 7);
        old.expect_all(|_| 0xdead_beef);
        new.expect(new.all(), 7);
        let mut out = vec![0; BLOCK as usize * WORDS];
        dev.read(&new, new.all(), &mut out).unwrap();
        assert_eq!(out, counting(BLOCK, 7), "way {way}: the device sees another allocation's stores");
        drop(old);
        new.expect(new.all(), 7);
        drop(new);
        dev.expect_frames(0);
    }
    Ok(())
}

/// Parts of a block that the host uses in place leave it in each way, the rest stays.
fn ways_out(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, m) = (ctx.dev(0), ctx.filled(BLOCK));
    dev.to_dev(&m, m.all()).unwrap();
    m.expect(m.all(), 0);
    assert_eq!(dev.to_sys(&m, 10..20), Ok(10));
    m.unmap(30..40);
    // SAFETY: nobody uses the bytes.
    unsafe { ctx.space.discard(&m.pages(50..60)) }.unwrap();
    let pin = ctx.space.pin(&m.pages(70..71), PinKind::Long, true).unwrap();
    dev.expect_frames(BLOCK - 30);
    assert_eq!(resident(&dev, &m) as u64, BLOCK - 31);
    for p in (0..BLOCK).filter(|p| !(30..40).contains(p)) {
        let zero = (50..60).contains(&p);
        let want = |i: usize| if zero { 0 } else { p as u32 * WORDS as u32 + i as u32 };
        assert!(m.page(p).iter().enumerate().all(|(i, w)| *w == want(i)), "page {p}");
    }
    drop(pin);
    dev.attached.release_memory().unwrap();
    dev.expect_frames(0);
    m.expect(0..30, 0);
    m.expect(60..BLOCK, 0);
    Ok(())
}

/// A short pin keeps a page on the device; whoever wants it elsewhere waits, or is told.
fn short_pins(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, other, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(16));
    dev.to_dev(&m, m.all()).unwrap();
    let pin = ctx.space.pin(&m.pages(4..8), PinKind::Short, true).unwrap();
    assert_eq!(dev.snapshot(&m, 4..8), Ok(vec![LOCAL; 4]));
    assert_eq!(dev.to_sys(&m, m.all()), Ok(12), "pinned pages stay where they are");
    dev.expect_frames(4);
    m.expect(m.all(), 0);
    // The device itself uses them as before.
    assert_eq!(dev.run(&increment(), &[m.operand(4..8)]).unwrap(), [0]);
    m.expect(4..8, 1);
    let mut out = vec![0; 4 * WORDS];
    let start = Instant::now();
    assert_eq!(other.read(&m, 4..8, &mut out).err(), Some(Errno::Pinned));
    assert_eq!(dev.attached.make_exclusive(&m.pages(4..8)).map_err(Errno::from), Err(Errno::Pinned));
    assert_eq!(ctx.space.pin(&m.pages(5..6), PinKind::Long, true).map(drop).map_err(Errno::from), Err(Errno::Pinned));
    assert_eq!(dev.attached.release_memory().map_err(Errno::from), Err(Errno::Pinned));
    assert!(start.elapsed() < Duration::from_secs(10));
    std::thread::scope(|s| {
        let long = s.spawn(|| ctx.space.pin(&m.pages(5..6), PinKind::Long, true).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!long.is_finished(), "a long pin took a page from under a short one");
        drop(pin);
        long.join().unwrap().unwrap();
    });
    other.read(&m, 4..8, &mut out).unwrap();
    assert_eq!(out, counting(8, 1)[4 * WORDS..]);
    // At home it stays at home.
    let pin = ctx.space.pin(&m.pages(0..2), PinKind::Short, false).unwrap();
    assert_eq!(dev.attached.migrate(&m.pages(0..4)).unwrap().refused, 2);
    drop(pin);
    assert_eq!(dev.attached.migrate(&m.pages(0..4)).unwrap().refused, 0);
    Ok(())
}

/// Whether the system can store a byte there.
fn storable(m: &Memory, page: u64) -> bool {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors of our own and a byte; the system checks the address itself.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        assert_eq!(libc::write(pipe[1], [7_u8].as_ptr().cast(), 1), 1);
        let n = libc::read(pipe[0], m.seg.as_host_ptr().add(page as usize * 4096 + 4095).cast(), 1);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        n == 1
    }
}

/// What a page allows it allows in the device's memory, before the host's first touch there and after.
fn protection(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, m) = (ctx.dev(0), ctx.filled(8));
    dev.to_dev(&m, m.all()).unwrap();
    m.protect(0..2, Prot::Read);
    m.expect(m.all(), 0);
    assert_eq!([0, 1, 2].map(|p| storable(&m, p)), [false, false, true]);
    m.protect(2..4, Prot::Read);
    assert_eq!([1, 2, 3, 4].map(|p| storable(&m, p)), [false, false, false, true]);
    m.protect(0..8, Prot::Write);
    assert!((0..8).all(|p| storable(&m, p)));
    assert_eq!(dev.write(&m, m.all(), &counting(8, 5)).map(|c| c.cpages), Ok(8));
    m.expect(m.all(), 5);
    m.protect(6..7, Prot::None);
    assert!(!storable(&m, 6));
    assert_eq!(dev.to_sys(&m, m.all()), Ok(8));
    m.expect(7..8, 5);
    assert!(!storable(&m, 6) && storable(&m, 7));
    m.protect(6..7, Prot::Read);
    m.expect(6..7, 5);
    assert!(!storable(&m, 6));
    Ok(())
}

fn remapped(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, m) = (ctx.dev(0), ctx.filled(64));
    dev.to_dev(&m, m.all()).unwrap();
    m.expect(m.all(), 0);
    let copies = dev.device.copies();
    m.remap(0..16, 32..48, true);
    dev.expect_frames(48);
    assert!((0..16).all(|p| m.page(p).iter().all(|w| *w == 0)));
    assert!((0..16).all(|p| m.page(32 + p)[3] == p as u32 * WORDS as u32 + 3));
    m.page_mut(40)[3] = 9;
    m.expect(16..32, 0);
    m.expect(48..64, 0);
    let mut out = vec![0; WORDS];
    dev.read(&m, 40..41, &mut out).unwrap();
    assert_eq!(out[3], 9);
    assert_eq!(dev.device.copies(), copies, "a page that only changed its address was copied");
    Ok(())
}

/// Once the host has touched a page there, the system's own accesses need no service.
fn system_calls(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, m) = (ctx.dev(0), ctx.filled(BLOCK));
    dev.to_dev(&m, m.all()).unwrap();
    let copies = dev.device.copies();
    assert_eq!(m.page(5)[0], 5 * WORDS as u32);
    assert!((0..BLOCK).all(|p| storable(&m, p)), "pages of one mapping, most of them untouched");
    let mut out = vec![0; WORDS];
    dev.read(&m, 9..10, &mut out).unwrap();
    assert_eq!(out[WORDS - 1].to_ne_bytes()[3], 7);
    assert_eq!(dev.device.copies(), copies);
    Ok(())
}

/// Mappings of the device's memory over the addresses of a segment.
fn shown(m: &Memory) -> usize {
    let start = m.seg.as_host_ptr().addr();
    let end = start + (m.len * PAGE) as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").expect("mappings");
    let inside = |l: &&str| {
        let at = usize::from_str_radix(l.split('-').next().unwrap_or(""), 16).unwrap_or(0);
        (start..end).contains(&at) && l.contains("sterna-device")
    };
    maps.lines().filter(inside).count()
}

/// A block in consecutive frames is one mapping, and none is left when it has gone.
fn mappings(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, m) = (ctx.dev(0), ctx.filled(4 * BLOCK));
    dev.to_dev(&m, m.all()).unwrap();
    assert_eq!(shown(&m), 0, "what nobody has touched");
    m.expect(m.all(), 0);
    assert!((1..=4).contains(&shown(&m)), "{}", shown(&m));
    for p in (0..BLOCK).step_by(2) {
        assert_eq!(dev.to_sys(&m, p..p + 1), Ok(1));
    }
    m.expect(m.all(), 0);
    let n = shown(&m);
    assert!((BLOCK as usize / 2..BLOCK as usize / 2 + 4).contains(&n), "{n}");
    dev.to_sys(&m, m.all()).unwrap();
    assert_eq!(shown(&m), 0);
    m.expect(m.all(), 0);
    Ok(())
}

/// Where the pages lie too scattered for the mappings that there are, they come home as from any device.
fn too_many_mappings(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
    let most = text.trim().parse::<u64>().expect("a number") / 8;
    if most > 9000 {
        return Err("the process may have more mappings than the test's device has pages");
    }
    // Every other page, and a granule more than there are mappings.
    let pages = 2 * (most + 64);
    let (dev, m) = (ctx.dev_with(|c| c.memory = 256 << 20), ctx.filled(pages));
    for p in (0..pages).step_by(2) {
        dev.attached.migrate(&m.pages(p..p + 1)).unwrap();
    }
    dev.expect_frames(pages / 2);
    m.expect(m.all(), 0);
    m.words_mut().iter_mut().for_each(|w| *w += 1);
    let n = shown(&m) as u64;
    assert!(n <= most && n > most / 2, "{n} mappings of {most}");
    let left = resident(&dev, &m) as u64;
    assert!(left >= n && left < pages / 2, "{left} of {} pages are left", pages / 2);
    m.expect(m.all(), 1);
    dev.attached.release_memory().unwrap();
    m.expect(m.all(), 1);
    assert_eq!(shown(&m), 0);
    // All of them can be had again.
    let again = ctx.filled(BLOCK);
    dev.to_dev(&again, again.all()).unwrap();
    again.expect(again.all(), 0);
    assert!(shown(&again) > 0);
    Ok(())
}

/// A flush writes the bytes from where they are, and leaves them there.
fn flush_and_copy(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let path = std::env::temp_dir().join(format!("sterna-coherent-{}", std::process::id()));
    let f = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("its name");
    f.set_len(64 * PAGE).expect("its length");
    let seg = Segment::of_file(ctx.space, f.try_clone().expect("a descriptor"), 0, 64 * PAGE, true).expect("a segment");
    let (dev, m) = (ctx.dev(0), Memory::of(seg, 64));
    let pages = m.pages(m.all());
    dev.attached.populate(&pages, Access::ReadWrite, Place::Migrate, None).unwrap();
    m.words_mut().iter_mut().enumerate().for_each(|(i, w)| *w = i as u32);
    let copies = dev.device.copies();
    m.seg.flush().unwrap();
    assert_eq!(dev.device.copies(), copies, "the pages were moved for a flush");
    assert_eq!(resident(&dev, &m), 64);
    let mut bytes = vec![0; (64 * PAGE) as usize];
    f.read_exact_at(&mut bytes, 0).expect("its contents");
    let wrong = bytes.chunks(4).enumerate().find(|(i, b)| **b != (*i as u32).to_ne_bytes());
    assert_eq!(wrong, None);
    // With a pin that keeps pages on the device, a fork's copy has them too.
    let m = ctx.filled(32);
    m.seg.set_fork_policy(sterna::hmm::ForkPolicy::Preserve).unwrap();
    dev.to_dev(&m, m.all()).unwrap();
    m.words_mut().iter_mut().for_each(|w| *w += 3);
    let pin = ctx.space.pin(&m.pages(8..12), PinKind::Short, true).unwrap();
    assert!(crate::forks::child_sees(&m, 3));
    drop(pin);
    m.expect(m.all(), 3);
    Ok(())
}

/// A lost device takes what only it had along, also what the host has used there; written anew it is memory as any other.
fn lost(ctx: &Ctx<'_>) -> Outcome {
    if !ctx.config.coherent {
        return ELSEWHERE;
    }
    let (dev, other, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(64));
    dev.to_dev(&m, 0..32).unwrap();
    m.expect(m.all(), 0);
    dev.device.lose();
    assert!(dev.attached.migrate(&m.pages(32..64)).is_err());
    assert_eq!(shown(&m), 0);
    let mut out = vec![3; 64 * WORDS];
    assert_eq!(other.read(&m, m.all(), &mut out), Err(Errno::Other));
    m.expect(32..64, 0);
    assert_eq!(other.snapshot(&m, 0..1), Ok(vec![seen::ERROR]));
    // SAFETY: nobody uses the bytes.
    unsafe { ctx.space.discard(&m.pages(0..32)) }.unwrap();
    assert!((0..32).all(|p| m.page(p).iter().all(|w| *w == 0)));
    m.words_mut().iter_mut().enumerate().for_each(|(i, w)| *w = i as u32);
    other.read(&m, m.all(), &mut out).unwrap();
    assert_eq!(out, counting(64, 0));
    Ok(())
}
