//! Views: parts of an allocation with gates of their own, on every kind of device, their borders anywhere.

mod common;

use common::*;
use sterna::{Error, Mechanism, Runtime};

#[test]
fn ranges_address_the_right_elements() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared_with(10_000, |i| i as u32).unwrap();
    let v = x.range(100..200).unwrap();
    assert_eq!((v.len(), v[0], v[99]), (100, 100, 199));
    let inner = v.range(10..=19).unwrap();
    assert_eq!((inner.len(), inner[0], inner[9]), (10, 110, 119));
    assert!(v.range(..0).unwrap().is_empty());
    {
        let mut m = x.range_mut(9_990..).unwrap();
        m[0] = 7;
        let mut mm = m.range_mut(5..6).unwrap();
        mm[0] = 8;
    }
    let (mut a, mut b) = x.split_at_mut(5_000).unwrap();
    assert_eq!((a.len(), b.len()), (5_000, 5_000));
    a[4_999] = 1;
    b[0] = 2;
    let lens: Vec<usize> = x.chunks_mut(3_000).map(|c| c.len()).collect();
    assert_eq!(lens, [3_000, 3_000, 3_000, 1_000]);
    for (i, mut c) in x.chunks_mut(3_000).enumerate() {
        c[1] = i as u32;
    }
    let expect = |i: usize| match i {
        4_999 => 1,
        5_000 => 2,
        9_990 => 7,
        9_995 => 8,
        1 | 3_001 | 6_001 | 9_001 => (i / 3_000) as u32,
        _ => i as u32,
    };
    assert!(x.iter().enumerate().all(|(i, v)| *v == expect(i)));
}

/// A launch on the left part while the host works on the right one, which shares a page (or a grain) with it.
fn left_for_the_device_right_for_the_host(rt: &Runtime, mid: usize, len: usize, how: &str) {
    let mut x = rt.shared_with(len, |i| i as u32).unwrap();
    let rounds = 20;
    {
        let (mut a, mut b) = x.split_at_mut(mid).unwrap();
        for round in 0..rounds {
            rt.launch(&add(1000), (&mut a,)).unwrap();
            // Stores of the host land while the launch is on its way, next to the bytes that it changes.
            for v in b.iter_mut() {
                *v += 1;
            }
            if let Some(v) = b.last_mut() {
                *v += 1;
            }
            if round % 4 == 3 {
                assert_eq!(a[mid - 1], (mid - 1) as u32 + 1000 * (round + 1), "{how}, {mid} of {len}, round {round}");
            }
        }
    }
    rt.sync().unwrap();
    for (i, v) in x.iter().enumerate() {
        let expect = if i < mid { i as u32 + 1000 * rounds } else { i as u32 + rounds * if i == len - 1 { 2 } else { 1 } };
        assert_eq!(*v, expect, "{how}, element {i}, border {mid} of {len}");
    }
}

#[test]
fn a_page_shared_by_a_launch_and_the_host() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        if rt.stats().mechanism == Mechanism::None {
            let mut x = rt.shared::<u32>(4096).unwrap();
            let mut a = x.range_mut(..1500).unwrap();
            let e = rt.launch(&add(1), (&mut a,)).unwrap_err();
            let grain = rt.devices()[0].caps().grain;
            assert!(matches!(e, Error::Unaligned { start: 0, end: 6000, len: 16384, grain: g } if g == grain), "{e:?}");
            assert!(e.to_string().contains(&grain.to_string()), "{e}");
            continue;
        }
        for (mid, len) in [(1, 2), (1500, 4096), (100_000, 200_001), (MIB / 4 + 3, MIB)] {
            left_for_the_device_right_for_the_host(&rt, mid, len, how);
        }
    }
}

#[test]
fn a_grain_shared_by_a_launch_and_the_host() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let per = if faults(&rt) { 1 } else { rt.devices()[0].caps().grain as usize / 4096 };
        for (pages, len) in [(1_usize, 5_usize), (3, 16), (17, 400), (100, 1024), (600, 1100)] {
            let (pages, len) = if per == 1 { (pages, len) } else { (pages.next_multiple_of(per), len + per) };
            left_for_the_device_right_for_the_host(&rt, pages * PAGE_ELEMS, len * PAGE_ELEMS, how);
        }
    }
}

#[test]
fn filling_one_part_while_a_launch_changes_the_other() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let len = 1100 * PAGE_ELEMS;
        let mid = if faults(&rt) { len / 2 + 100 } else { 512 * PAGE_ELEMS };
        let mut x = rt.shared::<u32>(len).unwrap();
        for round in 1..=20_u32 {
            let (mut a, mut b) = x.split_at_mut(mid).unwrap();
            rt.launch(&add(1), (&mut a,)).unwrap();
            b.fill_with(|i| {
                if i % 4096 == 0 {
                    std::thread::yield_now();
                }
                round * 1_000_000 + i as u32
            })
            .unwrap();
            assert!(b.iter().enumerate().all(|(i, v)| *v == round * 1_000_000 + i as u32), "{how}, round {round}");
            rt.launch(&add(1), (&mut b,)).unwrap();
            rt.sync().unwrap();
            let wrong = x
                .iter()
                .enumerate()
                .find(|(i, v)| **v != if *i < mid { round } else { round * 1_000_000 + (*i - mid) as u32 + 1 });
            assert_eq!(wrong, None, "{how}, round {round}, border {mid}");
        }
    }
}

#[test]
fn chunks_launched_one_by_one_and_read_in_between() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let (len, n) = (1_000_000, if faults(&rt) { 77_777 } else { 512 * PAGE_ELEMS });
        let mut x = rt.shared_with(len, |i| i as u32).unwrap();
        for round in 1..=3 {
            for (i, mut c) in x.chunks_mut(n).enumerate() {
                rt.launch(&add(i as u32), (&mut c,)).unwrap();
                if i % 3 == 1 {
                    assert_eq!(c[0], (i * n) as u32 + round * i as u32, "{how}");
                }
            }
        }
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 3 * (i / n) as u32), "{how}");
    }
}

#[test]
fn views_move_between_threads() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(64 * PAGE_ELEMS).unwrap();
    std::thread::scope(|s| {
        for (i, mut c) in x.chunks_mut(16 * PAGE_ELEMS).enumerate() {
            let rt = &rt;
            s.spawn(move || {
                for _ in 0..50 {
                    rt.launch(&add(i as u32 + 1), (&mut c,)).unwrap();
                    c[5] += 1;
                }
                rt.launch(&add(0), (&mut c,)).unwrap().wait().unwrap();
            });
        }
    });
    for (i, v) in x.iter().enumerate() {
        let one = u32::from(i % (16 * PAGE_ELEMS) == 5);
        assert_eq!(*v, 50 * ((i / (16 * PAGE_ELEMS)) as u32 + 1 + one), "{i}");
    }
}
