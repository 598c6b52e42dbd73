//! Every system call that the engine or the CPU device makes in a scenario fails once, in turn, under each mechanism: as for a lack
//! of memory, and as after a signal. The result is right or a typed error, never wrong bytes; nothing is left behind.
#![cfg(feature = "planted")]

mod common;
mod support;

use std::sync::Arc;
use std::time::Duration;

use common::{MIB, add, copy_add, device, eventually, over, small, storage};
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Device as _;
use sterna::hmm::inject;
use sterna::{Error, Runtime};
use support::under_each;

/// Elements: three such arrays are more than the device has.
const N: usize = 160 << 10;

fn check(v: &[u32], what: &str, expect: impl Fn(usize) -> u32) {
    if let Some(i) = (0..v.len()).find(|i| v[*i] != expect(*i)) {
        panic!("{what}: element {i} is {} and should be {}", v[i], expect(i));
    }
}

/// Launches, evictions, host touches, guards, prefetches, a copy, a file, parts given back.
fn scenario(rt: &Runtime, file: &std::path::Path) -> Result<(), Error> {
    let mut x = rt.shared_with(N, |i| i as u32)?;
    let mut y = rt.shared::<u32>(N)?;
    rt.launch(&copy_add(1), (&x, &mut y))?.wait()?;
    check(y.try_read()?, "y", |i| i as u32 + 1);
    let before = x.cow_clone()?;
    rt.launch(&add(5), (&mut x,))?.wait()?;
    y.settle()?[3] = 7;
    y.prefetch_to(&rt.devices()[0]);
    rt.launch(&add(1), (&mut y,))?.wait()?;
    check(&y.host(..100)?, "a guard", |i| if i == 3 { 8 } else { i as u32 + 2 });
    y.prefetch_to_host();
    rt.sync()?;
    check(y.try_read()?, "y", |i| if i == 3 { 8 } else { i as u32 + 2 });
    check(before.try_read()?, "the copy", |i| i as u32);
    check(x.try_read()?, "x", |i| i as u32 + 5);
    // SAFETY: the test's own file, which it does not write meanwhile.
    let mut f = unsafe { rt.map_file::<u32>(file) }?;
    rt.launch(&add(2), (&mut f.range_mut(..N / 4 / 16384 * 16384)?,))?.wait()?;
    check(f.try_read()?, "the file", |i| if i < N / 4 / 16384 * 16384 { 9 } else { 7 });
    y.discard(1000..)?;
    y.truncate(N / 2)?;
    check(y.try_read()?, "what is left", |i| {
        if i >= 1000 {
            0
        } else if i == 3 {
            8
        } else {
            i as u32 + 2
        }
    });
    Ok(())
}

/// Errors that a failing system call may end in.
fn is_told(e: &Error) -> bool {
    match e {
        Error::System(_) | Error::File { .. } | Error::Device { .. } => true,
        Error::Upstream { source, .. } => is_told(source),
        _ => false,
    }
}

/// Whether an error of this kind may be told of: what the system asks to be made again is made again, except that a thread which
/// cannot be had is refused with `EAGAIN`.
fn may_be_told(e: &Error, code: i32) -> bool {
    let thread = ["thread", "pthread_create"].iter().any(|t| e.to_string().contains(t));
    code == libc::ENOMEM || code == libc::EAGAIN && thread
}

/// What a process has: threads, descriptors, mebibytes of addresses, kibibytes of memory.
fn holdings() -> [u64; 4] {
    let entries = |folder: &str| std::fs::read_dir(folder).unwrap().count() as u64;
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let mut pages = pages.split(' ').map(|n| n.parse::<u64>().unwrap());
    let (addresses, resident) = (pages.next().unwrap(), pages.next().unwrap());
    [entries("/proc/self/task"), entries("/proc/self/fd"), addresses >> 8, resident * 4]
}

/// Fails unless the process has no more than `before`, but for what its allocator keeps: a device's window is 64 GiB of addresses
/// and its memory a mebibyte.
fn nothing_is_left(before: [u64; 4]) {
    let fits = |now: [u64; 4]| {
        now[0] <= before[0] && now[1] <= before[1] && now[2] < before[2] + 1024 && now[3] < before[3] + 24 * 1024
    };
    eventually(&format!("threads, descriptors, MiB of addresses, KiB of memory are {before:?} again"), || fits(holdings()));
}

const ERRORS: [(&str, i32); 3] = [("ENOMEM", libc::ENOMEM), ("EINTR", libc::EINTR), ("EAGAIN", libc::EAGAIN)];

