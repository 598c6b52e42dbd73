//! The HMM suite: every test of the kernel's own suite for HMM, its blind spots, and what a runtime in user space adds, on every
//! host-fault mechanism and every kind of device. Prints the table *test × configuration*, which `docs/conformance.md` keeps.
//!
//! A mechanism belongs to its process, so this program runs itself once for each. `STERNA_HMM_ONLY=name` runs the tests whose
//! name contains that, `STERNA_HMM_KIND=mmu` the kinds of devices; `STERNA_CONFORMANCE=write` writes the table to the documentation, and without it the test fails where the
//! documentation says something else.

mod access;
mod backing;
mod blind;
mod coherent;
mod device;
mod exclusive;
mod forks;
mod kinds;
mod memory;
mod migration;
mod mirror;
mod pins;
#[cfg(feature = "planted")]
mod planted;
mod random;
mod runner;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
mod table;
#[path = "../common/vulkan.rs"]
mod vulkan;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sterna::hmm::Space;

use device::Dev;
use kinds::{Config, ORDINARY, Size};
use memory::Memory;

/// What a test gets.
pub(crate) struct Ctx<'a> {
    pub(crate) space: &'static Space,
    pub(crate) config: &'a Config,
}

impl Ctx<'_> {
    /// A device of the configuration; each test has its own.
    pub(crate) fn dev(&self, index: u32) -> Dev {
        self.open(index, ORDINARY)
    }

    /// A device of the configuration and of another size.
    pub(crate) fn dev_with(&self, change: impl FnOnce(&mut Size)) -> Dev {
        let mut size = ORDINARY;
        change(&mut size);
        self.open(0, size)
    }

    fn open(&self, index: u32, size: Size) -> Dev {
        Dev::new(self.space, self.config.open(index, size).expect("a device"), self.config)
    }

    pub(crate) fn mem(&self, pages: u64) -> Memory {
        Memory::new(self.space, pages)
    }

    pub(crate) fn filled(&self, pages: u64) -> Memory {
        Memory::filled(self.space, pages)
    }
}

/// A test passes, fails by a panic, or cannot be in a configuration, for a reason.
pub(crate) type Outcome = Result<(), &'static str>;

/// One row of the table.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// What differs from the kernel's test; empty where nothing does.
    pub(crate) adapted: &'static str,
    pub(crate) run: fn(&Ctx<'_>) -> Outcome,
}

pub(crate) const fn direct(name: &'static str, run: fn(&Ctx<'_>) -> Outcome) -> Test {
    Test { name, adapted: "", run }
}

pub(crate) const fn adapted(name: &'static str, adapted: &'static str, run: fn(&Ctx<'_>) -> Outcome) -> Test {
    Test { name, adapted, run }
}

/// Every test, in the order of the kernel's file, then ours.
pub(crate) fn tests() -> Vec<&'static Test> {
    [
        access::TESTS,
        migration::TESTS,
        backing::TESTS,
        snapshot::TESTS,
        pins::TESTS,
        exclusive::TESTS,
        forks::TESTS,
        mirror::TESTS,
        blind::TESTS,
        random::TESTS,
        coherent::TESTS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// N of the kernel's tests: 4 MiB.
pub(crate) const N: u64 = 1024;
/// Pages of a block.
pub(crate) const BLOCK: u64 = 512;

#[test]
fn conformance() {
    if runner::is_child() {
        return runner::child();
    }
    if support::ran_already("conformance") {
        return;
    }
    let table = runner::all();
    runner::say(&format!("\n{table}\n"));
    table.check();
}

/// Runs one cell.
fn cell(test: &Test, ctx: &Ctx<'_>) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| (test.run)(ctx))).map_err(|e| {
        let text = e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(ToString::to_string));
        text.unwrap_or_else(|| "a panic".into())
    })
}
