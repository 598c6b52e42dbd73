//! The page-migration engine: mechanism only, with the semantics of Linux HMM.
//!
//! This is the low-level API, for people who write drivers or policies; programs use [`Shared`](crate::Shared) and
//! [`Runtime`](crate::Runtime). Each module's head says what it guarantees and why. `docs/architecture.md` has the list of modules
//! and the way of a launch and of a fault through them; `docs/locking.md` has the locks. [`names`] has the C names of the kernel's
//! interface.

pub(crate) mod addr;
pub(crate) mod arena;
pub(crate) mod arrivals;
pub(crate) mod attached;
pub(crate) mod backing;
pub(crate) mod block;
pub(crate) mod claim;
pub(crate) mod device_fault;
pub(crate) mod devmem;
pub(crate) mod discard;
pub(crate) mod entry;
pub(crate) mod exclusive;
pub(crate) mod extent;
pub(crate) mod fork;
pub(crate) mod gate;
pub(crate) mod gathering;
pub(crate) mod grid;
pub(crate) mod hold;
pub(crate) mod host;
pub(crate) mod inflight;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod migrate;
pub(crate) mod mirror;
pub mod names;
pub(crate) mod notifier;
pub(crate) mod os;
pub(crate) mod park;
pub(crate) mod parts;
pub(crate) mod pfn;
pub(crate) mod pin;
pub(crate) mod places;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub mod planted;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub use os::inject;
pub(crate) mod prot;
pub(crate) mod range;
pub(crate) mod reaper;
pub(crate) mod remap;
pub(crate) mod running;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub mod schedule;
#[cfg(not(feature = "planted"))]
pub(crate) mod schedule;
pub(crate) mod seat;
pub(crate) mod segment;
pub(crate) mod source;
pub(crate) mod space;
pub(crate) mod stretches;
pub(crate) mod sync;
pub(crate) mod taint;
pub(crate) mod uses;
pub(crate) mod walk;
pub(crate) mod watch;
pub(crate) mod zap;

pub use addr::{BLOCK, BlockId, GRANULE, Mask, PAGE, Page, Pages};
pub use attached::{Attached, Migration, Operand};
pub use block::Grow;
pub use fork::ForkPolicy;
pub use host::Mechanism;
pub use lock::Free;
pub use mirror::{Action, Mirror, MirrorOps};
pub use notifier::{Notifier, Seq};
pub use parts::MAX_DEVICES;
pub use pfn::{MigrateFlags, Pfn, PfnFlags};
pub use pin::{Pin, PinKind};
pub use prot::Prot;
pub use range::Range;
pub use segment::Segment;
pub use space::{Locked, Space};
