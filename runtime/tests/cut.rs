//! Launches that need more at once than a device has that cannot fault: they run in parts, along their grid, and nobody can tell.

mod common;
#[path = "common/placed.rs"]
mod placed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use common::*;
use placed::Placed;
use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::hal::{Device, Injected, KernelError};
use sterna::hmm::{Action, Mirror, MirrorOps, Pages};
use sterna::kernel::{EachMut, Group, Kernel, Scatter, each, each_mut, scatter};
use sterna::kernels::{fill, pagerank_contributions, pagerank_step, reduce_sum_len, reference, spmv_csr};
use sterna::{Error, Runtime, Shared};

/// A runtime on each kind of device that cannot fault, one after the other.
fn rigids(memory: usize) -> impl Iterator<Item = (&'static str, Runtime)> {
    type Open = fn(CpuConfig) -> Arc<dyn Device>;
    let kinds: [(&str, Open); 5] = [
        ("plain", |c| device(c)),
        ("page grain", |c| device(CpuConfig { grain: 4096, ..c })),
        ("no aliases", |c| device(CpuConfig { map_host: false, host_readable: false, ..c })),
        ("short reservations", |c| Arc::new(Placed::short(c.clone(), c.memory / 2))),
        ("placed", |c| Arc::new(Placed::new(c))),
    ];
    kinds
        .into_iter()
        .map(move |(how, open)| (how, Runtime::builder().open_device(open(rigid(memory))).build().expect("a runtime")))
}

fn parts(rt: &Runtime) -> u64 {
    rt.stats().devices[0].parts
}

#[test]
fn a_stencil_over_four_times_the_memory_is_right() {
    let (_limit, _alone) = (limit(), alone());
    for (how, rt) in rigids(4 * MIB) {
        stencil_of_16_mib(&rt, how);
        let stats = rt.stats();
        assert!(stats.devices[0].parts >= 12, "{how}: {stats}");
        assert_eq!(stats.devices[0].launches, 3, "{how}");
        assert!(stats.devices[0].memory.in_use <= 4 << 20, "{how}");
    }
}

/// A driver that takes its time when pages go.
struct Slow;

