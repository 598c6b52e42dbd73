//! Faults of the host that walk through an allocation, as the counters tell them: one a block from the second block on, whichever way
//! and whatever for; and those far from each other, which bring a granule each.

mod common;

use std::sync::Arc;

use common::vulkan::{TABLES, vulkan};
use common::*;
use sterna::cpu::CpuConfig;
use sterna::hal::Device;
use sterna::hmm::{BLOCK, GRANULE, Grow};
use sterna::policy::{FaultRule, LaunchEvent, Place, Policy};
use sterna::{Mechanism, Runtime, Shared};

const BLOCKS: usize = 12;
/// Elements of a block and of a granule.
const PER_BLOCK: usize = BLOCK as usize / 4;
const PER_GRANULE: usize = GRANULE as usize / 4;
/// What the density rule takes for a block.
const FIRST: u64 = 6;

/// Runtimes in which launches bring their pages, whatever the device could use in place: over CPU devices, and over a Vulkan device
/// with each page table. None where the host takes no faults.
fn moving() -> impl Iterator<Item = (String, Runtime)> {
    let memory = 128 * MIB;
    let cpu = kinds(memory).into_iter().filter(|(_, c)| !c.coherent);
    let cpu = cpu.map(|(how, config)| (how.to_string(), device(config) as Arc<dyn Device>));
    let gpu =
        TABLES.into_iter().filter_map(move |t| Some((t.to_string(), Arc::new(vulkan(t, memory as u64, None).ok()?) as _)));
    cpu.chain(gpu).map(|(how, device)| (how, over(device))).filter(|(_, rt)| faulting(rt))
}

fn over(device: Arc<dyn Device>) -> Runtime {
    Runtime::builder().policy("declared").unwrap().open_device(device).build().unwrap()
}

fn faulting(rt: &Runtime) -> bool {
    rt.stats().mechanism != Mechanism::None
}

/// Elements that are on the device, each its own number.
fn on_device(rt: &Runtime, len: usize) -> Shared<u32> {
    let mut x = rt.shared_with(len, |i| (i as u32).wrapping_sub(1)).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    x
}

/// The faults that `f` takes, and the bytes that come home.
fn cost(rt: &Runtime, f: impl FnOnce()) -> (u64, u64) {
    let count = || rt.stats().devices.iter().map(|d| (d.host_faults, d.to_host.total())).next().unwrap();
    let before = count();
    f();
    let after = count();
    (after.0 - before.0, after.1 - before.1)
}

/// What is expected of [`cost`]. Where the engine takes entries away it takes whole grains, and faults for which the driver is not free
/// at once are the engine's: longer grains may cost fewer faults, and bring more, but none beyond a block.
#[track_caller]
fn expect(rt: &Runtime, what: &str, (faults, bytes): (u64, u64), f: impl FnOnce()) {
    let cost = cost(rt, f);
    if fine(rt) {
        assert_eq!(cost, (faults, bytes), "{what}");
    } else {
        let most = if bytes.is_multiple_of(BLOCK) { bytes } else { cost.0 * BLOCK };
        let within = cost.0 <= faults && (bytes..=most).contains(&cost.1);
        assert!(within, "{what}: {cost:?} instead of {:?}", (faults, bytes));
    }
}

fn fine(rt: &Runtime) -> bool {
    rt.devices().iter().all(|d| d.caps().grain <= GRANULE)
}

fn load(x: &Shared<u32>, elements: impl Iterator<Item = usize>) {
    let x: &[u32] = x;
    elements.for_each(|i| assert_eq!(x[i], i as u32));
}

