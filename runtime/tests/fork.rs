//! Forked children: shared memory and devices stay with the parent.

mod common;

use common::*;
use std::future::Future as _;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{self, Absent, Access, DevAddr, Device as _, DeviceError};
use sterna::hmm::{Action, Attached, Mirror, MirrorOps, Operand, Page, Pages, PinKind, Prot, Range, Segment, Space};
use sterna::policy::Place;
use sterna::{Error, ForkPolicy, Runtime};

/// Forks; the child runs `f` and ends with what it returns. Gives the wait status.
fn forked(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `f` and leaves by `_exit`, without the parent's destructors; this process is a child of the test
    // with one thread of its own, so that no lock of the program is held across the fork.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::alarm(20);
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(99);
            libc::_exit(code);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}

fn is_forked<T>(r: Result<T, Error>) -> bool {
    matches!(r, Err(Error::Forked))
}

fn in_a_child(name: &str, f: impl FnOnce()) {
    if is_child() {
        f();
    } else {
        succeeds(&mut child(name));
    }
}

#[test]
fn calls_say_so_and_drops_do_nothing() {
    in_a_child("calls_say_so_and_drops_do_nothing", || {
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
            let y = rt.shared_with(300_000, |i| i as u32).unwrap();
            let z = rt.shared_with(10, |_| 1_u32).unwrap();
            let p = rt.launch(&add(1), (&mut x,)).unwrap();
            let guard = y.host(..1000).unwrap();
            p.wait().unwrap();
            let status = forked(|| {
                let dev = rt.devices()[0].clone();
                let calls = [
                    is_forked(rt.shared::<u32>(10)),
                    is_forked(rt.shared_with(10, |i| i as u32)),
                    is_forked(rt.launch(&add(1), (&mut x,))),
                    is_forked(rt.sync()),
                    is_forked(p.wait()),
                    is_forked(p.wait_timeout(std::time::Duration::ZERO)),
                    is_forked(x.try_read()),
                    is_forked(x.host(..)),
                    is_forked(x.host_mut(..)),
                    is_forked(x.fill_with(|_| 1)),
                    is_forked(x.write_from(&vec![0; 300_000])),
                    is_forked(Runtime::new()),
                    is_forked(Runtime::builder().device("cpu:0").build()),
                    !p.is_done(),
                ];
                x.prefetch_to(&dev);
                x.prefetch_to_host();
                let _ = (rt.stats(), x.residency(), x.pages(), x.len(), format!("{x:?} {rt:?} {p:?}"));
                let view = x.range(5..10).map(drop).is_ok();
                drop((guard, dev, p));
                drop((x, z));
                drop(rt);
                let wrong = calls.iter().position(|ok| !ok);
                if view { wrong.map_or(0, |i| i as i32 + 1) } else { 50 }
            });
            assert_eq!(status, 0, "{how}: the child's exit code is {} (signal {})", status >> 8, status & 127);
        }
    });
}

#[test]
fn the_parent_goes_on() {
    in_a_child("the_parent_goes_on", || {
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
            let mut y = rt.shared::<u32>(300_000).unwrap();
            for _ in 0..3 {
                rt.launch(&add(1), (&mut x,)).unwrap(); // perhaps running at the fork
                assert_eq!(forked(|| 7), 7 << 8);
                rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
                x[3] += 0;
            }
            assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 3), "{how}");
            assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 4), "{how}");
            x.fill_with(|_| 1).unwrap();
            drop(y);
            let mut z = rt.shared::<u32>(300_000).unwrap();
            rt.launch(&copy_add(1), (&x, &mut z)).unwrap();
            assert!(z.iter().all(|v| *v == 2), "{how}");
        }
    });
}

