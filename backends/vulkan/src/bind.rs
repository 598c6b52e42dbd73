//! Arguments by descriptor: what a module with bindings of its own gets.

use ash::vk;
use smallvec::SmallVec;
use sterna_hal::{Arg, DevRange, DeviceError};

use crate::module::Descriptors;
use crate::pipeline::Loaded;
use crate::raw::Raw;

/// Buffers of a launch and one for the plain value.
const MOST: u32 = 9;

/// Finds the buffer that has a range, and how far into it the range begins.
pub(crate) type BufferOf<'a> = &'a dyn Fn(DevRange) -> Result<(vk::Buffer, u64), DeviceError>;

/// The buffers of a launch as descriptors name them, and its plain value.
#[derive(Debug)]
pub(crate) struct Bound<'a> {
    pub(crate) buffers: SmallVec<[vk::DescriptorBufferInfo; 8]>,
    pub(crate) value: &'a [u8],
}

/// Looks the arguments up.
pub(crate) fn look_up<'a>(
    raw: &Raw,
    kernel: &Loaded,
    args: &'a [Arg<'a>],
    of: BufferOf<'_>,
) -> Result<Bound<'a>, DeviceError> {
    let can = &raw.gpu.can;
    let mut bound = Bound { buffers: SmallVec::new(), value: &[] };
    for arg in args {
        match *arg {
            Arg::Plain(bytes) => bound.value = bytes,
            Arg::Range { at, .. } => {
                let n = bound.buffers.len();
                let bad = |what: String| DeviceError::BadKernel { kernel: kernel.name.into(), what };
                if at.bytes > u64::from(can.max_storage) {
                    return Err(bad(format!(
                        "argument {n} has {} bytes, and this device binds up to {} (maxStorageBufferRange); launch it over parts, \
                         or take buffers by address as sterna.glsl does",
                        at.bytes, can.max_storage
                    )));
                }
                // What the launch's groups touch is there, as was looked at before: so this is cut.
                let (buffer, offset) = of(at).map_err(|_| {
                    bad(format!(
                        "the device has only a part of argument {n} ({} bytes), as the launch needs more than its memory, and \
                         bindings are for whole buffers; launch it over parts, or take buffers by address as sterna.glsl does",
                        at.bytes
                    ))
                })?;
                if offset % can.storage_alignment.max(1) != 0 {
                    return Err(bad(format!(
                        "argument {n} begins at a byte that is no multiple of {} (minStorageBufferOffsetAlignment); let views begin \
                         at such multiples, or take buffers by address as sterna.glsl does",
                        can.storage_alignment
                    )));
                }
                bound.buffers.push(vk::DescriptorBufferInfo { buffer, offset, range: at.bytes });
            }
        }
    }
    Ok(bound)
}

/// A pool for the sets of one launch at a time.
pub(crate) fn pool(raw: &Raw) -> Result<vk::DescriptorPool, vk::Result> {
    let size = |ty, descriptor_count| vk::DescriptorPoolSize { ty, descriptor_count };
    let sizes = [size(vk::DescriptorType::STORAGE_BUFFER, MOST - 1), size(vk::DescriptorType::UNIFORM_BUFFER, 1)];
    let info = vk::DescriptorPoolCreateInfo::default().max_sets(MOST).pool_sizes(&sizes);
    // SAFETY: the structures are alive.
    unsafe { raw.device.create_descriptor_pool(&info, None) }
}

/// Binds the launch's sets in a command buffer that is being recorded.
///
/// # Safety
/// The pool is used by no other launch in flight, the buffers live until this one has ended.
pub(crate) unsafe fn record(
    raw: &Raw,
    cmd: vk::CommandBuffer,
    pool: vk::DescriptorPool,
    kernel: &Loaded,
    (descriptors, layouts): &(Descriptors, Vec<vk::DescriptorSetLayout>),
    buffers: &[vk::DescriptorBufferInfo],
    value: vk::DescriptorBufferInfo,
) -> Result<(), vk::Result> {
    let device = &raw.device;
    // SAFETY: the caller's; handles are of this device, and the structures are alive.
    unsafe {
        device.reset_descriptor_pool(pool, vk::DescriptorPoolResetFlags::empty())?;
        for (number, layout) in layouts.iter().enumerate() {
            let number = number as u32;
            let mut bindings = descriptors.in_set(number).peekable();
            if bindings.peek().is_none() {
                // A gap: no shader looks there.
                continue;
            }
            let layout = [*layout];
            let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(pool).set_layouts(&layout);
            let sets = device.allocate_descriptor_sets(&info)?;
            for (binding, kind, n) in bindings {
                let info = [n.map_or(value, |n| buffers[n])];
                let write = vk::WriteDescriptorSet::default().dst_set(sets[0]).dst_binding(binding);
                device.update_descriptor_sets(&[write.descriptor_type(kind).buffer_info(&info)], &[]);
            }
            let point = vk::PipelineBindPoint::COMPUTE;
            device.cmd_bind_descriptor_sets(cmd, point, kernel.layout, number, &sets, &[]);
        }
    }
    Ok(())
}
