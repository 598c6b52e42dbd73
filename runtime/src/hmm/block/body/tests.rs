//! Steps of the engine as sequences of transitions, against a model that has the bytes: a number for each copy of a unit of pages.
//! Whatever is done in whatever order, the invariants hold between steps, and whoever may load finds what was stored last.

use proptest::prelude::*;

use super::super::super::addr::{GRANULES_PER_BLOCK, PAGES_PER_BLOCK, PAGES_PER_GRANULE};
use super::*;

/// The first device faults, the second cannot; see [`Entries`].
const DEVICES: usize = 2;
const UNITS: usize = GRANULES_PER_BLOCK;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Pages come to a device, for stores or for loads; for those perhaps as the only copies.
    Out(usize, bool, bool),
    /// The device uses the host's storage.
    Alias(usize, bool),
    /// A kernel stores where it may.
    KernelStores(usize),
    /// The host loads or stores; a fault brings what is away home, and for loads may leave replicas.
    Host(bool, bool),
    /// The pages come home; devices keep clean copies, or none.
    Home(bool),
    Discard,
    /// The device is lost, and what was lost is written anew.
    Lose(usize),
}

/// A transition that is left out or undone: the model must see each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Nothing,
    OthersKeepCopies,
    DirtyStays,
    GoneStays,
    NotRevoked,
    EntryStays,
    LossForgotten,
    ReplicaKeptAtStore,
    HostMapsBesideReplica,
}

struct World {
    body: Body<Vec<DevPages>>,
    /// What was stored last, what the host's storage has, and what each device's frame has.
    last: [u32; UNITS],
    host: [u32; UNITS],
    dev: [[u32; UNITS]; DEVICES],
    stores: u32,
    wrong: Wrong,
}

fn unit(u: usize) -> Mask {
    Mask::range(u * PAGES_PER_GRANULE..(u + 1) * PAGES_PER_GRANULE)
}

fn none() -> DevPages {
    DevPages {
        valid: Mask::EMPTY,
        dirty: Mask::EMPTY,
        mapped: Mask::EMPTY,
        writable: Mask::EMPTY,
        alias: Mask::EMPTY,
        leaving: Mask::EMPTY,
        hidden: Mask::EMPTY,
        atomic: Mask::EMPTY,
        private: Mask::EMPTY,
        rank: 0,
        frames: [0; PAGES_PER_BLOCK],
    }
}

impl World {
    fn new(wrong: Wrong) -> Self {
        let dev: Vec<_> = (0..DEVICES).map(|_| none()).collect();
        let mut body = Body(State::with(dev));
        (0..DEVICES).for_each(|d| body.admit(d));
        let zero = [0; UNITS];
        Self { body, last: zero, host: zero, dev: [zero; DEVICES], stores: 0, wrong }
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }

    fn store(&mut self, u: usize) -> u32 {
        self.stores += 1;
        self.last[u] = self.stores;
        self.stores
    }

    /// Entries for the pages go, but those of `except` that name frames.
    fn zap(&mut self, pages: Mask, except: Option<usize>) {
        for d in 0..DEVICES {
            let gone = pages & self.body.dev[d].mapped & if Some(d) == except { self.body.dev[d].alias } else { Mask::FULL };
            self.body.entries_leave(d, gone, Mask::EMPTY);
            let alias = self.body.dev[d].alias & gone;
            self.body.entries_gone(d, gone);
            if self.is(Wrong::EntryStays) {
                self.body.0.dev[d].mapped |= alias;
                self.body.0.dev[d].alias |= alias;
                self.body.0.dev[d].writable |= alias;
            }
        }
    }

