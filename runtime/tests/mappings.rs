//! Mappings (`vm.max_map_count`): however many small allocations there are, an eighth of what a process may have stays for the
//! rest of the program, and the allocations go on working.

mod common;

use common::*;
use sterna::hal::DeviceError;
use sterna::{Error, Runtime};

fn mappings() -> usize {
    std::fs::read("/proc/self/maps").expect("maps").iter().filter(|b| **b == b'\n').count()
}

fn most() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit").trim().parse().expect("a number")
}

/// Mappings of the test's own, apart from each other, until about `left` are left below the limit; given back when dropped.
struct Taken(Vec<*mut libc::c_void>);

impl Taken {
    fn all_but(left: usize) -> Self {
        let n = most().saturating_sub(mappings() + left);
        let page = 4096;
        let one = |i: usize| {
            // Neighbours that may be accessed differently are mappings each.
            let prot = if i.is_multiple_of(2) { libc::PROT_READ } else { libc::PROT_NONE };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: without MAP_FIXED no existing mapping is touched.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), page, prot, flags, -1, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            at
        };
        Self((0..n).map(one).collect())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for at in &self.0 {
            // SAFETY: a mapping of its own.
            unsafe { libc::munmap(*at, 4096) };
        }
    }
}

/// A process with few mappings left: what else needs some finds them.
fn the_program_goes_on(rt: &Runtime) {
    let mut v: Vec<u8> = Vec::new();
    v.try_reserve_exact(4 << 20).expect("memory");
    assert_eq!(std::thread::Builder::new().spawn(|| 5).expect("a thread").join().unwrap(), 5);
    assert_eq!(rt.shared_from(&[7_u32; 64]).unwrap()[63], 7);
    drop(runtime(small(4 * MIB)));
}

#[test]
fn more_small_allocations_than_mappings_take_turns_and_leave_some_to_the_program() {
    let name = "more_small_allocations_than_mappings_take_turns_and_leave_some_to_the_program";
    let _limit = limit();
    if with_each_mechanism(name) {
        return;
    }
    if most() > 1 << 20 {
        return println!("SKIP: {} mappings are allowed", most());
    }
    let rt = runtime(small(512 * MIB));
    // As if it were a small limit: the reserve, and 4000 more.
    let taken = Taken::all_but(most() / 8 + 4000);
    const N: usize = 6000;
    let mut all: Vec<_> = (0..N).map(|i| rt.shared_from(&[i as u32; 16]).unwrap()).collect();
    for round in 1..=2 {
        // Each second, so that no two neighbours are alike.
        for a in all.iter_mut().step_by(2) {
            rt.launch(&add(1), (a,)).unwrap();
        }
        rt.sync().unwrap();
        let left = most() - mappings();
        assert!(left >= most() / 8 - 64, "round {round}: {left} of {} are left", most());
        the_program_goes_on(&rt);
    }
    let stats = rt.stats();
    assert!(stats.devices[0].evictions > 0, "{stats}");
    let wrong = all.iter().enumerate().filter(|(i, a)| a[15] != *i as u32 + if i % 2 == 0 { 2 } else { 0 }).count();
    assert_eq!(wrong, 0);
    drop(taken);
    all.truncate(100);
    for a in &mut all {
        rt.launch(&add(1), (a,)).unwrap().wait().unwrap();
    }
    assert!(all.iter().enumerate().all(|(i, a)| a[0] == i as u32 + if i % 2 == 0 { 3 } else { 1 }));
}

#[test]
fn where_the_program_has_taken_all_but_the_reserve_launches_fail_and_say_what_to_do() {
    let name = "where_the_program_has_taken_all_but_the_reserve_launches_fail_and_say_what_to_do";
    let _limit = limit();
    if with_each_mechanism(name) {
        return;
    }
    if most() > 1 << 20 {
        return println!("SKIP: {} mappings are allowed", most());
    }
    let rt = runtime(small(16 * MIB));
    let mut x = rt.shared_from(&[1_u32; 1000]).unwrap();
    let taken = Taken::all_but(most() / 16);
    let e = rt.launch(&add(1), (&mut x,)).and_then(|p| p.wait()).unwrap_err();
    let root = matches!(&e, Error::Device { source: DeviceError::TooManyMappings { in_use, limit }, .. }
        if *limit == most() as u64 && *in_use > limit / 8 * 7);
    assert!(root && e.to_string().contains("vm.max_map_count"), "{e:?}");
    the_program_goes_on(&rt);
    drop(taken);
    let mut x = rt.shared_from(&[1_u32; 1000]).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap();
    assert!(x.iter().all(|v| *v == 2));
}

#[test]
fn what_was_dropped_gives_its_device_storage_back_soon() {
    let name = "what_was_dropped_gives_its_device_storage_back_soon";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // counts what belongs to the process
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let stored = || {
        let file = |f: std::fs::DirEntry| {
            let device = std::fs::read_link(f.path()).is_ok_and(|l| l.to_string_lossy().contains("sterna-device"));
            device.then(|| std::fs::metadata(f.path()).expect("a file").blocks() * 512)
        };
        std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten().filter_map(file).sum::<u64>()
    };
    let rt = runtime(small(128 * MIB));
    let mut keep = rt.shared_with(MIB / 4, |i| i as u32).unwrap();
    let mut big = rt.shared::<u32>(16 * MIB).unwrap();
    rt.launch(&add(1), (&mut big,)).unwrap().wait().unwrap();
    rt.launch(&add(1), (&mut keep,)).unwrap().wait().unwrap();
    assert!(stored() >= 65 << 20, "{}", stored());
    drop(big);
    eventually("storage of what was dropped is freed", || stored() <= 8 << 20);
    rt.launch(&add(1), (&mut keep,)).unwrap().wait().unwrap();
    assert!(keep.iter().enumerate().all(|(i, v)| *v == i as u32 + 2));
}
