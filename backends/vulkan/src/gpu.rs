//! Enumeration: which Vulkan devices there are, what they can do, and which one a name means.
//!
//! Devices are numbered with discrete ones first, then integrated ones, then software drivers, and within a kind as the loader
//! lists them.

use std::ffi::CStr;
use std::sync::Arc;

use ash::{ext, khr, vk};
use sterna_hal::DeviceKind;
use sterna_host::files::Standard;

use crate::error::{VulkanError, limited};
use crate::instance::{Instance, no_driver, without_driver};

/// What a device is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Gpu {
    /// Its number, as in `vulkan:0`.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// The device's UUID, as 32 hexadecimal digits.
    pub uuid: String,
    /// Domain, bus, device and function, if the driver tells.
    pub pci: Option<String>,
    /// The driver and its version, as the driver says it.
    pub driver: String,
    /// The version of Vulkan, as `1.3.250`.
    pub api: String,
    /// Bytes of memory that the driver says are free for this process.
    pub memory: u64,
    /// What it lacks, if sterna cannot use it.
    pub lacks: Option<String>,
    /// What it can do.
    pub(crate) can: Can,
    pub(crate) raw: vk::PhysicalDevice,
}

/// A device and its driver, as a pipeline cache names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) vendor: u32,
    pub(crate) device: u32,
    pub(crate) driver: u32,
    pub(crate) cache: [u8; 16],
}

/// What the driver reports, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Can {
    pub(crate) int64: bool,
    pub(crate) int64_atomics: bool,
    pub(crate) float64: bool,
    pub(crate) int16: bool,
    pub(crate) int8: bool,
    pub(crate) float16: bool,
    pub(crate) storage16: bool,
    pub(crate) storage8: bool,
    pub(crate) host_import: bool,
    /// DMA buffers as memory.
    pub(crate) dma_buf_import: bool,
    pub(crate) memory_budget: bool,
    pub(crate) variable_pointers: bool,
    pub(crate) memory_model: bool,
    pub(crate) memory_model_device: bool,
    pub(crate) maintenance4: bool,
    /// Accesses beyond a bound buffer are cut off by the device: none, to within a few bytes, exactly.
    pub(crate) robust: bool,
    pub(crate) robust2: bool,
    /// Subgroup operations in compute shaders.
    pub(crate) subgroup: vk::SubgroupFeatureFlags,
    /// Longest push constants, storage buffer and uniform buffer in bytes.
    pub(crate) max_push: u32,
    pub(crate) max_storage: u32,
    pub(crate) max_uniform: u32,
    /// Alignment in bytes of where a bound storage buffer begins.
    pub(crate) storage_alignment: u64,
    pub(crate) max_sets: u32,
    /// What tells this device and driver from others, as pipeline caches name them.
    pub(crate) identity: Identity,
    pub(crate) api: u32,
    /// Longest allocation in bytes.
    pub(crate) max_allocation: u64,
    /// Longest buffer in bytes.
    pub(crate) max_buffer: u64,
    /// Buffers whose pages are bound one by one, also to memory that other buffers have.
    pub(crate) sparse: bool,
    /// Bytes of all such buffers together.
    pub(crate) sparse_space: u64,
    pub(crate) max_invocations: u32,
    pub(crate) max_local: [u32; 3],
    pub(crate) max_groups: [u32; 3],
    /// Alignment of imported host memory.
    pub(crate) import_alignment: u64,
    /// Memory types, a bit each, that the host reaches and sees without further calls.
    pub(crate) coherent_types: u32,
    /// Allocations of device memory at a time.
    pub(crate) max_allocations: u32,
    /// All device-local memory is cached and coherent where the host reaches it.
    pub(crate) mapped: bool,
}

impl Gpu {
    /// Whether it cuts off accesses beyond a bound buffer (`robustBufferAccess2`), which sterna then switches on. What a module
    /// reaches by address is not covered.
    #[must_use]
    pub fn bounds_checks(&self) -> bool {
        self.can.robust2
    }
}

/// The devices that the loader lists, usable or not.
///
/// # Errors
/// No loader, or no driver; a limit of the process.
pub fn devices() -> Result<Vec<Gpu>, VulkanError> {
    let _standard = Standard::hold();
    Instance::shared().and_then(|instance| list(&instance)).map_err(limited)
}

/// The best device that is no software driver and lacks nothing, if there is one.
///
/// # Errors
/// An environment variable that cannot be read. Where there is no loader or no driver there is no device, and no error.
pub fn best() -> Result<Option<Gpu>, VulkanError> {
    match devices() {
        Ok(all) => Ok(all.into_iter().find(|g| g.kind != DeviceKind::Software && g.lacks.is_none())),
        Err(e @ VulkanError::Settings(_)) => Err(e),
        Err(_) => Ok(None),
    }
}

