//! Launches: their order, every mapping, several devices, devices that cannot fault, and what policies and counters say.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use sterna::cpu::CpuConfig;
use sterna::hal::{Access, Device as _};
use sterna::kernel::{Group, HaloPart, Kernel, each, each_mut, each_out, halo, halo_rows, rows, rows_out, scatter, whole};
use sterna::policy::{FaultRule, LaunchEvent, Place, Policy};
use sterna::{Cause, Error, Runtime};

#[test]
fn launches_follow_each_other_by_the_bytes_they_share() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let n = 50_000;
        let mut x = rt.shared_with(n, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(n).unwrap();
        let mut z = rt.shared::<u32>(n).unwrap();
        for _ in 0..10 {
            rt.launch(&copy_add(1), (&x, &mut y)).unwrap(); // y = x + 1
            rt.launch(&add(2), (&mut x,)).unwrap(); // after y has read x
            rt.launch(&copy_add(3), (&y, &mut z)).unwrap(); // z = y + 3
            rt.launch(&copy_add(0), (&z, &mut x)).unwrap(); // x = z
        }
        assert_eq!((x[7], y[7], z[7]), (47, 44, 47), "{how}");
        y[7] = 1000;
        rt.launch(&copy_add(1), (&y, &mut x)).unwrap();
        assert_eq!(x[7], 1001, "{how}");
        assert!(x.iter().enumerate().all(|(i, v)| i == 7 || *v == i as u32 + 38), "{how}");
    }
}

