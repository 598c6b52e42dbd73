//! What the integration tests share: devices and runtimes of every kind, a limit on the time of a test, gates for kernels,
//! and a way to run a test again as a child process.
#![allow(dead_code, reason = "each test file uses some of it")]

#[allow(clippy::duplicate_mod, reason = "some test binaries have both parts")]
#[path = "../support/each.rs"]
mod each;
pub(crate) mod limits;
pub(crate) mod vulkan;

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::Absent;
use sterna::kernel::{Each, EachMut, EachOut, Group, Kernel, Spirv, Whole, each, each_mut, each_out, whole};
use sterna::kernels::{reference, stencil5};
use sterna::{Mechanism, Runtime};

pub(crate) use each::ran_already;

pub(crate) const MIB: usize = 1 << 20;
/// Elements of `u32` a page.
pub(crate) const PAGE_ELEMS: usize = 1024;

// ───────────── time ─────────────

/// Ends the process with a message if a test takes longer than a minute and a half: a hang must not look like patience.
pub(crate) struct Limit(#[expect(dead_code, reason = "dropping it is what tells the watching thread")] Sender<()>);

/// Starts the limit of the calling test.
#[must_use]
pub(crate) fn limit() -> Limit {
    let (send, receive) = channel::<()>();
    let name = std::thread::current().name().unwrap_or("a test").to_string();
    std::thread::spawn(move || {
        if receive.recv_timeout(Duration::from_secs(90)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name}: has not ended after 90 s; the process ends");
            std::process::abort();
        }
    });
    Limit(send)
}

/// Waits until `what` holds; fails after 20 s.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::yield_now();
    }
}

/// For tests that count what belongs to the process (threads, segments): one at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of host storage that this process's shared memory takes.
#[must_use]
pub(crate) fn storage() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let arena =
        |f: &std::fs::DirEntry| std::fs::read_link(f.path()).is_ok_and(|l| l.to_string_lossy().contains("sterna-arena"));
    let file = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten().find(arena).expect("an arena");
    std::fs::metadata(file.path()).expect("a file").blocks() * 512
}

// ───────────── devices ─────────────

/// A small device: 2 workers, little address space, `memory` bytes.
#[must_use]
pub(crate) fn small(memory: usize) -> CpuConfig {
    CpuConfig { memory: memory as u64, workers: 2, window: 64 << 30, ..CpuConfig::default() }
}

/// A device that cannot fault.
#[must_use]
pub(crate) fn rigid(memory: usize) -> CpuConfig {
    CpuConfig { absent: Absent::Undefined, ..small(memory) }
}

/// Every kind of device that the engine tells apart, with a name for messages.
#[must_use]
pub(crate) fn kinds(memory: usize) -> Vec<(&'static str, CpuConfig)> {
    vec![
        ("faulting", small(memory)),
        ("page grain", CpuConfig { grain: 4096, ..small(memory) }),
        ("block grain", CpuConfig { grain: 2 << 20, memory: (memory as u64).max(24 << 20), ..small(memory) }),
        ("no aliases", CpuConfig { map_host: false, ..small(memory) }),
        ("unreadable frames", CpuConfig { host_readable: false, ..small(memory) }),
        ("rigid", rigid(memory)),
        ("rigid, page grain", CpuConfig { grain: 4096, ..rigid(memory) }),
        ("rigid, no aliases, unreadable", CpuConfig { map_host: false, host_readable: false, ..rigid(memory) }),
        ("coherent", CpuConfig { coherent: true, ..small(memory) }),
    ]
}

#[must_use]
pub(crate) fn device(config: CpuConfig) -> Arc<CpuDevice> {
    Arc::new(CpuDevice::new(0, config).expect("a device"))
}

/// A runtime over devices of these configurations.
#[must_use]
pub(crate) fn runtime_of(configs: &[CpuConfig]) -> Runtime {
    let open = |b: sterna::Builder, (i, c): (usize, &CpuConfig)| {
        b.open_device(Arc::new(CpuDevice::new(i as u32, c.clone()).expect("a device")))
    };
    configs.iter().enumerate().fold(Runtime::builder(), open).build().expect("a runtime")
}

#[must_use]
pub(crate) fn runtime(config: CpuConfig) -> Runtime {
    runtime_of(&[config])
}

/// A runtime over a device that the test keeps a hold of.
#[must_use]
pub(crate) fn over<D: sterna::hal::Device + 'static>(device: &Arc<D>) -> Runtime {
    let device: Arc<dyn sterna::hal::Device> = Arc::clone(device) as _;
    Runtime::builder().open_device(device).build().expect("a runtime")
}

#[must_use]
pub(crate) fn faults(rt: &Runtime) -> bool {
    rt.stats().mechanism != Mechanism::None
}

// ───────────── kernels ─────────────

/// `y[i] += a`.
#[must_use]
pub(crate) fn add(a: u32) -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, a: u32, y: &mut [u32]) {
        y.iter_mut().for_each(|y| *y = y.wrapping_add(a));
    }
    let kernel = Kernel::new("add", a, (each_mut(4096),), body);
    // SAFETY: the module does what `body` does, to the group's own part.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("glsl/add.spv"))) }
}

