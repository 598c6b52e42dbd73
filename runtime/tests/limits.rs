//! Limits of the surroundings: each ends in work done, or in a typed error with the remedy that helps there, and never in a hang or a
//! death. Each test sets its limit in a child of its own.

mod common;

use std::time::{Duration, Instant};

use common::limits::*;
use common::*;
use sterna::{Error, Mechanism, Runtime};

/// Has some system calls fail with an error, as a sandbox does.
fn forbid(calls: &[libc::c_long], errno: i32) {
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut p = vec![op(0x20, 0, 0, 0)];
    for c in calls {
        p.push(op(0x15, 0, 1, *c as u32));
        p.push(op(0x06, 0, 0, 0x0005_0000 | errno as u32));
    }
    p.push(op(0x06, 0, 0, 0x7fff_0000));
    let program = libc::sock_fprog { len: p.len() as u16, filter: p.as_mut_ptr() };
    // SAFETY: reads the program.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &program), 0);
    }
}

// ───────────── limits of the process ─────────────

#[test]
fn limits_that_forbid_a_runtime_are_named() {
    let name = "limits_that_forbid_a_runtime_are_named";
    let _limit = limit();
    // What helps, and the limit that is set to what the process has and this much.
    let cases = [
        ("ulimit -v", libc::RLIMIT_AS, (status("VmSize") << 10) + (40 << 30)),
        ("ulimit -f", libc::RLIMIT_FSIZE, 1 << 30),
        ("ulimit -n", libc::RLIMIT_NOFILE, 4),
        ("ulimit -d", libc::RLIMIT_DATA, (status("VmData") << 10) + (1 << 20)),
        ("ulimit -u", libc::RLIMIT_NPROC, 0),
    ];
    if !is_child() {
        for (helps, ..) in cases {
            if helps != "ulimit -u" || is_root() {
                succeeds(child(name).env("HELPS", helps));
            }
        }
        return;
    }
    let helps = std::env::var("HELPS").unwrap();
    let (_, what, to) = cases.into_iter().find(|c| c.0 == helps).unwrap();
    if what == libc::RLIMIT_NPROC {
        nobody();
    }
    assert!(limit_to(what, to));
    for _ in 0..3 {
        let e = Runtime::builder().device("cpu:0").build().expect_err("a limit").to_string();
        assert!(e.contains(&helps), "{helps}: {e}");
        // And nothing that would not help.
        let others = ["ulimit -v", "ulimit -f", "ulimit -d", "ulimit -n", "STERNA_HOST_FAULTS"];
        assert!(others.iter().all(|o| *o == helps || !e.contains(o)), "{helps}: {e}");
    }
}

#[test]
fn a_runtime_that_could_not_be_started_can_be_made_later() {
    let name = "a_runtime_that_could_not_be_started_can_be_made_later";
    let _limit = limit();
    if !is_root() {
        return;
    }
    if !is_child() {
        for m in MECHANISMS.into_iter().filter(|m| *m != "transparent") {
            succeeds(child(name).env("STERNA_HOST_FAULTS", m));
        }
        return;
    }
    let soft = |n| {
        let l = libc::rlimit { rlim_cur: n, rlim_max: 10_000 };
        // SAFETY: reads `l` only.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &l) }, 0);
    };
    soft(10_000);
    nobody();
    let make = || Runtime::builder().device("cpu:0").build();
    for n in (0..12).chain(0..12) {
        soft(n);
        drop(make());
    }
    soft(10_000);
    right(&make().unwrap());
}

