//! Programs of public operations against plain vectors: the operations, and what they must do. Who makes programs of them is
//! not its business: property tests do, and fuzzing does.

mod danger;
mod drops;
mod files;
mod loss;
mod program;

use std::ops::Range;
use std::sync::Arc;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Absent, Caps, DevAddr, Device as _, Frames, Injected};
use sterna::kernels::fill;
use sterna::{Advice, Device, Error, ForkPolicy, Location, Runtime, Shared};

use crate::common::*;
use danger::Danger;
pub(crate) use program::Program;

/// One call, or a few that belong together. Numbers that name nothing make it do nothing: every program is a valid one.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Allocate {
        pages: usize,
        odd: usize,
    },
    Drop(usize),
    Read {
        of: usize,
        at: u16,
        len: u16,
    },
    Write {
        of: usize,
        at: u16,
        len: u16,
        value: u32,
    },
    Fill {
        of: usize,
        dev: usize,
        at: u16,
        len: u16,
        value: u32,
    },
    Add {
        of: usize,
        dev: usize,
        at: u16,
        len: u16,
        value: u32,
    },
    AddChunks {
        of: usize,
        chunk: usize,
        value: u32,
    },
    Copy {
        from: usize,
        to: usize,
        dev: usize,
        value: u32,
    },
    ToDevice {
        of: usize,
        dev: usize,
    },
    ToHost(usize),
    GuardRead {
        of: usize,
        at: u16,
        len: u16,
    },
    GuardWrite {
        of: usize,
        at: u16,
        len: u16,
        value: u32,
    },
    Replace {
        of: usize,
        at: u16,
        len: u16,
        value: u32,
    },
    BesideGuard {
        of: usize,
        dev: usize,
        at: u16,
        value: u32,
    },
    Discard {
        of: usize,
        at: u16,
        len: u16,
    },
    Truncate {
        of: usize,
        at: u16,
    },
    Split {
        of: usize,
        at: u16,
    },
    Clone {
        of: usize,
    },
    Map {
        of: usize,
    },
    Advise {
        of: usize,
        dev: usize,
        at: u16,
        len: u16,
        what: usize,
    },
    /// Two handles to read by: a launch and a thread do, at once.
    ReadOnly {
        of: usize,
        dev: usize,
    },
    /// A file with the same contents, read.
    ReadFile {
        of: usize,
    },
    /// A file with the same contents, and a segment that begins at any byte of it or behind its end.
    FileFrom {
        of: usize,
        at: u16,
        bytes: usize,
        shared: bool,
    },
    /// A kernel drops the last handle, perhaps that of its own argument.
    DropInKernel {
        of: usize,
        dev: usize,
        own: bool,
    },
    /// What a forked child finds: nothing, the same, or zeros.
    ForkPolicy {
        of: usize,
        what: usize,
    },
    /// Forks a child that looks, and drops every handle.
    Fork,
    /// How much of its memory a device has left, out of 256: somebody else takes the rest, as far as it is free.
    Budget {
        dev: usize,
        left: u8,
    },
    /// The device is gone. What it may have taken along is found out, and written anew.
    Lose {
        dev: usize,
    },
    Sync,
}

/// Shared allocations beside plain vectors that must hold the same.
pub(crate) struct World {
    rt: Runtime,
    all: Vec<Both>,
    below: [Arc<Injected>; 2],
    /// Frames that somebody else has; `None` where another world sees to that.
    taken: Option<[Vec<Frames>; 2]>,
    danger: Danger,
    /// What kernels were given to drop.
    keys: Vec<u32>,
    /// Elements between the borders of views that a launch may have: whole grains where host faults are not served.
    unit: usize,
    /// Other threads run programs of their own on the same devices.
    crowded: bool,
}

/// An allocation, and what it must hold.
struct Both {
    x: Shared<u32>,
    v: Vec<u32>,
    fork: ForkPolicy,
}

impl Both {
    fn new(x: Shared<u32>, v: Vec<u32>) -> Self {
        Self { x, v, fork: ForkPolicy::DontFork }
    }

    /// Where elements are.
    fn at(&self, r: &Range<usize>) -> Range<usize> {
        let base = self.x.as_host_ptr().addr();
        base + r.start * 4..base + r.end * 4
    }
}

