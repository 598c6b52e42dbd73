//! A launch on its way: waiting, asking, awaiting, dropping; errors told once; what may cross threads.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use common::*;
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::{Device, Error, HostMut, HostRef, Pending, Runtime, Shared, Stats, View, ViewMut};

const _: () = {
    const fn both<T: Send + Sync>() {}
    const fn forever<T: Send + Sync + 'static>() {}
    forever::<Runtime>();
    forever::<Device>();
    forever::<Pending>();
    forever::<Shared<f32>>();
    forever::<Error>();
    forever::<Stats>();
    both::<View<'_, u32>>();
    both::<ViewMut<'_, u32>>();
    both::<HostRef<'_, u32>>();
    both::<HostMut<'_, u32>>();
};

struct Unpark(Thread);
impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(f: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut f = pin!(f);
    loop {
        match f.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(v) => return v,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn every_way_to_learn_that_a_launch_has_ended() {
    let _limit = limit();
    static HOLD: Hold = Hold::new();
    fn body(_: Group, (): (), y: &mut [u32]) {
        HOLD.wait();
        y.fill(1);
    }
    let held: Kernel<(EachMut<u32>,)> = Kernel::new("held", (), (each_mut(4096),), body);
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(1000).unwrap();
    let p = rt.launch(&held, (&mut x,)).unwrap();
    HOLD.entered();
    assert!(!p.is_done());
    assert!(!p.wait_timeout(Duration::from_millis(20)).unwrap());
    assert!(!p.wait_timeout(Duration::ZERO).unwrap());
    let mut polled = pin!(p);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    assert!(polled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let p2 = rt.launch(&add(1), (&mut x,)).unwrap();
    let waiter = std::thread::spawn(move || {
        p2.wait().unwrap();
        assert!(p2.is_done() && p2.wait_timeout(Duration::ZERO).unwrap());
    });
    HOLD.release();
    std::thread::park(); // until the waker is called
    block_on(polled.as_mut()).unwrap();
    waiter.join().unwrap();
    assert!(polled.is_done());
    block_on(polled.as_mut()).unwrap(); // asking again does no harm
    assert_eq!(x[999], 2);
}

#[test]
fn many_launches_awaited_at_once_and_out_of_order() {
    let _limit = limit();
    let rt = runtime_of(&[small(8 * MIB), rigid(8 * MIB)]);
    let devices = rt.devices();
    let mut x: Vec<_> = (0..8).map(|_| rt.shared::<u32>(10_000).unwrap()).collect();
    for round in 0..20 {
        let all: Vec<Pending> =
            x.iter_mut().enumerate().map(|(i, x)| rt.on(&devices[(i + round) % 2]).launch(&add(1), (x,)).unwrap()).collect();
        for p in all.into_iter().rev() {
            block_on(p).unwrap();
        }
    }
    assert!(x.iter().all(|x| x.iter().all(|v| *v == 20)));
}

/// A waker is the program's own code.
#[test]
fn a_waker_that_panics_harms_nobody_else() {
    let _limit = limit();
    static HOLD: Hold = Hold::new();
    fn body(_: Group, (): (), _: &mut [u32]) {
        HOLD.wait();
    }
    struct Nervous;
    impl Wake for Nervous {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(1000).unwrap();
    let held: Kernel<(EachMut<u32>,)> = Kernel::new("held", (), (each_mut(4096),), body);
    let p = rt.launch(&held, (&mut x,)).unwrap();
    HOLD.entered();
    let polled = pin!(p).poll(&mut Context::from_waker(&Waker::from(Arc::new(Nervous))));
    assert!(polled.is_pending());
    let next = rt.launch(&add(1), (&mut x,)).unwrap();
    let unpark = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut next = pin!(next);
    assert!(next.as_mut().poll(&mut Context::from_waker(&unpark)).is_pending());
    HOLD.release();
    std::thread::park(); // until it is woken, after the one that panics
    block_on(next).unwrap();
}

#[test]
fn a_dropped_launch_goes_on() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(10_000).unwrap();
    for _ in 0..100 {
        drop(rt.launch(&add(1), (&mut x,)).unwrap());
    }
    assert!(x.iter().all(|v| *v == 100));
}

#[test]
fn sync_tells_the_first_unseen_error_once() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let [mut a, mut b, mut c] = std::array::from_fn(|_| rt.shared::<u32>(1000).unwrap());
    let seen = rt.launch(&panics(), (&mut a,)).unwrap();
    assert!(matches!(seen.wait(), Err(Error::Kernel { kernel: "panics", .. })));
    assert!(matches!(seen.wait(), Err(Error::Kernel { .. })), "whoever asks again is told again");
    fn other(_: Group, (): (), _: &mut [u32]) {
        panic!("another");
    }
    let other: Kernel<(EachMut<u32>,)> = Kernel::new("other", (), (each_mut(4096),), other);
    rt.launch(&other, (&mut b,)).unwrap();
    rt.launch(&panics(), (&mut c,)).unwrap();
    assert!(matches!(rt.sync(), Err(Error::Kernel { kernel: "other", .. })));
    assert!(matches!(rt.sync(), Err(Error::Kernel { kernel: "panics", .. })));
    rt.sync().unwrap();
    let e = block_on(rt.launch(&panics(), (&mut c,)).unwrap());
    assert!(e.is_err());
    rt.sync().unwrap();
}

#[test]
fn pending_outlives_everything_it_came_from() {
    let _limit = limit();
    let p = {
        let rt = runtime(small(8 * MIB));
        let mut x = rt.shared::<u32>(100_000).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap()
    };
    p.wait().unwrap();
    assert!(p.is_done());
}
