//! Parts of a grid with a module that looks at its place in the dispatch itself.
#![cfg(target_os = "linux")]

mod common;

use std::time::Duration;

use sterna_hal::kernel::{EachMut, EachOut, Kernel, Params, Spirv, each_mut, each_out};
use sterna_hal::{
    Access, Arg, CopyEnd, CopyRun, DevRange, Device, DeviceError, Edit, Groups, KernelId, Launch, Outcome, Target,
};
use sterna_vulkan::{PageTable, VulkanConfig, VulkanDevice};

const GRAIN: u64 = 64 << 10;

fn launch(
    device: &VulkanDevice,
    id: KernelId,
    grid: [u32; 3],
    groups: Groups<'_>,
    args: &[Arg<'_>],
) -> Result<(), DeviceError> {
    // SAFETY: a range of one grain that stays until the launch has ended.
    let ticket = unsafe { device.submit(&Launch { kernel: id, grid, groups, args }, &[]) }?;
    assert!(device.wait(ticket.point(), Duration::from_secs(20)).unwrap(), "it does not end");
    // SAFETY: submitted here, reached, and asked once.
    assert!(matches!(unsafe { device.outcome(ticket, &mut Vec::new()) }, Outcome::Done));
    Ok(())
}

fn arg<P: Params>(kernel: &Kernel<P>, range: DevRange, elem: u64) -> Arg<'static> {
    let p = kernel.params()[0];
    Arg::Range { at: range, elem, access: p.access, mapping: p.mapping }
}

#[test]
fn parts_of_a_grid_run_where_they_belong() {
    let config = VulkanConfig { memory: Some(64 << 20), page_table: Some(PageTable::Mmu), ..VulkanConfig::default() };
    let Some(device) = common::device(&config) else { return };
    let range = device.reserve(GRAIN).unwrap();
    let mut frames = Vec::new();
    device.alloc(range.at, 1, &mut frames).unwrap();
    let first = frames[0].first;
    let base = device.frames_base().expect("frames that the host can read");
    // SAFETY: of this test's own, and nothing runs meanwhile.
    let counts = || unsafe { base.add((u64::from(first) * GRAIN) as usize).cast::<[u32; 60]>().read() };
    let edit = |to| [Edit { at: range, to, access: Access::ReadWrite }];
    // SAFETY: as above.
    let done = |point| device.wait(point, Duration::from_secs(20)).unwrap();
    // SAFETY: as above.
    unsafe {
        let zero = [CopyRun { from: CopyEnd::Zero, to: CopyEnd::Frames { first, offset: 0 }, bytes: GRAIN }];
        done(device.copy(&zero, &[]).unwrap());
        device.edit(&edit(Target::Frames { first }), &[]).unwrap();
    }

    let grid = [5, 4, 3];
    // SAFETY: each group changes its own count.
    let kernel: Kernel<(EachMut<u32>,)> =
        unsafe { Kernel::from_spirv("grid", [5_u32, 4], (each_mut(1),), Spirv::new(include_bytes!("glsl/grid.spv"))) };
    // SAFETY: a kernel's code.
    let id = unsafe { device.load(kernel.code()) }.unwrap();
    let args = [Arg::Plain(kernel.value()), arg(&kernel, range, 4)];
    let mut want = [0_u32; 60];
    for groups in [Groups::All, Groups::Range(3, 27), Groups::Range(59, 60), Groups::List(&[7, 0, 44]), Groups::Range(9, 9)]
    {
        launch(&device, id, grid, groups, &args).unwrap();
        match groups {
            Groups::All => want.iter_mut().for_each(|n| *n += 1),
            Groups::Range(first, end) => want[first as usize..end as usize].iter_mut().for_each(|n| *n += 1),
            Groups::List(list) => list.iter().for_each(|i| want[*i as usize] += 1),
        }
        assert_eq!(counts(), want, "{groups:?}");
    }

    // One that reads the number of groups would get that of the part.
    // SAFETY: each group replaces its own four elements.
    let place: Kernel<(EachOut<[u32; 2]>,)> =
        unsafe { Kernel::from_spirv("place", (), (each_out(4),), Spirv::new(include_bytes!("glsl/place.spv"))) };
    // SAFETY: a kernel's code.
    let id = unsafe { device.load(place.code()) }.unwrap();
    let args = [arg(&place, range, 8)];
    let e = launch(&device, id, [4, 1, 1], Groups::Range(1, 2), &args).unwrap_err().to_string();
    assert!(e.contains("gl_NumWorkGroups"), "{e}");
    launch(&device, id, [4, 1, 1], Groups::All, &args).unwrap();
    assert_eq!(counts()[..8], [0, 4, 0, 4, 0, 4, 0, 4]);

    // SAFETY: everything has ended.
    unsafe {
        device.edit(&edit(Target::Absent), &[]).unwrap();
        device.unreserve(range);
        device.free(&frames);
    }
}
