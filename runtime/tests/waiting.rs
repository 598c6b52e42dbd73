//! Nobody waits for strangers: a discard, a cut, a launch or a guard waits for what has to do with its own pages. Times are compared with
//! those of the same run.

mod common;

use std::time::{Duration, Instant};

use common::*;
use sterna::cpu::CpuConfig;
use sterna::kernel::{Each, EachOut, Group, Kernel, each, each_out};
use sterna::{Mechanism, Runtime, Shared};

#[path = "support/mod.rs"]
mod support;
use support::under_each;

const LIMIT: Duration = Duration::from_secs(80);

/// A runtime whose device makes each copy arrive late, so that a move of 128 MiB takes half a second everywhere: a
/// launch beside it waits for two copies, for one of the move that is under way and for its own.
fn late() -> (Runtime, std::sync::Arc<sterna::cpu::CpuDevice>) {
    let dev = device(CpuConfig { memory: 256 << 20, ..small(0) });
    dev.inject().delay_copies(Duration::from_millis(40));
    (over(&dev), dev)
}

fn big(rt: &Runtime) -> Shared<u32> {
    rt.shared_with(32 << 20, |i| i as u32).unwrap()
}

/// How long `what` took beside a move of 128 MiB, and how long the move took.
fn beside_a_move(rt: &Runtime, what: impl FnOnce()) -> (Duration, Duration) {
    let big = big(rt);
    let start = Instant::now();
    big.prefetch_to(&rt.devices()[0]);
    let asked = Instant::now();
    what();
    let took = asked.elapsed();
    rt.sync().unwrap();
    let all = start.elapsed();
    assert_eq!(big.residency().devices[0].pages, big.residency().pages, "the move goes on");
    assert!(all > Duration::from_millis(200), "the move took {all:?}: nothing can be seen beside it");
    (took, all)
}

#[track_caller]
fn a_fraction((took, all): (Duration, Duration), what: &str) {
    assert!(took < all / 3, "{what} took {took:?} beside a move of something else that took {all:?}");
}

#[test]
fn dropping_contents_does_not_wait_for_a_move_of_something_else() {
    under_each("dropping_contents_does_not_wait_for_a_move_of_something_else", LIMIT, |m| {
        let (rt, _dev) = late();
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        a_fraction(beside_a_move(&rt, || x.discard(..).unwrap()), &format!("{m}: a discard"));
        assert!(x.iter().all(|x| *x == 0), "{m}");
        let mut y = rt.shared_with(100_000, |i| i as u32).unwrap();
        a_fraction(beside_a_move(&rt, || y.truncate(5_000).unwrap()), &format!("{m}: a truncate"));
        assert!(y.iter().enumerate().all(|(i, y)| *y == i as u32), "{m}");
    });
}

#[test]
fn filling_does_not_wait_for_a_move_of_something_else() {
    under_each("filling_does_not_wait_for_a_move_of_something_else", LIMIT, |m| {
        let (rt, _dev) = late();
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        a_fraction(beside_a_move(&rt, || x.fill_with(|_| 7).unwrap()), &format!("{m}: fill_with"));
        a_fraction(
            beside_a_move(&rt, || drop(rt.shared_with(100_000, |i| i as u32).unwrap())),
            &format!("{m}: shared_with"),
        );
        a_fraction(beside_a_move(&rt, || x[5] = 8), &format!("{m}: a store"));
        assert_eq!((x[4], x[5]), (7, 8), "{m}");
    });
}

/// It finds no page on the device, so that it cannot be submitted at once.
#[test]
fn a_launch_goes_before_the_rest_of_a_move() {
    under_each("a_launch_goes_before_the_rest_of_a_move", LIMIT, |m| {
        let (rt, _dev) = late();
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let launch = || rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        a_fraction(beside_a_move(&rt, launch), &format!("{m}: a launch"));
        assert!(x.iter().enumerate().all(|(i, x)| *x == i as u32 + 1), "{m}");
    });
}

#[test]
fn a_launch_waits_for_the_part_of_a_move_that_it_needs() {
    under_each("a_launch_waits_for_the_part_of_a_move_that_it_needs", LIMIT, |m| {
        let (rt, _dev) = late();
        let mut big = big(&rt);
        let start = Instant::now();
        big.prefetch_to(&rt.devices()[0]);
        let asked = Instant::now();
        {
            let mut part = big.range_mut((31 << 20)..(31 << 20) + 65_536).unwrap();
            rt.launch(&add(1), (&mut part,)).unwrap().wait().unwrap();
        }
        let took = asked.elapsed();
        rt.sync().unwrap();
        a_fraction((took, start.elapsed()), &format!("{m}: a launch over a part"));
        assert_eq!(big.residency().devices[0].pages, big.residency().pages, "{m}");
        let right = |i: usize| i as u32 + u32::from(((31 << 20)..(31 << 20) + 65_536).contains(&i));
        assert!(big.iter().enumerate().all(|(i, x)| *x == right(i)), "{m}");
    });
}

