//! The mechanisms by which a process has host faults.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// How the host's own accesses to shared memory are served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Mechanism {
    /// Every access, system calls included. Needs the privilege to open a full userfaultfd.
    Transparent,
    /// Accesses of the program's own code; a system call on an absent page fails with `EFAULT`.
    Signal,
    /// As [`Signal`](Self::Signal), where userfaultfd is not to be had.
    Guard,
    /// No faults: `deref` brings the range home.
    None,
}

impl Mechanism {
    /// Every mechanism, best first.
    pub const ALL: [Self; 4] = [Self::Transparent, Self::Signal, Self::Guard, Self::None];
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transparent => "transparent",
            Self::Signal => "signal",
            Self::Guard => "guard",
            Self::None => "none",
        })
    }
}

impl FromStr for Mechanism {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|m| m.to_string() == s).ok_or_else(|| Error::UnknownName {
            what: "host-fault mechanism",
            given: s.to_string(),
            valid: Self::ALL.map(|m| m.to_string()).join(", "),
        })
    }
}
