//! Bad input: each is a typed error whose message names the remedy, and nothing else is harmed.

mod common;

use std::sync::OnceLock;
use std::time::Duration;

use common::{
    MIB, add, child, copy_add, faults, is_child, limit, limited, panic_text, panics, runtime, said, small, succeeds,
};
use sterna::kernel::{Group, Kernel, each_mut, scatter};
use sterna::kernels::{fill, saxpy};
use sterna::{Error, Mechanism, Runtime, Shared};

#[test]
fn lengths() {
    let rt = runtime(small(8 * MIB));
    assert!(matches!(rt.shared::<u32>(0), Err(Error::Length { len: 0, elem: 4, .. })));
    assert!(matches!(rt.shared::<u64>(usize::MAX), Err(Error::Length { .. })));
    assert!(matches!(rt.shared::<u8>(1 << 45), Err(Error::Length { .. } | Error::TooBig { .. })));
    assert!(matches!(rt.shared::<()>(7), Err(Error::Length { elem: 0, .. })));
    assert!(matches!(rt.shared_from::<u32>(&[]), Err(Error::Length { .. })));
}

#[test]
fn host_memory_is_asked_for_before_it_is_touched() {
    let rt = runtime(small(8 * MIB));
    let mut touched = false;
    let e = rt.shared_with::<u64>(1 << 37, |_| {
        touched = true;
        0
    });
    assert!(matches!(e, Err(Error::OutOfHostMemory { requested, .. }) if requested == 1 << 40), "{e:?}");
    assert!(!touched);
}

#[test]
fn views_outside() {
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(100).unwrap();
    assert!(matches!(x.range(50..101), Err(Error::Range { start: 50, end: 101, len: 100 })));
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let reversed = x.range(7..3).map(|_| ());
    assert!(matches!(reversed, Err(Error::Range { .. })));
    assert!(matches!(x.range_mut(..=100), Err(Error::Range { .. })));
    assert!(matches!(x.split_at_mut(101), Err(Error::Range { .. })));
    assert!(matches!(x.host(0..=usize::MAX), Err(Error::Range { .. })));
    assert!(matches!(x.write_from(&[1; 99]), Err(Error::Range { .. })));
    assert_eq!(x[..], [0; 100], "nothing was harmed");
}

#[test]
fn arguments_that_do_not_fit() {
    let (rt, other) = (runtime(small(8 * MIB)), runtime(small(8 * MIB)));
    let x = rt.shared::<f32>(100_000).unwrap();
    let mut y = rt.shared::<f32>(10).unwrap();
    let e = rt.launch(&saxpy(1.0), (&x, &mut y)).unwrap_err();
    assert!(matches!(e, Error::Arguments { kernel: "saxpy", .. }) && e.to_string().contains("10 elements"), "{e}");
    let mut z = other.shared::<f32>(100_000).unwrap();
    let e = rt.launch(&saxpy(1.0), (&x, &mut z)).unwrap_err();
    assert!(matches!(e, Error::OtherRuntime { index: 1, .. }), "{e}");
    let empty = y.range_mut(3..3).unwrap();
    let mut empty = empty;
    assert!(matches!(rt.launch(&fill(1.0_f32), (&mut empty,)), Err(Error::Arguments { .. })));
    drop(empty);
    fn count(_: Group, (): (), cells: &[std::sync::atomic::AtomicU32]) {
        cells[0].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    let mut c = rt.shared::<u32>(1).unwrap();
    let k = Kernel::new("count", (), (scatter::<u32>(),), count);
    let e = rt.launch(&k, (&mut c,)).unwrap_err();
    assert!(e.to_string().contains("groups"), "{e}");
    rt.launch(&k.groups(5), (&mut c,)).unwrap();
    assert_eq!(c[0], 5);
    let mut w = rt.shared::<u32>(4096).unwrap();
    assert!(matches!(rt.launch(&add(1).groups(9), (&mut w,)), Err(Error::Arguments { .. })));
    assert!(y.iter().all(|v| *v == 0.0), "nothing was harmed");
}

#[test]
fn names_that_nothing_has() {
    let e = Runtime::builder().device("cuda:7").build().unwrap_err().to_string();
    assert!(e.contains("cuda:7") && e.contains("cpu:0"), "{e}");
    let e = Runtime::builder().policy("psychic").map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("psychic") && e.contains("declared"), "{e}");
    let e = "telepathy".parse::<Mechanism>().unwrap_err().to_string();
    assert!(e.contains("telepathy") && e.contains("transparent"), "{e}");
}

#[test]
fn budgets_and_mechanisms() {
    let _limit = limit();
    let e = Runtime::builder().device("cpu:0").memory(65536).build().unwrap_err();
    assert!(matches!(e, Error::BudgetTooSmall { .. }) && e.to_string().contains("STERNA_DEVICE_MEMORY"), "{e}");
    let rt = runtime(small(8 * MIB));
    let other = if faults(&rt) { Mechanism::None } else { Mechanism::Signal };
    let e = Runtime::builder().host_faults(other).build().unwrap_err();
    assert!(matches!(e, Error::MechanismInUse { .. }), "{e}");
    let many: Vec<_> = (0..9).map(|_| Runtime::builder().device("cpu:1").memory(4 << 20).build()).collect();
    assert!(many.iter().any(|r| matches!(r, Err(Error::TooManyDevices { .. }))));
}

