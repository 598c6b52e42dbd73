//! How much memory this process can still have: the machine's, and that of each control group that it is in.
//!
//! The kernel ends a process that stores to memory beyond its groups' limit; nothing can be answered to a store. So who gives out
//! memory for more than a page or two asks here first, and has a typed error where there is none.
//!
//! **Guarantee.** What [`take`] grants was there when it was last looked, less what others were granted and may not be in use yet: a
//! [`Grant`] counts until it is dropped, when its memory is in use; one that [lapses](Grant::lapse) for some 100 ms more. Where little is
//! left, who cannot hold on to a grant until all is in use takes the memory at once ([`give`]). It is looked again after 5 ms, or 100 ms
//! while more than a gibibyte is left, and before anything is refused. While nothing can be read (no descriptor is left), what was read
//! last holds.
//! Plain stores of the program take memory without asking, and so do the kernel's own books: a part of each group's limit
//! (`reserve`) is never granted.
//!
//! **Locks**: a mutex around the last look, held over the reading of some small files, and one around the groups' folders inside it.
//! Never called from a signal handler.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sys::{self, to_usize};

/// A look is as good as this.
const GOOD_FOR: Duration = Duration::from_millis(5);
/// As long as so much is left, it is good for longer.
const PLENTY: u64 = 1 << 30;
const GOOD_FOR_PLENTY: Duration = Duration::from_millis(100);

/// For how long a grant that has lapsed counts.
const TO_LAPSE: Duration = Duration::from_millis(100);
/// How long [`wait_to_take`] waits for others.
const PATIENCE: Duration = Duration::from_millis(300);

/// The last look, and what was granted that it may not have seen.
#[derive(Debug)]
struct Last {
    /// When it was, and how much there was.
    look: Option<(Instant, u64)>,
    /// Grants that have lapsed: until when each counts, and of how many bytes it was.
    lapsed: VecDeque<(Instant, u64)>,
    /// All that counts, lapsed or not.
    granted: u64,
}

static LAST: Mutex<Last> = Mutex::new(Last::NEW);

/// Why nothing is granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused {
    /// What is left beside earlier grants.
    left: u64,
    /// What there was when it was looked.
    there: u64,
}

impl Last {
    const NEW: Self = Self { look: None, lapsed: VecDeque::new(), granted: 0 };

    /// As [`take`](self::take) at `now`, with `look` for another look, which there may be none of.
    fn take(&mut self, now: Instant, bytes: u64, look: impl FnOnce() -> Option<u64>) -> Result<(), Refused> {
        let (left, there) = self.left(now, bytes, look);
        if left < bytes {
            return Err(Refused { left, there });
        }
        self.granted += bytes;
        Ok(())
    }

    /// What is left beside earlier grants, and what there was, as far as that matters to who wants `bytes` bytes.
    fn left(&mut self, now: Instant, bytes: u64, look: impl FnOnce() -> Option<u64>) -> (u64, u64) {
        let good = self.look.filter(|(at, there)| {
            let age = now.saturating_duration_since(*at);
            let left = there.saturating_sub(self.granted);
            left >= bytes && (age < GOOD_FOR || left - bytes >= PLENTY && age < GOOD_FOR_PLENTY)
        });
        if good.is_none()
            && let Some(there) = look()
        {
            self.look = Some((now, there));
            while let Some((_, bytes)) = self.lapsed.front().copied().filter(|(until, _)| *until <= now) {
                self.lapsed.pop_front();
                self.granted -= bytes;
            }
        }
        let there = self.look.get_or_insert_with(|| (now, machine().available)).1;
        (there.saturating_sub(self.granted), there)
    }

    /// A grant ends: its memory is in use, which the last look may not have seen.
    fn end(&mut self, bytes: u64) {
        self.granted -= bytes;
        if let Some((_, there)) = &mut self.look {
            *there = there.saturating_sub(bytes);
        }
    }

    fn lapse(&mut self, now: Instant, bytes: u64) {
        let until = now + TO_LAPSE;
        // In the order in which they end, some at once: a millisecond is near enough.
        match self.lapsed.back_mut() {
            Some((last, sum)) if until <= *last + Duration::from_millis(1) => *sum += bytes,
            _ => self.lapsed.push_back((until, bytes)),
        }
    }
}

/// Memory that was granted. Dropped when it is in use, or is not wanted any more.
#[derive(Debug)]
#[must_use = "what was granted counts until this is dropped"]
pub struct Grant(u64);

impl Grant {
    /// Of nothing.
    pub const NONE: Self = Self(0);