/// Number of the first device with the least memory that it may have: one for each of [`least`].
pub(crate) const LEAST: usize = 50;

/// Devices of which each has as little memory as it may, or, where an absent page is a crash, little more than one launch needs.
fn least() -> [CpuConfig; 5] {
    let least = |config: CpuConfig| {
        let frames = device(config.clone()).caps().min_frames;
        CpuConfig { memory: u64::from(frames) * config.grain, ..config }
    };
    let pages = CpuConfig { grain: 4096, ..small(MIB) };
    [
        least(pages.clone()),
        least(small(MIB)),
        CpuConfig { grain: 4096, ..rigid(2 * MIB) },
        least(CpuConfig { map_host: false, host_readable: false, ..pages.clone() }),
        least(CpuConfig { coherent: true, ..pages }),
    ]
}

/// Number of the first Vulkan device: one for each of the [`TABLES`](vulkan::TABLES).
pub(crate) const VULKAN: usize = 100;

/// The device with this number: one of the [`kinds`], one with the [`least`] memory, or a Vulkan
/// device.
///
/// # Errors
/// What is not there.
pub(crate) fn open(number: usize) -> Result<Injected, String> {
    const MEMORY: usize = 4 * MIB;
    match number.checked_sub(VULKAN) {
        Some(table) => vulkan::vulkan(vulkan::TABLES[table], MEMORY as u64, None),
        None => {
            let config = number.checked_sub(LEAST).map_or_else(|| kinds(MEMORY)[number].1.clone(), |n| least()[n].clone());
            Ok(Injected::new(device(config), |d: &CpuDevice| d.inject().lose()))
        }
    }
}

/// A part of `0..n`: where it begins and how long it is, out of 65536.
fn part(n: usize, at: u16, len: u16) -> Range<usize> {
    let start = n * usize::from(at) / 65536;
    start..start + (n - start) * (usize::from(len) + 1) / 65536
}

#[track_caller]
fn same(x: &[u32], v: &[u32], r: &Range<usize>) {
    let wrong = x.iter().zip(v).position(|(x, v)| x != v);
    let wrong = wrong.map(|i| (r.start + i, x[i], v[i]));
    assert_eq!(wrong, None, "element, what it is, what it should be, in {r:?}");
}

impl World {
    /// As [`part`], with borders that a launch may have, and not empty.
    fn launched(&self, n: usize, at: u16, len: u16) -> Option<Range<usize>> {
        let r = part(n, at, len);
        let end = if r.end == n { n } else { r.end / self.unit * self.unit };
        let start = r.start / self.unit * self.unit;
        (start < end).then_some(start..end)
    }

    /// Over two devices by their numbers, with two allocations.
    pub(crate) fn new(policy: &str, devices: [usize; 2], crowded: bool) -> Self {
        let below = devices.map(|i| Arc::new(open(i).expect("a device")));
        let open = |i: usize| Arc::clone(&below[i]) as Arc<dyn sterna::hal::Device>;
        let b = Runtime::builder().open_device(open(0)).open_device(open(1));
        let rt = b.policy(policy).unwrap().build().unwrap();
        let grain = rt.devices().iter().map(|d| d.caps().grain).max().unwrap() as usize / 4;
        let unit = if faults(&rt) { 1 } else { grain };
        Self {
            rt,
            all: Vec::new(),
            below,
            taken: Some(Default::default()),
            danger: Danger::default(),
            keys: Vec::new(),
            unit,
            crowded,
        }
        .furnished()
    }

    /// On the same runtime, for another thread.
    pub(crate) fn beside(&self) -> Self {
        let (rt, below) = (self.rt.clone(), self.below.clone());
        let (taken, danger, keys) = (None, Danger::default(), Vec::new());
        Self { rt, all: Vec::new(), below, taken, danger, keys, unit: self.unit, crowded: true }.furnished()
    }

    fn furnished(mut self) -> Self {
        self.run(&Op::Allocate { pages: 40, odd: 1 });
        self.run(&Op::Allocate { pages: 200, odd: 3 });
        self
    }

    /// Compares everything, then waits for everything.
    pub(crate) fn check(&self) {
        for b in &self.all {
            same(&b.x, &b.v, &(0..b.v.len()));
        }
        self.sync();
        if !self.below.iter().any(|d| d.is_lost()) {
            assert_eq!(drops::take_back(&self.keys).len(), 0, "kernels have not dropped what they were given");
        }
    }

