//! A device of a runtime, for its user.

use std::fmt;
use std::sync::Arc;

use sterna_hal::{Caps, DeviceInfo, Memory};

use crate::hmm::fork;
use crate::hmm::mirror::DeviceMirror;

/// A device of a [`Runtime`](crate::Runtime). Cheap to clone.
#[derive(Clone)]
pub struct Device(pub(crate) Arc<DeviceMirror>);

impl Device {
    /// The selector that names it: `cpu:0`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.device().info().id
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        self.0.device().info()
    }

    /// What it can do.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        self.0.caps()
    }

    /// Its memory now, in bytes; none in a forked child.
    #[must_use]
    pub fn memory(&self) -> Memory {
        // In a forked child the device's locks may be held for ever.
        if fork::forked() {
            return Memory { budget: 0, in_use: 0 };
        }
        self.0.device().memory()
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.id())
    }
}
