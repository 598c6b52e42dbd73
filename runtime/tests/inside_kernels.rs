//! What a kernel may call: everything, and it gets an error or what it asked for. It never waits for itself, and nothing that it drops
//! last takes memory from under it.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::*;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{self, Access};
use sterna::hmm::{Action, Attached, Mirror, MirrorOps, Operand, Pages, PinKind, Prot, Range, Segment, Space, names};
use sterna::kernel::{EachMut, Group, Kernel, each_mut};
use sterna::policy::Place;
use sterna::{Advice, Error, ForkPolicy, Pending, ReadOnly, Runtime, Shared};

/// What a kernel gets in hand. All of it is the last of its kind: whatever an entry does, it drops everything in the kernel.
struct World {
    rt: Runtime,
    /// Idle.
    x: Shared<u32>,
    /// The kernel's own argument.
    own: Shared<u32>,
    /// The kernel's own launch.
    launch: Pending,
    frozen: ReadOnly<u32>,
    attached: Attached,
    seg: Arc<Segment>,
    pin: sterna::hmm::Pin,
    mirror: Arc<Mirror>,
    device: Arc<CpuDevice>,
}

impl World {
    fn pages(&self) -> Pages {
        self.seg.pages()
    }

    fn space(&self) -> &'static Space {
        self.rt.space()
    }
}

struct Quiet;
impl MirrorOps for Quiet {
    fn update(&self, _: Action, _: &Pages) {}
}

type Call = fn(&mut World) -> Result<(), Error>;

/// Calls that a kernel is refused.
const REFUSED: &[(&str, Call)] = &[
    ("build", |_| Runtime::builder().device("cpu:1").build().map(drop)),
    ("shared_from", |w| w.rt.shared_from(&[1_u32]).map(drop)),
    ("shared_with", |w| w.rt.shared_with(10, |i| i).map(drop)),
    ("read_file", |w| w.rt.read_file::<u8>("/proc/self/cmdline").map(drop)),
    // SAFETY: it is refused.
    ("map_file", |w| unsafe { w.rt.map_file::<u8>("/proc/self/exe") }.map(drop)),
    ("launch", |w| w.rt.launch(&add(1), (&mut w.x,)).map(drop)),
    ("on", |w| w.rt.on(&w.rt.devices()[0]).launch(&add(1), (&mut w.x,)).map(drop)),
    ("sync", |w| w.rt.sync()),
    ("try_read", |w| w.x.try_read().map(drop)),
    ("try_read of its own", |w| w.own.try_read().map(drop)),
    ("host", |w| w.x.host(..).map(drop)),
    ("host of its own", |w| w.own.host(..).map(drop)),
    ("settle", |w| w.x.settle().map(drop)),
    ("host_mut", |w| w.x.host_mut(..).map(drop)),
    ("host_mut of its own", |w| w.own.host_mut(..).map(drop)),
    ("write_from", |w| w.x.write_from(&[7; 100_000])),
    ("fill_with", |w| w.own.fill_with(|_| 7)),
    ("truncate", |w| w.own.truncate(5)),
    ("split_off", |w| w.x.split_off(5).map(drop)),
    ("discard", |w| w.own.discard(..)),
    ("cow_clone", |w| w.own.cow_clone().map(drop)),
    ("set_fork_policy", |w| w.x.set_fork_policy(ForkPolicy::Preserve)),
    ("flush", |w| w.x.flush()),
    ("try_read of a ReadOnly", |w| w.frozen.try_read().map(drop)),
    ("wait", |w| w.launch.wait()),
    ("wait_timeout", |w| w.launch.wait_timeout(Duration::from_secs(5)).map(drop)),
    ("poll", |w| match Pin::new(&mut w.launch).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(r) => r,
        Poll::Pending => Ok(()),
    }),
    ("Attached::new", |w| Attached::new(w.space(), w.device.clone()).map(drop)),
    ("populate", |w| w.attached.populate(&w.pages(), Access::Read, Place::Migrate, None)),
    ("mapped", |w| w.attached.mapped(&w.pages(), false).map(drop)),
    ("migrate", |w| w.attached.migrate(&w.pages()).map(drop)),
    ("migrate of its own", |w| w.attached.migrate(&w.own.pages()).map(drop)),
    ("migrate_vma", |w| w.attached.migrate_vma(&w.pages()).map(drop)),
    ("migrate_home", |w| w.attached.migrate_home(&w.pages()).map(drop)),
    ("snapshot", |w| w.attached.snapshot(&w.pages()).map(drop)),
    ("make_exclusive", |w| w.attached.make_exclusive(&w.pages())),
    ("exclusive", |w| w.attached.exclusive(&w.pages()).map(drop)),
    ("release_memory", |w| w.attached.release_memory()),
    ("run", |w| {
        let bytes = Operand { segment: w.seg.clone(), bytes: 0..4096 };
        // SAFETY: it is refused.
        unsafe { w.attached.run(&add(1), &[bytes], Place::Migrate, None) }.map(drop)
    }),
    ("pin", |w| w.space().pin(&w.pages(), PinKind::Long, true).map(drop)),
    ("pin of its own", |w| w.space().pin(&w.own.pages(), PinKind::Long, true).map(drop)),
    ("short pin of its own", |w| w.space().pin(&w.own.pages(), PinKind::Short, false).map(drop)),
    // SAFETY: it is refused.
    ("protect", |w| unsafe { w.space().protect(&w.own.pages(), Prot::Read) }),
    // SAFETY: it is refused.
    ("unmap", |w| unsafe { w.space().unmap(&w.own.pages()) }),
    // SAFETY: it is refused.
    ("Space::discard", |w| unsafe { w.space().discard(&w.own.pages()) }),
    // SAFETY: it is refused.
    ("remap", |w| unsafe { w.space().remap(&Pages(0..16), &Pages(16..32), false) }),
    ("map", |w| w.space().map(&w.pages())),
    ("imported", |w| Segment::imported(w.space(), &[1, 2, 3]).map(drop)),
    ("of_file", |w| {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        Segment::of_file(w.space(), file, 0, 4096, false).map(drop)
    }),
    ("Segment::set_fork_policy", |w| w.seg.set_fork_policy(ForkPolicy::Wipe)),
    ("Range::new", |w| Range::new(&w.mirror, w.pages()).map(drop)),
    ("hmm_vma_fault", |w| names::hmm_vma_fault(&w.mirror, w.pages(), true, true).map(drop)),
    ("hmm_devmem_add", |w| names::hmm_devmem_add(w.space(), w.device.clone()).map(drop)),
];