    /// The only copies of the pages come to the storage; the devices keep clean ones, or none.
    fn bring_home(&mut self, pages: Mask, ends: bool) {
        for d in 0..DEVICES {
            for u in (0..UNITS).filter(|u| pages.meets(unit(*u)) && self.body.dev[d].dirty.meets(unit(*u))) {
                self.host[u] = self.dev[d][u];
            }
            let (dirty, gone) = (self.body.dev[d].dirty & pages, self.body.gone & pages);
            self.body.commit_home(d, pages, ends);
            if self.is(Wrong::DirtyStays) {
                let dirty = dirty & self.body.dev[d].valid;
                self.body.0.dev[d].dirty |= dirty;
            }
            if self.is(Wrong::GoneStays) && !dirty.is_empty() {
                self.body.0.gone |= gone;
            }
        }
    }

    fn step(&mut self, op: Op, pages: Mask) {
        let b = &self.body;
        match op {
            Op::Out(d, writes, alone) => {
                let elsewhere = (0..DEVICES).filter(|o| *o != d).fold(Mask::EMPTY, |m, o| m | b.dev[o].dirty);
                let pages = pages & !elsewhere & !b.lost;
                self.out(d, pages, writes, alone);
            }
            Op::Alias(d, writes) => {
                let pages = pages & !b.gone & !b.replicated() & !b.lost;
                let old = b.dev[d].stale() & pages;
                self.body.stale_gone(d, old);
                self.body.alias_made(d, pages, writes);
            }
            Op::KernelStores(d) => {
                let may = pages & self.body.dev[d].owned();
                for u in (0..UNITS).filter(|u| may.covers(unit(*u))) {
                    let to = self.store(u);
                    if self.body.dev[d].alias.meets(unit(u)) { self.host[u] = to } else { self.dev[d][u] = to }
                }
            }
            Op::Host(store, keep) => self.host_touches(pages, store, keep),
            Op::Home(ends) => {
                let pages = pages & !b.lost;
                self.body.take(pages);
                self.bring_home(pages, ends);
                let replicated = if self.is(Wrong::HostMapsBesideReplica) { Mask::EMPTY } else { self.body.replicated() };
                let back = pages & !replicated & !self.body.gone;
                self.body.admit_stores(back);
                self.body.restore(back);
                self.body.let_go(pages);
            }
            Op::Discard => {
                self.body.take(pages);
                self.zap(pages, None);
                (0..DEVICES).for_each(|d| self.body.end_copies(d, pages, pages));
                self.body.drop_contents(pages);
                self.body.admit_stores(pages);
                self.body.restore(pages);
                self.body.let_go(pages);
                for u in (0..UNITS).filter(|u| pages.meets(unit(*u))) {
                    (self.last[u], self.host[u]) = (0, 0);
                }
            }
            Op::Lose(d) => {
                let alone = self.body.write_off(d);
                if !self.is(Wrong::LossForgotten) {
                    self.body.lose(alone);
                }
                // Somebody writes anew what was lost.
                let anew = self.body.lost & pages;
                self.body.forgive(pages);
                for u in (0..UNITS).filter(|u| anew.meets(unit(*u))) {
                    self.last[u] = self.host[u];
                }
            }
        }
    }

    fn out(&mut self, d: usize, pages: Mask, writes: bool, alone: bool) {
        self.body.take(pages);
        // Nobody has an entry for the storage, and where it is written none for a copy.
        self.zap(pages, Some(d));
        self.body.revoke(pages);
        if self.is(Wrong::NotRevoked) {
            self.body.0.revoked &= !pages;
        }
        for u in (0..UNITS).filter(|u| pages.meets(unit(*u)) && !self.body.dev[d].valid.meets(unit(*u))) {
            self.dev[d][u] = self.host[u];
        }
        let others = (0..DEVICES).filter(|o| *o != d).fold(Mask::EMPTY, |m, o| m | self.body.dev[o].valid);
        let alone = match (writes, alone) {
            (true, _) => pages,
            (false, true) => pages & !others,
            (false, false) => Mask::EMPTY,
        };
        let entries = if d == 0 { Entries::Exact } else { Entries::Whole(pages & !self.body.dev[d].framed()) };
        if d == 0 && !writes {
            // An entry that would let a clean page be written is replaced.
            let loose = pages & self.body.dev[d].writable;
            self.body.stale_gone(d, loose);
        }
        let before: Vec<Mask> = (0..DEVICES).map(|o| self.body.dev[o].valid).collect();
        self.body.commit_out(d, pages, alone, entries, writes);
        if self.is(Wrong::OthersKeepCopies) {
            (0..DEVICES).for_each(|o| self.body.0.dev[o].valid |= before[o]);
        }
        self.body.let_go(pages);
    }

