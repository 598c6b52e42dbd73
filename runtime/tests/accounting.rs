//! Everything that was taken is given back: device memory, segments, threads, descriptors, host storage; and what is used again
//! is clean.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use common::*;
use sterna::Runtime;
use sterna::hal::Device as _;
use sterna::kernel::{EachOut, Group, Kernel, each_out};

fn count(dir: &str) -> usize {
    std::fs::read_dir(dir).expect(dir).count()
}

/// Bytes of shared memory that this process has, in KiB.
fn shmem() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|l| l.starts_with("Pss_Shmem:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// One round of everything on a fresh runtime; the device's memory must be empty at its end.
fn round(config: sterna::cpu::CpuConfig, how: &str) {
    let dev = device(config);
    let rt = over(&dev);
    let mut x = rt.shared_with(700_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(700_000).unwrap();
    for _ in 0..3 {
        rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap();
        x.prefetch_to(&rt.devices()[0]);
        y.prefetch_to_host();
        drop(x.host(..100).unwrap());
    }
    let mut failed = rt.shared::<u32>(700).unwrap();
    rt.launch(&panics(), (&mut failed,)).unwrap();
    drop(rt.launch(&add(1), (&mut y,)).unwrap());
    assert_eq!((x[5], y[5]), (8, 9), "{how}");
    drop((x, y, failed));
    rt.sync().unwrap_err();
    eventually("device memory is given back", || dev.memory().in_use == 0);
    drop(rt);
    eventually("the device is let go", || Arc::strong_count(&dev) == 1);
}

#[test]
fn everything_is_given_back() {
    let name = "everything_is_given_back";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    let keep = runtime(small(8 * MIB)); // the arena and its threads stay with the process
    keep.launch(&add(1), (&mut keep.shared::<u32>(10).unwrap(),)).unwrap().wait().unwrap();
    let space = keep.space();
    for (how, config) in kinds(8 * MIB) {
        round(config, how);
    }
    let (threads, fds, host) = (count("/proc/self/task"), count("/proc/self/fd"), shmem());
    for _ in 0..3 {
        for (how, config) in kinds(8 * MIB) {
            round(config, how);
            eventually("segments are gone", || space.segments() == 0);
        }
    }
    eventually("threads are gone", || count("/proc/self/task") <= threads);
    eventually("descriptors are closed", || count("/proc/self/fd") <= fds);
    eventually("storage is freed", || shmem() <= host + 4096);
}

#[test]
fn storage_is_freed_and_address_space_used_again() {
    let name = "storage_is_freed_and_address_space_used_again";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = runtime(small(8 * MIB));
    let before = shmem();
    for round in 0..4 {
        let x = rt.shared_with(64 * MIB, |i| (i + round) as u8 | 1).unwrap();
        assert!(shmem() >= before + 60_000, "it is there while it is used");
        let at = x.as_host_ptr();
        drop(x);
        eventually("storage is freed", || shmem() <= before + 10_000);
        let y = rt.shared::<u8>(64 * MIB).unwrap();
        assert_eq!(y.as_host_ptr(), at, "the same addresses, or the next assertion says nothing");
        assert!(y.iter().all(|v| *v == 0), "round {round}");
    }
}

/// What one allocation left, in storage and in device memory, no later one sees: neither the host nor a kernel.
#[test]
fn what_is_used_again_is_clean() {
    let _limit = limit();
    static DIRT: AtomicU32 = AtomicU32::new(0);
    /// Replaces its chunk but looks at it first, which is what a kernel may not count on and must not learn from.
    fn looks(_: Group, (): (), y: &mut [u32]) {
        DIRT.fetch_or(y.iter().fold(0, |d, v| d | (v & 0xF000_0000)), Ordering::Relaxed);
        y.fill(1);
    }
    let looks: Kernel<(EachOut<u32>,)> = Kernel::new("looks", (), (each_out(4096),), looks);
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        for n in [500, 100_000, 1_000_000] {
            for _ in 0..3 {
                let mut secret = rt.shared_with(n, |_| 0xF00D_0000_u32).unwrap();
                rt.launch(&add(1), (&mut secret,)).unwrap();
                rt.sync().unwrap();
                drop(secret);
                let mut y = rt.shared::<u32>(n).unwrap();
                rt.launch(&looks, (&mut y,)).unwrap();
                rt.sync().unwrap();
                assert_eq!(DIRT.load(Ordering::Relaxed), 0, "{how}, {n}: a kernel saw another allocation's bytes");
                drop(y);
                let mut z = rt.shared::<u32>(n).unwrap();
                rt.launch(&add(0), (&mut z,)).unwrap();
                assert!(z.iter().all(|v| *v == 0), "{how}, {n}");
                let w = rt.shared::<u32>(n).unwrap();
                assert!(w.iter().all(|v| *v == 0), "{how}, {n}");
            }
        }
    }
}

static SEEN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn foreign(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo; the page that is mapped over the bad one lets the access go on.
    unsafe {
        let at = (*info).si_addr().addr() & !4095;
        SEEN.fetch_add(1, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let p = std::ptr::without_provenance_mut(at);
        libc::mmap(p, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
    }
}

/// Handlers that were there before the runtime still get the signals that are not the runtime's.
#[test]
fn foreign_signals_reach_their_handlers() {
    let name = "foreign_signals_reach_their_handlers";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    // SAFETY: handlers that only map a page; mappings of our own.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = foreign as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
        let rt = runtime(small(8 * MIB));
        let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap();
        assert_eq!((x[5], SEEN.load(Ordering::SeqCst)), (6, 0), "the runtime's own faults are not theirs");
        // A page behind the end of its file.
        let fd = libc::memfd_create(c"short".as_ptr(), libc::MFD_CLOEXEC);
        let map = |prot, flags, fd| libc::mmap(std::ptr::null_mut(), 4096, prot, flags, fd, 0).cast::<u8>();
        let short = map(libc::PROT_READ, libc::MAP_SHARED, fd);
        assert_eq!(short.read_volatile(), 0);
        assert_eq!(SEEN.load(Ordering::SeqCst), 1, "SIGBUS");
        let closed = map(libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        closed.write_volatile(1);
        assert_eq!(SEEN.load(Ordering::SeqCst), 2, "SIGSEGV");
        rt.launch(&add(1), (&mut x,)).unwrap();
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 2), "and the runtime's go on being served");
    }
}

/// Where nobody handled them, a bad access ends the process as it would without the runtime.
#[test]
fn a_bad_access_still_ends_the_process() {
    let name = "a_bad_access_still_ends_the_process";
    let _limit = limit();
    if is_child() {
        let rt = runtime(small(8 * MIB));
        let mut x = rt.shared::<u32>(10).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap();
        assert_eq!(x[0], 1);
        // SAFETY: it is not, which is what is tested.
        unsafe {
            let (prot, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let bad = libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0).cast::<u8>();
            println!("alive {}", bad.read_volatile());
        }
        return;
    }
    let o = child(name).output().unwrap();
    assert!(o.status.signal() == Some(libc::SIGSEGV) && !said(&o).contains("alive"), "{}", said(&o));
}

/// The default policy moves pages where that gains something: not on a device whose memory is the host's.
#[test]
fn pages_stay_with_the_host_where_its_memory_is_the_devices() {
    let _limit = limit();
    for unified in [false, true] {
        let rt = runtime(sterna::cpu::CpuConfig { unified, ..small(8 * MIB) });
        let mut y = rt.shared_with(MIB, |i| i as u32).unwrap();
        let at = y.as_ptr();
        for _ in 0..3 {
            rt.launch(&add(1), (&mut y,)).unwrap();
            y[17] += 1;
        }
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 3 + 3 * u32::from(i == 17)));
        assert_eq!(y.as_ptr(), at);
        let stats = rt.stats();
        let (there, home, place) = (stats.to_device(), stats.to_host(), stats.devices[0].mapped_remote);
        if unified {
            assert_eq!((there, home), (0, 0), "{stats}");
            // Without faults the handle's `deref_mut` ends what devices have, and each launch asks again.
            let times = if faults(&rt) { 1 } else { 3 };
            assert_eq!(place, times * 4 * MIB as u64, "{stats}");
        } else {
            assert_eq!(place, 0, "{stats}");
            assert!(there >= 4 * MIB as u64, "{stats}");
        }
    }
}

/// What the books say of a device ends with the allocation, also where an entry could not be made: the next allocation and the next
/// device come to the same place.
#[test]
fn an_entry_that_failed_is_nobody_elses() {
    let name = "an_entry_that_failed_is_nobody_elses";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // no other test may have the place
        return;
    }
    for (how, config) in kinds(8 * MIB) {
        let dev = device(small(8 * MIB));
        let rt = Runtime::builder().open_device(Arc::clone(&dev) as _).policy("remote").unwrap().build().unwrap();
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let place = x.as_ptr();
        dev.inject().fail_edit(0);
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap_err();
        drop((x, rt));
        eventually("the device is let go", || Arc::strong_count(&dev) == 1);
        let rt = runtime(config);
        let x = rt.shared_with(100_000, |i| i as u32).unwrap();
        assert_eq!(x.as_ptr(), place);
        let mut y = rt.shared::<u32>(100_000).unwrap();
        rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
    }
}
