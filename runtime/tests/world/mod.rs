//! Programs of public operations against plain vectors: the operations, and what they must do. Who makes programs of them is
//! not its business: property tests do, and fuzzing does.

use sterna::kernels::fill;
use sterna::{Advice, Error, Location, Runtime, Shared};

use crate::common::*;

/// One call, or a few that belong together. Numbers that name nothing make it do nothing: every program is a valid one.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Allocate { pages: usize, odd: usize },
    Drop(usize),
    Read { of: usize, at: u16, len: u16 },
    Write { of: usize, at: u16, len: u16, value: u32 },
    Fill { of: usize, dev: usize, at: u16, len: u16, value: u32 },
    Add { of: usize, dev: usize, at: u16, len: u16, value: u32 },
    AddChunks { of: usize, chunk: usize, value: u32 },
    Copy { from: usize, to: usize, dev: usize, value: u32 },
    ToDevice { of: usize, dev: usize },
    ToHost(usize),
    GuardRead { of: usize, at: u16, len: u16 },
    GuardWrite { of: usize, at: u16, len: u16, value: u32 },
    Replace { of: usize, at: u16, len: u16, value: u32 },
    BesideGuard { of: usize, dev: usize, at: u16, value: u32 },
    Discard { of: usize, at: u16, len: u16 },
    Truncate { of: usize, at: u16 },
    Split { of: usize, at: u16 },
    Clone { of: usize },
    Map { of: usize },
    Advise { of: usize, dev: usize, at: u16, len: u16, what: usize },
    Sync,
}

/// Shared allocations beside plain vectors that must hold the same.
pub(crate) struct World {
    rt: Runtime,
    all: Vec<(Shared<u32>, Vec<u32>)>,
    /// Elements between the borders of views that a launch may have: whole grains where host faults are not served.
    unit: usize,
}

/// A part of `0..n`: where it begins and how long it is, out of 65536.
fn part(n: usize, at: u16, len: u16) -> std::ops::Range<usize> {
    let start = n * usize::from(at) / 65536;
    start..start + (n - start) * (usize::from(len) + 1) / 65536
}

impl World {
    /// As [`part`], with borders that a launch may have, and not empty.
    fn launched(&self, n: usize, at: u16, len: u16) -> Option<std::ops::Range<usize>> {
        let r = part(n, at, len);
        let end = if r.end == n { n } else { r.end / self.unit * self.unit };
        let start = r.start / self.unit * self.unit;
        (start < end).then_some(start..end)
    }

    /// Over devices of two of the [`kinds`], with two allocations.
    pub(crate) fn new(policy: &str, first: usize, second: usize) -> Self {
        let kinds = kinds(4 * MIB);
        let open = |i: usize| device(kinds[i].1.clone()) as std::sync::Arc<dyn sterna::hal::Device>;
        let b = Runtime::builder().open_device(open(first)).open_device(open(second));
        let rt = b.policy(policy).unwrap().build().unwrap();
        let grain = rt.devices().iter().map(|d| d.caps().grain).max().unwrap() as usize / 4;
        let unit = if faults(&rt) { 1 } else { grain };
        let mut world = Self { rt, all: Vec::new(), unit };
        world.run(&Op::Allocate { pages: 40, odd: 1 });
        world.run(&Op::Allocate { pages: 200, odd: 3 });
        world
    }

    /// Compares everything, then waits for everything.
    pub(crate) fn check(&self) {
        for (x, v) in &self.all {
            let wrong = x.iter().zip(v).position(|(x, v)| x != v);
            assert_eq!(wrong, None, "{} elements", v.len());
        }
        self.rt.sync().unwrap();
    }

