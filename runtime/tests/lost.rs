//! A device that is lost: what only it had is lost and says so; everything else is right, and nothing leaks.

mod common;

use std::sync::Arc;

use common::{MIB, add, child, copy_add, device, faults, is_child, limit, over, panic_text, said, small};
use sterna::cpu::CpuDevice;
use sterna::hal::Device as _;
use sterna::kernels::fill;
use sterna::{Error, Runtime};

/// Has the runtime find out that its first device is gone.
fn notice(rt: &Runtime) {
    let mut x = rt.shared::<u32>(10).unwrap();
    let told = rt.launch(&add(1), (&mut x,)).and_then(|p| p.wait());
    assert!(told.is_err(), "{told:?}");
}

#[test]
fn only_the_only_copies_are_lost() {
    let _limit = limit();
    let d = device(small(16 * MIB));
    let rt = over(&d);
    let x = rt.shared_with(MIB, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(MIB).unwrap();
    rt.launch(&copy_add(1), (&x, &mut y)).unwrap().wait().unwrap();
    let home = y[MIB - 1];
    assert_eq!(home, MIB as u32);
    d.lose();
    notice(&rt);
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32), "a read never discards the host's copy");
    if faults(&rt) {
        let e = y.try_read().unwrap_err();
        assert!(matches!(e, Error::Lost { .. }), "{e}");
        assert!(panic_text(|| assert_eq!(std::hint::black_box(y[0]), 0)).contains("lost"));
        assert!(y.residency().lost > 0);
        // What the host had read since is still there.
        let tail = y.range(MIB - 16..).unwrap();
        assert_eq!(tail.try_read().unwrap()[15], home);
    } else {
        // Without faults a read brings everything home.
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
    }
    y.fill_with(|_| 3).unwrap();
    assert!(y.iter().all(|v| *v == 3), "writing the whole heals");
}

#[test]
fn another_device_goes_on() {
    let _limit = limit();
    let (a, b) =
        (Arc::new(CpuDevice::new(0, small(8 * MIB)).unwrap()), Arc::new(CpuDevice::new(1, small(8 * MIB)).unwrap()));
    let rt = Runtime::builder().open_device(Arc::clone(&a) as _).open_device(Arc::clone(&b) as _).build().unwrap();
    let devices = rt.devices();
    let mut x = rt.shared::<u32>(MIB).unwrap();
    rt.on(&devices[0]).launch(&fill(1_u32), (&mut x,)).unwrap();
    rt.on(&devices[1]).launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    a.lose();
    notice(&rt);
    rt.on(&devices[1]).launch(&add(1), (&mut x,)).unwrap();
    assert!(x.iter().all(|v| *v == 3));
    drop(x);
    assert_eq!(b.memory().in_use, 0);
}

#[test]
fn lost_while_launches_run() {
    let _limit = limit();
    for round in 0..10 {
        let d = device(small(4 * MIB));
        let rt = over(&d);
        let mut y = rt.shared::<u32>(4 * MIB).unwrap();
        let p: Vec<_> = (0..4).map(|i| rt.launch(&add(i), (&mut y,)).unwrap()).collect();
        std::thread::sleep(std::time::Duration::from_micros(300 * round));
        d.lose();
        for p in p {
            let _ = p.wait();
        }
        // Either everything had come home by eviction or it says what it is.
        if let Ok(v) = y.try_read() {
            assert!(v.iter().all(|v| *v <= 6));
        }
    }
}

#[test]
fn a_load_of_a_lost_page_ends_the_process_with_a_line() {
    if !is_child() {
        let o = child("a_load_of_a_lost_page_ends_the_process_with_a_line").output().unwrap();
        let text = said(&o);
        if text.contains("no faults here") {
            return;
        }
        assert!(!o.status.success() && text.contains("whose only copy was lost with its device"), "{text}");
        return;
    }
    let d = device(small(8 * MIB));
    let rt = over(&d);
    if !faults(&rt) {
        println!("no faults here");
        return;
    }
    let mut y = rt.shared::<u32>(MIB).unwrap();
    rt.launch(&fill(1_u32), (&mut y,)).unwrap().wait().unwrap();
    let slice = &y[..];
    d.lose();
    notice(&rt);
    println!("{}", slice[MIB - 1]);
}
