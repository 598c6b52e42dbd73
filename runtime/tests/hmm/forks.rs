//! Forked children (the specification's sections 2.4, 3.1, 3.4 and 3.5).
//!
//! A child has no runtime: what a device does in the kernel's tests, the child's own stores do here. A child does nothing but load,
//! store and exit.

use sterna::hmm::ForkPolicy;

use crate::device::seen;
use crate::memory::{Memory, WORDS, counting};
use crate::{BLOCK, Ctx, N, Outcome, Test, adapted, direct};

pub(crate) const TESTS: &[Test] = &[
    adapted("hmm.anon_write_child", "the child's own stores stand for those of a device of its own", anon_write_child),
    direct("hmm.anon_write_child_shared", anon_write_child_shared),
    direct("hmm.exclusive_cow", exclusive_cow),
    adapted("hmm.hmm_cow_in_device", "the child is killed while the parent goes on", hmm_cow_in_device),
    direct("hmm.anon_write_hugetlbfs", anon_write_hugetlbfs),
    adapted("blind.fork_policies", "nothing, or zeros, instead of a copy", fork_policies),
];

fn kept(ctx: &Ctx<'_>, pages: u64) -> Memory {
    let m = ctx.filled(pages);
    m.seg.set_fork_policy(ForkPolicy::Preserve).expect("not in a child");
    m
}

/// Forks; the child ends with what `child` returns. Gives the child's number.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child loads, stores and leaves by `_exit`.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::alarm(20);
            libc::_exit(child());
        }
        pid
    }
}

pub(crate) fn status(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

/// Whether the memory holds `0, 1, 2 …` plus `from`.
fn holds(m: &Memory, from: u32) -> bool {
    m.words().iter().enumerate().all(|(i, w)| *w == (i as u32).wrapping_add(from))
}

/// Whether a child finds those numbers.
pub(crate) fn child_sees(m: &Memory, from: u32) -> bool {
    status(fork(|| i32::from(!holds(m, from)))) == 0
}

fn anon_write_child(ctx: &Ctx<'_>) -> Outcome {
    for (migrate, pages) in [(false, N), (true, N), (false, BLOCK), (true, BLOCK)] {
        let (dev, m) = (ctx.dev(0), kept(ctx, pages));
        if migrate {
            // What the host's storage still has is out of date.
            m.fill(9);
            assert_eq!(dev.to_dev(&m, m.all()), Ok((pages, counting(pages, 9))));
            dev.write(&m, m.all(), &counting(pages, 0)).unwrap();
        }
        let child = fork(|| {
            if !holds(&m, 0) {
                return 1;
            }
            m.words_mut().iter_mut().enumerate().for_each(|(i, w)| *w = (i as u32).wrapping_neg());
            i32::from(!m.words().iter().enumerate().all(|(i, w)| *w == (i as u32).wrapping_neg())) * 2
        });
        assert_eq!(status(child), 0, "migrated: {migrate}: the child does not see what was there, or not what it stored");
        m.expect(m.all(), 0);
        let mut out = vec![0; pages as usize * WORDS];
        dev.read(&m, m.all(), &mut out).unwrap();
        assert_eq!(out, counting(pages, 0));
    }
    Ok(())
}

fn anon_write_child_shared(_: &Ctx<'_>) -> Outcome {
    Err("a child has no shared memory: it gets a copy of its own, zeros, or nothing")
}

fn anon_write_hugetlbfs(_: &Ctx<'_>) -> Outcome {
    Err("segments are of the arena's file, which is not on hugetlbfs; huge folios are `hmm.anon_write_huge`")
}

fn exclusive_cow(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), kept(ctx, N));
    dev.attached.make_exclusive(&m.pages(m.all())).unwrap();
    assert_eq!(dev.peek(&m, m.all()), Some(counting(N, 0)));
    let child = fork(|| {
        if !holds(&m, 0) {
            return 1;
        }
        m.words_mut().iter_mut().for_each(|w| *w += 1);
        i32::from(!holds(&m, 1)) * 2
    });
    m.expect(m.all(), 0);
    m.words_mut().iter_mut().for_each(|w| *w += 1);
    m.expect(m.all(), 1);
    assert_eq!(status(child), 0);
    assert_eq!(dev.attached.exclusive(&m.pages(m.all())).unwrap(), 0);
    m.expect(m.all(), 1);
    Ok(())
}

fn hmm_cow_in_device(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), kept(ctx, 4));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((4, counting(4, 0))));
    let child = fork(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    m.words_mut().iter_mut().for_each(|w| *w += 1);
    // SAFETY: our own child.
    unsafe { libc::kill(child, libc::SIGKILL) };
    assert_eq!(status(child) & 127, libc::SIGKILL);
    assert_eq!(dev.snapshot(&m, m.all()), Ok(vec![seen::WRITE; 4]));
    m.expect(m.all(), 1);
    Ok(())
}

fn fork_policies(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(32));
    dev.to_dev(&m, m.all()).unwrap();
    let touched = fork(|| i32::from(m.words()[3] == 3) * 40);
    assert_eq!(status(touched) & 127, libc::SIGSEGV, "nothing is there unless it was asked for");
    m.seg.set_fork_policy(ForkPolicy::Wipe).unwrap();
    let zeros = fork(|| i32::from(!m.words().iter().all(|w| *w == 0)));
    assert_eq!(status(zeros), 0);
    m.expect(m.all(), 0);
    Ok(())
}
