//! What an owner does with an allocation as a whole, on every kind of device: shorten, split, drop contents, write it no more.

mod common;

use common::*;
use sterna::hal::Device as _;
use sterna::{Error, Mechanism, ReadOnly, Runtime, Shared};

const N: usize = 700_001;

/// An allocation of `0..N` that device 0 has written last, so that its bytes are there and nowhere else.
fn on_device(rt: &Runtime) -> Shared<u32> {
    let mut x = rt.shared_with(N, |i| (i as u32).wrapping_sub(3)).unwrap();
    rt.launch(&add(3), (&mut x,)).unwrap().wait().unwrap();
    x
}

#[track_caller]
fn is(x: &[u32], expect: impl Fn(usize) -> u32, how: &str) {
    let wrong = x.iter().enumerate().find(|(i, v)| **v != expect(*i));
    assert_eq!(wrong, None, "{how}: expected {:?}", wrong.map(|(i, _)| expect(i)));
}

#[test]
fn discarded_elements_are_zero_everywhere() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        // Borders within a page, on pages, on blocks, whole, and a range of one element.
        for (from, to) in [(5, N - 5), (1024, 1024 * 40), (524_288, 2 * 524_288), (0, N), (7, 8), (1020, 1030), (N - 1, N)] {
            let (from, to) = (from.min(N - 1), to.min(N));
            let expect = |i: usize| if (from..to).contains(&i) { 0 } else { i as u32 };
            for home in [true, false] {
                let mut x = if home { rt.shared_with(N, |i| i as u32).unwrap() } else { on_device(&rt) };
                x.discard(from..to).unwrap();
                let mut y = rt.shared::<u32>(N).unwrap();
                rt.launch(&copy_add(0), (&x, &mut y)).unwrap();
                is(&y, expect, &format!("{how}, {from}..{to}, a device, home {home}"));
                is(&x, expect, &format!("{how}, {from}..{to}, the host, home {home}"));
                x[from] = 9;
                rt.launch(&add(1), (&mut x,)).unwrap();
                is(&x, |i| if i == from { 10 } else { expect(i) + 1 }, &format!("{how}, {from}..{to}, written again"));
            }
        }
    }
}

/// Fails if `discarded_elements_are_zero_everywhere` could not see a copy that is left on a device.
#[cfg(feature = "planted")]
#[test]
fn planted_copies_that_are_kept_are_seen() {
    let name = "planted_copies_that_are_kept_are_seen";
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = runtime(small(16 * MIB));
    let mut x = on_device(&rt);
    sterna::hmm::planted::KEEP_COPIES.store(true, std::sync::atomic::Ordering::SeqCst);
    // The invariants of a debug build would stop it before a launch could see anything.
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        x.discard(..).unwrap();
        let mut y = rt.shared::<u32>(N).unwrap();
        rt.launch(&copy_add(0), (&x, &mut y)).unwrap();
        y.iter().any(|v| *v != 0)
    }));
    assert!(!matches!(seen, Ok(false)), "the defect goes unseen");
}

#[test]
fn discarded_pages_cost_nothing() {
    let name = "discarded_pages_cost_nothing";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    for (how, config) in kinds(16 * MIB) {
        let d = device(config);
        let rt = over(&d);
        let before = storage();
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        rt.launch(&add(3), (&mut x,)).unwrap().wait().unwrap();
        assert!(storage() - before >= 4 * N as u64, "{how}");
        x.discard(..).unwrap();
        assert_eq!(d.memory().in_use, 0, "{how}: device memory");
        assert!(storage() <= before, "{how}: {} bytes of storage", storage() - before);
        assert_eq!(x.residency().devices[0].pages, 0);
        // Large and never touched: as cheap as small.
        let mut big = rt.shared::<u64>(1 << 37).unwrap();
        let start = std::time::Instant::now();
        big[5] = 1;
        big.discard(..).unwrap();
        big.truncate(1 << 20).unwrap();
        assert!(start.elapsed() < std::time::Duration::from_secs(1), "{how}: {:?}", start.elapsed());
        assert_eq!((big.len(), big[5]), (1 << 20, 0));
        assert!(storage() <= before + (64 << 10), "{how}");
    }
}

#[test]
fn what_is_discarded_is_healed() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared_with(10_000, |i| i as u32).unwrap();
    rt.launch(&panics(), (&mut x,)).unwrap().wait().unwrap_err();
    assert!(x.try_read().is_err());
    x.discard(..5_000).unwrap();
    assert!(x.try_read().is_err());
    is(x.range(..5_000).unwrap().try_read().unwrap(), |_| 0, "the part");
    x.discard(5_000..).unwrap();
    is(x.try_read().unwrap(), |_| 0, "all of it");
    let _ = rt.sync();
    // And lost bytes are forgotten.
    let d = device(small(8 * MIB));
    let rt = over(&d);
    let mut x = on_device(&rt);
    d.lose();
    let _ = rt.launch(&add(1), (&mut rt.shared::<u32>(4).unwrap(),)).map(|p| p.wait());
    assert!(matches!(x.try_read(), Err(Error::Lost { .. })), "{:?}", x.try_read().map(|_| ()));
    x.discard(..).unwrap();
    is(x.try_read().unwrap(), |_| 0, "after a loss");
}

