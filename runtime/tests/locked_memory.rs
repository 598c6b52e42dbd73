//! Programs that lock their memory, before or after a runtime is made: they go on, or are told what helps, and nothing is filled but what
//! is in use. Each test in a child of its own.

mod common;

use std::sync::Arc;

use common::limits::*;
use common::vulkan::{TABLES, vulkan};
use common::*;
use sterna::Runtime;
use sterna::cpu::CpuConfig;

const MCL_ONFAULT: i32 = 4;

/// The test again in children, each of an unprivileged user whose memory is locked up to so many mebibytes: those, in such a child.
fn with_memory_locked(name: &str, limits: &[&str]) -> Option<u64> {
    if !is_child() {
        for mib in limits {
            println!("{mib} MiB: {}", succeeds(child(name).env("MIB", mib)));
        }
        return None;
    }
    let mib: u64 = std::env::var("MIB").unwrap().parse().unwrap();
    if !limit_to(libc::RLIMIT_MEMLOCK, mib << 20) {
        println!("SKIP locked memory: the limit may not be raised to {mib} MiB here");
        return None;
    }
    nobody();
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0);
    Some(mib)
}

#[test]
fn a_program_that_has_locked_its_memory_goes_on() {
    let name = "a_program_that_has_locked_its_memory_goes_on";
    let _limit = limit();
    if !is_root() {
        return; // others may not lock as much
    }
    if !is_child() {
        for flags in [libc::MCL_FUTURE, libc::MCL_CURRENT | libc::MCL_FUTURE, libc::MCL_FUTURE | MCL_ONFAULT] {
            under_each_mechanism(name, |c| _ = c.env("FLAGS", flags.to_string()));
        }
        return;
    }
    let flags = std::env::var("FLAGS").unwrap().parse().unwrap();
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::mlockall(flags) }, 0);
    let rt = Runtime::new().unwrap();
    let before = status("RssShmem");
    right(&rt);
    // Sparse memory stays sparse.
    let mut large = rt.shared::<u8>(1 << 40).unwrap();
    large[7] = 1;
    assert_eq!(large[7], 1);
    assert!(status("RssShmem") < before + (200 << 10), "{} KiB", status("RssShmem"));
}

#[test]
fn a_program_that_locks_its_memory_afterwards_goes_on() {
    let name = "a_program_that_locks_its_memory_afterwards_goes_on";
    let _limit = limit();
    if !is_root() {
        return;
    }
    if !is_child() {
        under_each_mechanism(name, |_| {});
        return;
    }
    let rt = Runtime::new().unwrap();
    let mut y = rt.shared_with(1 << 20, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
    let before = status("RssShmem");
    // What is accessible is filled: the program's own, and no terabytes of ours.
    // SAFETY: no memory is passed.
    unsafe { libc::mlockall(libc::MCL_CURRENT) };
    assert!(status("RssShmem") < before + (200 << 10), "{} KiB", status("RssShmem"));
    right(&rt);
    assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
    right(&Runtime::new().unwrap());
    // SAFETY: as above.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    right(&rt);
}

/// A driver of the system's says of this what it likes.
#[cfg(feature = "vulkan")]
#[test]
fn a_limit_on_locked_memory_is_named_where_a_driver_meets_it() {
    use sterna::vulkan::{VulkanConfig, VulkanDevice};
    let name = "a_limit_on_locked_memory_is_named_where_a_driver_meets_it";
    let _limit = limit();
    if !is_root() || sterna::vulkan::devices().is_err() {
        return println!("SKIP: no Vulkan driver, or no right to give rights up");
    }
    let Some(_) = with_memory_locked(name, &["1", "8", "32", "100", "400"]) else { return };
    for _ in 0..2 {
        match VulkanDevice::open("0", &VulkanConfig::default()) {
            Ok(device) => println!("opened with page table {}", device.page_table()),
            Err(e) => {
                println!("said: {e}");
                assert!(e.to_string().contains("RLIMIT_MEMLOCK") && e.to_string().contains("mlockall"), "{e}");
            }
        }
    }
}

/// Bytes that can be accessed: what locking all memory fills.
fn accessible() -> u64 {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let bytes = |line: &str| {
        let mut words = line.split(' ');
        let (start, end) = words.next().unwrap().split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        if words.next().unwrap().starts_with("---") { 0 } else { number(end) - number(start) }
    };
    text.lines().map(bytes).sum()
}

#[test]
fn no_more_can_be_accessed_than_is_in_use_whatever_the_device() {
    let name = "no_more_can_be_accessed_than_is_in_use_whatever_the_device";
    let _limit = limit();
    if !is_child() {
        for kind in ["cpu"].into_iter().chain(TABLES) {
            for policy in ["auto", "declared"] {
                succeeds(child(name).env("KIND", kind).env("STERNA_POLICY", policy));
            }
        }
        return;
    }
    // No multiple of what memory is handed out by, as the part of a machine's memory that a device gets by itself.
    const BUDGET: u64 = (4 << 30) + (64 << 10);
    let before = accessible();
    let rt = match std::env::var("KIND").unwrap().as_str() {
        "cpu" => runtime(CpuConfig { memory: BUDGET, ..small(MIB) }),
        table => match vulkan(table, BUDGET, None) {
            Ok(device) => over(&Arc::new(device)),
            Err(_) => return,
        },
    };
    right(&rt);
    // A driver and its libraries are some hundred mebibytes.
    let more = accessible() - before;
    assert!(more < 1 << 30, "{} MiB", more >> 20);
    // SAFETY: no memory is passed.
    if is_root() && unsafe { libc::mlockall(libc::MCL_CURRENT) } == 0 {
        right(&rt);
    }
}

#[test]
fn a_limit_on_locked_memory_is_named_or_does_no_harm() {
    let name = "a_limit_on_locked_memory_is_named_or_does_no_harm";
    let _limit = limit();
    if !is_root() {
        return;
    }
    let Some(mib) = with_memory_locked(name, &["1", "8", "200"]) else { return };
    match Runtime::builder().device("cpu:0").build() {
        Ok(rt) if mib < 200 => {
            // Little is left for the copies: bytes that do not come are an error, and never others.
            let mut y = rt.shared_with(1 << 20, |i| i as u32).unwrap();
            let done = rt.launch(&add(1), (&mut y,)).unwrap().wait();
            if let (Ok(()), Ok(y)) = (done, y.try_read()) {
                assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
            }
        }
        Ok(rt) => right(&rt),
        Err(e) => {
            assert!(mib < 200 && e.to_string().contains("RLIMIT_MEMLOCK") && e.to_string().contains("mlockall"), "{e}")
        }
    }
}
