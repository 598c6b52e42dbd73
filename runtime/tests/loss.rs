//! A device that is lost: what only it had is lost and said to be, everything else survives.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use common::*;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Absent, Device as _, DeviceError, KernelError};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::kernels::fill;
use sterna::{Error, Runtime, Shared};

fn two() -> (Runtime, Arc<CpuDevice>, Arc<CpuDevice>) {
    let (a, b) = (device(small(8 * MIB)), device(small(8 * MIB)));
    let open = |b: sterna::Builder, d: &Arc<CpuDevice>| b.open_device(Arc::clone(d) as Arc<dyn sterna::hal::Device>);
    let rt = open(open(Runtime::builder(), &a), &b).build().unwrap();
    (rt, a, b)
}

fn is_lost(e: &Error) -> bool {
    e.is_loss() && e.to_string().contains("lost")
}

/// A kernel that writes, and does not end before it is let go. Each test that uses one has a number of its own.
fn held(n: u32) -> (&'static Hold, Kernel<(EachMut<u32>,)>) {
    static HOLDS: [Hold; 3] = [const { Hold::new() }; 3];
    fn body(_: Group, n: u32, y: &mut [u32]) {
        y.fill(7);
        HOLDS[n as usize].wait();
    }
    (&HOLDS[n as usize], Kernel::new("held", n, (each_mut(1 << 30),), body))
}

/// Has the runtime meet the loss: any call that reaches the device does.
fn meet(rt: &Runtime) {
    let mut probe = rt.shared::<u32>(10).unwrap();
    let e = rt.launch(&add(1), (&mut probe,)).and_then(|p| p.wait()).unwrap_err();
    assert!(is_lost(&e), "{e:?}");
    let _ = rt.sync();
}

#[test]
fn a_loss_is_one_whichever_way_it_is_told() {
    let _limit = limit();
    let (hold, held) = held(2);
    let dev = device(small(8 * MIB));
    let rt = over(&dev);
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(100_000).unwrap();
    let running = rt.launch(&held, (&mut x,)).unwrap();
    hold.entered();
    dev.inject().lose();
    hold.release();
    // Who used it, who comes behind, who asks for more, and who reads what only it had.
    let running = running.wait().unwrap_err();
    assert!(running.is_loss(), "{running:?}");
    let behind = rt.launch(&copy_add(1), (&x, &mut y)).and_then(|p| p.wait()).unwrap_err();
    assert!(behind.is_loss(), "{behind:?}");
    let mut more = rt.shared::<u32>(100_000).unwrap();
    let more = rt.launch(&add(1), (&mut more,)).and_then(|p| p.wait()).unwrap_err();
    assert!(more.is_loss(), "{more:?}");
    assert!(x.try_read().unwrap_err().is_loss());
    let (device, why) = (|| "cpu:0".to_string(), || "it fell off".to_string());
    for face in [
        Error::Lost { device: device() },
        Error::Device { device: device(), source: DeviceError::Lost(why()) },
        Error::System(DeviceError::Lost(why())),
        Error::Kernel { kernel: "add", source: KernelError::Lost(why()) },
    ] {
        assert!(face.is_loss(), "{face:?}");
        let behind = Error::Upstream { kernel: "add", source: Arc::new(face) };
        assert!(behind.is_loss(), "{behind:?}");
    }
    // A failure of another kind is none, and none behind it is.
    let rt = runtime(small(8 * MIB));
    let mut z = rt.shared::<u32>(100_000).unwrap();
    let failed = rt.launch(&panics(), (&mut z,)).unwrap().wait().unwrap_err();
    let behind = rt.launch(&add(1), (&mut z,)).unwrap().wait().unwrap_err();
    assert!(matches!(behind, Error::Upstream { .. }) && !failed.is_loss() && !behind.is_loss(), "{failed:?}");
    assert!(!Error::Device { device: "cpu:0".into(), source: DeviceError::Forked }.is_loss());
}

