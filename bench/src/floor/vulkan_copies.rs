//! The floor of copies on Vulkan: the same bytes by plain calls of the driver, between memory of the host and a buffer of the device.
//! Imported: one `vkCmdCopyBuffer` of everything, in regions of 64 MiB or in one. Staged: four buffers of 4 MiB, one of which the host fills or empties while the device
//! copies the others.

use std::mem::ManuallyDrop;

use anyhow::{Context, Result};
use ash::{ext, khr, vk};

use super::Mapping;
use super::vulkan::Opened;

const STAGE: usize = 4 << 20;
const STAGES: usize = 4;
/// Software drivers copy a region by one call of `memcpy`, which stores past the cache from some 100 MiB a call on.
const REGION: usize = 64 << 20;

/// Two ends of copies, as long as each other. Everything lives as long as this process.
pub(crate) struct PlainCopies {
    gpu: ManuallyDrop<Opened>,
    commands: Vec<vk::CommandBuffer>,
    device: vk::Buffer,
    /// The host's memory as a buffer, where the driver imports it.
    imported: Option<vk::Buffer>,
    stages: Vec<(vk::Buffer, *mut u8)>,
    host: Mapping,
    value: u64,
    /// Bytes of a region.
    region: usize,
}

impl PlainCopies {
    /// The device whose name is `name`, with a buffer as long as `host`; without `import` for staged copies alone.
    pub(crate) fn new(name: &str, host: Mapping, import: bool) -> Result<Self> {
        let names = [ext::external_memory_host::NAME, khr::external_memory::NAME];
        let gpu = Opened::new(name, if import { &names } else { &[] })?;
        // SAFETY: plain Vulkan, each call with what the specification asks for.
        unsafe {
            let pool = vk::CommandPoolCreateInfo::default()
                .queue_family_index(gpu.family)
                .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
            let pool = gpu.device.create_command_pool(&pool, None)?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(STAGES as u32);
            let commands = gpu.device.allocate_command_buffers(&info)?;
            let device = buffer(&gpu, host.bytes, vk::MemoryPropertyFlags::DEVICE_LOCAL)?.0;
            let mut stages = Vec::new();
            for _ in 0..STAGES {
                let seen = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
                let (buffer, memory) = buffer(&gpu, STAGE, seen | vk::MemoryPropertyFlags::HOST_CACHED)?;
                let at = gpu.device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty())?;
                stages.push((buffer, at.cast()));
            }
            let imported = if import { Some(over(&gpu, host)?) } else { None };
            Ok(Self { gpu: ManuallyDrop::new(gpu), commands, device, imported, stages, host, value: 0, region: REGION })
        }
    }

    /// As [`copy`](Self::copy), in one region.
    pub(crate) fn copy_in_one(&mut self, there: bool) -> Result<()> {
        self.region = self.host.bytes;
        let done = self.copy(there);
        self.region = REGION;
        done
    }

    /// Copies everything to the device, or home.
    pub(crate) fn copy(&mut self, there: bool) -> Result<()> {
        match self.imported {
            Some(imported) => {
                self.record(0, imported, 0, 0, self.host.bytes, there)?;
                self.gpu.wait(self.value)
            }
            None => self.staged(there),
        }
    }

    fn staged(&mut self, there: bool) -> Result<()> {
        let before = self.value;
        for first in (0..self.host.bytes).step_by(STAGE) {
            let i = first / STAGE % STAGES;
            if first >= STAGES * STAGE {
                self.gpu.wait(before + (first / STAGE - STAGES) as u64 + 1)?;
                if !there {
                    self.move_staged(i, first - STAGES * STAGE, false);
                }
            }
            if there {
                self.move_staged(i, first, true);
            }
            let bytes = STAGE.min(self.host.bytes - first);
            self.record(i, self.stages[i].0, 0, first, bytes, there)?;
        }
        self.gpu.wait(self.value)?;
        if !there {
            for first in (0..self.host.bytes).step_by(STAGE).skip((self.host.bytes.div_ceil(STAGE)).saturating_sub(STAGES)) {
                self.move_staged(first / STAGE % STAGES, first, false);
            }
        }
        Ok(())
    }

    /// Fills a stage with the host's bytes from `first` on, or empties it into them.
    fn move_staged(&self, stage: usize, first: usize, fill: bool) {
        let bytes = STAGE.min(self.host.bytes - first);
        // SAFETY: inside the mapping and the stage, of which the device is done with.
        unsafe {
            let (host, stage) = (self.host.at.add(first), self.stages[stage].1);
            let (from, to) = if fill { (host, stage) } else { (stage, host) };
            to.copy_from_nonoverlapping(from, bytes);
        }
    }

    /// Records and submits a copy between `near`, from `offset` on, and the device's buffer, from `far` on.
    fn record(&mut self, i: usize, near: vk::Buffer, offset: usize, far: usize, bytes: usize, there: bool) -> Result<()> {
        let (cmd, device) = (self.commands[i], &self.gpu.device);
        let (near, far) = ((near, offset as u64), (self.device, far as u64));
        let (from, to) = if there { (near, far) } else { (far, near) };
        let region = |done: usize| vk::BufferCopy {
            src_offset: from.1 + done as u64,
            dst_offset: to.1 + done as u64,
            size: self.region.min(bytes - done) as u64,
        };
        let regions: Vec<_> = (0..bytes).step_by(self.region).map(region).collect();
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::HOST_READ)];
        let (before, behind) = (vk::PipelineStageFlags::TRANSFER, vk::PipelineStageFlags::HOST);
        // SAFETY: as above; the command buffer's last use was waited for.
        unsafe {
            device.begin_command_buffer(cmd, &once)?;
            device.cmd_copy_buffer(cmd, from.0, to.0, &regions);
            let none = vk::DependencyFlags::empty();
            device.cmd_pipeline_barrier(cmd, before, before | behind, none, &barrier, &[], &[]);
            device.end_command_buffer(cmd)?;
        }
        self.value += 1;
        self.gpu.submit(cmd, self.value)
    }
}

