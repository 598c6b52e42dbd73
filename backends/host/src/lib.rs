//! What sterna backends share whose device memory lies in the host's address space, or that copy with the host's processors.
//!
//! | module | holds |
//! |---|---|
//! | [`mmu`] | a page table made of mappings: a window of addresses, device memory in a file |
//! | [`regions`] | host storage that was announced |
//! | [`storage`] | host storage of one's own, for probes |
//! | [`copy`] | a copy queue on threads |
//! | [`timeline`] | a number that grows, and threads that wait for it |
//! | [`sys`] | small helpers around system calls |
//! | [`files`] | files in memory, and descriptors |
//! | [`limits`], [`room`], [`locked`] | what the system allows this process: what helps where it says no, memory that is left, memory that is locked |
//!
//! Linux only: elsewhere the crate is empty.

#![cfg(target_os = "linux")]

pub mod copy;
pub mod files;
pub mod fork;
pub mod frames;
pub mod limits;
pub mod locked;
mod memory;
pub mod mmu;
pub mod regions;
pub mod room;
pub mod storage;
pub mod sys;
#[cfg(feature = "testing")]
pub mod testing;
pub mod timeline;
mod window;

pub use window::Entry;
