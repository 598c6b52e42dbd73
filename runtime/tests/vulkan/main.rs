//! Programs on a Vulkan device, with each page table that works there: stock kernels, demand faults, oversubscription, bad input.
//!
//! The device is the first that the loader lists, or the one that `STERNA_VULKAN_TEST` names; a software driver does. Without any
//! the tests say so and pass, unless `STERNA_REQUIRE` names `vulkan`.
#![cfg(feature = "vulkan")]

mod algorithms;
mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod kernels;
#[path = "../../../kernels/src/testing/random.rs"]
mod random;

use std::process::Command;
use std::sync::{Arc, MutexGuard};

use common::{Limit, MIB, alone, child, is_child, limit, said, stencil_of_16_mib};
use sterna::hal::{Absent, DeviceError};
use sterna::kernel::{Kernel, Spirv, each_mut};
use sterna::kernels::{fill, reduce_sum, reduce_sum_len, reference, saxpy, spmv_csr};
use sterna::vulkan::{Copies, PageTable, VulkanConfig, VulkanDevice, VulkanError};
use sterna::{Error, Runtime};

fn required(what: &str) -> bool {
    std::env::var("STERNA_REQUIRE").unwrap_or_default().split(',').any(|r| r.trim() == what)
}

/// Whether a launch was refused since the device has no 8-bit storage, which elements that are no whole words need.
fn lacks_bytes(e: &Error) -> bool {
    matches!(e, Error::Device { source: DeviceError::BadKernel { what, .. }, .. } if what.contains("8-bit storage"))
}

/// The device that tests use, or `None`, said aloud.
fn name() -> Option<String> {
    match sterna::vulkan::devices() {
        Ok(all) => {
            let named = std::env::var("STERNA_VULKAN_TEST").ok().filter(|n| !n.is_empty());
            Some(named.unwrap_or_else(|| all[0].index.to_string()))
        }
        Err(e) => {
            println!("SKIP vulkan: {e}");
            assert!(!required("vulkan"), "STERNA_REQUIRE names vulkan, which is missing: {e}");
            None
        }
    }
}

/// How a device is set up, and where pages go.
#[derive(Clone, Copy)]
struct Setup {
    kind: PageTable,
    copies: Option<Copies>,
    policy: &'static str,
}

impl Setup {
    /// Page table *mmu* is used in place unless a policy moves pages.
    fn moves(self) -> bool {
        self.kind != PageTable::Mmu || self.policy != "auto"
    }
}

impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, copies, policy } = self;
        match copies {
            Some(copies) => write!(f, "{kind}, {copies}, {policy}"),
            None => write!(f, "{kind}, {policy}"),
        }
    }
}

/// Has the calling test be the only one: a process has room for eight devices. Its limit of time begins with its turn.
fn turn() -> (MutexGuard<'static, ()>, Limit) {
    (alone(), limit())
}