#[test]
fn every_mapping_gives_groups_their_part() {
    let _limit = limit();
    let (w, h) = (300_usize, 1000_usize);
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        let x = rt.shared_with(w * h, |i| (i % 1009) as u32).unwrap();
        let mut y = rt.shared::<u32>(w * h).unwrap();
        let at = |i: isize| if i < 0 || i >= (w * h) as isize { 0 } else { (i % 1009) as u32 };

        fn three(_: Group, (): (), x: HaloPart<'_, u32>, y: &mut [u32]) {
            for (i, y) in x.own().zip(y) {
                let get = |i: Option<usize>| i.and_then(|i| x.get(i)).copied().unwrap_or(0);
                *y = get(i.checked_sub(1)) + x[i] + get(i.checked_add(1));
            }
        }
        rt.launch(&Kernel::new("three", (), (halo(1000, 1), each_out(1000)), three), (&x, &mut y)).unwrap();
        assert!((0..w * h).all(|i| y[i] == at(i as isize - 1) + at(i as isize) + at(i as isize + 1)), "{how}, halo");

        fn above(_: Group, w: u32, x: HaloPart<'_, u32>, y: &mut [u32]) {
            for (i, y) in x.own().zip(y) {
                *y = i.checked_sub(w as usize).map_or(0, |i| x[i]);
            }
        }
        let k = Kernel::new("above", w as u32, (halo_rows(w, 7, 1), rows_out(w, 7)), above);
        rt.launch(&k, (&x, &mut y)).unwrap();
        assert!((0..w * h).all(|i| y[i] == at(i as isize - w as isize)), "{how}, rows");

        fn first_of_row(g: Group, (): (), x: &[u32], all: &[u32], y: &mut [u32]) {
            y.fill(x[0] + all[all.len() - 1] + g.index() as u32);
        }
        let k = Kernel::new("first_of_row", (), (rows(w, 1), whole(), rows_out(w, 1)), first_of_row);
        let tail = x.range(w * h - 5..).unwrap();
        let aligned = if faults(&rt) { tail.len() } else { 0 };
        if aligned > 0 {
            rt.launch(&k, (&x, &tail, &mut y)).unwrap();
            assert_eq!(y[3 * w + 5], at(3 * w as isize) + at((w * h) as isize - 1) + 3, "{how}, whole");
        }

        fn count(_: Group, (): (), x: &[u32], bins: &[AtomicU32]) {
            for v in x {
                bins[*v as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut bins = rt.shared_with(1009, |_| 5_u32).unwrap();
        rt.launch(&Kernel::new("count", (), (each(10_000), scatter::<u32>()), count), (&x, &mut bins)).unwrap();
        let expect = |b: usize| 5 + (w * h / 1009 + usize::from(b < w * h % 1009)) as u32;
        assert!(bins.iter().enumerate().all(|(b, n)| *n == expect(b)), "{how}, scatter");

        fn once(_: Group, (): (), bins: &[AtomicU32]) {
            bins[0].fetch_add(1, Ordering::Relaxed);
        }
        let before = bins[0];
        rt.launch(&Kernel::new("once", (), (scatter::<u32>(),), once).groups(77), (&mut bins,)).unwrap();
        assert_eq!(bins[0], before + 77, "{how}, explicit groups");

        fn place(group: Group, (): (), y: &mut [u32]) {
            let [gx, gy, gz] = group.id;
            y.fill(gx + 100 * gy + 10_000 * gz + 1_000_000 * group.grid[1]);
        }
        let mut y = rt.shared::<u32>(5 * 7 * 3 * 4096).unwrap();
        rt.launch(&Kernel::new("place", (), (each_mut(4096),), place).grid([5, 7, 3]), (&mut y,)).unwrap();
        let at = |i: usize| (i / 4096 % 5 + 100 * (i / 4096 / 5 % 7) + 10_000 * (i / 4096 / 35) + 7_000_000) as u32;
        assert!(y.iter().enumerate().all(|(i, v)| *v == at(i)), "{how}, a grid of three dimensions");
    }
}

#[test]
fn two_devices_hand_the_same_bytes_to_and_fro() {
    const N: usize = 1_000_000;
    let _limit = limit();
    for (how, second) in kinds(8 * MIB) {
        let rt = runtime_of(&[small(8 * MIB), second]);
        let [a, b] = &rt.devices()[..] else { panic!("two devices") };
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        for round in 0..6 {
            rt.on(a).launch(&add(1), (&mut x,)).unwrap();
            rt.on(b).launch(&add(10), (&mut x,)).unwrap();
            if round == 3 {
                x[9] += 100; // the host has it in between
            }
        }
        let mut ya = rt.shared::<u64>(1).unwrap();
        let mut yb = rt.shared::<u64>(1).unwrap();
        rt.on(a).launch(&sum(), (&x, &mut ya)).unwrap();
        rt.on(b).launch(&sum(), (&x, &mut yb)).unwrap();
        let total: u64 = (0..N as u64).map(|i| i + 66).sum::<u64>() + 100;
        assert_eq!((ya[0], yb[0]), (total, total), "{how}");
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 66 + if i == 9 { 100 } else { 0 }), "{how}");
        let s = rt.stats();
        assert!(s.devices.iter().all(|d| d.launches == 7 && d.to_device.total() > 0), "{s}");
        let halves = if faults(&rt) { N / 2 + 1 } else { 512 * PAGE_ELEMS };
        let (mut l, mut r) = x.split_at_mut(halves).unwrap();
        for _ in 0..5 {
            rt.on(a).launch(&add(1), (&mut l,)).unwrap();
            rt.on(b).launch(&add(2), (&mut r,)).unwrap();
        }
        assert_eq!((l[0], r[0]), (66 + 5, halves as u32 + 66 + 10), "{how}");
        assert_eq!(r.len(), N - halves);
        let extra = |i: usize| if i == 9 { 100 } else { 0 };
        let wrong = l.iter().enumerate().find(|(i, v)| **v != *i as u32 + 71 + extra(*i));
        assert_eq!(wrong, None, "{how}, left of {halves}");
        let wrong = r.iter().enumerate().find(|(i, v)| **v != (*i + halves) as u32 + 76);
        assert_eq!(wrong, None, "{how}, right of {halves}");
    }
}

#[test]
fn devices_that_cannot_fault_take_turns_with_what_fits() {
    let _limit = limit();
    let rt = runtime(CpuConfig { grain: 64 << 10, ..rigid(8 * MIB) });
    let per = 3 * MIB / 4; // 3 MiB each: two fit, four do not
    let mut all: Vec<_> = (0..4).map(|k| rt.shared_with(per, |i| (i + k) as u32).unwrap()).collect();
    for round in 0..5 {
        for x in &mut all {
            rt.launch(&add(1), (x,)).unwrap();
        }
        let [a, b, ..] = &mut all[..] else { panic!() };
        rt.launch(&copy_add(round), (&*a, &mut *b)).unwrap();
        rt.launch(&add(0), (&mut *b,)).unwrap();
        rt.launch(&copy_add(0_u32.wrapping_sub(round).wrapping_add(1)), (&*b, &mut *a)).unwrap();
        rt.launch(&copy_add(u32::MAX), (&*a, b)).unwrap();
    }
    let k0 = |i: usize| i as u32 + 5 + 5;
    assert!(all[0].iter().enumerate().all(|(i, v)| *v == k0(i)));
    assert!(all[1].iter().enumerate().all(|(i, v)| *v == k0(i) - 1));
    assert!(all[2].iter().enumerate().all(|(i, v)| *v == (i + 2 + 5) as u32));
    assert!(all[3].iter().enumerate().all(|(i, v)| *v == (i + 3 + 5) as u32));
    assert!(rt.stats().devices[0].evictions > 0);

    // More than there is, in one launch or in several.
    let mut big = rt.shared_with(10 * MIB / 4, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut big,)).unwrap().wait().unwrap();
    assert!(rt.stats().devices[0].parts > 1);
    for mut c in big.chunks_mut(MIB) {
        rt.launch(&add(1), (&mut c,)).unwrap();
    }
    assert!(big.iter().enumerate().all(|(i, v)| *v == i as u32 + 2));
}

