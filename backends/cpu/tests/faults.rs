//! An access to an absent page stops its worker and goes on when the page is there. The handler here stands in for the runtime's.
#![cfg(target_os = "linux")]

mod common;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{LONG, MIB, alloc, at_frame, copy, device, edit, ended, outcome, submit};
use sterna_cpu::{CpuConfig, CpuDevice};
use sterna_hal::kernel::{Group, Kernel, each, each_mut};
use sterna_hal::{Access, CopyEnd, DevAddr, DevRange, Device, DeviceError, HostAt, KernelError, Outcome, Target};

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
        while !device.reached(ticket.point()) {
            assert!(start.elapsed() < LONG, "stuck after {} faults", served.len());
            let mut news = 0;
            for (slot, at) in stopped_in(&device) {
                let base = at & !(grain - 1);
                // Another worker may have asked for the same grain, just before.
                if !served.iter().any(|(b, _)| *b == base) {
                    let frame = alloc(&device, 1).unwrap()[0];
                    let value: u64 = if (x.at.0..x.end().0).contains(&base) { 7 } else { 0 };
                    // The bytes go in by way of the base mapping before the entry is made.
                    let clear = copy(&device, CopyEnd::Zero, at_frame(frame.first), grain).unwrap();
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

/// Fails if the loss comes while a kernel stands at a page that it has not got yet: then nobody could give it the page.
#[test]
fn a_loss_waits_for_a_kernel_that_stands_at_an_absent_page() {
    let device = device(CpuConfig { memory: 4 * MIB, workers: 2, ..CpuConfig::default() });
    watch(&device);
    let y = device.reserve(MIB).unwrap();
    let kernel = Kernel::new("add", (), (each::<u64>(64), each_mut::<u64>(64)), add);
    let ticket = submit(&device, &kernel, 100, &[y, y], &[]).unwrap();
    let queued = submit(&device, &kernel, 100, &[y, y], &[]).unwrap();
    let start = Instant::now();
    while stopped_in(&device).next().is_none() {
        assert!(start.elapsed() < LONG, "nobody faulted");
    }
    assert_eq!(device.wait(ticket.point(), Duration::from_millis(5)), Ok(false));
    device.inject().lose();
    assert!(!device.inject().is_lost(), "a kernel is running");
    assert_eq!(device.wait(queued.point(), Duration::from_millis(5)), Ok(false));
    // Somebody waits meanwhile, and is told.
    std::thread::scope(|s| {
        let waiter = s.spawn(|| device.wait(queued.point(), LONG));
        let grain = device.caps().grain;
        while !device.inject().is_lost() {
            let stopped: Vec<_> = stopped_in(&device).collect();
            for (slot, at) in stopped {
                let base = DevAddr(at / grain * grain);
                let frame = alloc(&device, 1).expect("what a running kernel needs is still given");
                let range = DevRange { at: base, bytes: grain };
                edit(&device, range, Target::Frames { first: frame[0].first }, Access::ReadWrite).unwrap();
                slot.store(0, SeqCst);
            }
            assert!(start.elapsed() < LONG, "the loss does not come");
        }
        // Its point may be reached by then: it ended as lost.
        let told = waiter.join().unwrap();
        assert!(matches!(told, Ok(true) | Err(DeviceError::Lost(_))), "{told:?}");
    });
    while !device.reached(queued.point()) {
        assert!(start.elapsed() < LONG, "the launches did not end");
    }
    for t in [ticket, queued] {
        assert!(matches!(outcome(&device, t), Outcome::Failed(KernelError::Lost(_))));
    }
}

/// Fails if what a kernel reads through a reference changes at the loss of its device.
#[test]
fn what_a_running_kernel_reads_stays_when_its_device_is_lost() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    fn stare(_: Group, _: (), x: &[u64], _: &mut [u64]) {
        let (first, start) = (x[0], Instant::now());
        SEEN.store(1, SeqCst);
        while start.elapsed() < Duration::from_millis(200) {
            if std::hint::black_box(x)[0] != first {
                SEEN.store(2, SeqCst);
            }
        }
    }
    let host = sterna_host::testing::Host::new(4 * MIB);
    for map_host in [false, true] {
        SEEN.store(0, SeqCst);
        let device = device(CpuConfig { memory: 4 * MIB, workers: 2, map_host, ..CpuConfig::default() });
        let (region, frames) = (host.attach(&device), alloc(&device, 16).unwrap());
        let x = device.reserve(MIB).unwrap();
        let here = HostAt { region, offset: 0 };
        let target = if map_host { Target::Host(here) } else { Target::Frames { first: frames[0].first } };
        edit(&device, x, target, Access::ReadWrite).unwrap();
        let kernel = Kernel::new("stare", (), (each::<u64>(64), each_mut::<u64>(64)), stare);
        let ticket = submit(&device, &kernel, 1, &[x.part(0, 512), x.part(4096, 512)], &[]).unwrap();
        while SEEN.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        device.lose();
        let told = device.wait(ticket.point(), LONG);
        assert!(matches!(told, Ok(true) | Err(DeviceError::Lost(_))), "{told:?}");
        assert_eq!(SEEN.load(SeqCst), 1, "an element changed under `&[u64]`");
        while !device.reached(ticket.point()) {
            std::thread::yield_now();
        }
        assert!(matches!(outcome(&device, ticket), Outcome::Failed(KernelError::Lost(_))));
    }
}
