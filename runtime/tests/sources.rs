//! Pages that begin with somebody else's bytes: copies that cost nothing until they are touched, and files, on every kind of device.

mod common;

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::*;
use sterna::hal::Device as _;
use sterna::hmm::{Action, Mirror, MirrorOps, Pages, Range};
use sterna::{Error, Mechanism, Runtime, Shared};

const N: usize = 700_001;

#[track_caller]
fn is(x: &[u32], expect: impl Fn(usize) -> u32, how: &str) {
    let wrong = x.iter().enumerate().find(|(i, v)| **v != expect(*i));
    assert_eq!(wrong, None, "{how}: expected {:?}", wrong.map(|(i, _)| expect(i)));
}

fn at_home(rt: &Runtime) -> Shared<u32> {
    rt.shared_with(N, |i| i as u32).unwrap()
}

fn on_device(rt: &Runtime) -> Shared<u32> {
    let mut x = rt.shared_with(N, |i| (i as u32).wrapping_sub(3)).unwrap();
    rt.launch(&add(3), (&mut x,)).unwrap().wait().unwrap();
    x
}

fn replicated(rt: &Runtime) -> Shared<u32> {
    let x = at_home(rt);
    rt.launch(&copy_add(0), (&x, &mut rt.shared::<u32>(N).unwrap())).unwrap().wait().unwrap();
    x
}

/// Both sides are right, whoever touches which first.
#[test]
fn neither_side_of_a_copy_sees_the_others_writes() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        for begin in [at_home as fn(&Runtime) -> Shared<u32>, on_device, replicated] {
            for first in 0..6 {
                let how = format!("{how}, first touch {first}");
                let mut x = begin(&rt);
                let mut y = x.cow_clone().unwrap();
                match first {
                    0 => x.iter_mut().for_each(|v| *v += 1),
                    1 => drop(rt.launch(&add(1), (&mut x,)).unwrap()),
                    2 => y.iter_mut().for_each(|v| *v += 1),
                    3 => drop(rt.launch(&add(1), (&mut y,)).unwrap()),
                    4 => x.discard(..).unwrap(),
                    _ => drop(std::mem::replace(&mut x, rt.shared(N).unwrap())),
                }
                let (a, b) = match first {
                    0 | 1 => (1, 0),
                    2 | 3 => (0, 1),
                    _ => (u32::MAX, 0),
                };
                let value = |add: u32| move |i: usize| if add == u32::MAX { 0 } else { i as u32 + add };
                if first % 2 == 0 {
                    is(&y, value(b), &format!("{how}, the copy"));
                    is(&x, value(a), &format!("{how}, the original"));
                } else {
                    is(&x, value(a), &format!("{how}, the original"));
                    let mut z = rt.shared::<u32>(N).unwrap();
                    rt.launch(&copy_add(0), (&y, &mut z)).unwrap();
                    is(&z, value(b), &format!("{how}, the copy on the device"));
                    is(&y, value(b), &format!("{how}, the copy"));
                }
                x[5] = 77;
                y[6] = 78;
                assert!(x[6] != 78 && y[5] != 77, "{how}");
            }
        }
    }
}

/// A driver that looks pages up when pages of `of` are on their way home.
struct LooksAt {
    pages: Pages,
    of: Pages,
    with: Arc<Mirror>,
}

impl MirrorOps for LooksAt {
    fn update(&self, _: Action, gone: &Pages) {
        if gone.0.start < self.of.0.end && self.of.0.start < gone.0.end {
            // Nobody's yet: no page is found. Either answer is one.
            let _ = Range::new(&self.with, self.pages.clone()).and_then(|mut range| range.fault(false, false));
        }
    }
}

/// A driver that has no page table.
struct Looks;

impl MirrorOps for Looks {
    fn update(&self, _: Action, _: &Pages) {}
}

