//! Random programs against plain vectors. Those that once failed run first; a failing one shrinks to a short one, which is printed
//! as text that can be kept with them.

mod common;
#[path = "world/regressions.rs"]
mod regressions;
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::*;
use regressions::regressions;
use world::{LEAST, Op, Program, VULKAN};

fn op() -> impl Strategy<Value = Op> {
    let (of, dev, value) = (0..4_usize, 0..2_usize, 0..1000_u32);
    prop_oneof![
        2 => (1..300_usize, 0..1024_usize).prop_map(|(pages, odd)| Op::Allocate { pages, odd }),
        1 => of.clone().prop_map(Op::Drop),
        4 => (of.clone(), any::<u16>(), any::<u16>()).prop_map(|(of, at, len)| Op::Read { of, at, len }),
        4 => (of.clone(), any::<u16>(), any::<u16>(), value.clone())
            .prop_map(|(of, at, len, value)| Op::Write { of, at, len, value }),
        4 => (of.clone(), dev.clone(), any::<u16>(), any::<u16>(), value.clone())
            .prop_map(|(of, dev, at, len, value)| Op::Fill { of, dev, at, len, value }),
        6 => (of.clone(), dev.clone(), any::<u16>(), any::<u16>(), value.clone())
            .prop_map(|(of, dev, at, len, value)| Op::Add { of, dev, at, len, value }),
        2 => (of.clone(), 1..100_usize, value.clone()).prop_map(|(of, chunk, value)| Op::AddChunks { of, chunk, value }),
        3 => (of.clone(), of.clone(), dev.clone(), value.clone())
            .prop_map(|(from, to, dev, value)| Op::Copy { from, to, dev, value }),
        2 => (of.clone(), dev.clone()).prop_map(|(of, dev)| Op::ToDevice { of, dev }),
        1 => of.clone().prop_map(Op::ToHost),
        1 => (of.clone(), any::<u16>(), any::<u16>()).prop_map(|(of, at, len)| Op::GuardRead { of, at, len }),
        1 => (of.clone(), any::<u16>(), any::<u16>(), value.clone())
            .prop_map(|(of, at, len, value)| Op::GuardWrite { of, at, len, value }),
        2 => (of.clone(), any::<u16>(), any::<u16>(), value.clone())
            .prop_map(|(of, at, len, value)| Op::Replace { of, at, len, value }),
        2 => (of.clone(), any::<u16>(), any::<u16>()).prop_map(|(of, at, len)| Op::Discard { of, at, len }),
        1 => (of.clone(), any::<u16>()).prop_map(|(of, at)| Op::Truncate { of, at }),
        1 => (of.clone(), any::<u16>()).prop_map(|(of, at)| Op::Split { of, at }),
        2 => of.clone().prop_map(|of| Op::Clone { of }),
        1 => of.clone().prop_map(|of| Op::Map { of }),
        3 => (of.clone(), dev.clone(), any::<u16>(), any::<u16>(), 0..10_usize)
            .prop_map(|(of, dev, at, len, what)| Op::Advise { of, dev, at, len, what }),
        1 => (of, dev, any::<u16>(), value).prop_map(|(of, dev, at, value)| Op::BesideGuard { of, dev, at, value }),
        1 => Just(Op::Sync),
        1 => (0..4_usize, 0..2_usize).prop_map(|(of, dev)| Op::ReadOnly { of, dev }),
        1 => (0..4_usize).prop_map(|of| Op::ReadFile { of }),
        1 => (0..4_usize, any::<u16>(), 1..400_000_usize, any::<bool>())
            .prop_map(|(of, at, bytes, shared)| Op::FileFrom { of, at, bytes, shared }),
        2 => (0..4_usize, 0..2_usize, any::<bool>()).prop_map(|(of, dev, own)| Op::DropInKernel { of, dev, own }),
        1 => (0..4_usize, 0..3_usize).prop_map(|(of, what)| Op::ForkPolicy { of, what }),
        1 => Just(Op::Fork),
        2 => (0..2_usize, any::<u8>()).prop_map(|(dev, left)| Op::Budget { dev, left }),
        1 => (0..2_usize).prop_map(|dev| Op::Lose { dev }),
    ]
}

/// A process drives eight devices: so many tests, with two each, run at the same time, however many the harness starts.
static PLACES: [Mutex<()>; 3] = [const { Mutex::new(()) }; 3];

fn place() -> MutexGuard<'static, ()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let place = &PLACES[NEXT.fetch_add(1, Ordering::Relaxed) % PLACES.len()];
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

fn programs(policy: &'static str, devices: [usize; 2], threads: usize) {
    let _place = place();
    // A driver takes its time to open a device, and so do launches where little fits. `PROPTEST_CASES` asks for more.
    let usual = match devices[0] {
        VULKAN.. => 60,
        LEAST.. => 40,
        _ => 120,
    };
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual / threads as u32);
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() };
    let ops = prop::collection::vec(op(), 1..40);
    let program = prop::collection::vec(ops, threads).prop_map(move |threads| Program { policy, devices, threads });
    proptest!(config, |(program in program)| program.run());
}

#[test]
fn those_that_once_failed() {
    let _place = place();
    regressions().iter().for_each(Program::run);
}

#[test]
fn declared() {
    programs("declared", [0, 0], 1);
}

#[test]
fn on_demand() {
    programs("demand", [0, 0], 1);
}

#[test]
fn in_place_and_page_grain() {
    programs("remote", [0, 1], 1);
}

#[test]
fn beside_a_device_that_cannot_fault() {
    programs("declared", [0, 5], 1);
}

#[test]
fn beside_unreadable_frames() {
    programs("demand", [0, 4], 1);
}

/// Each thread has allocations of its own; all use the same devices, and take their memory from each other.
#[test]
fn by_several_threads() {
    programs("declared", [0, 6], 3);
}

#[test]
fn by_several_threads_on_demand() {
    programs("demand", [1, 4], 3);
}

#[test]
fn beside_a_coherent_device() {
    programs("declared", [0, 8], 1);
}

#[test]
fn on_demand_beside_a_coherent_device() {
    programs("demand", [0, 8], 1);
}

/// What has just been brought is what has to go.
#[test]
fn on_the_least_memory() {
    programs("demand", [LEAST, LEAST + 1], 1);
}

#[test]
fn on_the_least_memory_beside_a_device_that_cannot_fault() {
    programs("declared", [LEAST, LEAST + 2], 1);
}

#[test]
fn on_the_least_memory_that_nobody_else_sees() {
    programs("declared", [LEAST + 3, LEAST + 4], 1);
}

#[test]
fn on_the_least_memory_by_several_threads() {
    programs("demand", [LEAST, LEAST + 2], 3);
}

/// As [`programs`], where both devices can be had; what cannot is said aloud.
fn programs_with_vulkan(policy: &'static str, devices: [usize; 2], threads: usize) {
    if devices.into_iter().all(|d| world::open(d).is_ok()) {
        programs(policy, devices, threads);
    }
}

#[test]
fn on_vulkan_with_faults() {
    programs_with_vulkan("declared", [VULKAN, 0], 1);
}

#[test]
fn on_vulkan_by_pages() {
    programs_with_vulkan("declared", [VULKAN + 1, 0], 1);
}

#[test]
fn on_vulkan_by_buffers() {
    programs_with_vulkan("declared", [VULKAN + 2, 0], 1);
}

#[test]
fn on_demand_between_vulkan_devices_by_several_threads() {
    programs_with_vulkan("demand", [VULKAN, VULKAN + 1], 3);
}
