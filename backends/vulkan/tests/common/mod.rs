//! Devices for tests, and what to say where there are none.
#![allow(dead_code, reason = "each test file uses some of it")]

use sterna_vulkan::{VulkanConfig, VulkanDevice, VulkanError};

/// Whether `STERNA_REQUIRE` names `what`: then a test that would be left out fails instead.
pub(crate) fn required(what: &str) -> bool {
    std::env::var("STERNA_REQUIRE").unwrap_or_default().split(',').any(|r| r.trim() == what)
}

/// Says that a test is left out, and why.
#[track_caller]
pub(crate) fn skip(what: &str, why: &str) {
    println!("SKIP {what}: {why}");
    assert!(!required(what), "STERNA_REQUIRE names {what}, which is missing: {why}");
}

/// The device that the tests are to use (`STERNA_VULKAN_TEST` names another), or `None` where there is none.
pub(crate) fn name() -> Option<String> {
    match sterna_vulkan::devices() {
        Ok(all) => {
            let named = std::env::var("STERNA_VULKAN_TEST").ok().filter(|n| !n.is_empty());
            Some(named.unwrap_or_else(|| all[0].index.to_string()))
        }
        Err(e) => {
            skip("vulkan", &e.to_string());
            None
        }
    }
}

/// A device as `config` says, or `None` where it cannot be had.
pub(crate) fn device(config: &VulkanConfig) -> Option<VulkanDevice> {
    match VulkanDevice::open(&name()?, config) {
        Ok(device) => Some(device),
        Err(e @ (VulkanError::NoPageTable { .. } | VulkanError::Settings(_))) => {
            let copies = config.copies.filter(|_| matches!(e, VulkanError::Settings(_))).map(|c| c.name());
            skip(copies.or(config.page_table.map(|k| k.name())).unwrap_or("vulkan"), &e.to_string());
            None
        }
        Err(e) => panic!("{e}"),
    }
}
