//! The system calls that the engine makes, for tests that have one fail. Exists only with the feature `planted`.

use sterna_hal::failing::Calls;

/// Asked before each of them.
pub static CALLS: Calls = Calls::new();