/// A driver of the system's says of this what it likes.
#[cfg(feature = "vulkan")]
#[test]
fn limits_are_named_where_a_driver_meets_them() {
    use sterna::vulkan::{VulkanConfig, VulkanDevice};
    let name = "limits_are_named_where_a_driver_meets_them";
    let _limit = limit();
    if !is_root() || sterna::vulkan::devices().is_err() {
        return println!("SKIP: no Vulkan driver, or no right to give rights up");
    }
    if !is_child() {
        for (helps, to) in
            [("ulimit -u", "0 1 2 3 4 5 6 8"), ("ulimit -n", "3 4 6 8 10 12 16 20"), ("ulimit -v", "64 128 256")]
        {
            for to in to.split(' ') {
                println!("{helps} {to}: {}", succeeds(child(name).env("HELPS", helps).env("TO", to)));
            }
        }
        return;
    }
    let (helps, to) = (std::env::var("HELPS").unwrap(), std::env::var("TO").unwrap().parse().unwrap());
    let done = match helps.as_str() {
        "ulimit -u" => {
            nobody();
            limit_to(libc::RLIMIT_NPROC, to)
        }
        "ulimit -n" => limit_to(libc::RLIMIT_NOFILE, to),
        _ => limit_to(libc::RLIMIT_AS, to << 20),
    };
    assert!(done);
    for _ in 0..2 {
        match VulkanDevice::open("0", &VulkanConfig::default()) {
            Ok(device) => println!("opened with page table {}", device.page_table()),
            Err(e) => {
                println!("said: {e}");
                assert!(e.to_string().contains(&helps), "{e}");
            }
        }
    }
}

#[test]
fn little_data_is_enough() {
    let name = "little_data_is_enough";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut limited(name, "ulimit -d 100000"));
        return;
    }
    right(&Runtime::builder().device("cpu:0").build().unwrap());
}

#[test]
fn a_limit_on_files_is_an_error_of_flush_and_no_signal() {
    let name = "a_limit_on_files_is_an_error_of_flush_and_no_signal";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let rt = Runtime::builder().device("cpu:0").build().unwrap();
    let path = std::env::temp_dir().join(format!("sterna-limits-{}", std::process::id()));
    std::fs::write(&path, vec![1_u8; 4 * MIB]).unwrap();
    // SAFETY: the file is this test's own.
    let mut x = unsafe { rt.map_file::<u8>(&path) }.unwrap();
    x.fill_with(|_| 3).unwrap();
    limit_to(libc::RLIMIT_FSIZE, 1 << 20);
    let e = x.flush().expect_err("a limit");
    assert!(matches!(&e, Error::File { source, .. } if source.raw_os_error() == Some(libc::EFBIG)), "{e:?}");
    // What makes files in memory is refused, too; what is there works on.
    let e = Runtime::builder().device("cpu:1").build().expect_err("a limit");
    assert!(e.to_string().contains("ulimit -f"), "{e}");
    right(&rt);
    assert!(x.iter().all(|v| *v == 3));
    std::fs::remove_file(path).unwrap();
}

// ───────────── sandboxes ─────────────

#[test]
fn a_sandbox_without_memory_files_has_another_way() {
    let name = "a_sandbox_without_memory_files_has_another_way";
    let _limit = limit();
    if !is_child() {
        for code in [libc::EPERM, libc::ENOSYS] {
            under_each_mechanism(name, |c| _ = c.env("CODE", code.to_string()));
        }
        return;
    }
    forbid(&[libc::SYS_memfd_create], std::env::var("CODE").unwrap().parse().unwrap());
    match Runtime::new() {
        Ok(rt) => {
            right(&rt);
            // That file system has an end, and beyond it the kernel would end the process.
            let e = rt.shared::<u8>(4 << 40).expect_err("more than /dev/shm");
            assert!(matches!(e, Error::TooBig { .. }) && e.to_string().contains("/dev/shm"), "{e}");
        }
        Err(e) => assert!(e.to_string().contains("memfd_create") && e.to_string().contains("/dev/shm"), "{e}"),
    }
}

/// Fails if a driver is loaded that ends the process for want of memory, or if a limit is told in other units than a shell's.
#[test]
fn a_driver_is_not_loaded_where_it_may_not_have_the_memory_that_it_needs() {
    let name = "a_driver_is_not_loaded_where_it_may_not_have_the_memory_that_it_needs";
    let _limit = limit();
    if !is_child() {
        for kib in [40_000, 60_000, 80_000] {
            succeeds(limited(name, &format!("ulimit -d {kib}")).env("KIB", kib.to_string()));
        }
        return;
    }
    let e = Runtime::builder().device("vulkan").build().expect_err("a limit").to_string();
    assert!(e.contains(&format!("`ulimit -d` (now {})", std::env::var("KIB").unwrap())), "{e}");
}

