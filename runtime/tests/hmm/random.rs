//! Random programs of what a driver can do with pages, against flat memory: two devices and the host write, read, move, protect,
//! unmap, remap, pin, take for themselves and drop pages of one segment, in any order.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use sterna::hmm::{Pin, PinKind, Prot};

use crate::device::{Dev, Errno, seen};
use crate::memory::{Memory, WORDS};
use crate::{Ctx, Outcome, Test, adapted};

pub(crate) const TESTS: &[Test] =
    &[adapted("blind.random_programs", "random programs of everything that a driver can do, against flat memory", programs)];

const GRANULE: u64 = 16;
const PAGES: u64 = 4 * GRANULE;

/// A call. Numbers that name nothing possible make it do nothing: every program is a valid one.
#[derive(Clone, Debug)]
enum Op {
    Load(Part),
    Store(Part, u32),
    DeviceRead(usize, Part),
    DeviceWrite(usize, Part, u32),
    Migrate(usize, Part),
    Home(usize, Part),
    Evict(usize),
    Protect(Part, Prot),
    Unmap(Part),
    Map(Part),
    Discard(Part),
    Remap { from: u64, to: u64, keep: bool },
    Exclusive(usize, Part),
    Pin(Part, PinKind),
    Unpin(usize),
    Snapshot(usize),
}

type Part = std::ops::Range<u64>;

fn op() -> impl Strategy<Value = Op> {
    let part = || (0..PAGES, 1..=PAGES / 2).prop_map(|(at, n)| at..(at + n).min(PAGES));
    let (dev, value, granule) = (0..2_usize, any::<u32>(), 0..PAGES / GRANULE);
    let prot = prop_oneof![Just(Prot::None), Just(Prot::Read), Just(Prot::Write), Just(Prot::Write)];
    let kind = prop_oneof![Just(PinKind::Short), Just(PinKind::Long)];
    prop_oneof![
        3 => part().prop_map(Op::Load),
        4 => (part(), value).prop_map(|(p, v)| Op::Store(p, v)),
        3 => (dev.clone(), part()).prop_map(|(d, p)| Op::DeviceRead(d, p)),
        5 => (dev.clone(), part(), value).prop_map(|(d, p, v)| Op::DeviceWrite(d, p, v)),
        4 => (dev.clone(), part()).prop_map(|(d, p)| Op::Migrate(d, p)),
        2 => (dev.clone(), part()).prop_map(|(d, p)| Op::Home(d, p)),
        1 => dev.clone().prop_map(Op::Evict),
        4 => (part(), prot).prop_map(|(p, prot)| Op::Protect(p, prot)),
        1 => part().prop_map(Op::Unmap),
        2 => part().prop_map(Op::Map),
        1 => part().prop_map(Op::Discard),
        2 => (granule.clone(), granule, any::<bool>()).prop_map(|(from, to, keep)| Op::Remap { from, to, keep }),
        2 => (dev.clone(), part()).prop_map(|(d, p)| Op::Exclusive(d, p)),
        2 => (part(), kind).prop_map(|(p, k)| Op::Pin(p, k)),
        2 => (0..4_usize).prop_map(Op::Unpin),
        1 => dev.prop_map(Op::Snapshot),
    ]
}

/// What flat memory says of a page.
#[derive(Clone, Debug)]
struct Page {
    words: Vec<u32>,
    prot: Prot,
    unmapped: bool,
}

struct World<'a> {
    devs: &'a [Dev; 2],
    m: Memory,
    flat: Vec<Page>,
    pins: Vec<(Pin, Part)>,
}

