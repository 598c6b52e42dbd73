//! Exclusive access (the specification's section 3.4) and its blind spots.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sterna::hmm::{ForkPolicy, Prot};
use sterna::kernel::{Group, Kernel, Scatter, Spirv, scatter};

use crate::device::{Dev, Errno};
use crate::forks::{fork, status};
use crate::memory::{Memory, WORDS, counting};
use crate::{Ctx, N, Outcome, Test, adapted, direct};

pub(crate) const TESTS: &[Test] = &[
    direct("hmm.exclusive", exclusive),
    direct("hmm.exclusive_mprotect", exclusive_mprotect),
    adapted("blind.exclusive_contention", "two devices ask for the same pages in turn", exclusive_contention),
    adapted("blind.exclusive_ends", "what ends exclusive access, one after the other", exclusive_ends),
    adapted("blind.exclusive_atomics", "atomic additions of the host and two devices at once", exclusive_atomics),
];

/// EXCLUSIVE, then reads the range back.
fn take(dev: &Dev, m: &Memory) -> Result<(u64, Vec<u32>), Errno> {
    dev.attached.make_exclusive(&m.pages(m.all()))?;
    Ok((held(dev, m), dev.peek(m, m.all()).ok_or(Errno::NoEntry)?))
}

/// CHECK_EXCLUSIVE: the pages that the device still has to itself.
fn held(dev: &Dev, m: &Memory) -> u64 {
    dev.attached.exclusive(&m.pages(m.all())).unwrap()
}

fn exclusive(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    assert_eq!(take(&dev, &m), Ok((N, counting(N, 0))));
    for (i, w) in m.words_mut().iter_mut().enumerate() {
        assert_eq!(*w, i as u32);
        *w += 1;
    }
    m.expect(m.all(), 1);
    assert_eq!(held(&dev, &m), 0, "the host has touched every page");
    let mut out = vec![0; N as usize * WORDS];
    dev.read(&m, m.all(), &mut out).unwrap();
    assert_eq!(out, counting(N, 1));
    Ok(())
}

fn exclusive_mprotect(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    assert_eq!(take(&dev, &m), Ok((N, counting(N, 0))));
    m.protect(m.all(), Prot::Read);
    assert_eq!(held(&dev, &m), 0);
    assert_eq!(dev.write(&m, m.all(), &counting(N, 5)), Err(Errno::Perm));
    assert_eq!(dev.attached.make_exclusive(&m.pages(m.all())).map_err(Errno::from), Err(Errno::Perm));
    m.expect(m.all(), 0);
    Ok(())
}

fn exclusive_contention(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(64));
    for i in 0..10 {
        let (winner, loser) = if i % 2 == 0 { (&dev0, &dev1) } else { (&dev1, &dev0) };
        assert_eq!(take(winner, &m), Ok((64, counting(64, i))));
        assert_eq!((held(winner, &m), held(loser, &m)), (64, 0));
        assert_eq!(loser.peek(&m, 0..1), None, "another device's entry beside an exclusive one");
        assert_eq!(winner.write(&m, m.all(), &counting(64, i + 1)).map(|c| c.faults), Ok(0));
    }
    m.expect(m.all(), 10);
    assert_eq!((held(&dev0, &m), held(&dev1, &m)), (0, 0));
    Ok(())
}