#[test]
fn discard_waits_for_launches() {
    static HOLD: Hold = Hold::new();
    fn slow(_: sterna::kernel::Group, (): (), y: &mut [u32]) {
        HOLD.wait();
        y.fill(7);
    }
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(4096).unwrap();
    let kernel = sterna::kernel::Kernel::new("slow", (), (sterna::kernel::each_mut(4096),), slow);
    rt.launch(&kernel, (&mut x,)).unwrap();
    HOLD.entered();
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            HOLD.release();
        });
        x.discard(100..).unwrap();
    });
    is(&x, |i| if i < 100 { 7 } else { 0 }, "after the kernel");
}

#[test]
fn truncated_allocations_work_and_shrink() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let d = device(config);
        let rt = over(&d);
        let mut x = on_device(&rt);
        for len in [N, N + 1, 600_123, 524_288, 5_000, 3] {
            x.truncate(len).unwrap();
            let n = len.min(N);
            assert_eq!((x.len(), x.iter().count()), (n, n), "{how}");
            // Whatever the length: its end is the end of the allocation, also without host faults.
            rt.launch(&add(1), (&mut x,)).unwrap();
            rt.launch(&add(u32::MAX), (&mut x,)).unwrap();
            is(&x, |i| i as u32, &format!("{how}, {len}"));
            assert!(x.try_read().unwrap().len() == n && x.host(..).unwrap().len() == n);
        }
        assert!(x.range(..4).is_err());
        let least = d.caps().grain.max(64 << 10); // launches have a whole granule where an allocation ends
        assert!(d.memory().in_use <= least, "{how}: {} bytes in use", d.memory().in_use);
    }
}

#[test]
fn halves_are_allocations_of_their_own() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let d = device(config);
        let rt = over(&d);
        let grain = d.caps().grain as usize / 4;
        for at in [grain, 524_288, 77_777, 1, N - 1] {
            if !faults(&rt) && at % grain != 0 {
                continue; // a border for launches is on a grain there
            }
            let mut low = on_device(&rt);
            let mut high = low.split_off(at).unwrap();
            assert_eq!((low.len(), high.len()), (at, N - at));
            rt.launch(&add(1), (&mut high,)).unwrap();
            low[at - 1] ^= 0;
            rt.launch(&add(2), (&mut low,)).unwrap();
            let other = std::thread::spawn(move || {
                is(&high, |i| (at + i) as u32 + 1, "the upper half");
                high[0] = 5;
                high
            });
            is(&low, |i| i as u32 + 2, &format!("{how}, {at}"));
            let high = other.join().unwrap();
            assert_eq!(high[0], 5);
            drop(low);
            is(&high, |i| if i == 0 { 5 } else { (at + i) as u32 + 1 }, &format!("{how}, {at}, alone"));
        }
    }
}

#[test]
fn a_dropped_half_gives_its_memory_back() {
    let name = "a_dropped_half_gives_its_memory_back";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = runtime(small(16 * MIB));
    let n = 2 * MIB;
    let before = storage();
    let mut low = rt.shared_with(n, |i| i as u32).unwrap();
    let mut high = low.split_off(n / 2).unwrap();
    let whole = storage() - before;
    assert!(whole >= 4 * n as u64);
    // A launch may still be using it.
    rt.launch(&add(1), (&mut high,)).unwrap();
    drop(high);
    eventually("half of the storage is freed", || storage() - before <= whole / 2 + (64 << 10));
    is(&low, |i| i as u32, "the other half");
    let third = low.split_off(n / 4).unwrap();
    drop(low);
    eventually("three quarters are freed", || storage() - before <= whole / 4 + (64 << 10));
    is(&third, |i| (n / 4 + i) as u32, "the last quarter");
    drop(third);
    eventually("all of it is freed", || storage() <= before);
}

