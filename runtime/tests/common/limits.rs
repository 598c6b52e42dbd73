//! What tests of hard surroundings share: limits, users, what a process takes, and a child under each mechanism.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::process::Command;

use sterna::Runtime;

use super::{add, child, copy_add, ran_already, succeeds};

/// Sets a limit, whatever more there may have been; says whether that could be done.
pub(crate) fn limit_to(what: libc::__rlimit_resource_t, to: u64) -> bool {
    let l = libc::rlimit { rlim_cur: to, rlim_max: to };
    // SAFETY: reads `l` only.
    unsafe { libc::setrlimit(what, &l) == 0 }
}

/// A user without privileges.
pub(crate) fn nobody() {
    // SAFETY: changes this process's user only.
    unsafe {
        libc::setgroups(0, std::ptr::null());
        libc::setgid(65534);
        libc::setuid(65534);
    }
}

pub(crate) fn is_root() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// Bytes of every launch and of the host's stores between are as they should be.
pub(crate) fn right(rt: &Runtime) {
    let n = 1 << 20;
    let x = rt.shared_with(n, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(n).unwrap();
    for round in 0..4 {
        rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        let wrong = y.iter().enumerate().position(|(i, v)| *v != i as u32 + 1);
        assert_eq!(wrong.map(|i| (i, y[i])), None, "round {round}");
        y[round] = 7;
        rt.launch(&add(1), (&mut y,)).unwrap();
        assert_eq!((y[round], y[n - 1]), (8, n as u32 + 1));
    }
}

/// KiB of this process by a line of `/proc/self/status`.
pub(crate) fn status(line: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = text.lines().find_map(|l| l.strip_prefix(line)).expect("a line");
    value.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap()
}

pub(crate) const MECHANISMS: [&str; 4] = ["transparent", "signal", "guard", "none"];

/// Runs the test as a child under each mechanism that there is.
pub(crate) fn under_each_mechanism(name: &str, also: impl Fn(&mut Command)) {
    if ran_already(name) {
        return;
    }
    for m in MECHANISMS.into_iter().filter(|m| *m != "transparent" || is_root()) {
        let mut c = child(name);
        c.env("STERNA_HOST_FAULTS", m).env("STERNA_DEVICE", "cpu:0").env("STERNA_CPU_WORKERS", "2");
        also(&mut c);
        succeeds(&mut c);
    }
}
