//! The Vulkan device of tests, with each page table: the first that the loader lists, or the one that `STERNA_VULKAN_TEST` names; a
//! software driver does. A page table that does not work on it is left out, unless `STERNA_REQUIRE` names it.
#![allow(dead_code, reason = "each test file uses some of it")]

use sterna::hal::Injected;

/// The page tables, by name.
pub(crate) const TABLES: [&str; 3] = ["mmu", "sparse", "fixed"];

/// Whether `STERNA_REQUIRE` names `what`: then a test that would be left out fails instead.
pub(crate) fn required(what: &str) -> bool {
    std::env::var("STERNA_REQUIRE").unwrap_or_default().split(',').any(|r| r.trim() == what)
}

/// The device with this page table, `memory` bytes and units of `grain`, or why it cannot be had, said aloud. Fails where
/// `STERNA_REQUIRE` names what is missing.
#[cfg(feature = "vulkan")]
pub(crate) fn vulkan(table: &str, memory: u64, grain: Option<u64>) -> Result<Injected, String> {
    use sterna::vulkan::{CacheFolder, VulkanConfig, VulkanDevice, devices};
    let missing = |what: &str, why: String| {
        println!("SKIP vulkan, {table}: {why}");
        assert!(!required(what), "STERNA_REQUIRE names {what}, which cannot be had: {why}");
        why
    };
    let named = std::env::var("STERNA_VULKAN_TEST").ok().filter(|n| !n.is_empty());
    let name = match named {
        Some(name) => name,
        None => devices().map_err(|e| missing("vulkan", e.to_string()))?[0].index.to_string(),
    };
    let page_table = Some(table.parse().expect("a page table"));
    let pipeline_cache = CacheFolder::Off;
    let config = VulkanConfig { memory: Some(memory), page_table, grain, pipeline_cache, ..VulkanConfig::default() };
    let device = VulkanDevice::open(&name, &config).map_err(|e| missing(table, e.to_string()))?;
    Ok(Injected::new(std::sync::Arc::new(device), VulkanDevice::lose))
}

/// Not in this build.
#[cfg(not(feature = "vulkan"))]
pub(crate) fn vulkan(table: &str, _: u64, _: Option<u64>) -> Result<Injected, String> {
    println!("SKIP vulkan, {table}: built without the feature `vulkan`");
    assert!(!required("vulkan") && !required(table), "STERNA_REQUIRE names {table}, without the feature `vulkan`");
    Err("built without the feature `vulkan`".into())
}