    /// Whether a device has no more memory than its faults need.
    fn is_least(&self, dev: usize) -> bool {
        let (caps, memory) = (self.below[dev].caps(), self.below[dev].memory());
        memory.budget / caps.grain <= u64::from(caps.min_frames)
    }

    fn sync(&self) {
        while let Err(e) = self.rt.sync() {
            // What another thread asked for beside a guard, and will be told as well.
            let least = (0..self.below.len()).any(|dev| self.is_least(dev));
            assert!(self.crowded && least && matches!(e, Error::Pinned), "{e:?}");
        }
    }

    /// A device, or the other if it is lost.
    fn device(&self, dev: usize) -> (usize, Device) {
        let dev = if self.below[dev].is_lost() { 1 - dev } else { dev };
        (dev, self.rt.devices()[dev].clone())
    }

    /// Notes that a launch on `dev` may write elements.
    fn written(&mut self, dev: usize, of: usize, r: &Range<usize>) {
        // Where the device takes pages by itself, those around them come along.
        let Caps { absent, grain, .. } = *self.below[dev].caps();
        let grain = if absent == Absent::Faults { 2 * MIB } else { grain as usize };
        self.danger.written(dev, &self.all[of].at(r), grain);
    }

    /// Notes that the host has read or written elements, or replaced them.
    fn touched(&mut self, of: usize, r: &Range<usize>) {
        // The memory of a coherent device is used where it is.
        if !self.below.iter().any(|d| d.caps().coherent) {
            self.danger.home(&self.all[of].at(r));
        }
    }

    /// Puts an allocation with the others, or in the place of one.
    fn keep(&mut self, near: usize, both: Both) {
        if self.all.len() < 4 { self.all.push(both) } else { self.all[(near + 1) % 4] = both }
    }

    /// Takes back what somebody else had of a device's memory, then has somebody take all but `left` bytes, as far as it is free.
    fn budget(&mut self, dev: usize, left: u64) {
        let Some(taken) = &mut self.taken else { return };
        let (device, taken) = (&self.below[dev], &mut taken[dev]);
        if device.caps().placed {
            return; // its memory goes with its addresses
        }
        // SAFETY: allocated below, and used by nobody.
        unsafe { device.free(&std::mem::take(taken)) };
        let grain = device.caps().grain;
        let mut want = (device.memory().budget.saturating_sub(left) / grain) as u32;
        while want > 0 && !device.is_lost() {
            if device.alloc(DevAddr(0), want, taken).is_err() {
                want /= 2;
            } else {
                break;
            }
        }
    }