#[test]
fn making_room_never_takes_what_the_launch_itself_needs() {
    let _limit = limit();
    let rt = runtime(rigid(8 * MIB));
    let mut x = rt.shared::<u32>(6 * MIB / 4).unwrap(); // three blocks
    let mut z = rt.shared::<u32>(4 * MIB / 4).unwrap();
    let mut third = x.range_mut(4 * MIB / 4..).unwrap();
    rt.launch(&add(1), (&mut third,)).unwrap().wait().unwrap();
    rt.launch(&add(1), (&mut z,)).unwrap().wait().unwrap();
    // 6 of 8 MiB are in use; `x` needs 4 more, and its own third block is the one that was used longest ago.
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert!(x.iter().enumerate().all(|(i, v)| *v == 1 + u32::from(i >= MIB)));
}

#[test]
fn prefetches_are_right_in_both_directions_and_cost_the_launch_nothing() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        let dev = &rt.devices()[0];
        let mut x = rt.shared_with(500_000, |i| i as u32).unwrap();
        let pages = x.residency().pages;
        x.prefetch_to(dev);
        rt.sync().unwrap();
        let r = x.residency();
        assert_eq!((r.devices[0].pages, r.host, r.lost), (pages, pages, 0), "{how}: {r}");
        let (moved, grain) = (rt.stats().devices[0].to_device.by(Cause::Prefetch), rt.devices()[0].caps().grain);
        assert!((pages * 4096..pages * 4096 + grain.max(64 << 10)).contains(&moved), "{how}: {moved} for {pages} pages");
        let mut total = rt.shared::<u64>(1).unwrap();
        rt.launch(&sum(), (&x, &mut total)).unwrap();
        assert_eq!(total[0], (0..500_000).sum::<u64>(), "{how}");
        assert!(rt.stats().devices[0].to_device.by(Cause::Launch) <= 1 << 21, "{how}: {}", rt.stats());
        rt.launch(&add(1), (&mut x,)).unwrap();
        rt.sync().unwrap();
        x.prefetch_to_host();
        rt.sync().unwrap();
        let r = x.residency();
        assert_eq!(r.host, pages, "{how}: {r}");
        assert!(rt.stats().devices[0].to_host.by(Cause::Prefetch) >= pages * 4096, "{how}");
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
        for round in 0..10 {
            x.prefetch_to(dev);
            x.fill_with(|i| i as u32 ^ round).unwrap(); // while the pages travel
            rt.launch(&sum(), (&x, &mut total)).unwrap();
            assert_eq!(total[0], (0..500_000_u32).map(|i| u64::from(i ^ round)).sum::<u64>(), "{how}, round {round}");
            x.prefetch_to(dev);
            x.iter_mut().for_each(|v| *v += 1);
            rt.launch(&sum(), (&x, &mut total)).unwrap();
            assert_eq!(total[0], (0..500_000_u32).map(|i| u64::from(i ^ round) + 1).sum::<u64>(), "{how}, round {round}");
        }
    }
}

#[test]
fn counters_say_why() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared_with(MIB / 4, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap();
    rt.sync().unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap();
    rt.sync().unwrap();
    let s = &rt.stats().devices[0];
    assert_eq!((s.launches, s.resident_launches, s.to_device.by(Cause::Launch)), (2, 1, MIB as u64), "{}", rt.stats());
    let r = x.residency();
    assert_eq!((r.host, r.devices[0].pages, r.replicated), (0, 256, 0));
    assert_eq!(x[0], 2);
    let s = rt.stats();
    let (cause, bytes) = if faults(&rt) { (Cause::HostFault, 65536) } else { (Cause::HostAccess, MIB as u64) };
    assert_eq!(s.devices[0].to_host.by(cause), bytes, "{s}");
    let mut c = x.range_mut(..16 * 1024).unwrap();
    rt.launch(&add(1), (&mut c,)).unwrap();
    rt.sync().unwrap();
    rt.launch(&add(1), (&mut c,)).unwrap();
    rt.sync().unwrap();
    assert_eq!(rt.stats().devices[0].resident_launches, 2, "a part of a block can be resident: {}", rt.stats());
}