#[test]
fn there_may_be_no_proc() {
    let name = "there_may_be_no_proc";
    let _limit = limit();
    if !is_root() {
        return;
    }
    if !is_child() {
        succeeds(child(name).env("STERNA_DEVICE", "cpu:0"));
        return;
    }
    let empty = std::env::temp_dir().join(format!("sterna-empty-{}", std::process::id()));
    std::fs::create_dir(&empty).unwrap();
    std::os::unix::fs::chroot(&empty).unwrap();
    std::env::set_current_dir("/").unwrap();
    let rt = Runtime::new().unwrap();
    let budget = rt.devices()[0].memory().budget;
    assert!((64 << 20..1 << 44).contains(&budget), "{budget}");
    right(&rt);
}

#[test]
fn closed_descriptors_stay_the_programs() {
    let name = "closed_descriptors_stay_the_programs";
    let _limit = limit();
    if !is_child() {
        for device in ["cpu:0", "vulkan"] {
            under_each_mechanism(name, |c| _ = c.env("STERNA_DEVICE", device));
        }
        return;
    }
    let path = std::env::temp_dir().join(format!("sterna-fds-{}", std::process::id()));
    std::fs::write(&path, [0_u8; 4096]).unwrap();
    // SAFETY: nobody else uses standard input, and what is written meanwhile comes from here.
    unsafe {
        let saved = libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 10);
        for n in 0..3 {
            libc::close(n);
        }
        let rt = Runtime::new().or_else(|_| Runtime::builder().device("cpu:0").build()).unwrap();
        let file = rt.map_file::<u8>(&path).unwrap();
        right(&rt);
        // A small file of the system's that is read has some number for a moment.
        let taken = || (0..3).filter(|n| libc::fcntl(*n, libc::F_GETFD) >= 0).collect::<Vec<i32>>();
        let end = Instant::now() + Duration::from_secs(1);
        while !taken().is_empty() && Instant::now() < end {
            std::thread::yield_now();
        }
        let taken = taken();
        libc::dup2(saved, 1);
        libc::dup2(saved, 2);
        assert!(taken.is_empty(), "{taken:?}");
        drop(file);
    }
    std::fs::remove_file(path).unwrap();
}

// ───────────── signals ─────────────

/// Blocks every signal in this thread.
fn block_all() {
    // SAFETY: changes this thread's mask only.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

#[test]
fn a_program_that_blocks_all_signals_can_do_everything() {
    let name = "a_program_that_blocks_all_signals_can_do_everything";
    let _limit = limit();
    if !is_child() {
        for device in ["cpu:0", "vulkan"] {
            for policy in ["auto", "demand"] {
                under_each_mechanism(name, |c| _ = c.env("STERNA_DEVICE", device).env("STERNA_POLICY", policy));
            }
        }
        return;
    }
    block_all();
    let Ok(rt) = Runtime::new() else { return }; // no such driver here
    right(&rt);
    std::thread::spawn(move || {
        block_all();
        right(&rt);
    })
    .join()
    .unwrap();
}

#[test]
fn a_signal_that_was_sent_is_no_fault() {
    let name = "a_signal_that_was_sent_is_no_fault";
    let _limit = limit();
    if !is_child() {
        under_each_mechanism(name, |c| _ = c.env("SENT", "ignored"));
        for m in MECHANISMS.into_iter().filter(|m| *m != "transparent" || is_root()) {
            let o = child(name).env("SENT", "default").env("STERNA_HOST_FAULTS", m).output().unwrap();
            assert!(std::os::unix::process::ExitStatusExt::signal(&o.status) == Some(libc::SIGSEGV), "{m}: {}", said(&o));
        }
        return;
    }
    let ignored = std::env::var("SENT").unwrap() == "ignored";
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler of the program's.
    unsafe {
        libc::signal(libc::SIGSEGV, action);
        libc::signal(libc::SIGBUS, action);
    }
    let rt = Runtime::builder().device("cpu:0").build().unwrap();
    for _ in 0..3 {
        right(&rt);
        for signal in [libc::SIGBUS, libc::SIGSEGV] {
            if signal == libc::SIGBUS && !ignored {
                continue;
            }
            // SAFETY: sends this process a signal.
            unsafe { libc::kill(libc::getpid(), signal) };
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(ignored, "it was to end the process");
    }
    right(&rt);
}

#[test]
fn an_ignored_signal_does_not_make_a_bad_access_last_for_ever() {
    let name = "an_ignored_signal_does_not_make_a_bad_access_last_for_ever";
    let _limit = limit();
    if is_child() {
        // SAFETY: no handler of the program's; the access is bad, which is what is tested.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_IGN);
            let rt = Runtime::builder().device("cpu:0").build().unwrap();
            right(&rt);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let bad = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, flags, -1, 0).cast::<u8>();
            println!("alive {}", bad.read_volatile());
        }
        return;
    }
    for m in MECHANISMS.into_iter().filter(|m| *m != "transparent" || is_root()) {
        let o = child(name).env("STERNA_HOST_FAULTS", m).output().unwrap();
        assert!(std::os::unix::process::ExitStatusExt::signal(&o.status) == Some(libc::SIGSEGV), "{m}: {}", said(&o));
    }
}

