//! What helps where the system says no: the limits of this process, by name.
//!
//! **Guarantee.** A remedy that is named can help: a limit is named only if it is set, and if the error is one that it gives. No state,
//! no locks.

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

/// The limits of `named` that are set, as a shell's users know them: "`ulimit -v` (now 1048576 bytes)".
fn set(named: &[(Resource, &str)]) -> Vec<String> {
    let one = |(r, name): &(Resource, &str)| of(*r).map(|now| format!("`{name}` (now {now})"));
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