#[test]
fn touching_shared_memory_ends_the_child() {
    in_a_child("touching_shared_memory_ends_the_child", || {
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let home = rt.shared_with(300_000, |i| i as u32).unwrap();
            let mut away = rt.shared_with(300_000, |i| i as u32).unwrap();
            rt.launch(&add(1), (&mut away,)).unwrap().wait().unwrap();
            for (what, x) in [("at home", &home), ("away", &away)] {
                let at = x.as_host_ptr();
                let by_handle = forked(|| i32::from(x[5] == 12_345));
                assert_eq!(by_handle & 127, libc::SIGSEGV, "{how}, {what}: {by_handle:#x}");
                // SAFETY: the address of an element; in the child it leads nowhere, which is what is tested.
                let raw = forked(|| i32::from(unsafe { at.read_volatile() } == 12_345));
                assert_eq!(raw & 127, libc::SIGSEGV, "{how}, {what}: {raw:#x}");
            }
            assert_eq!((home[5], away[5]), (5, 6), "{how}");
        }
    });
}

#[test]
fn a_child_may_start_a_program_that_uses_it() {
    in_a_child("a_child_may_start_a_program_that_uses_it", || {
        let rt = runtime(small(8 * MIB));
        let mut x = rt.shared::<u32>(1000).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap();
        if std::env::var_os("STERNA_TEST_NESTED").is_none() {
            let name = "a_child_may_start_a_program_that_uses_it";
            succeeds(child(name).env("STERNA_TEST_NESTED", "1"));
        }
        assert_eq!(x[0], 1);
    });
}