#[test]
fn each_call_fails_once() {
    under_each("each_call_fails_once", Duration::from_secs(300), |m| {
        let path = std::env::temp_dir().join(format!("sterna-failing-{}", std::process::id()));
        std::fs::write(&path, sterna::bytemuck::cast_slice(&vec![7_u32; N])).unwrap();
        let keep = over(&device(small(4 * MIB)));
        scenario(&keep, &path).unwrap();
        for (kind, tiny) in [("private", small(MIB)), ("coherent", CpuConfig { coherent: true, ..small(MIB) })] {
            let empty = storage();
            // A runtime more, once, so that what the process keeps for good is there.
            scenario(&over(&device(tiny.clone())), &path).unwrap();
            eventually("segments are gone", || keep.space().segments() == 0);
            let before = holdings();
            for (who, calls) in [("engine", &inject::CALLS), ("device", &sterna::cpu::CALLS)] {
                for (name, code) in ERRORS {
                    let (mut recovered, mut told) = (0, 0);
                    for n in 0.. {
                        calls.fail(n, code);
                        let mut made = None;
                        let result = CpuDevice::new(0, tiny.clone())
                            .map_err(|source| Error::Device { device: "cpu:0".into(), source })
                            .and_then(|d| Runtime::builder().open_device(Arc::clone(made.insert(Arc::new(d))) as _).build())
                            .and_then(|rt| scenario(&rt, &path));
                        // What gives things back is part of it.
                        if let Some(d) = made {
                            eventually("device memory is given back", || d.memory().in_use == 0);
                            eventually("the device is let go", || Arc::strong_count(&d) == 1);
                        }
                        let (_, failed) = calls.stop();
                        match result {
                            Ok(()) => recovered += 1,
                            Err(e) if failed && is_told(&e) && may_be_told(&e, code) => told += 1,
                            Err(e) => panic!("{m}, {kind}, {who}, call {n}, {name}: {e:?}"),
                        }
                        eventually("segments are gone", || keep.space().segments() == 0);
                        eventually("storage is given back", || storage() <= empty);
                        nothing_is_left(before);
                        if !failed {
                            break; // the scenario makes fewer calls
                        }
                    }
                    println!(
                        "{m}, {kind}, {who}, {name}: {} calls, {} recovered, {told} told",
                        recovered + told - 1,
                        recovered - 1
                    );
                    assert!(recovered > 1, "{m}: nothing was injected");
                }
            }
        }
        // Nothing has been spoilt.
        scenario(&keep, &path).unwrap();
        std::fs::remove_file(&path).unwrap();
    });
}

/// What a process does whose first runtime cannot be made for once: it says so, and can make the next.
fn first_runtime(who: &str, n: u64, code: i32) {
    let calls = if who == "engine" { &inject::CALLS } else { &sterna::cpu::CALLS };
    calls.fail(n, code);
    let first = Runtime::builder().device("cpu:0").memory(4 << 20).build();
    let (_, failed) = calls.stop();
    let told = match first {
        Ok(_) => false,
        Err(e @ (Error::Arena { .. } | Error::Mechanism { .. } | Error::System(_) | Error::Device { .. }))
            if may_be_told(&e, code) =>
        {
            true
        }
        Err(e) => panic!("{who}, call {n}, error {code}: {e:?}"),
    };
    let rt = Runtime::builder().device("cpu:0").memory(4 << 20).build().unwrap();
    let mut x = rt.shared_with(10_000, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap();
    check(&x, "after a failure", |i| i as u32 + 1);
    println!(
        "{}",
        if !failed {
            "no more calls"
        } else if told {
            "told"
        } else {
            "recovered"
        }
    );
}

#[test]
fn the_first_runtime_can_be_made_again() {
    const WHICH: &str = "STERNA_TEST_CALL";
    let name = "the_first_runtime_can_be_made_again";
    if let Ok(which) = std::env::var(WHICH) {
        let which: Vec<&str> = which.split(' ').collect();
        return first_runtime(which[0], which[1].parse().unwrap(), which[2].parse().unwrap());
    }
    under_each(name, Duration::from_secs(240), |m| {
        for who in ["engine", "device"] {
            for (error, code) in ERRORS {
                let (mut recovered, mut told) = (0, 0);
                for n in 0.. {
                    let out = support::child(name).env(WHICH, format!("{who} {n} {code}")).output().unwrap();
                    let text = String::from_utf8_lossy(&out.stdout);
                    let complaint = String::from_utf8_lossy(&out.stderr);
                    assert!(out.status.success(), "{m}, {who}, call {n}, {error}: {text}{complaint}");
                    match text {
                        t if t.contains("no more calls") => break,
                        t if t.contains("told") => told += 1,
                        _ => recovered += 1,
                    }
                }
                println!(
                    "{m}, {who}, {error}: {} calls make a runtime, {recovered} recovered, {told} told",
                    recovered + told
                );
                assert!(recovered + told > 0, "{m}: nothing was injected");
            }
        }
    });
}
