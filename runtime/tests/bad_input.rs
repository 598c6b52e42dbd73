//! What a program gets wrong: lengths, ranges, arguments, names, and calls from the wrong place. Typed errors, before anything
//! is touched.

mod common;

use std::sync::{Arc, OnceLock};

use common::*;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::kernel::{EachMut, Group, Kernel, each, each_mut, scatter, whole};
use sterna::{Error, Mechanism, Runtime, Shared};

#[test]
fn lengths_that_are_not_possible() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let most = rt.space().bytes();
    assert!(matches!(rt.shared::<u32>(0), Err(Error::Length { len: 0, elem: 4, most: m }) if m == most));
    assert!(matches!(rt.shared::<u64>(usize::MAX), Err(Error::Length { .. })));
    assert!(matches!(rt.shared::<u64>(usize::MAX / 8), Err(Error::Length { .. })));
    assert!(matches!(rt.shared::<()>(5), Err(Error::Length { elem: 0, .. })));
    assert!(matches!(rt.shared::<u8>(most as usize + 1), Err(Error::Length { .. })));
    assert!(matches!(rt.shared_from::<u32>(&[]), Err(Error::Length { .. })));
    let taken = rt.shared::<u8>(4096).unwrap();
    let Err(Error::TooBig { requested, limit, .. }) = rt.shared::<u8>(most as usize) else { panic!("too big") };
    assert!(requested == most && limit < most && limit > most / 2);
    drop(taken);
    let all = rt.shared::<u8>(most as usize / 4).unwrap(); // costs nothing until touched
    assert_eq!((all[0], all[most as usize / 4 - 1]), (0, 0));
}

#[test]
fn more_than_the_host_has_is_refused_before_anything_is_touched() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let len = rt.space().bytes() as usize / 2;
    let mut asked = 0_u64;
    let e = rt.shared_with(len, |_| {
        asked += 1;
        0_u8
    });
    let Err(Error::OutOfHostMemory { requested, available }) = e else { panic!("{e:?}") };
    assert_eq!((requested, asked), (len as u64, 0));
    assert!(available < requested);
    let mut x = rt.shared::<u8>(len).unwrap();
    assert!(matches!(x.fill_with(|_| 1), Err(Error::OutOfHostMemory { .. })));
    assert!(matches!(x.write_from(&[1, 2, 3]), Err(Error::Range { start: 0, end: 3, .. })));
    let mut part = x.range_mut(7..9).unwrap();
    part.write_from(&[1, 2]).unwrap();
    assert_eq!(x[6..10], [0, 1, 2, 0]);
}

#[test]
fn ranges_that_lie_outside() {
    let _limit = limit();
    let rt = runtime(small(8 * MIB));
    let mut x = rt.shared::<u32>(100).unwrap();
    assert!(matches!(x.range(50..101), Err(Error::Range { start: 50, end: 101, len: 100 })));
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    let reversed = x.range(60..50).err();
    assert!(matches!(reversed, Some(Error::Range { start: 60, end: 50, len: 100 })));
    assert!(matches!(x.range(..=usize::MAX), Err(Error::Range { .. })));
    assert!(matches!(x.range_mut(101..), Err(Error::Range { .. })));
    assert!(matches!(x.split_at_mut(101), Err(Error::Range { .. })));
    assert!(x.split_at_mut(100).unwrap().1.is_empty());
    assert!(panic_text(|| drop(x.chunks_mut(0))).contains("0 elements"));
    assert!(x.range(100..).unwrap().is_empty());
    let mut none = x.range_mut(5..5).unwrap();
    none.write_from(&[]).unwrap();
    none.fill_with(|_| 1).unwrap();
    none.prefetch_to(&rt.devices()[0]);
    assert_eq!((none.try_read().unwrap().len(), none.residency().pages, none.host(..).unwrap().len()), (0, 0, 0));
    rt.sync().unwrap();
}

