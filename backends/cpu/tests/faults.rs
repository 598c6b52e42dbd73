//! An access to an absent page stops its worker and goes on when the page is there. The handler here stands in for the runtime's.
#![cfg(target_os = "linux")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{LONG, MIB, alloc, at_frame, copy, device, edit, ended, submit};
use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::kernel::{Group, Kernel, each, each_mut};
use sterna_hal::{Access, Device, KernelError, Outcome, Place, Target};

const SLOTS: usize = 16;
/// Addresses at which threads stand; 0 is free. A thread goes on when its slot is cleared.
static STOPPED: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
/// Start and end of the windows of the devices under test; faults elsewhere are real crashes.
static WINDOWS: [[AtomicUsize; 2]; 4] = [const { [const { AtomicUsize::new(0) }; 2] }; 4];

extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo of a SIGSEGV.
    let at = unsafe { (*info).si_addr() } as usize;
    if !WINDOWS.iter().any(|[start, end]| (start.load(SeqCst)..end.load(SeqCst)).contains(&at)) {
        // SAFETY: restores the default action, so that the access crashes when it is repeated.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        return;
    }
    let slot = loop {
        if let Some(s) = STOPPED.iter().find(|s| s.compare_exchange(0, at, SeqCst, SeqCst).is_ok()) {
            break s;
        }
    };
    while slot.load(SeqCst) == at {
        // SAFETY: async-signal-safe, no memory involved.
        unsafe { libc::usleep(20) };
    }
}

fn watch(device: &CpuDevice) {
    let window = device.window().expect("a device that faults");
    let free = WINDOWS.iter().find(|w| w[0].compare_exchange(0, window.start, SeqCst, SeqCst).is_ok()).expect("room");
    free[1].store(window.end, SeqCst);
    // SAFETY: a handler that does nothing but atomics and sleeping, on the alternate stack that std gives each thread.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
    }
}

fn stopped_in(device: &CpuDevice) -> impl Iterator<Item = (&'static AtomicUsize, u64)> {
    let window = device.window().unwrap();
    STOPPED.iter().map(|s| (s, s.load(SeqCst))).filter(move |(_, at)| window.contains(at)).map(|(s, at)| (s, at as u64))
}

fn add(group: Group, _: (), x: &[u64], y: &mut [u64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x + group.index() as u64);
}

#[test]
fn a_kernel_runs_over_pages_that_come_when_they_are_touched() {
    for grain in [4 << 10, 64 << 10, 2 << 20] {
        let device = device(CpuConfig { memory: 64 * MIB, workers: 4, grain, ..CpuConfig::default() });
        watch(&device);
        let bytes = (32 * grain).min(16 * MIB);
        let (x, y) = (device.reserve(bytes).unwrap(), device.reserve(bytes).unwrap());
        let n = bytes / 8;
        // Groups straddle grains.
        let chunk = 700;
        let kernel = Kernel::new("add", (), (each::<u64>(chunk), each_mut::<u64>(chunk)), add);
        let groups = n.div_ceil(chunk as u64) as u32;
        let ticket = submit(&device, &kernel, groups, &[x, y], &[]).unwrap();
        let mut served = Vec::new();
        let start = Instant::now();
        while !device.reached(ticket.point) {
            assert!(start.elapsed() < LONG, "stuck after {} faults", served.len());
            let mut news = 0;
            for (slot, at) in stopped_in(&device) {
                let base = at & !(grain - 1);
                // Another worker may have asked for the same grain, just before.
                if !served.iter().any(|(b, _)| *b == base) {
                    let frame = alloc(&device, 1).unwrap()[0];
                    let value: u64 = if (x.at.0..x.end().0).contains(&base) { 7 } else { 0 };
                    // The bytes go in by way of the base mapping before the entry is made.
                    let clear = copy(&device, Place::Zero, at_frame(frame.first), grain).unwrap();
                    assert_eq!(device.wait(clear, LONG), Ok(true));
                    let to = device.frames_base().unwrap().as_ptr() as usize + frame.first as usize * grain as usize;
                    for i in 0..(grain / 8) as usize {
                        // SAFETY: a frame that nobody else has.
                        unsafe { (to as *mut u64).add(i).write(value) };
                    }
                    let range = sterna_hal::DevRange { at: sterna_hal::DevAddr(base), bytes: grain };
                    let access = if value == 7 { Access::Read } else { Access::ReadWrite };
                    edit(&device, range, Target::Frames { first: frame.first }, access).unwrap();
                    served.push((base, frame));
                }
                slot.store(0, SeqCst);
                news += 1;
            }
            if news == 0 {
                std::thread::sleep(Duration::from_micros(10));
            }
        }
        assert!(matches!(ended(&device, ticket), Outcome::Done));
        assert_eq!(served.len() as u64, 2 * bytes / grain, "each grain faulted once");
        // SAFETY: mapped, the launch has ended.
        let result = unsafe { std::slice::from_raw_parts(y.at.0 as *const u64, n as usize) };
        for (i, v) in result.iter().enumerate() {
            assert_eq!(*v, 7 + (i / chunk) as u64, "element {i}, grain {grain}");
        }
    }
}

#[test]
fn a_kernel_that_stands_at_an_absent_page_can_go_on_after_a_loss() {
    let device = device(CpuConfig { memory: MIB, workers: 2, ..CpuConfig::default() });
    watch(&device);
    let y = device.reserve(MIB).unwrap();
    let kernel = Kernel::new("add", (), (each::<u64>(64), each_mut::<u64>(64)), add);
    let ticket = submit(&device, &kernel, 100, &[y, y], &[]).unwrap();
    let queued = submit(&device, &kernel, 100, &[y, y], &[]).unwrap();
    let start = Instant::now();
    while stopped_in(&device).next().is_none() {
        assert!(start.elapsed() < LONG, "nobody faulted");
    }
    assert_eq!(device.wait(ticket.point, Duration::from_millis(5)), Ok(false));
    // Somebody waits meanwhile, and is told.
    let told = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            assert!(device.wait(queued.point, LONG).is_err());
            told.store(true, SeqCst);
        });
        std::thread::sleep(Duration::from_millis(5));
        device.inject().lose();
    });
    assert!(told.load(SeqCst));
    let start = Instant::now();
    while !device.reached(queued.point) {
        stopped_in(&device).for_each(|(slot, _)| slot.store(0, SeqCst));
        assert!(start.elapsed() < LONG, "the kernel did not end");
        std::thread::sleep(Duration::from_micros(100));
    }
    for t in [ticket, queued] {
        assert!(matches!(device.outcome(t, &mut Vec::new()), Outcome::Failed(KernelError::Lost(_))));
    }
}
