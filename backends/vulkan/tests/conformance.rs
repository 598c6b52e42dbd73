//! The suite of the hal over a Vulkan device, with each page table and each way of copies.
#![cfg(target_os = "linux")]

mod common;

use sterna_hal::Device;
use sterna_hal::conformance::{Bench, all};
use sterna_host::testing::Host;
use sterna_vulkan::{Copies, PageTable, VulkanConfig, VulkanDevice, VulkanError};

fn conforms(config: VulkanConfig, skipped: usize) {
    let Some(device) = common::device(&VulkanConfig { memory: Some(64 << 20), ..config }) else { return };
    println!("{} with page table {}", device.info().name, device.page_table());
    let host = Host::new(Bench::least(device.caps().grain));
    let region = host.attach(&device);
    // SAFETY: just attached, and nobody else knows of it.
    let report = all(&unsafe { Bench::new(&device, region, host.base(), host.bytes()) });
    println!("{report}");
    report.check();
    assert!(report.passed().len() + skipped >= report.results.len(), "too much was skipped:\n{report}");
    assert_eq!(device.memory().in_use, 0);
}

#[test]
fn mmu() {
    conforms(VulkanConfig { page_table: Some(PageTable::Mmu), ..VulkanConfig::default() }, 4);
}

#[test]
fn sparse() {
    conforms(VulkanConfig { page_table: Some(PageTable::Sparse), ..VulkanConfig::default() }, 6);
}

#[test]
fn sparse_and_staged() {
    let copies = Some(Copies::Staged);
    conforms(VulkanConfig { page_table: Some(PageTable::Sparse), copies, ..VulkanConfig::default() }, 6);
}

#[test]
fn sparse_and_imported() {
    let copies = Some(Copies::Imported);
    conforms(VulkanConfig { page_table: Some(PageTable::Sparse), copies, ..VulkanConfig::default() }, 6);
}

#[test]
fn fixed_and_imported() {
    let copies = Some(Copies::Imported);
    conforms(VulkanConfig { page_table: Some(PageTable::Fixed), copies, ..VulkanConfig::default() }, 6);
}

#[test]
fn fixed() {
    conforms(VulkanConfig { page_table: Some(PageTable::Fixed), ..VulkanConfig::default() }, 6);
}

#[test]
fn fixed_and_staged() {
    let copies = Some(Copies::Staged);
    conforms(VulkanConfig { page_table: Some(PageTable::Fixed), copies, ..VulkanConfig::default() }, 6);
}

#[test]
fn whatever_is_best() {
    conforms(VulkanConfig::default(), 6);
}

/// The smallest and the largest unit of memory that there is, where the driver binds by as little.
#[test]
fn every_grain() {
    for kind in [PageTable::Mmu, PageTable::Sparse, PageTable::Fixed] {
        for grain in [4 << 10, 2 << 20] {
            conforms(VulkanConfig { page_table: Some(kind), grain: Some(grain), ..VulkanConfig::default() }, 6);
        }
    }
}

#[test]
fn grains_that_make_no_sense_are_refused() {
    let Some(name) = common::name() else { return };
    for grain in [0, 1, 2048, 5000, 4 << 20] {
        match VulkanDevice::open(&name, &VulkanConfig { grain: Some(grain), ..VulkanConfig::default() }) {
            Err(VulkanError::Settings(e)) => assert!(e.contains(&grain.to_string()) && e.contains("4096"), "{e}"),
            other => panic!("{grain}: {other:?}"),
        }
    }
}
