//! Policies: where pages go, and in what order they leave.
//!
//! A policy sees events and answers decisions. It takes no lock and moves no byte; the engine carries out what it says as far
//! as the device can, and a wrong answer costs time, never data. Nothing here runs on the path of a fault: what a fault does is
//! decided beforehand, by the [`FaultRule`] that the policy gives for each allocation.
//!
//! | name | at a launch | at a device fault |
//! |---|---|---|
//! | `auto` (default) | as `remote` on a device whose memory is the host's, else as `declared` | the density rule |
//! | `declared` | what the launch declares is brought to the device, as far as it fits | the density rule |
//! | `demand` | nothing | the density rule |
//! | `remote` | the device uses pages where they are, if it can | the density rule |
//!
//! All of them follow the program's hints first ([`ArgEvent::advised`]), and in all of them eviction takes the block whose last launch or fault is longest ago.

mod auto;
mod declared;
mod demand;
mod hints;
mod remote;

use std::fmt;

use sterna_hal::{Access, Caps};

use crate::Error;
use crate::hmm::Grow;

pub use auto::Auto;
pub use declared::Declared;
pub use demand::Demand;
pub(crate) use hints::HintMap;
pub use hints::{Hints, Side};
pub use remote::Remote;

/// Where an argument's pages should be for a launch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In the device's memory before the launch runs.
    Migrate,
    /// Where they are: the device uses host storage. Where it cannot, as `Migrate`.
    Remote,
    /// Wherever they are; the device faults them in. Where it cannot, as `Migrate`.
    Demand,
}

/// One argument of a launch, or a part of one of which the program has said something else than of the rest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArgEvent {
    /// The allocation, by a number that is not reused while it exists.
    pub segment: u64,
    /// Bytes of the allocation that the launch touches.
    pub bytes: std::ops::Range<u64>,
    /// What it does with them.
    pub access: Access,
    /// What the program has said of them.
    pub hints: Hints,
}

/// A launch that found something not resident.
#[derive(Debug)]
pub struct LaunchEvent<'a> {
    /// The space's clock.
    pub now: u64,
    /// The device's number in the process.
    pub device: usize,
    /// What the device can do.
    pub caps: &'a Caps,
    /// Its memory budget in bytes.
    pub budget: u64,
    /// The arguments, in the kernel's order; each in parts where hints differ.
    pub args: &'a [ArgEvent],
}

/// How far faults on an allocation reach, decided when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultRule {
    /// A fault of the host.
    pub host: Grow,
    /// A fault of a device.
    pub device: Grow,
}

/// Decides where pages go. Launches wait for what it answers, so that it may do what a kernel may: what launches or waits is
/// [refused](crate::Error::InsideKernel), and an allocation that it makes has the default [`FaultRule`].
///
/// One thread at a time asks it, under a lock: what takes long here holds up every launch that asks and every allocation, and a policy
/// that waits for a thread which does either waits for good.
pub trait Policy: Send {
    /// Its name, as `STERNA_POLICY` and `stats` spell it. Asked for once, when a runtime is built; where it panics none is.
    fn name(&self) -> &'static str;

    /// Appends one place for each of the event's arguments, in order; what is missing counts as [`Place::Migrate`]. Where it panics the
    /// launch fails with [`Policy`](crate::Error::Policy).
    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>);

    /// How far faults on a new allocation of `bytes` bytes reach. Where it panics, as the default says.
    fn allocated(&mut self, bytes: u64) -> FaultRule {
        let _ = bytes;
        FaultRule::default()
    }
}

impl fmt::Debug for dyn Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policy({})", self.name())
    }
}

/// The names that [`by_name`] knows.
pub const NAMES: [&str; 4] = ["auto", "declared", "demand", "remote"];

/// A built-in policy.
///
/// # Errors
/// [`UnknownName`](Error::UnknownName), with the names there are.
pub fn by_name(name: &str) -> Result<Box<dyn Policy>, Error> {
    match name {
        "auto" => Ok(Box::new(Auto)),
        "declared" => Ok(Box::new(Declared)),
        "demand" => Ok(Box::new(Demand)),
        "remote" => Ok(Box::new(Remote)),
        _ => Err(Error::UnknownName { what: "policy", given: name.to_string(), valid: NAMES.join(", ") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_its_policys() {
        for name in NAMES {
            assert_eq!(by_name(name).unwrap().name(), name);
        }
        let e = by_name("belady").unwrap_err().to_string();
        assert!(e.contains("belady") && NAMES.iter().all(|n| e.contains(n)), "{e}");
    }
}