#[derive(Default)]
struct Spy(&'static str);
static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
impl Policy for Spy {
    fn name(&self) -> &'static str {
        self.0
    }
    fn launch(&mut self, e: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        let arg = |a: &sterna::policy::ArgEvent| format!("{:?} {:?}", a.bytes, a.access);
        EVENTS.lock().unwrap().push(format!("{} {:?}", e.budget, e.args.iter().map(arg).collect::<Vec<_>>()));
        places.push(Place::Remote); // one of two: the rest counts as `Migrate`
    }
    fn allocated(&mut self, bytes: u64) -> FaultRule {
        EVENTS.lock().unwrap().push(format!("allocated {bytes}"));
        FaultRule::default()
    }
}

#[test]
fn policies_decide_by_name_and_by_code() {
    let _limit = limit();
    let mut seen = Vec::new();
    for name in sterna::policy::NAMES {
        for (how, config) in kinds(8 * MIB) {
            let rt = Runtime::builder().open_device(device(config)).policy(name).unwrap().build().unwrap();
            let x = rt.shared_with(200_000, |i| i as u32).unwrap();
            let mut y = rt.shared::<u32>(200_000).unwrap();
            rt.launch(&copy_add(5), (&x, &mut y)).unwrap();
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 5), "{name}, {how}");
            let s = rt.stats();
            assert_eq!(s.policy, name);
            if how == "faulting" {
                let d = &s.devices[0];
                seen.push((d.to_device.by(Cause::Launch) > 0, d.device_faults > 0, d.mapped_remote > 0));
            }
        }
    }
    let (moved, faulted, in_place) = ((true, false, false), (false, true, false), (false, false, true));
    assert_eq!(seen, [moved, moved, faulted, in_place], "{:?}", sterna::policy::NAMES);
    let rt = Runtime::builder().open_device(device(small(8 * MIB))).custom_policy(Spy("spy")).build().unwrap();
    let x = rt.shared_with(1000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(1000).unwrap();
    rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
    assert_eq!(y[999], 1000);
    let want = format!("{} {:?}", 8 << 20, [format!("0..4000 {:?}", Access::Read), format!("0..4000 {:?}", Access::Write)]);
    assert_eq!(*EVENTS.lock().unwrap(), ["allocated 4000".to_string(), "allocated 4000".into(), want]);
    let s = rt.stats();
    assert_eq!((s.policy, s.devices[0].mapped_remote, s.devices[0].to_device.total()), ("spy", 65536, 0), "{s}");
    assert_eq!(x.residency().devices[0].in_place, 16.min(x.residency().pages), "{}", x.residency());
}

#[test]
fn elements_wider_than_a_chunk_and_kernels_that_share_nothing() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<[u64; 3]>(10_001).unwrap();
    rt.launch(&sterna::kernels::fill([1_u64, 2, 3]), (&mut x,)).unwrap();
    assert!(x.iter().all(|v| *v == [1, 2, 3]));
    fn body(g: Group, (): (), y: &mut [[u64; 3]]) {
        y.iter_mut().for_each(|y| y[1] += g.index() as u64);
    }
    rt.launch(&Kernel::new("index", (), (each_mut(100),), body), (&mut x,)).unwrap();
    assert!(x.iter().enumerate().all(|(i, v)| *v == [1, 2 + (i / 100) as u64, 3]));
}

/// A policy is the program's own code.
#[test]
fn a_policy_that_panics_fails_the_launch_and_no_other() {
    let _limit = limit();
    struct Nervous(u32);
    impl Policy for Nervous {
        fn name(&self) -> &'static str {
            "nervous"
        }
        fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
            self.0 += 1;
            assert!(self.0 != 2, "not again");
            places.extend(event.args.iter().map(|_| Place::Migrate));
        }
    }
    for (how, config) in kinds(8 * MIB) {
        let rt = Runtime::builder().open_device(device(config)).custom_policy(Nervous(0)).build().unwrap();
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let mut y = rt.shared_with(100_000, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        let e = rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap_err();
        assert!(matches!(e, Error::Policy { kernel: "add" }), "{how}: {e:?}");
        assert!(matches!(y.try_read(), Err(Error::Policy { .. })), "{how}");
        y.fill_with(|i| i as u32).unwrap();
        rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 2), "{how}");
    }
}

