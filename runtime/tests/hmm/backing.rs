//! Segments that are a file's, shared, or imported (from the specification's sections 3.1 to 3.3).

use std::fs::File;
use std::os::unix::fs::FileExt;

use sterna::hmm::{PAGE, Prot, Segment};

use crate::access::ONCE;
use crate::device::{Errno, seen};
use crate::memory::{Memory, WORDS, counting};
use crate::{Ctx, N, Outcome, Test, adapted, direct};

pub(crate) const TESTS: &[Test] = &[
    adapted("hmm.file_read", "the file is read into the segment at the first touch", file_read),
    adapted("hmm.file_write", "`flush` writes the file", file_write),
    adapted(
        "hmm.migrate_file_private",
        "pages that were not written migrate too, with the file's bytes",
        migrate_file_private,
    ),
    direct("hmm.migrate_shared", migrate_shared),
    adapted("hmm.mixedmap", "an imported page stands for the driver's; migrating it is invalid", mixedmap),
    adapted("blind.file_by_host", "the host's first touches read the file", file_by_host),
    adapted(
        "blind.only_private_is_exclusive",
        "exclusive access to other memory is not supported",
        only_private_is_exclusive,
    ),
];

/// A file without a name with these numbers.
fn file(words: &[u32]) -> File {
    let path = std::env::temp_dir().join(format!("sterna-hmm-{}", std::process::id()));
    let f = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("its name");
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    f.write_all_at(&bytes, 0).expect("its contents");
    f
}

fn contents(f: &File, pages: u64) -> Vec<u32> {
    let mut bytes = vec![0; (pages * PAGE) as usize];
    f.read_exact_at(&mut bytes, 0).expect("its contents");
    bytes.chunks(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn mapped(ctx: &Ctx<'_>, f: &File, pages: u64, shared: bool) -> Memory {
    let f = f.try_clone().expect("a descriptor");
    Memory::of(Segment::of_file(ctx.space, f, 0, pages * PAGE, shared).expect("a segment"), pages)
}

fn file_read(ctx: &Ctx<'_>) -> Outcome {
    let (dev, f) = (ctx.dev(0), file(&counting(N, 0)));
    let m = mapped(ctx, &f, N, true);
    m.protect(m.all(), Prot::Read);
    let mut out = vec![0; N as usize * WORDS];
    assert_eq!(dev.read(&m, m.all(), &mut out), ONCE(N));
    assert_eq!(out, counting(N, 0));
    m.expect(m.all(), 0);
    Ok(())
}

fn file_write(ctx: &Ctx<'_>) -> Outcome {
    let (dev, f) = (ctx.dev(0), file(&vec![0; N as usize * WORDS]));
    let m = mapped(ctx, &f, N, true);
    assert_eq!(dev.write(&m, m.all(), &counting(N, 0)), ONCE(N));
    m.seg.flush().unwrap();
    assert_eq!(contents(&f, N), counting(N, 0));
    m.expect(m.all(), 0);
    // What no side has touched since is not lost by a second flush, nor by one after a store of the host.
    m.words_mut()[5] = 77;
    m.seg.flush().unwrap();
    assert_eq!(contents(&f, 1)[4..7], [4, 77, 6]);
    Ok(())
}

fn migrate_file_private(ctx: &Ctx<'_>) -> Outcome {
    let (dev, f) = (ctx.dev(0), file(&counting(N, 9)));
    let m = mapped(ctx, &f, N, false);
    for p in 0..N / 2 {
        m.page_mut(p).iter_mut().enumerate().for_each(|(i, w)| *w = p as u32 * WORDS as u32 + i as u32);
    }
    let (cpages, bytes) = dev.to_dev(&m, m.all()).unwrap();
    assert_eq!(cpages, N);
    let half = (N / 2) as usize * WORDS;
    assert_eq!(bytes[..half], counting(N, 0)[..half]);
    assert_eq!(bytes[half..], counting(N, 9)[half..]);
    m.seg.flush().unwrap();
    assert_eq!(contents(&f, N), counting(N, 9), "stores to a private mapping stay in memory");
    m.expect(0..N / 2, 0);
    m.expect(N / 2..N, 9);
    Ok(())
}

fn migrate_shared(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    let m = Memory::of(Segment::shared(ctx.space, N * PAGE).unwrap(), N);
    assert_eq!(dev.to_dev(&m, m.all()).err(), Some(Errno::NoEntry));
    assert_eq!(dev.write(&m, m.all(), &counting(N, 2)), ONCE(N), "a device may use it all the same");
    m.expect(m.all(), 2);
    Ok(())
}

fn mixedmap(ctx: &Ctx<'_>) -> Outcome {
    let dev = ctx.dev(0);
    let m = Memory::of(Segment::imported(ctx.space, &[0; PAGE as usize]).unwrap(), 1);
    assert_eq!(dev.snapshot(&m, 0..1), Ok(vec![seen::READ]));
    assert_eq!(dev.to_dev(&m, 0..1).err(), Some(Errno::Invalid));
    let mut out = vec![1; WORDS];
    assert_eq!(dev.read(&m, 0..1, &mut out), ONCE(1));
    assert!(out.iter().all(|w| *w == 0));
    assert_eq!(dev.write(&m, 0..1, &out), Err(Errno::Perm));
    // SAFETY: it is refused.
    let writable = unsafe { ctx.space.protect(&m.pages(0..1), Prot::Write) };
    assert_eq!(writable.map_err(Errno::from), Err(Errno::Perm));
    Ok(())
}

fn file_by_host(ctx: &Ctx<'_>) -> Outcome {
    let (dev, f) = (ctx.dev(0), file(&counting(10, 4)));
    let m = mapped(ctx, &f, 300, true);
    assert_eq!(dev.snapshot(&m, 0..2), Ok(vec![seen::NONE; 2]), "a snapshot reads no file");
    assert_eq!(m.page(7)[3], 7 * WORDS as u32 + 3 + 4);
    m.expect(0..10, 4);
    assert!((10..300).all(|p| m.page(p).iter().all(|w| *w == 0)), "zeros behind the file's end");
    m.page_mut(2)[0] = 1;
    let mut out = vec![0; WORDS];
    dev.read(&m, 2..3, &mut out).unwrap();
    assert_eq!(out[..2], [1, 2 * WORDS as u32 + 5]);
    Ok(())
}

fn only_private_is_exclusive(ctx: &Ctx<'_>) -> Outcome {
    let (dev, f) = (ctx.dev(0), file(&counting(4, 0)));
    let others = [
        mapped(ctx, &f, 4, true),
        mapped(ctx, &f, 4, false),
        Memory::of(Segment::shared(ctx.space, 4 * PAGE).unwrap(), 4),
        Memory::of(Segment::imported(ctx.space, &[7; 4 * PAGE as usize]).unwrap(), 4),
    ];
    for m in &others {
        let asked = dev.attached.make_exclusive(&m.pages(m.all())).map_err(Errno::from);
        assert_eq!(asked, Err(Errno::NotSupported));
    }
    Ok(())
}
