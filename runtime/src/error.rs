//! What can go wrong, with numbers and the remedy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sterna_hal::{Device, DeviceError, KernelError};
use sterna_host::limits;

use crate::hmm::Mechanism;

/// An error of the runtime. Cheap to clone: a failed launch hands the same error to everyone it concerns.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A length of zero, or one whose bytes do not fit the address space.
    #[error(
        "an allocation of {len} elements of {elem} bytes is not possible: both must be at least 1 and the product at most {most}"
    )]
    Length {
        /// Elements asked for.
        len: usize,
        /// Bytes an element.
        elem: usize,
        /// Bytes that are possible.
        most: u64,
    },
    /// Elements whose addresses are multiples of more than memory is handed out by.
    #[error(
        "elements aligned to {align} bytes cannot be shared: allocations begin at multiples of {most}; align them to less"
    )]
    Alignment {
        /// What an element's address is a multiple of.
        align: usize,
        /// What the first address of an allocation is a multiple of.
        most: u64,
    },
    /// Never fits, whatever is freed.
    #[error("{requested} bytes exceed {what} ({limit} bytes); {}", instead(what))]
    TooBig {
        /// Bytes asked for.
        requested: u64,
        /// Bytes that are possible.
        limit: u64,
        /// Whose limit.
        what: &'static str,
    },
    /// The host has not enough memory for the contents of an allocation, or for pages that are to come home.
    #[error(
        "{requested} bytes need more host memory than is available ({available} bytes, of the machine or of the control groups that the process is in); free some, or use less at once"
    )]
    OutOfHostMemory {
        /// Bytes to be filled or brought home.
        requested: u64,
        /// Bytes that the system says are available.
        available: u64,
    },
    /// A range that does not lie in the allocation or view.
    #[error("range {start}..{end} does not lie in 0..{len}")]
    Range {
        /// First element.
        start: usize,
        /// Element behind the last.
        end: usize,
        /// Elements there are.
        len: usize,
    },
    /// The arguments of a launch do not fit the kernel.
    #[error("kernel `{kernel}`: {what}")]
    Arguments {
        /// The kernel's name.
        kernel: &'static str,
        /// What does not fit, with numbers.
        what: String,
    },
    /// An argument belongs to another runtime.
    #[error("kernel `{kernel}`: argument {index} was allocated by another runtime; allocate it with the one that launches")]
    OtherRuntime {
        /// The kernel's name.
        kernel: &'static str,
        /// Which argument, from 0.
        index: usize,
    },
    /// Launching or waiting inside a kernel would wait for itself.
    #[error("a kernel may not launch or wait: do that on the host")]
    InsideKernel,
    /// One device is driven once at a time: two of the engine would hand out its memory twice.
    #[error("{device} is in use already: use the runtime or the attachment that has it, or open another device")]
    DeviceInUse {
        /// The device.
        device: String,
    },
    /// A name that nothing has.
    #[error("unknown {what} `{given}`; valid: {valid}")]
    UnknownName {
        /// What was named.
        what: &'static str,
        /// The name.
        given: String,
        /// The names that exist.
        valid: String,
    },
    /// An environment variable that cannot be read.
    #[error("{name}={value}: {problem}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is expected.
        problem: String,
    },
    /// The device's budget does not let one instruction of every worker finish.
    #[error(
        "a budget of {budget} bytes is too small for {device}: it needs at least {least}; raise {setting}, or use fewer workers"
    )]
    BudgetTooSmall {
        /// The device.
        device: String,
        /// The budget in bytes.
        budget: u64,
        /// The least possible in bytes.
        least: u64,
        /// What sets the budget of this device.
        setting: &'static str,
    },
    /// A budget that the device's memory could never have.
    #[error(
        "a budget of {budget} bytes is more than {device} can have: {most} bytes, what there is of memory or what control groups allow; lower {setting}"
    )]
    BudgetTooLarge {
        /// The device.
        device: String,
        /// The budget in bytes.
        budget: u64,
        /// The most possible in bytes.
        most: u64,
        /// What sets the budget of this device.
        setting: &'static str,
    },
    /// Some group of a launch needs more at once than the device has, and the device cannot fault the rest in. What parameters
    /// of kind `whole` and `scatter` are given, every group needs.
    #[error(
        "kernel `{kernel}` needs {needs} bytes at once, even for one group of its grid, and {device} has {budget}; launch it over parts of its data, or raise {setting}"
    )]
    WorkingSet {
        /// The kernel's name.
        kernel: &'static str,
        /// The device.
        device: String,
        /// Bytes that a group touches.
        needs: u64,
        /// The device's budget in bytes.
        budget: u64,
        /// What sets it.
        setting: &'static str,
    },
    /// Device memory is used up by what cannot be moved now. Users see this only where the host has no room either.
    #[error(
        "{device}: {requested} bytes asked, {in_use} of {budget} in use and not movable; if the driver has less than that, end what else uses the device, or lower {setting}"
    )]
    OutOfDeviceMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes in use.
        in_use: u64,
        /// The budget in bytes.
        budget: u64,
        /// What sets it.
        setting: &'static str,
    },
    /// A kernel failed; what it would have written is tainted until it is written whole.
    #[error("kernel `{kernel}` failed: {source}")]
    Kernel {
        /// The kernel's name.
        kernel: &'static str,
        /// How.
        source: KernelError,
    },
    /// A launch reads what a failed launch would have written.
    #[error("kernel `{kernel}` was not run: it reads what a failed launch would have written ({source})")]
    Upstream {
        /// The kernel that was not run, or whose result does not count.
        kernel: &'static str,
        /// The failure itself, however many launches lie between.
        #[source]
        source: Arc<Error>,
    },
    /// The policy panicked when it was asked about a launch; its message went where panics go.
    #[error("kernel `{kernel}` was not run: the policy panicked when it was asked where its memory should be")]
    Policy {
        /// The kernel's name.
        kernel: &'static str,
    },
    /// The device is gone, and with it the only copy of some pages.
    #[error("{device} was lost, and with it pages that only it had")]
    Lost {
        /// The device.
        device: String,
    },
    /// A device call failed.
    #[error("{device}: {source}")]
    Device {
        /// The device.
        device: String,
        /// What it said.
        source: DeviceError,
    },
    /// A `host` or `host_mut` guard keeps pages at home that the launch needs on a device which cannot use them there, and which has too
    /// little memory for a copy; or a pin keeps pages that somebody needs elsewhere.
    #[error("a host guard, or a pin of a driver, keeps pages where they are that are needed elsewhere; drop it first")]
    Pinned,
    /// In mode `none` a launch needs views that begin and end on borders of the device's grains: no fault tells apart what a
    /// grain holds.
    #[error(
        "with host-fault mechanism `none` a view for a launch begins and ends on a border of {grain} bytes, the device's grain (got bytes {start}..{end} of {len}); align it, or use another mechanism"
    )]
    Unaligned {
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
        /// Bytes of the allocation.
        len: u64,
        /// Bytes a grain.
        grain: u64,
    },
    /// The host-fault mechanism could not be set up.
    #[error("host-fault mechanism `{mechanism}` is not available: {source}{}", remedy(*mechanism, source))]
    Mechanism {
        /// Which.
        mechanism: Mechanism,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The process already serves host faults in another way.
    #[error(
        "host-fault mechanism `{asked}` was asked for, but the process already uses `{in_use}`: the first runtime decides"
    )]
    MechanismInUse {
        /// Asked for.
        asked: Mechanism,
        /// In use.
        in_use: Mechanism,
    },
    /// The shared arena could not be reserved.
    #[error("cannot have {smallest} bytes of addresses and a file of that size for shared memory: {source}")]
    Arena {
        /// The smallest arena that was tried, in bytes.
        smallest: u64,
        /// What the system said, and what helps.
        source: DeviceError,
    },
    /// Every device slot of the process is taken.
    #[error(
        "the process already drives {limit} devices, the most it can; drop a runtime, or share one (`Runtime` is `Clone`; each \
         runtime takes a place for each of its devices)"
    )]
    TooManyDevices {
        /// How many there can be.
        limit: usize,
    },
    /// The engine cannot drive such a device.
    #[error("{device} cannot be used: {what}")]
    Unsupported {
        /// The device.
        device: String,
        /// Why.
        what: &'static str,
    },
    /// A file behind shared memory, or to be read into it.
    #[error("file {name}: {source}")]
    File {
        /// Its name as it was given.
        name: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file that is not made of whole elements.
    #[error("file {name} has {bytes} bytes, which is not a whole number of elements of {elem} bytes, and at least one")]
    FileLength {
        /// Its name as it was given.
        name: String,
        /// Its length in bytes.
        bytes: u64,
        /// Bytes an element.
        elem: usize,
    },
    /// A call of the operating system failed.
    #[error("{0}")]
    System(DeviceError),
    /// This process was forked from one that uses shared memory; it has none itself.
    #[error("this is a forked child: shared memory and devices stay with the parent; exec, or start a process instead")]
    Forked,
    /// A page that cannot be made present: no segment, or no copy left.
    #[error("page {page:#x} cannot be made present")]
    Fault {
        /// The page's number in the arena.
        page: u64,
    },
    /// A page that may be read and not written.
    #[error("page {page:#x} may not be written; `protect` it for writing first")]
    Permission {
        /// The page's number in the arena.
        page: u64,
    },
    /// A range or argument that makes no sense.
    #[error("invalid: {what}")]
    Invalid {
        /// What.
        what: &'static str,
    },
    /// Overtaken again and again, or asked not to wait.
    #[error("the pages were being moved for longer than {budget:?}")]
    Busy {
        /// How long it was tried.
        budget: Duration,
    },
    /// A defect of sterna.
    #[error("internal error: {0}; please report it")]
    Internal(&'static str),
}

/// Whose limit an allocation exceeds that control groups do not allow.
pub(crate) const CONTROL_GROUP: &str = "the memory limit of a control group that the process is in";

fn instead(limit: &str) -> &'static str {
    match limit {
        CONTROL_GROUP => "allocate less, or raise its memory.max (memory.limit_in_bytes)",
        l if l.starts_with("/dev/shm") => "allocate less, or mount it with a larger size",
        _ => "split the allocation",
    }
}

