//! How much memory there is for this process: the machine's, and that of each control group that it is in.
//!
//! **Guarantee.** What is said was so when it was looked: nothing is kept but the groups' folders, which are found again when the process is
//! in others, and the limits, for 100 ms. A part of each group's limit (`reserve`) counts as used: plain stores of the program take
//! memory without asking, and so do the kernel's own books. What cannot be read limits nothing; what cannot be read *now*, for want of
//! descriptors or memory, is not known.
//!
//! **Locks**: one around the groups' folders and one around the limits, held over the reading of some small files. Never called from a
//! signal handler.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// For how long the limits hold: who changes them while a program runs is a person.
const LIMITS_HOLD: Duration = Duration::from_millis(100);

/// Bytes that this process can have now beside what it has. `None` while that cannot be read.
pub(crate) fn left() -> Option<u64> {
    groups()?.room(available()).ok()
}

/// Bytes that the machine could give now.
pub(crate) fn available() -> u64 {
    machine().available
}

/// What is never granted of a group's limit: page tables and other books of the kernel, the program's own small allocations, and what
/// drivers take without a word.
fn reserve(limit: u64) -> u64 {
    (limit / 32).min(16 << 20)
}

/// Bytes that this process can ever have in memory: the machine's, or what its control groups allow.
#[must_use]
pub fn most() -> u64 {
    machine().total.min(limits().0)
}

/// What the control groups allow that this process is in: the least sum of a limit on memory and what may be swapped beside it;
/// `u64::MAX` without one.
#[must_use]
pub fn group_limit() -> u64 {
    limits().1
}

/// The least limit on memory of the control groups, and the least with swap.
fn limits() -> (u64, u64) {
    static LIMITS: Mutex<Option<(Instant, (u64, u64))>> = Mutex::new(None);
    let mut known = LIMITS.lock();
    let good = known.filter(|(at, _)| at.elapsed() < LIMITS_HOLD);
    let looked = good.or_else(|| Some((Instant::now(), groups()?.limits().ok()?))).or(*known);
    *known = looked;
    looked.map_or((u64::MAX, u64::MAX), |(_, limits)| limits)
}

/// The groups that the process is in now: somebody may have put it into others. `None` if that could not be found out yet.
fn groups() -> Option<Arc<Groups>> {
    static GROUPS: Mutex<Known> = Mutex::new(None);
    Groups::now(Path::new("/"), &mut GROUPS.lock())
}

/// What `/proc/self/cgroup` said, and what followed.
type Known = Option<(String, Arc<Groups>)>;

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
    Some(Machine {
        total: in_bytes(text, "MemTotal")?,
        available: in_bytes(text, "MemAvailable")?.saturating_add(in_bytes(text, "SwapFree").unwrap_or(0)),
    })
}

/// A line of `/proc/meminfo`.
fn in_bytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
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

/// Files of a group: limit, use, and what of the use the kernel can drop, but for what has to be written first: it may rather end a
/// process than wait for that.
struct Names {
    limit: &'static str,
    usage: &'static str,
    caches: [&'static str; 2],
    unwritten: [&'static str; 2],
}

impl Version {
    fn names(self) -> Names {
        match self {
            Self::One => Names {
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                caches: ["total_inactive_file", "total_active_file"],
                unwritten: ["total_dirty", "total_writeback"],
            },
            Self::Two => Names {
                limit: "memory.max",
                usage: "memory.current",
                caches: ["inactive_file", "active_file"],
                unwritten: ["file_dirty", "file_writeback"],
            },
        }
    }
}

/// A file could not be read now, for want of descriptors or memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Unread;

/// The text of a file, empty where there is none.
fn text(path: &Path) -> Result<String, Unread> {
    std::fs::read_to_string(path).or_else(|e| match e.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(Unread),
        _ => Ok(String::new()),
    })
}

fn number(folder: &Path, name: &str) -> Result<Option<u64>, Unread> {
    Ok(text(&folder.join(name))?.trim().parse().ok())
}

impl Groups {
    /// As `/proc` below `root` says now, or `known` where that cannot be read.
    fn now(root: &Path, known: &mut Known) -> Option<Arc<Self>> {
        let read = |name: &str| text(&root.join(name));
        if let Ok(now) = read("proc/self/cgroup")
            && known.as_ref().is_none_or(|(then, _)| *then != now)
            && let Ok(mounts) = read("proc/self/mountinfo")
        {
            let groups = Arc::new(Self::of(root, &now, &mounts));
            *known = Some((now, groups));
        }
        known.as_ref().map(|(_, groups)| Arc::clone(groups))
    }

