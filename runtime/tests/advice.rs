//! Hints: what each changes, and that none changes a byte. On every kind of device.

mod common;

use common::*;
use sterna::cpu::CpuConfig;
use sterna::{Advice, Cause, Location, Mechanism, Runtime, Shared};

/// Elements: three blocks and a part of a page.
const N: usize = 3 * 524_288 + 77;

fn total(x: &Shared<u32>) -> u64 {
    x.iter().map(|x| u64::from(*x)).sum()
}

/// Devices that keep their memory to themselves: what the host loads of theirs has to be copied.
fn private(memory: usize) -> Vec<(&'static str, CpuConfig)> {
    kinds(memory).into_iter().filter(|(_, c)| !c.coherent).collect()
}

#[track_caller]
fn sums(rt: &Runtime, x: &Shared<u32>, how: &str) {
    let mut s = rt.shared::<u64>(1).unwrap();
    rt.launch(&sum(), (x, &mut s)).unwrap();
    assert_eq!(s[0], total(x), "{how}");
}

fn host_faults(rt: &Runtime) -> u64 {
    rt.stats().devices.iter().map(|d| d.host_faults).sum()
}

#[test]
fn loads_of_the_host_leave_devices_their_copies() {
    let _limit = limit();
    for (how, config) in private(32 * MIB) {
        for advised in [true, false] {
            let rt = runtime(config.clone());
            let x = rt.shared_with(N, |i| i as u32 ^ 5).unwrap();
            if advised {
                x.advise(Advice::ReadMostly);
            }
            sums(&rt, &x, how);
            let (moved, faults) = (rt.stats().to_device(), host_faults(&rt));
            for _ in 0..4 {
                sums(&rt, &x, how);
            }
            let again = rt.stats().to_device() - moved;
            if advised {
                assert_eq!(again, 0, "{how}: copied again");
                assert_eq!(x.residency().replicated, x.residency().pages, "{how}");
                // The sum itself comes home each time; parked, it counts twice.
                assert!(host_faults(&rt) - faults <= 8, "{how}: {} faults", host_faults(&rt) - faults);
            } else if faulting(&rt) {
                assert!(again >= 4 * (N as u64) * 4, "{how}: the control has to copy, copied {again}");
            }
        }
    }
}

fn faulting(rt: &Runtime) -> bool {
    rt.stats().mechanism != Mechanism::None
}

#[test]
fn stores_of_either_side_end_the_other_copies() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        let rt = runtime_of(&[config.clone(), config]);
        let devices = rt.devices().to_vec();
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        x.advise(Advice::ReadMostly);
        let mut expect: u64 = total(&x);
        for round in 0..10_usize {
            for d in &devices {
                let mut s = rt.shared::<u64>(1).unwrap();
                rt.on(d).launch(&sum(), (&x, &mut s)).unwrap();
                assert_eq!(s[0], expect, "{how}, {round}: a device");
            }
            assert_eq!(total(&x), expect, "{how}, {round}: the host");
            // A page, a neighbour in its granule, and the last page.
            for i in [round * 131_071, round * 131_071 + 1030, N - 1] {
                let add = (round + i) as u32 % 1000;
                x[i] += add;
                expect += u64::from(add);
            }
            let d = &devices[round % 2];
            if round % 3 == 0 {
                rt.on(d).launch(&add(1), (&mut x,)).unwrap();
                expect += N as u64;
            }
        }
        assert_eq!(total(&x), expect, "{how}");
    }
}

#[test]
fn what_a_device_wrote_stays_there_when_the_host_has_loaded_it() {
    let _limit = limit();
    for (how, config) in private(32 * MIB) {
        let rt = runtime(config);
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        x.advise(Advice::ReadMostly);
        for round in 1..4 {
            rt.launch(&add(1), (&mut x,)).unwrap();
            assert_eq!(x[N / 2], (N / 2) as u32 + round, "{how}");
            let _ = total(&x);
            let moved = rt.stats().to_device();
            sums(&rt, &x, how);
            assert_eq!(rt.stats().to_device(), moved, "{how}: copied back");
        }
        // An entry for stores is left from the launch that wrote: it must not let a later one write unnoticed.
        x.iter().enumerate().for_each(|(i, v)| assert_eq!(*v, i as u32 + 3, "{how}"));
    }
}

/// Fails if `stores_of_either_side_end_the_other_copies` could not see a copy that outlives a store.
#[cfg(feature = "planted")]
#[test]
fn planted_copies_that_outlive_a_store_are_seen() {
    let name = "planted_copies_that_outlive_a_store_are_seen";
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = runtime(small(32 * MIB));
    if !faulting(&rt) {
        return; // the gate ends copies there
    }
    let mut x = rt.shared_with(N, |i| i as u32).unwrap();
    x.advise(Advice::ReadMostly);
    sums(&rt, &x, "right so far");
    sterna::hmm::planted::REPLICA_KEPT_AT_STORE.store(true, std::sync::atomic::Ordering::SeqCst);
    x[70_000] += 1;
    let mut s = rt.shared::<u64>(1).unwrap();
    rt.launch(&sum(), (&x, &mut s)).unwrap();
    assert_ne!(s[0], total(&x), "the defect goes unseen");
}