    pub(crate) fn run(&mut self, op: &Op) {
        let n = |of: usize| self.all.get(of).map_or(0, |a| a.v.len());
        match *op {
            Op::Allocate { pages, odd } if self.all.len() < 4 => {
                let n = pages * PAGE_ELEMS - odd.min(pages * PAGE_ELEMS - 1);
                let (x, v) = if odd % 2 == 0 {
                    (self.rt.shared(n).unwrap(), vec![0; n])
                } else {
                    (self.rt.shared_with(n, |i| i as u32).unwrap(), (0..n as u32).collect())
                };
                self.all.push(Both::new(x, v));
                self.touched(self.all.len() - 1, &(0..n));
            }
            Op::Drop(of) if of < self.all.len() => drop(self.all.swap_remove(of)),
            Op::Read { of, at, len } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let Both { x, v, .. } = &self.all[of];
                same(&x.range(r.clone()).unwrap(), &v[r.clone()], &r);
                let _ = (self.rt.stats(), x.residency());
                self.touched(of, &r);
            }
            Op::Write { of, at, len, value } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let Both { x, v, .. } = &mut self.all[of];
                x[r.clone()].iter_mut().for_each(|x| *x ^= value);
                v[r.clone()].iter_mut().for_each(|x| *x ^= value);
                self.touched(of, &r);
            }
            Op::Fill { of, dev, at, len, value } => {
                let Some(r) = self.launched(n(of), at, len) else { return };
                let (dev, device) = self.device(dev);
                self.written(dev, of, &r);
                let Both { x, v, .. } = &mut self.all[of];
                self.rt.on(&device).launch(&fill(value), (&mut x.range_mut(r.clone()).unwrap(),)).unwrap();
                v[r].fill(value);
            }
            Op::Add { of, dev, at, len, value } => {
                let Some(r) = self.launched(n(of), at, len) else { return };
                let (dev, device) = self.device(dev);
                self.written(dev, of, &r);
                let Both { x, v, .. } = &mut self.all[of];
                self.rt.on(&device).launch(&add(value), (&mut x.range_mut(r.clone()).unwrap(),)).unwrap();
                v[r].iter_mut().for_each(|x| *x = x.wrapping_add(value));
            }
            Op::AddChunks { of, chunk, value } if n(of) > 0 => {
                let chunk = (chunk * 1777).next_multiple_of(self.unit);
                let devices = [0, 1].map(|d| self.device(d));
                let n = n(of);
                devices.iter().for_each(|(dev, _)| self.written(*dev, of, &(0..n)));
                let Both { x, v, .. } = &mut self.all[of];
                for (i, mut c) in x.chunks_mut(chunk).enumerate() {
                    self.rt.on(&devices[i % 2].1).launch(&add(value), (&mut c,)).unwrap();
                }
                v.iter_mut().for_each(|x| *x = x.wrapping_add(value));
            }
            Op::Copy { from, to, dev, value } if from != to && n(from) > 0 && n(to) > 0 => {
                let len = n(from).min(n(to)) / self.unit * self.unit;
                if len == 0 {
                    return;
                }
                let (dev, device) = self.device(dev);
                self.written(dev, to, &(0..len));
                let [a, b] = self.all.get_disjoint_mut([from, to]).unwrap();
                let args = (&a.x.range(..len).unwrap(), &mut b.x.range_mut(..len).unwrap());
                self.rt.on(&device).launch(&copy_add(value), args).unwrap();
                for (y, x) in b.v[..len].iter_mut().zip(&a.v) {
                    *y = x.wrapping_add(value);
                }
            }
            Op::ToDevice { of, dev } if n(of) > 0 => self.all[of].x.prefetch_to(&self.rt.devices()[dev]),
            Op::ToHost(of) if n(of) > 0 => self.all[of].x.prefetch_to_host(),
            Op::GuardRead { of, at, len } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let Both { x, v, .. } = &self.all[of];
                same(&x.host(r.clone()).unwrap(), &v[r.clone()], &r);
                self.touched(of, &r);
            }
            Op::GuardWrite { of, at, len, value } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let Both { x, v, .. } = &mut self.all[of];
                x.host_mut(r.clone()).unwrap().fill(value);
                v[r.clone()].fill(value);
                self.touched(of, &r);
            }
            Op::Replace { of, at, len, value } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let Both { x, v, .. } = &mut self.all[of];
                x.range_mut(r.clone()).unwrap().fill_with(|i| i as u32 ^ value).unwrap();
                v[r.clone()].iter_mut().enumerate().for_each(|(i, x)| *x = i as u32 ^ value);
                self.touched(of, &r);
            }
            Op::BesideGuard { of, dev, at, value } => {
                let Some(r) = self.launched(n(of), 0, at) else { return };
                let (dev, device) = self.device(dev);
                let rest = r.end..n(of);
                self.touched(of, &rest);
                self.written(dev, of, &r);
                let least = self.is_least(dev);
                let Both { x, v, .. } = &mut self.all[of];
                let (mut a, mut b) = x.split_at_mut(r.end).unwrap();
                let mut guard = b.host_mut(..).unwrap();
                let p = self.rt.on(&device).launch(&add(value), (&mut a,)).unwrap();
                guard.iter_mut().for_each(|x| *x ^= value);
                match p.wait() {
                    Ok(()) => v[r.clone()].iter_mut().for_each(|x| *x = x.wrapping_add(value)),
                    // The two share a grain, and a copy would leave the device's faults too little.
                    Err(Error::Pinned) if !device.caps().map_host && least => {
                        drop(guard);
                        a.write_from(&v[r.clone()]).unwrap();
                    }
                    Err(e) => panic!("{e}"),
                }
                v[r.end..].iter_mut().for_each(|x| *x ^= value);
            }
            Op::Discard { of, at, len } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let Both { x, v, .. } = &mut self.all[of];
                x.discard(r.clone()).unwrap();
                v[r].fill(0);
            }
            Op::Truncate { of, at } if n(of) > 0 => {
                // A part's end is a border as any other.
                let len = (part(n(of), at, 0).start + 1).next_multiple_of(self.unit).min(n(of));
                let Both { x, v, .. } = &mut self.all[of];
                x.truncate(len).unwrap();
                v.truncate(len);
            }
            Op::Split { of, at } if n(of) > self.unit && self.all.len() < 4 => {
                let at = part(n(of) - 1, at, 0).start.next_multiple_of(self.unit).clamp(1, n(of) - 1);
                if !at.is_multiple_of(self.unit) {
                    return;
                }
                let Both { x, v, fork } = &mut self.all[of];
                let rest = Both { x: x.split_off(at).unwrap(), v: v.split_off(at), fork: *fork };
                self.all.push(rest);
            }
            Op::Clone { of } if n(of) > 0 => {
                let Both { x, v, .. } = &self.all[of];
                let both = Both::new(x.cow_clone().unwrap(), v.clone());
                self.keep(of, both);
            }
            Op::Map { of } if n(of) > 0 => self.map(of),
            Op::ReadFile { of } if n(of) > 0 => self.read_file(of),
            Op::FileFrom { of, at, bytes, shared } if n(of) > 0 => self.file_from(of, at, bytes.max(1), shared),
            Op::DropInKernel { of, dev, own } if n(of) > 0 => self.drop_in_kernel(of, dev, own),
            Op::ReadOnly { of, dev } if n(of) > 0 => {
                let (_, device) = self.device(dev);
                let Both { x, v, fork } = self.all.swap_remove(of);
                let (one, two) = (x.into_read_only(), v.as_slice());
                let mut sum_of = self.rt.shared::<u64>(1).unwrap();
                std::thread::scope(|s| {
                    let other = one.clone();
                    s.spawn(move || same(&other, two, &(0..two.len())));
                    self.rt.on(&device).launch(&sum(), (&one, &mut sum_of)).unwrap();
                    assert_eq!(sum_of[0], two.iter().map(|v| u64::from(*v)).sum::<u64>());
                });
                let x = one.try_into_shared().expect("the only handle");
                self.all.push(Both { x, v, fork });
            }
            Op::ForkPolicy { of, what } if n(of) > 0 => {
                let fork = [ForkPolicy::DontFork, ForkPolicy::Preserve, ForkPolicy::Wipe][what % 3];
                self.all[of].x.set_fork_policy(fork).unwrap();
                self.all[of].fork = fork;
            }
            Op::Fork => self.fork(),
            Op::Budget { dev, left } => {
                let Caps { absent, grain, min_frames, .. } = *self.below[dev].caps();
                // Where an absent page is a crash, what one launch needs must fit.
                let least = match absent {
                    // The least that works is slow, but for devices with no more.
                    Absent::Faults => 8 * u64::from(min_frames) * grain,
                    _ => 3 * MIB as u64 + 4 * grain,
                };
                let whole = self.below[dev].memory().budget;
                self.budget(dev, least.max(whole * u64::from(left) / 256));
            }
            Op::Lose { dev } => self.lose(dev),
            Op::Advise { of, dev, at, len, what } if n(of) > 0 => {
                let advice = match what / 2 {
                    0 => Advice::PreferredLocation(Location::Host),
                    1 => Advice::PreferredLocation(Location::Device(self.rt.devices()[dev].clone())),
                    2 => Advice::AccessedBy(self.rt.devices()[dev].clone()),
                    _ => Advice::ReadMostly,
                };
                let x = self.all[of].x.range(part(n(of), at, len)).unwrap();
                if what % 2 == 0 { x.advise(advice) } else { x.unadvise(advice) }
            }
            Op::Sync => {
                self.sync();
                self.danger.settled();
            }
            _ => {}
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(drops::take_back(&self.keys));
        for (device, taken) in self.below.iter().zip(self.taken.iter_mut().flatten()) {
            // SAFETY: allocated by `budget`, and used by nobody.
            unsafe { device.free(&std::mem::take(taken)) };
        }
    }
}