#[test]
fn a_policy_that_panics_at_an_allocation_has_said_nothing() {
    let _limit = limit();
    struct Nervous;
    impl Policy for Nervous {
        fn name(&self) -> &'static str {
            "nervous"
        }
        fn launch(&mut self, _: &LaunchEvent<'_>, _: &mut Vec<Place>) {}
        fn allocated(&mut self, _: u64) -> FaultRule {
            panic!("not that many")
        }
    }
    let dev = device(small(8 * MIB));
    let open: Arc<dyn sterna::hal::Device> = Arc::clone(&dev) as _;
    let rt = Runtime::builder().open_device(open).custom_policy(Nervous).build().unwrap();
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    // Every way to an allocation.
    let copy = x.cow_clone().unwrap();
    let rest = x.split_off(65_536).unwrap();
    let path = std::env::temp_dir().join(format!("sterna-nervous-{}", std::process::id()));
    std::fs::write(&path, [7_u8; 8192]).unwrap();
    let read = rt.read_file::<u8>(&path).unwrap();
    // SAFETY: the file is this test's own.
    let mapped = unsafe { rt.map_file::<u8>(&path) }.unwrap();
    assert!(read.iter().chain(mapped.iter()).all(|v| *v == 7));
    assert!(x.iter().chain(rest.iter()).zip(copy.iter()).enumerate().all(|(i, v)| v == (&(i as u32 + 1), &(i as u32 + 1))));
    std::fs::remove_file(path).unwrap();
    drop((x, rest, copy, read, mapped, rt));
    eventually("everything is given back", || dev.memory().in_use == 0 && Arc::strong_count(&dev) == 1);
}

#[test]
fn a_policy_that_panics_at_its_name_makes_no_runtime() {
    let _limit = limit();
    struct Nameless;
    impl Policy for Nameless {
        fn name(&self) -> &'static str {
            panic!("none")
        }
        fn launch(&mut self, _: &LaunchEvent<'_>, _: &mut Vec<Place>) {}
    }
    let dev = device(small(8 * MIB));
    let open = || Runtime::builder().open_device(Arc::clone(&dev) as Arc<dyn sterna::hal::Device>);
    let e = open().custom_policy(Nameless).build().unwrap_err();
    assert!(matches!(e, Error::Invalid { what } if what.contains("policy")), "{e:?}");
    assert_eq!(Arc::strong_count(&dev), 1);
    let rt = open().build().unwrap();
    assert_eq!(rt.shared_with(1000, |i| i as u32).unwrap()[999], 999);
}

/// What a panic carries is the program's, too.
#[test]
fn a_policy_whose_panic_panics_again_fails_the_launch_and_no_other() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    struct Carries(u32);
    impl Policy for Carries {
        fn name(&self) -> &'static str {
            "carries"
        }
        fn launch(&mut self, _: &LaunchEvent<'_>, _: &mut Vec<Place>) {
            self.0 += 1;
            if self.0 <= 2 {
                std::panic::panic_any(Bomb);
            }
        }
    }
    let _limit = limit();
    let rt = Runtime::builder().open_device(device(small(8 * MIB))).custom_policy(Carries(0)).build().unwrap();
    for _ in 0..2 {
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let e = rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap_err();
        assert!(matches!(e, Error::Policy { kernel: "add" }), "{e:?}");
    }
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap();
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
}

/// Records are made accessible in steps: whichever allocation is the newest, launches may use it at once, whatever its size.
#[test]
fn the_newest_of_any_number_of_allocations_can_be_launched_on() {
    let _limit = limit();
    for elems in [10, 700_000] {
        let rt = Runtime::builder().open_device(device(small(8 * MIB))).build().unwrap();
        let mut all = Vec::new();
        for i in 0..1100_u32 {
            let mut x = rt.shared::<u32>(elems).unwrap();
            rt.launch(&add(i), (&mut x.range_mut(..elems.min(16_384)).unwrap(),)).unwrap();
            all.push(x);
        }
        let wrong = all.iter().enumerate().find(|(i, x)| x[9] != *i as u32);
        assert!(wrong.is_none(), "{elems} elements: {wrong:?}");
    }
}