pub(crate) fn list(instance: &Arc<Instance>) -> Result<Vec<Gpu>, VulkanError> {
    // SAFETY: the instance is alive.
    let raw = unsafe { instance.raw.enumerate_physical_devices() }.map_err(no_driver("vkEnumeratePhysicalDevices"))?;
    if raw.is_empty() {
        return Err(without_driver("none of the installed drivers has a device here"));
    }
    let mut all: Vec<Gpu> = raw.into_iter().map(|d| describe(&instance.raw, d)).collect();
    all.sort_by_key(|g| g.kind);
    all.iter_mut().enumerate().for_each(|(i, g)| g.index = i);
    Ok(all)
}

/// The device that `name` means: a number, a UUID, or a part of the name. An empty one means the first that is no software driver.
pub(crate) fn find(all: Vec<Gpu>, name: &str) -> Result<Gpu, VulkanError> {
    let wanted = name.to_ascii_lowercase();
    let matches = |g: &Gpu| match wanted.as_str() {
        "" => g.kind != DeviceKind::Software,
        w => {
            w.parse() == Ok(g.index)
                || w.replace('-', "") == g.uuid
                || g.name.to_ascii_lowercase().contains(w) && w.parse::<usize>().is_err()
        }
    };
    let found = all.iter().map(|g| format!("vulkan:{} ({}, {})", g.index, g.name, g.kind)).collect::<Vec<_>>().join("; ");
    let chosen = all.into_iter().find(matches);
    chosen.ok_or_else(|| {
        let given = if name.is_empty() { "vulkan".into() } else { format!("vulkan:{name}") };
        VulkanError::NoDevice { given, found }
    })
}