#[test]
fn system_calls_store_to_duplicated_pages() {
    let _limit = limit();
    let rt = runtime(small(32 * MIB));
    let mut x = rt.shared::<u32>(N).unwrap();
    x.advise(Advice::ReadMostly);
    for round in 0..3_u8 {
        sums(&rt, &x, "before");
        let file = std::env::temp_dir().join(format!("sterna-advice-{}", std::process::id()));
        std::fs::write(&file, vec![round + 1; 300_000]).unwrap();
        let mut f = std::fs::File::open(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        if rt.stats().mechanism == Mechanism::Transparent {
            std::io::Read::read_exact(&mut f, sterna::bytemuck::cast_slice_mut(&mut x[1000..76_000])).unwrap();
        } else {
            let mut guard = x.host_mut(1000..76_000).unwrap();
            std::io::Read::read_exact(&mut f, sterna::bytemuck::cast_slice_mut(&mut guard)).unwrap();
        }
        assert_eq!(x[75_999], u32::from_ne_bytes([round + 1; 4]));
        sums(&rt, &x, "after");
    }
    // And load from them.
    let guard = x.host(10..100_000).unwrap();
    let mut copy = tempfile();
    std::io::Write::write_all(&mut copy, sterna::bytemuck::cast_slice(&guard)).unwrap();
}

fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("sterna-advice-out-{}", std::process::id()));
    let f = std::fs::File::create(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    f
}

#[test]
fn a_store_beside_what_a_running_launch_reads() {
    use sterna::kernel::{Group, Kernel, each_out, whole};
    static HOLD: Hold = Hold::new();
    fn body(_: Group, (): (), x: &[u32], y: &mut [u64]) {
        HOLD.wait();
        y[0] = x.iter().map(|x| u64::from(*x)).sum();
    }
    let _limit = limit();
    let rt = runtime(small(32 * MIB));
    if !faulting(&rt) {
        return; // two sides cannot share a page there
    }
    let mut x = rt.shared_with(1 << 20, |_| 1_u32).unwrap();
    x.advise(Advice::ReadMostly);
    sums(&rt, &x, "copied");
    let mut s = rt.shared::<u64>(1).unwrap();
    {
        // Both halves have bytes of one page.
        let (low, mut high) = x.split_at_mut((1 << 19) + 500).unwrap();
        let held = Kernel::new("held", (), (whole(), each_out(1)), body);
        rt.launch(&held, (&low, &mut s)).unwrap();
        HOLD.entered();
        assert_eq!(low[(1 << 19) + 499], 1);
        high[0] = 7;
        high[1 << 18] = 9;
        HOLD.release();
    }
    assert_eq!(s[0], (1 << 19) + 500);
    sums(&rt, &x, "after");
    assert_eq!(total(&x), (1 << 20) + 6 + 8);
}

#[test]
fn a_hint_that_stores_contradict_is_dropped() {
    let _limit = limit();
    let rt = runtime(small(32 * MIB));
    if !faulting(&rt) {
        return; // nothing is noticed there, and nothing to be saved
    }
    let mut x = rt.shared_with(N, |i| i as u32).unwrap();
    x.advise(Advice::ReadMostly);
    for round in 0..40 {
        sums(&rt, &x, "a round");
        x[(round % 20) * 16_384] += 1;
    }
    sums(&rt, &x, "the end");
    let _ = x[5];
    assert!(x.residency().replicated < x.residency().pages, "the host's load still leaves every copy");
    x.unadvise(Advice::ReadMostly);
    x.advise(Advice::ReadMostly);
    sums(&rt, &x, "advised again");
    assert_eq!(x.residency().replicated, x.residency().pages);
}

#[test]
fn nothing_is_lost_with_a_device_that_has_copies_only() {
    let _limit = limit();
    let lossy = device(small(32 * MIB));
    let rt = over(&lossy);
    let mut x = rt.shared_with(N, |i| i as u32).unwrap();
    x.advise(Advice::ReadMostly);
    sums(&rt, &x, "before");
    let expect = total(&x);
    lossy.inject().lose();
    assert!(rt.launch(&add(1), (&mut rt.shared::<u32>(8).unwrap(),)).is_err() || rt.sync().is_err());
    assert_eq!(total(&x), expect);
    x[3] += 1;
    x[N - 1] += 1;
    assert_eq!(total(&x), expect + 2);
}

