//! The program's code on threads of the engine: kernels that fail in every group, payloads whose drop panics, large values, drivers'
//! callbacks that panic, and kernels that look at shared memory as the host does.

mod common;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::*;
use sterna::hmm::{Action, Mirror, MirrorOps, Pages};
use sterna::kernel::{Each, EachMut, EachOut, Group, Kernel, MOST_VALUE, each, each_mut, each_out};
use sterna::{Error, Mechanism, Shared};

/// Panics with another one whenever it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new(Self));
    }
}

#[test]
fn payloads_whose_drop_panics_end_their_launch_and_nothing_else() {
    let _limit = limit();
    fn body(g: Group, (): (), y: &mut [u32]) {
        if g.index().is_multiple_of(2) {
            std::panic::resume_unwind(Box::new(Bomb));
        }
        y[0] = 1;
    }
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let mut y = rt.shared::<u32>(1000).unwrap();
        let bomb: Kernel<(EachMut<u32>,)> = Kernel::new("bomb", (), (each_mut(1),), body);
        for _ in 0..3 {
            let e = rt.launch(&bomb, (&mut y,)).unwrap().wait();
            assert!(matches!(e, Err(Error::Kernel { kernel: "bomb", .. })), "{how}: {e:?}");
            y.fill_with(|_| 0).unwrap();
        }
        rt.launch(&add(3), (&mut y,)).unwrap();
        assert!(y.iter().all(|v| *v == 3), "{how}");
    }
}

#[test]
fn a_kernel_that_fails_in_every_group_is_told_of_once() {
    let name = "a_kernel_that_fails_in_every_group_is_told_of_once";
    let _limit = limit();
    if !is_child() {
        let text = succeeds(&mut child(name));
        assert_eq!(text.matches("panicked at").count(), 2, "one for each launch: {text}");
        assert_eq!(text.matches("no such element").count(), 2, "{text}");
        return;
    }
    fn body(_: Group, (): (), _: &mut [u32]) {
        panic!("no such element");
    }
    let rt = runtime(small(8 * MIB));
    let mut y = rt.shared::<u32>(100_000).unwrap();
    let fails: Kernel<(EachMut<u32>,)> = Kernel::new("fails", (), (each_mut(1),), body);
    for _ in 0..2 {
        let e = rt.launch(&fails, (&mut y,)).unwrap().wait().unwrap_err();
        assert!(format!("{e:?}").contains("no such el"), "{e:?}");
        y.fill_with(|_| 0).unwrap();
    }
    // A kernel that is well afterwards is not taken for it.
    rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Big<const N: usize>([u8; N]);
// SAFETY: bytes.
unsafe impl<const N: usize> sterna::bytemuck::Zeroable for Big<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> sterna::bytemuck::Pod for Big<N> {}

fn uses<const N: usize>(g: Group, v: Big<N>, y: &mut [u32]) {
    y[0] = u32::from(v.0[g.index() * (N / 64)]) + u32::from(v.0[N - 1]);
}

fn large<const N: usize>() -> Box<[u8; N]> {
    let v: Vec<u8> = (0..N).map(|i| (i / (N / 64)) as u8).collect();
    v.into_boxed_slice().try_into().unwrap()
}

#[test]
fn values_of_some_mib_are_handed_over_and_larger_ones_refused() {
    let _limit = limit();
    fn launch<const N: usize>() -> Result<Vec<u32>, Error> {
        let rt = runtime(small(8 * MIB));
        let mut y = rt.shared::<u32>(50)?;
        let kernel: Kernel<(EachOut<u32>,)> = Kernel::new("uses", Big(*large::<N>()), (each_out(1),), uses::<N>);
        rt.launch(&kernel, (&mut y,))?.wait()?;
        Ok(y.to_vec())
    }
    // The program's own stack has to hold what it hands over by value.
    let roomy = std::thread::Builder::new().stack_size(256 << 20);
    let ended = roomy.spawn(|| {
        let expect: Vec<u32> = (0..50).map(|g| g + 63).collect();
        assert_eq!(launch::<{ 4 << 10 }>().unwrap(), expect);
        assert_eq!(launch::<{ 1 << 20 }>().unwrap(), expect);
        assert_eq!(launch::<{ 4 << 20 }>().unwrap(), expect);
        assert_eq!(launch::<MOST_VALUE>().unwrap(), expect);
        let e = launch::<{ MOST_VALUE + 64 }>().unwrap_err();
        assert!(matches!(&e, Error::Arguments { what, .. } if what.contains("buffer")), "{e}");
    });
    ended.unwrap().join().unwrap();
}

#[test]
fn a_large_value_fails_as_a_small_one_does() {
    let _limit = limit();
    fn body(g: Group, v: Big<{ 1 << 20 }>, y: &mut [u32]) {
        assert!(g.index() != 7, "group seven: {}", v.0[1]);
        y[0] = 1;
    }
    let ended = std::thread::Builder::new().stack_size(64 << 20).spawn(|| {
        let rt = runtime(small(8 * MIB));
        let mut y = rt.shared::<u32>(50).unwrap();
        let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("seven", Big(*large()), (each_mut(1),), body);
        let e = rt.launch(&kernel, (&mut y,)).unwrap().wait().unwrap_err();
        assert!(format!("{e:?}").contains("group seven: 0"), "{e:?}");
    });
    ended.unwrap().join().unwrap();
}

#[test]
fn a_callback_that_panics_ends_its_mirror_alone() {
    let _limit = limit();
    static CALLS: AtomicU32 = AtomicU32::new(0);
    struct Nervous;
    impl MirrorOps for Nervous {
        fn update(&self, _: Action, _: &Pages) {
            CALLS.fetch_add(1, SeqCst);
            std::panic::resume_unwind(Box::new(Bomb));
        }
    }
    let rt = runtime(small(8 * MIB));
    let _mirror = Mirror::register(rt.space(), Nervous);
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    for round in 1..4 {
        rt.launch(&add(1), (&mut x,)).unwrap();
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + round));
    }
    assert!((1..=2).contains(&CALLS.load(SeqCst)), "{CALLS:?}: once, and perhaps once beside it");
}

