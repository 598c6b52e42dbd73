//! What safe code can reach of the driver's layer, and what it cannot break there: moves beside fills, hints beside stores, a device's
//! loss under a kernel, numbers that make no sense.

mod common;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use sterna::bytemuck::{Pod, Zeroable};
use sterna::cpu::CpuConfig;
use sterna::hal::Access;
use sterna::hmm::{Attached, Operand, PinKind, Prot, Segment, Space};
use sterna::hmm::{BlockId, Page, Pages};
use sterna::kernel::{EachMut, EachOut, Group, HaloPart, Kernel, each, each_mut, each_out, halo};
use sterna::policy::Place;
use sterna::{Error, Mechanism, Runtime, Shared};

// ───────────── elements ─────────────

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4194304))]
struct TooWide([u8; 4 << 20]);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(131072))]
struct Wide([u32; 32768]);

/// Fails if some way of making an allocation takes elements that memory is not aligned for.
#[test]
fn elements_that_memory_is_not_aligned_for_are_refused_in_every_way() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let path = std::env::temp_dir().join(format!("sterna-align-{}", std::process::id()));
    std::fs::write(&path, vec![0; 4 << 20]).unwrap();
    let held = rt.shared::<u8>(1).unwrap(); // so that not every first address is a multiple of 4 MiB
    // SAFETY: nobody else has the file.
    let mapped = unsafe { rt.map_file::<TooWide>(&path) };
    let made = [rt.shared::<TooWide>(1), rt.shared_with(1, |_| TooWide::zeroed()), rt.read_file(&path), mapped];
    for (i, made) in made.into_iter().enumerate() {
        let e = made.expect_err("refused");
        assert!(matches!(e, Error::Alignment { align: 4194304, most: 2097152 }), "{i}: {e:?}");
    }
    drop(held);
    std::fs::remove_file(&path).unwrap();
}

fn aligned_body(group: Group, _: (), x: &[Wide], y: &mut [Wide]) {
    assert!(x.as_ptr().addr().is_multiple_of(align_of::<Wide>()) && y.as_ptr().addr().is_multiple_of(align_of::<Wide>()));
    y[0].0.fill(x[0].0[7] + group.index() as u32);
}

/// Fails if a view, a copy, a part or a device shows elements at addresses that are no multiples of their alignment.
#[test]
fn elements_are_aligned_wherever_they_are_looked_at() {
    let _limit = limit();
    let aligned = |x: &[Wide]| assert!(x.as_ptr().addr().is_multiple_of(align_of::<Wide>()));
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let mut x = rt.shared::<Wide>(20).unwrap();
        for i in 0..20 {
            x[i].0[7] = i as u32;
        }
        let (copy, tail) = (x.cow_clone().unwrap(), x.split_off(7).unwrap());
        let second = tail.cow_clone().unwrap();
        for part in [&x, &copy, &tail, &second] {
            aligned(part);
            aligned(&part.range(1..).unwrap());
        }
        let mut y = rt.shared::<Wide>(13).unwrap();
        let k = Kernel::new("aligned", (), (each(1), each_out(1)), aligned_body);
        rt.launch(&k, (&second, &mut y)).unwrap().wait().unwrap_or_else(|e| panic!("{how}: {e}"));
        assert!((0..13).all(|i| y[i].0[9] == 7 + 2 * i as u32), "{how}");
    }
    // Where addresses come in parts, which are aligned to less, the launch is refused.
    let rt = runtime(CpuConfig { window: 4 << 20, ..rigid(8 * MIB) });
    let mut y = rt.shared::<Wide>(64).unwrap();
    let k = Kernel::new("wide", (), (each_out(1),), |_: Group, (): (), _: &mut [Wide]| {});
    let e = rt.launch(&k, (&mut y,)).and_then(|p| p.wait()).unwrap_err();
    assert!(matches!(&e, Error::Arguments { what, .. } if what.contains("aligned")), "{e:?}");
}

// ───────────── groups ─────────────

fn sees(_: Group, len: u64, x: HaloPart<'_, u32>, y: &mut [u32]) {
    assert_eq!(x[x.own()].len(), 4);
    y.fill(u32::from(x.len() as u64 == len && x.start() == 0));
}