/// Fails if somebody who comes by addresses, as a driver's look-up or a fault that was parked when another allocation was there, has
/// a copy's pages fetched while those of the original are still on their way home: the copy then lacks the last launch's stores.
#[test]
fn pages_of_a_copy_that_is_being_made_are_nobodys() {
    let (_limit, _alone) = (limit(), alone());
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        // Copies of other tests may take the place.
        let hit = (0..100).any(|_| {
            let x = on_device(&rt);
            // A copy takes the first place that is long enough.
            let pages = rt.shared::<u32>(N).unwrap().pages();
            let with = Mirror::register(rt.space(), Looks);
            let driver = Mirror::register(rt.space(), LooksAt { pages: pages.clone(), of: x.pages(), with });
            let y = x.cow_clone().unwrap();
            driver.unregister();
            is(&y, |i| i as u32, how);
            is(&x, |i| i as u32, how);
            y.pages() == pages
        });
        assert!(hit, "{how}: no copy came where it was expected");
    }
}

#[test]
fn a_copy_costs_nothing_until_it_is_touched() {
    let name = "a_copy_costs_nothing_until_it_is_touched";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    let rt = runtime(small(16 * MIB));
    if !faults(&rt) {
        return; // it is made at once there
    }
    let mut x = at_home(&rt);
    let before = storage();
    let y = x.cow_clone().unwrap();
    let z = y.cow_clone().unwrap();
    assert!(storage() <= before + (4 << 10), "{} bytes", storage() - before);
    x[0] = 7;
    let granule = 64 << 10;
    assert!(storage() <= before + 2 * granule + (64 << 10), "one granule each: {} bytes", storage() - before);
    assert_eq!((x[0], y[0], z[0]), (7, 0, 0));
    drop(x);
    is(&z, |i| i as u32, "the copy of the copy");
    drop(z);
    is(&y, |i| i as u32, "the copy");
    // It has all its pages now, and lets the original go.
    eventually("the original is freed", || rt.space().segments() == 1);
    drop(y);
    eventually("everything is freed", || storage() <= before.saturating_sub(4 * N as u64) + (64 << 10));
}

#[test]
fn copies_of_copies_and_many_at_once() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        let mut x = rt.shared_with(50_000, |i| i as u32).unwrap();
        let mut all = Vec::new();
        for round in 0..6_u32 {
            all.push((round, x.cow_clone().unwrap()));
            all.push((round, all.last().unwrap().1.cow_clone().unwrap()));
            if round % 2 == 0 { x.iter_mut().for_each(|v| *v += 1) } else { drop(rt.launch(&add(1), (&mut x,)).unwrap()) }
        }
        is(&x, |i| i as u32 + 6, how);
        std::thread::scope(|s| {
            for (round, y) in &all {
                s.spawn(move || is(y, |i| i as u32 + round, how));
            }
        });
    }
}

#[test]
fn a_long_chain_of_copies_keeps_little_alive() {
    let name = "a_long_chain_of_copies_keeps_little_alive";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    let rt = runtime(small(16 * MIB));
    let before = rt.space().segments();
    let mut x = rt.shared_with(3000, |i| i as u32).unwrap();
    for i in 0..2000 {
        let mut y = x.cow_clone().unwrap();
        if i % 100 == 0 {
            y[1] += 1;
        }
        x = y;
    }
    assert!(rt.space().segments() - before < 40, "{} segments", rt.space().segments() - before);
    is(&x, |i| i as u32 + if i == 1 { 20 } else { 0 }, "the last one");
}

#[test]
fn parts_are_copied_beside_their_neighbours() {
    let _limit = limit();
    let rt = runtime(small(16 * MIB));
    let mut low = at_home(&rt);
    let at = if faults(&rt) { 300_333 } else { 327_680 };
    let mut high = low.split_off(at).unwrap();
    std::thread::scope(|s| {
        let (high, rt2) = (&mut high, rt.clone());
        s.spawn(move || {
            // The neighbour of everything that is copied.
            for _ in 0..40 {
                high.iter_mut().for_each(|v| *v += 1);
                rt2.launch(&add(1), (&mut *high,)).unwrap();
            }
        });
        for round in 0..40 {
            let copy = low.cow_clone().unwrap();
            low.iter_mut().for_each(|v| *v += 1);
            is(&copy, |i| i as u32 + round, "the copy");
        }
    });
    is(&low, |i| i as u32 + 40, "the low part");
    is(&high, |i| (at + i) as u32 + 80, "the high part");
    let copy = high.cow_clone().unwrap();
    assert_eq!(copy.len(), high.len());
    high.discard(..).unwrap();
    is(&copy, |i| (at + i) as u32 + 80, "a copy of the high part");
}

