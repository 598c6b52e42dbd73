//! The page-migration engine: mechanism only, with the semantics of Linux HMM.
//!
//! This is the low-level API, for people who write drivers or policies; programs use [`Shared`](crate::Shared) and
//! [`Runtime`](crate::Runtime). What every rule is for stands at the head of its module, and the whole in
//! `docs/architecture.md` and `docs/locking.md`.
//!
//! | module | holds |
//! |---|---|
//! | `addr` | pages, granules, blocks, masks, and every conversion |
//! | `space` | the address space: the arena, its segments, devices and mirrors |
//! | `segment` | one mapping |
//! | `gate` | what `deref` asks before it hands out a reference |
//! | `seat` | a segment's addresses on a device: of all of it or of a part |
//! | `block` | page masks by holder, `busy`, `wanted`, `lost` |
//! | `pfn` | the packed entry |
//! | `mirror` | a device's view of the space; the driver lock |
//! | `notifier` | windows and sequence counters |
//! | `range` | snapshot and fault of a range; how a driver populates its table |
//! | `migrate` | collect, unmap, copy, commit, map |
//! | `devmem` | device frames and eviction |
//! | `arrivals` | what has just come to a device that faults; why every launch ends |
//! | `gathering` | launches that gather what they need |
//! | `discard` | dropping contents |
//! | `prot` | protection, and unmapping of parts |
//! | `lease` | pages that nobody else changes meanwhile |
//! | `exclusive` | pages that one device has to itself, for atomic operations |
//! | `pin` | pages that stay at home |
//! | `remap` | pages that get other addresses |
//! | `attached` | a device, for driver writers |
//! | `source` | pages that begin with a file's bytes, or another segment's |
//! | `host` | the window: faults, revocation, restoration; device memory that the host uses in place |
//! | `walk` | how far faults of the host reach that go on where another stopped |
//! | `device_fault` | faults of devices in this process |
//! | `inflight` | launches that have not retired |
//! | `watch` | launches that are awaited, and the threads that wait for them |
//! | `entry` | where calls of the program begin, and end in a kernel |
//! | `claim` | which devices are driven |
//! | `reaper` | what ends, ends outside kernels |
//! | `fork` | what a forked child is told |
//! | [`names`] | the C names of the kernel's interface |

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
