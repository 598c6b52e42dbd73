//! Every call that a scenario makes of its device fails once, in turn, its points are late, and the device is lost at it: the result
//! is right or a typed error, never wrong bytes, and every frame is given back.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::vulkan::{TABLES, vulkan};
use common::{
    MIB, add, child, copy_add, device, eventually, is_child, kinds, limit, over, rigid, small, succeeds, with_each_mechanism,
};
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Device as _, DeviceError, Injected};
use sterna::{Error, Runtime, Shared};

const N: usize = 320 << 10;
/// Bytes of device memory.
const MEMORY: usize = 3 * MIB;

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

/// Every kind of device, with a name for messages, and how one is made.
fn devices() -> Vec<(String, Box<dyn Fn() -> Injected>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Injected>)> = Vec::new();
    for (kind, config) in kinds(MEMORY).into_iter().filter(|k| !k.0.contains("grain")) {
        let lose = |d: &CpuDevice| d.inject().lose();
        all.push((kind.into(), Box::new(move || Injected::new(device(config.clone()), lose))));
    }
    for table in TABLES {
        let open = move || vulkan(table, MEMORY as u64, None);
        if open().is_ok() {
            all.push((format!("vulkan, {table}"), Box::new(move || open().expect("a device"))));
        }
    }
    all
}

/// Has call `n` fail for every `n` until the scenario ends before that, on each kind of device; prints what came of it.
fn every(what: &str, fail: impl Fn(&Injected, u64), failed: impl Fn(&Injected, u64) -> bool) {
    for (kind, open) in devices() {
        let _limit = limit();
        let (mut recovered, mut told) = (0, 0);
        for n in 0.. {
            let d = Arc::new(open());
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
    every("copy", Injected::fail_copy, |d, n| d.copies() + 1 > n);
}

#[test]
fn edits() {
    every("edit", Injected::fail_edit, |d, n| d.edits() + 1 > n);
}

#[test]
fn submissions() {
    every("submit", Injected::fail_submit, |d, n| d.submits() + 1 > n);
}

#[test]
fn allocations() {
    every("allocation", Injected::fail_alloc, |d, n| d.allocs() > n);
}

#[test]
fn late_points() {
    every("late point", |d, n| d.late_point(n, Duration::from_millis(3)), |d, n| d.copies() + d.submits() > n);
}

#[test]
fn losses() {
    every("loss", Injected::lose_at, |d, _| d.is_lost());
}

/// Fails if what a device does not hand over counts for more than what has replaced it.
#[test]
fn what_is_replaced_whole_needs_nothing_of_what_a_device_does_not_hand_over() {
    let _limit = limit();
    for (kind, config) in kinds(MEMORY) {
        let dev = device(config);
        let rt = over(&dev);
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        dev.inject().fail_copies(u64::MAX);
        let done = x.fill_with(|i| i as u32 + 9);
        dev.inject().fail_copies(0);
        done.unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        check(&x, |i| i as u32 + 9).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        check(&x, |i| i as u32 + 10).unwrap();
        // Of a part, the rest of the pages at its ends is needed.
        dev.inject().fail_copies(u64::MAX);
        let done = x.range_mut(100..N - 100).unwrap().fill_with(|_| 3);
        dev.inject().fail_copies(0);
        match done {
            Ok(()) => check(&x, |i| if (100..N - 100).contains(&i) { 3 } else { i as u32 + 10 }).unwrap(),
            Err(e) => assert!(matches!(&e, Error::Device { device, .. } if device == "cpu:0"), "{kind}: {e:?}"),
        }
    }
}

/// Fails by old bytes, or by a call that never ends.
#[test]
fn what_a_device_does_not_hand_over_is_an_error() {
    let name = "what_a_device_does_not_hand_over_is_an_error";
    let _limit = limit();
    if with_each_mechanism(name) {
        return;
    }
    let path = std::env::temp_dir().join(format!("sterna-refused-{}", std::process::id()));
    type Op = fn(&mut Shared<u32>) -> Result<(), Error>;
    let ops: [(&str, Op); 5] = [
        ("try_read", |x| x.try_read().map(drop)),
        ("host", |x| x.host(..).map(drop)),
        ("host_mut", |x| x.host_mut(..).map(drop)),
        ("cow_clone", |x| x.cow_clone().map(drop)),
        ("flush", |x| x.flush()),
    ];
    for config in [rigid(MEMORY), CpuConfig { map_host: false, host_readable: false, ..small(MEMORY) }] {
        for (op, run) in &ops {
            let dev = device(config.clone());
            let rt = over(&dev);
            let mut x = if *op == "flush" {
                std::fs::write(&path, vec![0; 4 * N]).unwrap();
                // SAFETY: nobody else writes the file or shortens it.
                unsafe { rt.map_file(&path) }.unwrap()
            } else {
                rt.shared::<u32>(N).unwrap()
            };
            rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
            dev.inject().fail_copies(u64::MAX);
            let e = run(&mut x).expect_err(op);
            dev.inject().fail_copies(0);
            let Error::Device { device, source: DeviceError::Driver { text, .. } } = &e else { panic!("{op}: {e:?}") };
            assert!(device == "cpu:0" && e.to_string().contains(text.as_str()), "{op}: {e}");
            run(&mut x).unwrap_or_else(|e| panic!("{op}: {e}"));
            check(&x, |_| 1).unwrap();
            if *op == "flush" {
                assert!(std::fs::read(&path).unwrap().chunks(4).all(|v| v == 1_u32.to_ne_bytes()));
            }
        }
    }
    std::fs::remove_file(path).unwrap();
}

/// A plain load cannot fail, so it is tried on, and somebody is told.
#[test]
fn a_load_of_what_a_device_does_not_hand_over_waits_and_says_so() {
    let name = "a_load_of_what_a_device_does_not_hand_over_waits_and_says_so";
    let _limit = limit();
    if !is_child() {
        for m in ["signal", "guard"] {
            let text = succeeds(child(name).env("STERNA_HOST_FAULTS", m));
            assert_eq!(text.matches("has not come home for 5 s").count(), 1, "{text}");
        }
        return;
    }
    let dev = device(CpuConfig { map_host: false, host_readable: false, ..small(MEMORY) });
    let rt = over(&dev);
    let mut x = rt.shared::<u32>(N).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    dev.inject().fail_copies(u64::MAX);
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(Duration::from_millis(6500));
            dev.inject().fail_copies(0);
        });
        assert_eq!(x[5], 1);
    });
}
