//! Signals that somebody sends beside a handler of the program's that gives way to the default action: they do what they did before the
//! runtime, and faults are served as before.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use common::limits::*;
use common::*;
use sterna::Runtime;

/// As the standard library's handler, for what is no overflow of a stack.
extern "C" fn gives_way(signal: libc::c_int) {
    // SAFETY: the default action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

fn send(signal: libc::c_int) {
    // SAFETY: sends this process a signal.
    unsafe { libc::kill(libc::getpid(), signal) };
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn a_signal_that_a_handler_survives_once_takes_no_fault_away() {
    let name = "a_signal_that_a_handler_survives_once_takes_no_fault_away";
    let _limit = limit();
    if !is_child() {
        for m in MECHANISMS.into_iter().filter(|m| *m != "transparent" || is_root()) {
            for handler in ["standard", "own"] {
                let mut c = child(name);
                c.env("STERNA_HOST_FAULTS", m).env("STERNA_CPU_WORKERS", "2").env("HANDLER", handler);
                let o = c.output().unwrap();
                assert!(said(&o).contains("survived") && o.status.signal() == Some(libc::SIGSEGV), "{m}: {}", said(&o));
            }
        }
        return;
    }
    let own = std::env::var("HANDLER").unwrap() == "own";
    let signals = [libc::SIGBUS, libc::SIGSEGV];
    if own {
        let handler = gives_way as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: a handler of one argument, which calls nothing but `signal`.
        signals.iter().for_each(|s| unsafe { _ = libc::signal(*s, handler) });
    }
    // Its kernels and the host fault, each in its own way.
    let rt = Runtime::builder().device("cpu:0").policy("demand").unwrap().build().unwrap();
    right(&rt);
    signals.into_iter().for_each(send);
    right(&rt);
    right(&rt);
    println!("survived");
    send(libc::SIGSEGV);
    println!("and once more");
}
