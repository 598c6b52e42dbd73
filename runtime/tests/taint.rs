//! A failed launch taints what it would have written: nobody reads that as if it were a result.

mod common;

use common::*;
use sterna::hal::KernelError;
use sterna::kernels::fill;
use sterna::{Error, Runtime, Shared};

fn is_panic(e: &Error) -> bool {
    matches!(e, Error::Kernel { kernel: "panics", source: KernelError::Panicked(text) } if text.contains("as planned"))
}

fn tainted(rt: &Runtime, len: usize) -> Shared<u32> {
    let mut x = rt.shared_with(len, |i| i as u32).unwrap();
    rt.launch(&panics(), (&mut x,)).unwrap();
    x
}

#[test]
fn nobody_reads_what_a_failed_launch_left() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let mut x = tainted(&rt, 10_000);
        let text = panic_text(|| assert_ne!(x[3], 12_345));
        assert!(text.contains("as planned") && text.contains("`panics`"), "{how}: {text}");
        assert!(panic_text(|| x[3] = 1).contains("as planned"), "{how}");
        assert!(is_panic(&x.try_read().unwrap_err()), "{how}");
        assert!(is_panic(&x.host(..).unwrap_err()) && is_panic(&x.host_mut(..).unwrap_err()), "{how}");
        assert!(is_panic(&x.range(5..6).unwrap().try_read().unwrap_err()), "{how}");
        assert!(panic_text(|| x[3] = 1).contains("as planned"), "{how}: it stays so");
        assert!(rt.sync().is_err());
        rt.sync().unwrap();
        assert!(is_panic(&x.try_read().unwrap_err()), "{how}: telling does not heal");
    }
}

/// Readers fail with the reason, whether the failed launch has been seen to end or not, and whatever was resident.
#[test]
fn launches_that_read_it_fail_with_the_reason() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        for wait in [false, true] {
            let mut x = rt.shared_with(10_000, |i| i as u32).unwrap();
            let mut y = rt.shared::<u32>(10_000).unwrap();
            let mut z = rt.shared::<u32>(10_000).unwrap();
            for k in [0, 1] {
                rt.launch(&copy_add(k), (&x, &mut y)).unwrap().wait().unwrap();
                rt.launch(&copy_add(k), (&y, &mut z)).unwrap().wait().unwrap();
            }
            let first = rt.launch(&panics(), (&mut x,)).unwrap();
            if wait {
                assert!(is_panic(&first.wait().unwrap_err()), "{how}");
            }
            let second = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
            let third = rt.launch(&copy_add(1), (&y, &mut z)).unwrap();
            let e = third.wait().unwrap_err();
            assert!(matches!(&e, Error::Upstream { kernel: "copy_add", .. }), "{how}, {wait}: {e:?}");
            assert!(e.to_string().contains("as planned"), "{how}, {wait}: {e}");
            let Error::Upstream { source, .. } = second.wait().unwrap_err() else { panic!("{how}, {wait}") };
            assert!(is_panic(&source), "{how}, {wait}: {source:?}");
            assert!(y.try_read().is_err() && z.try_read().is_err(), "{how}, {wait}");
            // What changes part of a whole reads it too.
            assert!(matches!(rt.launch(&add(1), (&mut y,)).unwrap().wait(), Err(Error::Upstream { .. })), "{how}, {wait}");
        }
    }
}

#[test]
fn writing_the_whole_heals() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        for wait in [false, true] {
            let mut x = tainted(&rt, 10_000);
            if wait {
                assert!(rt.sync().is_err());
            }
            let healed = rt.launch(&fill(4_u32), (&mut x,)).unwrap();
            healed.wait().unwrap();
            assert!(x.try_read().unwrap_or_else(|e| panic!("{how}, {wait}: {e}")).iter().all(|v| *v == 4), "{how}");
            x[1] = 5;
            rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
            assert_eq!((x[1], x[2]), (6, 5), "{how}");

            let mut x = tainted(&rt, 10_000);
            let mut y = rt.shared::<u32>(10_000).unwrap();
            if wait {
                assert!(rt.sync().is_err());
            }
            // None of these is waited for before the next one is asked for.
            rt.launch(&fill(4_u32), (&mut x,)).unwrap();
            let read = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
            read.wait().unwrap_or_else(|e| panic!("{how}, {wait}: {e}"));
            assert_eq!((x[7], y[7]), (4, 5), "{how}");

            let mut x = tainted(&rt, 10_000);
            let values: Vec<u32> = (0..10_000).collect();
            x.write_from(&values).unwrap();
            assert_eq!(x[..], values[..], "{how}");
            rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
            assert_eq!(x[9_999], 10_000, "{how}");

            let mut x = tainted(&rt, 10_000);
            x.fill_with(|i| i as u32 * 2).unwrap();
            assert_eq!(x[4_000], 8_000, "{how}");
            let _ = rt.sync();
        }
    }
}

