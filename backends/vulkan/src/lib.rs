//! The Vulkan backend of sterna.
//!
//! | module | holds |
//! |---|---|
//! | [`devices`], [`Gpu`] | which devices there are, and what each is |
//! | [`VulkanDevice`] | a device, as the engine drives it |
//! | `instance`, `raw` | the loader, the instance, the logical device with its queues |
//! | `table`, `sparse`, `fixed` | page tables: host addresses, buffers bound by pages, contiguous buffers |
//! | `chunks` | the memory that sparse buffers are bound to |
//! | `entries` | what is bound in sparse buffers, and which of it are entries |
//! | `pool` | buffers, with memory from gpu-allocator |
//! | [`module`] | what a SPIR-V module says of itself, and whether it fits a kernel |
//! | `launch`, `slot`, `grid`, `bind` | the compute queue: command buffers with their arguments; which groups; arguments by descriptor |
//! | `pipeline`, `cache` | kernels that are ready; the driver's pipeline cache on disk |
//! | `staging`, `stages`, `stage`, `trial` | copies by the device, to memory that the host does not reach: queue, ring of buffers, one of them; which way works |
//! | `import`, `imports`, `udmabuf` | host memory as device memory, by address or as DMA buffers; what of host storage is imported for copies |
//! | `signals` | the timelines |
//! | `probe` | whether a page table works here |
//!
//! **Page tables.** *mmu*: device addresses are host addresses, entries are mappings of this process, and an access to an absent
//! page faults and is resumed. Only drivers that run on the host's processors can do that. *fixed*: a contiguous buffer an
//! allocation, on any device with Vulkan 1.2, buffer device addresses and timeline semaphores. *sparse*: as *fixed*, with memory for the
//! pages in use only, on devices with sparse residency of buffers.
//!
//! **Loading.** The Vulkan loader is opened at run time, when a device is asked for. Without one everything else works.
//!
//! **Environment.** `STERNA_VULKAN_VALIDATION=1` loads the Khronos validation layer with synchronisation checks; its first error
//! message ends the process.
//!
//! Linux only: elsewhere the crate is empty.

mod bind;
mod cache;
mod chunks;
mod config;
mod device;
mod entries;
mod error;
mod fixed;
mod gpu;
mod grid;
mod import;
mod imports;
mod instance;
mod launch;
pub mod module;
mod pipeline;
mod pool;
mod probe;
mod raw;
mod signals;
mod slot;
mod sparse;
mod stage;
mod stages;
mod staging;
mod table;
mod trial;
mod udmabuf;

pub use config::{CacheFolder, Copies, PageTable, VulkanConfig};
pub use device::VulkanDevice;
pub use error::VulkanError;
pub use gpu::{Gpu, best, devices};