/// Once it returns, the move brings nothing of it any more.
#[test]
fn contents_dropped_under_a_move_stay_dropped() {
    under_each("contents_dropped_under_a_move_stay_dropped", LIMIT, |m| {
        let (rt, _dev) = late();
        let mut big = big(&rt);
        big.prefetch_to(&rt.devices()[0]);
        let half = 16 << 20;
        big.discard(half..).unwrap();
        rt.sync().unwrap();
        let there = big.residency();
        assert!(there.devices[0].pages <= there.pages / 2, "{m}: {} of {} pages", there.devices[0].pages, there.pages);
        assert!(big[half..].iter().all(|x| *x == 0) && big[..half].iter().enumerate().all(|(i, x)| *x == i as u32), "{m}");
    });
}

/// `y[i] = x[i]`, or as soon as the hold is opened.
fn held(hold: &'static Hold) -> Kernel<(Each<u32>, EachOut<u32>)> {
    fn body(_: Group, at: usize, x: &[u32], y: &mut [u32]) {
        // SAFETY: the address of a static.
        unsafe { &*std::ptr::with_exposed_provenance::<Hold>(at) }.wait();
        y.copy_from_slice(x);
    }
    Kernel::new("held", std::ptr::from_ref(hold).expose_provenance(), (each(1 << 20), each_out(1 << 20)), body)
}

/// Elements of what is held: not a block.
const N: usize = 1 << 19; // 2 MiB: whole grains of every kind of device

#[test]
fn a_launch_that_waits_for_another_device_holds_up_nobody() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        let hold: &'static Hold = Box::leak(Box::new(Hold::new()));
        let rt = runtime_of(&[config.clone(), config.clone()]);
        let (mut x, mut y) = (rt.shared_with(N, |i| i as u32).unwrap(), rt.shared::<u32>(N).unwrap());
        let mut z = rt.shared::<u32>(N).unwrap();
        let mut other = rt.shared_with(N, |i| i as u32).unwrap();
        let mut third = rt.shared_with(N, |i| i as u32).unwrap();
        let slow = rt.launch(&held(hold), (&x, &mut y)).unwrap();
        hold.entered();
        let second = &rt.devices()[1];
        // It waits for the first device; so does one that waits for it, and one that writes what the first reads.
        let behind = rt.on(second).launch(&copy_add(1), (&y, &mut z)).unwrap();
        let last = rt.on(&rt.devices()[0]).launch(&add(5), (&mut z,)).unwrap();
        let writer = rt.on(second).launch(&add(100), (&mut x,)).unwrap();
        // Nobody else does, on either device.
        rt.on(second).launch(&add(2), (&mut other,)).unwrap().wait().unwrap();
        other[3] = 7;
        rt.on(second).launch(&add(2), (&mut other,)).unwrap().wait().unwrap();
        third.discard(..N / 2).unwrap();
        third.prefetch_to(second);
        eventually("a move to the other device", || third.residency().devices[1].pages > 0);
        third.prefetch_to_host();
        eventually("a move home", || third.residency().host > 0);
        third.truncate(N / 4).unwrap();
        for p in [&slow, &behind, &last, &writer] {
            assert!(!p.is_done(), "{how}: it has to wait");
        }
        hold.release();
        rt.sync().unwrap();
        let all = |s: &Shared<u32>, right: &dyn Fn(usize) -> u32| s.iter().enumerate().all(|(i, v)| *v == right(i));
        assert!(all(&y, &|i| i as u32) && all(&z, &|i| i as u32 + 6) && all(&x, &|i| i as u32 + 100), "{how}");
        assert!(all(&other, &|i| if i == 3 { 9 } else { i as u32 + 4 }), "{how}");
        assert!(third.len() == N / 4 && third.iter().all(|v| *v == 0), "{how}");
    }
}