/// `y[i] = x[i] + a`.
#[must_use]
pub(crate) fn copy_add(a: u32) -> Kernel<(Each<u32>, EachOut<u32>)> {
    fn body(_: Group, a: u32, x: &[u32], y: &mut [u32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.wrapping_add(a);
        }
    }
    let kernel = Kernel::new("copy_add", a, (each(4096), each_out(4096)), body);
    // SAFETY: as above.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("glsl/copy_add.spv"))) }
}

/// `y[0] = Σ x`.
#[must_use]
pub(crate) fn sum() -> Kernel<(Whole<u32>, EachOut<u64>)> {
    fn body(_: Group, (): (), x: &[u32], y: &mut [u64]) {
        y[0] = x.iter().map(|x| u64::from(*x)).sum();
    }
    let kernel = Kernel::new("sum", (), (whole(), each_out(1)), body);
    // SAFETY: as above.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("glsl/sum.spv"))) }
}

/// `y[i] = 9`, then panics: what it has written must not be seen.
#[must_use]
pub(crate) fn panics() -> Kernel<(EachMut<u32>,)> {
    fn body(_: Group, (): (), y: &mut [u32]) {
        y.fill(9);
        panic!("as planned");
    }
    Kernel::new("panics", (), (each_mut(4096),), body)
}

/// Three steps of a stencil over two planes of 8 MiB each, which must come out as on one processor.
#[track_caller]
pub(crate) fn stencil_of_16_mib(rt: &Runtime, how: impl std::fmt::Display) {
    let (width, height) = (1024, 2048);
    let mut now = rt.shared_with(width * height, |i| ((i * 7919) % 1000) as f32).unwrap();
    let mut next = rt.shared::<f32>(width * height).unwrap();
    let mut expect = now.to_vec();
    for _ in 0..3 {
        rt.launch(&stencil5(width, 0.2), (&now, &mut next)).unwrap();
        std::mem::swap(&mut now, &mut next);
        expect = reference::stencil5(width, 0.2, &expect);
    }
    now.try_read().unwrap_or_else(|e| panic!("{how}: {e}"));
    let worst = now.iter().zip(&expect).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "{how}: off by {worst}");
}

/// Holds kernels back until the test lets them go; a test has its own as a `static`.
pub(crate) struct Hold {
    entered: AtomicU32,
    open: AtomicBool,
}

impl Hold {
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { entered: AtomicU32::new(0), open: AtomicBool::new(false) }
    }

    /// In a kernel: says that it runs and waits to be let go.
    pub(crate) fn wait(&self) {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let end = Instant::now() + Duration::from_secs(60);
        while !self.open.load(Ordering::SeqCst) && Instant::now() < end {
            std::thread::yield_now();
        }
    }

    pub(crate) fn is_entered(&self) -> bool {
        self.entered.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn entered(&self) {
        eventually("the kernel runs", || self.is_entered());
    }

    pub(crate) fn release(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

// ───────────── child processes ─────────────

const CHILD: &str = "STERNA_TEST_CHILD";

/// Whether this process is the child that [`child`] started for a test.
#[must_use]
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// The test `name` of this file, to be run again as a process of its own.
#[must_use]
pub(crate) fn child(name: &str) -> Command {
    program(std::env::current_exe().expect("this program"), name)
}

/// As [`child`], from a copy of the program.
#[must_use]
pub(crate) fn program(path: impl AsRef<OsStr>, name: &str) -> Command {
    let mut c = Command::new(path);
    c.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, name);
    c
}

/// As [`child`], under limits that the shell sets: `ulimit -v 1000`.
#[must_use]
pub(crate) fn limited(name: &str, limits: &str) -> Command {
    let exe = std::env::current_exe().expect("this program");
    let mut c = Command::new("sh");
    c.arg("-c").arg(format!("{limits}; exec \"$0\" \"$@\"")).arg(exe);
    c.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, name);
    c
}

/// What a process wrote, for messages.
#[must_use]
pub(crate) fn said(o: &Output) -> String {
    format!("{}\n{}{}", o.status, String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// Runs it and fails unless it succeeds.
#[track_caller]
pub(crate) fn succeeds(c: &mut Command) -> String {
    let o = c.output().expect("a child");
    let text = said(&o);
    assert!(o.status.success() && text.contains("1 passed"), "{text}");
    text
}

/// The test again with each mechanism, as a process of its own; `false` in that process.
#[must_use]
pub(crate) fn with_each_mechanism(name: &str) -> bool {
    if is_child() {
        return false;
    }
    if ran_already(name) {
        return true;
    }
    for mechanism in Mechanism::ALL {
        let mut c = child(name);
        let o = c.env("STERNA_HOST_FAULTS", mechanism.to_string()).output().expect("a child");
        let text = said(&o);
        let lacking = text.contains("is not available") || text.contains("Mechanism {");
        assert!(lacking || o.status.success() && text.contains("1 passed"), "{mechanism}: {text}");
    }
    true
}

/// Runs `f` and gives the text of its panic.
#[track_caller]
pub(crate) fn panic_text(f: impl FnOnce()) -> String {
    let e = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).expect_err("a panic");
    e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(ToString::to_string)).expect("a text")
}
