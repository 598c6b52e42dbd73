//! Forked children: shared memory and devices stay with the parent.

mod common;

use common::*;
use sterna::{Error, ForkPolicy, Runtime};

/// Forks; the child runs `f` and ends with what it returns. Gives the wait status.
fn forked(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `f` and leaves by `_exit`, without the parent's destructors; this process is a child of the test
    // with one thread of its own, so that no lock of the program is held across the fork.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::alarm(20);
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(99);
            libc::_exit(code);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}

fn is_forked<T>(r: Result<T, Error>) -> bool {
    matches!(r, Err(Error::Forked))
}

fn in_a_child(name: &str, f: impl FnOnce()) {
    if is_child() {
        f();
    } else {
        succeeds(&mut child(name));
    }
}

#[test]
fn calls_say_so_and_drops_do_nothing() {
    in_a_child("calls_say_so_and_drops_do_nothing", || {
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
            let y = rt.shared_with(300_000, |i| i as u32).unwrap();
            let z = rt.shared_with(10, |_| 1_u32).unwrap();
            let p = rt.launch(&add(1), (&mut x,)).unwrap();
            let guard = y.host(..1000).unwrap();
            p.wait().unwrap();
            let status = forked(|| {
                let dev = rt.devices()[0].clone();
                let calls = [
                    is_forked(rt.shared::<u32>(10)),
                    is_forked(rt.shared_with(10, |i| i as u32)),
                    is_forked(rt.launch(&add(1), (&mut x,))),
                    is_forked(rt.sync()),
                    is_forked(p.wait()),
                    is_forked(p.wait_timeout(std::time::Duration::ZERO)),
                    is_forked(x.try_read()),
                    is_forked(x.host(..)),
                    is_forked(x.host_mut(..)),
                    is_forked(x.fill_with(|_| 1)),
                    is_forked(x.write_from(&vec![0; 300_000])),
                    is_forked(Runtime::new()),
                    is_forked(Runtime::builder().device("cpu:0").build()),
                    !p.is_done(),
                ];
                x.prefetch_to(&dev);
                x.prefetch_to_host();
                let _ = (rt.stats(), x.residency(), x.pages(), x.len(), format!("{x:?} {rt:?} {p:?}"));
                let view = x.range(5..10).map(drop).is_ok();
                drop((guard, dev, p));
                drop((x, z));
                drop(rt);
                let wrong = calls.iter().position(|ok| !ok);
                if view { wrong.map_or(0, |i| i as i32 + 1) } else { 50 }
            });
            assert_eq!(status, 0, "{how}: the child's exit code is {} (signal {})", status >> 8, status & 127);
        }
    });
}

#[test]
fn the_parent_goes_on() {
    in_a_child("the_parent_goes_on", || {
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
            let mut y = rt.shared::<u32>(300_000).unwrap();
            for _ in 0..3 {
                rt.launch(&add(1), (&mut x,)).unwrap(); // perhaps running at the fork
                assert_eq!(forked(|| 7), 7 << 8);
                rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
                x[3] += 0;
            }
            assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 3), "{how}");
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 4), "{how}");
            x.fill_with(|_| 1).unwrap();
            drop(y);
            let mut z = rt.shared::<u32>(300_000).unwrap();
            rt.launch(&copy_add(1), (&x, &mut z)).unwrap();
            assert!(z.iter().all(|v| *v == 2), "{how}");
        }
    });
}

#[test]
fn touching_shared_memory_ends_the_child() {
    in_a_child("touching_shared_memory_ends_the_child", || {
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let home = rt.shared_with(300_000, |i| i as u32).unwrap();
            let mut away = rt.shared_with(300_000, |i| i as u32).unwrap();
            rt.launch(&add(1), (&mut away,)).unwrap().wait().unwrap();
            for (what, x) in [("at home", &home), ("away", &away)] {
                let at = x.as_host_ptr();
                let by_handle = forked(|| i32::from(x[5] == 12_345));
                assert_eq!(by_handle & 127, libc::SIGSEGV, "{how}, {what}: {by_handle:#x}");
                // SAFETY: the address of an element; in the child it leads nowhere, which is what is tested.
                let raw = forked(|| i32::from(unsafe { at.read_volatile() } == 12_345));
                assert_eq!(raw & 127, libc::SIGSEGV, "{how}, {what}: {raw:#x}");
            }
            assert_eq!((home[5], away[5]), (5, 6), "{how}");
        }
    });
}

#[test]
fn a_child_may_start_a_program_that_uses_it() {
    in_a_child("a_child_may_start_a_program_that_uses_it", || {
        let rt = runtime(small(8 * MIB));
        let mut x = rt.shared::<u32>(1000).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap();
        if std::env::var_os("STERNA_TEST_NESTED").is_none() {
            let name = "a_child_may_start_a_program_that_uses_it";
            succeeds(child(name).env("STERNA_TEST_NESTED", "1"));
        }
        assert_eq!(x[0], 1);
    });
}

#[test]
fn children_find_what_was_asked_for() {
    in_a_child("children_find_what_was_asked_for", || {
        const N: usize = 300_000;
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let make = || {
                let mut x = rt.shared_with(N, |i| i as u32).unwrap();
                rt.launch(&add(1), (&mut x,)).unwrap(); // perhaps running at the fork
                x
            };
            let (mut kept, mut wiped, none) = (make(), make(), make());
            let copy = kept.cow_clone().unwrap();
            kept.set_fork_policy(ForkPolicy::Preserve).unwrap();
            copy.set_fork_policy(ForkPolicy::Preserve).unwrap();
            wiped.set_fork_policy(ForkPolicy::Wipe).unwrap();
            none.set_fork_policy(ForkPolicy::Preserve).unwrap();
            none.set_fork_policy(ForkPolicy::DontFork).unwrap();
            rt.launch(&add(1), (&mut kept,)).unwrap();
            for round in 0..2_u32 {
                let status = forked(|| {
                    let ok = kept.iter().enumerate().all(|(i, v)| *v == i as u32 + 2 + round);
                    let ok = ok && copy.iter().enumerate().all(|(i, v)| *v == i as u32 + 1);
                    let ok = ok && wiped.iter().all(|v| *v == 0);
                    kept.iter_mut().for_each(|v| *v = 7);
                    wiped[N - 1] = 8;
                    let refused = is_forked(kept.set_fork_policy(ForkPolicy::Wipe)) && is_forked(kept.discard(..));
                    if ok && refused && kept[5] == 7 && wiped[N - 1] == 8 { 0 } else { 1 }
                });
                assert_eq!(status, 0, "{how}, round {round}: exit code {} (signal {})", status >> 8, status & 127);
                // The parent sees nothing of it, and goes on.
                rt.launch(&add(1), (&mut kept,)).unwrap();
                assert!(kept.iter().enumerate().all(|(i, v)| *v == i as u32 + 3 + round), "{how}");
                assert!(wiped.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
                assert!(copy.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
            }
            let status = forked(|| none[5] as i32);
            assert_eq!(status & 127, libc::SIGSEGV, "{how}: nothing was to be there");
            drop((kept, wiped, copy));
            assert_eq!(forked(|| 0), 0);
        }
    });
}