/// Fails by its limit if the thread that writes down a loss, and is the last to let go of an allocation that ended meanwhile, takes
/// that off the device under its own lock.
#[test]
fn an_allocation_ends_beside_the_loss() {
    let _limit = limit();
    for _ in 0..200 {
        let dev = device(CpuConfig { host_readable: false, ..small(8 * MIB) });
        let rt = over(&dev);
        let mut y = rt.shared::<u32>(100_000).unwrap();
        rt.launch(&add(1), (&mut y,)).unwrap().wait().unwrap();
        dev.inject().lose_at(3);
        // Brought home by the service thread, which has the allocation in hand a moment longer than its owner.
        assert_eq!(y[70_000], 1);
        drop(y);
        meet(&rt);
    }
}

#[test]
fn what_only_the_device_had_is_lost_and_the_rest_is_not() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        let dev = device(config);
        let rt = over(&dev);
        let clean = rt.shared_with(200_000, |i| i as u32).unwrap(); // on both sides
        let mut dirty = rt.shared_with(200_000, |i| i as u32).unwrap(); // on the device alone
        let mut back = rt.shared_with(200_000, |i| i as u32).unwrap(); // was there and came home
        let home = rt.shared_with(200_000, |i| i as u32).unwrap(); // never left
        rt.launch(&copy_add(1), (&clean, &mut dirty)).unwrap();
        rt.launch(&add(1), (&mut back,)).unwrap();
        rt.sync().unwrap();
        assert!(back.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
        // There it is used where it is, and nothing came home.
        let stayed = how == "coherent" && faults(&rt);
        dev.inject().lose();
        meet(&rt);
        let e = dirty.try_read().expect_err("lost");
        assert!(matches!(&e, Error::Lost { device } if device == "cpu:0"), "{how}: {e:?}");
        assert!(is_lost(&dirty.host(..).unwrap_err()), "{how}");
        assert!(panic_text(|| assert_eq!(dirty[5], 6)).contains("lost"), "{how}");
        assert!(panic_text(|| dirty[5] = 6).contains("lost"), "{how}");
        let r = dirty.residency();
        assert!(r.lost > 0 && r.host + r.lost == r.pages && r.devices[0].pages == 0, "{how}: {r}");
        assert!(clean.iter().enumerate().all(|(i, v)| *v == i as u32), "{how}");
        if stayed {
            assert!(is_lost(&back.try_read().unwrap_err()), "{how}");
        } else {
            assert!(back.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "{how}");
        }
        assert!(home.iter().enumerate().all(|(i, v)| *v == i as u32), "{how}");
        drop((clean, dirty, back, home));
        drop(rt);
        eventually("everything is given back", || dev.memory().in_use == 0 && Arc::strong_count(&dev) == 1);
    }
}

#[test]
fn what_was_lost_can_be_written_anew() {
    let _limit = limit();
    let (rt, a, _) = two();
    let other = rt.devices()[1].clone();
    let lost = || {
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        x
    };
    let (mut x, mut y, mut z) = (lost(), lost(), lost());
    a.inject().lose();
    meet(&rt);
    assert!([&x, &y, &z].iter().all(|v| v.try_read().is_err()));
    // By the host.
    x.fill_with(|i| i as u32 + 5).unwrap();
    assert!(x.try_read().unwrap().iter().enumerate().all(|(i, v)| *v == i as u32 + 5));
    rt.on(&other).launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    assert_eq!(x[99_999], 100_005);
    // By a launch on a device that is there.
    let e = rt.on(&other).launch(&add(1), (&mut y,)).unwrap().wait().unwrap_err();
    assert!(is_lost(&e), "{e:?}");
    rt.on(&other).launch(&fill(3_u32), (&mut y,)).unwrap().wait().unwrap();
    assert!(y.try_read().unwrap().iter().all(|v| *v == 3));
    // By values, in two parts.
    z.range_mut(..512 * PAGE_ELEMS / 8).unwrap().fill_with(|_| 1).unwrap();
    assert_eq!(z.range(..1000).unwrap()[7], 1);
    assert!(z.try_read().is_err());
    z.range_mut(512 * PAGE_ELEMS / 8..).unwrap().fill_with(|_| 2).unwrap();
    assert_eq!((z[0], z[99_999]), (1, 2));
}

