//! Many runtimes in one process, as a test harness makes them: up to as many devices as there are places, and a clear error beyond.

mod common;

use std::sync::Barrier;

use common::*;
use sterna::hmm::MAX_DEVICES;
use sterna::kernels::saxpy;
use sterna::{Error, Runtime};

/// A test as any: a runtime of its own, a launch, a look at the result.
fn a_test(i: usize) -> Result<(), Error> {
    let rt = Runtime::builder().device("cpu:0").memory(64 << 20).build()?;
    let x = rt.shared_with(10_000, |j| (i + j) as f32)?;
    let mut y = rt.shared::<f32>(10_000)?;
    rt.launch(&saxpy(2.0), (&x, &mut y))?;
    assert!(y.iter().enumerate().all(|(j, v)| *v == 2.0 * (i + j) as f32));
    Ok(())
}

/// So many threads, each with three such tests one after the other: how many went through, and the errors of the others.
fn at_once(n: usize) -> (usize, Vec<Error>) {
    let together = Barrier::new(n);
    let each = |i| {
        together.wait();
        (0..3).try_for_each(|_| a_test(i))
    };
    let results: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..n).map(|i| s.spawn(move || each(i))).collect();
        threads.into_iter().map(|t| t.join().expect("a wrong result")).collect()
    });
    (results.iter().filter(|r| r.is_ok()).count(), results.into_iter().filter_map(Result::err).collect())
}

#[test]
fn as_many_tests_at_once_as_there_are_places_have_a_runtime_each() {
    let name = "as_many_tests_at_once_as_there_are_places_have_a_runtime_each";
    let _limit = limit();
    if !is_child() {
        succeeds(child(name).env("STERNA_CPU_WORKERS", "1")); // other tests have devices of their own
        return;
    }
    let (passed, errors) = at_once(MAX_DEVICES);
    assert_eq!((passed, errors.len()), (MAX_DEVICES, 0), "{errors:?}");
    // More, which all keep theirs until each has one or an error.
    let together = Barrier::new(MAX_DEVICES + 16);
    let one = || {
        let rt = Runtime::builder().device("cpu:0").memory(64 << 20).build();
        together.wait();
        rt.map(drop)
    };
    let made: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..MAX_DEVICES + 16).map(|_| s.spawn(one)).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    let errors: Vec<_> = made.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(errors.iter().all(|e| matches!(e, Error::TooManyDevices { limit: MAX_DEVICES })), "{errors:?}");
    assert_eq!(errors.len(), 16);
}

#[test]
fn a_runtime_that_could_not_be_made_gives_its_places_back() {
    let name = "a_runtime_that_could_not_be_made_gives_its_places_back";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // other tests have devices of their own
        return;
    }
    for round in 0..2 * MAX_DEVICES {
        let e = Runtime::builder().device("cpu:0").device("cpu:700").build().unwrap_err();
        assert!(matches!(e, Error::UnknownName { .. }), "{round}: {e}");
    }
    let keep = runtime_of(&vec![small(MIB); MAX_DEVICES - 1]);
    let two = |b: sterna::Builder| b.open_device(device(small(MIB))).open_device(device(small(MIB))).build();
    for round in 0..3 {
        let e = two(Runtime::builder()).unwrap_err();
        assert!(matches!(e, Error::TooManyDevices { limit: MAX_DEVICES }), "{round}: {e}");
    }
    drop(runtime(small(MIB))); // the last place is free
    drop(keep);
    two(Runtime::builder()).unwrap();
}

#[test]
fn places_are_used_again_with_nothing_of_their_last_device_in_them() {
    let _limit = limit();
    let keep = runtime(small(MIB));
    let mut x = keep.shared_with(5 * MIB / 4, |i| i as u32).unwrap();
    for round in 0..20_u32 {
        // Another runtime in the same place each time, with an allocation of its own of the same blocks.
        let rt = runtime(if round % 2 == 0 { small(MIB) } else { rigid(8 * MIB) });
        let mut y = rt.shared_with(3 * MIB / 4, |i| i as u32).unwrap();
        rt.launch(&add(round), (&mut y,)).unwrap();
        keep.launch(&add(1), (&mut x,)).unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + round), "{round}");
    }
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 20));
}