/// Fails if a reach or a chunk near the end of numbers makes a group's part lie elsewhere.
#[test]
fn a_reach_or_chunk_as_large_as_numbers_get_is_everything() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB).into_iter().chain([("cut", rigid(MIB))]) {
        let rt = runtime(config);
        let n = if how == "cut" { 1 << 16 } else { 64 };
        let x = rt.shared_with(n, |i| i as u32).unwrap();
        for reach in [n, usize::MAX >> 1, usize::MAX - 8, usize::MAX] {
            let mut y = rt.shared::<u32>(n).unwrap();
            let k = Kernel::new("sees", n as u64, (halo(4, reach), each_mut(4)), sees);
            rt.launch(&k, (&x, &mut y)).unwrap().wait().unwrap_or_else(|e| panic!("{how}, {reach:#x}: {e}"));
            assert!(y.iter().all(|y| *y == 1), "{how}, {reach:#x}");
        }
        for chunk in [n, usize::MAX >> 1, usize::MAX] {
            let mut y = rt.shared::<u32>(n).unwrap();
            let all = |_: Group, (): (), x: HaloPart<'_, u32>, y: &mut [u32]| y.copy_from_slice(&x);
            let k = Kernel::new("all", (), (halo(chunk, chunk), each_mut(chunk)), all);
            rt.launch(&k, (&x, &mut y)).unwrap().wait().unwrap_or_else(|e| panic!("{how}, {chunk:#x}: {e}"));
            assert!(y.iter().enumerate().all(|(i, y)| *y == i as u32), "{how}, {chunk:#x}");
        }
    }
}

// ───────────── drivers beside a program ─────────────

fn attached(space: &'static Space, config: CpuConfig) -> Attached {
    Attached::new(space, device(config)).expect("a device")
}

/// Fails if a fill's stores, which no fault watches, are left behind by a move that is asked for meanwhile.
#[test]
fn a_drivers_moves_beside_a_fill_lose_no_store() {
    let _limit = limit();
    let rt = runtime(small(64 * MIB));
    if !faults(&rt) {
        return;
    }
    let n = 1 << 20;
    let other = attached(rt.space(), small(64 * MIB));
    for before in [false, true] {
        let mut x = rt.shared::<u32>(n).unwrap();
        if before {
            x.fill_with(|_| 7).unwrap();
        }
        let pages = x.pages();
        x.fill_with(|i| {
            if i == n / 2 {
                assert_eq!(other.migrate(&pages).unwrap().moved, 0, "the pages are being written");
                assert!(matches!(other.make_exclusive(&pages), Err(Error::Pinned)));
            }
            i as u32 + 1
        })
        .unwrap();
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
        assert_eq!(other.migrate(&pages).unwrap().moved, pages.len(), "afterwards they go");
    }
    let (mut x, stop) = (rt.shared::<u32>(n).unwrap(), AtomicBool::new(false));
    let pages = x.pages();
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                other.migrate(&pages).unwrap();
            }
        });
        let fills = (1..60_u32).try_for_each(|r| {
            x.fill_with(|i| i as u32 ^ r).unwrap();
            let wrong = x.iter().enumerate().filter(|(i, v)| **v != *i as u32 ^ r).count();
            if wrong == 0 { Ok(()) } else { Err(format!("fill {r}: {wrong} elements")) }
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(fills, Ok(()));
    });
}

/// Where nothing notices a store, a driver is refused the pages of a program, and has its own.
#[test]
fn without_faults_a_driver_moves_no_page_of_a_program() {
    let _limit = limit();
    if !is_child() {
        let name = "without_faults_a_driver_moves_no_page_of_a_program";
        succeeds(child(name).env("STERNA_HOST_FAULTS", Mechanism::None.to_string()));
        return;
    }
    let rt = runtime(small(8 * MIB));
    let other = attached(rt.space(), small(8 * MIB));
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let pages = x.pages();
    let r: &mut [u32] = &mut x;
    let refused =
        |e: Result<(), Error>| assert!(matches!(&e, Err(Error::Invalid { what }) if what.contains("none")), "{e:?}");
    refused(other.migrate(&pages).map(drop));
    refused(other.migrate_vma(&pages).map(drop));
    refused(other.make_exclusive(&pages));
    for (access, place) in
        [(Access::Read, Place::Migrate), (Access::ReadWrite, Place::Migrate), (Access::Read, Place::Remote)]
    {
        refused(other.populate(&pages, access, place, None));
    }
    r.iter_mut().for_each(|v| *v += 1);
    other.migrate_home(&pages).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 2));
    let seg = Segment::new(rt.space(), 1 << 20).unwrap();
    assert_eq!(other.migrate(&seg.pages()).unwrap().moved, 256);
}

// ───────────── hints ─────────────