/// A runtime on the device with each page table and each way of copies that works on it, and `memory` bytes: one after the other.
/// With page table *mmu* pages are used in place, and moved.
fn runtimes(memory: usize) -> impl Iterator<Item = (Setup, Runtime)> {
    let mut setups = ["auto", "declared"].map(|policy| Setup { kind: PageTable::Mmu, copies: None, policy }).to_vec();
    for kind in [PageTable::Sparse, PageTable::Fixed] {
        let ways = [None, Some(Copies::Imported), Some(Copies::Staged)];
        setups.extend(ways.map(|copies| Setup { kind, copies, policy: "auto" }));
    }
    let name = name();
    setups.into_iter().filter_map(move |setup| {
        let Setup { kind, copies, policy } = setup;
        let config = VulkanConfig { memory: Some(memory as u64), page_table: Some(kind), copies, ..VulkanConfig::default() };
        match VulkanDevice::open(name.as_deref()?, &config) {
            Ok(device) => {
                let builder = Runtime::builder().open_device(Arc::new(device)).policy(policy).expect("a policy");
                Some((setup, builder.build().expect("a runtime")))
            }
            Err(e @ (VulkanError::NoPageTable { .. } | VulkanError::Settings(_))) => {
                println!("SKIP {setup}: {e}");
                let copies = copies.filter(|_| matches!(e, VulkanError::Settings(_)));
                let missing = copies.map_or(kind.name(), Copies::name);
                assert!(!required(missing), "STERNA_REQUIRE names {missing}, which does not work: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    })
}

#[test]
fn launches_see_what_the_host_wrote_and_the_host_sees_what_they_wrote() {
    let _turn = turn();
    for (kind, rt) in runtimes(64 * MIB) {
        let n = 300_000;
        let x = rt.shared_with(n, |i| (i % 1000) as f32).unwrap();
        let mut y = rt.shared_with(n, |i| (i % 7) as f32).unwrap();
        let mut expect = y.to_vec();
        for round in 0..20 {
            y[round * 1000] += 1.0;
            expect[round * 1000] += 1.0;
            rt.launch(&saxpy(2.0), (&x, &mut y)).unwrap();
            reference::saxpy(2.0, &x, &mut expect);
            assert_eq!(y[round * 999], expect[round * 999], "{kind}, round {round}");
        }
        assert_eq!(y[..], expect[..], "{kind}");
        let mut sums = rt.shared::<f32>(reduce_sum_len(n)).unwrap();
        rt.launch(&reduce_sum(), (&y, &mut sums)).unwrap();
        let (got, want) = (sums.iter().copied().map(f64::from).sum::<f64>(), reference::sum(&expect));
        assert!((got - want).abs() <= want.abs() * 1e-6, "{kind}: {got} instead of {want}");
    }
}

#[test]
fn one_element_read_moves_one_granule() {
    let _turn = turn();
    for (kind, rt) in runtimes(64 * MIB) {
        let mut y = rt.shared::<u32>(4 * MIB).unwrap();
        rt.launch(&fill(7_u32), (&mut y,)).unwrap().wait().unwrap();
        let before = rt.stats();
        assert_eq!(y[3 * MIB + 5], 7, "{kind}");
        if common::faults(&rt) {
            let moved = rt.stats().devices[0].to_host.total() - before.devices[0].to_host.total();
            assert!(moved <= 64 << 10, "{kind}: {moved} bytes came home for one element");
        }
        assert!(y.iter().all(|v| *v == 7), "{kind}");
    }
}

#[test]
fn elements_of_every_size_can_be_filled() {
    let _turn = turn();
    fn all<T: sterna::bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug>(rt: &Runtime, kind: Setup, value: T) {
        let mut y = rt.shared::<T>(70_001).unwrap();
        match rt.launch(&fill(value), (&mut y,)) {
            Err(e) if lacks_bytes(&e) => println!("SKIP {kind}: elements of {} bytes: {e}", size_of::<T>()),
            filled => {
                filled.unwrap().wait().unwrap();
                assert!(y.iter().all(|v| *v == value), "{kind}: {value:?}");
            }
        }
    }
    for (kind, rt) in runtimes(64 * MIB) {
        all(&rt, kind, 0xA5_u8);
        all(&rt, kind, 0xBEEF_u16);
        all(&rt, kind, [1_u8, 2, 3]);
        all(&rt, kind, u32::MAX - 1);
        all(&rt, kind, [1.5_f32, 2.5, 3.5]);
        all(&rt, kind, 0x0123_4567_89AB_CDEF_u64);
        all(&rt, kind, [7_u64; 8]);
        let mut y = rt.shared::<[u64; 9]>(8).unwrap();
        let refused = rt.launch(&fill([1_u64; 9]), (&mut y,)).unwrap_err().to_string();
        assert!(refused.contains("SPIR-V"), "{kind}: {refused}");
    }
}

#[test]
fn data_of_four_times_the_memory_is_faulted_in_or_comes_in_parts() {
    let _turn = turn();
    for (kind, rt) in runtimes(4 * MIB) {
        stencil_of_16_mib(&rt, kind);
        let stats = rt.stats();
        let device = &stats.devices[0];
        if !kind.moves() {
            assert!(device.mapped_remote > 0 && stats.to_device() == 0, "{kind}: pages moved that could stay: {stats:?}");
            continue;
        }
        let how = if rt.devices()[0].caps().absent == Absent::Faults { device.device_faults } else { device.parts };
        assert!(how > 0, "{kind}: nothing was faulted in, or nothing cut: {stats:?}");
    }
}

#[test]
fn allocations_take_turns_in_a_memory_that_holds_one() {
    let _turn = turn();
    for (kind, rt) in runtimes(5 * MIB) {
        let n = MIB;
        let mut all: Vec<_> = (0..4_u32).map(|v| rt.shared_with(n, |i| v + i as u32).unwrap()).collect();
        for _ in 0..3 {
            for y in &mut all {
                rt.launch(&add_one(), (y,)).unwrap_or_else(|e| panic!("{kind}: {e}"));
            }
        }
        for (v, y) in all.iter_mut().enumerate() {
            y.try_read().unwrap_or_else(|e| panic!("{kind}, {v}: {e}"));
            assert!(y.iter().enumerate().all(|(i, y)| *y == v as u32 + i as u32 + 3), "{kind}: allocation {v}");
        }
    }
}

/// Adds 1 to every element.
fn add_one() -> Kernel<(sterna::kernel::EachMut<u32>,)> {
    fn body(_: sterna::kernel::Group, (): (), y: &mut [u32]) {
        y.iter_mut().for_each(|y| *y += 1);
    }
    let kernel = Kernel::new("add one", (), (each_mut(16 * 1024),), body);
    // SAFETY: the module adds one to each element of the group's own part, within the buffer.
    unsafe { kernel.with_spirv(Spirv::new(include_bytes!("glsl/add_one.spv"))) }
}

/// Adds `a` to every element, on devices that run Rust only.
fn add_in_rust(a: u32) -> Kernel<(sterna::kernel::EachMut<u32>,)> {
    fn body(_: sterna::kernel::Group, a: u32, y: &mut [u32]) {
        y.iter_mut().for_each(|y| *y += a);
    }
    Kernel::new("add in Rust", a, (each_mut(16 * 1024),), body)
}

#[test]
fn what_a_shader_refuses_fails_its_launch_and_taints() {
    let _turn = turn();
    for (kind, rt) in runtimes(64 * MIB) {
        let x = rt.shared::<f32>(1000).unwrap();
        let mut y = rt.shared::<f32>(999).unwrap();
        let e = rt.launch(&saxpy(1.0), (&x, &mut y)).unwrap().wait().unwrap_err().to_string();
        assert!(e.contains("different length") && e.contains("1000") && e.contains("999"), "{kind}: {e}");
        assert!(y.try_read().is_err(), "{kind}: what it would have written is not tainted");
        // A column that does not exist, in a matrix of three rows.
        let row_ptr = rt.shared_from(&[0_u32, 1, 2, 3]).unwrap();
        let col = rt.shared_from(&[0_u32, 9, 1]).unwrap();
        let (val, v) = (rt.shared_from(&[1.0_f32; 3]).unwrap(), rt.shared_from(&[1.0_f32; 3]).unwrap());
        let mut out = rt.shared::<f32>(3).unwrap();
        let e = rt.launch(&spmv_csr(), (&row_ptr, &col, &val, &v, &mut out)).unwrap().wait().unwrap_err().to_string();
        assert!(e.contains("column 9 of 3"), "{kind}: {e}");
        // The next one is right.
        let col = rt.shared_from(&[0_u32, 2, 1]).unwrap();
        rt.launch(&spmv_csr(), (&row_ptr, &col, &val, &v, &mut out)).unwrap().wait().unwrap();
        assert_eq!(out[..], [1.0; 3], "{kind}");
    }
}

#[test]
fn modules_that_cannot_run_are_refused_by_name() {
    let _turn = turn();
    static GOOD: &[u8] = include_bytes!("glsl/add_one.spv");
    static FRAGMENT: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let mut other = GOOD.to_vec();
        // The entry point's execution model: GLCompute (5) becomes Fragment (4).
        let at = (20..other.len() - 8).step_by(4).find(|i| other[*i] == 15 && other[i + 1] == 0 && other[i + 4] == 5);
        other[at.expect("an entry point") + 4] = 4;
        other
    });
    let wrong: [(&'static [u8], &str); 4] = [
        (b"", "no SPIR-V module"),
        (b"neither fish nor fowl", "no SPIR-V module"),
        (&GOOD[..GOOD.len() - 40], "truncated"),
        (&FRAGMENT, "another stage"),
    ];
    for (kind, rt) in runtimes(64 * MIB) {
        let mut y = rt.shared::<u32>(100).unwrap();
        for (code, what) in wrong {
            // SAFETY: none of these ever runs.
            let kernel = unsafe { Kernel::from_spirv("broken", (), (each_mut::<u32>(64),), Spirv::new(code)) };
            match rt.launch(&kernel, (&mut y,)) {
                Err(Error::Device { source: DeviceError::BadKernel { kernel, what: said }, .. }) => {
                    assert!(kernel == "broken" && said.contains(what), "{kind}: {said}");
                }
                other => panic!("{kind}: {what}: {other:?}"),
            }
        }
        assert!(y.iter().all(|y| *y == 0), "{kind}");
    }
}

#[test]
fn a_kernel_without_a_form_goes_to_a_device_that_runs_it() {
    let _turn = turn();
    let Some(name) = name() else { return };
    let rt = Runtime::builder().device(format!("vulkan:{name}")).device("cpu:0").memory(32 << 20).build().unwrap();
    let [gpu, cpu] = &rt.devices()[..] else { panic!("two devices") };
    let mut y = rt.shared_with(MIB, |i| i as u32).unwrap();
    // In turn on both devices: pages pass from one to the other.
    for round in 0..4_u32 {
        rt.launch(&add_one(), (&mut y,)).unwrap();
        rt.launch(&add_in_rust(10), (&mut y,)).unwrap();
        assert_eq!(y[17], 17 + 11 * (round + 1));
    }
    assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 44));
    let launches = |d: &sterna::Device| rt.stats().devices.iter().find(|s| s.device == d.id()).unwrap().launches;
    assert_eq!((launches(gpu), launches(cpu)), (4, 4));
    let e = rt.on(gpu).launch(&add_in_rust(1), (&mut y,)).unwrap_err().to_string();
    assert!(e.contains("no SPIR-V form"), "{e}");
}

/// The same device with each page table, every other device that the loader lists, and the CPU device, in one runtime: pages pass
/// from each to each, where memory is short in parts, and launches over the same bytes keep their order.
#[test]
fn pages_pass_between_devices_of_every_kind() {
    let (_turn, n) = (turn(), 2 * MIB);
    let Some(name) = name() else { return };
    let open = |name: &str, page_table, memory: usize| {
        let config = VulkanConfig { memory: Some(memory as u64), page_table, ..VulkanConfig::default() };
        VulkanDevice::open(name, &config).map(Arc::new)
    };
    // Every device takes pages for itself, those too that could use them in place.
    let mut builder = Runtime::builder().policy("declared").unwrap();
    let mut there = Vec::new();
    // 8 MiB of data: the second and the third have less.
    for (kind, memory) in [(PageTable::Mmu, 32 * MIB), (PageTable::Sparse, 4 * MIB), (PageTable::Fixed, 3 * MIB)] {
        match open(&name, Some(kind), memory) {
            Ok(device) => {
                there.push(device.gpu().uuid.clone());
                builder = builder.open_device(device);
            }
            Err(e) => println!("SKIP {kind}: {e}"),
        }
    }
    for gpu in sterna::vulkan::devices().unwrap().iter().filter(|g| g.lacks.is_none()) {
        if !there.contains(&gpu.uuid) && there.len() < 6 {
            println!("and {} ({})", gpu.name, gpu.driver);
            there.push(gpu.uuid.clone());
            builder = builder.open_device(open(&gpu.index.to_string(), None, 16 * MIB).unwrap());
        }
    }
    let rt = builder.open_device(common::device(common::small(16 * MIB))).build().unwrap();
    let devices = rt.devices();
    println!("{} devices", devices.len());
    assert!(devices.len() >= 2);
    let mut y = rt.shared_with(n, |i| i as u32).unwrap();
    let mut launches = 0_u32;
    for from in &devices {
        for to in &devices {
            rt.on(from).launch(&add_one(), (&mut y,)).unwrap();
            rt.on(to).launch(&add_one(), (&mut y,)).unwrap();
            launches += 2;
            let at = (launches as usize * 77_777) % n;
            assert_eq!(y[at], at as u32 + launches, "from {} to {}", from.id(), to.id());
        }
    }
    // Each a part of its own, at the same time.
    let per = (n / devices.len()).next_multiple_of(64 << 10);
    for round in 0..3 {
        for (d, mut part) in devices.iter().cycle().skip(round).zip(y.chunks_mut(per)) {
            rt.on(d).launch(&add_one(), (&mut part,)).unwrap();
        }
    }
    y.try_read().unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + launches + 3));
    let stats = rt.stats();
    assert!(stats.devices.iter().all(|d| d.launches > 0 && d.to_host.total() > 0), "{stats}");
}

