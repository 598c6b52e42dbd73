//! What is wrong around a program: no loader, drivers that are broken or drive nothing, memory and mappings that run out, a device
//! that goes away in the middle. Each is a typed error that names the thing and the remedy, and harms nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sterna::hal::DeviceError;
use sterna::vulkan::{PageTable, VulkanConfig, VulkanDevice};
use sterna::{Error, Runtime};

use crate::common::vulkan::vulkan;
use crate::common::{MIB, add, child, eventually, is_child, over, succeeds};
use crate::{add_one, name, turn};

/// An empty folder for one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sterna-{test}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// In a child: what a program is told that asks for a device, and that one which asks for none runs all the same.
fn what_is_said() -> String {
    let e = Runtime::builder().device("vulkan:0").build().unwrap_err();
    assert!(matches!(&e, Error::Device { source: DeviceError::Unavailable(_), .. }), "{e:?}");
    let rt = Runtime::new().unwrap();
    assert_eq!(rt.devices()[0].id(), "cpu:0");
    e.to_string()
}

#[test]
fn without_a_loader() {
    let _turn = turn();
    let test = "bad_input::without_a_loader";
    if is_child() {
        let e = what_is_said();
        assert!(e.contains("no Vulkan loader") && e.contains("libvulkan1") && e.contains("STERNA_DEVICE=cpu"), "{e}");
        return;
    }
    // The linker finds this one first, and it is none.
    let folder = Folder::new("without_a_loader");
    let place = &folder.0;
    std::fs::write(place.join("libvulkan.so.1"), "neither fish nor fowl").unwrap();
    std::fs::write(place.join("libvulkan.so"), "neither fish nor fowl").unwrap();
    succeeds(child(test).env("LD_LIBRARY_PATH", place));
}

