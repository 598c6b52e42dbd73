//! Signal handlers: SIGBUS for host faults of mechanism `signal`; SIGSEGV for faults of devices in their windows and, with
//! mechanism `guard`, for host faults.
//!
//! **Guarantee.** A signal that is not ours goes to the handler that was there before, with the same arguments. Where there was
//! none, a fault ends the process as it would without us: the default action is put back and the instruction runs again, also
//! where the signal was ignored, which no fault can be. A signal that somebody has sent (`kill`) is no fault, whatever address it
//! seems to name: it does what it did before us, which is nothing where it was ignored. Handlers run with every other signal
//! blocked and restore `errno`.
//!
//! The SIGBUS handler runs on the thread's own stack: the alternate stacks that threads have are small, and a thread that
//! takes a fault has a stack to stand on. The SIGSEGV handler uses the alternate stack, as the standard library's own does, so
//! that stack overflows still reach it; except with mechanism `guard`, where it serves host faults and needs more room: there a
//! stack overflow ends the process without the standard library's message.

use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_hal::Access;

use super::super::addr::Page;
use super::super::os;
use super::super::space::Space;
use super::Mechanism;
use super::fault::{Served, serve};

type Action = libc::sigaction;

// What was installed before us. Each is written once, before its handler is installed; all zero is the default action.
// SAFETY: plain old data for which all bits zero is a value.
static mut BUS: Action = unsafe { std::mem::zeroed() };
// SAFETY: as above.
static mut SEGV: Action = unsafe { std::mem::zeroed() };

fn install(signal: libc::c_int, handler: usize, flags: libc::c_int, previous: *mut Action) -> io::Result<()> {
    // SAFETY: `sigaction` reads and writes the structures given; `previous` is written before the handler can run, and only here.
    unsafe {
        os::check(libc::sigaction(signal, ptr::null(), previous))?;
        let mut action: Action = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | flags;
        libc::sigfillset(&mut action.sa_mask);
        os::check(libc::sigaction(signal, &action, ptr::null_mut()))?;
    }
    Ok(())
}

pub(super) fn install_sigbus() -> io::Result<()> {
    install(libc::SIGBUS, on_sigbus as *const () as usize, 0, &raw mut BUS)
}

/// Installs the SIGSEGV handler, once.
pub(crate) fn install_sigsegv(
    mechanism: Mechanism,
    handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void),
) -> io::Result<()> {
    static ONCE: Once = Once::new();
    let flags = if mechanism == Mechanism::Guard { 0 } else { libc::SA_ONSTACK };
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = install(libc::SIGSEGV, handler as *const () as usize, flags, &raw mut SEGV);
    });
    result
}

/// The address that a fault is about; `None` for a signal that was sent, which has a sender in its place.
///
/// # Safety
/// A handler's own argument.
pub(crate) unsafe fn faulted_at(info: *mut libc::siginfo_t) -> Option<usize> {
    // SAFETY: the kernel hands over a valid siginfo; its own signals have positive codes, and an address.
    unsafe { ((*info).si_code > 0).then(|| (*info).si_addr().addr()) }
}

/// Hands a SIGSEGV that is not ours to whoever had it before.
pub(crate) fn chain_sigsegv(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: written before the handler was installed, never after.
    unsafe { chain(&raw const SEGV, signal, info, context) }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = os::errno();
    // SAFETY: the handler's own argument.
    let at = unsafe { faulted_at(info) };
    let space = Space::existing().filter(|_| !crate::hmm::fork::forked());
    let ours = at.zip(space).is_some_and(|(at, space)| in_window(space, at, wanted(context)));
    if !ours {
        // SAFETY: written before the handler was installed, never after.
        unsafe { chain(&raw const BUS, signal, info, context) }
    }
    os::set_errno(errno);
}

/// The processor's error code for a page fault (Intel SDM vol. 3, 4.7); 0 where it is not known.
fn error_code(context: *mut libc::c_void) -> i64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the third argument of a SA_SIGINFO handler is a ucontext.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = context;
        0
    }
}

/// Whether an instruction was to be fetched: bit 4 (I/D).
pub(crate) fn is_fetch(context: *mut libc::c_void) -> bool {
    error_code(context) & 16 != 0
}

/// Whether the access that faulted was a store, from the processor's error code; `Read` where that is not known: the access
/// then faults a second time, on an entry that forbids stores.
pub(crate) fn wanted(context: *mut libc::c_void) -> Access {
    const WRITE: i64 = 2; // bit 1 (W/R)
    if error_code(context) & WRITE != 0 { Access::ReadWrite } else { Access::Read }
}

/// Serves a touch of window address `at` in the thread that faulted; false if it is not an address of the window, or may not be
/// touched like that. Signal-safe.
pub(crate) fn in_window(space: &'static Space, at: usize, access: Access) -> bool {
    match serve(space, at, access) {
        Served::Mapped => true,
        // The instruction runs again and, if it must, faults again. The timeout is a net under a lost wake-up only, and long: a
        // thousand threads that look again ten times a second leave nothing for the one that serves them.
        Served::Parked(block, epoch) => {
            let p = space.page_at(at).map_or(0, Page::in_block);
            block.wait_for_page(epoch, p, Some(Duration::from_secs(1)));
            true
        }
        Served::Foreign => false,
    }
}

/// A bit for each signal whose previous handler has put the default action in its place since: the standard library's does, for what it
/// takes for no overflow of a stack.
static DEFAULT: AtomicU64 = AtomicU64::new(0);

/// Runs the previous handler for a signal that was sent. If that puts the default action in place, our handler comes back, which has
/// faults to serve still, and the default action is what comes before it from now on.
fn keep_ours(signal: libc::c_int, previous: impl FnOnce()) {
    let action = || {
        // SAFETY: plain old data for which all bits zero is a value.
        let mut now: Action = unsafe { std::mem::zeroed() };
        // SAFETY: writes the structure given, and changes nothing.
        unsafe { libc::sigaction(signal, ptr::null(), &mut now) };
        now
    };
    let ours = action();
    previous();
    if action().sa_sigaction == libc::SIG_DFL && ours.sa_sigaction != libc::SIG_DFL {
        DEFAULT.fetch_or(1 << signal, Ordering::AcqRel);
        // SAFETY: the action that was there a moment ago.
        unsafe { libc::sigaction(signal, &ours, ptr::null_mut()) };
    }
}

/// Calls the previous handler, or has the default action taken, unless what was sent was ignored.
///
/// # Safety
/// `previous` was filled by `install`; the other arguments are a handler's own.
unsafe fn chain(previous: *const Action, signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the caller's.
    let action: Action = unsafe { ptr::read(previous) };
    // SAFETY: the caller's.
    let sent = unsafe { faulted_at(info) }.is_none();
    let reset = DEFAULT.load(Ordering::Acquire) & 1 << signal != 0;
    match if reset { libc::SIG_DFL } else { action.sa_sigaction } {
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: plain old data for which all bits zero is the default action. What was sent is not made again by the
            // instruction: it is sent again, and arrives when this handler, which blocks it, returns.
            unsafe {
                let default: Action = std::mem::zeroed();
                libc::sigaction(signal, &default, ptr::null_mut());
                if sent {
                    libc::raise(signal);
                }
            }
        }
        handler if action.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: a three-argument handler, by its flag.
            let f: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            let call = || f(signal, info, context);
            if sent { keep_ours(signal, call) } else { call() }
        }
        handler => {
            // SAFETY: a one-argument handler, by its flag.
            let f: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            if sent { keep_ours(signal, || f(signal)) } else { f(signal) }
        }
    }
}