#[test]
fn arguments_that_do_not_fit() {
    let _limit = limit();
    fn two(_: Group, (): (), _: &[u32], _: &mut [u32]) {}
    fn free(_: Group, (): (), _: &[u32], _: &[std::sync::atomic::AtomicU32]) {}
    let rt = runtime(small(8 * MIB));
    let x = rt.shared::<u32>(10_000).unwrap();
    let mut y = rt.shared::<u32>(20_000).unwrap();
    let k = Kernel::new("two", (), (each::<u32>(100), each_mut::<u32>(100)), two);
    let refused = |r: Result<sterna::Pending, Error>, parts: &[&str]| {
        let e = r.expect_err("an error");
        assert!(matches!(&e, Error::Arguments { .. }), "{e:?}");
        assert!(parts.iter().all(|p| e.to_string().contains(p)), "{e}");
    };
    refused(rt.launch(&k, (&x, &mut y)), &["`two`", "argument 1", "200 groups", "100"]);
    let mut half = y.range_mut(..10_000).unwrap();
    rt.launch(&k, (&x, &mut half)).map_or_else(|e| assert!(matches!(e, Error::Unaligned { .. }), "{e}"), drop);
    refused(rt.launch(&k, (&x.range(3..3).unwrap(), &mut y)), &["argument 0", "empty"]);
    refused(rt.launch(&k.clone().groups(99), (&x, &mut rt.shared(10_000).unwrap())), &["99", "100"]);
    let f = Kernel::new("free", (), (whole::<u32>(), scatter::<u32>()), free);
    refused(rt.launch(&f, (&x, &mut y)), &["groups"]);
    refused(rt.launch(&f.clone().groups(0), (&x, &mut y)), &["[0, 1, 1] groups"]);
    refused(rt.launch(&f.clone().grid([1 << 16, 1 << 16, 1]), (&x, &mut y)), &["[65536, 65536, 1]"]);
    refused(rt.launch(&k.clone().grid([9, 11, 1]), (&x, &mut rt.shared(10_000).unwrap())), &["[9, 11, 1]", "100"]);
    rt.launch(&f.groups(3), (&x, &mut y)).unwrap().wait().unwrap();
    // Nothing of it counts as a failure of `y`.
    rt.sync().unwrap();
    assert_eq!(y[0], 0);
}

#[test]
fn runtimes_do_not_mix() {
    let _limit = limit();
    let (rt, other) = (runtime(small(8 * MIB)), runtime(small(8 * MIB)));
    let mut x = other.shared::<u32>(10).unwrap();
    let e = rt.launch(&add(1), (&mut x,)).unwrap_err();
    assert!(matches!(e, Error::OtherRuntime { kernel: "add", index: 0 }), "{e:?}");
    let foreign = &other.devices()[0];
    assert!(panic_text(|| drop(rt.on(foreign))).contains("another runtime"));
    let y = rt.shared::<u32>(10).unwrap();
    y.prefetch_to(foreign); // a hint never fails
    rt.sync().unwrap();
    other.launch(&add(1), (&mut x,)).unwrap();
    assert_eq!((x[3], y[3]), (1, 0));
}

#[test]
fn names_that_nothing_has() {
    let _limit = limit();
    for bad in ["gpu", "cpu:x", "cpu:-1", "cpu:8", "cpu:99999999999", "", "metal:0", "cpu:0:1"] {
        let e = Runtime::builder().device(bad).build().unwrap_err();
        assert!(matches!(&e, Error::UnknownName { what: "device", given, .. } if given == bad), "{bad}: {e:?}");
        assert!(e.to_string().contains("cpu:0") && e.to_string().contains("cpu:7"), "{e}");
    }
    let e = Runtime::builder().policy("belady").unwrap_err().to_string();
    assert!(sterna::policy::NAMES.iter().all(|n| e.contains(n)) && e.contains("belady"), "{e}");
    let e = "magic".parse::<Mechanism>().unwrap_err().to_string();
    assert!(["transparent", "signal", "guard", "none", "magic"].iter().all(|n| e.contains(n)), "{e}");
}

