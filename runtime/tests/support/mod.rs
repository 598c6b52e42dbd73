//! What the tests of faults share: a process of its own for each host-fault mechanism, a watchdog, random numbers.
#![allow(dead_code, reason = "each test binary uses its part of this")]

mod each;

use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Device as _;
use sterna::kernel::{EachMut, Group, Kernel, Spirv, each_mut};
use sterna::{Mechanism, Runtime};

pub(crate) use each::ran_already;

const CHILD: &str = "STERNA_TEST_CHILD";
const FORCED: &str = "STERNA_HOST_FAULTS";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `body` in a child process for each mechanism that this user may use; with `STERNA_HOST_FAULTS` set, here and under
/// that one. The mechanism belongs to the process, so one process cannot try two. `test` is the calling test's name.
///
/// A body that is not done after `limit` ends its process with a message: a hang is a failure. Bodies take turns: a process has room
/// for a few devices only.
pub(crate) fn under_each(test: &str, limit: Duration, body: impl FnOnce(Mechanism)) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if std::env::var_os(CHILD).is_none() && ran_already(test) {
        return;
    }
    if let Ok(forced) = std::env::var(FORCED) {
        let _watch = watchdog(test, limit);
        return body(forced.parse().expect("STERNA_HOST_FAULTS names a mechanism"));
    }
    for m in Mechanism::ALL {
        if !available(m) {
            println!("SKIP {test} under {m}: not available to this user");
            let required = std::env::var("STERNA_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|r| r.trim() == m.to_string()), "STERNA_REQUIRE names {m}, which is missing");
            continue;
        }
        let out = child(test).env(FORCED, m.to_string()).output().unwrap();
        print!("{}", String::from_utf8_lossy(&out.stdout));
        assert!(out.status.success(), "{test} under {m}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
}

/// A command that runs one test of this binary in a process of its own.
pub(crate) fn child(test: &str) -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    c
}

/// Ends the process with a message unless what comes back is dropped before `limit` is over.
#[must_use = "dropped, it watches no more"]
pub(crate) fn watchdog(what: &str, limit: Duration) -> Sender<()> {
    let line = format!("\n{what} made no progress for {limit:?}: it hangs\n");
    let (alive, gone) = channel();
    std::thread::spawn(move || {
        if gone.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            // SAFETY: a valid buffer; neither standard error's lock nor an allocation is needed.
            unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
            std::process::abort();
        }
    });
    alive
}

/// Whether this user may open what the mechanism needs.
pub(crate) fn available(m: Mechanism) -> bool {
    const USER_MODE_ONLY: libc::c_int = 1;
    let flags = match m {
        Mechanism::Transparent => 0,
        Mechanism::Signal => USER_MODE_ONLY,
        _ => return true,
    };
    // SAFETY: no memory is passed; the descriptor is closed at once.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags);
        fd >= 0 && libc::close(fd as libc::c_int) == 0
    }
}

/// A runtime over CPU devices of these configurations.
pub(crate) fn runtime(policy: &str, configs: impl IntoIterator<Item = CpuConfig>) -> Runtime {
    let mut b = Runtime::builder().policy(policy).unwrap();
    for (i, c) in configs.into_iter().enumerate() {
        b = b.open_device(Arc::new(CpuDevice::new(i as u32, c).unwrap()));
    }
    b.build().unwrap()
}

/// A runtime with one ordinary device.
pub(crate) fn plain() -> Runtime {
    runtime("declared", [CpuConfig { memory: 64 << 20, ..CpuConfig::default() }])
}

/// The smallest configuration that a device accepts.
pub(crate) fn smallest(grain: u64) -> CpuConfig {
    let c = CpuConfig { grain, ..CpuConfig::default() };
    let frames = CpuDevice::new(0, c.clone()).unwrap().caps().min_frames;
    CpuConfig { memory: u64::from(frames) * grain, ..c }
}

/// Adds one to every element; `chunk` elements a group.
pub(crate) fn tick(chunk: usize) -> Kernel<(EachMut<u64>,)> {
    fn body(_: Group, _: u64, y: &mut [u64]) {
        for y in y {
            *y += 1;
        }
    }
    let kernel = Kernel::new("tick", 0_u64, (each_mut(chunk),), body);
    // SAFETY: the module does what `body` does, to the group's own part.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("glsl/tick.spv"))) }
}

/// Marsaglia's xorshift: the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % n
    }
}

/// The seed of this run: `STERNA_SEED`, or the clock.
pub(crate) fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    std::env::var("STERNA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock % 1_000_000)
}

/// How long a test runs: variable `name` in seconds, or `default`.
pub(crate) fn duration(name: &str, default: Duration) -> Duration {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).map_or(default, Duration::from_secs_f64)
}
