//! What moved, and why.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use sterna_hal::Memory;

use crate::hmm::Mechanism;

/// Why pages moved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// A launch declared that it uses them.
    Launch,
    /// A kernel touched them.
    DeviceFault,
    /// The host touched them.
    HostFault,
    /// The host asked for them: `deref` in mode `none`, `host`, `host_mut`, `try_read`.
    HostAccess,
    /// `prefetch_to`.
    Prefetch,
    /// The device's memory was full.
    Eviction,
    /// A driver's look-up ([`hmm::Range`](crate::hmm::Range)).
    Mirror,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 7] =
        [Self::Launch, Self::DeviceFault, Self::HostFault, Self::HostAccess, Self::Prefetch, Self::Eviction, Self::Mirror];
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Launch => "launch",
            Self::DeviceFault => "device fault",
            Self::HostFault => "host fault",
            Self::HostAccess => "host access",
            Self::Prefetch => "prefetch",
            Self::Eviction => "eviction",
            Self::Mirror => "mirror",
        })
    }
}

/// A device's counters, changed from anywhere, signal handlers included.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    moved_in: [AtomicU64; Cause::ALL.len()],
    moved_out: [AtomicU64; Cause::ALL.len()],
    pub(crate) mapped_remote: AtomicU64,
    pub(crate) shown: AtomicU64,
    pub(crate) host_faults: AtomicU64,
    pub(crate) device_faults: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) unseated: AtomicU64,
    pub(crate) launches: AtomicU64,
    pub(crate) resident_launches: AtomicU64,
    pub(crate) parts: AtomicU64,
}

impl Counters {
    pub(crate) fn moved_in(&self, cause: Cause, bytes: u64) {
        self.moved_in[cause as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn moved_out(&self, cause: Cause, bytes: u64) {
        self.moved_out[cause as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        let single = [
            &self.mapped_remote,
            &self.shown,
            &self.host_faults,
            &self.device_faults,
            &self.evictions,
            &self.unseated,
            &self.launches,
            &self.resident_launches,
            &self.parts,
        ];
        for c in self.moved_in.iter().chain(&self.moved_out).chain(single) {
            c.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self, device: String, memory: Memory) -> DeviceStats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let by_cause = |list: &[AtomicU64]| Bytes(std::array::from_fn(|i| get(&list[i])));
        DeviceStats {
            device,
            memory,
            to_device: by_cause(&self.moved_in),
            to_host: by_cause(&self.moved_out),
            mapped_remote: get(&self.mapped_remote),
            shown: get(&self.shown),
            host_faults: get(&self.host_faults),
            device_faults: get(&self.device_faults),
            evictions: get(&self.evictions),
            unseated: get(&self.unseated),
            launches: get(&self.launches),
            resident_launches: get(&self.resident_launches),
            parts: get(&self.parts),
        }
    }
}

/// Bytes by cause.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Bytes([u64; Cause::ALL.len()]);

impl Bytes {
    /// Bytes moved for one reason.
    #[must_use]
    pub fn by(&self, cause: Cause) -> u64 {
        self.0[cause as usize]
    }

    /// Bytes moved in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl std::ops::Sub for Bytes {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - o.0[i]))
    }
}

/// What one device did since its runtime was made. Bytes are those of pages that were copied; clearing does not count.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeviceStats {
    /// The device's selector.
    pub device: String,
    /// Its memory now.
    pub memory: Memory,
    /// Bytes copied from the host to it.
    pub to_device: Bytes,
    /// Bytes copied from it to the host.
    pub to_host: Bytes,
    /// Bytes of host pages that it was given entries for, without copying.
    pub mapped_remote: u64,
    /// Bytes of its memory that the host was given to use in place; once mapped, they are used without a fault. Coherent devices
    /// only.
    pub shown: u64,
    /// Faults of the host on pages that it had.
    pub host_faults: u64,
    /// Faults of its kernels.
    pub device_faults: u64,
    /// Blocks evicted from it.
    pub evictions: u64,
    /// Times that an allocation left it as a whole since it had no addresses left for another one. Each costs copies there and back:
    /// if it grows while the program works, allocations take turns.
    pub unseated: u64,
    /// Launches.
    pub launches: u64,
    /// Launches that found everything resident and were submitted by the calling thread.
    pub resident_launches: u64,
    /// Parts of launches that were cut along their grid: they need more at once than the device has, and it cannot fault.
    pub parts: u64,
}

/// What a runtime did since it was made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// How host faults are served in this process.
    pub mechanism: Mechanism,
    /// The policy's name.
    pub policy: &'static str,
    /// Each device, the runtime's first one first.
    pub devices: Vec<DeviceStats>,
}

impl Stats {
    /// Bytes copied from the host to devices.
    #[must_use]
    pub fn to_device(&self) -> u64 {
        self.devices.iter().map(|d| d.to_device.total()).sum()
    }

    /// Bytes copied from devices to the host.
    #[must_use]
    pub fn to_host(&self) -> u64 {
        self.devices.iter().map(|d| d.to_host.total()).sum()
    }
}

/// Bytes as people read them: `1.5 MiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host faults: {}, policy: {}", self.mechanism, self.policy)?;
        for d in &self.devices {
            write!(
                f,
                "{}: {} of {} used; {} launches ({} resident), {} host faults, {} device faults, {} evictions",
                d.device,
                human(d.memory.in_use),
                human(d.memory.budget),
                d.launches,
                d.resident_launches,
                d.host_faults,
                d.device_faults,
                d.evictions
            )?;
            if d.unseated > 0 {
                write!(f, ", {} allocations sent away for want of addresses", d.unseated)?;
            }
            if d.parts > 0 {
                write!(f, ", {} parts of launches that were cut", d.parts)?;
            }
            for (what, bytes) in [("to the device", &d.to_device), ("to the host", &d.to_host)] {
                write!(f, "\n  {} {what}", human(bytes.total()))?;
                let causes: Vec<String> = Cause::ALL
                    .into_iter()
                    .filter(|c| bytes.by(*c) > 0)
                    .map(|c| format!("{} by {c}", human(bytes.by(c))))
                    .collect();
                if !causes.is_empty() {
                    write!(f, " ({})", causes.join(", "))?;
                }
            }
            if d.mapped_remote > 0 {
                write!(f, "\n  {} used in place", human(d.mapped_remote))?;
            }
            if d.shown > 0 {
                write!(f, "\n  {} of its memory used by the host in place", human(d.shown))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(64 << 10), "64 KiB");
        assert_eq!(human(3 << 19), "1.5 MiB");
    }
}
