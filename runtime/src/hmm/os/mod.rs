//! The seam to the operating system: thin, typed, and the only place in the engine that calls `libc`.
//!
//! Functions marked *signal-safe* allocate nothing, take no lock and touch no thread-local except `errno`, which handlers save.

mod file;
#[cfg(feature = "planted")]
pub mod inject;
mod mem;
pub(crate) mod processors;
pub(crate) mod uffd;

use std::sync::atomic::AtomicU32;
use std::time::Duration;
use std::{io, ptr};

use sterna_hal::DeviceError;
use sterna_host::sys::no_thread;

use super::schedule;

pub(crate) use file::{FileMap, each_extent, file_bytes, open_flags, tells_cached, tells_holes};
pub(crate) use mem::{
    Mapping, collapse, discard_mapping, extents, forget_memory, guard, has_data, map_over, memory_file, move_over,
    no_huge_pages, populate_read, populate_write, private_memory, protect, punch_hole, read_at, stored, too_many_mappings,
    unguard, unlock, unmap, write_at, zeros_over,
};
pub(crate) use sterna_host::files::{high, space as file_system};
pub(crate) use sterna_host::groups;
pub(crate) use sterna_host::limits::of as process_limit;
pub(crate) use sterna_host::room;
pub(crate) use sterna_host::sys::accept_faults;

/// The error that the last call left. Signal-safe.
pub(crate) fn errno() -> i32 {
    // SAFETY: errno's address is always valid for this thread.
    unsafe { *libc::__errno_location() }
}

/// The kernel's number of this thread. Signal-safe.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Puts an earlier [`errno`] back. Signal-safe.
pub(crate) fn set_errno(value: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value };
}

/// How often a call is made again that signals interrupt, and one that the kernel asks to be made again: a timer may interrupt a long
/// call many times, and what stays busy is refused for good (more would be locked than a limit allows).
const INTERRUPTED: u32 = 10_000;
const BUSY: u32 = 64;

/// Makes a system call, again if the kernel asks for that; its error otherwise. Signal-safe.
pub(crate) fn again(mut call: impl FnMut() -> libc::c_int) -> Result<libc::c_int, i32> {
    let (mut interrupted, mut busy) = (0, 0);
    loop {
        match once(&mut call) {
            Err(libc::EINTR) if interrupted < INTERRUPTED => interrupted += 1,
            Err(libc::EAGAIN) if busy < BUSY => busy += 1,
            result => return result,
        }
    }
}

/// As [`again`], for what has to be done in the end: a system short of memory is asked some more times.
pub(crate) fn in_the_end(mut call: impl FnMut() -> libc::c_int) -> Result<libc::c_int, i32> {
    const TRIES: usize = 8;
    for _ in 1..TRIES {
        match again(&mut call) {
            Err(libc::ENOMEM) => {}
            result => return result,
        }
    }
    again(call)
}

/// Makes a system call. Signal-safe.
pub(crate) fn once(mut call: impl FnMut() -> libc::c_int) -> Result<libc::c_int, i32> {
    #[cfg(feature = "planted")]
    if let Some(code) = inject::CALLS.due() {
        return Err(code);
    }
    let r = call();
    if r < 0 { Err(errno()) } else { Ok(r) }
}

/// Starts a thread of the engine; what helps where it cannot be had.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, DeviceError> {
    // Where a test has it fail; never interrupted.
    if let Err(code) = once(|| 0)
        && code != libc::EINTR
    {
        return Err(no_thread(&io::Error::from_raw_os_error(code)));
    }
    std::thread::Builder::new().name(name.into()).spawn(run).map_err(|e| no_thread(&e))
}

/// A system call's result as a `Result`.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sleeps while `*word == expected`, until woken, interrupted or `timeout` has passed. Signal-safe.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, mut timeout: Option<Duration>) {
    if !schedule::sleeps(word, expected, &mut timeout) {
        futex_sleep(word, expected, timeout);
    }
}