impl World<'_> {
    fn is_pinned(&self, part: &Part) -> bool {
        self.pins.iter().any(|(_, p)| p.start < part.end && part.start < p.end)
    }

    fn mapped(&self, part: &Part) -> bool {
        part.clone().all(|p| !self.flat[p as usize].unmapped)
    }

    /// The error of a use of a part: that of its first page which forbids it.
    fn allowed(&self, part: &Part, write: bool) -> Result<(), Errno> {
        let pages = part.clone().map(|p| &self.flat[p as usize]);
        pages
            .map(|p| match p.prot {
                Prot::None => Err(Errno::Fault),
                Prot::Read if write => Err(Errno::Perm),
                _ => Ok(()),
            })
            .find(Result::is_err)
            .unwrap_or(Ok(()))
    }

    fn flat(&self, part: Part) -> Vec<u32> {
        part.flat_map(|p| self.flat[p as usize].words.clone()).collect()
    }

    fn load(&self, part: Part) {
        for p in part.filter(|p| self.flat[*p as usize].prot != Prot::None) {
            let (seen, right) = (self.m.page(p), &self.flat[p as usize].words);
            let wrong = seen.iter().zip(right).position(|(a, b)| a != b);
            assert_eq!(wrong.map(|i| (i, seen[i], right[i])), None, "page {p}");
        }
    }

    fn empty(&mut self, part: Part) {
        part.for_each(|p| self.flat[p as usize].words.fill(0));
    }

    fn run(&mut self, op: &Op) {
        match op.clone() {
            Op::Load(part) => self.load(part),
            Op::Store(part, v) => {
                for p in part.filter(|p| self.flat[*p as usize].prot == Prot::Write).collect::<Vec<_>>() {
                    let at = v as usize % WORDS;
                    self.m.page_mut(p)[at] ^= v;
                    self.flat[p as usize].words[at] ^= v;
                }
            }
            // What a pin keeps, a device may or may not use where it is: other tests ask.
            Op::DeviceRead(d, part) if !self.is_pinned(&part) => {
                let mut out = vec![7; (part.end - part.start) as usize * WORDS];
                let read = self.devs[d].read(&self.m, part.clone(), &mut out);
                assert_eq!(read.map(drop), self.allowed(&part, false));
                let expect = if read.is_ok() { self.flat(part) } else { vec![7; out.len()] };
                assert!(out == expect, "device {d} reads something else");
            }
            Op::DeviceWrite(d, part, v) if !self.is_pinned(&part) => {
                let data: Vec<u32> = (0..(part.end - part.start) as u32 * WORDS as u32).map(|i| i ^ v).collect();
                let written = self.devs[d].write(&self.m, part.clone(), &data);
                assert_eq!(written.map(drop), self.allowed(&part, true));
                if written.is_ok() {
                    part.zip(data.chunks(WORDS)).for_each(|(p, w)| self.flat[p as usize].words.copy_from_slice(w));
                }
            }
            // Which pages move is asked elsewhere; none changes.
            Op::Migrate(d, part) => drop(self.devs[d].attached.migrate(&self.m.pages(part))),
            Op::Home(d, part) => drop(self.devs[d].attached.migrate_home(&self.m.pages(part)).unwrap()),
            Op::Evict(d) if self.pins.is_empty() => self.devs[d].attached.release_memory().unwrap(),
            Op::Protect(part, prot) if self.mapped(&part) => {
                self.m.protect(part.clone(), prot);
                part.for_each(|p| self.flat[p as usize].prot = prot);
            }
            Op::Unmap(part) if !self.is_pinned(&part) => {
                self.m.unmap(part.clone());
                self.empty(part.clone());
                part.for_each(|p| {
                    let page = &mut self.flat[p as usize];
                    (page.prot, page.unmapped) = (Prot::None, true);
                });
            }
            Op::Map(part) => {
                for p in part.filter(|p| self.flat[*p as usize].unmapped).collect::<Vec<_>>() {
                    self.m.space.map(&self.m.pages(p..p + 1)).unwrap();
                    let page = &mut self.flat[p as usize];
                    (page.prot, page.unmapped) = (Prot::Write, false);
                }
            }
            Op::Discard(part) if self.mapped(&part) && !self.is_pinned(&part) => {
                // SAFETY: nobody uses the pages meanwhile.
                unsafe { self.m.space.discard(&self.m.pages(part.clone())) }.unwrap();
                self.empty(part);
            }
            Op::Remap { from, to, keep } if from != to => {
                let place = |g: u64| g * GRANULE..(g + 1) * GRANULE;
                if !self.mapped(&place(from)) || self.is_pinned(&place(from)) || self.is_pinned(&place(to)) {
                    return;
                }
                self.m.remap(place(from), place(to), keep);
                for (a, b) in place(from).zip(place(to)) {
                    let left =
                        Page { words: vec![0; WORDS], prot: if keep { Prot::Write } else { Prot::None }, unmapped: !keep };
                    self.flat[b as usize] = std::mem::replace(&mut self.flat[a as usize], left);
                }
            }
            Op::Exclusive(d, part) if !self.is_pinned(&part) => {
                let taken = self.devs[d].attached.make_exclusive(&self.m.pages(part.clone())).map_err(Errno::from);
                assert_eq!(taken, self.allowed(&part, true));
            }
            Op::Pin(part, kind) if self.pins.len() < 4 && !self.is_pinned(&part) => {
                let pin = self.m.space.pin(&self.m.pages(part.clone()), kind, false);
                assert_eq!(pin.as_ref().map(drop).map_err(|e| Errno::from(e.clone())), self.allowed(&part, false));
                self.pins.extend(pin.map(|pin| (pin, part)));
            }
            Op::Unpin(n) if n < self.pins.len() => drop(self.pins.swap_remove(n)),
            Op::Snapshot(d) => {
                for (p, s) in self.devs[d].snapshot(&self.m, 0..PAGES).unwrap().into_iter().enumerate() {
                    assert_eq!(s == seen::ERROR, self.flat[p].prot == Prot::None, "page {p} is seen as {s:#x}");
                    assert!(s & seen::WRITE == 0 || s == seen::ERROR || self.flat[p].prot == Prot::Write, "page {p}");
                }
            }
            _ => {}
        }
    }
}

fn programs(ctx: &Ctx<'_>) -> Outcome {
    let devs = [ctx.dev_with(|c| c.memory = 1 << 20), ctx.dev_with(|c| c.memory = 1 << 20)];
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let seed: u64 = std::env::var("STERNA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(u64::from(std::process::id()));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &std::array::from_fn::<u8, 32, _>(|i| (seed >> (i % 8 * 8)) as u8));
    let mut runner = TestRunner::new_with_rng(config, rng);
    let ended = runner.run(&prop::collection::vec(op(), 1..50), |ops| {
        let m = Memory::new(ctx.space, PAGES);
        let page = Page { words: vec![0; WORDS], prot: Prot::Write, unmapped: false };
        let mut world = World { devs: &devs, m, flat: vec![page; PAGES as usize], pins: Vec::new() };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ops.iter().for_each(|op| world.run(op));
            world.pins.clear();
            let mapped: Vec<u64> = (0..PAGES).filter(|p| !world.flat[*p as usize].unmapped).collect();
            for p in mapped {
                world.run(&Op::Protect(p..p + 1, Prot::Write));
            }
            world.load(0..PAGES);
        }));
        ran.map_err(|e| {
            let text = e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(ToString::to_string));
            TestCaseError::fail(text.unwrap_or_else(|| "a panic".into()))
        })
    });
    if let Err(e) = ended {
        panic!("STERNA_SEED={seed}: {e}");
    }
    devs.iter().for_each(|d| d.expect_frames(0));
    Ok(())
}
