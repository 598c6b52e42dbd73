//! Every call that a scenario makes of its device fails once, in turn, its points are late, and the device is lost at it: the result
//! is right or a typed error, never wrong bytes, and every frame is given back.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{MIB, add, copy_add, device, eventually, kinds, limit, over};
use sterna::cpu::CpuDevice;
use sterna::hal::Device as _;
use sterna::{Error, Runtime, Shared};

const N: usize = 320 << 10;

/// Five quarters of a mebibyte an array on a device of three: launches, evictions, host stores, prefetches, a copy, contents dropped.
fn scenario(rt: &Runtime) -> Result<(), Error> {
    let mut x = rt.shared_with(N, |i| i as u32)?;
    let mut y = rt.shared::<u32>(N)?;
    rt.launch(&copy_add(1), (&x, &mut y))?.wait()?;
    check(&y, |i| i as u32 + 1)?;
    let before = x.cow_clone()?;
    rt.launch(&add(5), (&mut x,))?.wait()?;
    let mut z = rt.shared::<u32>(N)?;
    rt.launch(&copy_add(2), (&x, &mut z))?.wait()?;
    y.host_mut(..)?[3] = 7;
    let d = rt.devices()[0].clone();
    y.prefetch_to(&d);
    rt.launch(&add(1), (&mut y,))?.wait()?;
    y.prefetch_to_host();
    rt.sync()?;
    check(&y, |i| if i == 3 { 8 } else { i as u32 + 2 })?;
    check(&before, |i| i as u32)?;
    y.discard(N / 2..)?;
    rt.launch(&add(1), (&mut y,))?.wait()?;
    check(&y, |i| match i {
        3 => 9,
        _ if i < N / 2 => i as u32 + 3,
        _ => 1,
    })?;
    check(&x, |i| i as u32 + 5)?;
    check(&z, |i| i as u32 + 7)
}

/// Through a guard: a load that meets a loss cannot return.
fn check(x: &Shared<u32>, expect: impl Fn(usize) -> u32) -> Result<(), Error> {
    let v = x.host(..)?;
    match (0..v.len()).find(|i| v[*i] != expect(*i)) {
        Some(i) => panic!("element {i} is {} and should be {}", v[i], expect(i)),
        None => Ok(()),
    }
}

/// A typed error that says what failed.
fn is_told(e: &Error) -> bool {
    match e {
        Error::Device { .. } | Error::OutOfDeviceMemory { .. } | Error::Lost { .. } => true,
        Error::Upstream { source, .. } => is_told(source),
        _ => false,
    }
}

/// Has call `n` fail for every `n` until the scenario ends before that, on each kind of device; prints what came of it.
fn every(what: &str, fail: impl Fn(&CpuDevice, u64), failed: impl Fn(&CpuDevice, u64) -> bool) {
    let _limit = limit();
    for (kind, config) in kinds(3 * MIB).into_iter().filter(|k| !k.0.contains("grain")) {
        let (mut recovered, mut told) = (0, 0);
        for n in 0.. {
            let d = device(config.clone());
            let rt = over(&d);
            fail(&d, n);
            let result = scenario(&rt);
            // The scheduler may still hold a refused launch.
            let _ = rt.sync();
            let over = !failed(&d, n);
            match result {
                Ok(()) => recovered += 1,
                Err(e) if is_told(&e) && !over => told += 1,
                Err(e) => panic!("{what} {n}, {kind}: {e:?}"),
            }
            drop(rt);
            eventually("frames are given back", || d.memory().in_use == 0);
            eventually("the device is let go", || Arc::strong_count(&d) == 1);
            if over {
                break;
            }
        }
        println!("{what}, {kind}: {} points, {} recovered, {told} told", recovered + told - 1, recovered - 1);
        assert!(recovered + told > 1, "{what}, {kind}: nothing failed");
    }
}

#[test]
fn copies() {
    every("copy", |d, n| d.inject().fail_copy(n), |d, n| d.inject().copies() + 1 > n);
}

#[test]
fn edits() {
    every("edit", |d, n| d.inject().fail_edit(n), |d, n| d.inject().edits() + 1 > n);
}

#[test]
fn submissions() {
    every("submit", |d, n| d.inject().fail_submit(n), |d, n| d.inject().submits() + 1 > n);
}

#[test]
fn allocations() {
    every("allocation", |d, n| d.inject().fail_alloc(n), |d, n| d.inject().allocs() > n);
}

#[test]
fn late_points() {
    let points = |d: &CpuDevice| d.inject().copies() + d.inject().submits();
    every("late point", |d, n| d.inject().late_point(n, Duration::from_millis(3)), |d, n| points(d) > n);
}

#[test]
fn losses() {
    every("loss", |d, n| d.inject().lose_at(n), |d, _| d.inject().is_lost());
}
