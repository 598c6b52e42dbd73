//! Whether a module fits a kernel's declaration and the device.

use std::ffi::CString;

use ash::vk;
use sterna_hal::Access;
use sterna_hal::kernel::spirv::{BUFFER, HEAD, PUSH, spills};
use sterna_hal::kernel::{Code, Spirv};

use super::{Binding, BindingKind, Entry, Module, ModuleError, SpecConstant};
use crate::gpu::Can;

/// A module that fits, with what is needed to make a pipeline of it and to launch it.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) words: Vec<u32>,
    pub(crate) entry: CString,
    /// Specialisation: id, offset and bytes of each value in `data`.
    pub(crate) constants: Vec<vk::SpecializationMapEntry>,
    pub(crate) data: Vec<u8>,
    /// How it gets its arguments, unless by address.
    pub(crate) descriptors: Option<Descriptors>,
}

/// How a module that has bindings gets its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Descriptors {
    /// Set and binding of each buffer, in the order of the parameters.
    pub(crate) buffers: Vec<(u32, u32)>,
    /// Where the plain value goes, if into a uniform buffer.
    pub(crate) uniform: Option<(u32, u32)>,
    /// Bytes of push constants; 0 for none.
    pub(crate) push: u32,
    /// Whether it reads the number of workgroups, which is another in a part of a grid.
    pub(crate) counts_groups: bool,
}

impl Descriptors {
    /// Sets up to the highest that is used.
    pub(crate) fn sets(&self) -> u32 {
        self.buffers.iter().chain(&self.uniform).map(|b| b.0 + 1).max().unwrap_or(0)
    }

    /// The bindings of a set: number, kind, and which buffer goes there, or none for the plain value.
    pub(crate) fn in_set(&self, set: u32) -> impl Iterator<Item = (u32, vk::DescriptorType, Option<usize>)> {
        let buffers = self.buffers.iter().enumerate().map(|(n, b)| (*b, vk::DescriptorType::STORAGE_BUFFER, Some(n)));
        let value = self.uniform.map(|b| (b, vk::DescriptorType::UNIFORM_BUFFER, None));
        buffers.chain(value).filter(move |(b, ..)| b.0 == set).map(|(b, kind, n)| (b.1, kind, n))
    }
}

/// Looks whether a module is whole, has the entry point for compute, takes its arguments as the kernel declares them, and asks for
/// nothing that the device lacks.
pub(crate) fn check(code: &Code, form: &Spirv, can: &Can) -> Result<Fitted, ModuleError> {
    let module = Module::specialised(&form.code, |id| form.constants.get(id))?;
    let newest = if can.api >= vk::API_VERSION_1_3 { (1, 6) } else { (1, 5) };
    if module.version > newest {
        return Err(ModuleError::TooNew { is: module.version, newest });
    }
    let entry = entry_point(&module, &form.entry)?;
    module.capabilities.iter().try_for_each(|c| capable(*c, can))?;
    workgroup(entry, can)?;
    let (constants, data) = constants(&module.constants, form)?;
    let descriptors = if module.by_address() {
        by_address(&module, code)?;
        None
    } else {
        Some(by_descriptor(&module, code, can)?)
    };
    let words = form.code.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
    let entry = CString::new(&*form.entry).map_err(|_| no_entry(&module, &form.entry))?;
    Ok(Fitted { words, entry, constants, data, descriptors })
}

fn no_entry(module: &Module, wanted: &str) -> ModuleError {
    let names: Vec<String> = module.entries.iter().map(|e| format!("`{}`", e.name)).collect();
    let there = if names.is_empty() { "none".into() } else { names.join(", ") };
    ModuleError::NoEntry { wanted: wanted.into(), there }
}

