//! The whole way, narrow: allocate, launch, read.

use std::sync::Arc;

use sterna::cpu::{CpuConfig, CpuDevice};
use sterna::kernels::{fill, saxpy};
use sterna::{Cause, Runtime};

fn runtime(memory: u64) -> Runtime {
    let device = CpuDevice::new(0, CpuConfig { memory, ..CpuConfig::default() }).unwrap();
    Runtime::builder().open_device(Arc::new(device)).build().unwrap()
}

#[test]
fn saxpy_from_host_to_device_and_back() {
    let rt = runtime(64 << 20);
    let n = 1_000_000;
    let x = rt.shared_with(n, |i| i as f32).unwrap();
    let mut y = rt.shared::<f32>(n).unwrap();
    y[0] = 1.0;
    rt.launch(&saxpy(2.0), (&x, &mut y)).unwrap();
    assert_eq!(y[0], 1.0);
    assert_eq!(y[7], 14.0);
    for (i, v) in y.iter().enumerate().skip(1) {
        assert_eq!(*v, 2.0 * i as f32, "{i}");
    }
    for _ in 0..5 {
        rt.launch(&saxpy(1.0), (&x, &mut y)).unwrap();
        y[3] += 1.0;
    }
    rt.sync().unwrap();
    assert_eq!(y[3], 3.0 * 7.0 + 5.0);
    println!("{}\n{}", rt.stats(), y.residency());
}

#[test]
fn reading_one_element_moves_one_granule() {
    let rt = runtime(64 << 20);
    let mut y = rt.shared::<u32>(8 << 20).unwrap();
    rt.launch(&fill(7_u32), (&mut y,)).unwrap();
    assert_eq!(y[5_000_000], 7);
    let s = rt.stats();
    if s.mechanism != sterna::Mechanism::None {
        assert_eq!(s.to_host(), 65536, "{s}");
        assert_eq!(s.devices[0].to_host.by(Cause::HostFault), 65536);
    }
}

#[test]
fn four_times_the_memory_by_declared_ranges() {
    let rt = runtime(8 << 20);
    let mut y = rt.shared::<u64>(4 << 20).unwrap();
    for round in 0..2 {
        for (i, mut c) in y.chunks_mut(256 << 10).enumerate() {
            rt.launch(&fill((i + round) as u64), (&mut c,)).unwrap();
        }
    }
    for (i, v) in y.iter().enumerate() {
        assert_eq!(*v, (i / (256 << 10) + 1) as u64, "{i}");
    }
    println!("{}", rt.stats());
}

#[test]
fn four_times_the_memory_in_one_launch() {
    let rt = runtime(8 << 20);
    let mut y = rt.shared::<u64>(4 << 20).unwrap();
    let x = rt.shared_with(4 << 20, |i| i as u64).unwrap();
    fn add(_: sterna::kernel::Group, v: u64, x: &[u64], y: &mut [u64]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x + v;
        }
    }
    use sterna::kernel::{Kernel, each, each_mut};
    let k = Kernel::new("add", 3_u64, (each(8192), each_mut(8192)), add);
    rt.launch(&k, (&x, &mut y)).unwrap();
    rt.launch(&k, (&x, &mut y)).unwrap();
    for (i, v) in y.iter().enumerate() {
        assert_eq!(*v, 2 * (i as u64 + 3), "{i}");
    }
    println!("{}", rt.stats());
}

#[test]
fn an_argument_that_is_replaced_keeps_its_bytes_for_earlier_launches() {
    let rt = runtime(4 << 20);
    let n = 2 << 20;
    for _ in 0..5 {
        let mut x = rt.shared_with(n, |_| 1.0_f32).unwrap();
        let mut y = rt.shared::<f32>(n).unwrap();
        rt.launch(&saxpy(1.0), (&x, &mut y)).unwrap();
        rt.launch(&fill(9.0_f32), (&mut x,)).unwrap();
        assert!(y.iter().all(|v| *v == 1.0));
        assert!(x.iter().all(|v| *v == 9.0));
    }
}

#[test]
fn a_resident_launch_that_reads_what_a_failed_one_wrote_is_refused() {
    use sterna::Error;
    use sterna::kernel::{Group, Kernel, each_mut};
    let rt = runtime(16 << 20);
    let mut x = rt.shared::<f32>(1 << 18).unwrap();
    let mut y = rt.shared::<f32>(1 << 18).unwrap();
    rt.launch(&saxpy(1.0), (&x, &mut y)).unwrap().wait().unwrap();
    rt.launch(&fill(1.0_f32), (&mut x,)).unwrap().wait().unwrap();
    let bad = Kernel::new("bad", (), (each_mut(4096),), |_: Group, _: (), _: &mut [f32]| panic!("planned"));
    let failed = rt.launch(&bad, (&mut x,)).unwrap().wait();
    assert!(matches!(failed, Err(Error::Kernel { .. })), "{failed:?}");
    let refused = rt.launch(&saxpy(1.0), (&x, &mut y)).unwrap().wait();
    assert!(matches!(refused, Err(Error::Upstream { .. })), "{refused:?}");
}

#[test]
fn a_segment_that_ends_inside_a_granule_becomes_ready_on_a_device_with_small_grains() {
    use sterna::hal::Absent;
    let config = CpuConfig { memory: 8 << 20, grain: 4096, absent: Absent::Undefined, ..CpuConfig::default() };
    let rt = Runtime::builder().open_device(Arc::new(CpuDevice::new(0, config).unwrap())).build().unwrap();
    let mut x = rt.shared::<u32>(5000).unwrap();
    for i in 0..3 {
        rt.launch(&fill(i), (&mut x,)).unwrap().wait().unwrap();
        assert_eq!(x[4999], i);
    }
}