/// Halves of one allocation, on two devices: neither asks anything of the other.
#[test]
fn launches_on_other_bytes_of_an_allocation_do_not_wait_for_each_other() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        let hold: &'static Hold = Box::leak(Box::new(Hold::new()));
        let rt = runtime_of(&[config.clone(), config.clone()]);
        let x = rt.shared_with(N, |i| i as u32).unwrap();
        let mut both = rt.shared::<u32>(4 << 20).unwrap();
        let slow = {
            let (mut low, mut high) = both.split_at_mut(2 << 20).unwrap();
            let slow = rt.launch(&held(hold), (&x, &mut low.range_mut(..N).unwrap())).unwrap();
            hold.entered();
            let second = &rt.devices()[1];
            rt.on(second).launch(&add(1), (&mut high,)).unwrap().wait().unwrap();
            // Resident by now; and what both read.
            rt.on(second).launch(&add(1), (&mut high,)).unwrap().wait().unwrap();
            slow
        };
        assert!(!slow.is_done(), "{how}");
        hold.release();
        slow.wait().unwrap();
        assert!(both[..N].iter().enumerate().all(|(i, v)| *v == i as u32), "{how}");
        assert!(both[2 << 20..].iter().all(|v| *v == 2), "{how}");
    }
}

/// A part that is dropped goes when the launch that uses it has ended; who comes behind does not wait for that.
#[test]
fn a_part_dropped_under_a_launch_holds_up_nobody() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        let hold: &'static Hold = Box::leak(Box::new(Hold::new()));
        let rt = runtime(config);
        let x = rt.shared_with(N, |i| i as u32).unwrap();
        let mut whole = rt.shared_with(2 * N, |i| i as u32).unwrap();
        let mut part = whole.split_off(N).unwrap();
        let slow = rt.launch(&held(hold), (&x, &mut part)).unwrap();
        hold.entered();
        drop(part);
        let mut other = rt.shared_with(N, |i| i as u32).unwrap();
        other.prefetch_to(&rt.devices()[0]);
        eventually("a move behind it", || other.residency().devices[0].pages > 0);
        other.discard(..).unwrap();
        assert!(!slow.is_done(), "{how}");
        hold.release();
        rt.sync().unwrap();
        assert!(whole.iter().enumerate().all(|(i, v)| *v == i as u32) && other[7] == 0, "{how}");
    }
}

/// Many launches, some behind others on another device, in an order that must come out as if one after another.
#[test]
fn launches_by_turns_on_two_devices_come_out_in_the_order_of_asking() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        let rt = runtime_of(&[config.clone(), config.clone()]);
        let mut all: Vec<Shared<u32>> = (0..4).map(|k| rt.shared_with(3000, |i| (i * k) as u32).unwrap()).collect();
        let mut expect: Vec<Vec<u32>> = all.iter().map(|s| s.to_vec()).collect();
        let mut seed = 0x9E37_79B9_u64;
        for step in 0..300_u32 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let (from, to) = ((seed % 4) as usize, (seed >> 8) as usize % 4);
            let on = &rt.devices()[(seed >> 16) as usize % 2];
            if from == to {
                rt.on(on).launch(&add(step), (&mut all[to],)).unwrap();
                expect[to].iter_mut().for_each(|v| *v = v.wrapping_add(step));
            } else {
                let [x, y] = all.get_disjoint_mut([from, to]).unwrap();
                rt.on(on).launch(&copy_add(step), (&*x, y)).unwrap();
                expect[to] = expect[from].iter().map(|v| v.wrapping_add(step)).collect();
            }
            match seed >> 24 & 31 {
                0 => all[to].prefetch_to(on),
                1 => all[to].prefetch_to_host(),
                2 => assert_eq!(all[to][5], expect[to][5], "{how}, step {step}"),
                3 => {
                    all[to].discard(..).unwrap();
                    expect[to].fill(0);
                }
                _ => {}
            }
        }
        for (s, e) in all.iter().zip(&expect) {
            assert_eq!(s[..], e[..], "{how}");
        }
    }
}

/// What a change of the space waits for is the launches on its pages, not those on its block.
#[test]
fn protecting_a_page_does_not_wait_for_a_launch_on_another() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        if config.grain > 1 << 20 {
            continue; // entries are for whole grains
        }
        let hold: &'static Hold = Box::leak(Box::new(Hold::new()));
        let rt = runtime(config);
        if rt.stats().mechanism == Mechanism::None {
            return;
        }
        let x = rt.shared_with(1000, |i| i as u32).unwrap();
        let mut y = rt.shared_with(300_000, |i| i as u32).unwrap();
        let pages = y.range(200_000..201_000).unwrap().pages();
        let slow = rt.launch(&held(hold), (&x, &mut y.range_mut(..1000).unwrap())).unwrap();
        hold.entered();
        // SAFETY: no reference lives, and nobody stores to them.
        unsafe { rt.space().protect(&pages, sterna::hmm::Prot::Read) }.unwrap();
        assert!(!slow.is_done(), "{how}");
        hold.release();
        slow.wait().unwrap();
        assert_eq!((y[5], y[200_500]), (5, 200_500), "{how}");
    }
}