impl MirrorOps for Slow {
    fn update(&self, why: Action, _: &Pages) {
        if why == Action::Invalidate {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Fails if a launch is refused for memory of an allocation that is just ending on another thread.
#[test]
fn memory_on_its_way_back_is_waited_for() {
    let (_limit, _alone) = (limit(), alone());
    for (how, rt) in rigids(2 * MIB) {
        let _slow = Mirror::register(rt.space(), Slow);
        std::thread::scope(|s| {
            let (send, receive) = std::sync::mpsc::channel::<Shared<u32>>();
            s.spawn(move || receive.into_iter().for_each(drop));
            for round in 0..20 {
                let mut x = rt.shared::<u32>(MIB / 4).unwrap();
                let done = rt.launch(&add(1), (&mut x,)).and_then(|p| p.wait());
                done.unwrap_or_else(|e| panic!("{how}, round {round}: {e}"));
                send.send(x).unwrap();
            }
        });
    }
}

#[test]
fn launches_before_and_after_keep_their_order() {
    let (_limit, _alone) = (limit(), alone());
    for (how, rt) in rigids(2 * MIB) {
        let n = 2 * MIB; // 8 MiB
        let mut x = rt.shared_with(n, |i| i as u32).unwrap();
        let mut y = rt.shared::<u32>(n).unwrap();
        for round in 0..3_u32 {
            rt.launch(&add(1), (&mut x,)).unwrap();
            let mut some = x.range_mut(n / 3..n / 3 + 5000).unwrap();
            rt.launch(&add(10), (&mut some,))
                .map(drop)
                .unwrap_or_else(|e| assert!(matches!(e, Error::Unaligned { .. }), "{e}"));
            rt.launch(&copy_add(round), (&x, &mut y)).unwrap();
        }
        let aligned = faults(&rt);
        let some = |i: usize| if aligned && (n / 3..n / 3 + 5000).contains(&i) { 30 } else { 0 };
        y.try_read().unwrap_or_else(|e| panic!("{how}: {e}"));
        for (i, v) in y.iter().enumerate() {
            assert_eq!(*v, i as u32 + 3 + some(i) + 2, "{how}: element {i}");
        }
        x[n - 1] = 7;
        rt.launch(&copy_add(0), (&x, &mut y)).unwrap();
        assert_eq!(y[n - 1], 7, "{how}");
    }
}

#[test]
fn what_a_failed_part_leaves_is_tainted_as_a_whole_and_no_part_comes_behind_it() {
    let (_limit, _alone) = (limit(), alone());
    static RAN: AtomicU32 = AtomicU32::new(0);
    fn body(g: Group, bad: u32, y: &mut [u32]) {
        RAN.fetch_add(1, SeqCst);
        assert!(g.index() as u32 != bad, "as planned");
        y.fill(9);
    }
    for (how, rt) in rigids(2 * MIB) {
        let mut y = rt.shared::<u32>(4 * MIB).unwrap(); // 16 MiB, 1024 groups
        RAN.store(0, SeqCst);
        let bad = Kernel::new("bad", 100_u32, (each_mut(4096),), body);
        let e = rt.launch(&bad, (&mut y,)).unwrap().wait().unwrap_err();
        assert!(matches!(e, Error::Kernel { kernel: "bad", .. }), "{how}: {e:?}");
        let ran = RAN.load(SeqCst);
        assert!((1..600).contains(&ran), "{how}: {ran} of 1024 groups ran");
        for at in [0, 100 * 4096, 4 * MIB - 1] {
            assert!(y.range(at..at + 1).unwrap().try_read().is_err(), "{how}: element {at} is not tainted");
        }
        assert!(rt.sync().is_ok(), "{how}: it was told of");
        rt.launch(&fill(3_u32), (&mut y,)).unwrap().wait().unwrap_or_else(|e| panic!("{how}: {e}"));
        assert!(y.iter().all(|y| *y == 3), "{how}: healed");
        drop(rt.launch(&bad, (&mut y,)).unwrap());
        assert!(rt.sync().is_err(), "{how}: nobody was told");
        assert!(rt.sync().is_ok(), "{how}: told twice");
    }
}

/// Fails by its limit if a part that the device refused stays among those that use the pages.
#[test]
fn a_device_fails_at_any_call_of_a_launch_in_parts() {
    type Fail = fn(&Injected, u64);
    let (_limit, _alone) = (limit(), alone());
    for (what, fail) in [("refused submission", Injected::fail_submit as Fail), ("loss", Injected::lose_at as Fail)] {
        for (how, config) in [("plain", rigid(2 * MIB)), ("page grain", CpuConfig { grain: 4096, ..rigid(2 * MIB) })] {
            let (mut failed, mut between) = (0, 0);
            for n in 0.. {
                let d = Arc::new(Injected::new(device(config.clone()), |d: &CpuDevice| d.inject().lose()));
                let rt = over(&d);
                let mut y = rt.shared::<u32>(MIB).unwrap(); // 4 MiB
                fail(&d, n);
                let asked = rt.launch(&add(1), (&mut y,));
                let begun = asked.is_ok();
                let ended = asked.and_then(|p| p.wait());
                between += u32::from(ended.is_err() && parts(&rt) > 0);
                failed += u32::from(ended.is_err());
                if let Err(e) = &ended {
                    let lost = matches!(e, Error::Lost { .. } | Error::Kernel { source: KernelError::Lost(_), .. });
                    assert!(lost && d.is_lost() || matches!(e, Error::Device { .. }), "{how}, {what} {n}: {e:?}");
                }
                // Nobody is left that the host would wait for.
                match y.try_read() {
                    Ok(y) if begun && ended.is_ok() => assert!(y.iter().all(|y| *y == 1), "{how}, {what} {n}"),
                    Ok(_) => assert!(!begun, "{how}, {what} {n}: readable after a failure"),
                    Err(e) => assert!(ended.is_err() || d.is_lost(), "{how}, {what} {n}: {e}"),
                }
                let over = if what == "loss" { !d.is_lost() } else { d.submits() < n };
                drop(y);
                drop(rt);
                eventually("frames are given back", || d.memory().in_use == 0);
                eventually("the device is let go", || Arc::strong_count(&d) == 1);
                if over {
                    break;
                }
            }
            assert!(failed > 2 && between > 1, "{how}, {what}: {failed} failed, {between} of them between two parts");
        }
    }
}

#[test]
fn the_host_waits_for_the_last_part() {
    let (_limit, _alone) = (limit(), alone());
    for (how, rt) in rigids(2 * MIB) {
        let mut y = rt.shared::<u32>(4 * MIB).unwrap();
        for round in 1..4 {
            rt.launch(&add(1), (&mut y,)).unwrap();
            assert_eq!((y[0], y[4 * MIB - 1], y[2 * MIB]), (round, round, round), "{how}");
        }
        assert!(parts(&rt) > 20, "{how}");
    }
}

#[test]
fn what_every_group_needs_has_to_fit() {
    fn count(_: Group, (): (), y: &mut [u32], total: &[AtomicU32]) {
        y.iter_mut().for_each(|y| *y += 1);
        total[0].fetch_add(y.len() as u32, SeqCst);
    }
    let (_limit, _alone) = (limit(), alone());
    for (how, rt) in rigids(4 * MIB) {
        // A total that all groups change, and data of four times the memory.
        let kernel: Kernel<(EachMut<u32>, Scatter<u32>)> =
            Kernel::new("count", (), (each_mut(4096), scatter::<u32>()), count);
        let mut y = rt.shared::<u32>(4 * MIB).unwrap();
        let mut total = rt.shared::<u32>(1).unwrap();
        for round in 1..3 {
            rt.launch(&kernel, (&mut y, &mut total)).unwrap();
            assert_eq!(total[0], round * 4 * MIB as u32, "{how}");
        }
        assert!(y.iter().all(|y| *y == 2), "{how}");
        let mut totals = rt.shared::<u32>(4 * MIB).unwrap();
        let e = rt.launch(&kernel, (&mut y, &mut totals)).unwrap().wait().unwrap_err();
        refused(how, &e, "count", 16 << 20, 4 << 20);
        // The same for what all groups read.
        let (x, mut sums) = (rt.shared::<u32>(2 * MIB).unwrap(), rt.shared::<u64>(1).unwrap());
        let e = rt.launch(&sum(), (&x, &mut sums)).unwrap().wait().unwrap_err();
        refused(how, &e, "sum", 8 << 20, 4 << 20);
        assert!(e.to_string().contains("sum") || e.to_string().contains("one piece"), "{how}: {e}");
    }
}

/// It names what is needed, at least `needs` bytes, and what there is.
fn refused(how: &str, e: &Error, name: &str, least: u64, has: u64) {
    match e {
        Error::WorkingSet { kernel, needs, budget, .. } => {
            assert_eq!((*kernel, *budget), (name, has), "{how}");
            assert!((least..least + (1 << 20)).contains(needs), "{how}: {needs}");
        }
        Error::TooBig { requested, limit, .. } => assert!(*requested >= least && *limit <= has, "{how}: {e}"),
        other => panic!("{how}: {other:?}"),
    }
}

#[test]
fn pagerank_runs_where_its_edges_fit_and_is_refused_at_half_of_its_data() {
    let (_limit, _alone) = (limit(), alone());
    let (nodes, degree) = (150_000_usize, 4_usize);
    let source: Vec<u32> = (0..nodes * degree).map(|i| ((i * 7919 + i / 13) % nodes) as u32).collect();
    let row_ptr: Vec<u32> = (0..=nodes).map(|v| (v * degree) as u32).collect();
    let mut out = vec![0_u32; nodes];
    source.iter().for_each(|s| out[*s as usize] += 1);
    let rank0 = vec![1.0 / nodes as f64; nodes];
    let expect = reference::pagerank_step(0.85, &row_ptr, &source, &out, &rank0);
    let data = (4 * (source.len() + row_ptr.len() + 4 * nodes)) as u64;
    // Edges and one list of ranks have to be there at once; the rest need not.
    for (memory, runs) in [(4 * MIB, true), (data as usize / 2, false)] {
        assert!((memory as u64) < data);
        for (how, rt) in rigids(memory) {
            if how == "short reservations" {
                continue; // the edges are longer than it can reserve
            }
            let (row_ptr, source) = (rt.shared_from(&row_ptr).unwrap(), rt.shared_from(&source).unwrap());
            let out = rt.shared_from(&out).unwrap();
            let mut rank = rt.shared::<f32>(nodes).unwrap();
            let mut next = rt.shared::<f32>(nodes).unwrap();
            let mut contribution = rt.shared::<f32>(nodes).unwrap();
            let mut dangling = rt.shared::<f32>(reduce_sum_len(nodes)).unwrap();
            rt.launch(&fill(1.0 / nodes as f32), (&mut rank,)).unwrap();
            rt.launch(&pagerank_contributions(), (&rank, &out, &mut contribution, &mut dangling)).unwrap();
            let step = rt.launch(&pagerank_step(0.85), (&row_ptr, &source, &contribution, &dangling, &mut next)).unwrap();
            if !runs {
                let e = step.wait().unwrap_err();
                assert!(matches!(e, Error::WorkingSet { kernel: "pagerank_step", .. } | Error::TooBig { .. }), "{how}: {e}");
                continue;
            }
            step.wait().unwrap_or_else(|e| panic!("{how}: {e}"));
            let off: f64 = next.iter().zip(&expect).map(|(a, b)| (f64::from(*a) - b).abs()).sum();
            assert!(off < 1e-5, "{how}: off by {off}");
        }
    }
}

#[test]
fn a_cut_launch_and_another_device_wait_for_each_other() {
    let (_limit, _alone) = (limit(), alone());
    let rt = runtime_of(&[rigid(2 * MIB), small(64 * MIB)]);
    let devices = rt.devices();
    let mut y = rt.shared::<u32>(2 * MIB).unwrap();
    for _ in 0..3 {
        rt.on(&devices[0]).launch(&add(1), (&mut y,)).unwrap();
        rt.on(&devices[1]).launch(&add(100), (&mut y,)).unwrap();
    }
    assert!(y.iter().all(|y| *y == 303));
    assert!(parts(&rt) > 6);
}

#[test]
fn two_arguments_of_one_allocation_share_what_is_reserved() {
    let (_limit, _alone) = (limit(), alone());
    for (how, rt) in rigids(2 * MIB) {
        let n = 4 * MIB;
        let mut all = rt.shared_with(n, |i| i as u32).unwrap();
        let (x, mut y) = all.split_at_mut(n / 2).unwrap();
        let done = rt.launch(&copy_add(1), (&x, &mut y)).unwrap().wait();
        if how == "placed" || how == "short reservations" {
            // What lies between is reserved too, and that is too much.
            assert!(matches!(done, Err(Error::WorkingSet { .. } | Error::TooBig { .. })), "{how}: {done:?}");
            continue;
        }
        done.unwrap_or_else(|e| panic!("{how}: {e}"));
        assert!(all.iter().enumerate().all(|(i, v)| *v == if i < n / 2 { i } else { i - n / 2 + 1 } as u32), "{how}");
    }
}

#[test]
fn rows_of_a_matrix_are_multiplied_where_the_matrix_fits() {
    let (_limit, _alone) = (limit(), alone());
    let n = 50_000;
    for (how, rt) in rigids(2 * MIB) {
        if how == "short reservations" {
            continue;
        }
        let row_ptr = rt.shared_with(n + 1, |i| i as u32).unwrap();
        let col = rt.shared_with(n, |i| ((i + 1) % n) as u32).unwrap();
        let val = rt.shared_with(n, |i| i as f32).unwrap();
        let x = rt.shared_with(n, |i| (i % 10) as f32).unwrap();
        let mut y = rt.shared::<f32>(n).unwrap();
        rt.launch(&spmv_csr(), (&row_ptr, &col, &val, &x, &mut y)).unwrap().wait().unwrap_or_else(|e| panic!("{how}: {e}"));
        assert!(y.iter().enumerate().all(|(i, y)| *y == i as f32 * (((i + 1) % n) % 10) as f32), "{how}");
    }
}

/// Fails if a part needs room for more than the bytes of its groups: the last one for what lies behind its arguments' last bytes.
#[test]
fn a_launch_of_many_arguments_is_cut_until_its_parts_fit() {
    const N: usize = 50_000;
    const EACH: usize = 3000;
    let (_limit, _alone) = (limit(), alone());
    let reads = each::<u32>(EACH);
    let kernel = Kernel::new(
        "mix",
        3u32,
        (reads, reads, reads, each_mut::<u32>(EACH), each_mut::<u32>(EACH)),
        |_: Group, a: u32, p: &[u32], q: &[u32], r: &[u32], y: &mut [u32], z: &mut [u32]| {
            for i in 0..y.len() {
                y[i] = y[i].wrapping_add(p[i].wrapping_mul(a) ^ q[i]);
                z[i] = z[i].wrapping_add(r[i]) ^ y[i];
            }
        },
    );
    let config = CpuConfig { grain: 4096, ..rigid(256 << 10) };
    for threads in [1, 3] {
        let rt = Runtime::builder().open_device(device(config.clone())).build().expect("a runtime");
        let run = || {
            let [p, q, r] = [1, 2, 3].map(|k| rt.shared_with(N, move |i| (i * k) as u32).unwrap());
            let (mut y, mut z) = (rt.shared::<u32>(N).unwrap(), rt.shared::<u32>(N).unwrap());
            for i in 0..5 {
                let done = rt.launch(&kernel, (&p, &q, &r, &mut y, &mut z)).and_then(|p| p.wait());
                done.unwrap_or_else(|e| panic!("{threads} threads, launch {i}: {e}"));
            }
            for i in 0..N as u32 {
                let step = |(y, z): (u32, u32)| {
                    let y = y.wrapping_add((3 * i) ^ (2 * i));
                    (y, z.wrapping_add(3 * i) ^ y)
                };
                let right = (0..5).fold((0, 0), |at, _| step(at));
                assert_eq!((y[i as usize], z[i as usize]), right, "{threads} threads, element {i}");
            }
        };
        std::thread::scope(|s| (0..threads).for_each(|_| drop(s.spawn(run))));
    }
}

/// Fails if a launch that fits as it is, but cannot be cut, is refused for what lies behind its arguments' last bytes.
#[test]
fn nothing_behind_the_last_byte_takes_room() {
    let (_limit, _alone) = (limit(), alone());
    let rt =
        Runtime::builder().open_device(device(CpuConfig { grain: 4096, ..rigid(256 << 10) })).build().expect("a runtime");
    let kernel = Kernel::new("all", (), (each_mut::<u32>(1 << 20),), |_: Group, (): (), y: &mut [u32]| y.fill(7));
    // Nine pages each, of a granule of sixteen: seven fit, and are looked at one after the other.
    let mut all: Vec<_> = (0..7).map(|_| rt.shared::<u32>(9 * 1024).unwrap()).collect();
    for _ in 0..2 {
        for y in &mut all {
            rt.launch(&kernel, (y,)).unwrap().wait().unwrap();
        }
    }
    assert_eq!(rt.stats().devices[0].evictions, 0);
    assert!(all.iter().all(|y| y.iter().all(|v| *v == 7)));
}
