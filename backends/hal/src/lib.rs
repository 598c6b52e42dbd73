//! The contract between sterna and the devices it drives.
//!
//! A backend implements [`Device`]; the runtime calls it and nothing else. This crate names no platform and
//! makes no decision: what really differs between devices is declared in [`Caps`], and the engine's strategy follows from that.
//!
//! | module | holds |
//! |---|---|
//! | [`place`](DevRange) | addresses, frames, and where bytes can be |
//! | [`Caps`], [`DeviceInfo`] | what a device can do, and what it is |
//! | [`Point`] | timelines: when something has happened |
//! | [`Device`] | the trait itself, with the rules that both sides keep |
//! | [`Injected`], [`Trigger`] | a device whose calls fail on demand, for tests of error paths |
//! | [`panics`] | the program's code, which may panic, on threads of ours |
//! | [`kernel`] | kernels: their code, their parameters, how groups map to elements |
//! | `conformance` | one suite over `&dyn Device` (feature `conformance`) |
//!
//! Two rules hold for everything here. **Only [`Device::wait`] blocks.** And **a point that is reached means that the bytes
//! are visible to plain loads of the host**, without further calls.

mod caps;
#[cfg(feature = "conformance")]
pub mod conformance;
mod device;
mod error;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub mod failing;
mod inject;
pub mod kernel;
pub mod panics;
mod place;
mod point;
mod trigger;

pub use caps::{Absent, Caps, DeviceInfo, DeviceKind, Memory, Role};
pub use device::{Arg, Device, Groups, Launch};
pub use error::{DeviceError, KernelError};
pub use inject::Injected;
pub use kernel::{KernelId, in_kernel, runs_kernels};
pub use place::{Access, CopyEnd, CopyRun, DevAddr, DevRange, Edit, Frames, HostAt, RegionId, Target};
pub use point::{Fault, FaultBatch, Outcome, Point, Ticket};
pub use trigger::Trigger;