/// Nobody has met the loss before the call that replaces the bytes does: at the first of its own calls of the device, or a later one.
#[test]
fn what_is_replaced_whole_needs_nothing_of_what_is_lost_meanwhile() {
    let _limit = limit();
    const N: usize = 200_000;
    let right = |x: &Shared<u32>, how: &str| {
        let x = x.try_read().unwrap_or_else(|e| panic!("{how}: {e:?}"));
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 5), "{how}");
    };
    type Replaces = fn(&mut Shared<u32>) -> Result<(), Error>;
    let ways: [(&str, Replaces); 3] = [
        ("fill_with", |x| x.fill_with(|i| i as u32 + 5)),
        ("write_from", |x| x.write_from(&(0..N as u32).map(|i| i + 5).collect::<Vec<_>>())),
        ("discard", |x| x.discard(..).and_then(|()| x.fill_with(|i| i as u32 + 5))),
    ];
    for (kind, config) in kinds(8 * MIB) {
        for (way, replaces) in ways {
            for at in 0..4 {
                let how = format!("{kind}, {way}, call {at}");
                let dev = device(config.clone());
                let rt = over(&dev);
                let mut x = rt.shared_with(N, |i| i as u32).unwrap();
                rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
                dev.inject().lose_at(at);
                replaces(&mut x).unwrap_or_else(|e| panic!("{how}: {e:?}"));
                right(&x, &how);
            }
        }
    }
}

/// The pages at the ends of a view have others' bytes, too: those are right, or said to be lost.
#[test]
fn what_is_replaced_in_part_keeps_the_rest_or_says_that_it_is_lost() {
    let _limit = limit();
    for (kind, config) in kinds(8 * MIB) {
        for at in 0..4 {
            let how = format!("{kind}, call {at}");
            let dev = device(config.clone());
            let rt = over(&dev);
            if !faults(&rt) && config.absent == Absent::Undefined {
                continue; // whole grains alone can be launched on there
            }
            let mut x = rt.shared_with(200_000, |i| i as u32).unwrap();
            rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
            dev.inject().lose_at(at);
            x.range_mut(100..150_000).unwrap().fill_with(|i| i as u32 + 7).unwrap_or_else(|e| panic!("{how}: {e:?}"));
            let middle = x.range(100..150_000).unwrap();
            assert!(middle.try_read().unwrap().iter().enumerate().all(|(i, v)| *v == i as u32 + 7), "{how}");
            for beside in [0..100, 150_000..200_000] {
                let part = x.range(beside.clone()).unwrap();
                match part.try_read() {
                    Ok(v) => assert!(v.iter().zip(beside).all(|(v, i)| *v == i as u32 + 1), "{how}"),
                    Err(e) => assert!(is_lost(&e), "{how}: {e:?}"),
                }
            }
        }
    }
}

#[test]
fn a_launch_that_replaces_everything_needs_nothing_of_what_another_device_loses_meanwhile() {
    let _limit = limit();
    for at in 0..4 {
        let (rt, a, _) = two();
        let other = rt.devices()[1].clone();
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        a.inject().lose_at(at);
        let ended = rt.on(&other).launch(&fill(3_u32), (&mut x,)).unwrap().wait();
        ended.unwrap_or_else(|e| panic!("call {at}: {e:?}"));
        assert!(x.try_read().unwrap().iter().all(|v| *v == 3), "call {at}");
    }
}

#[test]
fn the_other_device_goes_on() {
    let _limit = limit();
    let (rt, a, b) = two();
    let [da, db] = &rt.devices()[..] else { panic!() };
    let mut x = rt.shared_with(300_000, |i| i as u32).unwrap();
    let mut mine = rt.shared_with(300_000, |i| i as u32).unwrap();
    rt.on(da).launch(&add(1), (&mut mine,)).unwrap().wait().unwrap();
    rt.on(db).launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    a.inject().lose();
    meet(&rt);
    for _ in 0..5 {
        rt.on(db).launch(&add(1), (&mut x,)).unwrap();
    }
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 6));
    assert!(mine.try_read().is_err());
    drop((x, mine));
    rt.sync().unwrap();
    eventually("all memory is given back", || (a.memory().in_use, b.memory().in_use) == (0, 0));
}

