//! One round: six writers, two devices and two movers, whose elements lie between each other on the same pages.

use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal;
use sterna::hmm::{Action, Attached, Mirror, MirrorOps, Pages, PinKind, Range};
use sterna::{Advice, Device, Location, Mechanism, Runtime, ViewMut};

use crate::comers;
use crate::support::{Random, tick};

const WRITERS: usize = 6;
const DEVICES: usize = 2;
const MOVERS: usize = 2;
const ROLES: usize = WRITERS + DEVICES + MOVERS;
/// Several, so that some are in use by a launch and some are not: pages come home in different ways then. Each is a few
/// grains: what travels is what is fought over.
const ALLOCATIONS: usize = 12;

/// What a round did.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) increments: u64,
    pub(crate) syscalls: u64,
    pub(crate) launches: u64,
    pub(crate) pages_moved: u64,
    pub(crate) host_faults: u64,
    pub(crate) device_faults: u64,
    pub(crate) evictions: u64,
    pub(crate) looked_up: u64,
    pub(crate) pinned: u64,
    pub(crate) advised: u64,
    pub(crate) comers: u64,
    pub(crate) lost: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, o: Self) {
        self.increments += o.increments;
        self.syscalls += o.syscalls;
        self.launches += o.launches;
        self.pages_moved += o.pages_moved;
        self.host_faults += o.host_faults;
        self.device_faults += o.device_faults;
        self.evictions += o.evictions;
        self.looked_up += o.looked_up;
        self.pinned += o.pinned;
        self.advised += o.advised;
        self.comers += o.comers;
        self.lost += o.lost;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            increments,
            syscalls,
            launches,
            pages_moved,
            host_faults,
            device_faults,
            evictions,
            looked_up,
            pinned,
            advised,
            comers,
            lost,
        } = self;
        write!(
            f,
            "{increments} increments, {syscalls} of them by system calls, {launches} launches, {pages_moved} pages moved, \
             {host_faults} host faults, {device_faults} device faults, {evictions} evictions, {looked_up} look-ups, {pinned} pins, {advised} hints, {comers} allocations that came and went, {lost} lost"
        )
    }
}

type Views<'a> = Vec<ViewMut<'a, u64>>;

/// What a round is like.
pub(crate) struct Setting {
    pub(crate) policy: &'static str,
    pub(crate) devices: [Arc<dyn hal::Device>; DEVICES],
    /// Of an allocation.
    pub(crate) bytes: usize,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = |d: &Arc<dyn hal::Device>| {
            let (memory, grain) = (d.memory().budget >> 10, d.caps().grain >> 10);
            format!("{} ({memory} KiB in grains of {grain})", d.info().id)
        };
        let [a, b] = &self.devices;
        write!(f, "{} {} and {}, allocations of {} KiB", self.policy, device(a), device(b), self.bytes >> 10)
    }
}

/// Runs a round of `time` and compares every element at its end.
pub(crate) fn round(m: Mechanism, setting: Setting, time: Duration, seed: u64) -> Tally {
    let Setting { policy, devices, bytes } = setting;
    let grain = devices.iter().map(|d| d.caps().grain).max().unwrap_or(4096) as usize;
    let named = Runtime::builder().policy(policy).unwrap();
    let rt = devices.into_iter().fold(named, sterna::Builder::open_device).build().unwrap();
    // Views of 800 bytes, so that pages are shared and elements straddle nothing; without faults views are whole grains.
    let (bytes, per_view) = match m {
        Mechanism::None => (grain * ROLES * 4, grain / 8),
        _ => (bytes, 100),
    };
    let mut all: Vec<_> = (0..ALLOCATIONS).map(|_| rt.shared::<u64>(bytes / 8).unwrap()).collect();
    let mut roles: Vec<Views<'_>> = (0..ROLES).map(|_| Vec::new()).collect();
    for (i, v) in all.iter_mut().flat_map(|a| a.chunks_mut(per_view)).enumerate() {
        roles[i % ROLES].push(v);
    }
    let stop = &AtomicBool::new(false);
    let devices = rt.devices();
    let mut tally = Tally::default();
    std::thread::scope(|s| {
        let (rt, devices) = (&rt, &devices);
        let mut threads = Vec::new();
        for (role, views) in roles.into_iter().enumerate() {
            let random = Random::new(seed * 64 + role as u64);
            let name = format!("role{role}");
            let work = move || match role {
                0..WRITERS => write(views, stop, random, m == Mechanism::Transparent),
                r if r < WRITERS + DEVICES => launch(rt, &devices[r - WRITERS], views, stop, random),
                _ => shove(rt, devices, m, &views, stop, random),
            };
            threads.push(std::thread::Builder::new().name(name).spawn_scoped(s, work).unwrap());
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for t in threads {
            tally += t.join().unwrap();
        }
    });
    rt.sync().unwrap();
    for d in &rt.stats().devices {
        tally.pages_moved += (d.to_device.total() + d.to_host.total()) / 4096;
        tally.host_faults += d.host_faults;
        tally.device_faults += d.device_faults;
        tally.evictions += d.evictions;
    }
    tally
}

/// A host thread: adds one to elements of its own, and knows what each must be.
fn write(mut views: Views<'_>, stop: &AtomicBool, mut random: Random, syscalls: bool) -> Tally {
    let mut expected: Vec<Vec<u64>> = views.iter().map(|v| vec![0; v.len()]).collect();
    let mut t = Tally::default();
    let pipe = Pipe::new();
    while !stop.load(Ordering::Relaxed) {
        let n = random.below(views.len());
        let view: &mut [u64] = &mut views[n];
        for _ in 0..16 {
            let j = random.below(view.len());
            let (at, expected) = (&raw mut view[j], &mut expected[n][j]);
            if syscalls && random.below(30) == 0 {
                t.syscalls += 1;
                *expected = pipe.add_one(at, *expected, &mut t.lost);
            } else {
                // SAFETY: an element of this thread's view. Volatile, so that each is a load and a store of its own.
                unsafe {
                    let now = at.read_volatile();
                    t.lost += now.abs_diff(*expected);
                    at.write_volatile(now + 1);
                    *expected = now + 1;
                }
            }
            t.increments += 1;
        }
    }
    for (view, expected) in views.iter().zip(&expected) {
        t.lost += view.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).sum::<u64>();
    }
    tell("the host", t.lost);
    t
}

