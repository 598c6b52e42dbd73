//! An idle device wakes no thread, and a dropped one leaves nothing behind. Alone in its process, since it counts what the process has.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{LONG, MIB, alloc, at_frame, copy, edit, ended, host_for, submit};
use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::kernel::{Group, Kernel, each_mut};
use sterna_hal::{Access, Device, Outcome, Target};

fn add(_: Group, value: u32, y: &mut [u32]) {
    y.iter_mut().for_each(|y| *y += value);
}

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

fn ours() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|l| l.contains("sterna-device")).map(str::to_owned).collect()
}

fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// By thread name, how often it went to sleep or was interrupted.
fn switches() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        let name = field("Name:");
        if name.starts_with("sterna-cpu") {
            let count = |n| field(n).parse::<u64>().unwrap();
            all.insert(name, count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:"));
        }
    }
    all
}

fn use_it(device: &CpuDevice) {
    let range = device.reserve(8 * MIB).unwrap();
    let frames = alloc(device, 128).unwrap();
    edit(device, range, Target::Frames { first: frames[0].first }, Access::ReadWrite).unwrap();
    let kernel = Kernel::new("add", 1_u32, (each_mut::<u32>(1024),), add);
    for _ in 0..20 {
        let ticket = submit(device, &kernel, 2048, &[range], &[]).unwrap();
        assert!(matches!(ended(device, ticket), Outcome::Done));
        let more = copy(device, at_frame(frames[0].first), at_frame(frames[0].first + 64), 4 * MIB).unwrap();
        assert_eq!(device.wait(more, LONG), Ok(true));
    }
}

#[test]
fn idle_is_silent_and_dropped_is_gone() {
    let make = || CpuDevice::new(5, CpuConfig { memory: 32 * MIB, workers: 3, ..CpuConfig::default() }).unwrap();
    let host = host_for(64 << 10);
    // Once, so that whatever is made lazily by others is there.
    use_it(&make());
    let before = (entries("/proc/self/task"), entries("/proc/self/fd"), ours());
    let addresses = address_space();
    assert!(before.2.is_empty(), "{:?}", before.2);

    let device = make();
    host.attach(&device);
    use_it(&device);
    assert!(!ours().is_empty());
    std::thread::sleep(Duration::from_millis(300));
    let asleep = switches();
    let workers = asleep.keys().filter(|n| n.rsplit('-').next().is_some_and(|n| !n.starts_with('c')));
    assert_eq!(workers.count(), 3, "{asleep:?}");
    assert!(asleep.len() > 3, "copies have threads of their own: {asleep:?}");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(switches(), asleep, "an idle device woke a thread");

    drop(device);
    for _ in 0..20 {
        let device = make();
        use_it(&device);
        if device.memory().in_use % 3 == 0 {
            device.lose();
        }
    }
    assert_eq!((entries("/proc/self/task"), entries("/proc/self/fd"), ours()), before);
    assert!(address_space() < addresses + (1 << 30), "address space was not given back");
}
