//! The checks, one function a property, by what they are about; what they share is here.

use super::check::{Check, Verdict};
use crate::kernel::{EachMut, Group, Kernel, Params, Spirv, each_mut};

mod coherent;
mod copies;
mod entries;
mod launches;
mod memory;

pub use coherent::*;
pub use copies::*;
pub use entries::*;
pub use launches::*;
pub use memory::*;

type Checked = Result<Verdict, String>;

macro_rules! list {
    ($($name:ident),* $(,)?) => {
        /// Every check with its name, in the order in which they run.
        pub const LIST: &[(&str, Check)] = &[$((stringify!($name), $name)),*];
    };
}
list! {
    caps_are_sane, addresses_are_aligned_and_come_back, too_big_a_reservation_is_told_apart, allocation_is_all_or_nothing,
    frames_come_back, copies_keep_every_byte, large_copies_of_odd_length, many_runs_in_one_copy, zero_is_a_source, copies_wait_for_their_points,
    points_are_reached_in_order, waiting_can_time_out, every_group_runs_once, parts_of_a_grid, a_part_needs_its_own_addresses, plain_values_arrive,
    launches_run_in_order, launches_wait_for_copies, entries_can_be_changed, read_only_entries_can_be_read,
    host_storage_can_be_aliased, frames_of_a_place_are_its_own, coherent_frames_are_one_memory, a_panic_is_a_failed_launch, kernels_know_where_they_are, a_kernel_without_a_form_is_refused,
    kernels_are_unloaded,
    threads_may_call_at_once,
}

const TOO_SMALL: Checked = Ok(Verdict::Skipped("too little device memory"));

/// Passes, or says that the device is too small for this check.
macro_rules! room {
    ($bench:expr, $grains:expr) => {
        if !$bench.room($grains) {
            return crate::conformance::checks::TOO_SMALL;
        }
    };
}
use room;

/// Bytes that differ from their neighbours and from those at other offsets.
fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn first_difference(got: &[u8], want: &[u8]) -> String {
    let at = got.iter().zip(want).position(|(a, b)| a != b);
    at.map_or_else(
        || "lengths differ".into(),
        |i| format!("byte {i} of {} is {} instead of {}", want.len(), got[i], want[i]),
    )
}

macro_rules! form {
    ($name:literal) => {
        crate::kernel::Spirv::new(include_bytes!(concat!("../glsl/", $name, ".spv")))
    };
}
use form;

/// The kernel with its SPIR-V form.
fn both<P: Params>(kernel: Kernel<P>, form: Spirv) -> Kernel<P> {
    // SAFETY: the modules beside this file do what the Rust forms do, within the bounds of their buffers.
    unsafe { kernel.with_spirv(form) }
}

/// The kernel that most checks run: `y = 3·y + add`, in parts of `chunk` elements.
fn stepping(add: u32, chunk: usize) -> Kernel<(EachMut<u32>,)> {
    both(Kernel::new("step", add, (each_mut::<u32>(chunk),), step), form!("step"))
}

/// Passes, or says that the device runs no Rust forms.
macro_rules! rust_forms {
    ($bench:expr) => {
        if !$bench.runs_rust() {
            return Ok(crate::conformance::check::Verdict::Skipped("the device runs compiled forms only"));
        }
    };
}
use rust_forms;

fn step(_: Group, add: u32, y: &mut [u32]) {
    y.iter_mut().for_each(|y| *y = y.wrapping_mul(3).wrapping_add(add));
}
