//! SPIR-V as users bring it: storage buffers by set and binding, push constants, a uniform buffer, specialisation constants.

use std::process::Command;
use std::sync::Arc;

use sterna::hal::DeviceError;
use sterna::kernel::{EachMut, EachOut, Kernel, Params, Scatter, Spirv, Whole, each, each_mut, each_out, scatter, whole};
use sterna::vulkan::{CacheFolder, PageTable, VulkanConfig, VulkanDevice};
use sterna::{Error, Runtime};

use crate::common::{MIB, child, is_child, said};
use crate::{name, runtimes, turn};

macro_rules! module {
    ($name:literal) => {
        Spirv::new(include_bytes!(concat!("../../../backends/vulkan/tests/glsl/", $name, ".spv")))
    };
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Axpy {
    n: u32,
    a: f32,
}
// SAFETY: two words without padding; every pattern is a value.
unsafe impl sterna::bytemuck::Zeroable for Axpy {}
// SAFETY: as above.
unsafe impl sterna::bytemuck::Pod for Axpy {}

const K: f32 = 0.5;

/// `y += a · K · x` with groups of `local` invocations, one element each.
fn axpy(n: usize, a: f32, local: usize) -> Kernel<(sterna::kernel::Each<f32>, EachMut<f32>)> {
    let form = module!("bound").constant(7, u64::from(K.to_bits())).constant(3, local as u64);
    // SAFETY: each group changes the elements with the numbers of its invocations, which are its chunk, within the buffers.
    unsafe { Kernel::from_spirv("axpy", Axpy { n: n as u32, a }, (each(local), each_mut(local)), form) }
}

#[test]
fn bound_buffers_push_constants_and_constants_arrive() {
    let _turn = turn();
    for (kind, rt) in runtimes(64 * MIB) {
        for (n, local) in [(1, 64), (1000, 64), (100_000, 256), (100_001, 32)] {
            let x = rt.shared_with(n, |i| i as f32).unwrap();
            let mut y = rt.shared_with(n, |i| (i % 7) as f32).unwrap();
            for _ in 0..3 {
                rt.launch(&axpy(n, 2.0, local), (&x, &mut y)).unwrap();
            }
            let wrong = y.iter().enumerate().find(|(i, y)| **y != (i % 7) as f32 + 3.0 * (2.0 * K * *i as f32));
            assert_eq!(wrong, None, "{kind}: {n} elements in groups of {local}");
        }
    }
}

#[test]
fn views_are_bound_where_they_begin() {
    let _turn = turn();
    for (kind, rt) in runtimes(64 * MIB) {
        let n = 16_384; // the largest grain there is, for mechanism `none`
        let x = rt.shared_with(2 * n, |i| i as f32).unwrap();
        let mut y = rt.shared::<f32>(2 * n).unwrap();
        rt.launch(&axpy(n, 2.0, 64), (&x.range(n..2 * n).unwrap(), &mut y.range_mut(n..2 * n).unwrap()))
            .unwrap()
            .wait()
            .unwrap();
        assert!(y[..n].iter().all(|y| *y == 0.0) && y[n + 5] == (n + 5) as f32, "{kind}: {}", y[n + 5]);
        if rt.stats().mechanism != sterna::Mechanism::None {
            // 4 bytes into an allocation: no device binds a buffer there.
            let e =
                rt.launch(&axpy(n, 2.0, 64), (&x.range(1..n + 1).unwrap(), &mut y.range_mut(0..n).unwrap())).unwrap().wait();
            let e = e.unwrap_err().to_string();
            assert!(e.contains("argument 0 begins at a byte"), "{kind}: {e}");
        }
    }
}

#[test]
fn buffer_blocks_in_several_sets() {
    let _turn = turn();
    // SAFETY: as above; every element is replaced.
    let twice: Kernel<(Whole<f32>, EachOut<f32>)> =
        unsafe { Kernel::from_spirv("twice", (), (whole(), each_out(64)), module!("old")) };
    for (kind, rt) in runtimes(64 * MIB) {
        let x = rt.shared_with(70_000, |i| i as f32).unwrap();
        let mut y = rt.shared::<f32>(70_000).unwrap();
        rt.launch(&twice, (&x, &mut y)).unwrap();
        assert!(y.iter().enumerate().all(|(i, y)| *y == 2.0 * i as f32), "{kind}");
    }
}

#[test]
fn a_grid_of_two_dimensions_is_the_modules() {
    let _turn = turn();
    let (width, height) = (1000_u32, 700_u32);
    let form = Spirv::new(include_bytes!("glsl/transpose.spv"));
    // SAFETY: each invocation writes an element of its own, within the buffers.
    let kernel: Kernel<(Whole<f32>, Scatter<f32>)> =
        unsafe { Kernel::from_spirv("transpose", [width, height], (whole(), scatter()), form) };
    let kernel = kernel.grid([width.div_ceil(8), height.div_ceil(8), 1]);
    for (kind, rt) in runtimes(64 * MIB) {
        let n = (width * height) as usize;
        let x = rt.shared_with(n, |i| i as f32).unwrap();
        let mut y = rt.shared::<f32>(n).unwrap();
        rt.launch(&kernel, (&x, &mut y)).unwrap().wait().unwrap();
        let of = |i: usize| (i % height as usize * width as usize + i / height as usize) as f32;
        let wrong = y.iter().enumerate().find(|(i, y)| **y != of(*i));
        assert_eq!(wrong, None, "{kind}");
        let e = rt.launch(&kernel.clone().grid([1, 70_000, 1]), (&x, &mut y)).expect_err("beyond the device");
        assert!(e.to_string().contains("70000"), "{kind}: {e}");
    }
}

#[test]
fn plain_values_of_kilobytes_arrive() {
    let _turn = turn();
    let table = |k: u32| -> [u32; 2048] { std::array::from_fn(|i| k + 3 * i as u32) };
    type Out = (EachOut<u32>,);
    // SAFETY: as above.
    let bound = |k| -> Kernel<Out> { unsafe { Kernel::from_spirv("table", table(k), (each_out(64),), module!("table")) } };
    // SAFETY: as above.
    let far = |k| -> Kernel<Out> { unsafe { Kernel::from_spirv("far", table(k), (each_out(1000),), module!("far")) } };
    for (kind, rt) in runtimes(64 * MIB) {
        let mut all: Vec<_> = (0..20).map(|_| rt.shared::<u32>(5000).unwrap()).collect();
        // Many in flight, each with a value of its own.
        for (k, y) in all.iter_mut().enumerate() {
            let kernel = if k % 2 == 0 { bound(k as u32) } else { far(k as u32) };
            rt.launch(&kernel, (y,)).unwrap();
        }
        for (k, y) in all.iter().enumerate() {
            let wrong = y.iter().enumerate().find(|(i, y)| **y != k as u32 + 3 * (*i as u32 % 2048));
            assert_eq!(wrong, None, "{kind}, {k}");
        }
    }
}

/// On lavapipe this says nothing: it cuts off whether it is asked to or not.
#[test]
fn what_is_read_beyond_a_bound_buffer_is_none_of_its_neighbours() {
    let _turn = turn();
    // SAFETY: it reads beyond its buffer, which is why this is tried only where the device cuts that off.
    let beyond: Kernel<(Whole<u32>, EachOut<u32>)> =
        unsafe { Kernel::from_spirv("beyond", (), (whole(), each_out(64)), module!("beyond")) };
    for (kind, rt) in runtimes(64 * MIB) {
        let gpu = sterna::vulkan::devices().unwrap();
        if !gpu.iter().all(|g| g.bounds_checks()) {
            println!("SKIP {kind}: the device has no robustBufferAccess2");
            continue;
        }
        let both = rt.shared_with(2 * 16384, |i| 1 + i as u32).unwrap();
        let mut y = rt.shared::<u32>(1000).unwrap();
        rt.launch(&beyond, (&both.range(0..16384).unwrap(), &mut y)).unwrap().wait().unwrap();
        assert!(y.iter().all(|y| *y == 7), "{kind}: {}", y[0]);
    }
}

#[test]
fn the_place_in_the_grid_is_the_launchs() {
    let _turn = turn();
    // SAFETY: as above.
    let place: Kernel<(EachOut<[u32; 2]>,)> = unsafe { Kernel::from_spirv("place", (), (each_out(4),), module!("place")) };
    for (kind, rt) in runtimes(64 * MIB) {
        let mut y = rt.shared::<[u32; 2]>(4000).unwrap();
        rt.launch(&place, (&mut y,)).unwrap();
        assert!(y.iter().enumerate().all(|(i, y)| *y == [i as u32 / 4, 1000]), "{kind}");
    }
}

fn refused<P: Params>(result: Result<sterna::Pending, Error>, kernel: &Kernel<P>) -> String {
    match result {
        Err(Error::Device { source: DeviceError::BadKernel { kernel: named, what }, .. }) if named == kernel.name() => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let _turn = turn();
    for (kind, rt) in runtimes(64 * MIB) {
        let x = rt.shared::<f32>(100).unwrap();
        let mut y = rt.shared_with(100, |_| 5.0_f32).unwrap();
        let value = Axpy { n: 100, a: 1.0 };
        // SAFETY: none of these ever runs.
        let (one, read, short, other) = unsafe {
            (
                Kernel::from_spirv("one", value, (each_mut::<f32>(64),), module!("bound")),
                Kernel::from_spirv("read", value, (each::<f32>(64), each::<f32>(64)), module!("bound")),
                Kernel::from_spirv("short", 1_u32, (each::<f32>(64), each_mut::<f32>(64)), module!("bound")),
                Kernel::from_spirv("other", (), (each_mut::<f32>(64),), module!("image")),
            )
        };
        let e = refused(rt.launch(&one, (&mut y,)), &one);
        assert!(e.contains("binds 2 storage buffers"), "{kind}: {e}");
        let e = refused(rt.launch(&read, (&x, &y)), &read);
        assert!(e.contains("0.2 is written"), "{kind}: {e}");
        let e = refused(rt.launch(&short, (&x, &mut y)), &short);
        assert!(e.contains("plain value has 4"), "{kind}: {e}");
        let e = refused(rt.launch(&other, (&mut y,)), &other);
        assert!(e.contains("is no buffer"), "{kind}: {e}");
        assert!(y.iter().all(|y| *y == 5.0), "{kind}");
        let x = rt.shared::<f32>(70_000).unwrap();
        let mut y = rt.shared_with(70_000, |_| 5.0_f32).unwrap();
        let none = Axpy { n: 0, a: 1.0 };
        // SAFETY: told of no elements it touches none.
        let many = unsafe { Kernel::from_spirv("many", none, (each::<f32>(1), each_mut::<f32>(1)), module!("bound")) };
        match rt.launch(&many, (&x, &mut y)).and_then(|p| p.wait()) {
            Ok(()) => println!("SKIP {kind}: the device runs grids of 70000 groups"),
            Err(e) => {
                let said = e.to_string();
                assert!(said.contains("a grid of [70000, 1, 1]") && said.contains("more to do"), "{kind}: {said}");
                y.fill_with(|_| 5.0).unwrap();
            }
        }
        assert!(y.iter().all(|y| *y == 5.0), "{kind}");
    }
}

#[test]
fn pipelines_are_kept_on_disk_and_what_is_broken_there_is_ignored_aloud() {
    let _turn = turn();
    let Some(device) = name() else { return };
    let test = "descriptors::pipelines_are_kept_on_disk_and_what_is_broken_there_is_ignored_aloud";
    if is_child() {
        let rt = Runtime::builder().device(format!("vulkan:{device}")).build().unwrap();
        let x = rt.shared_with(100, |i| i as f32).unwrap();
        let mut y = rt.shared::<f32>(100).unwrap();
        rt.launch(&axpy(100, 2.0, 64), (&x, &mut y)).unwrap();
        assert_eq!(y[9], 9.0);
        return;
    }
    let folder = std::env::temp_dir().join(format!("sterna-cache-{}", std::process::id()));
    let inner = folder.join("made");
    let run = |set: &dyn Fn(&mut Command)| {
        let mut c = child(test);
        set(&mut c);
        let text = said(&c.output().unwrap());
        assert!(text.contains("1 passed"), "{text}");
        text
    };
    let kept = |c: &mut Command| {
        c.env("STERNA_PIPELINE_CACHE", &inner);
    };
    assert!(!run(&kept).contains("is ignored"));
    let files = || -> Vec<_> { std::fs::read_dir(&inner).unwrap().map(|f| f.unwrap().path()).collect() };
    let [file] = &files()[..] else { panic!("one file: {:?}", files()) };
    assert!(!run(&kept).contains("is ignored"), "its own file");
    let good = std::fs::read(file).unwrap();
    for (bad, why) in [(&good[..good.len() - 1], "cut off"), (b"rubbish", "too short"), (&[7; 500], "something else")] {
        std::fs::write(file, bad).unwrap();
        let text = run(&kept);
        assert!(text.contains("is ignored") && text.contains(why), "{text}");
        assert_eq!(files().len(), 1, "something is left over");
        assert!(!run(&kept).contains("is ignored"), "it was not written anew");
    }
    // A place that cannot be written stops nobody.
    std::fs::write(folder.join("file"), "").unwrap();
    let text = run(&|c| {
        c.env("STERNA_PIPELINE_CACHE", folder.join("file").join("below"));
    });
    assert!(text.contains("STERNA_PIPELINE_CACHE"), "{text}");
    // Off, and by default in the user's folder.
    let home = folder.join("home");
    let homely = |c: &mut Command, cache: &str| {
        c.env("HOME", &home).env_remove("XDG_CACHE_HOME").env("STERNA_PIPELINE_CACHE", cache);
    };
    run(&|c| homely(c, "off"));
    assert!(!home.join(".cache/sterna").exists());
    // An empty value counts as none.
    run(&|c| homely(c, ""));
    assert!(home.join(".cache/sterna").exists());
    std::fs::remove_dir_all(&folder).unwrap();
    let e = Runtime::builder().open_device(Arc::new(VulkanDevice::open(&device, &quiet()).unwrap())).build();
    assert!(e.is_ok());
    assert!("somewhere".parse::<CacheFolder>().unwrap_err().contains("somewhere"));
}

fn quiet() -> VulkanConfig {
    VulkanConfig { page_table: Some(PageTable::Fixed), pipeline_cache: CacheFolder::Off, ..VulkanConfig::default() }
}
