//! What sterna backends share whose device memory lies in the host's address space, or that copy with the host's processors.
//!
//! | module | holds |
//! |---|---|
//! | [`mmu`] | a page table made of mappings: a window of addresses, device memory in a file |
//! | [`mappings`] | how many mappings the process may still make |
//! | [`regions`] | host storage that was announced |
//! | [`storage`] | host storage of one's own, for probes |
//! | [`copy`] | a copy queue on threads |
//! | [`timeline`] | a number that grows, and threads that wait for it |
//! | [`sys`] | small helpers around system calls |
//! | [`files`] | files in memory, and descriptors |
//! | [`limits`], [`groups`], [`room`], [`locked`] | what the system allows this process: what helps where it says no, memory that is left, and granted, memory that is locked |
//!
//! Linux with 64-bit addresses only. Elsewhere this crate, on which every backend and the runtime depend, says so in one line.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!(
    "sterna runs on Linux with 64-bit addresses (x86-64 and aarch64): its page-migration engine needs memfd, userfaultfd and \
     madvise of that system; build for such a target, or leave the dependency out on others (`[target.'cfg(target_os = \"linux\")'.dependencies]`)"
);

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod copy;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod files;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod fork;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod frames;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod groups;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod limits;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod locked;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod mappings;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod memory;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod mmu;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod regions;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod room;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod storage;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod sys;
#[cfg(all(feature = "testing", target_os = "linux", target_pointer_width = "64"))]
pub mod testing;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod timeline;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod window;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use window::Entry;