/// Calls that a kernel may make.
const ALLOWED: &[(&str, Call)] = &[
    ("nothing but drops", |_| Ok(())),
    ("looks", |w| {
        assert_eq!((w.x.len(), w.x.is_empty(), w.rt.devices().len()), (100_000, false, 1));
        assert!(w.rt.stats().devices[0].launches > 0 && w.x.residency().pages > 0 && !w.x.pages().is_empty());
        assert!(!w.launch.is_done() && !w.x.as_host_ptr().is_null());
        let _ = w.space().find(sterna::hmm::Page(0));
        let _ = (
            format!("{:?} {:?} {:?} {:?} {:?}", w.rt, w.x, w.launch, w.attached, w.pin),
            w.space().segments(),
            w.seg.bytes(),
        );
        let _ = (w.space().bytes(), w.space().mechanism(), w.attached.device().memory(), w.rt.devices()[0].memory());
        Ok(())
    }),
    ("reads and writes as the host what no launch uses", |w| {
        assert_eq!((w.x[7], w.frozen[99_999]), (7, 99_999));
        w.x[7] = 8;
        assert_eq!(w.x[7], 8);
        Ok(())
    }),
    ("makes views", |w| {
        assert_eq!(w.x.range(5..9)?[0], 5);
        w.x.range_mut(5..9)?[0] = 6;
        let (mut a, b) = w.x.split_at_mut(50)?;
        a[0] = b[0];
        assert_eq!(
            (
                w.x.chunks_mut(1000)
                    .map(|mut c| {
                        c[0] += 1;
                        1
                    })
                    .sum::<u32>(),
                w.x[0]
            ),
            (100, 51)
        );
        drop(w.own.range(..));
        Ok(())
    }),
    ("gives hints", |w| {
        for x in [&w.x, &w.own] {
            x.advise(Advice::ReadMostly);
            x.prefetch_to(&w.rt.devices()[0]);
            x.prefetch_to_host();
            x.unadvise(Advice::ReadMostly);
        }
        Ok(())
    }),
    ("mirrors", |w| {
        let other = Mirror::register(w.space(), Quiet);
        other.unregister();
        w.mirror.unregister();
        let _ = other.notifier();
        drop(w.space().lock());
        Ok(())
    }),
    ("allocates", |w| {
        let mut mine = w.rt.shared::<u32>(100_000)?;
        mine[99_999] = 7;
        assert_eq!((mine[0], mine[99_999]), (0, 7));
        drop((Segment::new(w.space(), 4096)?, Segment::shared(w.space(), 4096)?));
        Ok(())
    }),
    ("drops a device", |w| {
        let alone = Arc::new(CpuDevice::new(3, CpuConfig::default()).unwrap());
        drop((alone, std::mem::replace(&mut w.device, Arc::new(CpuDevice::new(4, CpuConfig::default()).unwrap()))));
        Ok(())
    }),
    ("clones and drops handles", |w| {
        drop((w.rt.clone(), w.rt.devices(), w.frozen.clone(), w.seg.clone()));
        Ok(())
    }),
];

