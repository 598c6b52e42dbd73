//! Kernels that are ready to run: modules that were looked through, and the pipelines made of them.
//!
//! **Guarantee:** what is loaded stays until it is unloaded or the device goes; the same code again gives the same number, and a
//! pipeline is built once.
//!
//! **States of a number:** never given, loaded, spare. A spare one is given again.
//!
//! **Locks:** `building`, while a pipeline is built; then `ids`, for look-ups, and never over a call of the driver. Building may
//! take as long as the kernels that run: lavapipe has one lock for both. A kernel that runs may wait for a page, and whoever brings
//! the page for somebody who submits a launch, which looks a kernel up: nobody who builds may be in their way. Each number has a
//! lock of its own: shared by who records a launch of the kernel, exclusive for the moment in which the number changes hands.

use std::collections::HashMap;
use std::sync::Arc;

use ash::vk;
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use sterna_hal::kernel::spirv::PUSH;
use sterna_hal::kernel::{Code, Spirv};
use sterna_hal::{DeviceError, KernelId};
use sterna_host::files::Standard;

use crate::cache::Cache;
use crate::config::CacheFolder;
use crate::error::{VulkanError, opening};
use crate::module::{self, Descriptors, Fitted};
use crate::raw::Raw;

/// A kernel on this device.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) pipeline: vk::Pipeline,
    pub(crate) layout: vk::PipelineLayout,
    /// For a module with bindings: where they are, and a layout for each set up to the highest.
    pub(crate) descriptors: Option<(Descriptors, Vec<vk::DescriptorSetLayout>)>,
    pub(crate) form: Spirv,
    pub(crate) name: &'static str,
}

/// All that were loaded.
#[derive(Debug)]
pub(crate) struct Kernels {
    raw: Arc<Raw>,
    /// Of every module that takes its arguments by address.
    by_address: vk::PipelineLayout,
    cache: Cache,
    building: Mutex<()>,
    ids: RwLock<Ids>,
    /// By number.
    list: boxcar::Vec<RwLock<Option<Loaded>>>,
}

#[derive(Debug, Default)]
struct Ids {
    of: HashMap<Code, KernelId>,
    spare: Vec<KernelId>,
}

impl Kernels {
    pub(crate) fn new(raw: &Arc<Raw>, folder: &CacheFolder) -> Result<Self, VulkanError> {
        let cache = Cache::new(raw, folder)?;
        let layout = pipeline_layout(raw, &[], PUSH as u32).map_err(opening("vkCreatePipelineLayout"));
        let by_address = layout.inspect_err(|_| cache.destroy())?;
        Ok(Self {
            raw: Arc::clone(raw),
            by_address,
            cache,
            building: Mutex::default(),
            ids: RwLock::default(),
            list: boxcar::Vec::new(),
        })
    }

