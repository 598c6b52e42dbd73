//! What moved between two moments, and why: the difference of two [`Stats`].

#![forbid(unsafe_code)]

use std::fmt;

use sterna::{Bytes, Cause, DeviceStats, Runtime, Stats, human};

/// What moved in a while, over all devices.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Moved {
    /// Bytes to devices, by cause; only causes that moved something.
    pub to_device: Vec<(Cause, u64)>,
    /// Bytes to the host, in the same way.
    pub to_host: Vec<(Cause, u64)>,
    /// Touches of the host that brought pages home.
    pub host_faults: u64,
    /// Touches of kernels that brought pages to a device.
    pub device_faults: u64,
    /// Blocks that had to make room.
    pub evictions: u64,
    /// Bytes on the host that devices were let use where they are.
    pub in_place: u64,
}

impl Moved {
    /// What has moved since `before`.
    #[must_use]
    pub fn since(rt: &Runtime, before: &Stats) -> Self {
        let now = rt.stats();
        let pairs = || now.devices.iter().zip(&before.devices);
        let bytes = |which: fn(&DeviceStats) -> Bytes| {
            let by = |cause| pairs().map(|(now, before)| (which(now) - which(before)).by(cause)).sum();
            Cause::ALL.into_iter().map(|cause| (cause, by(cause))).filter(|(_, n)| *n > 0).collect()
        };
        let sum = |which: fn(&DeviceStats) -> u64| pairs().map(|(now, before)| which(now) - which(before)).sum();
        Self {
            to_device: bytes(|d| d.to_device),
            to_host: bytes(|d| d.to_host),
            host_faults: sum(|d| d.host_faults),
            device_faults: sum(|d| d.device_faults),
            evictions: sum(|d| d.evictions),
            in_place: sum(|d| d.mapped_remote),
        }
    }

    /// Bytes that moved, both ways.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.to_device.iter().chain(&self.to_host).map(|(_, n)| n).sum()
    }
}

/// `3 MiB (launch)` or `3 MiB (2 MiB launch, 1 MiB device fault)`.
fn by_cause(list: &[(Cause, u64)]) -> String {
    let causes: Vec<String> = match list {
        [(cause, _)] => vec![cause.to_string()],
        _ => list.iter().map(|(cause, n)| format!("{} {cause}", human(*n))).collect(),
    };
    format!("{} ({})", human(list.iter().map(|(_, n)| n).sum()), causes.join(", "))
}

impl Moved {
    /// Bytes and their causes: `in 3 MiB (launch); home 64 KiB (host fault)`.
    #[must_use]
    pub fn bytes(&self) -> String {
        let ways = [("in", &self.to_device), ("home", &self.to_host)];
        let mut parts: Vec<String> =
            ways.iter().filter(|(_, l)| !l.is_empty()).map(|(way, l)| format!("{way} {}", by_cause(l))).collect();
        if self.in_place > 0 {
            parts.push(format!("{} used in place", human(self.in_place)));
        }
        if parts.is_empty() { "nothing".into() } else { parts.join("; ") }
    }

    /// Events: `2 host faults, 1 eviction`. Empty if there were none.
    #[must_use]
    pub fn events(&self) -> String {
        let counts = [(self.device_faults, "device fault"), (self.host_faults, "host fault"), (self.evictions, "eviction")];
        let some = counts.into_iter().filter(|(n, _)| *n > 0);
        some.map(|(n, what)| format!("{n} {what}{}", if n == 1 { "" } else { "s" })).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bytes())?;
        let events = self.events();
        if events.is_empty() { Ok(()) } else { write!(f, "; {events}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_moved_and_why() {
        assert_eq!(Moved::default().to_string(), "nothing");
        let m = Moved {
            to_device: vec![(Cause::Launch, 3 << 20)],
            to_host: vec![(Cause::HostFault, 64 << 10), (Cause::Eviction, 2 << 20)],
            host_faults: 1,
            evictions: 2,
            ..Moved::default()
        };
        assert_eq!(
            m.to_string(),
            "in 3 MiB (launch); home 2.1 MiB (64 KiB host fault, 2 MiB eviction); 1 host fault, 2 evictions"
        );
        assert_eq!(Moved { in_place: 4096, ..Moved::default() }.to_string(), "4 KiB used in place");
        assert_eq!(m.total(), (5 << 20) + (64 << 10));
    }
}
