//! How much memory this process can still have: the machine's, and that of each control group that it is in.
//!
//! The kernel ends a process that stores to memory beyond its groups' limit; nothing can be answered to a store. So who gives out
//! memory for more than a page or two asks here first, and has a typed error where there is none.
//!
//! **Guarantee.** What [`take`] grants was there when it was last looked, less what was granted since. It is looked again after
//! 5 ms, or 100 ms while more than a gibibyte is left, and before anything is refused. Plain stores of the program take memory
//! without asking.
//!
//! **Locks**: a mutex around the last look, held over the reading of some small files, and one around the groups' folders inside it.
//! Never called from a signal handler.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A look is as good as this.
const GOOD_FOR: Duration = Duration::from_millis(5);
/// As long as so much is left, it is good for longer.
const PLENTY: u64 = 1 << 30;
const GOOD_FOR_PLENTY: Duration = Duration::from_millis(100);

/// The last look: when it was, and what has been left of it.
static LAST: Mutex<Option<(Instant, u64)>> = Mutex::new(None);

/// Grants `bytes` bytes of memory that have no storage yet.
///
/// # Errors
/// As many are not to be had; how many are.
pub fn take(bytes: u64) -> Result<(), u64> {
    let mut last = LAST.lock();
    let good = last.filter(|(at, left)| {
        let age = at.elapsed();
        *left >= bytes && (age < GOOD_FOR || *left - bytes >= PLENTY && age < GOOD_FOR_PLENTY)
    });
    let (at, left) = good.unwrap_or_else(|| (Instant::now(), groups().room(machine().available)));
    let after = left.checked_sub(bytes);
    *last = Some((at, after.unwrap_or(left)));
    after.map(drop).ok_or(left)
}

/// Bytes that this process can ever have: the machine's memory, or what its control groups allow.
#[must_use]
pub fn most() -> u64 {
    machine().total.min(groups().limit())
}

/// The least limit on memory of the control groups that this process is in; `u64::MAX` without one.
#[must_use]
pub fn group_limit() -> u64 {
    static LIMIT: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    let mut known = LIMIT.lock();
    let good = known.filter(|(at, _)| at.elapsed() < GOOD_FOR_PLENTY);
    let now = good.unwrap_or_else(|| (Instant::now(), groups().limit()));
    *known = Some(now);
    now.1
}

/// The groups that the process is in now: somebody may have put it into others.
fn groups() -> Arc<Groups> {
    static GROUPS: Mutex<Option<(String, Arc<Groups>)>> = Mutex::new(None);
    let now = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut known = GROUPS.lock();
    match &*known {
        Some((then, groups)) if *then == now => Arc::clone(groups),
        _ => {
            let groups = Arc::new(Groups::of(Path::new("/")));
            *known = Some((now, Arc::clone(&groups)));
            groups
        }
    }
}

/// Bytes of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Machine {
    total: u64,
    available: u64,
}

fn machine() -> Machine {
    std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text)).unwrap_or_else(without_proc)
}

/// From the text of `/proc/meminfo`. What is available is what could be had by dropping caches and by swapping.
fn meminfo(text: &str) -> Option<Machine> {
    let line = |name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
    };
    Some(Machine {
        total: line("MemTotal")?,
        available: line("MemAvailable")?.saturating_add(line("SwapFree").unwrap_or(0)),
    })
}

/// Where there is no `/proc`. What caches hold could be had and is not told of, so all counts as available that is not shared memory.
fn without_proc() -> Machine {
    // SAFETY: plain old data for which all bits zero is a value; the call writes it.
    let s = unsafe {
        let mut s: libc::sysinfo = std::mem::zeroed();
        libc::sysinfo(&mut s);
        s
    };
    let unit = u64::from(s.mem_unit.max(1));
    #[allow(clippy::useless_conversion, reason = "not everywhere a u64")]
    let bytes = |n: libc::c_ulong| u64::from(n).saturating_mul(unit);
    let total = bytes(s.totalram);
    Machine { total, available: total.saturating_sub(bytes(s.sharedram)).saturating_add(bytes(s.freeswap)) }
}

/// The folders of the control groups that this process is in, each with the version of their interface.
#[derive(Debug, Default)]
struct Groups {
    folders: Vec<(PathBuf, Version)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    One,
    Two,
}

/// Files of a group: limit, use, and what of the use the kernel can drop.
struct Names {
    limit: &'static str,
    usage: &'static str,
    caches: [&'static str; 2],
}

impl Version {
    fn names(self) -> Names {
        match self {
            Self::One => Names {
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                caches: ["total_inactive_file", "total_active_file"],
            },
            Self::Two => Names { limit: "memory.max", usage: "memory.current", caches: ["inactive_file", "active_file"] },
        }
    }
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

impl Groups {
    /// As `/proc` below `root` says; none where it says nothing.
    fn of(root: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap_or_default();
        let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
        let mut folders = Vec::new();
        // `number:controllers:path`; the unified hierarchy has no controllers there.
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let version = match controllers {
                "" => Version::Two,
                c if c.split(',').any(|c| c == "memory") => Version::One,
                _ => continue,
            };
            let Some((within, at)) = mounts.lines().find_map(|l| mounted(l, version)) else { continue };
            // A mount may begin below the hierarchy's root; what is not below it (another namespace's) shows its top alone.
            let below = Path::new(path).strip_prefix(within).unwrap_or(Path::new(""));
            let top = root.join(at.trim_start_matches('/'));
            let all = below.ancestors().map(|p| (top.join(p), version));
            folders.extend(all.filter(|(folder, _)| !folder.components().any(|c| c.as_os_str() == "..")));
        }
        Self { folders }
    }

