//! Timing, and what the system says about this machine and this process.

use std::fs;
use std::time::Instant;

/// The result of each round: a median, as a rule.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(Vec<f64>);

impl Runs {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn one(value: f64) -> Self {
        Self(vec![value])
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Round by round, both added.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a + b).collect())
    }

    /// Forgets the first rounds.
    pub(crate) fn skip(&mut self, rounds: usize) {
        self.0.drain(..rounds.min(self.0.len()));
    }

    pub(crate) fn median(&self) -> f64 {
        median(&mut self.0.clone())
    }

    /// The median of the rounds' ratios to another figure's rounds.
    pub(crate) fn over(&self, floor: &Self) -> f64 {
        self.pairs(floor, |a, b| a / b)
    }

    /// The median of the rounds' differences.
    pub(crate) fn minus(&self, floor: &Self) -> f64 {
        self.pairs(floor, |a, b| a - b)
    }

    fn pairs(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> f64 {
        median(&mut self.0.iter().zip(&other.0).map(|(a, b)| f(*a, *b)).collect::<Vec<_>>())
    }
}

/// The middle value; for an even number the upper one of the two.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds for which this thread has had a processor.
pub(crate) fn thread_seconds() -> f64 {
    seconds_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// … all threads of the process together.
pub(crate) fn process_seconds() -> f64 {
    seconds_of(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn seconds_of(clock: libc::clockid_t) -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills what is passed.
    let done = unsafe { libc::clock_gettime(clock, &mut t) };
    if done == 0 { t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9 } else { f64::NAN }
}

/// What figures count.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// Seconds.
    Time,
    /// Bytes a second.
    Speed,
    /// Bytes.
    Bytes,
}

impl Unit {
    fn scale(self, value: f64) -> (f64, &'static str) {
        let steps: &[(f64, &str)] = match self {
            Self::Time => &[(1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s")],
            Self::Speed => &[(1e9, "GB/s")],
            Self::Bytes => &[(1.0, "B"), (1024.0, "KiB"), (1_048_576.0, "MiB"), (1_073_741_824.0, "GiB")],
        };
        let fits = steps.iter().rev().find(|s| value.abs() >= s.0 * 0.9995);
        *fits.unwrap_or(&steps[0])
    }

    /// One value with its unit.
    pub(crate) fn show(self, value: f64) -> String {
        let (scale, name) = self.scale(value);
        format!("{} {name}", digits(value / scale))
    }

    /// The median, and in parentheses the least and the greatest if there are several.
    pub(crate) fn spread(self, runs: &Runs) -> String {
        let middle = runs.median();
        let (low, high) = runs.0.iter().fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
        let (scale, _) = self.scale(middle);
        match runs.0.len() {
            0 | 1 => self.show(middle),
            _ if self.scale(low).1 != self.scale(high).1 => {
                format!("{} ({}–{})", self.show(middle), self.show(low), self.show(high))
            }
            _ => format!("{} ({}–{})", self.show(middle), digits(low / scale), digits(high / scale)),
        }
    }
}

/// Three significant digits, as far as they say something.
fn digits(v: f64) -> String {
    match v.abs() {
        a if a >= 99.95 || a == 0.0 => format!("{v:.0}"),
        a if a >= 9.995 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

/// Seconds that `f` takes.
pub(crate) fn seconds(f: impl FnOnce()) -> f64 {
    let t = Instant::now();
    f();
    t.elapsed().as_secs_f64()
}

/// Keeps the calling thread on one processor while it lives.
#[derive(Debug)]
pub(crate) struct Pinned(libc::cpu_set_t);

impl Pinned {
    pub(crate) fn to(cpu: usize) -> Self {
        // SAFETY: plain old data for which all zero is the empty set; the calls read and write the sets given.
        unsafe {
            let mut before: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut before);
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut one);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
            Self(before)
        }
    }

    /// The first processor that this process may use.
    pub(crate) fn first_cpu() -> usize {
        cpus()[0]
    }
}

/// The processors that the calling thread may use; never none.
pub(crate) fn cpus() -> Vec<usize> {
    // SAFETY: plain old data for which all zero is the empty set; the call fills it.
    let mut all: Vec<usize> = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        (0..libc::CPU_SETSIZE as usize).filter(|c| libc::CPU_ISSET(*c, &set)).collect()
    };
    if all.is_empty() {
        all.push(0);
    }
    all
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: puts back the set that was read.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
    }
}

/// From here on threads share one arena of the C library's allocator. What a thread's own costs depends on what was freed there before.
pub(crate) fn one_arena() {
    // SAFETY: sets a parameter of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number behind `key` in text of the form `key: number …`.
fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// What this process has in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    /// All of it.
    pub(crate) all: u64,
    /// Memory of its own that no file stands for: heap, stacks, tables.
    pub(crate) anonymous: u64,
    /// The system's page tables for it.
    pub(crate) page_tables: u64,
}

impl Resident {
    pub(crate) fn now() -> Self {
        let smaps = text("/proc/self/smaps_rollup");
        let status = text("/proc/self/status");
        Self {
            all: number(&smaps, "Rss") << 10,
            anonymous: number(&smaps, "Anonymous") << 10,
            page_tables: number(&status, "VmPTE") << 10,
        }
    }
}

/// Context switches of every thread of this process but the calling one, by thread.
pub(crate) fn switches_of_others() -> Vec<(String, u64)> {
    // SAFETY: a plain query.
    let own = unsafe { libc::gettid() }.to_string();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let others = tasks.filter(|t| t.file_name() != own.as_str());
    let read = others.map(|t| {
        let status = text(&t.path().join("status").to_string_lossy());
        let name = status.lines().next().unwrap_or_default().trim_start_matches("Name:").trim().to_string();
        (name, number(&status, "voluntary_ctxt_switches") + number(&status, "nonvoluntary_ctxt_switches"))
    });
    read.collect()
}

/// The load averages over 1 and 5 minutes.
pub(crate) fn load() -> String {
    text("/proc/loadavg").split(' ').take(2).collect::<Vec<_>>().join(" ")
}

pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub(crate) fn total_memory() -> u64 {
    number(&text("/proc/meminfo"), "MemTotal") << 10
}

pub(crate) fn kernel() -> String {
    text("/proc/sys/kernel/osrelease").trim().to_string()
}

/// The processor's model, or its architecture where the system does not say.
pub(crate) fn cpu_model() -> String {
    let info = text("/proc/cpuinfo");
    let named = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    named.unwrap_or(std::env::consts::ARCH).to_string()
}