    /// As these texts say; none where they say nothing.
    fn of(root: &Path, groups: &str, mounts: &str) -> Self {
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
            // A mount may begin below the hierarchy's root, and there may be several; where the group is below none of them (another
            // namespace's) the first shows its top alone.
            let seen: Vec<_> = mounts.lines().filter_map(|l| mounted(l, version)).collect();
            let has = |(within, _): &&(&str, &str)| Path::new(path).starts_with(within);
            let Some((within, at)) = seen.iter().find(has).or(seen.first()) else { continue };
            let below = Path::new(path).strip_prefix(within).unwrap_or(Path::new(""));
            let top = root.join(at.trim_start_matches('/'));
            let all = below.ancestors().map(|p| (top.join(p), version));
            folders.extend(all.filter(|(folder, _)| !folder.components().any(|c| c.as_os_str() == "..")));
        }
        Self { folders }
    }

    /// Those that have a limit.
    fn limited(&self) -> impl Iterator<Item = Result<(&Path, Version, u64), Unread>> {
        self.folders.iter().filter_map(|(folder, version)| {
            let limit = number(folder, version.names().limit).transpose()?;
            Some(limit.map(|limit| (folder.as_path(), *version, limit)))
        })
    }

    /// The least limit on memory, and the least of memory and swap together.
    fn limits(&self) -> Result<(u64, u64), Unread> {
        let mut least = (u64::MAX, u64::MAX);
        for group in self.limited() {
            let (folder, version, limit) = group?;
            let swap = may_swap(folder, version, limit)?.min(machine_swap("SwapTotal")?);
            least = (least.0.min(limit), least.1.min(limit.saturating_add(swap)));
        }
        Ok(least)
    }

