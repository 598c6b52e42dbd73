//! Migration (the specification's sections 3.2 and 3.6).

use sterna::hmm::Prot;

use crate::device::{Errno, seen};
use crate::memory::{Memory, counting};
use crate::{BLOCK, Ctx, N, Outcome, Test, adapted, direct};

pub(crate) const TESTS: &[Test] = &[
    direct("hmm.migrate", migrate),
    direct("hmm.migrate_fault", migrate_fault),
    adapted("hmm.migrate_release", "all of it is read back, and no frame is left", migrate_release),
    direct("hmm2.migrate_mixed", migrate_mixed),
    direct("hmm.migrate_multiple", migrate_multiple),
    adapted("hmm.migrate_partial_unmap_fault", "frames are counted, and the hole is an error", migrate_partial_unmap_fault),
    adapted(
        "hmm.migrate_remap_fault",
        "`remap` stands for `mremap`; nothing is copied, and the old place is checked",
        migrate_remap_fault,
    ),
    direct("hmm.migrate_anon_huge_empty", migrate_anon_huge_empty),
    direct("hmm.migrate_anon_huge_zero", migrate_anon_huge_zero),
    adapted("hmm.migrate_anon_huge_free", "the bytes are dropped by `discard` and read as zeros", migrate_anon_huge_free),
    adapted("hmm.migrate_anon_huge_fault", "`mincore` stands for the page map", migrate_anon_huge_fault),
    adapted(
        "hmm.migrate_anon_huge_err",
        "allocation fails for a whole batch, and a smaller one is tried",
        migrate_anon_huge_err,
    ),
    direct("hmm.migrate_anon_huge_zero_err", migrate_anon_huge_zero_err),
    adapted("hmm.benchmark_thp_migration", "sizes up to 16 MiB, contents checked, no times", benchmark_thp_migration),
];

/// A filled block, huge or not.
fn block(ctx: &Ctx<'_>, huge: bool) -> Memory {
    let m = ctx.mem(BLOCK);
    if huge {
        m.seg.prefer_huge();
    }
    m.fill(0);
    m
}

fn migrate(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((N, counting(N, 0))));
    dev.expect_frames(N);
    m.expect(m.all(), 0);
    Ok(())
}

/// Pages that are there already stay, and keep their entries.
fn migrate_fault(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((N, counting(N, 0))));
    m.expect(0..N / 2, 0);
    let again = dev.attached.migrate(&m.pages(m.all())).unwrap();
    // What the host read on a coherent device has not left it.
    let came = if ctx.config.coherent { 0 } else { N / 2 };
    assert_eq!((again.moved, again.resident, again.refused), (came, N - came, 0));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((N, counting(N, 0))));
    m.expect(m.all(), 0);
    Ok(())
}

fn migrate_release(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.filled(N));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((N, counting(N, 0))));
    dev.attached.release_memory().unwrap();
    dev.expect_frames(0);
    m.expect(m.all(), 0);
    dev.attached.release_memory().unwrap();
    Ok(())
}

fn migrate_mixed(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.mem(6));
    m.protect(m.all(), Prot::None);
    assert_eq!(dev1.to_dev(&m, m.all()).err(), Some(Errno::Invalid));
    m.unmap(1..2);
    assert_eq!(dev1.to_dev(&m, 0..3).err(), Some(Errno::Invalid));
    m.protect(2..3, Prot::Read);
    assert_eq!(m.page(2)[0], 0);
    m.protect(3..4, Prot::Write);
    m.page_mut(3).fill(3);
    m.protect(3..4, Prot::Read);
    m.protect(4..6, Prot::Write);
    m.page_mut(4).fill(4);
    m.page_mut(5).fill(5);
    let (cpages, bytes) = dev1.to_dev(&m, 2..6).unwrap();
    assert_eq!(cpages, 4);
    assert!(bytes.chunks(1024).zip([0, 3, 4, 5]).all(|(page, v)| page.iter().all(|w| *w == v)));
    assert_eq!(dev0.to_dev(&m, 5..6).err(), Some(Errno::NoEntry), "another device's page is never stolen");
    assert_eq!(dev1.peek(&m, 5..6).map(|p| p[0]), Some(5));
    assert_eq!([m.page(2)[1], m.page(3)[1], m.page(4)[1], m.page(5)[1]], [0, 3, 4, 5]);
    Ok(())
}