static WORLD: Mutex<Option<World>> = Mutex::new(None);
static SAID: Mutex<Option<Result<(), String>>> = Mutex::new(None);
static BAD: AtomicU32 = AtomicU32::new(0);

fn take_world() -> World {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(w) = WORLD.lock().unwrap().take() {
            return w;
        }
        assert!(Instant::now() < end, "no world");
        std::thread::yield_now();
    }
}

/// Group 0 calls entry `n`, with its own slice in use before and afterwards.
fn body(g: Group, n: u32, y: &mut [u32]) {
    y.iter_mut().zip(n..).for_each(|(y, i)| *y = i);
    if g.index() == 0 {
        let all = REFUSED.iter().chain(ALLOWED);
        let (name, call) = all.clone().nth(n as usize).unwrap();
        let mut world = take_world();
        let done = hal::panics::caught(|| call(&mut world));
        drop(world);
        *SAID.lock().unwrap() = Some(match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Error::InsideKernel)) => Err("inside".into()),
            Ok(Err(e)) => Err(format!("{name}: {e}")),
            Err(panic) => Err(format!("{name} panicked: {panic}")),
        });
    }
    let until = Instant::now() + Duration::from_millis(15);
    while Instant::now() < until {
        for (y, i) in y.iter_mut().zip(n..) {
            BAD.fetch_add(u32::from(*y != i), SeqCst);
            *y = i;
        }
    }
}

/// Has a kernel on a device of this kind call entry `n`, and says what came of it.
fn call(config: &CpuConfig, n: usize) -> Result<(), String> {
    let space = {
        let rt = runtime(config.clone());
        let space = rt.space();
        let device = Arc::new(CpuDevice::new(7, small(8 * MIB)).unwrap());
        let attached = Attached::new(space, device.clone()).unwrap();
        let seg = Segment::new(space, 1 << 20).unwrap();
        attached.migrate(&seg.pages()).unwrap();
        let x = rt.shared_with(100_000, |i| i as u32).unwrap();
        let frozen = rt.shared_with(100_000, |i| i as u32).unwrap().into_read_only();
        let pin = space.pin(&x.pages(), PinKind::Long, true).unwrap();
        let mirror = Mirror::register(space, Quiet);
        let mut own = rt.shared::<u32>(100_000).unwrap();
        let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("calls", n as u32, (each_mut(50_000),), body);
        let launch = rt.launch(&kernel, (&mut own,)).unwrap();
        *WORLD.lock().unwrap() = Some(World { rt, x, own, launch, frozen, attached, seg, pin, mirror, device });
        space
    };
    eventually("the kernel has called", || SAID.lock().unwrap().is_some());
    let said = SAID.lock().unwrap().take().unwrap();
    eventually("everything is given back", || space.segments() == 0);
    said
}

#[test]
fn every_call_in_a_kernel_is_refused_or_works_and_every_drop_is_harmless() {
    let name = "every_call_in_a_kernel_is_refused_or_works_and_every_drop_is_harmless";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name)); // a signal would end the other tests too
        return;
    }
    for (how, config) in [
        ("faulting", small(8 * MIB)),
        ("no aliases", CpuConfig { map_host: false, ..small(8 * MIB) }),
        ("rigid", rigid(8 * MIB)),
    ] {
        for n in 0..REFUSED.len() + ALLOWED.len() {
            let said = call(&config, n);
            match REFUSED.get(n) {
                Some((name, _)) => assert_eq!(said, Err("inside".into()), "{how}: {name}"),
                None => assert_eq!(said, Ok(()), "{how}"),
            }
        }
    }
    assert_eq!(BAD.load(SeqCst), 0, "elements of a kernel's own slice that changed under it");
}