/// Fails if the hint stores something where the program or a device stores for the first time, or writes down what was so before.
#[test]
fn a_hint_beside_the_first_stores_changes_no_byte() {
    let _limit = limit();
    let rt = runtime(small(64 * MIB));
    let dev = attached(rt.space(), CpuConfig { grain: 4096, workers: 1, ..small(64 * MIB) });
    fn body(_: Group, v: u32, y: &mut [u32]) {
        y.fill(v);
    }
    for n in 1..=400_u32 {
        let seg = Segment::new(rt.space(), 2 << 20).unwrap();
        let k: Kernel<(EachOut<u32>,)> = Kernel::new("fill", n | 0x5500_0000, (each_out(1024),), body);
        let place = if n % 2 == 0 { Place::Remote } else { Place::Migrate };
        std::thread::scope(|s| {
            s.spawn(|| {
                (0..n % 700).for_each(|_| std::hint::spin_loop());
                seg.prefer_huge();
            });
            if n % 3 == 0 {
                dev.migrate(&seg.pages()).unwrap();
            }
            let ops = [Operand { segment: Arc::clone(&seg), bytes: 0..2 << 20 }];
            // SAFETY: nobody else uses the segment's bytes.
            unsafe { dev.run(&k, &ops, place, None) }.unwrap();
        });
        dev.migrate_home(&seg.pages()).unwrap();
        // SAFETY: the segment's bytes, which are at home and nobody else uses.
        let words = unsafe { std::slice::from_raw_parts(seg.as_host_ptr().cast::<u32>(), 1 << 19) };
        assert_eq!(words.iter().position(|w| *w != n | 0x5500_0000), None, "round {n}");
    }
    let (slot, begin) = (Mutex::new(None), std::sync::Barrier::new(2));
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..400 {
                begin.wait();
                let seg: Arc<Segment> = slot.lock().unwrap().take().unwrap();
                seg.prefer_huge();
                drop(seg);
                begin.wait();
            }
        });
        for r in 0..400 {
            let mut x = rt.shared::<u32>(1 << 19).unwrap();
            *slot.lock().unwrap() = rt.space().find(Page(x.pages().0.start));
            begin.wait();
            (0..r * 4).for_each(|_| std::hint::spin_loop());
            x[0] = 0x0101_0101;
            begin.wait();
            assert_eq!(x[0], 0x0101_0101, "round {r}");
        }
    });
}

// ───────────── the loss of a device ─────────────

static STARES: AtomicU32 = AtomicU32::new(0);

fn stares(_: Group, _: (), x: &[u32], y: &mut [u32]) {
    let (first, start) = (x[0], Instant::now());
    STARES.fetch_max(1, Ordering::SeqCst);
    while start.elapsed() < Duration::from_millis(150) {
        y[7] = y[7].wrapping_add(1);
        black_box(&mut *y);
        if black_box(x)[0] != first || black_box(x)[x.len() - 1] != first {
            STARES.store(2, Ordering::SeqCst);
        }
    }
}

/// Fails if a device's loss changes what a kernel sees through a reference, or lets the host have what the kernel still writes.
#[test]
fn a_loss_changes_nothing_under_a_kernel_or_the_host() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        for policy in ["auto", "demand", "remote"] {
            STARES.store(0, Ordering::SeqCst);
            let dev = device(config.clone());
            let open: Arc<dyn sterna::hal::Device> = Arc::clone(&dev) as _;
            let rt = Runtime::builder().open_device(open).policy(policy).unwrap().build().unwrap();
            let x = rt.shared_with(100_000, |_| 5_u32).unwrap();
            let mut y = rt.shared::<u32>(100_000).unwrap();
            let k = Kernel::new("stares", (), (each(100_000), each_mut(100_000)), stares);
            let p = rt.launch(&k, (&x, &mut y)).unwrap();
            eventually("the kernel runs", || STARES.load(Ordering::SeqCst) > 0);
            dev.lose();
            let told = p.wait();
            assert!(told.as_ref().is_err_and(|e| e.to_string().contains("lost")), "{how}, {policy}: {told:?}");
            y.fill_with(|_| 42).unwrap();
            let r: &mut [u32] = &mut y;
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(20) {
                assert_eq!(black_box(&*r)[7], 42, "{how}, {policy}: the kernel stores where the host has `&mut`");
            }
            assert_eq!(STARES.load(Ordering::SeqCst), 1, "{how}, {policy}: an element changed under `&[u32]`");
            assert!(x.iter().all(|v| *v == 5));
        }
    }
}

// ───────────── imported pages ─────────────