#[test]
fn children_find_what_was_asked_for() {
    in_a_child("children_find_what_was_asked_for", || {
        const N: usize = 300_000;
        for (how, config) in kinds(8 * MIB) {
            let rt = runtime(config);
            let make = || {
                let mut x = rt.shared_with(N, |i| i as u32).unwrap();
                rt.launch(&add(1), (&mut x,)).unwrap(); // perhaps running at the fork
                x
            };
            let (mut kept, mut wiped, none) = (make(), make(), make());
            let copy = kept.cow_clone().unwrap();
            kept.set_fork_policy(ForkPolicy::Preserve).unwrap();
            copy.set_fork_policy(ForkPolicy::Preserve).unwrap();
            wiped.set_fork_policy(ForkPolicy::Wipe).unwrap();
            none.set_fork_policy(ForkPolicy::Preserve).unwrap();
            none.set_fork_policy(ForkPolicy::DontFork).unwrap();
            rt.launch(&add(1), (&mut kept,)).unwrap();
            for round in 0..2_u32 {
                let status = forked(|| {
                    let ok = kept.iter().enumerate().all(|(i, v)| *v == i as u32 + 2 + round);
                    let ok = ok && copy.iter().enumerate().all(|(i, v)| *v == i as u32 + 1);
                    let ok = ok && wiped.iter().all(|v| *v == 0);
                    kept.iter_mut().for_each(|v| *v = 7);
                    wiped[N - 1] = 8;
                    let refused = is_forked(kept.set_fork_policy(ForkPolicy::Wipe)) && is_forked(kept.discard(..));
                    if ok && refused && kept[5] == 7 && wiped[N - 1] == 8 { 0 } else { 1 }
                });
                assert_eq!(status, 0, "{how}, round {round}: exit code {} (signal {})", status >> 8, status & 127);
                // The parent sees nothing of it, and goes on.
                rt.launch(&add(1), (&mut kept,)).unwrap();
                assert!(kept.iter().enumerate().all(|(i, v)| *v == i as u32 + 3 + round), "{how}");
                assert!(wiped.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
                assert!(copy.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
            }
            let status = forked(|| none[5] as i32);
            assert_eq!(status & 127, libc::SIGSEGV, "{how}: nothing was to be there");
            drop((kept, wiped, copy));
            assert_eq!(forked(|| 0), 0);
        }
    });
}

struct Nothing;

impl MirrorOps for Nothing {
    fn update(&self, _: Action, _: &Pages) {}
}

/// What a child is told by every call of a device that it inherited; the number of the first that is wrong.
fn device_is_inert(d: &dyn hal::Device) -> i32 {
    let forked = |r: Result<(), DeviceError>| r == Err(DeviceError::Forked);
    let mut frames = Vec::new();
    let somewhere = hal::DevRange { at: DevAddr(0), bytes: 65536 };
    let launch = hal::Launch { kernel: hal::KernelId(0), grid: [1, 1, 1], groups: hal::Groups::All, args: &[] };
    let ticket = hal::Ticket::new(1, hal::Point { queue: 0, value: 1 });
    // SAFETY: the calls are refused before they look at what they are given.
    let calls = unsafe {
        [
            forked(d.reserve(65536).map(drop)),
            forked(d.alloc(DevAddr(0), 1, &mut frames)),
            forked(d.edit(&[], &[]).map(drop)),
            forked(d.copy(&[], &[]).map(drop)),
            forked(d.submit(&launch, &[]).map(drop)),
            // Around a device that injects failures what is reached is reached.
            matches!(d.wait(ticket.point(), Duration::from_secs(3600)), Err(DeviceError::Forked) | Ok(true)),
            matches!(d.outcome(ticket, &mut Vec::new()), hal::Outcome::Failed(_)),
            d.memory().budget == 0,
        ]
    };
    // SAFETY: does nothing here.
    unsafe {
        d.free(&[hal::Frames { first: 0, grains: 1 }]);
        d.unreserve(somewhere);
    }
    let _ = (d.info(), d.caps(), d.reached(ticket.point()), d.window(), d.frames_base());
    calls.iter().position(|ok| !ok).map_or(0, |i| i as i32 + 1)
}

#[test]
fn a_child_may_drop_devices() {
    in_a_child("a_child_may_drop_devices", || {
        for absent in [Absent::Faults, Absent::Undefined] {
            let config = CpuConfig { absent, ..small(8 * MIB) };
            let unused = CpuDevice::new(0, config.clone()).unwrap();
            let used = Arc::new(CpuDevice::new(1, config.clone()).unwrap());
            let rt = Runtime::builder().open_device(Arc::clone(&used) as _).build().unwrap();
            let mut x = rt.shared_with(MIB, |i| i as u32).unwrap();
            let p = rt.launch(&add(1), (&mut x,)).unwrap(); // perhaps running at the fork
            let status = forked(|| {
                let wrong = device_is_inert(&unused).max(device_is_inert(&*used));
                unused.lose();
                used.lose();
                drop((unused, used));
                drop((p, x, rt));
                // One of its own is as good as any.
                let own = CpuDevice::new(0, config).unwrap();
                let mut frames = Vec::new();
                let ok = own.alloc(DevAddr(0), 1, &mut frames).is_ok() && own.memory().in_use > 0;
                // SAFETY: allocated above, and nobody uses them.
                unsafe { own.free(&frames) };
                drop(own);
                if ok { wrong } else { 50 }
            });
            assert_eq!(status, 0, "{absent:?}: exit code {} (signal {})", status >> 8, status & 127);
        }
    });
}

#[cfg(feature = "vulkan")]
#[test]
fn a_child_may_drop_a_vulkan_device() {
    in_a_child("a_child_may_drop_a_vulkan_device", || {
        for table in vulkan::TABLES {
            let open = || vulkan::vulkan(table, 64 << 20, None);
            let (Ok(device), Ok(unused)) = (open(), open()) else { continue };
            let device: Arc<dyn hal::Device> = Arc::new(device);
            let rt = Runtime::builder().open_device(Arc::clone(&device)).build().unwrap();
            let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
            let p = rt.launch(&add(1), (&mut x,)).unwrap(); // perhaps running at the fork
            let status = forked(|| {
                let wrong = device_is_inert(&*device);
                drop((unused, device));
                drop((p, x, rt));
                let refused = sterna::vulkan::VulkanDevice::open("0", &sterna::vulkan::VulkanConfig::default()).is_err();
                if refused { wrong } else { 50 }
            });
            assert_eq!(status, 0, "{table}: exit code {} (signal {})", status >> 8, status & 127);
        }
    });
}

#[test]
fn a_child_is_told_by_what_drivers_use_and_may_drop_it() {
    in_a_child("a_child_is_told_by_what_drivers_use_and_may_drop_it", || {
        let space = Space::process(None).unwrap();
        for absent in [Absent::Faults, Absent::Undefined] {
            let device = Arc::new(CpuDevice::new(0, CpuConfig { absent, ..small(8 * MIB) }).unwrap());
            let dev = Attached::new(space, device).unwrap();
            let seg = Segment::new(space, MIB as u64).unwrap();
            let mirror = Mirror::register(space, Nothing);
            let mut range = Range::new(&mirror, seg.pages()).unwrap();
            range.fault(true, true).unwrap();
            dev.migrate(&Pages(seg.pages().0.start + 32..seg.pages().0.end)).unwrap();
            let pin = space.pin(&Pages(seg.pages().0.start..seg.pages().0.start + 1), PinKind::Short, true).unwrap();
            let locked = space.lock();
            let status = forked(move || {
                drop(locked);
                drop(space.lock().register(Nothing));
                0
            });
            assert_eq!(status, 0, "{absent:?}, locked: exit code {} (signal {})", status >> 8, status & 127);
            let status = forked(|| {
                let pages = seg.pages();
                let part = |from: u64| Pages(pages.0.start + from..pages.0.start + from + 16);
                let operand = Operand { segment: Arc::clone(&seg), bytes: 0..4096 };
                // SAFETY: the calls are refused; nobody uses the pages.
                let calls = unsafe {
                    [
                        is_forked(Space::process(None)),
                        is_forked(Segment::new(space, 1)),
                        is_forked(Segment::shared(space, 1)),
                        is_forked(Segment::imported(space, &[1])),
                        is_forked(seg.flush()),
                        is_forked(seg.set_fork_policy(ForkPolicy::Wipe)),
                        is_forked(Attached::new(space, Arc::clone(dev.device()))),
                        is_forked(dev.populate(&pages, Access::Read, Place::Migrate, None)),
                        is_forked(dev.mapped(&pages, true)),
                        is_forked(dev.migrate(&pages)),
                        is_forked(dev.migrate_vma(&pages)),
                        is_forked(dev.migrate_home(&pages)),
                        is_forked(dev.snapshot(&pages)),
                        is_forked(dev.make_exclusive(&pages)),
                        is_forked(dev.exclusive(&pages)),
                        is_forked(dev.release_memory()),
                        is_forked(dev.run(&add(1), &[operand], Place::Migrate, None)),
                        is_forked(space.protect(&pages, Prot::Read)),
                        is_forked(space.unmap(&pages)),
                        is_forked(space.discard(&pages)),
                        is_forked(space.map(&pages)),
                        is_forked(space.remap(&part(0), &part(16), true)),
                        is_forked(space.pin(&pages, PinKind::Long, true)),
                        is_forked(Range::new(&mirror, pages.clone())),
                        is_forked(range.fault(false, true)),
                        space.find(Page(pages.0.start)).is_none(),
                        !range.done(),
                    ]
                };
                range.get_pfns();
                seg.prefer_huge();
                mirror.unregister();
                let another = space.lock().register(Nothing);
                drop((another, range, mirror, pin));
                drop(seg);
                drop(dev);
                calls.iter().position(|ok| !ok).map_or(0, |i| i as i32 + 1)
            });
            assert_eq!(status, 0, "{absent:?}: exit code {} (signal {})", status >> 8, status & 127);
        }
    });
}

#[test]
fn a_child_may_drop_every_handle_and_await_a_launch() {
    in_a_child("a_child_may_drop_every_handle_and_await_a_launch", || {
        let rt = runtime(small(8 * MIB));
        let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
        let mut y = rt.shared_with(300_000, |i| i as u32).unwrap();
        let mut p = rt.launch(&add(1), (&mut x,)).unwrap();
        let copy = y.cow_clone().unwrap();
        let half = y.split_off(150_000).unwrap();
        let constant = rt.shared_with(10, |_| 1_u32).unwrap().into_read_only();
        let another = constant.clone();
        let status = forked(|| {
            let on = rt.on(&rt.devices()[0]);
            let poll = std::pin::Pin::new(&mut p).poll(&mut Context::from_waker(Waker::noop()));
            let told = matches!(poll, Poll::Ready(Err(Error::Forked)))
                && is_forked(y.cow_clone())
                && is_forked(on.launch(&add(1), (&mut x,)));
            let memory = rt.devices()[0].memory();
            drop((half, copy, constant, another));
            drop((p, x, y));
            drop(rt);
            if told && memory.budget == 0 { 0 } else { 1 }
        });
        assert_eq!(status, 0, "exit code {} (signal {})", status >> 8, status & 127);
    });
}