    pub(crate) fn get(&self, id: KernelId) -> Option<MappedRwLockReadGuard<'_, Loaded>> {
        RwLockReadGuard::try_map(self.list.get(id.0 as usize)?.read(), Option::as_ref).ok()
    }

    pub(crate) fn load(&self, code: &Code) -> Result<KernelId, DeviceError> {
        let form = code.spirv.as_ref();
        let form = form.ok_or_else(|| DeviceError::NoForm { kernel: code.name.into(), needs: "SPIR-V" })?;
        let known = || self.ids.read().of.get(code).copied();
        if let Some(id) = known() {
            return Ok(id);
        }
        let _building = self.building.lock();
        // Somebody else may have built it meanwhile.
        if let Some(id) = known() {
            return Ok(id);
        }
        let loaded = self.build(code, form)?;
        let spare = self.ids.write().spare.pop();
        let id = match spare {
            Some(id) => {
                *self.list[id.0 as usize].write() = Some(loaded);
                id
            }
            None => KernelId(self.list.push(RwLock::new(Some(loaded))) as u32),
        };
        self.ids.write().of.insert(code.detached(), id);
        Ok(id)
    }

    /// Destroys a kernel, of which no launch is unfinished. A number that stands for none does nothing.
    pub(crate) fn unload(&self, id: KernelId) {
        // A number that is given again meanwhile would be another kernel's.
        let _building = self.building.lock();
        let Some(gone) = self.list.get(id.0 as usize).and_then(|place| place.write().take()) else { return };
        self.destroy(&gone);
        let mut ids = self.ids.write();
        ids.of.retain(|_, known| *known != id);
        ids.spare.push(id);
    }

    fn build(&self, code: &Code, form: &Spirv) -> Result<Loaded, DeviceError> {
        // Drivers open their own caches when they first compile.
        let _standard = Standard::hold();
        let bad = |what| DeviceError::BadKernel { kernel: code.name.into(), what };
        let fitted = module::check(code, form, &self.raw.gpu.can).map_err(|e| bad(e.to_string()))?;
        let (pipeline, form) = (vk::Pipeline::null(), form.detached());
        let mut loaded = Loaded { pipeline, layout: self.by_address, descriptors: None, form, name: code.name };
        let made = self.complete(&mut loaded, &fitted, &bad);
        if made.is_err() {
            self.destroy(&loaded);
        }
        made.map(|()| loaded)
    }

    fn complete(
        &self,
        loaded: &mut Loaded,
        fitted: &Fitted,
        bad: &dyn Fn(String) -> DeviceError,
    ) -> Result<(), DeviceError> {
        let (raw, device) = (&self.raw, &self.raw.device);
        let mut flags = vk::PipelineCreateFlags::empty();
        if let Some(d) = &fitted.descriptors {
            // A part of the grid is dispatched with its place as the base.
            flags = vk::PipelineCreateFlags::DISPATCH_BASE;
            loaded.layout = vk::PipelineLayout::null();
            let (_, sets) = loaded.descriptors.insert((d.clone(), Vec::new()));
            for set in 0..d.sets() {
                sets.push(set_layout(raw, d, set).map_err(raw.failed("vkCreateDescriptorSetLayout"))?);
            }
            loaded.layout = pipeline_layout(raw, sets, d.push).map_err(raw.failed("vkCreatePipelineLayout"))?;
        }
        let info = vk::ShaderModuleCreateInfo::default().code(&fitted.words);
        // SAFETY: whole words, looked through before.
        let module = unsafe { device.create_shader_module(&info, None) }.map_err(raw.failed("vkCreateShaderModule"))?;
        let special = vk::SpecializationInfo::default().map_entries(&fitted.constants).data(&fitted.data);
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(&fitted.entry)
            .specialization_info(&special);
        let info = [vk::ComputePipelineCreateInfo::default().flags(flags).stage(stage).layout(loaded.layout)];
        // SAFETY: the module has that entry point; the structures are alive. The module is not needed afterwards.
        let made = unsafe {
            let made = device.create_compute_pipelines(self.cache.raw(), &info, None);
            device.destroy_shader_module(module, None);
            made
        };
        match made {
            Ok(pipelines) => {
                self.cache.grew();
                loaded.pipeline = pipelines[0];
                Ok(())
            }
            Err((_, code)) => Err(match raw.failed("vkCreateComputePipelines")(code) {
                lost @ DeviceError::Lost(_) => lost,
                e => bad(format!("the driver does not take it: {e}")),
            }),
        }
    }

    fn destroy(&self, kernel: &Loaded) {
        let device = &self.raw.device;
        // SAFETY: nothing in flight uses it; destroying what was never made does nothing.
        unsafe {
            device.destroy_pipeline(kernel.pipeline, None);
            if let Some((_, sets)) = &kernel.descriptors {
                device.destroy_pipeline_layout(kernel.layout, None);
                sets.iter().for_each(|s| device.destroy_descriptor_set_layout(*s, None));
            }
        }
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        self.list.iter().filter_map(|(_, k)| k.write().take()).for_each(|k| self.destroy(&k));
        self.cache.save();
        self.cache.destroy();
        // SAFETY: the device is idle, as its owner has seen to, and the pipelines are gone.
        unsafe { self.raw.device.destroy_pipeline_layout(self.by_address, None) };
    }
}

fn pipeline_layout(raw: &Raw, sets: &[vk::DescriptorSetLayout], push: u32) -> Result<vk::PipelineLayout, vk::Result> {
    let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(push)];
    let ranges = if push > 0 { &range[..] } else { &[] };
    let info = vk::PipelineLayoutCreateInfo::default().set_layouts(sets).push_constant_ranges(ranges);
    // SAFETY: the structures are alive.
    unsafe { raw.device.create_pipeline_layout(&info, None) }
}

fn set_layout(raw: &Raw, d: &Descriptors, set: u32) -> Result<vk::DescriptorSetLayout, vk::Result> {
    let bindings: Vec<_> = d
        .in_set(set)
        .map(|(binding, kind, _)| {
            let one = vk::DescriptorSetLayoutBinding::default().binding(binding).descriptor_type(kind);
            one.descriptor_count(1).stage_flags(vk::ShaderStageFlags::COMPUTE)
        })
        .collect();
    let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
    // SAFETY: the structures are alive.
    unsafe { raw.device.create_descriptor_set_layout(&info, None) }
}
