//! A GPU compute runtime with unified memory.
//!
//! A [`Shared<T>`] is a plain slice on the host and a buffer on devices: one allocation, no copies in the program's text. A
//! page-migration engine in user space, with the semantics of Linux HMM, moves the pages to where they are used.
//!
//! ```
//! use sterna::{Runtime, Shared};
//! use sterna::kernels::saxpy;
//!
//! let samples = vec![1.0_f32; 100_000];
//! let rt = Runtime::new()?;                        // best device; STERNA_DEVICE chooses
//! let x = rt.shared_from(&samples)?;               // Shared<f32>, derefs to [f32]
//! let mut y = rt.shared::<f32>(x.len())?;          // zero-filled, costs nothing until touched
//! y[0] = 1.0;                                      // ordinary host code
//! rt.launch(&saxpy(2.0), (&x, &mut y))?;           // returns at once; pages move to the device as needed
//! println!("{}", y[7]);                            // waits for the kernel; that page comes home, only that one
//! # Ok::<(), sterna::Error>(())
//! ```
//!
//! A kernel of one's own is a Rust function with a statement of what each workgroup gets:
//!
//! ```
//! use sterna::Runtime;
//! use sterna::kernel::{Group, Kernel, each, each_mut};
//!
//! fn squares(_: Group, bias: f32, x: &[f32], y: &mut [f32]) {
//!     for (y, x) in y.iter_mut().zip(x) {
//!         *y = x * x + bias;
//!     }
//! }
//!
//! let rt = Runtime::new()?;
//! let x = rt.shared_with(10_000, |i| i as f32)?;
//! let mut y = rt.shared::<f32>(10_000)?;
//! let kernel = Kernel::new("squares", 0.5, (each(1024), each_mut(1024)), squares);
//! rt.launch(&kernel, (&x, &mut y))?;
//! assert_eq!(y[3], 9.5);
//! # Ok::<(), sterna::Error>(())
//! ```
//!
//! | look at | for |
//! |---|---|
//! | [`Runtime`], [`Builder`] | devices, allocations, launches |
//! | [`Shared`], [`View`], [`ViewMut`] | shared memory |
//! | [`kernel`], [`kernels`] | kernels of one's own, and the stock ones |
//! | [`policy`] | where pages go |
//! | [`Stats`], [`Residency`] | what moved and why, and where it is |
//! | [`hmm`] | the engine, for people who write drivers |
//! | [`hal`] | the contract for people who write backends |
//!
//! # Environment
//!
#![doc = include_str!("environment.md")]
#![deny(unsafe_code)]

mod advice;
mod backend;
mod config;
mod cut;
mod device;
mod error;
#[allow(unsafe_code, reason = "one promise that its caller makes: nobody else writes a mapped file")]
mod file;
mod guard;
#[allow(unsafe_code, reason = "the engine: every block says why it is sound")]
pub mod hmm;
mod launch;
mod owned;
mod pending;
pub mod policy;
mod residency;
mod runtime;
mod sched;
#[allow(unsafe_code, reason = "the handles: the gate makes their references sound")]
mod shared;
mod stats;
mod wakers;

pub use advice::{Advice, Location};
pub use bytemuck;
pub use sterna_cpu as cpu;
pub use sterna_hal as hal;
pub use sterna_hal::kernel;
#[cfg(feature = "kernels")]
pub use sterna_kernels as kernels;
#[cfg(feature = "vulkan")]
pub use sterna_vulkan as vulkan;

pub use config::parse_bytes;
pub use device::Device;
pub use error::Error;
pub use guard::{HostMut, HostRef};
pub use hmm::{ForkPolicy, Mechanism};
pub use launch::{Args, LaunchArg};
pub use owned::ReadOnly;
pub use pending::Pending;
pub use residency::{DeviceResidency, Residency};
pub use runtime::{Builder, On, Runtime};
pub use shared::{Shared, View, ViewMut};
pub use stats::{Bytes, Cause, DeviceStats, Stats, human};
