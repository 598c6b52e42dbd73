//! What a device is and what it can do.

use std::fmt;

use crate::kernel::Form;

/// What a kernel's access to an absent page does. The engine's whole strategy follows from this, not from the API in use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Absent {
    /// Anything may happen: all that a launch may touch is resident before `submit` and pinned until its point is reached.
    /// (page tables of kind *fixed* and *sparse*)
    Undefined,
    /// The accessing thread of this process stops with SIGSEGV inside [`Device::window`](crate::Device::window) and is resumed
    /// when the page is there. A launch pins nothing; entries may be edited under it. (kind *mmu*)
    Faults,
    /// The launch ends normally and names the groups to run again; those have written nothing. (kind *table*)
    Reports,
}

/// What a queue is for. One queue may have every role.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Runs kernels.
    Compute,
    /// Copies bytes.
    Copy,
    /// Carries out page-table edits.
    Table,
}

/// A device's capabilities. They never change while the device exists.
#[derive(Clone, Debug)]
pub struct Caps {
    /// What an access to an absent page does.
    pub absent: Absent,
    /// Unit of `alloc` and `edit` in bytes, a power of two and at least 4 KiB: 64 KiB for most, 2 MiB for CUDA. Which bytes
    /// below it are valid is the engine's business.
    pub grain: u64,
    /// `edit` is ordered on a queue (Vulkan sparse binding). If false it has happened when it returns, and its `after` must
    /// have been reached on entry.
    pub queued_edits: bool,
    /// An entry may name host storage (the device *aliases* it). If false the device holds *replicas*.
    pub map_host: bool,
    /// Its memory is the host's own, so that a kernel reaches host storage as fast as the device's frames, and moving a page there
    /// gains nothing. Only where `map_host`: what a device cannot name it cannot use in place.
    pub unified: bool,
    /// The host may use device frames in place, for loads and stores, also while kernels use them: both see one memory
    /// (`DEVICE_COHERENT` in Linux HMM). Then [`Device::frames_base`](crate::Device::frames_base) and
    /// [`Device::frames_file`](crate::Device::frames_file) lead to them. If false a page that the host touches comes home.
    pub coherent: bool,
    /// Frames belong to addresses (kind *fixed*): `alloc` at a place gives the frames of that place, numbered as the addresses
    /// run on, and again each time; an entry can name no others. What `free` gives back stays with its place.
    pub placed: bool,
    /// Entries can forbid stores. If false the engine trusts the declared access.
    pub read_only: bool,
    /// Longest reservation in bytes. A larger segment cannot be contiguous on this device.
    pub max_reservation: u64,
    /// Grains that must be free so that one faulting instruction of every worker can finish. 0 where nothing faults.
    pub min_frames: u32,
    /// The form of kernels that it runs.
    pub form: Form,
    /// The roles of the queues, by queue number.
    pub queues: Vec<Role>,
}

/// Broad kind of a device; orders the choice of the best one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DeviceKind {
    /// A device with memory of its own, behind a bus.
    Discrete,
    /// A device that shares the host's memory.
    Integrated,
    /// The host's own processors.
    Cpu,
    /// A driver that emulates a GPU on the host: used only when named.
    Software,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Cpu => "CPU device",
            Self::Software => "software driver",
        })
    }
}

/// What a device is, for people and for choosing it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The selector that names it: `cpu:0`, `vulkan:1`.
    pub id: String,
    /// The driver's or vendor's name for it.
    pub name: String,
    /// Its kind.
    pub kind: DeviceKind,
}

/// Device memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// What may be allocated in all. The runtime's own cap, since drivers do not all report exhaustion.
    pub budget: u64,
    /// What is allocated now.
    pub in_use: u64,
}
