//! Opening and closing a device again and again: the process keeps no more of it than of an instance and a device of the driver's alone.

use ash::vk;
use sterna_vulkan::{PageTable, VulkanConfig, VulkanDevice};

/// Memory of the process that is no file's, in KiB.
fn private() -> i64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = text.lines().find(|l| l.starts_with("RssAnon:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// An instance and a device, made and destroyed.
fn plain() {
    // SAFETY: made and destroyed here, in order; the structures are alive.
    unsafe {
        let entry = ash::Entry::load().expect("a loader");
        let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let instance =
            entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&app), None).expect("instance");
        let gpu = instance.enumerate_physical_devices().expect("devices")[0];
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
        let device = instance.create_device(gpu, &vk::DeviceCreateInfo::default().queue_create_infos(&queues), None);
        device.expect("a device").destroy_device(None);
        instance.destroy_instance(None);
    }
}

/// KiB that a process keeps of each of many calls: the least of some rounds, since the allocator takes memory by the MiB.
fn kept(call: impl Fn()) -> i64 {
    const CALLS: i64 = 10;
    let round = || {
        let before = private();
        (0..CALLS).for_each(|_| call());
        (private() - before) / CALLS
    };
    // What a round gives back of earlier ones is not its own.
    (0..6).map(|_| round()).min().unwrap_or(0).max(0)
}

#[test]
fn opening_and_closing_keeps_no_more_than_the_driver_does() {
    if let Err(e) = sterna_vulkan::devices() {
        return println!("SKIP: {e}");
    }
    let floor = kept(plain);
    for kind in [PageTable::Mmu, PageTable::Sparse, PageTable::Fixed] {
        let config = VulkanConfig { page_table: Some(kind), memory: Some(64 << 20), ..VulkanConfig::default() };
        if let Err(e) = VulkanDevice::open("0", &config) {
            println!("SKIP {}: {e}", kind.name());
            continue;
        }
        let ours = kept(|| drop(VulkanDevice::open("0", &config).expect("a device")));
        println!("{}: {ours} KiB each, the driver alone {floor}", kind.name());
        assert!(ours <= floor + 8, "{}: {ours} KiB each, the driver alone {floor}", kind.name());
    }
}
