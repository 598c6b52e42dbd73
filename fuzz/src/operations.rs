//! Bytes as a program of public operations, run against plain vectors.
//!
//! The first byte chooses the policy, the second and third the kinds of the two devices; each operation takes the bytes that it
//! needs, and some hand over to the next thread. What bytes there are is a program: none is refused.

use arbitrary::{Result, Unstructured};

use crate::common::kinds;
use crate::world::{Op, Program};

/// More operations than this are cut: a program must end soon.
const MOST: usize = 60;
/// And no more threads than these.
const MOST_THREADS: usize = 3;

/// Runs the program that the bytes stand for.
///
/// # Panics
/// If the shared allocations do not hold what the vectors hold, or a call fails.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let policy = sterna::policy::NAMES[below(&mut u, sterna::policy::NAMES.len()).unwrap_or(0)];
    let kinds = kinds(1).len();
    let devices = [below(&mut u, kinds).unwrap_or(0), below(&mut u, kinds).unwrap_or(0)];
    let mut threads = vec![Vec::new()];
    for _ in 0..MOST {
        if u.is_empty() {
            break;
        }
        match op(&mut u) {
            Ok(Some(op)) => threads.last_mut().expect("there is one").push(op),
            Ok(None) if threads.len() < MOST_THREADS => threads.push(Vec::new()),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    Program { policy, devices, threads }.run();
}

/// A number below `n`, from one byte.
fn below(u: &mut Unstructured<'_>, n: usize) -> Result<usize> {
    Ok(usize::from(u.arbitrary::<u8>()?) % n)
}

/// An operation, or `None` where another thread begins.
fn op(u: &mut Unstructured<'_>) -> Result<Option<Op>> {
    let kind = below(u, 30)?;
    let of = below(u, 4)?;
    let dev = |u: &mut Unstructured<'_>| below(u, 2);
    let value = |u: &mut Unstructured<'_>| Ok(u32::from(u.arbitrary::<u16>()?) % 1000);
    Ok(Some(match kind {
        0 => Op::Allocate {
            pages: usize::from(u.arbitrary::<u16>()?) % 299 + 1,
            odd: usize::from(u.arbitrary::<u16>()?) % 1024,
        },
        1 => Op::Drop(of),
        2 => Op::Read { of, at: u.arbitrary()?, len: u.arbitrary()? },
        3 => Op::Write { of, at: u.arbitrary()?, len: u.arbitrary()?, value: value(u)? },
        4 => Op::Fill { of, dev: dev(u)?, at: u.arbitrary()?, len: u.arbitrary()?, value: value(u)? },
        5 => Op::Add { of, dev: dev(u)?, at: u.arbitrary()?, len: u.arbitrary()?, value: value(u)? },
        6 => Op::AddChunks { of, chunk: below(u, 99)? + 1, value: value(u)? },
        7 => Op::Copy { from: of, to: below(u, 4)?, dev: dev(u)?, value: value(u)? },
        8 => Op::ToDevice { of, dev: dev(u)? },
        9 => Op::ToHost(of),
        10 => Op::GuardRead { of, at: u.arbitrary()?, len: u.arbitrary()? },
        11 => Op::GuardWrite { of, at: u.arbitrary()?, len: u.arbitrary()?, value: value(u)? },
        12 => Op::Replace { of, at: u.arbitrary()?, len: u.arbitrary()?, value: value(u)? },
        13 => Op::BesideGuard { of, dev: dev(u)?, at: u.arbitrary()?, value: value(u)? },
        14 => Op::Discard { of, at: u.arbitrary()?, len: u.arbitrary()? },
        15 => Op::Truncate { of, at: u.arbitrary()? },
        16 => Op::Split { of, at: u.arbitrary()? },
        17 => Op::Sync,
        18 => Op::Clone { of },
        19 => Op::Advise { of, dev: dev(u)?, at: u.arbitrary()?, len: u.arbitrary()?, what: below(u, 10)? },
        20 => Op::ReadOnly { of, dev: dev(u)? },
        21 => Op::ReadFile { of },
        22 => Op::ForkPolicy { of, what: below(u, 3)? },
        23 => Op::Fork,
        24 => Op::Budget { dev: dev(u)?, left: u.arbitrary()? },
        25 => Op::Lose { dev: dev(u)? },
        26 => return Ok(None),
        27 => Op::FileFrom { of, at: u.arbitrary()?, bytes: usize::from(u.arbitrary::<u16>()?) + 1, shared: u.arbitrary()? },
        28 => Op::DropInKernel { of, dev: dev(u)?, own: u.arbitrary()? },
        _ => Op::Map { of },
    }))
}