#[test]
fn drivers_that_are_broken() {
    let _turn = turn();
    let test = "bad_input::drivers_that_are_broken";
    if is_child() {
        let (e, file) = (what_is_said(), std::env::var("VK_DRIVER_FILES").unwrap());
        if !e.contains("no Vulkan loader") {
            assert!(e.contains("no working driver") && e.contains(&file) && e.contains("install"), "{e}");
        }
        println!("said: {e}");
        return;
    }
    let folder = Folder::new("drivers_that_are_broken");
    let place = &folder.0;
    let manifest = |library: &str| {
        format!(r#"{{"file_format_version": "1.0.0", "ICD": {{"library_path": "{library}", "api_version": "1.3.0"}}}}"#)
    };
    let text = place.join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let whole = manifest("/no/such/library.so");
    let files: [(&str, Vec<u8>); 7] = [
        ("empty", Vec::new()),
        ("garbage", (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("cut", whole.as_bytes()[..whole.len() / 2].to_vec()),
        ("without a library", br#"{"file_format_version": "1.0.0", "ICD": {}}"#.to_vec()),
        ("library missing", whole.into_bytes()),
        ("library broken", manifest(text.to_str().unwrap()).into_bytes()),
        ("library of something else", manifest("libc.so.6").into_bytes()),
    ];
    let run = |file: &Path| {
        let said = succeeds(child(test).env("VK_DRIVER_FILES", file).env("VK_ICD_FILENAMES", file));
        println!("{}: {}", file.display(), said.lines().find(|l| l.contains("said: ")).unwrap_or("?"));
    };
    for (name, bytes) in files {
        let file = place.join(name).with_extension("json");
        std::fs::write(&file, bytes).unwrap();
        run(&file);
    }
    run(Path::new("/no/such/driver.json"));
    run(place);
}

/// Drivers whose hardware is not there.
#[test]
fn a_driver_without_a_device() {
    let _turn = turn();
    let test = "bad_input::a_driver_without_a_device";
    if is_child() {
        match sterna::vulkan::devices() {
            Ok(all) => println!("there is {}", all[0].name),
            Err(e) => {
                let said = what_is_said();
                assert!(said.contains(&e.to_string()) && said.contains("no working driver"), "{said}");
                println!("said: {said}");
            }
        }
        return;
    }
    let installed = std::fs::read_dir("/usr/share/vulkan/icd.d").into_iter().flatten().flatten();
    let hardware = ["radeon", "intel_icd", "nouveau"];
    let files: Vec<PathBuf> = installed.map(|f| f.path()).collect();
    let one = files.iter().find(|f| hardware.iter().any(|h| f.to_string_lossy().contains(h)));
    let Some(one) = one else {
        println!("SKIP: no driver of hardware is installed");
        return;
    };
    println!("{}: {}", one.display(), succeeds(child(test).env("VK_DRIVER_FILES", one).env("VK_ICD_FILENAMES", one)));
}

#[test]
fn a_budget_that_holds_nothing() {
    let _turn = turn();
    let Some(name) = name() else { return };
    let e = Runtime::builder().device(format!("vulkan:{name}")).memory(64 << 10).build().unwrap_err();
    assert!(matches!(&e, Error::BudgetTooSmall { budget: 65536, .. }), "{e:?}");
    let said = e.to_string();
    assert!(said.contains("65536 bytes is too small") && said.contains("`Builder::memory`"), "{said}");
    let config = VulkanConfig { memory: Some(64 << 10), ..VulkanConfig::default() };
    let said = VulkanDevice::open(&name, &config).map(drop).unwrap_err().to_string();
    assert!(said.contains("`VulkanConfig::memory`") && !said.contains("STERNA_DEVICE_MEMORY"), "{said}");
    let e = Runtime::builder().device(format!("vulkan:{name}")).memory(1 << 60).build().unwrap_err();
    assert!(matches!(&e, Error::BudgetTooLarge { .. }) && e.to_string().contains("`Builder::memory`"), "{e:?}");
}

#[test]
fn a_device_that_is_lost_while_it_works() {
    let _turn = turn();
    let Some(name) = name() else { return };
    for kind in [PageTable::Mmu, PageTable::Sparse, PageTable::Fixed] {
        let config = VulkanConfig { memory: Some(128 << 20), page_table: Some(kind), ..VulkanConfig::default() };
        let Ok(device) = VulkanDevice::open(&name, &config).map_err(|e| println!("SKIP {kind}: {e}")) else { continue };
        let device = Arc::new(device);
        let rt = Runtime::builder().open_device(Arc::clone(&device) as _).build().unwrap();
        let other = rt.shared_with(MIB, |i| i as u32).unwrap();
        let mut y = rt.shared_with(4 * MIB, |i| i as u32).unwrap();
        let all: Vec<_> = (0..30).map(|_| rt.launch(&add_one(), (&mut y,)).unwrap()).collect();
        eventually("it works", || all[0].is_done());
        assert!(!all[29].is_done(), "{kind}: it is too fast for this test");
        let start = std::time::Instant::now();
        device.lose();
        let last = all.into_iter().map(|p| p.wait()).next_back().unwrap().unwrap_err();
        assert!(last.to_string().contains("lost"), "{kind}: {last}");
        assert!(start.elapsed().as_secs() < 10, "{kind}: {:?}", start.elapsed());
        let e = y.try_read().unwrap_err();
        println!("{kind}: said: {last} / {e}");
        assert!(e.to_string().contains("lost"), "{kind}: {e}");
        assert!(other.iter().enumerate().all(|(i, v)| *v == i as u32), "{kind}");
        let e = rt.launch(&add_one(), (&mut y,)).and_then(|p| p.wait()).unwrap_err();
        assert!(e.to_string().contains("lost"), "{kind}: {e}");
        // Written anew it is whole again.
        y.fill_with(|i| i as u32).unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32), "{kind}");
    }
}

/// The device with each page table, in a child whose limits a test changes.
fn each_table(test: &str, body: fn(PageTable, Arc<VulkanDevice>, &Runtime)) {
    let Some(name) = name() else { return };
    for kind in [PageTable::Mmu, PageTable::Sparse, PageTable::Fixed] {
        if !is_child() {
            println!("{}", succeeds(child(test).env("STERNA_TEST_TABLE", kind.name())));
            continue;
        }
        if std::env::var("STERNA_TEST_TABLE").unwrap() != kind.name() {
            continue;
        }
        let config = VulkanConfig { memory: Some(256 << 20), page_table: Some(kind), ..VulkanConfig::default() };
        match VulkanDevice::open(&name, &config).map(Arc::new) {
            Ok(device) => {
                let rt = Runtime::builder().open_device(Arc::clone(&device) as _).build().unwrap();
                body(kind, device, &rt);
            }
            Err(e) => println!("SKIP {kind}: {e}"),
        }
    }
}

/// Sets how much address space the process may have beyond what it has; `None`: as much as it likes.
fn limit_address_space(more: Option<u64>) {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let limit =
        libc::rlimit { rlim_cur: more.map_or(libc::RLIM_INFINITY, |m| pages * 4096 + m), rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a limit of this process alone, from a whole structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

#[test]
fn a_driver_that_has_no_more_memory() {
    let _turn = turn();
    each_table("bad_input::a_driver_that_has_no_more_memory", |kind, _, rt| {
        let mut small = rt.shared_with(MIB, |i| i as u32).unwrap();
        rt.launch(&add_one(), (&mut small,)).unwrap().wait().unwrap();
        let mut y = rt.shared_with(24 * MIB, |i| i as u32).unwrap();
        limit_address_space(Some(8 << 20));
        let launched = rt.launch(&add_one(), (&mut y,)).and_then(|p| p.wait());
        limit_address_space(None);
        println!("{kind}: said: {launched:?}");
        let mut expect = 0;
        match launched {
            Ok(()) => expect = 1,
            Err(e) => {
                assert!(
                    matches!(e, Error::OutOfDeviceMemory { .. } | Error::Device { .. } | Error::WorkingSet { .. }),
                    "{kind}: {e:?}"
                );
                println!("{kind}: said: {e}");
                y.fill_with(|i| i as u32).unwrap();
            }
        }
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + expect), "{kind}");
        // With memory again everything works, also what was there before.
        rt.launch(&add_one(), (&mut y,)).unwrap().wait().unwrap();
        rt.launch(&add_one(), (&mut small,)).unwrap().wait().unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + expect + 1), "{kind}");
        assert!(small.iter().enumerate().all(|(i, v)| *v == i as u32 + 2), "{kind}");
    });
}

