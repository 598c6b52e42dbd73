//! Pins (the specification's section 3.5) and system calls.

use sterna::Mechanism;
use sterna::hmm::{PinKind, Prot};

use crate::device::{Errno, seen};
use crate::memory::{Memory, WORDS, counting};
use crate::{Ctx, Outcome, Test, adapted};

pub(crate) const TESTS: &[Test] = &[
    adapted("hmm.hmm_gup_test", "`pin` of both kinds stands for the kernel's four calls", hmm_gup_test),
    adapted("blind.pinned_pages_stay", "migration of a pinned page is refused", pinned_pages_stay),
    adapted("blind.system_calls", "reads and writes of the system on pages that a device has", system_calls),
];

fn hmm_gup_test(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(4));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((4, counting(4, 0))));
    let pins: Vec<_> = [PinKind::Short, PinKind::Short, PinKind::Long, PinKind::Long]
        .into_iter()
        .enumerate()
        .map(|(p, kind)| ctx.space.pin(&m.pages(p as u64..p as u64 + 1), kind, true).unwrap())
        .collect();
    let stays = if ctx.config.coherent { seen::COHERENT_LOCAL | seen::WRITE } else { seen::WRITE };
    assert_eq!(dev.snapshot(&m, m.all()), Ok(vec![stays, stays, seen::WRITE, seen::WRITE]));
    m.expect(m.all(), 0);
    drop(pins);
    m.expect(m.all(), 0);
    Ok(())
}

fn pinned_pages_stay(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(8));
    let pin = ctx.space.pin(&m.pages(3..5), PinKind::Long, true).unwrap();
    let twice = ctx.space.pin(&m.pages(4..5), PinKind::Long, false).unwrap();
    let done = dev.attached.migrate(&m.pages(m.all())).unwrap();
    assert_eq!((done.moved, done.refused), (6, 2));
    assert_eq!(dev.peek(&m, 4..5), None);
    m.page_mut(4)[0] += 1;
    // A device that can use the page where it is may do so; another cannot have it.
    let mut out = vec![0; WORDS];
    match dev.read(&m, 4..5, &mut out) {
        Ok(_) => assert_eq!(out[0], 4 * WORDS as u32 + 1),
        Err(e) => assert_eq!((e, ctx.config.alias), (Errno::Pinned, false)),
    }
    drop(pin);
    assert_eq!(dev.attached.migrate(&m.pages(3..5)).unwrap().refused, 1, "one pin is left");
    drop(twice);
    assert_eq!(dev.attached.migrate(&m.pages(3..5)).unwrap().refused, 0);
    m.page_mut(4)[0] -= 1;
    m.expect(m.all(), 0);
    m.protect(0..1, Prot::Read);
    let asked = ctx.space.pin(&m.pages(0..2), PinKind::Short, true).map(drop).map_err(Errno::from);
    assert_eq!(asked, Err(Errno::Perm));
    m.protect(0..1, Prot::None);
    let asked = ctx.space.pin(&m.pages(0..2), PinKind::Short, false).map(drop).map_err(Errno::from);
    assert_eq!(asked, Err(Errno::Fault));
    assert_eq!(dev.attached.migrate(&m.pages(1..8)).unwrap().refused, 0, "a pin that failed pins nothing");
    Ok(())
}

/// What the system reads of a page through a pipe; `None` if it cannot.
fn through_a_pipe(m: &Memory, page: u64) -> Option<Vec<u32>> {
    let (mut pipe, mut out) = ([0; 2], vec![0_u32; WORDS]);
    // SAFETY: descriptors of our own and a buffer of one page; the system checks the page's address itself.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let n = libc::write(pipe[1], m.seg.as_host_ptr().add(page as usize * 4096).cast(), 4096);
        let read = n == 4096 && libc::read(pipe[0], out.as_mut_ptr().cast(), 4096) == 4096;
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        read.then_some(out)
    }
}

fn system_calls(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(4));
    dev.to_dev(&m, m.all()).unwrap();
    let got = through_a_pipe(&m, 1);
    if ctx.space.mechanism() == Mechanism::Transparent {
        assert_eq!(got, Some(m.page(1).to_vec()));
    } else {
        assert_eq!(got, None, "documented: EFAULT");
    }
    dev.to_dev(&m, m.all()).unwrap();
    let pin = ctx.space.pin(&m.pages(m.all()), PinKind::Short, false).unwrap();
    for p in 0..4 {
        let want: Vec<u32> = (0..WORDS as u32).map(|i| p as u32 * WORDS as u32 + i).collect();
        assert_eq!(through_a_pipe(&m, p), Some(want), "with a pin it works everywhere");
    }
    drop(pin);
    m.expect(m.all(), 0);
    Ok(())
}