#[test]
fn a_part_is_tainted_and_healed_alone() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let n = 3 * 512 * PAGE_ELEMS;
        let unit = n / 3;
        let mut x = rt.shared_with(n, |i| i as u32).unwrap();
        let mut part = x.range_mut(unit..2 * unit).unwrap();
        assert!(rt.launch(&panics(), (&mut part,)).unwrap().wait().is_err());
        assert!(x.try_read().is_err(), "{how}");
        assert_eq!(x.range(..unit).unwrap()[unit - 1], unit as u32 - 1, "{how}");
        let (mut a, mut b) = x.split_at_mut(unit).unwrap();
        a[0] = 9;
        rt.launch(&add(1), (&mut a,)).unwrap().wait().unwrap();
        assert!(b.range(..1).unwrap().try_read().is_err());
        // Half of it is written, then the rest.
        b.range_mut(..unit / 2).unwrap().fill_with(|i| i as u32).unwrap();
        assert_eq!(b.range(..unit / 2).unwrap()[7], 7, "{how}");
        assert!(b.range(unit / 2..unit / 2 + 1).unwrap().try_read().is_err(), "{how}");
        assert!(b.try_read().is_err(), "{how}");
        b.range_mut(unit / 2..unit).unwrap().fill_with(|_| 3).unwrap();
        assert_eq!((x[0], x[unit], x[unit + 1], x[2 * unit - 1], x[2 * unit]), (10, 0, 1, 3, 2 * unit as u32), "{how}");
        let _ = rt.sync();
    }
}

#[test]
fn many_failures_are_all_kept_apart() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x: Vec<_> = (0..100).map(|_| rt.shared::<u32>(100).unwrap()).collect();
    for (i, x) in x.iter_mut().enumerate() {
        if i % 2 == 0 {
            rt.launch(&panics(), (x,)).unwrap();
        } else {
            rt.launch(&add(1), (x,)).unwrap();
        }
    }
    let mut told = 0;
    while rt.sync().is_err() {
        told += 1;
    }
    assert!((1..=50).contains(&told));
    for (i, x) in x.iter_mut().enumerate() {
        assert_eq!(x.try_read().is_err(), i % 2 == 0, "{i}");
        x.fill_with(|_| 1).unwrap();
        assert_eq!(x[99], 1);
    }
}

#[test]
fn another_device_learns_of_the_failure_too() {
    let _limit = limit();
    let rt = runtime_of(&[small(8 * MIB), small(8 * MIB)]);
    let [a, b] = &rt.devices()[..] else { panic!() };
    let mut x = rt.shared::<u32>(10_000).unwrap();
    let mut y = rt.shared::<u32>(10_000).unwrap();
    rt.on(a).launch(&panics(), (&mut x,)).unwrap();
    let read = rt.on(b).launch(&copy_add(1), (&x, &mut y)).unwrap();
    assert!(matches!(read.wait(), Err(Error::Upstream { .. })));
    rt.on(b).launch(&fill(3_u32), (&mut x,)).unwrap();
    rt.on(a).launch(&copy_add(1), (&x, &mut y)).unwrap().wait().unwrap();
    assert_eq!((x[77], y[77]), (3, 4));
}

/// Fails if a launch that ends late heals what a later one, which was refused at once, has failed to write.
#[test]
fn a_launch_that_ends_late_does_not_heal_a_later_ones_failure() {
    use sterna::kernel::{Group, Kernel, each_out};
    static HOLD: Hold = Hold::new();
    fn body(_: Group, (): (), y: &mut [u32]) {
        HOLD.wait();
        y.fill(7);
    }
    let _limit = limit();
    let rt = runtime(small(16 * MIB));
    let mut x = rt.shared::<u32>(50_000).unwrap();
    let mut bad = rt.shared::<u32>(50_000).unwrap();
    assert!(rt.launch(&panics(), (&mut bad,)).unwrap().wait().is_err());
    let first = rt.launch(&Kernel::new("held", (), (each_out(1 << 20),), body), (&mut x,)).unwrap();
    HOLD.entered();
    let second = rt.launch(&copy_add(1), (&bad, &mut x)).unwrap();
    assert!(matches!(second.wait(), Err(Error::Upstream { .. })));
    HOLD.release();
    first.wait().unwrap();
    assert!(x.try_read().is_err(), "reads {}, which the second launch should have replaced", x[0]);
    x.fill_with(|i| i as u32).unwrap();
    assert_eq!(x[49_999], 49_999);
}
