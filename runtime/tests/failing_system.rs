//! Every system call that the engine makes in a scenario fails once, in turn, under each mechanism: as for a lack of memory, and as
//! after a signal. The result is right or a typed error, never wrong bytes; nothing is left behind.
#![cfg(feature = "planted")]

mod common;
mod support;

use std::time::Duration;

use common::{MIB, add, copy_add, device, eventually, over, small, storage};
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

#[test]
fn each_call_fails_once() {
    under_each("each_call_fails_once", Duration::from_secs(240), |m| {
        let path = std::env::temp_dir().join(format!("sterna-failing-{}", std::process::id()));
        std::fs::write(&path, sterna::bytemuck::cast_slice(&vec![7_u32; N])).unwrap();
        let keep = over(&device(small(4 * MIB)));
        scenario(&keep, &path).unwrap();
        let empty = storage();
        for (name, code) in [("ENOMEM", libc::ENOMEM), ("EINTR", libc::EINTR), ("EAGAIN", libc::EAGAIN)] {
            let (mut recovered, mut told) = (0, 0);
            for n in 0.. {
                let d = device(small(MIB));
                let rt = over(&d);
                inject::fail(n, code);
                let result = scenario(&rt, &path);
                let _ = rt.sync();
                let (_, failed) = inject::stop();
                match result {
                    Ok(()) => recovered += 1,
                    Err(e) if is_told(&e) && code == libc::ENOMEM => told += 1,
                    Err(e) => panic!("{m}, call {n}, {name}: {e:?}"),
                }
                drop(rt);
                eventually("device memory is given back", || d.memory().in_use == 0);
                eventually("the device is let go", || std::sync::Arc::strong_count(&d) == 1);
                eventually("segments are gone", || keep.space().segments() == 0);
                eventually("storage is given back", || storage() <= empty);
                if !failed {
                    break; // the scenario makes fewer calls
                }
            }
            println!("{m}, {name}: {} calls, {recovered} recovered, {told} told", recovered + told - 1);
            assert!(recovered > 1, "{m}: nothing was injected");
        }
        // Nothing has been spoilt.
        scenario(&keep, &path).unwrap();
        std::fs::remove_file(&path).unwrap();
    });
}

/// What a process does whose first runtime cannot be made for once: it says so, and can make the next.
fn first_runtime(n: u64, code: i32) {
    inject::fail(n, code);
    let first = Runtime::builder().device("cpu:0").memory(4 << 20).build();
    let (_, failed) = inject::stop();
    let told = match first {
        Ok(_) => false,
        Err(Error::Arena { .. } | Error::Mechanism { .. } | Error::System(_) | Error::Device { .. })
            if code == libc::ENOMEM =>
        {
            true
        }
        Err(e) => panic!("call {n}, error {code}: {e:?}"),
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
        let (n, code) = which.split_once(' ').unwrap();
        return first_runtime(n.parse().unwrap(), code.parse().unwrap());
    }
    under_each(name, Duration::from_secs(120), |m| {
        for (error, code) in [("ENOMEM", libc::ENOMEM), ("EINTR", libc::EINTR)] {
            let (mut recovered, mut told) = (0, 0);
            for n in 0.. {
                let out = support::child(name).env(WHICH, format!("{n} {code}")).output().unwrap();
                let text = String::from_utf8_lossy(&out.stdout);
                assert!(out.status.success(), "{m}, call {n}, {error}: {text}{}", String::from_utf8_lossy(&out.stderr));
                match text {
                    t if t.contains("no more calls") => break,
                    t if t.contains("told") => told += 1,
                    _ => recovered += 1,
                }
            }
            println!("{m}, {error}: {} calls make a space, {recovered} recovered, {told} told", recovered + told);
            assert!(recovered + told > 0, "{m}: nothing was injected");
        }
    });
}
