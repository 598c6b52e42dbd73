//! Has a driver compile SPIR-V modules to its device's own code, and says what came out. Nothing runs.
//!
//! ```text
//! cargo run -p sterna-vulkan --example compile -- kernels/src/saxpy/saxpy.spv
//! ```
//!
//! The device is the first that the loader lists; `VK_DRIVER_FILES` chooses the driver. `tools/radv.sh` uses it with a driver that
//! knows real GPUs without having one. Ends with code 1 if a module is not taken.

use std::error::Error;
use std::ffi::CString;
use std::io::Write;
use std::process::ExitCode;

use ash::{khr, vk};

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    match compile(&files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn compile(_: &[String]) -> Result<(), Box<dyn Error>> {
    Err("sterna-vulkan is for Linux".into())
}

#[cfg(target_os = "linux")]
fn compile(files: &[String]) -> Result<(), Box<dyn Error>> {
    let compiler = Compiler::new()?;
    println!("{}", compiler.name);
    println!("{:>6} {:>6} {:>6} {:>7}  module", "instr.", "vector", "scalar", "bytes");
    let mut refused = 0;
    for file in files {
        match std::fs::read(file).map_err(Into::into).and_then(|code| compiler.module(&code)) {
            Ok([instructions, vector, scalar, bytes]) => {
                println!("{instructions:>6} {vector:>6} {scalar:>6} {bytes:>7}  {file}");
            }
            Err(e) => {
                refused += 1;
                println!("FAILED {file}: {e}");
            }
        }
    }
    println!("{} of {} modules compiled", files.len() - refused, files.len());
    if refused > 0 { Err(format!("{refused} modules were not taken").into()) } else { Ok(()) }
}

#[cfg(target_os = "linux")]
struct Compiler {
    name: String,
    device: ash::Device,
    statistics: khr::pipeline_executable_properties::Device,
    instance: ash::Instance,
    _entry: ash::Entry,
}

#[cfg(target_os = "linux")]
impl Compiler {
    fn new() -> Result<Self, Box<dyn Error>> {
        // SAFETY: loads the system's Vulkan library, whose initialisation is trusted.
        let entry = unsafe { ash::Entry::load() }?;
        let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        // SAFETY: everything that the structures point to is alive, here and below; handles are of this instance and device.
        unsafe {
            let instance = entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&app), None)?;
            let all = instance.enumerate_physical_devices()?;
            let physical = *all.first().ok_or("the loader lists no device")?;
            let name =
                instance.get_physical_device_properties(physical).device_name_as_c_str()?.to_string_lossy().into_owned();
            // All that the driver has, since nothing runs.
            let (mut eleven, mut twelve, mut thirteen) = (
                vk::PhysicalDeviceVulkan11Features::default(),
                vk::PhysicalDeviceVulkan12Features::default(),
                vk::PhysicalDeviceVulkan13Features::default(),
            );
            let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut eleven)
                .push_next(&mut twelve)
                .push_next(&mut thirteen)
                .push_next(&mut executable);
            instance.get_physical_device_features2(physical, &mut features);
            let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let extensions = [khr::pipeline_executable_properties::NAME.as_ptr()];
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queue)
                .enabled_extension_names(&extensions)
                .push_next(&mut features);
            let device = instance.create_device(physical, &info, None)?;
            let statistics = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Self { name, device, statistics, instance, _entry: entry })
        }
    }

    /// Instructions, vector and scalar registers and bytes of the compiled module; 0 for what the driver does not tell.
    fn module(&self, code: &[u8]) -> Result<[u64; 4], Box<dyn Error>> {
        use sterna_vulkan::module::{BindingKind, Module};
        let module = Module::parse(code)?;
        let main = CString::new(module.entries.first().ok_or("it has no entry point")?.name.as_str())?;
        let sets = module.bindings.iter().map(|b| b.set + 1).max().unwrap_or(0);
        let bindings = |set| {
            let of_set = module.bindings.iter().filter(move |b| b.set == set).map(|b| {
                let kind = match b.kind {
                    BindingKind::Uniform => vk::DescriptorType::UNIFORM_BUFFER,
                    BindingKind::Other => vk::DescriptorType::STORAGE_IMAGE,
                    _ => vk::DescriptorType::STORAGE_BUFFER,
                };
                let binding = vk::DescriptorSetLayoutBinding::default().binding(b.binding).descriptor_type(kind);
                binding.descriptor_count(1).stage_flags(vk::ShaderStageFlags::COMPUTE)
            });
            of_set.collect::<Vec<_>>()
        };
        let push = u32::try_from(module.push_constants.unwrap_or(0))?.next_multiple_of(4);
        let ranges = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(push)];
        let words: Vec<u32> = code.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let device = &self.device;
        // SAFETY: everything that the structures point to is alive; handles are of this device. What fails here leaves handles
        // behind, which go with the process.
        unsafe {
            let mut layouts = Vec::new();
            for set in 0..sets {
                let bindings = bindings(set);
                let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
                layouts.push(device.create_descriptor_set_layout(&info, None)?);
            }
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
            let info = info.push_constant_ranges(if push > 0 { &ranges } else { &[] });
            let layout = device.create_pipeline_layout(&info, None)?;
            let shader = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default().stage(vk::ShaderStageFlags::COMPUTE);
            let info = vk::ComputePipelineCreateInfo::default()
                .flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR)
                .stage(stage.module(shader).name(&main))
                .layout(layout);
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None).map_err(|e| e.1);
            let counts = made.and_then(|p| self.counts(p[0]).inspect(|_| device.destroy_pipeline(p[0], None)));
            device.destroy_shader_module(shader, None);
            device.destroy_pipeline_layout(layout, None);
            layouts.into_iter().for_each(|l| device.destroy_descriptor_set_layout(l, None));
            Ok(counts?)
        }
    }

    /// # Safety
    /// A pipeline of this device, made with statistics.
    unsafe fn counts(&self, pipeline: vk::Pipeline) -> Result<[u64; 4], vk::Result> {
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: the caller's; the first executable of a compute pipeline is its only one.
        let all = unsafe { self.statistics.get_pipeline_executable_statistics(&info) }?;
        let mut counts = [0; 4];
        for s in &all {
            let name = s.name_as_c_str().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
            let places = ["instructions", "vgprs", "sgprs", "code size"];
            if let Some(place) = places.iter().position(|p| name == *p)
                && let vk::PipelineExecutableStatisticFormatKHR::UINT64 = s.format
            {
                // SAFETY: the format says which member is there.
                counts[place] = unsafe { s.value.u64 };
            }
        }
        Ok(counts)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Compiler {
    fn drop(&mut self) {
        // SAFETY: everything made from them is gone, or goes with the process.
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}