// ───────────── what others see ─────────────

#[test]
fn settings_beyond_what_there_is_name_their_variable() {
    let name = "settings_beyond_what_there_is_name_their_variable";
    let _limit = limit();
    if is_child() {
        let e = Runtime::new().expect_err("too much");
        let (variable, value) = (std::env::var("NAME").unwrap(), std::env::var("VALUE").unwrap());
        assert!(e.to_string().contains(&format!("{variable}={value}")), "{e}");
        assert!(matches!(e, Error::Environment { .. }), "{e:?}");
        return;
    }
    for (variable, value) in [
        ("STERNA_DEVICE_MEMORY", "215TiB"),
        ("STERNA_DEVICE_MEMORY", "16777215TiB"),
        ("STERNA_DEVICE_MEMORY", "18446744073709551615"),
        ("STERNA_DEVICE_MEMORY", "-1"),
        ("STERNA_CPU_WORKERS", "1025"),
        ("STERNA_CPU_WORKERS", "-1"),
        ("STERNA_DEVICE", "cpu:8"),
        ("STERNA_DEVICE", "cpu:0,tpu"),
        ("STERNA_POLICY", "best"),
        ("STERNA_HOST_FAULTS", "often"),
    ] {
        let mut c = child(name);
        c.env("STERNA_DEVICE", "cpu:0").env("NAME", variable).env("VALUE", value).env(variable, value);
        succeeds(&mut c);
    }
    let e = Runtime::builder().device("cpu:0").memory(1 << 60).build().expect_err("too much");
    assert!(matches!(e, Error::BudgetTooLarge { budget, .. } if budget == 1 << 60), "{e:?}");
}

#[test]
fn a_core_dump_has_the_program_and_not_what_is_shared() {
    let name = "a_core_dump_has_the_program_and_not_what_is_shared";
    let _limit = limit();
    if !is_child() {
        succeeds(&mut child(name));
        return;
    }
    let device = device(small(64 * MIB));
    let rt = over(&device);
    let mut x = rt.shared_with(4 << 20, |i| i as u32).unwrap();
    rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
    device.lose();
    // Every large mapping that others could write says that it is in no dump ("dd").
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut mapping = "";
    for line in text.lines() {
        if line.split(' ').next().is_some_and(|w| w.contains('-') && !w.ends_with(':')) {
            mapping = line;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let (start, end) = mapping.split(' ').next().unwrap().split_once('-').unwrap();
            let bytes = u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap();
            let shared = mapping.split(' ').nth(1).unwrap().ends_with('s');
            let ours = mapping.contains("sterna") || shared && bytes >= 1 << 30;
            assert!(!ours || flags.split(' ').any(|f| f == "dd"), "{mapping}: {flags}");
        }
    }
}