/// Says whose stores were lost.
fn tell(whose: &str, lost: u64) {
    if lost > 0 {
        println!("{lost} stores of {whose}");
    }
}

/// The kernel as a reader and writer of shared memory.
struct Pipe([libc::c_int; 2]);

impl Pipe {
    fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: fills the two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        Self(ends)
    }

    /// Adds one to `*at`: the kernel reads it, and the kernel writes it.
    fn add_one(&self, at: *mut u64, expected: u64, lost: &mut u64) -> u64 {
        let mut now = 0_u64;
        // SAFETY: all are 8 bytes that this thread may read or write; the pipe is empty before and after.
        unsafe {
            assert_eq!(libc::write(self.0[1], at.cast(), 8), 8, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::read(self.0[0], (&raw mut now).cast(), 8), 8);
            *lost += now.abs_diff(expected);
            now += 1;
            assert_eq!(libc::write(self.0[1], (&raw const now).cast(), 8), 8);
            assert_eq!(libc::read(self.0[0], at.cast(), 8), 8, "{}", std::io::Error::last_os_error());
        }
        now
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for fd in self.0 {
            // SAFETY: our own descriptors.
            unsafe { libc::close(fd) };
        }
    }
}

/// A device: adds one to every element of its views, by launches.
fn launch(rt: &Runtime, device: &Device, mut views: Views<'_>, stop: &AtomicBool, mut random: Random) -> Tally {
    let mut count = vec![0_u64; views.len()];
    let mut t = Tally::default();
    let kernel = tick(32);
    while !stop.load(Ordering::Relaxed) {
        let mut last = None;
        for _ in 0..4 {
            let n = random.below(views.len());
            last = Some(rt.on(device).launch(&kernel, (&mut views[n],)).unwrap());
            count[n] += 1;
            t.launches += 1;
        }
        if let Some(p) = last {
            p.wait().unwrap();
        }
    }
    for (view, count) in views.iter().zip(&count) {
        t.lost += view.iter().map(|v| v.abs_diff(*count)).sum::<u64>();
    }
    tell("a device", t.lost);
    t
}

/// A driver without a page table: what it looks up is all that it wants.
struct Looks;

impl MirrorOps for Looks {
    fn update(&self, _: Action, _: &Pages) {}
}

/// Moves pages about, by views that nobody writes: hints of every kind, guards, look-ups of a driver, pins, and allocations that come and go.
fn shove(rt: &Runtime, devices: &[Device], m: Mechanism, views: &Views<'_>, stop: &AtomicBool, mut random: Random) -> Tally {
    let mirror = Mirror::register(rt.space(), Looks);
    let other = CpuDevice::new(9, CpuConfig { memory: 16 << 20, workers: 1, ..CpuConfig::default() }).unwrap();
    let taker = Attached::new(rt.space(), Arc::new(other)).unwrap();
    // Where some device cannot use host pages in place, a page that is kept at home fails a launch.
    let keeps = devices.iter().all(|d| d.caps().map_host);
    let mut t = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..4 {
            let view = &views[random.below(views.len())];
            let device = &devices[random.below(devices.len())];
            match random.below(14) {
                0 | 1 => view.prefetch_to_host(),
                2..7 => view.prefetch_to(device),
                7 if keeps => t.lost += view.host(..).unwrap().iter().sum::<u64>(),
                8 => {
                    // Overtaken again and again, or busy: both are answers.
                    if let Ok(mut range) = Range::new(&mirror, view.pages()) {
                        let _ = range.fault(random.below(2) == 0, random.below(2) == 0);
                        t.looked_up += u64::from(range.done());
                    }
                }
                9 if keeps => t.pinned += u64::from(rt.space().pin(&view.pages(), PinKind::Short, false).is_ok()),
                10 => {
                    t.lost += comers::one(rt, device, &taker, m, &mut random);
                    t.comers += 1;
                }
                11 | 12 => {
                    let advice = match random.below(4) {
                        0 => Advice::AccessedBy(device.clone()),
                        1 => Advice::PreferredLocation(Location::Host),
                        _ => Advice::ReadMostly,
                    };
                    // Taken back as often as not: what is advised in one way for long is left alone.
                    if random.below(2) == 0 {
                        view.advise(advice)
                    } else {
                        view.unadvise(advice)
                    }
                    t.advised += 1;
                }
                _ => {}
            }
        }
        rt.sync().unwrap();
    }
    let written = views.iter().flat_map(|v| v.iter()).filter(|v| **v != 0).count() as u64;
    tell("somebody, in pages that nobody writes,", written);
    t.lost += written;
    t
}
