//! Forked children: calls say so, drops do nothing, shared memory is not there, and the parent notices nothing.

mod common;

use common::{MIB, add, child, is_child, limit, runtime, small, succeeds};
use sterna::Error;

/// Forks; the child runs `f` and exits with its answer, which the parent gets, or the signal that ended it, negated.
fn in_fork(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child does only what forked children may do with this crate, and leaves by `_exit`.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::_exit(f());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
    }
}

#[test]
fn children_are_told_and_parents_unharmed() {
    // In a process of its own: the other tests' threads may hold the allocator's lock at the fork.
    if !is_child() {
        succeeds(&mut child("children_are_told_and_parents_unharmed"));
        return;
    }
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared_with(1 << 20, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    let told = in_fork(|| {
        let forked = |e: Option<Error>| matches!(e, Some(Error::Forked));
        let calls = [
            forked(rt.shared::<u32>(8).err()),
            forked(rt.sync().err()),
            forked(x.try_read().err()),
            forked(x.host(..).err()),
            forked(rt.launch(&add(1), (&mut x,)).err()),
            rt.stats().devices.len() == 1,
            x.residency().pages == 1024,
        ];
        calls.iter().position(|ok| !ok).map_or(0, |i| i as i32 + 1)
    });
    assert_eq!(told, 0, "call number {told} did not say that it is in a forked child");
    assert_eq!(in_fork(|| i32::from(x[7] == 8)), -libc::SIGSEGV, "a touch ends the child");
    let ptr = x.as_host_ptr();
    // SAFETY: not sound, which is the point: the child must die of it.
    assert_eq!(in_fork(|| unsafe { ptr.read_volatile() } as i32), -libc::SIGSEGV);
    rt.launch(&add(1), (&mut x,)).unwrap();
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 2));
    let mut x = Some(x);
    let dropped = in_fork(|| {
        drop(x.take());
        0
    });
    assert_eq!(dropped, 0);
    let y = rt.shared_with(10, |i| i).unwrap();
    assert_eq!((y[9], x.unwrap()[9]), (9, 11));
}