fn remedy(mechanism: Mechanism, source: &io::Error) -> String {
    if let Some(code @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM)) = source.raw_os_error() {
        return format!("; {}", limits::for_memory(code, "free some memory"));
    }
    let helps = match mechanism {
        Mechanism::Transparent => {
            "; run as root or with CAP_SYS_PTRACE, set vm.unprivileged_userfaultfd=1, or use STERNA_HOST_FAULTS=signal"
        }
        Mechanism::Signal => "; a sandbox may forbid userfaultfd: use STERNA_HOST_FAULTS=guard",
        Mechanism::Guard | Mechanism::None => "",
    };
    helps.into()
}

impl Error {
    /// Whether a device was lost, in whichever way it is told: to who reads what only the device had ([`Lost`](Self::Lost)), to who was
    /// using it ([`Device`](Self::Device), [`Kernel`](Self::Kernel)), or to a launch behind one of those ([`Upstream`](Self::Upstream)).
    /// Other devices and the host go on; what was lost is told of wherever it is read, until it is written anew.
    ///
    /// ```
    /// use sterna::{Error, Runtime};
    /// use sterna::kernels::fill;
    ///
    /// /// On the device, or on the host when that has gone.
    /// fn ones(rt: &Runtime) -> Result<Vec<f32>, Error> {
    ///     let mut y = rt.shared::<f32>(1000)?;
    ///     let on_the_device = rt.launch(&fill(1.0_f32), (&mut y,)).and_then(|p| p.wait());
    ///     match on_the_device.and_then(|()| y.try_read().map(<[f32]>::to_vec)) {
    ///         Err(e) if e.is_loss() => Ok(vec![1.0; 1000]),
    ///         done => done,
    ///     }
    /// }
    ///
    /// assert_eq!(ones(&Runtime::new()?)?[999], 1.0);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Lost { .. }
            | Self::Device { source: DeviceError::Lost(_), .. }
            | Self::System(DeviceError::Lost(_))
            | Self::Kernel { source: KernelError::Lost(_), .. } => true,
            Self::Upstream { source, .. } => source.is_loss(),
            _ => false,
        }
    }

    /// The error of a launch that reads what `before` says is not to be had: names what went wrong first, not each launch between.
    pub(crate) fn upstream(kernel: &'static str, before: &Arc<Self>) -> Self {
        let source = match &**before {
            Self::Upstream { source, .. } => Arc::clone(source),
            _ => Arc::clone(before),
        };
        Self::Upstream { kernel, source }
    }

    /// A device's error, with the device's name.
    pub(crate) fn device(device: &Arc<dyn Device>, source: DeviceError) -> Self {
        let id = device.info().id.clone();
        match source {
            DeviceError::OutOfMemory { requested, in_use, budget } => {
                Self::OutOfDeviceMemory { device: id, requested, in_use, budget, setting: "its budget" }
            }
            DeviceError::TooBig { requested, limit } => {
                Self::TooBig { requested, limit, what: "what the device can reserve in one piece" }
            }
            DeviceError::Forked => Self::Forked,
            source => Self::Device { device: id, source },
        }
    }

    /// A file that could not be opened, read or written.
    pub(crate) fn file(name: &str, source: io::Error) -> Self {
        Self::File { name: name.to_string(), source: Arc::new(source) }
    }

    /// An operating-system call that failed.
    pub(crate) fn driver(call: &'static str, e: &io::Error) -> Self {
        Self::System(DeviceError::os(call, e))
    }
}