fn entry_point<'m>(module: &'m Module, wanted: &str) -> Result<&'m Entry, ModuleError> {
    let named = || module.entries.iter().filter(|e| e.name == wanted);
    let entry = named().find(|e| e.stage == MODEL_COMPUTE).or_else(|| named().next());
    let entry = entry.ok_or_else(|| no_entry(module, wanted))?;
    let stage = match entry.stage {
        MODEL_COMPUTE => return Ok(entry),
        0 => "vertex",
        1 => "tessellation control",
        2 => "tessellation evaluation",
        3 => "geometry",
        4 => "fragment",
        6 => "an OpenCL kernel",
        5267 | 5268 | 5364 | 5365 => "mesh shading",
        5313..=5318 => "ray tracing",
        _ => "an unknown one",
    };
    Err(ModuleError::OtherStage { entry: wanted.into(), stage })
}

const MODEL_COMPUTE: u32 = 5;

fn workgroup(entry: &Entry, can: &Can) -> Result<(), ModuleError> {
    if entry.local_by_id && !can.maintenance4 {
        let name = "a workgroup size that is given by ids (LocalSizeId)".into();
        return Err(ModuleError::Capability { name, why: "which takes maintenance4; compile it for vulkan1.2" });
    }
    let Some(local) = entry.local else { return Ok(()) };
    let all = local.iter().try_fold(1_u32, |n, s| n.checked_mul(*s)).unwrap_or(u32::MAX);
    if all == 0 || all > can.max_invocations || local.iter().zip(can.max_local).any(|(s, m)| *s > m) {
        return Err(ModuleError::Workgroup { local, most: can.max_invocations, most_local: can.max_local });
    }
    Ok(())
}

/// The values as Vulkan takes them.
fn constants(there: &[SpecConstant], form: &Spirv) -> Result<(Vec<vk::SpecializationMapEntry>, Vec<u8>), ModuleError> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for &(id, value) in form.constants.as_slice() {
        let wrong = |what| Err(ModuleError::Constant { id, what });
        let Some(c) = there.iter().find(|c| c.id == id) else {
            let ids: Vec<String> = there.iter().map(|c| c.id.to_string()).collect();
            let ids = if ids.is_empty() { "has none".into() } else { format!("has {}", ids.join(", ")) };
            return wrong(format!("is set, and the module {ids}"));
        };
        if c.boolean && value > 1 {
            return wrong(format!("is a boolean and cannot be {value}; set 0 or 1"));
        }
        let bytes = c.bytes.min(8) as usize;
        let value_bytes = value.to_le_bytes();
        let (low, high) = value_bytes.split_at(bytes);
        if high.iter().any(|b| *b != 0) {
            return wrong(format!("has {} bits, which {value:#x} exceeds", 8 * bytes));
        }
        entries.push(vk::SpecializationMapEntry { constant_id: id, offset: data.len() as u32, size: bytes });
        data.extend_from_slice(low);
    }
    Ok((entries, data))
}

/// A module of sterna's own kind: it takes the head, and nothing but push constants.
fn by_address(module: &Module, code: &Code) -> Result<(), ModuleError> {
    if let Some(b) = module.bindings.first() {
        let what = "is a descriptor, in a module that takes buffers by address; it is one or the other".into();
        return Err(misfit(b, what));
    }
    let (buffers, value) = (code.takes.count(), code.takes.value);
    let most = if spills(buffers, value) { HEAD + BUFFER / 2 } else { PUSH };
    match module.push_constants {
        // A module may leave out what it does not use, and have room for a longer value than this one.
        None => Ok(()),
        Some(bytes) if bytes <= most as u64 => Ok(()),
        Some(bytes) if most < PUSH => Err(ModuleError::Value(format!(
            "its push constants have {bytes} bytes, but {buffers} buffers and a plain value of {value} bytes come in a block, whose \
             address is at offset {HEAD}: declare that address and nothing behind it"
        ))),
        Some(bytes) => Err(ModuleError::Value(format!(
            "its push constants have {bytes} bytes, and a kernel may count on {PUSH}: take the plain value in a buffer"
        ))),
    }
}

fn misfit(b: &Binding, what: String) -> ModuleError {
    let name = if b.name.is_empty() { String::new() } else { format!(" (`{}`)", b.name) };
    ModuleError::Binding { set: b.set, binding: b.binding, name, what }
}

