//! How a CPU device is made.

use sterna_hal::Absent;

/// What a CPU device is made of. [`Default`] is what a program wants; the rest is for tests that imitate other devices.
#[derive(Clone, Debug)]
pub struct CpuConfig {
    /// Memory budget in bytes; rounded down to grains, at least one. Default 1 GiB.
    pub memory: u64,
    /// Worker threads that run kernels, at most 1024; 0 takes as many as the process may run at once. Default 0.
    pub workers: usize,
    /// Whether page-table entries may name host storage. Default true.
    pub map_host: bool,
    /// Whether it says that its memory is the host's own: imitates a device that gains nothing by moving pages, as a software driver
    /// is. Needs `map_host`. Default false: its memory is a budget of its own, and pages move.
    pub unified: bool,
    /// Whether the host may read device memory with plain loads. Default true.
    pub host_readable: bool,
    /// Whether the host may use device memory in place, for loads and stores, also in mappings of its own: imitates a device
    /// whose memory is coherent with the host's (`DEVICE_COHERENT` in Linux HMM). Needs `host_readable`. Default false.
    pub coherent: bool,
    /// [`Absent::Faults`] (default), or [`Absent::Undefined`] to imitate a device that cannot fault: nobody is told where its
    /// window is, and an access to an absent page is a crash. [`Absent::Reports`] is refused.
    pub absent: Absent,
    /// Unit of allocation and mapping in bytes: a power of two from 4 KiB to 2 MiB. Default 64 KiB.
    pub grain: u64,
    /// Address space to reserve, in bytes. Default 8 TiB. Where a limit forbids that much it is halved, down to 64 GiB;
    /// where the process has devices with 32 TiB in all it is 512 GiB at most.
    pub window: u64,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            workers: 0,
            map_host: true,
            unified: false,
            host_readable: true,
            coherent: false,
            absent: Absent::Faults,
            grain: 64 << 10,
            window: 8 << 40,
        }
    }
}