    fn host_touches(&mut self, pages: Mask, store: bool, keep: bool) {
        let away = pages & self.body.revoked & !self.body.lost;
        self.body.take(away);
        let ends = store || !keep;
        self.bring_home(away, ends);
        let replicated = self.body.replicated() & away;
        self.body.duplicate(replicated & !self.body.gone);
        self.body.restore(away & !replicated & !self.body.gone);
        self.body.let_go(away);
        if store {
            let watched = pages & self.body.duplicated;
            if !self.is(Wrong::ReplicaKeptAtStore) {
                (0..DEVICES).for_each(|d| self.body.end_copies(d, watched, Mask::EMPTY));
            }
            self.body.admit_stores(watched);
            let may = pages & !self.body.revoked;
            for u in (0..UNITS).filter(|u| may.meets(unit(*u))) {
                self.host[u] = self.store(u);
            }
        }
    }

    /// What does not hold now.
    fn check(&self) -> Result<(), String> {
        self.body.check_masks(true)?;
        let b = &self.body;
        for u in 0..UNITS {
            let (m, last) = (unit(u), self.last[u]);
            let lost = b.lost.meets(m);
            let host_loads = !b.revoked.meets(m);
            if host_loads && !lost && self.host[u] != last {
                return Err(format!("unit {u}: the host loads {} and not {last}", self.host[u]));
            }
            for (d, copies) in self.dev.iter().enumerate() {
                let dev = &b.dev[d];
                let sees = if dev.alias.meets(m) { self.host[u] } else { copies[u] };
                if dev.readable().meets(m) && !lost && sees != last {
                    return Err(format!("unit {u}: device {d} loads {sees} and not {last}"));
                }
                let alone = dev.owned().meets(m) && !dev.alias.meets(m);
                let others = (0..DEVICES).any(|o| o != d && b.dev[o].readable().meets(m));
                if alone && (host_loads || others) {
                    return Err(format!("unit {u}: device {d} may store beside another copy"));
                }
            }
        }
        Ok(())
    }
}

impl<P> State<P> {
    /// Of a block that nobody has touched.
    fn with(dev: P) -> Self {
        let no = Mask::EMPTY;
        Self {
            dev,
            revoked: no,
            duplicated: no,
            gone: no,
            busy: no,
            wanted: no,
            asked: [Parked { pages: no, to_store: no, queued: false }],
            lost: no,
            hole: no,
            pinned: no,
            bordered: no,
            held: no,
            framed: no,
            shown: no,
            unmapped: no,
            unreadable: no,
            readonly: no,
            unread: no,
            lent: no,
            arrived: 0,
            side: 0,
            slice: 0,
            missing: false,
            full: false,
            huge: false,
            was_framed: false,
            mappings: 0,
            moves: 0,
            read_mostly: false,
            stores_watched: false,
            collapses: 0,
            in_place: 0,
            known: 0,
            host_grow: Grow::default(),
            device_grow: Grow::default(),
        }
    }
}

fn ops() -> impl Strategy<Value = Vec<(Op, usize, usize)>> {
    let op = prop_oneof![
        4 => (0..DEVICES, any::<bool>(), any::<bool>()).prop_map(|(d, w, a)| Op::Out(d, w, a)),
        2 => (0..DEVICES, any::<bool>()).prop_map(|(d, w)| Op::Alias(d, w)),
        4 => (0..DEVICES).prop_map(Op::KernelStores),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(s, k)| Op::Host(s, k)),
        2 => any::<bool>().prop_map(Op::Home),
        1 => Just(Op::Discard),
        1 => (0..DEVICES).prop_map(Op::Lose),
    ];
    prop::collection::vec((op, 0..UNITS, 1_usize..8), 1..60)
}