fn info(bytes: usize) -> vk::BufferCreateInfo<'static> {
    let usage = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
    vk::BufferCreateInfo::default().size(bytes as u64).usage(usage)
}

/// A buffer in memory that has at least these properties.
fn buffer(gpu: &Opened, bytes: usize, wanted: vk::MemoryPropertyFlags) -> Result<(vk::Buffer, vk::DeviceMemory)> {
    // SAFETY: as above.
    unsafe {
        let buffer = gpu.device.create_buffer(&info(bytes), None)?;
        let needs = gpu.device.get_buffer_memory_requirements(buffer);
        let memory = gpu.instance.get_physical_device_memory_properties(gpu.physical);
        let fits =
            |(i, t): &(usize, &vk::MemoryType)| needs.memory_type_bits >> i & 1 == 1 && t.property_flags.contains(wanted);
        let types = memory.memory_types_as_slice().iter().enumerate();
        let kind = types.clone().find(fits).context("no such memory")?.0 as u32;
        let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind);
        let memory = gpu.device.allocate_memory(&info, None)?;
        gpu.device.bind_buffer_memory(buffer, memory, 0)?;
        Ok((buffer, memory))
    }
}

/// A buffer over the host's own memory.
fn over(gpu: &Opened, host: Mapping) -> Result<vk::Buffer> {
    let handle = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
    let ext = ext::external_memory_host::Device::new(&gpu.instance, &gpu.device);
    let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
    // SAFETY: as above; the mapping is never unmapped.
    unsafe {
        let get = ext.fp().get_memory_host_pointer_properties_ext;
        get(gpu.device.handle(), handle, host.at.cast(), &mut properties).result()?;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(handle);
        let buffer = gpu.device.create_buffer(&info(host.bytes).push_next(&mut external), None)?;
        let types = gpu.device.get_buffer_memory_requirements(buffer).memory_type_bits & properties.memory_type_bits;
        let mut from = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(handle).host_pointer(host.at.cast());
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(host.bytes as u64)
            .memory_type_index(types.trailing_zeros())
            .push_next(&mut from);
        let memory = gpu.device.allocate_memory(&info, None)?;
        gpu.device.bind_buffer_memory(buffer, memory, 0)?;
        Ok(buffer)
    }
}