/// Mappings of this process now.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Mappings that use up all that the process may have but about `left`.
struct Crowd(*mut libc::c_void, usize);

impl Crowd {
    fn new(most: usize, left: usize) -> Self {
        let n = most - mappings() - left;
        // SAFETY: new pages of this process, used by nobody.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let base = libc::mmap(std::ptr::null_mut(), n * 4096, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            for i in (0..n).step_by(2) {
                assert_eq!(libc::mprotect(base.byte_add(i * 4096), 4096, libc::PROT_READ), 0);
            }
            Self(base, n * 4096)
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // SAFETY: mapped above, and nobody has it.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

#[test]
fn a_process_that_has_no_more_mappings() {
    let _turn = turn();
    each_table("bad_input::a_process_that_has_no_more_mappings", |kind, _, rt| {
        let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        if most > 1 << 20 {
            return println!("SKIP: {most} mappings are allowed");
        }
        const GRAIN: usize = 16 << 10;
        let mut y = rt.shared_with(32 * MIB, |i| i as u32).unwrap();
        let mut expect = vec![0; y.len() / GRAIN];
        rt.launch(&add_one(), (&mut y.range_mut(..MIB).unwrap(),)).unwrap().wait().unwrap();
        expect[..MIB / GRAIN].fill(1);
        // Binds are refused while some are left for others.
        let crowd = Crowd::new(most, if kind == PageTable::Sparse { 700 } else { 300 });
        let mut refused = None;
        // Every other grain: each a mapping of its own.
        for i in (MIB / GRAIN..expect.len()).step_by(2) {
            let mut part = y.range_mut(i * GRAIN..(i + 1) * GRAIN).unwrap();
            match rt.launch(&add_one(), (&mut part,)).and_then(|p| p.wait()) {
                Ok(()) => expect[i] = 1,
                Err(e) => {
                    println!("{kind}: said, at {i}: {e}");
                    assert!(e.to_string().contains("vm.max_map_count"), "{kind}: {e}");
                    part.fill_with(|k| (i * GRAIN + k) as u32).unwrap();
                    refused = Some(e);
                    break;
                }
            }
        }
        assert!(refused.is_some() || kind == PageTable::Fixed, "{kind}: nothing was refused");
        drop(crowd);
        let right = |y: &[u32], expect: &[u32]| y.iter().enumerate().position(|(i, v)| *v != i as u32 + expect[i / GRAIN]);
        assert_eq!(right(&y, &expect), None, "{kind}");
        rt.launch(&add_one(), (&mut y,)).unwrap().wait().unwrap();
        expect.iter_mut().for_each(|e| *e += 1);
        assert_eq!(right(&y, &expect), None, "{kind}");
    });
}

#[test]
fn addresses_that_have_run_out_are_told_of_once_and_counted() {
    let _turn = turn();
    let name = "bad_input::addresses_that_have_run_out_are_told_of_once_and_counted";
    if !is_child() {
        let said = succeeds(&mut child(name));
        println!("{said}");
        assert_eq!(said.matches("MiB of addresses").count(), said.matches("took turns").count(), "{said}");
        assert!(!said.contains("took turns") || said.contains("STERNA_PAGE_TABLE=mmu"), "{said}");
        return;
    }
    let Ok(device) = vulkan("sparse", 256 << 20, None) else { return };
    let rt = over(&Arc::new(device));
    const GRAIN: usize = (64 << 10) / 4;
    // Long ones, of which next to nothing is touched; as many as there are addresses for, and one more.
    let long = || rt.shared::<u32>((768 << 20) / 4);
    let mut all = Vec::new();
    while rt.stats().devices[0].unseated == 0 {
        if all.len() == 8 {
            return println!("SKIP: this driver has addresses for more than 6 GiB");
        }
        all.push(long().unwrap());
        for x in &mut all {
            rt.launch(&add(1), (&mut x.range_mut(..GRAIN).unwrap(),)).unwrap().wait().unwrap();
        }
    }
    println!("took turns");
    let n = all.len() as u32;
    for x in &mut all {
        rt.launch(&add(1), (&mut x.range_mut(..GRAIN).unwrap(),)).unwrap().wait().unwrap();
    }
    assert!(rt.stats().devices[0].unseated >= 2 && rt.stats().to_string().contains("want of addresses"), "{}", rt.stats());
    for (k, x) in (0..n).zip(&all) {
        assert_eq!((x[0], x[GRAIN - 1], x[GRAIN]), (n - k + 1, n - k + 1, 0), "allocation {k}");
    }
}
