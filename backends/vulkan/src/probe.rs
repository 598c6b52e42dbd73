//! Whether a page table works here: a small launch over entries that change, looked at when a device is opened.

use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use gpu_allocator::MemoryLocation;
use sterna_hal::kernel::{Code, Mapping, Spirv, Takes};
use sterna_hal::{
    Access, Arg, CopyEnd, CopyRun, DevAddr, DevRange, Device, DeviceError, Edit, Frames, Groups, Launch, Outcome, Target,
};
use sterna_host::sys::invalid;

use crate::VulkanDevice;

const CODE: Code = code("probe", include_bytes!("../glsl/probe.spv"));
const ROUNDS: Code = code("rounds", include_bytes!("../glsl/rounds.spv"));

const fn code(name: &'static str, module: &'static [u8]) -> Code {
    let buffers = [Some((Access::Read, 4)), Some((Access::ReadWrite, 4)), None, None, None, None, None, None];
    Code { name, rust: None, spirv: Some(Spirv::new(module)), takes: Takes { buffers, value: 0 } }
}

const N: usize = 256;

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `y = x + 1` over zeros; where frames can be entered anywhere also with the entries of x and y exchanged.
pub(crate) fn run(device: &VulkanDevice) -> Result<(), DeviceError> {
    let grain = device.caps().grain;
    let range = device.reserve(2 * grain)?;
    let mut frames = Vec::new();
    let tried = device.alloc(range.at, 2, &mut frames).and_then(|()| attempt(device, range, &frames));
    // SAFETY: the launches have ended or the device is given up; each is given back once.
    unsafe {
        if tried.is_ok() {
            let gone = [Edit { at: range.part(0, 2 * grain), to: Target::Absent, access: Access::Read }];
            let point = device.edit(&gone, &[])?;
            device.wait(point, PATIENCE)?;
        }
        device.unreserve(range);
        device.free(&frames);
    }
    tried
}

fn attempt(device: &VulkanDevice, range: DevRange, frames: &[Frames]) -> Result<(), DeviceError> {
    let grain = device.caps().grain;
    let grains: Vec<u32> = frames.iter().flat_map(|f| f.first..f.first + f.grains).collect();
    let page = |i: u64| range.part(i * grain, 4 * N as u64);
    let entry = |i: u64, first: u32| Edit {
        at: range.part(i * grain, grain),
        to: Target::Frames { first },
        access: Access::ReadWrite,
    };
    let zero = |first: u32| CopyRun { from: CopyEnd::Zero, to: CopyEnd::Frames { first, offset: 0 }, bytes: grain };
    // SAFETY: modules of this crate, which do what the probe says of them.
    let (id, rounds) = unsafe { (device.load(&CODE)?, device.load(&ROUNDS)?) };
    // A buffer beside the page table, which the host can read.
    let seen = device.compute().pool.buffer(4 * N as u64, MemoryLocation::GpuToCpu, "probe")?;
    let beside = DevRange { at: DevAddr(seen.address), bytes: 4 * N as u64 };
    let launch = |kernel, x: DevRange, y: DevRange| {
        let arg = |at, access| Arg::Range { at, elem: 4, access, mapping: Mapping::Each { chunk: N as u64 } };
        let args = [arg(x, Access::Read), arg(y, Access::ReadWrite)];
        let launch = Launch { kernel, grid: [1; 3], groups: Groups::All, args: &args };
        let ticket = device.compute().submit(&launch, &[], &|_| Err(invalid("probe", "it binds nothing")))?;
        if !device.wait(ticket.point(), PATIENCE)? {
            return Err(invalid("probe", "a small launch does not end"));
        }
        // SAFETY: submitted here, reached, and asked once.
        match unsafe { device.outcome(ticket, &mut Vec::new()) } {
            Outcome::Done => Ok(()),
            other => Err(invalid("probe", format!("a small launch ended as {other:?}"))),
        }
    };
    // SAFETY: addresses and frames of the probe's own; everything is waited for.
    let edit = |edits: &[Edit]| unsafe {
        let point = device.edit(edits, &[])?;
        device.wait(point, PATIENCE).map(drop)
    };
    // SAFETY: as above.
    unsafe {
        let point = device.copy(&[zero(grains[0]), zero(grains[1])], &[])?;
        device.wait(point, PATIENCE)?;
    }
    edit(&[entry(0, grains[0]), entry(1, grains[1])])?;
    launch(id, page(0), page(1))?;
    let mut expect = [0, 1];
    if !device.caps().placed {
        // Now x is what y was: 1, and y becomes 2.
        edit(&[entry(0, grains[1]), entry(1, grains[0])])?;
        launch(id, page(0), page(1))?;
        expect = [1, 2];
    }
    let mapped = seen.mapped.ok_or_else(|| invalid("probe", "the device has no memory that the host can reach"))?;
    for (i, want) in expect.into_iter().enumerate() {
        launch(id, page(i as u64), beside)?;
        // SAFETY: the buffer is the probe's own and as long, and its launch has ended.
        let got = unsafe { mapped.cast::<[u32; N]>().read() };
        if got != [want + 1; N] {
            let text = format!("the device does not follow its entries ({} instead of {})", got[0], want + 1);
            return Err(invalid("probe", text));
        }
    }
    launch(rounds, page(0), beside)?;
    let want = (0..70_000).fold(expect[0], |v, _| v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) ^ (v >> 7));
    // SAFETY: as above.
    let got = unsafe { mapped.cast::<u32>().read() };
    if got != want {
        SAID.call_once(|| say_that_loops_end_early(&device.info().name));
    }
    Ok(())
}

static SAID: Once = Once::new();

fn say_that_loops_end_early(device: &str) {
    // Not by a macro, which panics where standard error is closed.
    let _ = writeln!(
        std::io::stderr(),
        "sterna: {device} does not run loops to their end (lavapipe of Mesa 22.3 stops a shader after 65535 rounds): kernels with \
         longer loops give wrong results there; use a newer driver"
    );
}