    /// What is left in the fullest of them beside the [`reserve`], at most `most`.
    fn room(&self, most: u64) -> Result<u64, Unread> {
        let mut least = most;
        for group in self.limited() {
            let (folder, version, limit) = group?;
            let names = version.names();
            let stat = text(&folder.join("memory.stat"))?;
            let line =
                |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok());
            let sum = |names: [&str; 2]| -> u64 { names.iter().filter_map(|n| line(n)).sum() };
            let caches = sum(names.caches).saturating_sub(sum(names.unwritten));
            let used = number(folder, names.usage)?.unwrap_or(0).saturating_sub(caches);
            let left = limit.saturating_sub(used).saturating_add(swap(folder, version, limit)?);
            least = least.min(left.saturating_sub(reserve(limit)));
        }
        Ok(least)
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

/// Bytes that a group may swap at most.
fn may_swap(folder: &Path, version: Version, limit: u64) -> Result<u64, Unread> {
    Ok(match version {
        // Both together; without such a limit, whatever there is.
        Version::One => number(folder, "memory.memsw.limit_in_bytes")?.map_or(u64::MAX, |both| both.saturating_sub(limit)),
        Version::Two => number(folder, "memory.swap.max")?.unwrap_or(u64::MAX),
    })
}

/// Bytes that a group may swap now, if the machine has as many.
fn swap(folder: &Path, version: Version, limit: u64) -> Result<u64, Unread> {
    let used = if version == Version::Two { number(folder, "memory.swap.current")?.unwrap_or(0) } else { 0 };
    Ok(may_swap(folder, version, limit)?.saturating_sub(used).min(machine_swap("SwapFree")?))
}

/// What a line of `/proc/meminfo` about swap says now.
fn machine_swap(name: &str) -> Result<u64, Unread> {
    Ok(in_bytes(&text(Path::new("/proc/meminfo"))?, name).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files, gone again when dropped.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("sterna-groups-{name}-{}", std::process::id()));
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
                ("sys/fs/cgroup/jobs/memory.stat", "anon 5\ninactive_file 100000\nactive_file 50000\nfile_dirty 20000\n"),
            ],
        );
        let groups = Groups::now(&root.0, &mut None).unwrap();
        assert_eq!(groups.folders.len(), 3);
        assert_eq!(
            (groups.limits(), groups.room(u64::MAX), groups.room(7)),
            (Ok((1_000_000, 1_000_000)), Ok(430_000 - reserve(1_000_000)), Ok(7))
        );
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
        let groups = Groups::now(&root.0, &mut None).unwrap();
        assert_eq!(groups.folders.len(), 2);
        assert_eq!((groups.limits(), groups.room(u64::MAX)), (Ok((5000, 5000)), Ok(720 - reserve(5000))));
    }

    /// As `Documentation/admin-guide/cgroup-v2.rst` has it: `max` where nothing is limited, no files of limits at the top, a flat list of
    /// what memory is used for, in which the names of some lines begin as others do.
    #[test]
    fn the_unified_interface_as_it_is_documented() {
        let stat = "anon 409600\nfile 700000\nkernel 52000\nkernel_stack 16384\npagetables 8192\nsec_pagetables 0\npercpu 0\nsock 0\n\
                    vmalloc 0\nshmem 300000\nzswap 0\nzswapped 0\nfile_mapped 4096\nfile_dirty 0\nfile_writeback 0\nswapcached 0\n\
                    anon_thp 0\nfile_thp 0\nshmem_thp 0\ninactive_anon 600000\nactive_anon 109600\ninactive_file 250000\n\
                    active_file 150000\nunevictable 0\nslab_reclaimable 1000\nslab_unreclaimable 2000\nslab 3000\n\
                    workingset_refault_anon 0\nworkingset_refault_file 7\nworkingset_activate_file 3\npgscan 0\npgfault 991\n";
        let files = [
            // A group that has gone says so behind its name, and its ancestors hold on.
            ("proc/self/cgroup", "0::/user.slice/app.scope (deleted)\n"),
            (
                "proc/self/mountinfo",
                "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard\n\
                 30 22 0:26 /other /mnt/some rw,nosuid - cgroup2 none rw\n\
                 31 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
            ),
            ("mnt/some/memory.max", "5\n"),
            ("sys/fs/cgroup/memory.stat", stat),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("sys/fs/cgroup/user.slice/memory.min", "0\n"),
            ("sys/fs/cgroup/user.slice/memory.low", "0\n"),
            ("sys/fs/cgroup/user.slice/memory.high", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "2097152\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "1500000\n"),
            ("sys/fs/cgroup/user.slice/memory.swap.max", "0\n"),
            ("sys/fs/cgroup/user.slice/memory.swap.current", "0\n"),
            ("sys/fs/cgroup/user.slice/memory.events", "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n"),
            ("sys/fs/cgroup/user.slice/memory.stat", stat),
        ];
        let root = Root::new("documented", &files);
        let groups = Groups::now(&root.0, &mut None).unwrap();
        assert_eq!(groups.limits(), Ok((2_097_152, 2_097_152)));
        assert_eq!(groups.room(u64::MAX), Ok(2_097_152 - (1_500_000 - 400_000) - reserve(2_097_152)));
        // Without limits everything is left.
        let open = root.0.join("sys/fs/cgroup/user.slice");
        std::fs::write(open.join("memory.max"), "max\n").unwrap();
        std::fs::write(open.join("memory.swap.max"), "max\n").unwrap();
        assert_eq!((groups.limits(), groups.room(9)), (Ok((u64::MAX, u64::MAX)), Ok(9)));
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
            let groups = Groups::now(&root.0, &mut None).unwrap();
            assert_eq!((groups.limits(), groups.room(9)), (Ok((u64::MAX, u64::MAX)), Ok(9)), "{name}");
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
    fn what_may_be_swapped_counts_as_far_as_the_machine_has_it() {
        let swap = machine_swap("SwapTotal").unwrap();
        let mounts = "31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        for (most, may) in [("max\n", swap), ("0\n", 0), ("4096\n", swap.min(4096))] {
            let root = Root::new(
                "swap",
                &[
                    ("proc/self/cgroup", "0::/\n"),
                    ("proc/self/mountinfo", mounts),
                    ("sys/fs/cgroup/memory.max", "1000000\n"),
                    ("sys/fs/cgroup/memory.swap.max", most),
                ],
            );
            let groups = Groups::now(&root.0, &mut None).unwrap();
            assert_eq!(groups.limits(), Ok((1_000_000, 1_000_000 + may)), "{most}");
        }
    }

    #[test]
    fn what_cannot_be_read_now_limits_as_before() {
        if std::env::var_os("STERNA_TEST_DESCRIPTORS").is_none() {
            let name = "groups::tests::what_cannot_be_read_now_limits_as_before";
            let mut c = std::process::Command::new(std::env::current_exe().unwrap());
            c.args([name, "--exact", "--test-threads=1"]).env("STERNA_TEST_DESCRIPTORS", "1");
            assert!(c.status().unwrap().success());
            return;
        }
        let root = Root::new(
            "descriptors",
            &[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", "31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/memory.max", "1000000\n"),
            ],
        );
        let mut known = None;
        let before = Groups::now(&root.0, &mut known).unwrap();
        let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        let groups = Groups::now(&root.0, &mut known).map(|g| g.folders.clone());
        let (limits, room, unknown) = (before.limits(), before.room(9), Groups::now(&root.0, &mut None).is_none());
        drop(files);
        assert_eq!(groups, Some(before.folders.clone()));
        assert_eq!((limits, room, unknown), (Err(Unread), Err(Unread), true));
        assert_eq!(before.room(9), Ok(9));
    }
}