fn exclusive_ends(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(32));
    let mut out = vec![0; 32 * WORDS];
    let again = |from| assert_eq!(take(&dev0, &m), Ok((32, counting(32, from))));
    again(0);
    assert_eq!(dev0.snapshot(&m, 0..1).unwrap()[0] & 2, 2, "its own");
    assert_eq!(dev1.snapshot(&m, 0..1), Ok(vec![0]), "another device's: nothing now, and a fault would change that");
    assert_eq!(held(&dev0, &m), 32, "a snapshot changes nothing");
    dev1.read(&m, m.all(), &mut out).unwrap();
    assert_eq!((held(&dev0, &m), &out), (0, &counting(32, 0)), "another device reads");
    again(0);
    dev1.write(&m, m.all(), &counting(32, 1)).unwrap();
    assert_eq!(held(&dev0, &m), 0, "another device writes");
    again(1);
    dev0.to_sys(&m, m.all()).unwrap();
    assert_eq!(held(&dev0, &m), 0, "the pages come home");
    again(1);
    if dev1.to_dev(&m, m.all()).is_ok() {
        assert_eq!(held(&dev0, &m), 0, "they move to another device");
    }
    again(1);
    // SAFETY: nobody uses the bytes.
    unsafe { m.space.discard(&m.pages(0..8)) }.unwrap();
    assert_eq!(held(&dev0, &m), 24, "contents are dropped");
    m.unmap(8..16);
    assert_eq!(held(&dev0, &m), 16, "pages are unmapped");
    assert_eq!(m.page(16)[0], 16 * WORDS as u32 + 1);
    let left = held(&dev0, &m);
    assert!(left < 16, "the host reads");
    dev0.attached.release_memory().unwrap();
    m.expect(16..32, 1);
    assert_eq!(held(&dev0, &m), 0);
    let m = ctx.filled(32);
    assert_eq!(take(&dev0, &m), Ok((32, counting(32, 0))));
    m.remap(0..16, 16..32, true);
    assert_eq!(held(&dev0, &m), 0, "pages get other addresses");
    assert_eq!((m.page(0)[0], m.page(16)[1]), (0, 1));
    let m = ctx.filled(32);
    m.seg.set_fork_policy(ForkPolicy::Preserve).expect("not in a child");
    assert_eq!(take(&dev0, &m), Ok((32, counting(32, 0))));
    let child = fork(|| i32::from(m.page(31)[5] != 31 * WORDS as u32 + 5));
    assert_eq!((status(child), held(&dev0, &m)), (0, 0), "a fork copies them");
    Ok(())
}

/// Adds one to the first number of each page, from every group.
pub(crate) fn add_ones() -> Kernel<(Scatter<u32>,)> {
    fn body(_: Group, (): (), words: &[AtomicU32]) {
        words.iter().step_by(WORDS).for_each(|w| {
            w.fetch_add(1, Ordering::Relaxed);
        });
    }
    let kernel = Kernel::new("add_ones", (), (scatter(),), body).groups(4);
    // SAFETY: the module does what `body` does, by atomic additions.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("glsl/add_ones.spv"))) }
}

fn exclusive_atomics(ctx: &Ctx<'_>) -> Outcome {
    const ROUNDS: u32 = 25;
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.mem(16));
    let stop = AtomicBool::new(false);
    let words: Vec<&AtomicU32> = (0..16)
        // SAFETY: the segment's bytes, used by atomic operations alone while the threads run.
        .map(|p| unsafe { AtomicU32::from_ptr(m.seg.as_host_ptr().cast::<u32>().add(p * WORDS)) })
        .collect();
    let mut mine = 0;
    std::thread::scope(|s| {
        for dev in [&dev0, &dev1] {
            let (m, stop) = (&m, &stop);
            s.spawn(move || {
                for _ in 0..ROUNDS {
                    let _ = dev.attached.make_exclusive(&m.pages(m.all()));
                    dev.run(&add_ones(), &[m.operand(m.all())]).unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        while !stop.load(Ordering::Relaxed) || mine < 100 {
            words.iter().for_each(|w| {
                w.fetch_add(1, Ordering::Relaxed);
            });
            mine += 1;
            std::thread::yield_now();
        }
    });
    let want = mine + 2 * 4 * ROUNDS;
    let got: Vec<u32> = words.iter().map(|w| w.load(Ordering::Relaxed)).collect();
    assert_eq!(got, vec![want; 16]);
    Ok(())
}