    fn limits(&self) -> impl Iterator<Item = (&Path, Version, u64)> {
        self.folders.iter().filter_map(|(folder, version)| {
            let limit = number(folder, version.names().limit)?;
            Some((folder.as_path(), *version, limit))
        })
    }

    fn limit(&self) -> u64 {
        self.limits().map(|(.., limit)| limit).min().unwrap_or(u64::MAX)
    }

    /// What is left in the fullest of them, at most `most`.
    fn room(&self, most: u64) -> u64 {
        let left = |(folder, version, limit): (&Path, Version, u64)| {
            let names = version.names();
            let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let line =
                |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok());
            let caches: u64 = names.caches.iter().filter_map(|n| line(n)).sum();
            let used = number(folder, names.usage).unwrap_or(0).saturating_sub(caches);
            limit.saturating_sub(used).saturating_add(swap(folder, version, limit))
        };
        self.limits().map(left).min().unwrap_or(u64::MAX).min(most)
    }
}

/// Where a line of `mountinfo` mounts groups of a version: the part of the hierarchy that is seen there, and the place.
fn mounted(line: &str, version: Version) -> Option<(&str, &str)> {
    let (before, behind) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (within, at) = (fields.next()?, fields.next()?);
    let mut fields = behind.split(' ');
    let (kind, options) = (fields.next()?, fields.next_back()?);
    let wanted = match version {
        Version::Two => kind == "cgroup2",
        Version::One => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
    };
    wanted.then_some((within, at))
}

/// Bytes that a group may swap, if the machine has as many.
fn swap(folder: &Path, version: Version, limit: u64) -> u64 {
    let free = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let value = text.lines().find_map(|l| l.strip_prefix("SwapFree:"))?;
        Some(value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
    };
    let allowed = match version {
        // Both together; without such a limit, whatever there is.
        Version::One => number(folder, "memory.memsw.limit_in_bytes").map_or(u64::MAX, |both| both.saturating_sub(limit)),
        Version::Two => match number(folder, "memory.swap.max") {
            Some(most) => most.saturating_sub(number(folder, "memory.swap.current").unwrap_or(0)),
            None => u64::MAX,
        },
    };
    free().unwrap_or(0).min(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files, gone again when dropped.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("sterna-room-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_fullest_of_all_ancestors_counts() {
        let root = Root::new(
            "two",
            &[
                ("proc/self/cgroup", "0::/jobs/one\n"),
                ("proc/self/mountinfo", "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"),
                ("sys/fs/cgroup/jobs/one/memory.max", "max\n"),
                ("sys/fs/cgroup/jobs/one/memory.current", "100\n"),
                ("sys/fs/cgroup/jobs/memory.max", "1000000\n"),
                ("sys/fs/cgroup/jobs/memory.current", "700000\n"),
                ("sys/fs/cgroup/jobs/memory.swap.max", "0\n"),
                ("sys/fs/cgroup/jobs/memory.stat", "anon 5\ninactive_file 100000\nactive_file 50000\n"),
            ],
        );
        let groups = Groups::of(&root.0);
        assert_eq!(groups.folders.len(), 3);
        assert_eq!((groups.limit(), groups.room(u64::MAX), groups.room(7)), (1_000_000, 450_000, 7));
    }

    #[test]
    fn the_older_interface_and_mounts_of_a_part() {
        let root = Root::new(
            "one",
            &[
                ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc/x\n0::/\n"),
                (
                    "proc/self/mountinfo",
                    "40 30 0:35 /docker/abc /sys/fs/cgroup/memory ro shared:9 - cgroup cgroup rw,memory\n41 30 0:36 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n",
                ),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 700\ntotal_active_file 20\n"),
                ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "20\n"),
            ],
        );
        let groups = Groups::of(&root.0);
        assert_eq!(groups.folders.len(), 2);
        assert_eq!((groups.limit(), groups.room(u64::MAX)), (5000, 720));
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        for (name, files) in [
            ("none", &[][..]),
            (
                "odd",
                &[
                    ("proc/self/cgroup", "nonsense\n0::\n::\n0::/../x\n"),
                    ("proc/self/mountinfo", "x - y\n1 2 3 / /c rw - cgroup2 c rw\n"),
                ],
            ),
        ] {
            let root = Root::new(name, files);
            let groups = Groups::of(&root.0);
            assert_eq!((groups.limit(), groups.room(9)), (u64::MAX, 9), "{name}");
        }
        assert_eq!(meminfo("MemTotal: lots\n"), None);
    }

    #[test]
    fn the_machine_is_known_without_proc() {
        let (read, asked) = (machine(), without_proc());
        assert_eq!(
            meminfo("MemTotal:  8 kB\nSwapFree: 1 kB\nMemAvailable: 2 kB\n"),
            Some(Machine { total: 8192, available: 3072 })
        );
        assert!(asked.total.abs_diff(read.total) < read.total / 16, "{asked:?} {read:?}");
    }

    #[test]
    fn what_is_granted_is_not_granted_again() {
        let most = take(u64::MAX).unwrap_err();
        assert!(take(most / 2).is_ok());
        assert!(most <= machine().available + (1 << 30));
    }
}
