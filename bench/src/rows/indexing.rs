//! **Question.** Does indexing through the handle cost what indexing a slice costs?
//!
//! **Floor.** The same loop in a function that takes `&[T]`, over the same memory. 256 KiB, so that the loop and not the memory is
//! measured: `f32` is a chain of dependent additions, `u64` is a loop that the compiler turns into vector instructions if
//! nothing is in its way.
//!
//! The gate is idle where no launch has written since the last `&mut`. Until then it is asked at each index, with a load that may
//! not leave the loop: an ended launch shows what that costs. Nothing where additions wait for each other; vector instructions
//! are lost, until a `&mut` (or `settle`) says that nothing is on its way.

use std::hint::black_box;

use anyhow::Result;
use sterna::bytemuck::Pod;
use sterna::kernels::fill;
use sterna::{Runtime, Shared};

use super::Row;
use crate::measure::{Pinned, Runs, Unit, seconds};
use crate::table::Sheet;

pub(super) const ROW: Row = Row {
    name: "indexing",
    question: "does `x[i]` through the handle cost what it costs on a slice?",
    variants: &[""],
    run,
};

const BYTES: usize = 256 << 10;
const CALLS: u32 = 200;
const ROUNDS: usize = 9;
const MOST: Option<f64> = Some(1.1);

macro_rules! sums {
    ($shared:ident, $slice:ident, $T:ty, $add:expr) => {
        #[inline(never)]
        fn $shared(x: &Shared<$T>) -> $T {
            let mut sum = <$T>::default();
            for i in 0..x.len() {
                sum = $add(sum, x[i]);
            }
            sum
        }

        #[inline(never)]
        fn $slice(x: &[$T]) -> $T {
            let mut sum = <$T>::default();
            for i in 0..x.len() {
                sum = $add(sum, x[i]);
            }
            sum
        }
    };
}
sums!(shared_f32, slice_f32, f32, |a: f32, b: f32| a + b);
sums!(shared_u64, slice_u64, u64, u64::wrapping_add);

fn run(sheet: &mut Sheet) -> Result<()> {
    let rt = Runtime::builder().memory(64 << 20).build()?;
    let _here = Pinned::to(Pinned::first_cpu());
    states(sheet, &rt, "f32", 1.0_f32, shared_f32, slice_f32)?;
    states(sheet, &rt, "u64", 1_u64, shared_u64, slice_u64)
}

fn states<T: Pod + Send + Sync + PartialEq + std::fmt::Debug>(
    sheet: &mut Sheet,
    rt: &Runtime,
    name: &str,
    one: T,
    shared: fn(&Shared<T>) -> T,
    slice: fn(&[T]) -> T,
) -> Result<()> {
    let mut x = rt.shared_with(BYTES / size_of::<T>(), |_| one)?;
    compare(sheet, &format!("{name}, never launched"), &x, shared, slice, MOST)?;
    rt.launch(&fill(one), (&mut x,))?.wait()?;
    compare(sheet, &format!("{name}, written by an ended launch, gate asked"), &x, shared, slice, None)?;
    x.settle()?;
    compare(sheet, &format!("{name}, settled since"), &x, shared, slice, MOST)
}

fn compare<T: Pod + Send + Sync + PartialEq + std::fmt::Debug>(
    sheet: &mut Sheet,
    what: &str,
    x: &Shared<T>,
    shared: fn(&Shared<T>) -> T,
    slice: fn(&[T]) -> T,
    most: Option<f64>,
) -> Result<()> {
    let (mut ours, mut floor) = (Runs::default(), Runs::default());
    let each = f64::from(CALLS) * x.len() as f64;
    // The first call brings what is away home.
    anyhow::ensure!(shared(x) == slice(x), "the sums differ");
    for _ in 0..ROUNDS {
        ours.push(calls(|| shared(black_box(x))) / each);
        floor.push(calls(|| slice(black_box(&x[..]))) / each);
    }
    sheet.at_most(what, Unit::Time, &ours, &floor, most);
    Ok(())
}

fn calls<R>(f: impl Fn() -> R) -> f64 {
    seconds(|| {
        for _ in 0..CALLS {
            black_box(f());
        }
    })
}