#[test]
fn imported_pages_stay_read_only_when_they_are_unmapped_and_mapped() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let (space, dev) = (rt.space(), attached(rt.space(), CpuConfig { grain: 4096, ..small(8 * MIB) }));
    let seg = Segment::imported(space, &[7; 8192]).unwrap();
    let page = Pages(seg.pages().0.start..seg.pages().0.start + 1);
    // SAFETY: nobody has a reference to the bytes.
    unsafe { space.unmap(&page) }.unwrap();
    space.map(&page).unwrap();
    let denied = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Permission { .. })), "{r:?}");
    // SAFETY: as above.
    denied(unsafe { space.protect(&page, Prot::Write) });
    denied(space.pin(&page, PinKind::Short, true).map(drop));
    denied(dev.populate(&page, Access::ReadWrite, Place::Remote, None));
    assert!(dev.snapshot(&page).unwrap().iter().all(|pfn| !pfn.is_writable()));
    // SAFETY: the segment's bytes; nobody writes them.
    let bytes = unsafe { std::slice::from_raw_parts(seg.as_host_ptr(), 8192) };
    assert!(bytes[..4096].iter().all(|b| *b == 0) && bytes[4096..].iter().all(|b| *b == 7));
}

// ───────────── in a kernel ─────────────

static HANDS: Mutex<Option<(Arc<Attached>, Pages)>> = Mutex::new(None);
static REFUSED: AtomicU32 = AtomicU32::new(0);

fn reaches_out(_: Group, _: (), y: &mut [u32]) {
    let (dev, pages) = HANDS.lock().unwrap().clone().unwrap();
    let inside = |r: Result<(), Error>| {
        let refused = matches!(r, Err(Error::InsideKernel));
        REFUSED.fetch_add(u32::from(refused), Ordering::SeqCst);
    };
    inside(dev.migrate(&pages).map(drop));
    inside(dev.migrate_home(&pages).map(drop));
    inside(dev.populate(&pages, Access::ReadWrite, Place::Migrate, None));
    inside(dev.make_exclusive(&pages));
    inside(dev.release_memory());
    inside(dev.space().map(&pages));
    y.fill(3);
}

/// Fails if a kernel gets to wait for its own launch by way of the driver's layer.
#[test]
fn a_drivers_calls_are_refused_in_a_kernel() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let mut y = rt.shared::<u32>(1000).unwrap();
        let dev = Arc::new(attached(rt.space(), small(8 * MIB)));
        *HANDS.lock().unwrap() = Some((Arc::clone(&dev), y.pages()));
        REFUSED.store(0, Ordering::SeqCst);
        let k: Kernel<(EachMut<u32>,)> = Kernel::new("reaches", (), (each_mut(1000),), reaches_out);
        rt.launch(&k, (&mut y,)).unwrap().wait().unwrap();
        assert_eq!(REFUSED.load(Ordering::SeqCst), 6, "{how}");
        assert!(y.iter().all(|v| *v == 3), "{how}");
        *HANDS.lock().unwrap() = None;
    }
}

// ───────────── numbers ─────────────

/// Numbers of pages and bytes that are in no arena are errors, or nothing.
#[test]
fn numbers_that_make_no_sense_are_refused() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let (space, dev) = (rt.space(), attached(rt.space(), small(8 * MIB)));
    let x: Shared<u32> = rt.shared_with(1000, |i| i as u32).unwrap();
    let Pages(p) = x.pages();
    let all = space.bytes() / 4096;
    let beyond = [
        Pages(0..u64::MAX),
        Pages(u64::MAX - 1..u64::MAX),
        Pages(1 << 31..(1 << 31) + 1),
        Pages(1 << 41..(1 << 41) + 1),
        Pages(all..all + 1),
        Pages(p.end..p.start),
        Pages(std::ops::Range { start: u64::MAX, end: 0 }),
    ];
    for bad in beyond {
        assert!(dev.migrate(&bad).is_err() && dev.migrate_home(&bad).is_err() && dev.snapshot(&bad).is_err(), "{bad:?}");
        assert!(dev.make_exclusive(&bad).is_err() && dev.exclusive(&bad).is_err() && space.map(&bad).is_err(), "{bad:?}");
        assert!(space.pin(&bad, PinKind::Short, false).is_err(), "{bad:?}");
        let wide = bad.widened(16);
        assert!(wide.0.start <= bad.0.start && wide.0.end >= bad.0.end, "{bad:?}: {wide:?}");
        assert!(bad.bytes() >= bad.len() && bad.part_of(BlockId(u32::MAX)).count() <= 512);
    }
    for page in [all, 1 << 41, u64::MAX] {
        assert!(space.find(Page(page)).is_none(), "{page:#x}");
    }
    let seg = space.find(Page(p.start)).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "what is asked about")]
    let reversed = 10..5;
    assert!(seg.pages_of(&reversed).is_empty());
    assert!(seg.pages_of(&(u64::MAX - 1..u64::MAX)).0.start >= p.end);
    for bytes in [u64::MAX, u64::MAX - (2 << 20), 1 << 53, (8 << 40) + 1] {
        assert!(Segment::new(space, bytes).is_err(), "{bytes:#x}");
    }
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32));
}