#[test]
fn environment_values() {
    if is_child() {
        match Runtime::new() {
            Ok(_) => println!("made a runtime"),
            Err(e) => println!("said: {e}"),
        }
        return;
    }
    for (name, value, hint) in [
        ("STERNA_DEVICE", "toaster:0", "cpu:0"),
        ("STERNA_DEVICE_MEMORY", "lots", "64KiB"),
        ("STERNA_DEVICE_MEMORY", "0", "at least 1"),
        ("STERNA_POLICY", "psychic", "demand"),
        ("STERNA_HOST_FAULTS", "telepathy", "signal"),
        ("STERNA_CPU_WORKERS", "-3", "whole number"),
    ] {
        let text = succeeds(child("environment_values").env(name, value));
        assert!(text.contains("said:") && text.contains(value) && text.contains(hint), "{name}={value}: {text}");
    }
}

#[test]
fn limits_of_the_process() {
    if is_child() {
        match Runtime::builder().device("cpu:0").memory(8 << 20).build() {
            Ok(rt) => {
                let mut y = rt.shared::<u32>(100_000).unwrap();
                rt.launch(&fill(3_u32), (&mut y,)).unwrap();
                assert!(y.iter().all(|v| *v == 3));
                println!("works with an arena of {} bytes", rt.space().bytes());
            }
            Err(e) => println!("said: {e}"),
        }
        return;
    }
    // Address space: a smaller arena, or an error that names the limit; never a crash.
    for kib in ["2000000", "200000000"] {
        let o = limited("limits_of_the_process", &format!("ulimit -v {kib}")).output().unwrap();
        let text = said(&o);
        assert!(o.status.success() && (text.contains("ulimit -v") || text.contains("works with")), "{kib}: {text}");
    }
    // File size: the arena is a file, and one that is too long would end the process with SIGXFSZ.
    let text = succeeds(&mut limited("limits_of_the_process", "ulimit -f 100"));
    assert!(text.contains("ulimit -f"), "{text}");
}

#[test]
fn a_kernel_that_panics_taints_what_it_would_have_written() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(100_000).unwrap();
    let p = rt.launch(&panics(), (&mut x,)).unwrap();
    let reader = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
    assert!(matches!(p.wait(), Err(Error::Kernel { kernel: "panics", .. })));
    assert!(matches!(reader.wait(), Err(Error::Upstream { kernel: "copy_add", .. })));
    assert!(panic_text(|| assert_eq!(std::hint::black_box(x[0]), 0)).contains("as planned"));
    assert!(matches!(x.try_read(), Err(Error::Kernel { .. })));
    assert!(matches!(y.try_read(), Err(Error::Upstream { .. })));
    // Healed by a launch that replaces everything, and by the host.
    rt.launch(&fill(5_u32), (&mut x,)).unwrap();
    assert!(x.iter().all(|v| *v == 5));
    y.fill_with(|i| i as u32).unwrap();
    assert_eq!(y[99_999], 99_999);
    rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
    assert!(y.iter().all(|v| *v == 6));
    rt.sync().unwrap();
}

#[test]
fn sync_tells_of_an_error_once() {
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(5000).unwrap();
    drop(rt.launch(&panics(), (&mut x,)).unwrap());
    assert!(matches!(rt.sync(), Err(Error::Kernel { .. })));
    rt.sync().unwrap();
}

static INSIDE: OnceLock<(Runtime, Shared<u32>)> = OnceLock::new();

#[test]
fn a_kernel_neither_launches_nor_waits() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let other = rt.shared::<u32>(10).unwrap();
    let _ = INSIDE.set((rt.clone(), other));
    fn body(_: Group, (): (), out: &mut [u32]) {
        let Some((rt, _)) = INSIDE.get() else { return };
        let mut mine = rt.shared::<u32>(8).unwrap();
        let launch = matches!(rt.launch(&add(1), (&mut mine,)), Err(Error::InsideKernel));
        out[0] = u32::from(launch) + 2 * u32::from(matches!(rt.sync(), Err(Error::InsideKernel)));
    }
    let mut out = rt.shared::<u32>(1).unwrap();
    rt.launch(&Kernel::new("inside", (), (each_mut(1),), body), (&mut out,)).unwrap();
    assert_eq!(out[0], 3);
}

#[test]
fn dropped_while_in_flight() {
    let _limit = limit();
    for _ in 0..20 {
        let rt = runtime(small(4 * MIB));
        let x = rt.shared_with(1 << 20, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(1 << 20).unwrap();
        let p = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        drop(x);
        drop(y);
        drop(rt);
        // The runtime's end waits for what was launched; the handle outlives it.
        assert!(p.wait_timeout(Duration::from_secs(20)).unwrap());
    }
}
