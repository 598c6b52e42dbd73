//! Every call that a scenario makes of its device fails once, in turn: the result is right or a typed error, never wrong bytes,
//! and every frame is given back.

mod common;

use common::{MIB, add, copy_add, device, limit, over, small};
use sterna::cpu::CpuDevice;
use sterna::hal::Device as _;
use sterna::{Error, Runtime};

const N: usize = MIB;

/// Four mebibytes an array on a device of three: launches, evictions, host stores, prefetches.
fn scenario(rt: &Runtime) -> Result<(), Error> {
    let mut x = rt.shared_with(N, |i| i as u32)?;
    let mut y = rt.shared::<u32>(N)?;
    rt.launch(&copy_add(1), (&x, &mut y))?.wait()?;
    check(y.try_read()?, |i| i as u32 + 1);
    rt.launch(&add(5), (&mut x,))?.wait()?;
    y.settle()?[3] = 7;
    let d = rt.devices()[0].clone();
    y.prefetch_to(&d);
    rt.launch(&add(1), (&mut y,))?.wait()?;
    y.prefetch_to_host();
    rt.sync()?;
    check(y.try_read()?, |i| if i == 3 { 8 } else { i as u32 + 2 });
    check(x.try_read()?, |i| i as u32 + 5);
    Ok(())
}

fn check(v: &[u32], expect: impl Fn(usize) -> u32) {
    if let Some(i) = (0..v.len()).find(|i| v[*i] != expect(*i)) {
        panic!("element {i} is {} and should be {}", v[i], expect(i));
    }
}

/// Fails call `n` for every n until the scenario makes fewer; counts (recovered, told).
fn every(what: &str, fail: impl Fn(&CpuDevice, u64), made: impl Fn(&CpuDevice) -> u64) {
    let (mut recovered, mut told) = (0, 0);
    for n in 0.. {
        let d = device(small(3 * MIB));
        let rt = over(&d);
        fail(&d, n);
        let result = scenario(&rt);
        let well = result.is_ok();
        match result {
            Ok(()) => recovered += 1,
            Err(Error::Device { .. } | Error::OutOfDeviceMemory { .. } | Error::Upstream { .. }) => told += 1,
            Err(e) => panic!("{what} {n}: {e}"),
        }
        // The scheduler may still hold a refused launch.
        let _ = rt.sync();
        let calls = made(&d);
        let left = d.memory().in_use;
        drop(rt);
        assert_eq!(left, 0, "{what} {n}: frames were not given back");
        if well && calls <= n {
            break;
        }
    }
    println!("{what}: {recovered} recovered, {told} told");
    assert!(recovered > 0, "{what}: the scenario does not end by itself");
}

#[test]
fn copies() {
    let _limit = limit();
    every("copy", |d, n| d.inject().fail_copy(n), |d| d.inject().copies());
}

#[test]
fn edits() {
    let _limit = limit();
    every("edit", |d, n| d.inject().fail_edit(n), |d| d.inject().edits());
}

#[test]
fn submissions() {
    let _limit = limit();
    every("submit", |d, n| d.inject().fail_submit(n), |d| d.inject().submits());
}

#[test]
fn allocations() {
    let _limit = limit();
    // The device does not count these; a handful covers every place that asks.
    for n in 0..24 {
        let d = device(small(3 * MIB));
        let rt = over(&d);
        d.inject().fail_alloc(n);
        scenario(&rt).unwrap_or_else(|e| panic!("allocation {n}: {e}"));
        assert_eq!(d.memory().in_use, 0);
    }
}