#[test]
fn a_guarded_part_is_copied_at_once_and_stays_mapped() {
    let _limit = limit();
    let rt = runtime(small(16 * MIB));
    let mut x = on_device(&rt);
    let copy = {
        let guard = x.host(1000..5000).unwrap();
        let copy = x.cow_clone().unwrap();
        // A system call on the guarded elements, on every mechanism.
        let null = std::fs::File::create("/dev/null").unwrap();
        assert_eq!(null.write_at(bytemuck(&guard), 0).unwrap(), 16_000);
        copy
    };
    rt.launch(&add(1), (&mut x,)).unwrap();
    is(&x, |i| i as u32 + 1, "the original");
    is(&copy, |i| i as u32, "the copy");
}

fn bytemuck(x: &[u32]) -> &[u8] {
    sterna::bytemuck::cast_slice(x)
}

/// Fails if `neither_side_of_a_copy_sees_the_others_writes` could not see a write that came before the copy had its page.
#[cfg(feature = "planted")]
#[test]
fn planted_a_write_that_forgets_the_copy_is_seen() {
    let name = "planted_a_write_that_forgets_the_copy_is_seen";
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = runtime(small(16 * MIB));
    if !faults(&rt) {
        return; // copied at once
    }
    sterna::hmm::planted::NO_SETTLE.store(true, Ordering::SeqCst);
    let (mut a, mut b) = (at_home(&rt), at_home(&rt));
    let (x, y) = (a.cow_clone().unwrap(), b.cow_clone().unwrap());
    a[5] = 77;
    rt.launch(&add(1), (&mut b,)).unwrap().wait().unwrap();
    assert_eq!(b[5], 6);
    assert_eq!((x[5], y[5]), (77, 6), "the defect goes unseen");
}

// ───────────── files ─────────────

/// A file that is removed when dropped.
struct Temp(PathBuf);

impl Temp {
    fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sterna-sources-{}-{n}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn words(n: usize) -> Self {
        Self::new(bytemuck(&(0..n as u32).collect::<Vec<_>>()))
    }

    fn map(&self, rt: &Runtime) -> Shared<u32> {
        // SAFETY: the test's own file, which it does not write while it is mapped.
        unsafe { rt.map_file(&self.0) }.unwrap()
    }