/// A module with bindings, against the kernel's buffers and its plain value.
fn by_descriptor(module: &Module, code: &Code, can: &Can) -> Result<Descriptors, ModuleError> {
    let (mut storage, mut uniform) = (Vec::new(), None);
    for b in &module.bindings {
        if b.set >= can.max_sets {
            return Err(misfit(b, format!("is in a set beyond the device's {}; use a lower one", can.max_sets)));
        }
        match b.kind {
            BindingKind::Storage => storage.push(b),
            BindingKind::Uniform if uniform.is_none() => uniform = Some(b),
            BindingKind::Uniform => {
                return Err(misfit(b, "is a second uniform buffer, and there is one plain value".into()));
            }
            BindingKind::Array => return Err(misfit(b, "is an array of buffers; bind each buffer on its own".into())),
            BindingKind::Other => {
                return Err(misfit(b, "is no buffer (an image or a sampler?); sterna binds storage buffers".into()));
            }
        }
    }
    let takes = &code.takes;
    if storage.len() != takes.count() {
        let list: Vec<String> = storage.iter().map(|b| format!("{}.{}", b.set, b.binding)).collect();
        return Err(ModuleError::Bindings { bound: storage.len(), list: list.join(", "), declared: takes.count() });
    }
    if let Some(pair) = storage.windows(2).find(|p| (p[0].set, p[0].binding) == (p[1].set, p[1].binding)) {
        return Err(misfit(pair[1], "is declared twice; give each buffer a binding of its own".into()));
    }
    for (n, (b, (access, elem))) in storage.iter().zip(takes.buffers.iter().flatten()).enumerate() {
        accessed(b, n, *access)?;
        let elem = u64::from(*elem);
        if let Some(stride) = b.stride.filter(|s| *s > 0 && elem > 0 && elem % s != 0 && s % elem != 0) {
            return Err(misfit(b, format!("has elements of {stride} bytes, and parameter {n} of {elem}; make them alike")));
        }
    }
    let push = value_fits(module, uniform, takes.value, can)?;
    let place = |b: &Binding| (b.set, b.binding);
    Ok(Descriptors {
        buffers: storage.into_iter().map(place).collect(),
        uniform: uniform.map(place),
        push,
        counts_groups: module.counts_groups,
    })
}

fn accessed(b: &Binding, n: usize, access: Access) -> Result<(), ModuleError> {
    let what = match access {
        Access::Read if b.writes => {
            "is written, and parameter {n} is only read: declare it as each_mut, each_out or scatter"
        }
        Access::Write if b.reads => "is read, and parameter {n} is replaced without being read: declare it as each_mut",
        Access::Write if !b.writes => "is never written, and parameter {n} is to be replaced: declare it as each or whole",
        _ => return Ok(()),
    };
    Err(misfit(b, what.replace("{n}", &n.to_string())))
}

/// The bytes of push constants, if the plain value fits where the module takes it.
fn value_fits(module: &Module, uniform: Option<&Binding>, value: usize, can: &Can) -> Result<u32, ModuleError> {
    let value = value as u64;
    let refused = |what: String| Err(ModuleError::Value(what));
    let (place, bytes, most) = match (module.push_constants, uniform) {
        (Some(_), Some(b)) => {
            return Err(misfit(
                b,
                "is a uniform buffer beside push constants, and there is one plain value: use one of them".into(),
            ));
        }
        (None, None) if value == 0 => return Ok(0),
        (None, None) => {
            return refused(format!(
                "it has neither push constants nor a uniform buffer for the plain value of {value} bytes; set specialisation \
                 constants with `Spirv::constant`, and pass `()`"
            ));
        }
        (Some(bytes), None) => ("its push constants have", bytes, u64::from(can.max_push)),
        (None, Some(b)) => ("its uniform buffer has", b.bytes, u64::from(can.max_uniform)),
    };
    if bytes > most {
        return refused(format!("{place} {bytes} bytes, and the device takes {most}; pass the rest in a storage buffer"));
    }
    // A struct in Rust may be longer by the padding at its end.
    if value < bytes || value >= bytes.max(1).next_multiple_of(16) + 16 {
        return refused(format!("{place} {bytes} bytes, and the plain value has {value}: give both the same members"));
    }
    Ok(if uniform.is_some() { 0 } else { bytes.next_multiple_of(4) as u32 })
}

