//! Whether a page table works here: a small launch over entries that change, looked at when a device is opened.

use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use sterna_hal::kernel::{Code, Mapping, Spirv, Takes};
use sterna_hal::{Access, Arg, CopyRun, Device, DeviceError, Edit, Frames, Groups, Launch, Outcome, Place, Target};
use sterna_host::sys::invalid;

use crate::VulkanDevice;
use crate::fixed::GRAIN;

const CODE: Code = code("probe", include_bytes!("../glsl/probe.spv"));
const ROUNDS: Code = code("rounds", include_bytes!("../glsl/rounds.spv"));

const fn code(name: &'static str, module: &'static [u8]) -> Code {
    let buffers = [Some((Access::Read, 4)), Some((Access::ReadWrite, 4)), None, None, None, None, None, None];
    Code { name, rust: None, spirv: Some(Spirv::new(module)), takes: Takes { buffers, value: 0 } }
}

const N: u64 = 256;

/// Runs `y = x + 1` over zeros; where frames can be entered anywhere also with the entries of x and y exchanged.
pub(crate) fn run(device: &VulkanDevice) -> Result<(), DeviceError> {
    let range = device.reserve(2 * GRAIN)?;
    let mut frames = Vec::new();
    let tried = device.alloc(range.at, 2, &mut frames).and_then(|()| attempt(device, range, &frames));
    // SAFETY: the launches have ended or the device is given up; each is given back once.
    unsafe {
        if tried.is_ok() {
            let gone = [Edit { at: range.part(0, 2 * GRAIN), to: Target::Absent, access: Access::Read }];
            device.edit(&gone, &[])?;
        }
        device.unreserve(range);
        device.free(&frames);
    }
    tried
}

fn attempt(device: &VulkanDevice, range: sterna_hal::DevRange, frames: &[Frames]) -> Result<(), DeviceError> {
    let grains: Vec<u32> = frames.iter().flat_map(|f| f.first..f.first + f.grains).collect();
    let entry = |i: u64, first: u32| Edit {
        at: range.part(i * GRAIN, GRAIN),
        to: Target::Frames { first },
        access: Access::ReadWrite,
    };
    let zero = |first: u32| CopyRun { from: Place::Zero, to: Place::Frames { first, offset: 0 }, bytes: GRAIN };
    let (id, rounds) = (device.load(&CODE)?, device.load(&ROUNDS)?);
    // SAFETY: addresses and frames of the probe's own; everything is waited for.
    let launch = |kernel| unsafe {
        let arg = |i: u64, access| Arg::Range {
            at: range.part(i * GRAIN, 4 * N),
            elem: 4,
            access,
            mapping: Mapping::Each { chunk: N },
        };
        let args = [arg(0, Access::Read), arg(1, Access::ReadWrite)];
        let ticket = device.submit(&Launch { kernel, grid: [1; 3], groups: Groups::All, args: &args }, &[])?;
        if !device.wait(ticket.point, Duration::from_secs(20))? {
            return Err(invalid("probe", "a small launch does not end"));
        }
        match device.outcome(ticket, &mut Vec::new()) {
            Outcome::Done => Ok(()),
            other => Err(invalid("probe", format!("a small launch ended as {other:?}"))),
        }
    };
    // SAFETY: as above.
    unsafe {
        let point = device.copy(&[zero(grains[0]), zero(grains[1])], &[])?;
        device.wait(point, Duration::from_secs(20))?;
        device.edit(&[entry(0, grains[0]), entry(1, grains[1])], &[])?;
    }
    launch(id)?;
    let Some(base) = device.frames_base() else { return Ok(()) };
    // SAFETY: as above. Now x is what y was: 1, and y becomes 2.
    unsafe { device.edit(&[entry(0, grains[1]), entry(1, grains[0])], &[])? };
    launch(id)?;
    for (grain, want) in [(grains[1], 1_u32), (grains[0], 2)] {
        // SAFETY: frames of the probe's own, readable by plain loads, which nothing writes now.
        let got = unsafe { base.add(grain as usize * GRAIN as usize).cast::<[u32; N as usize]>().read() };
        if got != [want; N as usize] {
            let text = format!("the device does not follow a change of its entries ({} instead of {want})", got[0]);
            return Err(invalid("probe", text));
        }
    }
    launch(rounds)?;
    // x is 1 everywhere now.
    let want = (0..70_000).fold(1_u32, |v, _| v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) ^ (v >> 7));
    // SAFETY: as above; y is in this frame.
    let got = unsafe { base.add(grains[0] as usize * GRAIN as usize).cast::<u32>().read() };
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
