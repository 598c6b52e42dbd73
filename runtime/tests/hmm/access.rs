//! Device access to host memory (the specification's section 3.1).

use std::time::Duration;

use sterna::hal::Absent;
use sterna::hmm::Prot;

use crate::device::{Counts, Errno};
use crate::memory::{WORDS, counting, negative};
use crate::support::Random;
use crate::{BLOCK, Ctx, N, Outcome, Test, adapted, direct};

pub(crate) const TESTS: &[Test] = &[
    adapted("hmm.open_close", "no device memory and no segment is left behind", open_close),
    direct("hmm.anon_read", anon_read),
    direct("hmm.anon_read_prot", anon_read_prot),
    direct("hmm.anon_write", anon_write),
    direct("hmm.anon_write_prot", anon_write_prot),
    direct("hmm.anon_write_huge", anon_write_huge),
    direct("hmm.anon_read_multiple", anon_read_multiple),
    adapted("hmm.anon_teardown", "an error can only be *fault*", anon_teardown),
    adapted("hmm2.double_map", "a device that cannot fault keeps its entries, and copies that are good", double_map),
];

pub(crate) const ONCE: fn(u64) -> Result<Counts, Errno> = |cpages| Ok(Counts { cpages, faults: 1 });

fn open_close(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    dev.expect_frames(0);
    drop(dev);
    Ok(())
}

/// Pages 0 and 1 were never written, one of them never touched; the rest was, and may only be read.
fn anon_read(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(N));
    for (i, w) in m.words_mut().iter_mut().enumerate().skip(2 * WORDS) {
        *w = i as u32;
    }
    m.protect(m.all(), Prot::Read);
    assert_eq!(m.page(1)[5], 0);
    let mut out = vec![7; N as usize * WORDS];
    assert_eq!(dev.read(&m, m.all(), &mut out), ONCE(N));
    assert!(out[..2 * WORDS].iter().all(|w| *w == 0));
    assert_eq!(out[2 * WORDS..], counting(N, 0)[2 * WORDS..]);
    Ok(())
}

fn anon_read_prot(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    let mut out = negative(N);
    m.protect(m.all(), Prot::None);
    assert_eq!(dev.read(&m, m.all(), &mut out), Err(Errno::Fault));
    m.protect(m.all(), Prot::Read);
    m.expect(m.all(), 0);
    assert_eq!(out, negative(N), "the output of a read that failed");
    Ok(())
}

fn anon_write(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(N));
    assert_eq!(dev.write(&m, m.all(), &counting(N, 0)), ONCE(N));
    m.expect(m.all(), 0);
    Ok(())
}

fn anon_write_prot(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(N));
    m.protect(m.all(), Prot::Read);
    let mut out = vec![7; WORDS];
    assert_eq!(dev.read(&m, 0..1, &mut out), ONCE(1));
    assert_eq!(dev.write(&m, m.all(), &counting(N, 0)), Err(Errno::Perm));
    m.expect_all(|_| 0);
    m.protect(m.all(), Prot::Write);
    assert_eq!(dev.write(&m, m.all(), &counting(N, 0)), ONCE(N));
    m.expect(m.all(), 0);
    Ok(())
}

fn anon_write_huge(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(BLOCK));
    m.seg.prefer_huge();
    assert_eq!(dev.write(&m, m.all(), &counting(BLOCK, 0)), ONCE(BLOCK));
    m.expect(m.all(), 0);
    Ok(())
}

/// A new buffer each time, likely at the same addresses: an entry left over would show.
fn anon_read_multiple(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    for c in 0..10 {
        let m = ctx.mem(N);
        m.fill(c);
        let mut out = vec![0; N as usize * WORDS];
        assert_eq!(dev.read(&m, m.all(), &mut out), ONCE(N));
        assert_eq!(out, counting(N, c));
    }
    Ok(())
}

fn anon_teardown(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    let mut random = Random::new(7);
    for c in 0..10 {
        let m = ctx.mem(N);
        m.fill(c);
        let mut out = vec![0; N as usize * WORDS];
        let after = Duration::from_micros(random.below(4000) as u64);
        let read = std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(after);
                m.unmap(N / 2..N);
            });
            dev.read(&m, m.all(), &mut out)
        });
        match read {
            Ok(counts) => {
                assert_eq!(counts.cpages, N);
                assert_eq!(out, counting(N, c));
            }
            Err(e) => assert_eq!(e, Errno::Fault),
        }
        m.expect(0..N / 2, c);
    }
    Ok(())
}

fn double_map(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.filled(6));
    m.protect(m.all(), Prot::Read);
    for dev in [&dev0, &dev1] {
        let mut out = vec![0; 6 * WORDS];
        assert_eq!(dev.read(&m, m.all(), &mut out), ONCE(6));
        assert_eq!(out, counting(6, 0));
    }
    assert_eq!(dev1.to_dev(&m, m.all()), Ok((6, counting(6, 0))));
    let mut out = vec![0; 6 * WORDS];
    let again = dev0.read(&m, m.all(), &mut out);
    assert_eq!(out, counting(6, 0));
    // One that cannot fault keeps its entries, and here its copies are good.
    let faults = u64::from(dev0.attached.device().caps().absent == Absent::Faults);
    assert_eq!(again, Ok(Counts { cpages: 6, faults }), "the first device's entries went when the second took the pages");
    Ok(())
}