#[test]
fn a_launch_is_running_when_the_device_goes() {
    let _limit = limit();
    let (hold, held) = held(0);
    let dev = device(small(8 * MIB));
    let rt = over(&dev);
    let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
    let kept = rt.shared_with(100_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(100_000).unwrap();
    rt.launch(&copy_add(0), (&kept, &mut y)).unwrap().wait().unwrap();
    let p = rt.launch(&held, (&mut x,)).unwrap();
    let q = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
    hold.entered();
    dev.inject().lose();
    // A kernel is a function of this program: nothing is taken from under it, and the loss comes when it has ended.
    assert!(!dev.inject().is_lost() && !p.wait_timeout(std::time::Duration::from_millis(20)).is_ok_and(|ended| ended));
    hold.release();
    let e = p.wait().unwrap_err();
    assert!(is_lost(&e), "{e:?}");
    assert!(is_lost(&q.wait().unwrap_err()));
    // The runtime has been told by the launch alone: nothing more may be believed of the device.
    assert!(is_lost(&x.try_read().unwrap_err()));
    assert!(is_lost(&y.try_read().unwrap_err()));
    assert!(kept.iter().enumerate().all(|(i, v)| *v == i as u32));
    rt.sync().unwrap(); // everybody has been told
    drop((x, y, kept, p, q));
    drop(rt);
    eventually("everything is given back", || dev.memory().in_use == 0 && Arc::strong_count(&dev) == 1);
}

/// What a launch that ended well has written is as lost as the rest, even if the loss is first told by another launch.
#[test]
fn a_launch_tells_of_the_loss_and_another_allocation_is_gone() {
    let _limit = limit();
    let (hold, held) = held(1);
    let dev = device(CpuConfig { host_readable: false, ..small(8 * MIB) });
    let rt = over(&dev);
    let mut x = rt.shared::<u32>(1000).unwrap();
    let mut done = rt.shared_with(100_000, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut done,)).unwrap().wait().unwrap();
    let p = rt.launch(&held, (&mut x,)).unwrap();
    hold.entered();
    dev.inject().lose();
    hold.release();
    assert!(is_lost(&p.wait().unwrap_err()));
    assert!(matches!(done.try_read(), Err(Error::Lost { .. })));
    assert_eq!(done.residency().lost, done.residency().pages);
}

#[test]
fn pages_are_being_demanded_when_the_device_goes() {
    let _limit = limit();
    for after in [1, 5, 20, 60, 100] {
        let dev = device(small(4 * MIB));
        let open: Arc<dyn sterna::hal::Device> = Arc::clone(&dev) as _;
        let rt = Runtime::builder().open_device(open).policy("demand").unwrap().build().unwrap();
        let x = rt.shared_with(4 * MIB, |i| i as u32).unwrap();
        let mut y = rt.shared_with(4 * MIB, |_| 1_u32).unwrap();
        let before = dev.inject().copies();
        let p = rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
        eventually("pages come and go", || dev.inject().copies() >= before + after || p.is_done());
        dev.inject().lose();
        let ended = p.wait();
        if ended.is_ok() {
            meet(&rt);
        }
        assert!(y.try_read().is_err(), "after {after} copies");
        assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32), "after {after} copies");
        drop((x, y, p));
        drop(rt);
        eventually("everything is given back", || dev.memory().in_use == 0 && Arc::strong_count(&dev) == 1);
    }
}

/// Launches and evictions are under way at the loss: what can be read is right.
#[test]
fn several_launches_are_under_way_when_the_device_goes() {
    let _limit = limit();
    for round in 0..10 {
        let dev = device(small(4 * MIB));
        let rt = over(&dev);
        let mut y = rt.shared::<u32>(4 * MIB).unwrap();
        let p: Vec<_> = (0..4).map(|i| rt.launch(&add(i), (&mut y,)).unwrap()).collect();
        std::thread::sleep(std::time::Duration::from_micros(300 * round));
        dev.inject().lose();
        let ended = p.iter().filter(|p| p.wait().is_ok()).count() as u32;
        if let Ok(v) = y.try_read() {
            let sum = ended * ended.saturating_sub(1) / 2;
            assert!(v.iter().all(|v| *v == sum), "{ended} launches ended well");
        }
    }
}