#[test]
fn read_only_handles_share_one_allocation() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        let table: ReadOnly<u32> = on_device(&rt).into_read_only();
        std::thread::scope(|s| {
            for t in 0..4_usize {
                let (table, rt) = (table.clone(), &rt);
                s.spawn(move || {
                    let mut y = rt.shared::<u32>(N).unwrap();
                    rt.launch(&copy_add(t as u32), (&table, &mut y)).unwrap();
                    assert_eq!(table[t * 1000], t as u32 * 1000);
                    is(&y, |i| (i + t) as u32, how);
                });
            }
        });
        assert_eq!((table.len(), table.range(5..7).unwrap()[0], table.iter().count()), (N, 5, N));
        let other = table.clone();
        let table = table.try_into_shared().unwrap_err();
        drop(other);
        let mut again = table.try_into_shared().unwrap();
        rt.launch(&add(1), (&mut again,)).unwrap();
        is(&again, |i| i as u32 + 1, how);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared_with(1000, |i| i as u32).unwrap();
    assert!(matches!(x.truncate(0), Err(Error::Length { len: 0, .. })));
    for at in [0, 1000, 1001, usize::MAX] {
        assert!(matches!(x.split_off(at), Err(Error::Invalid { .. })), "{at}");
    }
    assert!(matches!(x.discard(5..1001), Err(Error::Range { start: 5, end: 1001, len: 1000 })));
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let backwards = 7..3;
    assert!(matches!(x.discard(backwards), Err(Error::Range { .. })));
    assert!(matches!(x.discard(..=usize::MAX), Err(Error::Range { .. })));
    x.discard(3..3).unwrap();
    x.truncate(usize::MAX).unwrap();
    is(&x, |i| i as u32, "after refusals");
    // Elements that lie across the borders of pages.
    let mut odd = rt.shared_with(5000, |i| [i as u32; 3]).unwrap();
    odd.discard(100..4000).unwrap();
    let want = |i: usize| if (100..4000).contains(&i) { [0; 3] } else { [i as u32; 3] };
    assert!((0..5000).all(|i| odd[i] == want(i)));
    odd.truncate(342).unwrap();
    assert!(odd.len() == 342 && (0..342).all(|i| odd[i] == want(i)));
}

#[test]
fn without_host_faults_halves_have_the_borders_of_views() {
    let rt = runtime(small(8 * MIB));
    if rt.stats().mechanism != Mechanism::None {
        return;
    }
    let mut x = rt.shared_with(40_000, |i| i as u32).unwrap();
    let mut y = x.split_off(20_000).unwrap();
    assert!(matches!(rt.launch(&add(1), (&mut y,)), Err(Error::Unaligned { .. })));
    is(&y, |i| i as u32 + 20_000, "on the host");
}

/// With mechanism `none` a launch needs whole grains: those of which nobody else has anything any more are whole.
#[test]
fn a_side_that_went_or_was_shortened_is_in_no_launchs_way() {
    let name = "a_side_that_went_or_was_shortened_is_in_no_launchs_way";
    let _limit = limit();
    if with_each_mechanism(name) {
        return;
    }
    for (how, config) in kinds(16 * MIB) {
        let d = device(config);
        let (rt, grain) = (over(&d), (d.caps().grain as usize / 4).max(16_384));
        let border = 2 * grain;
        let mut low = rt.shared_with(6 * grain + 1, |i| i as u32).unwrap();
        rt.launch(&add(0), (&mut low,)).unwrap();
        let mut high = low.split_off(border).unwrap();
        // The low part ends before its border with the other, three times, the last time in its first grain.
        let mut rounds = 0;
        for len in [border - 1, border - grain - 7, 5] {
            low.truncate(len).unwrap();
            rounds += 1;
            rt.launch(&add(1), (&mut low,)).unwrap();
            rt.launch(&add(1), (&mut high,)).unwrap();
            is(&low, |i| i as u32 + rounds, &format!("{how}, {len}, below"));
            is(&high, |i| (border + i) as u32 + rounds, &format!("{how}, {len}, above"));
        }
        // A border within a grain: as long as both sides are there only mechanisms that tell pages apart bear it.
        let mut last = high.split_off(grain + 77).unwrap();
        let tried = [rt.launch(&add(1), (&mut high,)).map(drop), rt.launch(&add(1), (&mut last,)).map(drop)];
        for t in &tried {
            assert_eq!(matches!(t, Err(Error::Unaligned { .. })), !faults(&rt), "{how}: {t:?}");
        }
        rounds += u32::from(faults(&rt));
        drop(high);
        rt.launch(&add(1), (&mut last,)).unwrap();
        is(&last, |i| (border + grain + 77 + i) as u32 + rounds + 1, &format!("{how}, the side above"));
        let away = last.split_off(2 * grain + 3).unwrap();
        drop(away);
        rt.launch(&add(1), (&mut last,)).unwrap();
        is(&last, |i| (border + grain + 77 + i) as u32 + rounds + 2, &format!("{how}, the side between"));
        // A view of it has a neighbour as before.
        let tried = rt.launch(&add(1), (&mut last.range_mut(..grain).unwrap(),)).map(drop);
        assert_eq!(matches!(tried, Err(Error::Unaligned { .. })), !faults(&rt), "{how}: {tried:?}");
    }
}