static TABLE: OnceLock<Shared<u32>> = OnceLock::new();

/// Reads each element as the host and as an argument.
fn both(g: Group, (): (), x: &[u32], y: &mut [u32]) {
    let t = TABLE.get().unwrap();
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        *y = t[g.index() * 1024 + i].wrapping_mul(2).wrapping_sub(*x);
    }
}

/// The same, from the argument alone.
fn alone_(_: Group, (): (), x: &[u32], y: &mut [u32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x);
}

#[test]
fn a_kernel_that_reads_as_the_host_what_it_reads_as_an_argument_is_as_fast_as_two_readers() {
    let (_limit, _alone) = (limit(), alone());
    const N: usize = 64 * 1024;
    let rt = runtime(small(8 * MIB));
    let t = TABLE.get_or_init(|| rt.shared_with(N, |i| i as u32).unwrap());
    let mut y = rt.shared::<u32>(N).unwrap();
    let two: Kernel<(Each<u32>, EachMut<u32>)> = Kernel::new("both", (), (each(1024), each_mut(1024)), both);
    let one: Kernel<(Each<u32>, EachMut<u32>)> = Kernel::new("alone", (), (each(1024), each_mut(1024)), alone_);
    let start = Instant::now();
    rt.launch(&one, (t, &mut y)).unwrap().wait().unwrap();
    assert!(t.iter().zip(y.iter()).all(|(t, y)| t == y), "the host reads the same pages afterwards");
    let apart = start.elapsed();
    let start = Instant::now();
    rt.launch(&two, (t, &mut y)).unwrap().wait().unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32));
    let beside = start.elapsed();
    println!("apart {apart:?}, beside each other {beside:?}");
    if rt.stats().mechanism == Mechanism::None {
        return; // nothing is mapped twice there
    }
    // Each element by turns, with a time slice a turn, would take minutes.
    assert!(beside < apart * 5 + Duration::from_millis(200), "apart {apart:?}, beside each other {beside:?}");
    // A store afterwards ends what they shared.
    rt.sync().unwrap();
}

/// The host as another thread beside a kernel: both read, neither waits for the other.
#[test]
fn the_host_reads_beside_a_kernel_that_reads_and_stores_when_it_may() {
    let (_limit, _alone) = (limit(), alone());
    const N: usize = 64 * 1024;
    fn body(_: Group, rounds: u32, x: &[u32], y: &mut [u32]) {
        let mut sum = 0_u32;
        for _ in 0..rounds {
            sum = x.iter().fold(sum, |s, x| s.wrapping_add(*x));
        }
        y[0] = sum;
    }
    for (how, config) in kinds(8 * MIB) {
        let rt = runtime(config);
        let mut x = rt.shared_with(N, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(64).unwrap();
        let sums: Kernel<(Each<u32>, EachOut<u32>)> = Kernel::new("sums", 40, (each(1024), each_out(1)), body);
        for round in 0..3_u32 {
            let p = rt.launch(&sums, (&x, &mut y)).unwrap();
            while !p.is_done() {
                assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + round), "{how}");
            }
            p.wait().unwrap();
            // A store comes behind the launch, and the next kernel sees it.
            x.iter_mut().for_each(|v| *v += 1);
            let of = |g: u32| (0..1024).fold(0_u32, |s, i| s.wrapping_add(g * 1024 + i + round)).wrapping_mul(40);
            assert!(y.iter().zip(0..).all(|(y, g)| *y == of(g)), "{how}, {round}");
        }
    }
}