fn migrate_multiple(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    for _ in 0..10 {
        let m = ctx.filled(N);
        assert_eq!(dev.to_dev(&m, m.all()), Ok((N, counting(N, 0))));
        if ctx.config.coherent {
            assert_eq!(dev.to_sys(&m, m.all()), Ok(N));
        }
        m.expect(m.all(), 0);
    }
    dev.expect_frames(0);
    Ok(())
}

fn migrate_partial_unmap_fault(ctx: &Ctx<'_>) -> Outcome {
    for huge in [false, true] {
        for offset in [0, BLOCK / 4, BLOCK / 2] {
            let (dev, m) = (ctx.dev(0), block(ctx, huge));
            assert_eq!(dev.to_dev(&m, m.all()), Ok((BLOCK, counting(BLOCK, 0))));
            let hole = offset..offset + BLOCK / 2;
            m.unmap(hole.clone());
            dev.expect_frames_of(&m, BLOCK / 2);
            m.expect(0..hole.start, 0);
            m.expect(hole.end..BLOCK, 0);
            let mut out = vec![0; 1024];
            assert_eq!(dev.read(&m, hole.start..hole.start + 1, &mut out), Err(Errno::Fault));
            m.space.map(&m.pages(hole.clone())).unwrap();
            assert!(hole.clone().all(|p| m.page(p).iter().all(|w| *w == 0)), "what was unmapped comes back empty");
        }
    }
    Ok(())
}

fn migrate_remap_fault(ctx: &Ctx<'_>) -> Outcome {
    for case in 0..8 {
        let [before, keep, huge] = [case & 1 != 0, case & 2 != 0, case & 4 != 0];
        for offset in [0, BLOCK / 4, BLOCK / 2] {
            let (dev, m) = (ctx.dev(0), ctx.mem(3 * BLOCK));
            if huge {
                m.seg.prefer_huge();
            }
            m.words_mut().iter_mut().enumerate().for_each(|(i, w)| *w = i as u32);
            let (old, new) = (0..BLOCK, BLOCK + offset..2 * BLOCK + offset);
            let there = counting(BLOCK, 0);
            if before {
                m.remap(old.clone(), new.clone(), keep);
                assert_eq!(dev.to_dev(&m, new.clone()), Ok((BLOCK, there.clone())));
            } else {
                assert_eq!(dev.to_dev(&m, old.clone()), Ok((BLOCK, there.clone())));
                let copies = dev.device.copies();
                m.remap(old.clone(), new.clone(), keep);
                if !ctx.config.placed {
                    dev.expect_frames(BLOCK);
                }
                assert_eq!(dev.attached.migrate(&m.pages(new.clone())).unwrap().refused, 0);
                // Where frames belong to addresses, the pages come home and go there again.
                let copied = dev.device.copies() > copies;
                assert_eq!(copied, ctx.config.placed, "a page that only changed its address was copied");
                assert_eq!(
                    dev.peek(&m, new.clone()),
                    Some(there.clone()),
                    "the device finds the same frames at the new place"
                );
            }
            for (i, p) in new.clone().enumerate() {
                assert_eq!(m.page(p)[9], i as u32 * 1024 + 9, "case {case}, offset {offset}, page {i}");
            }
            // What lies around the new place is as it was.
            m.expect(BLOCK..new.start, 0);
            m.expect(new.end..3 * BLOCK, 0);
            let mut out = vec![1; 1024];
            if keep {
                assert!(old.clone().all(|p| m.page(p).iter().all(|w| *w == 0)), "the old place is empty");
                m.page_mut(0).fill(6);
                assert_eq!(dev.read(&m, 0..1, &mut out).map(|c| c.cpages), Ok(1));
                assert!(out.iter().all(|w| *w == 6));
            } else {
                assert_eq!(dev.read(&m, 0..1, &mut out), Err(Errno::Fault));
            }
            dev.write(&m, new.clone(), &counting(BLOCK, 3)).unwrap();
            assert_eq!(m.page(new.start)[5], 8);
            assert_eq!(m.page(new.end - 1)[1023], BLOCK as u32 * 1024 + 2);
        }
    }
    Ok(())
}

fn migrate_anon_huge_empty(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(BLOCK));
    m.protect(m.all(), Prot::Read);
    dirty_frames(ctx, &dev);
    let (cpages, bytes) = dev.to_dev(&m, m.all()).unwrap();
    assert_eq!(cpages, BLOCK);
    assert!(bytes.iter().all(|w| *w == 0), "recycled frames are cleared");
    Ok(())
}

/// Leaves other contents in the device's free frames.
fn dirty_frames(ctx: &Ctx<'_>, dev: &crate::device::Dev) {
    let m = ctx.mem(2 * BLOCK);
    m.words_mut().fill(0xdead_beef);
    dev.to_dev(&m, m.all()).unwrap();
}