    /// Goes on to count for a while: nobody sees when the memory is in use.
    pub fn lapse(mut self) {
        let bytes = std::mem::take(&mut self.0);
        if bytes > 0 {
            LAST.lock().lapse(Instant::now(), bytes);
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.0 > 0 {
            LAST.lock().end(self.0);
        }
    }
}

/// What there is now.
fn look() -> Option<u64> {
    groups()?.room(machine().available).ok()
}

fn try_to_take(bytes: u64) -> Result<Grant, Refused> {
    if bytes == 0 {
        return Ok(Grant::NONE);
    }
    LAST.lock().take(Instant::now(), bytes, look).map(|()| Grant(bytes))
}

/// Grants `bytes` bytes of memory that have no storage yet, or not, at once.
///
/// # Errors
/// As many are not to be had now; how many are.
pub fn take(bytes: u64) -> Result<Grant, u64> {
    try_to_take(bytes).map_err(|refused| refused.left)
}

/// As [`take`], but where only earlier grants stand in the way it waits until it can be seen what became of them.
///
/// # Errors
/// As many are not to be had; how many are.
pub fn wait_to_take(bytes: u64) -> Result<Grant, u64> {
    let end = Instant::now() + PATIENCE;
    loop {
        match try_to_take(bytes) {
            Ok(grant) => return Ok(grant),
            Err(Refused { left, there }) if there < bytes || Instant::now() >= end => return Err(left),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Sees to it that memory of this process, `bytes` bytes from `at` on, can be filled: where little is left it gets its storage now, as far
/// as it has none. Changes no byte.
///
/// # Errors
/// As many are not to be had now; how many are.
pub fn give(at: NonNull<u8>, bytes: u64) -> Result<(), u64> {
    const PAGE: usize = 4096;
    if is_plenty(bytes) {
        take(bytes)?.lapse();
        return Ok(());
    }
    let at = at.as_ptr().addr();
    // Whole pages: beside them lies what somebody else uses.
    let (start, end) = (at.next_multiple_of(PAGE), (at + to_usize(bytes)) / PAGE * PAGE);
    if start < end {
        let grant = take(sys::lacking(start, end - start))?;
        if !sys::populate(start, end - start) {
            grant.lapse();
        }
    }
    Ok(())
}

/// Whether there is so much that nobody need count how many of `bytes` bytes have storage already.
#[must_use]
pub fn is_plenty(bytes: u64) -> bool {
    LAST.lock().left(Instant::now(), bytes, look).0 >= bytes.saturating_add(PLENTY)
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
    let good = known.filter(|(at, _)| at.elapsed() < GOOD_FOR_PLENTY);
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
    fn what_is_granted_is_not_granted_again() {
        const ALL: u64 = 1 << 40;
        let (mut last, now) = (Last::NEW, Instant::now());
        let refused = |left, there| Err(Refused { left, there });
        assert_eq!(last.take(now, u64::MAX, || Some(ALL)), refused(ALL, ALL));
        assert_eq!(last.take(now, ALL / 2, || unreachable!("looked again at once")), Ok(()));
        // Before it refuses it looks again; what is not to be seen is as it was.
        assert_eq!(last.take(now, ALL, || None), refused(ALL / 2, ALL));
        // What was granted is not in use yet, whatever is seen; and for a while after it has lapsed.
        assert_eq!(last.take(now + 9 * TO_LAPSE, ALL, || Some(ALL)), refused(ALL / 2, ALL));
        last.lapse(now, ALL / 2);
        assert_eq!(last.take(now, ALL, || Some(ALL)), refused(ALL / 2, ALL));
        assert_eq!(last.take(now + TO_LAPSE, ALL, || Some(ALL)), Ok(()));
        // What is in use was there at the last look.
        last.end(ALL / 2);
        assert_eq!(last.take(now + TO_LAPSE, 1, || None), refused(0, ALL / 2));
        assert_eq!(last.take(now + TO_LAPSE, ALL, || Some(ALL)), refused(ALL / 2, ALL));
        let most = take(u64::MAX).map(drop).unwrap_err();
        assert!(most <= machine().available + (1 << 30));
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
            let name = "room::tests::what_cannot_be_read_now_limits_as_before";
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
        let (mut last, at) = (Last::NEW, Instant::now());
        assert_eq!(last.take(at, 600_000, || before.room(u64::MAX).ok()), Ok(()));
        let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        let groups = Groups::now(&root.0, &mut known).map(|g| g.folders.clone());
        let there = 1_000_000 - reserve(1_000_000);
        let refused = Err(Refused { left: there - 600_000, there });
        let (limits, room, unknown) = (before.limits(), before.room(9), Groups::now(&root.0, &mut None).is_none());
        let granted = last.take(at, 600_000, || before.room(u64::MAX).ok());
        drop(files);
        assert_eq!(groups, Some(before.folders.clone()));
        assert_eq!((limits, room, unknown, granted), (Err(Unread), Err(Unread), true, refused));
        assert_eq!(before.room(9), Ok(9));
    }
}