/// As [`futex_wait`], until one of `bits` is woken ([`futex_wake_for`]). Signal-safe.
pub(crate) fn futex_wait_for(word: &AtomicU32, expected: u32, mut timeout: Option<Duration>, bits: u32) {
    if schedule::sleeps(word, expected, &mut timeout) {
        return;
    }
    // This form of the call takes the time at which it ends.
    let end = timeout.map(|t| timespec(Duration::from_nanos(real_ns()).saturating_add(t)));
    let end = end.as_ref().map_or(ptr::null(), ptr::from_ref);
    let (call, none) = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG, ptr::null::<u32>());
    // SAFETY: the word outlives the call; the kernel reads `end` only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), call, expected, end, none, bits) };
}

fn timespec(t: Duration) -> libc::timespec {
    libc::timespec {
        // Its type's name in libc is deprecated for musl; on every 64-bit system it is this one.
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: libc::c_long::from(t.subsec_nanos()),
    }
}

/// As [`futex_wait`], whatever a schedule says.
pub(super) fn futex_sleep(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let ts = timeout.map(timespec);
    let ts = ts.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word outlives the call; the kernel reads `ts` only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, expected, ts) };
}

/// Wakes up to `n` sleepers on `word`. Signal-safe.
pub(crate) fn futex_wake(word: &AtomicU32, n: i32) {
    futex_wake_at(word, n);
}

/// Wakes every sleeper on `word` that waits for one of `bits`, and those that wait for any. Signal-safe.
pub(crate) fn futex_wake_for(word: &AtomicU32, bits: u32) {
    let (call, none) = (libc::FUTEX_WAKE_BITSET | libc::FUTEX_PRIVATE_FLAG, ptr::null::<u32>());
    // SAFETY: the kernel uses the address as a key only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), call, i32::MAX, none, none, bits) };
}

/// As [`futex_wake`], for a word that may be gone: nothing is read there.
pub(crate) fn futex_wake_at(word: *const AtomicU32, n: i32) {
    // SAFETY: the kernel uses the address as a key only.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, n) };
}

/// Nanoseconds on the monotonic clock. Signal-safe.
pub(crate) fn now_ns() -> u64 {
    schedule::clock(real_ns())
}

/// As [`now_ns`], whatever a schedule says.
pub(super) fn real_ns() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `ts` only; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// Whether this thread runs a kernel, which whoever is waited for may be waiting for.
pub(crate) fn in_kernel() -> bool {
    sterna_hal::in_kernel()
}

/// Writes a line to standard error, without its lock: whoever has that may be waiting for us. Signal-safe.
pub(crate) fn say(line: &str) {
    // SAFETY: writes a valid buffer. If it cannot be written there is nobody to be told.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

/// Writes a line to standard error and ends the process. Signal-safe: for what cannot be reported in any other way.
pub(crate) fn die(line: &str) -> ! {
    say(line);
    // SAFETY: does not return.
    unsafe { libc::abort() }
}

/// For the first line of each thread of the engine: signals for the process go to the program's threads. A handler of the
/// program that touches shared memory would otherwise wait for the thread that it interrupted. Signals that say that this
/// thread itself failed stay open.
pub(crate) fn leave_signals_to_the_program() {
    SERVES.with(|s| s.set(true));
    // SAFETY: initialised sets on the stack; changes this thread's mask only.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        for own in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS] {
            libc::sigdelset(&mut set, own);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
    }
}

/// Ends the process when its thread panics: the program would wait for ever for what the thread serves.
pub(crate) struct OrDie;

impl Drop for OrDie {
    fn drop(&mut self) {
        if std::thread::panicking() {
            die("sterna: a thread of the engine has failed; its panic is above\n");
        }
    }
}

thread_local! {
    static SERVES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether this is a thread of the engine, on which somebody may be waiting, or counts as one.
pub(crate) fn serves_faults() -> bool {
    SERVES.with(std::cell::Cell::get)
}