#[test]
fn duplicated_pages_in_what_an_owner_does() {
    let _limit = limit();
    for (how, config) in kinds(32 * MIB) {
        let rt = runtime(config);
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        x.advise(Advice::ReadMostly);
        sums(&rt, &x, how);
        let copy = x.cow_clone().unwrap();
        x[40_000] = 1;
        assert_eq!((copy[40_000], x[40_000]), (40_000, 1), "{how}");
        sums(&rt, &copy, how);
        sums(&rt, &x, how);
        x.discard(1024..300_000).unwrap();
        assert_eq!((x[1023], x[1024], x[40_000], x[300_000]), (1023, 0, 0, 300_000), "{how}");
        x[40_000] = 5; // a page without storage whose stores were watched
        sums(&rt, &x, how);
        x.truncate(N / 2).unwrap();
        let tail = x.split_off(N / 4).unwrap();
        if faulting(&rt) {
            sums(&rt, &tail, how); // else it would have to begin on a border of the device's
        }
        let fixed = x.into_read_only();
        assert_eq!(fixed[40_000], 5, "{how}");
    }
    // The addresses are used again by an allocation of which nothing was said.
    let rt = runtime(small(32 * MIB));
    let mut y = rt.shared::<u32>(N).unwrap();
    y.iter_mut().for_each(|v| *v += 1);
    assert_eq!(total(&y), N as u64);
}

#[test]
fn preferred_places_and_devices_that_access() {
    let _limit = limit();
    for (how, config) in private(32 * MIB) {
        let aliases = config.map_host;
        let rt = runtime(config);
        let device = rt.devices()[0].clone();
        let moved = |rt: &Runtime| rt.stats().devices[0].to_device.total();
        for advice in [Advice::PreferredLocation(Location::Host), Advice::AccessedBy(device.clone())] {
            let x = rt.shared_with(N, |i| i as u32).unwrap();
            x.advise(advice.clone());
            let before = moved(&rt);
            sums(&rt, &x, how);
            assert_eq!(moved(&rt) == before, aliases, "{how}, {advice:?}");
            assert_eq!(x.residency().devices[0].in_place > 0, aliases, "{how}, {advice:?}");
            x.unadvise(advice.clone());
            x.advise(Advice::PreferredLocation(Location::Device(device.clone())));
            let y = x.cow_clone().unwrap(); // of which nothing was said
            sums(&rt, &y, how);
            assert!(moved(&rt) - before >= N as u64 * 4, "{how}, {advice:?}: taken back");
        }
    }
}

#[test]
fn policies_follow_hints_before_their_own_rule() {
    let _limit = limit();
    for policy in ["declared", "demand", "remote"] {
        let rt = Runtime::builder().open_device(device(small(32 * MIB))).policy(policy).unwrap().build().unwrap();
        let here = rt.devices()[0].clone();
        let (stay, come) = (rt.shared_with(N, |i| i as u32).unwrap(), rt.shared_with(N, |i| i as u32).unwrap());
        stay.advise(Advice::AccessedBy(here.clone()));
        come.advise(Advice::PreferredLocation(Location::Device(here)));
        sums(&rt, &stay, policy);
        assert_eq!(rt.stats().to_device(), 0, "{policy}");
        sums(&rt, &come, policy);
        assert_eq!(rt.stats().devices[0].to_device.by(Cause::Launch), pages(N) * 4096, "{policy}");
    }
}

fn pages(elements: usize) -> u64 {
    (elements as u64 * 4).next_multiple_of(65_536) / 4096
}

#[test]
fn an_argument_may_be_advised_in_parts() {
    let _limit = limit();
    let rt = runtime(small(32 * MIB));
    let x = rt.shared_with(N, |i| i as u32).unwrap();
    let half = 2 * 524_288;
    x.range(..half).unwrap().advise(Advice::PreferredLocation(Location::Host));
    sums(&rt, &x, "in parts");
    let moved = rt.stats().to_device();
    assert_eq!(moved, pages(N - half) * 4096);
    assert_eq!(x.residency().devices[0].in_place, half as u64 / 1024);
}

#[test]
fn faults_use_what_the_device_accesses_where_it_is() {
    let _limit = limit();
    let rt = Runtime::builder().open_device(device(small(32 * MIB))).policy("demand").unwrap().build().unwrap();
    let mut x = rt.shared_with(N, |i| i as u32).unwrap();
    // What faults do is decided when a block is advised, not when it is first used.
    x.advise(Advice::AccessedBy(rt.devices()[0].clone()));
    x.advise(Advice::ReadMostly);
    x.unadvise(Advice::ReadMostly);
    rt.launch(&add(1), (&mut x,)).unwrap();
    assert_eq!(x[N - 1], N as u32);
    assert_eq!(rt.stats().to_device() + rt.stats().to_host(), 0);
}

#[test]
fn a_hint_about_another_runtimes_device_does_nothing() {
    let (a, b) = (runtime(small(32 * MIB)), runtime(small(32 * MIB)));
    let x = a.shared_with(N, |i| i as u32).unwrap();
    x.advise(Advice::AccessedBy(b.devices()[0].clone()));
    x.advise(Advice::PreferredLocation(Location::Device(b.devices()[0].clone())));
    sums(&a, &x, "another's device");
    assert_eq!(x.residency().devices[0].in_place, 0);
}
