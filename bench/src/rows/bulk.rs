//! **Question.** How fast do 256 MiB move to the device and home again when a program asks for them?
//!
//! **Floor.** The same bytes between two buffers in 2 MiB folios, one `memcpy` a thread on as many threads as there are
//! processors, right before each move. Both sides of the move have their memory already: the first rounds do not count. The
//! host stores to every page before the way to the device, a launch writes every element before the way home, so that all
//! bytes have to travel.
//!
//! Beside it, without a target: memory in 4 KiB folios, as a host that fills it page by page leaves it, on its first journey there
//! or home (later ones make folios of it). 1 GiB of it shows whether the cost a byte stays the same.

use anyhow::Result;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::kernels::fill;
use sterna::{Runtime, Shared, human};

use super::Row;
use crate::floor::{Copiers, Mapping};
use crate::measure::{Runs, Unit, processors, seconds};
use crate::table::Sheet;

pub(super) const ROW: Row =
    Row { name: "bulk", question: "how fast do 256 MiB move when a program asks for them?", variants: &[""], run };

pub(super) const BYTES: usize = 256 << 20;
const GIB: usize = 1 << 30;
const PAGE: usize = 4096 / 8;
const WARM: usize = 2;
const LEAST: Option<f64> = Some(0.95);

/// What the moves of one kind gave, round by round.
#[derive(Default)]
pub(super) struct Way {
    ours: Runs,
    floor: Runs,
    wrong: Vec<String>,
}

/// A device and, for one round, its floor: what copies [`BYTES`] to the device or, without the argument, home.
pub(super) struct Bench<'a> {
    pub(super) rt: &'a Runtime,
    pub(super) floor: Box<dyn FnMut(bool) -> Result<()> + 'a>,
}

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().memory((GIB + BYTES) as u64).build()?;
    let buffers = (Mapping::in_folios(BYTES)?, Mapping::in_folios(BYTES)?);
    let copiers = Copiers::new(processors())?;
    let mut b = Bench {
        rt: &rt,
        floor: Box::new(|_| {
            copiers.copy(buffers.0, buffers.1);
            Ok(())
        }),
    };
    // Many, since the speed of memory on a shared machine comes and goes from one round to the next.
    b.in_folios(sheet, "2 MiB folios", 42)?;

    for (name, bytes, rounds) in [("256 MiB", BYTES, 7), ("1 GiB", GIB, 3)] {
        let (mut there, mut home) = (Way::default(), Way::default());
        for round in 0..rounds {
            let mut x = b.rt.shared::<u64>(bytes / 8)?;
            store(&mut x, round);
            b.there(&x, &mut there)?;
            drop(x);
            let mut x = b.rt.shared::<u64>(bytes / 8)?;
            store(&mut x, round);
            b.rt.launch(&step(), (&mut x,))?.wait()?;
            b.home(&x, round + 1, &mut home)?;
        }
        show(sheet, &format!("4 KiB folios, {name}, to the device"), there, 1, None);
        show(sheet, &format!("4 KiB folios, {name}, home"), home, 1, None);
    }
    Ok(())
}

/// Adds one to every element.
fn step() -> Kernel<(EachMut<u64>,)> {
    Kernel::new("step", (), (each_mut(8192),), |_: Group, (), y: &mut [u64]| y.iter_mut().for_each(|v| *v += 1))
}

/// The host stores to every page.
fn store(x: &mut Shared<u64>, value: u64) {
    for first in x[..].iter_mut().step_by(PAGE) {
        *first = value;
    }
}

impl Bench<'_> {
    /// 256 MiB in 2 MiB folios, there and home again, again and again.
    pub(super) fn in_folios(&mut self, sheet: &mut Sheet, what: &str, rounds: u64) -> Result<()> {
        let (mut there, mut home) = (Way::default(), Way::default());
        let mut x = self.rt.shared_with(BYTES / 8, |i| i as u64)?;
        for round in 0..rounds {
            store(&mut x, round);
            self.there(&x, &mut there)?;
            self.rt.launch(&fill(round + 1), (&mut x,))?.wait()?;
            self.home(&x, round + 1, &mut home)?;
        }
        show(sheet, &format!("{what}, to the device"), there, WARM, LEAST);
        show(sheet, &format!("{what}, home"), home, WARM, LEAST);
        Ok(())
    }

    fn there(&mut self, x: &Shared<u64>, way: &mut Way) -> Result<()> {
        let before = self.rt.stats().to_device();
        let device = self.rt.devices()[0].clone();
        self.timed(x, way, true, || x.prefetch_to(&device))?;
        way.moved(self.rt.stats().to_device() - before, x);
        Ok(())
    }

    fn home(&mut self, x: &Shared<u64>, expected: u64, way: &mut Way) -> Result<()> {
        let before = self.rt.stats().to_host();
        self.timed(x, way, false, || x.prefetch_to_host())?;
        way.moved(self.rt.stats().to_host() - before, x);
        if x.iter().step_by(PAGE).any(|v| *v != expected) {
            way.wrong.push("contents".into());
        }
        Ok(())
    }

    /// Times the floor, then what `ask` asks for until it is done.
    fn timed(&mut self, x: &Shared<u64>, way: &mut Way, there: bool, ask: impl FnOnce()) -> Result<()> {
        let mut copied = Ok(());
        way.floor.push(BYTES as f64 / seconds(|| copied = (self.floor)(there)));
        copied?;
        let time = seconds(|| {
            ask();
            // Fails only with an error of a launch, and each has been waited for.
            let _ = self.rt.sync();
        });
        way.ours.push(size_of_val::<[u64]>(x) as f64 / time);
        Ok(())
    }
}

impl Way {
    fn moved(&mut self, bytes: u64, x: &Shared<u64>) {
        if bytes != size_of_val::<[u64]>(x) as u64 {
            self.wrong.push(human(bytes));
        }
    }
}

fn show(sheet: &mut Sheet, what: &str, mut way: Way, warm: usize, least: Option<f64>) {
    way.ours.skip(warm);
    way.floor.skip(warm);
    sheet.at_least(what, Unit::Speed, &way.ours, &way.floor, least);
    if !way.wrong.is_empty() {
        sheet.exact("  bytes moved, contents", way.wrong.join("; "), "as many as asked for, right", false);
    }
}