/// Numbers of capabilities: SPIR-V specification, section 3.31.
fn capable(capability: u32, can: &Can) -> Result<(), ModuleError> {
    let subgroup = |flag: vk::SubgroupFeatureFlags| can.subgroup.contains(flag);
    let (there, name) = match capability {
        // Matrix, Shader, PhysicalStorageBufferAddresses
        0 | 1 | 5347 => return Ok(()),
        9 => (can.float16, "16-bit floats (Float16)"),
        10 => (can.float64, "64-bit floats (Float64)"),
        11 => (can.int64, "64-bit integers (Int64)"),
        12 => (can.int64_atomics, "64-bit atomic operations (Int64Atomics)"),
        22 => (can.int16, "16-bit integers (Int16)"),
        39 => (can.int8, "8-bit integers (Int8)"),
        61 => (subgroup(vk::SubgroupFeatureFlags::BASIC), "subgroup operations (GroupNonUniform)"),
        62 => (subgroup(vk::SubgroupFeatureFlags::VOTE), "subgroup votes (GroupNonUniformVote)"),
        63 => (subgroup(vk::SubgroupFeatureFlags::ARITHMETIC), "subgroup arithmetic (GroupNonUniformArithmetic)"),
        64 => (subgroup(vk::SubgroupFeatureFlags::BALLOT), "subgroup ballots (GroupNonUniformBallot)"),
        65 => (subgroup(vk::SubgroupFeatureFlags::SHUFFLE), "subgroup shuffles (GroupNonUniformShuffle)"),
        66 => (subgroup(vk::SubgroupFeatureFlags::SHUFFLE_RELATIVE), "subgroup shuffles (GroupNonUniformShuffleRelative)"),
        67 => (subgroup(vk::SubgroupFeatureFlags::CLUSTERED), "clustered subgroups (GroupNonUniformClustered)"),
        68 => (subgroup(vk::SubgroupFeatureFlags::QUAD), "subgroup quads (GroupNonUniformQuad)"),
        4433 => (can.storage16, "16-bit storage (StorageBuffer16BitAccess)"),
        4441 | 4442 => (can.variable_pointers, "variable pointers (VariablePointers)"),
        4448 => (can.storage8, "8-bit storage (StorageBuffer8BitAccess)"),
        5345 => (can.memory_model, "the Vulkan memory model (VulkanMemoryModel)"),
        5346 => (can.memory_model_device, "device scope in the Vulkan memory model (VulkanMemoryModelDeviceScope)"),
        other => {
            let name = UNUSED
                .iter()
                .find(|u| u.0 == other)
                .map_or_else(|| format!("capability {other}"), |(_, name)| format!("capability {name}"));
            return Err(ModuleError::Capability { name, why: "which sterna does not enable; compile it without" });
        }
    };
    let why = "which the device does not have; use another device, or compile it without";
    if there { Ok(()) } else { Err(ModuleError::Capability { name: name.into(), why }) }
}

/// Names of capabilities that compute shaders are likely to ask for and that are not enabled.
const UNUSED: [(u32, &str); 19] = [
    (6, "Kernel"),
    (13, "ImageBasic"),
    (25, "ImageGatherExtended"),
    (27, "StorageImageMultisample"),
    (50, "ImageQuery"),
    (55, "StorageImageReadWithoutFormat"),
    (56, "StorageImageWriteWithoutFormat"),
    (4434, "UniformAndStorageBuffer16BitAccess"),
    (4435, "StoragePushConstant16"),
    (4449, "UniformAndStorageBuffer8BitAccess"),
    (4450, "StoragePushConstant8"),
    (4464, "DenormPreserve"),
    (4466, "SignedZeroInfNanPreserve"),
    (5055, "ShaderClockKHR"),
    (5301, "ShaderNonUniform"),
    (5302, "RuntimeDescriptorArray"),
    (6022, "CooperativeMatrixKHR"),
    (6033, "AtomicFloat32AddEXT"),
    (6034, "AtomicFloat64AddEXT"),
];

#[cfg(test)]
mod tests;