#[test]
fn whoever_goes_through_takes_one_fault_a_block() {
    let _limit = limit();
    for (how, rt) in moving() {
        let len = BLOCKS * PER_BLOCK;
        let mut x = on_device(&rt, len);
        let expected = (FIRST + BLOCKS as u64 - 1, len as u64 * 4);
        // Again and again: what has left is walked through anew.
        for round in 0..2 {
            expect(&rt, &format!("{how}, {round}: upwards"), expected, || load(&x, 0..len));
            rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
            expect(&rt, &format!("{how}, {round}: downwards"), expected, || load(&x, (0..len).rev()));
            rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
            expect(&rt, &format!("{how}, {round}: stores"), expected, || x.fill(7));
            assert!(x.iter().all(|v| *v == 7), "{how}, {round}");
            x.iter_mut().enumerate().for_each(|(i, v)| *v = i as u32);
            rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
            // From the midst of a block, a granule at a time: 1, 1, 2, 4, 8 and the rest, one block and 15 granules behind.
            let part = PER_BLOCK - 3 * PER_GRANULE;
            let (faults, bytes) = cost(&rt, || load(&x, (part..4 * PER_BLOCK).step_by(PER_GRANULE)));
            let less = bytes < 4 * BLOCK || !fine(&rt);
            assert!(faults <= FIRST + 3 && less, "{how}, {round}: {faults} faults, {bytes} bytes from within");
            rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
        }
    }
}

#[test]
fn what_does_not_go_on_comes_alone() {
    let _limit = limit();
    for (how, rt) in moving() {
        let len = BLOCKS * PER_BLOCK;
        let mut x = on_device(&rt, len);
        // Granules far from each other, most of them with another in their block.
        let far = || (0..BLOCKS * 32).step_by(19).map(|g| g * PER_GRANULE);
        let n = far().count() as u64;
        expect(&rt, &format!("{how}: far from each other"), (n, n * GRANULE), || load(&x, far()));
        rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
        // Blocks that no other that was walked through lies beside: the control of the test above.
        let apart = || (0..BLOCKS).step_by(2).flat_map(|b| b * PER_BLOCK..(b + 1) * PER_BLOCK);
        let n = BLOCKS as u64 / 2;
        expect(&rt, &format!("{how}: every other block"), (n * FIRST, n * BLOCK), || load(&x, apart()));
        // A walk that has left for the device is over: a touch where it would have gone on is one like any other.
        rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
        load(&x, 0..3 * PER_BLOCK);
        rt.launch(&add(0), (&mut x,)).unwrap().wait().unwrap();
        for element in [3 * PER_BLOCK, PER_BLOCK] {
            expect(&rt, &format!("{how}: after a launch"), (1, GRANULE), || load(&x, element..element + 1));
        }
    }
}

/// Where the engine takes entries away, half a block goes with a granule; the walk goes on behind all of it.
#[test]
fn a_walk_knows_what_came_with_it() {
    let _limit = limit();
    let halves = CpuConfig { grain: BLOCK / 2, host_readable: false, ..small(64 * MIB) };
    let rt = over(device(halves));
    if !faulting(&rt) {
        return;
    }
    let x = on_device(&rt, 4 * PER_BLOCK);
    // From within: both halves of the first block, and whole ones behind.
    let up = |start: usize| (start..4 * PER_BLOCK).step_by(PER_GRANULE);
    assert_eq!(cost(&rt, || load(&x, up(8 * PER_GRANULE))), (2 + 3, 4 * BLOCK));
}

/// Every fault brings a granule.
struct Granules;

impl Policy for Granules {
    fn name(&self) -> &'static str {
        "granules"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        places.extend(event.args.iter().map(|_| Place::Migrate));
    }

    fn allocated(&mut self, _: u64) -> FaultRule {
        FaultRule { host: Grow::GRANULE, device: Grow::DENSITY }
    }
}

#[test]
fn a_policy_that_wants_granules_gets_granules() {
    let _limit = limit();
    for config in [small(64 * MIB), rigid(64 * MIB)] {
        let rt = Runtime::builder().open_device(device(config)).custom_policy(Granules).build().unwrap();
        if !faulting(&rt) {
            return;
        }
        let len = 3 * PER_BLOCK;
        let x = on_device(&rt, len);
        assert_eq!(cost(&rt, || load(&x, 0..len)), (3 * 32, len as u64 * 4));
    }
}