fn text(chars: &[std::ffi::c_char]) -> String {
    // SAFETY: `c_char` and `u8` have one size; the slice is as long.
    let bytes = unsafe { std::slice::from_raw_parts(chars.as_ptr().cast::<u8>(), chars.len()) };
    CStr::from_bytes_until_nul(bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}

fn version(v: u32) -> String {
    format!("{}.{}.{}", vk::api_version_major(v), vk::api_version_minor(v), vk::api_version_patch(v))
}

/// The extensions that a device has.
struct Extensions(Vec<vk::ExtensionProperties>);

impl Extensions {
    fn has(&self, name: &CStr) -> bool {
        self.0.iter().any(|e| e.extension_name_as_c_str() == Ok(name))
    }
}

fn describe(vk: &ash::Instance, raw: vk::PhysicalDevice) -> Gpu {
    // SAFETY: a device of this instance, here and below.
    let extensions = unsafe { vk.enumerate_device_extension_properties(raw) };
    let (extensions, broken) = match extensions {
        Ok(all) => (Extensions(all), None),
        Err(e) => (Extensions(Vec::new()), Some(e)),
    };
    // SAFETY: as above.
    let plain = unsafe { vk.get_physical_device_properties(raw) };
    let mut gpu = first(raw, &plain, &extensions);
    if plain.api_version < vk::API_VERSION_1_2 {
        gpu.lacks = Some(format!("Vulkan 1.2 (it has {})", gpu.api));
        return gpu;
    }
    if let Some(e) = broken {
        // One broken device must not hide the others.
        gpu.lacks = Some(format!("a list of its extensions (vkEnumerateDeviceExtensionProperties: {e:?})"));
        return gpu;
    }
    properties(vk, &mut gpu, &extensions);
    gpu.can.sparse_space = plain.limits.sparse_address_space_size;
    features(vk, &mut gpu, &extensions);
    memory(vk, &mut gpu);
    gpu
}

/// What every version of Vulkan says of a device.
fn first(raw: vk::PhysicalDevice, plain: &vk::PhysicalDeviceProperties, extensions: &Extensions) -> Gpu {
    let limits = &plain.limits;
    let kind = match plain.device_type {
        vk::PhysicalDeviceType::CPU => DeviceKind::Software,
        vk::PhysicalDeviceType::DISCRETE_GPU => DeviceKind::Discrete,
        _ => DeviceKind::Integrated,
    };
    let can = Can {
        api: plain.api_version,
        max_invocations: limits.max_compute_work_group_invocations,
        max_local: limits.max_compute_work_group_size,
        max_groups: limits.max_compute_work_group_count,
        max_push: limits.max_push_constants_size,
        max_storage: limits.max_storage_buffer_range,
        max_uniform: limits.max_uniform_buffer_range,
        storage_alignment: limits.min_storage_buffer_offset_alignment,
        max_sets: limits.max_bound_descriptor_sets,
        max_allocations: limits.max_memory_allocation_count,
        identity: Identity {
            vendor: plain.vendor_id,
            device: plain.device_id,
            driver: plain.driver_version,
            cache: plain.pipeline_cache_uuid,
        },
        host_import: extensions.has(ext::external_memory_host::NAME),
        dma_buf_import: extensions.has(ext::external_memory_dma_buf::NAME) && extensions.has(khr::external_memory_fd::NAME),
        memory_budget: extensions.has(ext::memory_budget::NAME),
        ..Can::default()
    };
    Gpu {
        index: 0,
        name: text(&plain.device_name),
        kind,
        uuid: String::new(),
        pci: None,
        driver: version(plain.driver_version),
        api: version(plain.api_version),
        memory: 0,
        lacks: None,
        can,
        raw,
    }
}

/// Limits and names that a device of Vulkan 1.2 gives.
fn properties(vk: &ash::Instance, gpu: &mut Gpu, extensions: &Extensions) {
    let (mut id, mut three) =
        (vk::PhysicalDeviceIDProperties::default(), vk::PhysicalDeviceMaintenance3Properties::default());
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let (mut pci, mut import) =
        (vk::PhysicalDevicePCIBusInfoPropertiesEXT::default(), vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default());
    let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
    let mut longest = vk::PhysicalDeviceMaintenance4Properties::default();
    let (on_a_bus, newer) = (extensions.has(ext::pci_bus_info::NAME), gpu.can.api >= vk::API_VERSION_1_3);
    let mut properties = vk::PhysicalDeviceProperties2::default()
        .push_next(&mut id)
        .push_next(&mut three)
        .push_next(&mut driver)
        .push_next(&mut subgroup);
    if on_a_bus {
        properties = properties.push_next(&mut pci);
    }
    if gpu.can.host_import {
        properties = properties.push_next(&mut import);
    }
    if newer {
        properties = properties.push_next(&mut longest);
    }
    // SAFETY: a device of this instance; the chain lives on this stack, and only structures that the device knows are in it.
    unsafe { vk.get_physical_device_properties2(gpu.raw, &mut properties) };
    gpu.uuid = id.device_uuid.iter().map(|b| format!("{b:02x}")).collect();
    gpu.driver = format!("{} {}", text(&driver.driver_name), text(&driver.driver_info));
    if on_a_bus {
        gpu.pci = Some(format!("{:04x}:{:02x}:{:02x}.{}", pci.pci_domain, pci.pci_bus, pci.pci_device, pci.pci_function));
    }
    gpu.can.max_allocation = three.max_memory_allocation_size;
    gpu.can.max_buffer = if newer { longest.max_buffer_size } else { 1 << 31 };
    if subgroup.supported_stages.contains(vk::ShaderStageFlags::COMPUTE) {
        gpu.can.subgroup = subgroup.supported_operations;
    }
    gpu.can.import_alignment = import.min_imported_host_pointer_alignment;
}

/// What kernels may use on a device of Vulkan 1.2, and what it lacks.
fn features(vk: &ash::Instance, gpu: &mut Gpu, extensions: &Extensions) {
    let (mut sixteen, mut twelve) =
        (vk::PhysicalDevice16BitStorageFeatures::default(), vk::PhysicalDeviceVulkan12Features::default());
    let (mut pointers, mut four) =
        (vk::PhysicalDeviceVariablePointersFeatures::default(), vk::PhysicalDeviceMaintenance4Features::default());
    let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
    let mut features =
        vk::PhysicalDeviceFeatures2::default().push_next(&mut sixteen).push_next(&mut twelve).push_next(&mut pointers);
    if gpu.can.api >= vk::API_VERSION_1_3 {
        features = features.push_next(&mut four);
    }
    if extensions.has(ext::robustness2::NAME) {
        features = features.push_next(&mut robust);
    }
    // SAFETY: a device of this instance; the chain lives on this stack, and only structures that the device knows are in it.
    unsafe { vk.get_physical_device_features2(gpu.raw, &mut features) };
    let base = features.features;
    let on = |b: vk::Bool32| b == vk::TRUE;
    let can = &mut gpu.can;
    (can.int64, can.float64, can.int16) = (on(base.shader_int64), on(base.shader_float64), on(base.shader_int16));
    (can.int8, can.float16) = (on(twelve.shader_int8), on(twelve.shader_float16));
    (can.storage8, can.storage16) = (on(twelve.storage_buffer8_bit_access), on(sixteen.storage_buffer16_bit_access));
    can.int64_atomics = on(twelve.shader_buffer_int64_atomics);
    (can.memory_model, can.memory_model_device) =
        (on(twelve.vulkan_memory_model), on(twelve.vulkan_memory_model_device_scope));
    (can.variable_pointers, can.maintenance4) = (on(pointers.variable_pointers), on(four.maintenance4));
    (can.robust, can.robust2) = (on(base.robust_buffer_access), on(robust.robust_buffer_access2));
    // SAFETY: a device of this instance.
    let families = unsafe { vk.get_physical_device_queue_family_properties(gpu.raw) };
    can.sparse = [base.sparse_binding, base.sparse_residency_buffer, base.sparse_residency_aliased].into_iter().all(on)
        && families.iter().any(|f| f.queue_flags.contains(vk::QueueFlags::SPARSE_BINDING));
    let compute = families.iter().any(|f| f.queue_flags.contains(vk::QueueFlags::COMPUTE));
    gpu.lacks = lacking(on(twelve.buffer_device_address), on(twelve.timeline_semaphore), compute);
}

/// What a device of Vulkan 1.2 lacks, of what it must have.
fn lacking(addresses: bool, timelines: bool, compute: bool) -> Option<String> {
    let needed = [(addresses, "buffer device addresses"), (timelines, "timeline semaphores"), (compute, "a compute queue")];
    let missing: Vec<&str> = needed.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

fn memory(vk: &ash::Instance, gpu: &mut Gpu) {
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceMemoryProperties2::default();
    if gpu.can.memory_budget {
        all = all.push_next(&mut budget);
    }
    // SAFETY: a device of this instance; the chain lives on this stack.
    unsafe { vk.get_physical_device_memory_properties2(gpu.raw, &mut all) };
    let all = all.memory_properties;
    let local = |flags: vk::MemoryPropertyFlags| flags.contains(vk::MemoryPropertyFlags::DEVICE_LOCAL);
    let types: Vec<_> = all.memory_types_as_slice().iter().filter(|t| local(t.property_flags)).collect();
    let reached = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    for (i, t) in all.memory_types_as_slice().iter().enumerate() {
        gpu.can.coherent_types |= u32::from(t.property_flags.contains(reached)) << i;
    }
    let heap = types.iter().map(|t| t.heap_index as usize).max_by_key(|h| all.memory_heaps[*h].size).unwrap_or(0);
    gpu.memory = if gpu.can.memory_budget { budget.heap_budget[heap] } else { all.memory_heaps[heap].size };
    let shared = vk::MemoryPropertyFlags::HOST_VISIBLE
        | vk::MemoryPropertyFlags::HOST_COHERENT
        | vk::MemoryPropertyFlags::HOST_CACHED;
    gpu.can.mapped = gpu.kind != DeviceKind::Discrete
        && types.iter().any(|t| t.heap_index as usize == heap && t.property_flags.contains(shared));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(lacking(true, true, true), None);
        assert_eq!(lacking(false, true, false).unwrap(), "buffer device addresses and a compute queue");
        assert_eq!(lacking(true, false, true).unwrap(), "timeline semaphores");
    }

    #[test]
    fn a_device_that_cannot_be_asked_does_not_hide_the_others() {
        unsafe extern "system" fn fails(
            _: vk::PhysicalDevice,
            _: *const std::ffi::c_char,
            _: *mut u32,
            _: *mut vk::ExtensionProperties,
        ) -> vk::Result {
            vk::Result::ERROR_OUT_OF_HOST_MEMORY
        }
        let Ok(instance) = Instance::shared() else { return println!("SKIP: no Vulkan") };
        let Ok(all) = list(&instance) else { return println!("SKIP: no Vulkan device") };
        let vk = &instance.raw;
        let broken = ash::InstanceFnV1_0 { enumerate_device_extension_properties: fails, ..vk.fp_v1_0().clone() };
        let broken = ash::Instance::from_parts_1_3(vk.handle(), broken, vk.fp_v1_1().clone(), vk.fp_v1_3().clone());
        let gpu = describe(&broken, all[0].raw);
        assert_eq!(gpu.name, all[0].name);
        assert!(gpu.lacks.unwrap().contains("ERROR_OUT_OF_HOST_MEMORY") || gpu.can.api < vk::API_VERSION_1_2);
    }

    #[test]
    fn a_device_that_lacks_something_is_listed_and_refused() {
        let Ok(instance) = Instance::shared() else { return println!("SKIP: no Vulkan") };
        let Ok(mut all) = list(&instance) else { return println!("SKIP: no Vulkan device") };
        all[0].lacks = lacking(true, false, true);
        let Err(e) = Raw::new(instance, all.remove(0)) else { panic!("it was opened") };
        assert!(matches!(e, VulkanError::MissingFeature { .. }), "{e:?}");
        assert!(e.to_string().contains("lacks timeline semaphores"), "{e}");
    }
}