#[test]
fn a_prefetch_and_a_fetch_home_meet_the_loss() {
    let _limit = limit();
    let dev = device(small(8 * MIB));
    let rt = over(&dev);
    let x = rt.shared_with(MIB, |i| i as u32).unwrap();
    dev.inject().lose();
    x.prefetch_to(&rt.devices()[0]);
    let _ = rt.sync();
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32));
    let dev = device(CpuConfig { absent: Absent::Undefined, ..small(8 * MIB) });
    let rt = over(&dev);
    let mut x = rt.shared_with(MIB, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    dev.inject().lose();
    x.prefetch_to_host();
    let _ = rt.sync();
    assert!(is_lost(&x.try_read().unwrap_err()));
}

/// Fails by the end of the process if `try_read` says that all is well of a loss that nobody has met yet, or hands out what a later loss
/// takes away.
#[test]
fn what_try_read_gives_outlives_the_device() {
    let _limit = limit();
    for (how, config) in kinds(8 * MIB) {
        for touched in [false, true] {
            let dev = device(config.clone());
            let rt = over(&dev);
            let made = || {
                let mut x = rt.shared_with(200_000, |i| i as u32).unwrap();
                rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
                if touched {
                    assert_eq!(x[50_000], 50_001);
                }
                x
            };
            let (before, after, part) = (made(), made(), made());
            let part = part.range(100_000..100_500).unwrap();
            let right = |x: &[u32], from: usize| x.iter().enumerate().all(|(i, v)| *v == (from + i) as u32 + 1);
            let (all, some) = (before.try_read().unwrap(), part.try_read().unwrap());
            dev.inject().lose();
            // Nobody has asked the device since.
            match after.try_read() {
                Ok(x) => assert!(right(x, 0), "{how}"), // it had come home
                Err(e) => assert!(is_lost(&e), "{how}: {e:?}"),
            }
            assert!(right(all, 0) && right(some, 100_000), "{how}");
            meet(&rt);
            assert!(right(all, 0) && right(some, 100_000), "{how}");
            assert!(right(before.try_read().unwrap(), 0), "{how}");
        }
    }
}

/// A load that meets a lost page on a device of this configuration, in a process of its own, which it ends; the page is touched
/// before the loss, or not.
fn ends_the_process(name: &str, config: CpuConfig, touched: bool) {
    if is_child() {
        let dev = device(config);
        let rt = over(&dev);
        let mut x = rt.shared_with(100_000, |i| i as u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        if !faults(&rt) {
            println!("no faults, no such load");
            return;
        }
        let slice = &x[..];
        if touched {
            assert_eq!(slice[50_000], 50_001);
        }
        dev.inject().lose();
        meet(&rt);
        println!("alive {}", slice[50_000]);
        return;
    }
    let o = child(name).output().unwrap();
    let text = said(&o);
    if text.contains("no such load") {
        return;
    }
    assert_eq!(o.status.signal(), Some(libc::SIGABRT), "{text}");
    assert!(
        text.contains("sterna: a load met a page whose only copy was lost with its device") && !text.contains("alive"),
        "{text}"
    );
}

/// A reference was handed out before the loss: its load cannot return.
#[test]
fn a_load_that_meets_a_lost_page_ends_the_process() {
    let config = CpuConfig { host_readable: false, ..small(8 * MIB) };
    ends_the_process("a_load_that_meets_a_lost_page_ends_the_process", config, false);
}

/// The host had the page mapped in the device's memory: what that shows now counts for nothing.
#[test]
fn a_load_of_a_lost_devices_memory_ends_the_process() {
    let config = CpuConfig { coherent: true, ..small(8 * MIB) };
    ends_the_process("a_load_of_a_lost_devices_memory_ends_the_process", config, true);
}