    fn contents(&self) -> Vec<u32> {
        std::fs::read(&self.0).unwrap().chunks_exact(4).map(sterna::bytemuck::pod_read_unaligned).collect()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn files_are_read_when_touched_and_written_when_flushed() {
    let _limit = limit();
    for (how, config) in kinds(16 * MIB) {
        let rt = runtime(config);
        for first in 0..4 {
            let how = format!("{how}, first touch {first}");
            let file = Temp::words(N);
            let mut x = file.map(&rt);
            match first {
                0 => x.iter_mut().for_each(|v| *v += 1),
                1 => drop(rt.launch(&add(1), (&mut x,)).unwrap()),
                2 => {
                    is(x.try_read().unwrap(), |i| i as u32, &how);
                    rt.launch(&add(1), (&mut x,)).unwrap();
                }
                _ => {
                    let mut y = x.cow_clone().unwrap();
                    rt.launch(&add(1), (&mut x,)).unwrap();
                    is(&y, |i| i as u32, &how);
                    assert!(matches!(y.flush(), Err(Error::Invalid { .. })), "a copy is not the file");
                    y[0] = 5;
                }
            }
            is(&x, |i| i as u32 + 1, &how);
            is(&file.contents(), |i| i as u32, &format!("{how}, before the flush"));
            rt.launch(&add(1), (&mut x,)).unwrap();
            x.flush().unwrap();
            is(&file.contents(), |i| i as u32 + 2, &format!("{how}, after the flush"));
            is(&x, |i| i as u32 + 2, &how);
            x[9] = 1;
            drop(x);
            is(&file.contents(), |i| i as u32 + 2, &format!("{how}, dropped without a flush"));
            is(&rt.read_file::<u32>(&file.0).unwrap(), |i| i as u32 + 2, &how);
        }
    }
}

#[test]
fn only_what_is_touched_is_read_and_written() {
    let name = "only_what_is_touched_is_read_and_written";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = runtime(small(16 * MIB));
    if !faults(&rt) {
        return;
    }
    let before = storage();
    let file = Temp::words(4 * MIB);
    let mut x = file.map(&rt);
    assert_eq!(storage(), before);
    x[3_000_000] = 5;
    assert!(storage() - before <= 256 << 10, "{} bytes", storage() - before);
    // What was not touched is not written: the file keeps what it has there.
    std::fs::File::options().write(true).open(&file.0).unwrap().write_at(&[255; 4], 0).unwrap();
    x.flush().unwrap();
    let now = file.contents();
    assert_eq!((now[0], now[1], now[3_000_000], now.len()), (u32::MAX, 1, 5, 4 * MIB));
    // In parts: the halves of one file.
    let mut y = x.split_off(2 * MIB).unwrap();
    x[1] = 6;
    y[0] = 7;
    y.flush().unwrap();
    assert_eq!((file.contents()[1], file.contents()[2 * MIB]), (1, 7));
    x.flush().unwrap();
    assert_eq!(file.contents()[1], 6);
    y.discard(..10).unwrap();
    y.flush().unwrap();
    assert_eq!(file.contents()[2 * MIB..2 * MIB + 11], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2 * MIB as u32 + 10]);
}

#[test]
fn files_that_make_no_sense_are_refused() {
    let rt = runtime(small(8 * MIB));
    for (bytes, ok) in [(0_u64, false), (1, false), (6, false), (4, true), (4100, true)] {
        let file = Temp::new(&vec![1; bytes as usize]);
        let read = rt.read_file::<u32>(&file.0);
        // SAFETY: nobody writes it.
        let mapped = unsafe { rt.map_file::<u32>(&file.0) };
        for result in [read, mapped] {
            match result {
                Ok(x) => assert!(ok && x.len() as u64 == bytes / 4 && x.iter().all(|v| *v == 0x0101_0101)),
                Err(e) => {
                    assert!(!ok && matches!(e, Error::FileLength { bytes: b, elem: 4, .. } if b == bytes), "{bytes}: {e}");
                    assert!(e.to_string().contains(&file.0.display().to_string()));
                }
            }
        }
    }
    let e = rt.read_file::<u32>("/no/such/file").unwrap_err();
    assert!(matches!(e, Error::File { .. }) && e.to_string().contains("/no/such/file"), "{e}");
    // SAFETY: nothing is mapped.
    assert!(matches!(unsafe { rt.map_file::<u32>("/no/such/file") }, Err(Error::File { .. })));
    let folder = std::env::temp_dir();
    assert!(rt.read_file::<u8>(&folder).is_err());
    let x = rt.shared::<u32>(8).unwrap();
    assert!(matches!(x.flush(), Err(Error::Invalid { .. })));
}

/// A file of bytes that `fill` gives, in a folder.
fn file_in(folder: &std::path::Path, name: &str, bytes: usize) -> (std::path::PathBuf, std::fs::File) {
    let path = folder.join(format!("sterna-{name}-{}", std::process::id()));
    std::fs::write(&path, (0..bytes).map(|i| (i % 251) as u8 + 1).collect::<Vec<_>>()).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    (path, file)
}

/// Fails if what lies behind a file's end is looked for in the file, or written to it.
#[test]
fn behind_a_files_end_there_are_zeros() {
    let _limit = limit();
    let space = sterna::hmm::Space::process(None).unwrap();
    for shared in [true, false] {
        for offset in [0_u64, 1, 4095, 4096, 4097, 8192, 100_000, 1 << 40] {
            let (_, file) = file_in(&std::env::temp_dir(), "end", 6000);
            let other = file.try_clone().unwrap();
            let seg = sterna::hmm::Segment::of_file(space, file, offset, 3 << 20, shared).unwrap();
            // SAFETY: the segment's own bytes, which nobody writes.
            let x = unsafe { std::slice::from_raw_parts(seg.as_host_ptr(), 3 << 20) };
            for i in [0, 1, 1904, 4095, 4096, 5999, 6000, 100_000, (3 << 20) - 1] {
                let at = offset as usize + i;
                let right = if at < 6000 { (at % 251) as u8 + 1 } else { 0 };
                assert_eq!(x[i], right, "byte {i} from {offset} on");
            }
            seg.flush().unwrap();
            assert_eq!(other.metadata().unwrap().len(), 6000, "loads make no file longer");
        }
    }
}

/// Fails if something that cannot be read by position is found out at the first touch, which cannot fail, or waited for.
#[test]
fn what_is_no_file_is_refused_when_it_is_named() {
    use std::os::unix::fs::OpenOptionsExt;
    let _limit = limit();
    let rt = runtime(small(16 * MIB));
    let space = sterna::hmm::Space::process(None).unwrap();
    let of = |file| sterna::hmm::Segment::of_file(space, file, 0, 8192, true);
    let pipe = std::env::temp_dir().join(format!("sterna-pipe-{}", std::process::id()));
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for path in [pipe.as_path(), std::path::Path::new("/dev/zero"), std::path::Path::new("/"), &std::env::temp_dir()] {
        assert!(matches!(rt.read_file::<u8>(path), Err(Error::File { .. })), "{path:?}");
        // SAFETY: nothing is mapped.
        assert!(matches!(unsafe { rt.map_file::<u8>(path) }, Err(Error::File { .. })), "{path:?}");
        let file = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        assert!(matches!(of(file), Err(Error::File { .. })), "{path:?}");
    }
    std::fs::remove_file(&pipe).unwrap();
    // A file of the kernel's that says a length which it does not have.
    let made_up = std::path::Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    if let Ok(file) = std::fs::File::open(made_up) {
        assert!(matches!(of(file), Err(Error::File { .. })));
    }
    let path = std::env::temp_dir().join(format!("sterna-modes-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let open = |o: &mut std::fs::OpenOptions| o.open(&path).unwrap();
    assert!(matches!(of(open(std::fs::File::options().write(true))), Err(Error::File { .. })));
    assert!(matches!(of(open(std::fs::File::options().read(true).append(true))), Err(Error::File { .. })));
    let read_only = of(std::fs::File::open(&path).unwrap()).unwrap();
    // SAFETY: the segment's own byte, which nobody else uses.
    assert_eq!(unsafe { read_only.as_host_ptr().add(5000).read() }, 7);
    assert!(matches!(read_only.flush(), Err(Error::File { .. })));
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let far = sterna::hmm::Segment::of_file(space, file, u64::MAX - 10, 4096, true);
    assert!(matches!(far, Err(Error::Invalid { .. })));
}

/// Fails if a page of a sparse file is taken for a hole, or holes take storage.
#[test]
fn sparse_files_are_read_right_and_stay_sparse() {
    use std::os::unix::fs::FileExt;
    let _limit = limit();
    let rt = runtime(small(64 * MIB));
    for folder in [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()] {
        let path = folder.join(format!("sterna-sparse-{}", std::process::id()));
        let Ok(file) = std::fs::File::create(&path) else { continue };
        file.set_len(32 << 20).unwrap();
        let places = [0_u64, 70_000, (2 << 20) - 4096, 9 << 20, (32 << 20) - 4096];
        places.iter().for_each(|at| file.write_all_at(&[9; 4096], at / 4096 * 4096).unwrap());
        // SAFETY: nobody else writes the file.
        let mut x = unsafe { rt.map_file::<u8>(&path) }.unwrap();
        std::fs::remove_file(&path).unwrap();
        let kernel = sterna::kernels::fill(1_u8);
        let (mut first, _) = x.split_at_mut(1 << 20).unwrap();
        rt.launch(&kernel, (&mut first,)).unwrap().wait().unwrap();
        for (i, v) in x.iter().enumerate().step_by(1024) {
            let data = places.iter().any(|at| i as u64 / 4096 == at / 4096);
            assert_eq!(
                *v,
                if i < 1 << 20 {
                    1
                } else if data {
                    9
                } else {
                    0
                },
                "byte {i} in {folder:?}"
            );
        }
    }
}

/// A page that cannot be read: an error where there can be one.
#[test]
fn a_file_that_became_shorter_is_an_error() {
    let _limit = limit();
    let rt = runtime(small(16 * MIB));
    if !faults(&rt) {
        return; // it was read when it was mapped
    }
    let file = Temp::words(N);
    let mut x = file.map(&rt);
    assert_eq!(x[5], 5);
    std::fs::File::options().write(true).open(&file.0).unwrap().set_len(1 << 20).unwrap();
    assert!(matches!(x.try_read(), Err(Error::File { .. })));
    assert!(matches!(x.host(N - 5..), Err(Error::File { .. })));
    let e = rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap_err();
    assert!(matches!(e, Error::File { .. }), "{e:?}");
    let _ = rt.sync();
    x.discard(..).unwrap(); // and nothing of it is needed any more
    is(&x, |_| 0, "discarded");
}

#[test]
fn a_copy_of_a_file_that_became_shorter_is_an_error() {
    let _limit = limit();
    let rt = runtime(small(16 * MIB));
    if !faults(&rt) {
        return; // it was read when it was mapped
    }
    let file = Temp::words(N);
    let x = file.map(&rt);
    assert_eq!(x[5], 5);
    let y = x.cow_clone().unwrap();
    let z = y.cow_clone().unwrap();
    std::fs::File::options().write(true).open(&file.0).unwrap().set_len(1 << 20).unwrap();
    for copy in [&y, &z] {
        assert!(matches!(copy.try_read(), Err(Error::File { .. })));
        assert!(matches!(copy.range(N - 5..).unwrap().try_read(), Err(Error::File { .. })));
        // What is still there can be had.
        is(copy.range(..1000).unwrap().try_read().unwrap(), |i| i as u32, "a part");
    }
}

#[test]
fn a_load_that_meets_a_missing_part_of_a_file_ends_the_process() {
    let name = "a_load_that_meets_a_missing_part_of_a_file_ends_the_process";
    let _limit = limit();
    if is_child() {
        let rt = runtime(small(16 * MIB));
        let file = Temp::words(N);
        let x = file.map(&rt);
        std::fs::File::options().write(true).open(&file.0).unwrap().set_len(4096).unwrap();
        println!("read {}", x[N - 1]);
        return;
    }
    let out = child(name).output().unwrap();
    if Runtime::new().unwrap().stats().mechanism == Mechanism::None {
        assert!(out.status.success(), "{}", said(&out));
    } else {
        assert_eq!(out.status.signal(), Some(libc::SIGABRT), "{}", said(&out));
        assert!(said(&out).contains("cannot be fetched: file"), "{}", said(&out));
    }
}

/// Bytes that this process has written by calls.
fn written() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|l| l.strip_prefix("wchar: ")?.parse().ok())
}

/// A write to the arena's file keeps everybody else out of it: of two threads that touch files one would wait for the other.
#[test]
fn a_touched_page_of_a_file_comes_without_a_write() {
    let name = "a_touched_page_of_a_file_comes_without_a_write";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    let rt = runtime(small(16 * MIB));
    let file = Temp::words(N);
    let x = file.map(&rt);
    let (mechanism, Some(before)) = (rt.stats().mechanism, written()) else {
        println!("SKIP: the system does not count what is written");
        return;
    };
    if matches!(mechanism, Mechanism::Transparent | Mechanism::Signal) {
        is(&x, |i| i as u32, "touched");
        let y = file.map(&rt);
        std::thread::scope(|s| {
            for t in 0..2 {
                let mine = (0..N).skip(t * 16384).step_by(32768);
                let y = &y;
                s.spawn(move || mine.for_each(|i| assert_eq!(y[i], i as u32)));
            }
        });
        is(&y, |i| i as u32, "by two threads");
        let bytes = written().unwrap() - before;
        // But for the last page, which the file has a part of.
        assert!(bytes < 64 << 10, "{bytes} bytes of {} were written", 8 * N);
    }
}

#[test]
fn what_was_read_is_in_the_books() {
    let _limit = limit();
    let d = device(small(16 * MIB));
    let rt = over(&d);
    let file = Temp::words(N);
    let x = file.map(&rt).into_read_only();
    let mut y = rt.shared::<u32>(N).unwrap();
    rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
    is(&y, |i| i as u32 + 1, "by a launch");
    assert_eq!(x.residency().pages, (4 * N).div_ceil(4096) as u64);
    drop((x, y));
    eventually("device memory is given back", || d.memory().in_use == 0);
}