#[test]
fn devices_that_cannot_be_used() {
    let _limit = limit();
    let build = |c: CpuConfig| Runtime::builder().open_device(device(c)).build();
    let e = build(CpuConfig { workers: 4, ..small(64 << 10) }).unwrap_err();
    let Error::BudgetTooSmall { budget: 65536, least, .. } = e else { panic!("{e:?}") };
    // The variable is for devices that are named.
    let said = e.to_string();
    assert!(said.contains("settings that it was opened with") && !said.contains("STERNA_DEVICE_MEMORY"), "{e}");
    let e = Runtime::builder().device("cpu:0").memory(64 << 10).build().unwrap_err().to_string();
    assert!(e.contains("`Builder::memory`") && !e.contains("STERNA_DEVICE_MEMORY"), "{e}");
    let rt = build(CpuConfig { workers: 4, memory: least, ..small(0) }).unwrap();
    let mut x = rt.shared_with(MIB, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap();
    assert!(x.iter().enumerate().all(|(i, v)| *v == i as u32 + 1), "the least budget is enough");
    assert!(CpuDevice::new(0, CpuConfig { grain: 3 << 20, ..CpuConfig::default() }).is_err());
    assert!(CpuDevice::new(0, CpuConfig { grain: 1024, ..CpuConfig::default() }).is_err());
}

#[test]
fn the_process_drives_so_many_devices_and_no_more() {
    let _limit = limit();
    let name = "the_process_drives_so_many_devices_and_no_more";
    if !is_child() {
        succeeds(&mut child(name)); // other tests have devices of their own
        return;
    }
    let one = runtime(small(MIB * 4));
    let others = runtime_of(&vec![small(MIB * 4); sterna::hmm::MAX_DEVICES - 1]);
    assert_eq!(others.devices().len(), 63);
    let spare = device(small(MIB * 4));
    let e = Runtime::builder().open_device(spare.clone()).build().unwrap_err();
    assert!(matches!(e, Error::TooManyDevices { limit: 64 }), "{e:?}");
    assert!(e.to_string().contains("64 devices") && e.to_string().contains("`Runtime` is `Clone`"), "{e}");
    drop(one);
    let again = over(&spare);
    let mut x = again.shared::<u32>(1000).unwrap();
    again.launch(&add(4), (&mut x,)).unwrap();
    assert_eq!(x[999], 4);
}

static RT: OnceLock<Runtime> = OnceLock::new();
static SEEN: OnceLock<[String; 6]> = OnceLock::new();

#[test]
fn a_kernel_neither_launches_nor_waits() {
    let _limit = limit();
    static OTHER: OnceLock<std::sync::Mutex<Shared<u32>>> = OnceLock::new();
    static HOLD: Hold = Hold::new();
    fn held(_: Group, (): (), y: &mut [u32]) {
        HOLD.wait();
        y.fill(1);
    }
    fn body(_: Group, (): (), _: &mut [u32]) {
        let rt = RT.get().expect("set");
        let mut other = OTHER.get().expect("set").lock().unwrap();
        let mut mine = rt.shared::<u32>(10).unwrap(); // memory may be had
        let text = |e: Option<Error>| e.map_or("worked".into(), |e| e.to_string());
        let launched = text(rt.launch(&add(1), (&mut mine,)).err());
        let synced = text(rt.sync().err());
        let read = text(other.try_read().err());
        let filled = text(other.fill_with(|_| 1).err());
        let guarded = text(other.host(..).err());
        let derefed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| other[0]));
        let derefed = derefed.err().and_then(|e| e.downcast::<String>().ok()).map_or("worked".into(), |s| *s);
        let _ = SEEN.set([launched, synced, read, filled, guarded, derefed]);
        other.prefetch_to_host();
    }
    let rt = RT.get_or_init(|| runtime_of(&[small(8 * MIB), small(8 * MIB)]));
    let held: Kernel<(EachMut<u32>,)> = Kernel::new("held", (), (each_mut(4096),), held);
    let nested: Kernel<(EachMut<u32>,)> = Kernel::new("nested", (), (each_mut(4096),), body);
    let mut other = rt.shared::<u32>(10).unwrap();
    rt.launch(&held, (&mut other,)).unwrap();
    HOLD.entered();
    OTHER.get_or_init(|| std::sync::Mutex::new(other));
    let mut x = rt.shared::<u32>(10).unwrap();
    rt.on(&rt.devices()[1]).launch(&nested, (&mut x,)).unwrap().wait().unwrap();
    HOLD.release();
    for s in SEEN.get().expect("the kernel ran") {
        assert!(s.contains("may not launch or wait"), "{:?}", SEEN.get());
    }
    rt.sync().unwrap();
}

#[test]
fn dropping_everything_while_launches_are_under_way() {
    let _limit = limit();
    static HOLD: Hold = Hold::new();
    fn held(_: Group, (): (), y: &mut [u32]) {
        HOLD.wait();
        y.fill(1);
    }
    let dev = device(small(8 * MIB));
    let rt = over(&dev);
    let mut x = rt.shared::<u32>(100_000).unwrap();
    let held: Kernel<(EachMut<u32>,)> = Kernel::new("held", (), (each_mut(4096),), held);
    let p = rt.launch(&held, (&mut x,)).unwrap();
    let q = rt.launch(&add(1), (&mut x,)).unwrap();
    HOLD.entered();
    drop(x);
    assert!(!p.is_done());
    let ending = std::thread::spawn(move || drop(rt)); // waits for what is under way
    HOLD.release();
    ending.join().unwrap();
    p.wait().unwrap();
    q.wait().unwrap();
    drop((p, q));
    let memory = || sterna::hal::Device::memory(&*dev).in_use;
    eventually("everything is given back", || memory() == 0 && Arc::strong_count(&dev) == 1);
}
