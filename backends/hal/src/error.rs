//! What a correct caller cannot foresee.

/// A device call failed. Nothing was changed by the call, unless a variant says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device's memory budget is used up. The engine evicts and tries again; users do not see this while the host has room.
    #[error("device memory exhausted: {requested} bytes asked, {in_use} of {budget} in use")]
    OutOfMemory {
        /// Bytes that were asked for.
        requested: u64,
        /// Bytes in use at that moment.
        in_use: u64,
        /// The budget in bytes.
        budget: u64,
    },
    /// The process is close to the number of mappings that it may have, and the rest go to the program. The engine evicts and tries
    /// again; users do not see this while that helps.
    #[error(
        "{in_use} of the {limit} mappings that a process may have are in use; raise vm.max_map_count (sysctl), or make fewer and larger allocations"
    )]
    TooManyMappings {
        /// Mappings of the process at that moment.
        in_use: u64,
        /// How many it may have.
        limit: u64,
    },
    /// Never fits, whatever is freed.
    #[error("{requested} bytes exceed what this device can reserve in one piece ({limit}); split the allocation")]
    TooBig {
        /// Bytes that were asked for.
        requested: u64,
        /// The device's limit in bytes.
        limit: u64,
    },
    /// The device is gone; every later call says so too.
    #[error("device lost: {0}")]
    Lost(String),
    /// This process was forked from the one that has the device.
    #[error("this is a forked child: devices stay with the parent; exec, or start a process instead")]
    Forked,
    /// The kernel has no form that this device can run.
    #[error("kernel `{kernel}` has no {needs} form, which this device needs")]
    NoForm {
        /// The kernel's name.
        kernel: String,
        /// The form that is missing.
        needs: &'static str,
    },
    /// There is no such device, or it cannot be used: no loader, no driver, a feature that is missing. The text names the thing
    /// and the remedy.
    #[error("{0}")]
    Unavailable(String),
    /// The kernel's code cannot run on this device: broken, for another stage, or in need of a capability.
    #[error("kernel `{kernel}`: {what}")]
    BadKernel {
        /// The kernel's name.
        kernel: String,
        /// What is wrong, and the remedy where one is known.
        what: String,
    },
    /// A call of the driver or of the operating system failed.
    #[error("{call} failed with code {code}: {text}")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's own code, or errno.
        code: i32,
        /// What it means, and the remedy where one is known.
        text: String,
    },
}

impl DeviceError {
    /// An operating-system call that failed just now, with this thread's errno.
    #[must_use]
    pub fn os(call: &'static str, error: &std::io::Error) -> Self {
        Self::Driver { call, code: error.raw_os_error().unwrap_or(0), text: error.to_string() }
    }
}

/// A kernel ended abnormally.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The Rust form panicked; the text is the panic's message.
    #[error("the kernel panicked: {0}")]
    Panicked(String),
    /// The compiled form found its arguments wrong; the text says how.
    #[error("the kernel refused its arguments: {0}")]
    Refused(String),
    /// The device was lost while it ran.
    #[error("the device was lost while the kernel ran: {0}")]
    Lost(String),
    /// It touched memory that it was never given.
    #[error("the kernel touched address {0:#x}, which it was not given")]
    Wild(u64),
}