/// Runs a sequence; what did not hold after which step.
fn run(wrong: Wrong, ops: &[(Op, usize, usize)]) -> Result<(), String> {
    let mut world = World::new(wrong);
    for (i, (op, first, n)) in ops.iter().enumerate() {
        let pages = (*first..(first + n).min(UNITS)).fold(Mask::EMPTY, |m, u| m | unit(u));
        world.step(*op, pages);
        world.check().map_err(|e| format!("after step {i}, {op:?} of units {first}..{}: {e}", first + n))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_sequence_of_steps_keeps_every_invariant_and_every_byte(ops in ops()) {
        if let Err(e) = run(Wrong::Nothing, &ops) {
            prop_assert!(false, "{}", e);
        }
    }
}

#[test]
fn each_wrong_transition_is_seen() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, TestRunner};
    for wrong in [
        Wrong::OthersKeepCopies,
        Wrong::DirtyStays,
        Wrong::GoneStays,
        Wrong::NotRevoked,
        Wrong::EntryStays,
        Wrong::LossForgotten,
        Wrong::ReplicaKeptAtStore,
        Wrong::HostMapsBesideReplica,
    ] {
        let mut runner = TestRunner::new_with_rng(
            Config::default(),
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        );
        let seen = (0..200).any(|_| run(wrong, &ops().new_tree(&mut runner).unwrap().current()).is_err());
        assert!(seen, "{wrong:?} is seen by nothing");
    }
}

#[test]
fn slices_double_only_when_pages_go_to_and_fro() {
    let mut b = Body(State::with(Vec::<DevPages>::new()));
    b.arrive(1, 1_000_000_000);
    assert_eq!(b.stays_until(), 1_000_000_000 + 100_000);
    b.arrive(1, 1_000_100_000);
    assert_eq!(b.slice, 0);
    for i in 0..20 {
        b.arrive(i % 2, 1_001_000_000 + i as u64);
    }
    assert_eq!(b.stays_until() - b.arrived, 10_000_000);
    b.arrive(0, 9_000_000_000);
    assert_eq!(b.stays_until() - b.arrived, 100_000);
}

#[test]
fn who_ends_busy_learns_who_waits() {
    let mut b = Body(State::with(Vec::<DevPages>::new()));
    b.take(unit(1) | unit(2));
    b.want(unit(2) | unit(5));
    assert_eq!(b.let_go(unit(1) | unit(2)), unit(2));
    assert_eq!((b.busy, b.wanted), (Mask::EMPTY, unit(5)));
    assert!(!b.ask(0, unit(3), false) && b.ask(0, unit(4), true));
    assert_eq!(b.take_asked(0), (unit(3) | unit(4), unit(4)));
    assert!(!b.ask(0, unit(3), false), "it was taken out of the queue");
}

#[test]
fn what_is_carried_is_the_same_elsewhere() {
    let (mut from, mut to) = (Body(State::with(Vec::<DevPages>::new())), Body(State::with(Vec::<DevPages>::new())));
    from.revoke(unit(1));
    from.drop_contents(unit(1));
    from.permit(unit(1), true, true, false);
    let carried = Carried::of(&from, unit(1));
    from.carried_off(unit(1));
    to.carried_in(unit(3), &carried.shifted(|m| if m.is_empty() { m } else { unit(3) }));
    assert_eq!((to.revoked, to.hole, to.readonly, to.unreadable), (unit(3), unit(3), unit(3), Mask::EMPTY));
    assert_eq!((from.revoked, from.hole), (Mask::EMPTY, unit(1)));
}