/// The gate would wait for the very launch that asks.
#[test]
fn a_kernel_that_derefs_its_own_argument_fails_and_harms_nobody() {
    let _limit = limit();
    static OWN: Mutex<Option<Shared<u32>>> = Mutex::new(None);
    fn body(_: Group, (): (), _: &mut [u32]) {
        eventually("the handle is there", || OWN.lock().unwrap().is_some());
        let own = OWN.lock().unwrap().take().unwrap();
        assert_eq!(own[0], 0);
    }
    for config in [small(8 * MIB), rigid(8 * MIB)] {
        let rt = runtime(config);
        let mut y = rt.shared::<u32>(1000).unwrap();
        let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("own", (), (each_mut(4096),), body);
        let p = rt.launch(&kernel, (&mut y,)).unwrap();
        *OWN.lock().unwrap() = Some(y);
        let e = p.wait().unwrap_err().to_string();
        assert!(e.contains("a kernel may not launch or wait"), "{e}");
        let mut y = rt.shared::<u32>(1000).unwrap();
        rt.launch(&add(1), (&mut y,)).unwrap();
        assert_eq!(y[999], 1);
    }
}

/// What a kernel hands to the threads of its device, by rayon, runs there while the kernel waits for it.
#[test]
fn tasks_of_a_kernel_on_other_threads_of_its_device_are_refused_what_the_kernel_is() {
    let _limit = limit();
    static RT: Mutex<Option<Runtime>> = Mutex::new(None);
    static SAID: Mutex<Vec<(bool, Result<(), Error>)>> = Mutex::new(Vec::new());
    fn body(_: Group, (): (), _: &mut [u32]) {
        eventually("the runtime is there", || RT.lock().unwrap().is_some());
        let rt = RT.lock().unwrap().take().unwrap();
        let here = std::thread::current().id();
        // Two tasks that wait for each other are on two threads.
        let both = std::sync::Barrier::new(2);
        let task = || {
            both.wait();
            let said = rt.sync();
            SAID.lock().unwrap().push((std::thread::current().id() == here, said));
        };
        rayon::join(task, task);
    }
    for config in [small(8 * MIB), rigid(8 * MIB)] {
        let rt = runtime(config);
        let mut y = rt.shared::<u32>(1000).unwrap();
        let kernel: Kernel<(EachMut<u32>,)> = Kernel::new("tasks", (), (each_mut(4096),), body);
        let p = rt.launch(&kernel, (&mut y,)).unwrap();
        *RT.lock().unwrap() = Some(rt);
        p.wait().unwrap();
        let mut said = std::mem::take(&mut *SAID.lock().unwrap());
        said.sort_by_key(|s| s.0);
        let threads: Vec<bool> = said.iter().map(|s| s.0).collect();
        assert_eq!(threads, [false, true]);
        assert!(said.iter().all(|s| matches!(s.1, Err(Error::InsideKernel))), "{said:?}");
    }
}

#[test]
fn a_device_is_opened_once_at_a_time_whatever_it_is_wrapped_in() {
    let _limit = limit();
    let is_in_use = |e: Result<(), Error>| matches!(e, Err(Error::DeviceInUse { device }) if device == "cpu:0");
    for config in [small(8 * MIB), rigid(8 * MIB), CpuConfig { host_readable: false, ..rigid(8 * MIB) }] {
        let cpu = device(config);
        let wrapped = || Arc::new(hal::Injected::new(cpu.clone(), CpuDevice::lose)) as Arc<dyn hal::Device>;
        let bare = || cpu.clone() as Arc<dyn hal::Device>;
        let open = |devices: Vec<Arc<dyn hal::Device>>| {
            devices.into_iter().fold(Runtime::builder(), sterna::Builder::open_device).build()
        };
        assert!(is_in_use(open(vec![bare(), bare()]).map(drop)));
        assert!(is_in_use(open(vec![wrapped(), wrapped()]).map(drop)));
        assert!(is_in_use(open(vec![bare(), wrapped()]).map(drop)));
        let rt = open(vec![wrapped()]).unwrap();
        assert!(is_in_use(open(vec![bare()]).map(drop)));
        assert!(is_in_use(open(vec![wrapped()]).map(drop)));
        assert!(is_in_use(Attached::new(rt.space(), bare()).map(drop)));
        let mut y = rt.shared::<u32>(1000).unwrap();
        rt.launch(&add(1), (&mut y,)).unwrap();
        assert_eq!(y[7], 1);
        let space = rt.space();
        drop((y, rt));
        // One after the other is no harm.
        let attached = Attached::new(space, wrapped()).unwrap();
        assert!(is_in_use(open(vec![bare()]).map(drop)));
        drop(attached);
        let rt = open(vec![bare()]).unwrap();
        let mut y = rt.shared::<u32>(1000).unwrap();
        rt.launch(&add(2), (&mut y,)).unwrap();
        assert_eq!(y[7], 2);
    }
}
