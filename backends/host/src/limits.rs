//! What helps where the system says no: the limits of this process, by name.
//!
//! **Guarantee.** A remedy that is named can help: a limit is named only if it is set, and if the error is one that it gives. No state,
//! no locks.

use std::sync::{Arc, Mutex};
use std::{ptr, thread};

use crate::locked;

/// The names of limits that differ between the C libraries.
#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

/// A soft limit of this process (`ulimit`), or `None` for unlimited.
#[must_use]
pub fn of(resource: Resource) -> Option<u64> {
    let mut l = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes `l` only.
    let ok = unsafe { libc::getrlimit(resource, &mut l) } == 0;
    #[allow(clippy::useless_conversion, reason = "not everywhere a u64")]
    (ok && l.rlim_cur != libc::RLIM_INFINITY).then(|| u64::from(l.rlim_cur))
}

/// The limits of `named` that are set, as a shell's users know them, in its units: "`ulimit -v` (now 1048576)".
fn set(named: &[(Resource, &str)]) -> Vec<String> {
    let unit = |r: Resource| if matches!(r, libc::RLIMIT_AS | libc::RLIMIT_DATA) { 1024 } else { 1 };
    let one = |(r, name): &(Resource, &str)| of(*r).map(|now| format!("`{name}` (now {})", now / unit(*r)));
    named.iter().filter_map(one).collect()
}

/// What helps where a mapping was refused with `code`, or `otherwise`.
#[must_use]
pub fn for_memory(code: i32, otherwise: &str) -> String {
    match code {
        libc::EAGAIN => {
            let now = of(libc::RLIMIT_MEMLOCK).unwrap_or(u64::MAX);
            format!(
                "the program locks its memory (mlockall) and may lock {now} bytes (RLIMIT_MEMLOCK): raise `ulimit -l`, or do without MCL_FUTURE"
            )
        }
        libc::ENOMEM => {
            let limits = set(&[(libc::RLIMIT_AS, "ulimit -v"), (libc::RLIMIT_DATA, "ulimit -d")]);
            if limits.is_empty() { otherwise.into() } else { format!("raise {}, or {otherwise}", limits.join(" and ")) }
        }
        libc::EMFILE => "raise `ulimit -n`".into(),
        libc::ENFILE => "raise fs.file-max (sysctl)".into(),
        libc::EFBIG => "raise `ulimit -f`".into(),
        libc::ENOSPC => "make the file system larger".into(),
        // The system itself refuses none of this to a process's own mappings.
        libc::EPERM | libc::EACCES | libc::ENOSYS => {
            "what confines the program (seccomp, a security module) forbids that call: allow it there".into()
        }
        _ => otherwise.into(),
    }
}

/// What helps where a thread was refused.
#[must_use]
pub fn for_threads() -> String {
    if of(libc::RLIMIT_MEMLOCK).is_some() && locked::all_new_ones() {
        return for_memory(libc::EAGAIN, ""); // its stack
    }
    let mut limits =
        set(&[(libc::RLIMIT_NPROC, "ulimit -u"), (libc::RLIMIT_AS, "ulimit -v"), (libc::RLIMIT_DATA, "ulimit -d")]);
    limits.push("pids.max of the process's control groups".into());
    format!("raise {}", limits.join(" or "))
}

/// What helps where a driver says no and not why: the limit that keeps this process from having what a driver takes of the system, if
/// there is one. Tries each for a moment: addresses, mappings that are locked, descriptors, threads.
#[must_use]
pub fn lacking() -> Option<String> {
    lacking_to_load().or_else(threads_lacking)
}

/// As [`lacking`], of what loading a library takes.
#[must_use]
pub fn lacking_to_load() -> Option<String> {
    memory_lacking().or_else(descriptors_lacking)
}

/// As [`lacking`], of so many bytes of memory that is filled later (`ulimit -d`): a driver that gets too little may end the process.
#[must_use]
pub fn data_lacking(bytes: usize) -> Option<String> {
    of(libc::RLIMIT_DATA)?;
    mapping_lacking(bytes, libc::PROT_READ | libc::PROT_WRITE)
}

/// Bytes that the stacks of a driver's threads and its first buffers take.
const SOME: usize = 64 << 20;

fn memory_lacking() -> Option<String> {
    // Without access nothing is filled, locked or not; what may be written counts as data.
    let ways: &[libc::c_int] =
        if locked::all_new_ones() { &[libc::PROT_NONE] } else { &[libc::PROT_NONE, libc::PROT_READ | libc::PROT_WRITE] };
    ways.iter().find_map(|prot| mapping_lacking(SOME, *prot))
}

fn mapping_lacking(bytes: usize, prot: libc::c_int) -> Option<String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: at an address that the kernel chooses; nobody knows of it, and it goes again.
    unsafe {
        let got = libc::mmap(ptr::null_mut(), bytes, prot, flags, -1, 0);
        if got == libc::MAP_FAILED {
            return Some(for_memory(locked::errno(), "raise vm.max_map_count (sysctl)"));
        }
        libc::munmap(got, bytes);
        None
    }
}

/// A driver has a thread a processor, and a few more.
fn threads_lacking() -> Option<String> {
    let wanted = thread::available_parallelism().map_or(1, usize::from) + 4;
    let mut there = Vec::new();
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock();
    let mut all = true;
    for _ in 0..wanted {
        let gate = Arc::clone(&gate);
        match thread::Builder::new().stack_size(64 << 10).spawn(move || drop(gate.lock())) {
            Ok(t) => there.push(t),
            Err(_) => all = false,
        }
    }
    drop(held);
    there.into_iter().for_each(|t| _ = t.join());
    (!all).then(for_threads)
}

fn descriptors_lacking() -> Option<String> {
    let some: Vec<_> = (0..16).map(|_| std::fs::File::open("/")).collect();
    let code = some.iter().find_map(|f| f.as_ref().err()?.raw_os_error())?;
    matches!(code, libc::EMFILE | libc::ENFILE).then(|| for_memory(code, ""))
}