#[test]
fn a_lost_device_says_so() {
    let _turn = turn();
    let Some(name) = name() else { return };
    let device = Arc::new(VulkanDevice::open(&name, &VulkanConfig::default()).unwrap());
    let rt = Runtime::builder().open_device(Arc::clone(&device) as _).build().unwrap();
    let mut y = rt.shared_with(MIB, |i| i as u32).unwrap();
    rt.launch(&add_one(), (&mut y,)).unwrap().wait().unwrap();
    assert_eq!(y[5], 6);
    device.lose();
    let e = rt.launch(&add_one(), (&mut y,)).and_then(|p| p.wait()).unwrap_err().to_string();
    assert!(e.contains("lost"), "{e}");
}

#[test]
fn names_and_kinds_that_do_not_exist_are_refused() {
    let _turn = turn();
    if name().is_none() {
        return;
    }
    let test = "names_and_kinds_that_do_not_exist_are_refused";
    if !is_child() {
        let run = |c: &mut Command| said(&c.output().expect("a child"));
        let e = Runtime::builder().device("vulkan:no such thing").build().unwrap_err().to_string();
        assert!(e.contains("no such thing") && e.contains("vulkan:0"), "{e}");
        for variable in ["STERNA_PAGE_TABLE", "STERNA_VULKAN_COPIES"] {
            let said = run(child(test).env(variable, "cuneiform").env("STERNA_DEVICE", "vulkan:0"));
            assert!(said.contains("1 passed") && said.contains(&format!("{variable}=cuneiform")), "{said}");
        }
        return;
    }
    let e = Runtime::new().unwrap_err().to_string();
    println!("{e}");
    assert!(e.contains("cuneiform") && (e.contains("fixed") || e.contains("imported")), "{e}");
}

#[test]
fn without_a_driver_the_error_says_what_to_do() {
    let _turn = turn();
    let test = "without_a_driver_the_error_says_what_to_do";
    if !is_child() {
        let mut c = child(test);
        let said = said(
            &c.env("VK_DRIVER_FILES", "/no/such/driver.json")
                .env("VK_ICD_FILENAMES", "/no/such/driver.json")
                .output()
                .unwrap(),
        );
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let e = Runtime::builder().device("vulkan").build().unwrap_err();
    assert!(matches!(&e, Error::Device { source: DeviceError::Unavailable(_), .. }), "{e:?}");
    assert!(e.to_string().contains("install"), "{e}");
    // A program that names no device runs all the same.
    let rt = Runtime::new().unwrap();
    assert_eq!(rt.devices()[0].id(), "cpu:0");
}
