//! What can stand in the way of using Vulkan, by name, with the remedy.

use ash::vk;
use sterna_hal::DeviceError;
use sterna_host::limits;

/// Another device, for programs that read the environment, and for those that do not.
pub(crate) const OTHER: &str = "STERNA_DEVICE=cpu, or `cpu:0`";

/// Why a Vulkan device cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VulkanError {
    /// There is no Vulkan loader on this machine.
    #[error("no Vulkan loader ({why}); {remedy}, or use another device ({})", OTHER)]
    NoLoader {
        /// What is wrong with it.
        why: String,
        /// What helps.
        remedy: &'static str,
    },
    /// The loader finds no driver that works.
    #[error(
        "the Vulkan loader finds no working driver{0}; install one (Debian: mesa-vulkan-drivers, or the vendor's), or use another device ({OTHER})"
    )]
    NoDriver(String),
    /// No device goes by this name.
    #[error(
        "no Vulkan device `{given}`; there are: {found}; choose one by its number, a part of its name, or its UUID, which is the only way to a software driver"
    )]
    NoDevice {
        /// What was asked for.
        given: String,
        /// What there is, with what names each.
        found: String,
    },
    /// The device lacks something that it must have.
    #[error("{device} lacks {feature}, which sterna needs; a newer driver may have it")]
    MissingFeature {
        /// The device's name.
        device: String,
        /// What is missing.
        feature: String,
    },
    /// The page table that was asked for does not work on the device.
    #[error("page table `{asked}` does not work on {device}: {why}; {remedy}")]
    NoPageTable {
        /// The device's name.
        device: String,
        /// The kind.
        asked: &'static str,
        /// What the probe found.
        why: String,
        /// What helps.
        remedy: String,
    },
    /// The memory budget holds nothing.
    #[error("a budget of {budget} bytes is too small for {device}: it needs at least {least}; raise `VulkanConfig::memory`")]
    BudgetTooSmall {
        /// The device's name.
        device: String,
        /// The budget in bytes.
        budget: u64,
        /// The least possible in bytes.
        least: u64,
    },
    /// The memory budget is more than there is.
    #[error("a budget of {budget} bytes is more than {device} has: {most} bytes; lower `VulkanConfig::memory`")]
    BudgetTooLarge {
        /// The device's name.
        device: String,
        /// The budget in bytes.
        budget: u64,
        /// The most possible in bytes.
        most: u64,
    },
    /// The process may not have what the driver needs of the system.
    #[error("{what}; {remedy}")]
    Limits {
        /// What failed.
        what: String,
        /// The limit, and what helps.
        remedy: String,
    },
    /// The settings make no sense together.
    #[error("{0}")]
    Settings(String),
    /// A call failed while the device was being opened.
    #[error("{call} failed with {code}{}", remedy(*code))]
    Call {
        /// The call.
        call: &'static str,
        /// The driver's own code.
        code: vk::Result,
    },
    /// A part below the driver failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<VulkanError> for DeviceError {
    fn from(error: VulkanError) -> Self {
        match error {
            VulkanError::Device(e) => e,
            VulkanError::Call { call, code } => driver(call)(code),
            e => Self::Unavailable(e.to_string()),
        }
    }
}

fn remedy(code: vk::Result) -> &'static str {
    match code {
        vk::Result::ERROR_INCOMPATIBLE_DRIVER => "; the driver is broken or too old: reinstall it",
        vk::Result::ERROR_LAYER_NOT_PRESENT => "; install the validation layer (Debian: vulkan-validationlayers)",
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY => "; choose a smaller memory budget for the device",
        vk::Result::ERROR_OUT_OF_HOST_MEMORY => "; free some memory",
        vk::Result::ERROR_TOO_MANY_OBJECTS => "; use fewer and larger shared allocations",
        vk::Result::ERROR_INITIALIZATION_FAILED => "; the driver does not work: look at its installation",
        _ => "",
    }
}

/// What failed while a device was opened, with the limit of the process that stands in the way, if one does. Drivers have few codes for
/// that and more than one meaning for each, and their own words name none.
pub(crate) fn limited(error: VulkanError) -> VulkanError {
    let what = match &error {
        VulkanError::NoLoader { why, .. } => format!("the Vulkan loader cannot be loaded ({why})"),
        VulkanError::Call { call, code } => format!("{call} failed with {code}"),
        VulkanError::Device(DeviceError::OutOfMemory { .. }) => error.to_string(),
        VulkanError::Device(DeviceError::Driver { call, code, .. }) if call.starts_with("vk") => {
            format!("{call} failed with {}", vk::Result::from_raw(*code))
        }
        VulkanError::NoDriver(why) => format!("the Vulkan loader finds no working driver{why}"),
        VulkanError::Device(DeviceError::Lost(why)) => format!("the device was lost when it was tried: {why}"),
        _ => return error,
    };
    let lacking = match &error {
        VulkanError::NoLoader { .. } | VulkanError::NoDriver(_) => limits::lacking_to_load(),
        _ => limits::lacking(),
    };
    match lacking {
        Some(remedy) => VulkanError::Limits { what, remedy },
        None => error,
    }
}

/// A call that failed while a device was opened.
pub(crate) fn opening(call: &'static str) -> impl Fn(vk::Result) -> VulkanError {
    move |code| VulkanError::Call { call, code }
}

/// A call of an open device that failed.
pub(crate) fn driver(call: &'static str) -> impl Fn(vk::Result) -> DeviceError {
    move |code| match code {
        vk::Result::ERROR_DEVICE_LOST => DeviceError::Lost(format!("{call} says so")),
        _ => DeviceError::Driver { call, code: code.as_raw(), text: format!("{code}{}", remedy(code)) },
    }
}