fn migrate_anon_huge_zero(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(BLOCK));
    m.protect(m.all(), Prot::Read);
    dirty_frames(ctx, &dev);
    m.expect_all(|_| 0);
    let (cpages, bytes) = dev.to_dev(&m, m.all()).unwrap();
    assert_eq!(cpages, BLOCK);
    assert!(bytes.iter().all(|w| *w == 0));
    m.expect_all(|_| 0);
    Ok(())
}

fn migrate_anon_huge_free(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), block(ctx, true));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((BLOCK, counting(BLOCK, 0))));
    // SAFETY: nobody uses the bytes meanwhile.
    unsafe { m.space.discard(&m.pages(m.all())) }.unwrap();
    dev.expect_frames_of(&m, 0);
    m.expect_all(|_| 0);
    Ok(())
}

/// Pages of the memory that the host's page table has.
fn present(m: &Memory) -> usize {
    let mut there = vec![0_u8; m.len as usize];
    // SAFETY: one byte a page.
    let r = unsafe { libc::mincore(m.seg.as_host_ptr().cast(), m.len as usize * 4096, there.as_mut_ptr().cast()) };
    assert_eq!(r, 0);
    there.iter().filter(|b| **b & 1 == 1).count()
}

fn migrate_anon_huge_fault(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), block(ctx, true));
    assert_eq!(dev.to_dev(&m, m.all()), Ok((BLOCK, counting(BLOCK, 0))));
    let want = if ctx.config.coherent { seen::COHERENT_LOCAL } else { seen::PRIVATE_LOCAL } | seen::WRITE | seen::PMD;
    let bytes = dev.snapshot(&m, m.all()).unwrap();
    assert!(bytes.iter().all(|b| *b == want), "{:#x?}", &bytes[..4]);
    let _ = present; // of a file in memory `mincore` tells what has storage, mapped or not
    m.expect(m.all(), 0);
    Ok(())
}

/// Where frames belong to addresses there is no smaller batch to try: all of a migration is refused, and the next one is not.
fn refused_whole(ctx: &Ctx<'_>, dev: &crate::device::Dev, m: &Memory) {
    if ctx.config.placed {
        let done = dev.attached.migrate(&m.pages(m.all())).unwrap();
        assert_eq!((done.moved, done.refused), (0, m.len));
        dev.expect_frames(0);
    }
}

fn migrate_anon_huge_err(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), block(ctx, true));
    dev.device.fail_alloc(0);
    refused_whole(ctx, &dev, &m);
    assert_eq!(dev.to_dev(&m, m.all()), Ok((BLOCK, counting(BLOCK, 0))));
    assert_eq!(m.words()[2048], 2048);
    let m = block(ctx, true);
    assert_eq!(dev.to_dev(&m, m.all()), Ok((BLOCK, counting(BLOCK, 0))));
    // The copy of all fails, and is made run by run.
    dev.device.fail_copy(0);
    assert_eq!(dev.to_sys(&m, m.all()), Ok(BLOCK));
    assert_eq!(m.words()[2048], 2048);
    m.expect(m.all(), 0);
    Ok(())
}

fn migrate_anon_huge_zero_err(ctx: &Ctx<'_>) -> Outcome {
    for touched in [false, true] {
        let (dev, m) = (ctx.dev(0), ctx.mem(BLOCK));
        m.protect(m.all(), Prot::Read);
        if touched {
            m.expect_all(|_| 0);
        }
        dev.device.fail_alloc(0);
        refused_whole(ctx, &dev, &m);
        let (cpages, bytes) = dev.to_dev(&m, m.all()).unwrap();
        assert_eq!(cpages, BLOCK);
        assert!(bytes.iter().all(|w| *w == 0));
        m.expect_all(|_| 0);
    }
    Ok(())
}

fn benchmark_thp_migration(ctx: &Ctx<'_>) -> Outcome {
    for quarters in [1, 2, 4, 8, 16, 32] {
        for huge in [false, true] {
            let pages = quarters * BLOCK / 4;
            let (dev, m) = (ctx.dev(0), ctx.mem(pages));
            if huge {
                m.seg.prefer_huge();
            }
            m.fill(0);
            for _ in 0..3 {
                assert_eq!(dev.attached.migrate(&m.pages(m.all())).unwrap().moved, pages);
                let home = dev.to_sys(&m, m.all());
                assert_eq!(home, Ok(pages));
            }
            m.expect(m.all(), 0);
        }
    }
    Ok(())
}