/// How another process reads: a page at an address of process `pid`.
type Reads = fn(pid: i32, at: usize, into: &mut [u8]) -> std::io::Result<usize>;

const BY_ANOTHER: [(&str, Reads); 3] = [
    ("process_vm_readv", |pid, at, into| {
        let to = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let from = libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: into.len() };
        // SAFETY: writes the buffer only.
        let n = unsafe { libc::process_vm_readv(pid, &to, 1, &from, 1, 0) };
        usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
    }),
    ("/proc/pid/mem", |pid, at, into| {
        use std::os::unix::fs::FileExt;
        std::fs::File::open(format!("/proc/{pid}/mem"))?.read_at(into, at as u64)
    }),
    ("ptrace", |pid, at, into| {
        // SAFETY: stops and reads the other process, and lets it go on.
        unsafe {
            let done = |r: i64| if r < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
            let null = std::ptr::null_mut::<libc::c_void>();
            done(libc::ptrace(libc::PTRACE_ATTACH, pid, null, null))?;
            libc::waitpid(pid, std::ptr::null_mut(), 0);
            *libc::__errno_location() = 0;
            let word = libc::ptrace(libc::PTRACE_PEEKDATA, pid, std::ptr::without_provenance_mut::<libc::c_void>(at), null);
            let code = *libc::__errno_location();
            libc::ptrace(libc::PTRACE_DETACH, pid, null, null);
            if code != 0 {
                return Err(std::io::Error::from_raw_os_error(code));
            }
            into[..8].copy_from_slice(&word.to_ne_bytes());
            Ok(8)
        }
    }),
];

/// What `docs/memory-model.md` says of debuggers: right bytes, an error, or, with mechanism `none`, what the host had before.
#[test]
fn another_process_reads_what_the_table_says() {
    let name = "another_process_reads_what_the_table_says";
    let _limit = limit();
    if let Ok(what) = std::env::var("READ") {
        // The other process.
        let mut words = what.split(' ').map(|w| w.parse::<usize>().unwrap());
        let (pid, way, at) = (words.next().unwrap() as i32, words.next().unwrap(), words.next().unwrap());
        let mut page = vec![0_u8; 8192];
        let said = match BY_ANOTHER[way].1(pid, at, &mut page) {
            Ok(n) if n >= 8 => format!("value {}", u32::from_ne_bytes(page[..4].try_into().unwrap())),
            Ok(n) => format!("error after {n} bytes"),
            Err(e) => format!("error {e}"),
        };
        println!("said: {said}.");
        return;
    }
    if !is_child() {
        under_each_mechanism(name, |_| {});
        return;
    }
    let rt = runtime(small(8 * MIB));
    let mechanism = rt.stats().mechanism;
    for (way, (how, _)) in BY_ANOTHER.iter().enumerate() {
        // On the device alone, and nobody has touched it since.
        let mut x = rt.shared_with(100_000, |_| 1_u32).unwrap();
        rt.launch(&add(1), (&mut x,)).unwrap().wait().unwrap();
        let at = x.as_host_ptr().addr() + (100_000 * 2) / 4096 * 4096;
        let read = || {
            let mut c = child(name);
            let o = c.env("READ", format!("{} {way} {at}", std::process::id())).output().unwrap();
            let text = String::from_utf8_lossy(&o.stdout).into_owned();
            text.split_once("said: ").unwrap_or_else(|| panic!("{text}")).1.split_once('.').unwrap().0.to_string()
        };
        let absent = read();
        println!("{mechanism}, {how}: {absent}");
        match mechanism {
            Mechanism::None => assert_eq!(absent, "value 1", "{how}"),
            Mechanism::Transparent if *how == "process_vm_readv" => assert_eq!(absent, "value 2"),
            _ => assert!(absent.starts_with("error "), "{mechanism}, {how}: {absent}"),
        }
        // Held at home it is there for everybody.
        let _held = x.host(..).unwrap();
        assert_eq!(read(), "value 2", "{mechanism}, {how}");
    }
}
