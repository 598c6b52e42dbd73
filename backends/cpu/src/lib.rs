//! The CPU device of sterna: a compute device made of the host's own processors, with private, capped memory of its own and an
//! MMU that really faults.
//!
//! It is what a program runs on where there is no GPU, and what the engine is tested on everywhere. Any number of devices can
//! exist in one process; they share nothing. A device is made of:
//!
//! | part | what it is |
//! |---|---|
//! | memory | one memory file of the budget's size, mapped once; frames are handed out of it in grains |
//! | window | a reservation of address space in which every page is absent until [`edit`](sterna_hal::Device::edit) maps device or host memory there |
//! | compute queue (0) | launches, in order, on threads of its own |
//! | copy queue (1) | copies larger than 1 MiB, on other threads of its own; smaller ones are done by the caller |
//!
//! A kernel accesses the window with plain loads and stores. An access to an absent page raises SIGSEGV in the worker that made
//! it; the runtime's handler stops the worker, has the page brought in, and resumes it. This crate installs no handler.
//!
//! **Memory is recycled as it is.** A frame holds what its last user left in it; whoever hands frames to another owner clears
//! them first (a copy from [`CopyEnd::Zero`](sterna_hal::CopyEnd)).
//!
//! **Fork.** A forked child inherits neither the window nor the mapping of device memory that copies go through: an access
//! there is a crash in the child, and nothing that the parent does later is seen by it. A device that the parent has says
//! [`Forked`](sterna_hal::DeviceError::Forked) there, and dropping it does nothing; the child may make devices of its own.
//!
//! Linux only.

mod config;
pub use config::CpuConfig;

mod inject;
pub use inject::Inject;

/// The system calls that CPU devices make, for tests that have one fail.
#[cfg(feature = "planted")]
#[doc(hidden)]
pub use sterna_host::sys::CALLS;

mod device;
mod failing;
mod launch;
mod signals;
pub use device::CpuDevice;