    pub(crate) fn run(&mut self, op: &Op) {
        let devices = self.rt.devices();
        let n = |of: usize| self.all.get(of).map_or(0, |a| a.1.len());
        match *op {
            Op::Allocate { pages, odd } if self.all.len() < 4 => {
                let n = pages * PAGE_ELEMS - odd.min(pages * PAGE_ELEMS - 1);
                let (x, v) = if odd % 2 == 0 {
                    (self.rt.shared(n).unwrap(), vec![0; n])
                } else {
                    (self.rt.shared_with(n, |i| i as u32).unwrap(), (0..n as u32).collect())
                };
                self.all.push((x, v));
            }
            Op::Drop(of) if of < self.all.len() => drop(self.all.swap_remove(of)),
            Op::Read { of, at, len } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let (x, v) = &self.all[of];
                let (x, v) = (x.range(r.clone()).unwrap(), &v[r.clone()]);
                let wrong = x.iter().zip(v).position(|(x, v)| x != v);
                assert_eq!(wrong, None, "in {r:?}");
            }
            Op::Write { of, at, len, value } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let (x, v) = &mut self.all[of];
                x[r.clone()].iter_mut().for_each(|x| *x ^= value);
                v[r].iter_mut().for_each(|x| *x ^= value);
            }
            Op::Fill { of, dev, at, len, value } => {
                let Some(r) = self.launched(n(of), at, len) else { return };
                let (x, v) = &mut self.all[of];
                self.rt.on(&devices[dev]).launch(&fill(value), (&mut x.range_mut(r.clone()).unwrap(),)).unwrap();
                v[r].fill(value);
            }
            Op::Add { of, dev, at, len, value } => {
                let Some(r) = self.launched(n(of), at, len) else { return };
                let (x, v) = &mut self.all[of];
                self.rt.on(&devices[dev]).launch(&add(value), (&mut x.range_mut(r.clone()).unwrap(),)).unwrap();
                v[r].iter_mut().for_each(|x| *x = x.wrapping_add(value));
            }
            Op::AddChunks { of, chunk, value } if n(of) > 0 => {
                let chunk = (chunk * 1777).next_multiple_of(self.unit);
                let (x, v) = &mut self.all[of];
                for (i, mut c) in x.chunks_mut(chunk).enumerate() {
                    self.rt.on(&devices[i % 2]).launch(&add(value), (&mut c,)).unwrap();
                }
                v.iter_mut().for_each(|x| *x = x.wrapping_add(value));
            }
            Op::Copy { from, to, dev, value } if from != to && n(from) > 0 && n(to) > 0 => {
                let len = n(from).min(n(to)) / self.unit * self.unit;
                if len == 0 {
                    return;
                }
                let [a, b] = self.all.get_disjoint_mut([from, to]).unwrap();
                let args = (&a.0.range(..len).unwrap(), &mut b.0.range_mut(..len).unwrap());
                self.rt.on(&devices[dev]).launch(&copy_add(value), args).unwrap();
                for (y, x) in b.1[..len].iter_mut().zip(&a.1) {
                    *y = x.wrapping_add(value);
                }
            }
            Op::ToDevice { of, dev } if n(of) > 0 => self.all[of].0.prefetch_to(&devices[dev]),
            Op::ToHost(of) if n(of) > 0 => self.all[of].0.prefetch_to_host(),
            Op::GuardRead { of, at, len } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let (x, v) = &self.all[of];
                let (x, v) = (x.host(r.clone()).unwrap(), &v[r.clone()]);
                let wrong = x.iter().zip(v).position(|(x, v)| x != v);
                assert_eq!(wrong, None, "in {r:?}");
            }
            Op::GuardWrite { of, at, len, value } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let (x, v) = &mut self.all[of];
                x.host_mut(r.clone()).unwrap().fill(value);
                v[r].fill(value);
            }
            Op::Replace { of, at, len, value } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let (x, v) = &mut self.all[of];
                x.range_mut(r.clone()).unwrap().fill_with(|i| i as u32 ^ value).unwrap();
                v[r].iter_mut().enumerate().for_each(|(i, x)| *x = i as u32 ^ value);
            }
            Op::BesideGuard { of, dev, at, value } => {
                let Some(r) = self.launched(n(of), 0, at) else { return };
                let (x, v) = &mut self.all[of];
                let (mut a, mut b) = x.split_at_mut(r.end).unwrap();
                let mut guard = b.host_mut(..).unwrap();
                let p = self.rt.on(&devices[dev]).launch(&add(value), (&mut a,)).unwrap();
                guard.iter_mut().for_each(|x| *x ^= value);
                match p.wait() {
                    Ok(()) => v[r.clone()].iter_mut().for_each(|x| *x = x.wrapping_add(value)),
                    // The two share a page, which the device cannot use where it is.
                    Err(Error::Pinned) if !devices[dev].caps().map_host => {
                        drop(guard);
                        a.write_from(&v[r.clone()]).unwrap();
                    }
                    Err(e) => panic!("{e}"),
                }
                v[r.end..].iter_mut().for_each(|x| *x ^= value);
            }
            Op::Discard { of, at, len } if n(of) > 0 => {
                let r = part(n(of), at, len);
                let (x, v) = &mut self.all[of];
                x.discard(r.clone()).unwrap();
                v[r].fill(0);
            }
            Op::Truncate { of, at } if n(of) > 0 => {
                // A part's end is a border as any other.
                let len = (part(n(of), at, 0).start + 1).next_multiple_of(self.unit).min(n(of));
                let (x, v) = &mut self.all[of];
                x.truncate(len).unwrap();
                v.truncate(len);
            }
            Op::Split { of, at } if n(of) > self.unit && self.all.len() < 4 => {
                let at = part(n(of) - 1, at, 0).start.next_multiple_of(self.unit).clamp(1, n(of) - 1);
                if !at.is_multiple_of(self.unit) {
                    return;
                }
                let (x, v) = &mut self.all[of];
                let (y, w) = (x.split_off(at).unwrap(), v.split_off(at));
                self.all.push((y, w));
            }
            Op::Clone { of } if n(of) > 0 => {
                let (x, v) = &self.all[of];
                let both = (x.cow_clone().unwrap(), v.clone());
                if self.all.len() < 4 { self.all.push(both) } else { self.all[(of + 1) % 4] = both }
            }
            Op::Map { of } if n(of) > 0 => {
                // A file with the contents of the one takes its place.
                let (x, v) = &mut self.all[of];
                let path = std::env::temp_dir().join(format!("sterna-random-{}-{:p}", std::process::id(), x.as_host_ptr()));
                std::fs::write(&path, sterna::bytemuck::cast_slice(v)).unwrap();
                // SAFETY: nobody writes it.
                let mut mapped = unsafe { self.rt.map_file::<u32>(&path) }.unwrap();
                let half = v.len() / 2;
                mapped[half] ^= 5;
                v[half] ^= 5;
                mapped.flush().unwrap();
                assert_eq!(std::fs::read(&path).unwrap()[half * 4..][..4], v[half].to_ne_bytes());
                std::fs::remove_file(&path).unwrap();
                *x = mapped;
            }
            Op::Advise { of, dev, at, len, what } if n(of) > 0 => {
                let advice = match what / 2 {
                    0 => Advice::PreferredLocation(Location::Host),
                    1 => Advice::PreferredLocation(Location::Device(devices[dev].clone())),
                    2 => Advice::AccessedBy(devices[dev].clone()),
                    _ => Advice::ReadMostly,
                };
                let x = self.all[of].0.range(part(n(of), at, len)).unwrap();
                if what % 2 == 0 { x.advise(advice) } else { x.unadvise(advice) }
            }
            Op::Sync => self.rt.sync().unwrap(),
            _ => {}
        }
    }
}
