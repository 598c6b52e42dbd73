//! What a process is given from outside: variables, limits, privileges. Each test is a child of its own.

mod common;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use common::*;
use sterna::{Error, Mechanism, Runtime};

/// A whole round trip, for children that should work.
fn works(rt: &Runtime) {
    let x = rt.shared_with(300_000, |i| i as u32).unwrap();
    let mut y = rt.shared::<u32>(300_000).unwrap();
    rt.launch(&copy_add(1), (&x, &mut y)).unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
    y[5] = 7;
    rt.launch(&add(1), (&mut y,)).unwrap();
    assert_eq!((y[5], y[299_999]), (8, 300_001));
}

#[test]
fn unreadable_values_are_errors() {
    let name = "unreadable_values_are_errors";
    if is_child() {
        let e = Runtime::new().expect_err("an error");
        println!("got: {e}");
        assert!(matches!(e, Error::Environment { .. } | Error::UnknownName { .. }), "{e:?}");
        return;
    }
    let cases: [(&str, &[&str], &str); 5] = [
        ("STERNA_DEVICE", &["gpu", "cpu:9", "cpu:0,,cpu:1", "cpu:0,x"], "cpu:0"),
        ("STERNA_DEVICE_MEMORY", &["lots", "0", "1.5GiB", "64 kb", "-3", "99999999999TiB"], "64KiB"),
        ("STERNA_POLICY", &["belady", "Declared"], "auto, declared, demand, remote"),
        ("STERNA_HOST_FAULTS", &["magic", "Signal", "transparent,none"], "transparent, signal, guard, none"),
        ("STERNA_CPU_WORKERS", &["0", "many", "-1", "1.5"], "whole number"),
    ];
    for (variable, values, hint) in cases {
        for value in values {
            let text = succeeds(child(name).env(variable, value));
            let line = text.lines().find(|l| l.contains("got: ")).expect("a line");
            assert!(line.contains(hint) || value.starts_with(['0', '9']), "{variable}={value}: {line}");
        }
    }
    use std::os::unix::ffi::OsStrExt;
    let text = succeeds(child(name).env("STERNA_POLICY", std::ffi::OsStr::from_bytes(b"\xff\xfe")));
    assert!(text.contains("UTF-8"), "{text}");
}

#[test]
fn readable_values_are_followed() {
    let name = "readable_values_are_followed";
    if is_child() {
        let rt = Runtime::new().unwrap();
        let (s, d) = (rt.stats(), rt.devices());
        println!("{} {} {:?} {}", s.policy, d.len(), d[0].memory().budget, d[1].info().name);
        works(&rt);
        return;
    }
    let mut c = child(name);
    c.env("STERNA_DEVICE", "cpu:1, cpu:0").env("STERNA_DEVICE_MEMORY", "16 MiB").env("STERNA_POLICY", "demand");
    let text = succeeds(c.env("STERNA_CPU_WORKERS", "1"));
    assert!(text.contains("demand 2 16777216 CPU, 1 worker\n"), "{text}");
    let mut c = child("an_empty_value_counts_as_none");
    succeeds(c.env("STERNA_DEVICE", "").env("STERNA_DEVICE_MEMORY", "").env("STERNA_POLICY", ""));
}

#[test]
fn an_empty_value_counts_as_none() {
    if is_child() {
        works(&Runtime::new().unwrap());
    }
}

#[test]
fn the_builder_overrides_the_environment() {
    let name = "the_builder_overrides_the_environment";
    if is_child() {
        let b = Runtime::builder().device("cpu:0").memory(8 << 20).policy("remote").unwrap();
        let rt = b.host_faults(Mechanism::None).build().unwrap();
        assert_eq!(
            (rt.stats().policy, rt.stats().mechanism, rt.devices()[0].memory().budget),
            ("remote", Mechanism::None, 8 << 20)
        );
        works(&rt);
        let again = |m| Runtime::builder().device("cpu:0").memory(8 << 20).policy("demand").unwrap().host_faults(m).build();
        let e = again(Mechanism::Signal).unwrap_err();
        assert!(matches!(e, Error::MechanismInUse { asked: Mechanism::Signal, in_use: Mechanism::None }), "{e:?}");
        again(Mechanism::None).unwrap();
        return;
    }
    let mut c = child(name);
    c.env("STERNA_DEVICE", "bad").env("STERNA_POLICY", "bad").env("STERNA_DEVICE_MEMORY", "bad");
    succeeds(c.env("STERNA_HOST_FAULTS", "bad"));
}

/// Has the kernel refuse userfaultfd to this thread, and to those that it starts, as the filters of containers do.
fn forbid_userfaultfd() {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, answer) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET);
    let mut program = [
        filter(load, 0, 0, 0), // the call's number
        filter(equal, 0, 1, libc::SYS_userfaultfd as u32),
        filter(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        filter(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filters = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the filter.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filters), 0);
    }
}

#[test]
fn where_userfaultfd_is_forbidden() {
    let name = "where_userfaultfd_is_forbidden";
    if is_child() {
        forbid_userfaultfd();
        for forced in [Mechanism::Transparent, Mechanism::Signal] {
            let e = Runtime::builder().device("cpu:0").host_faults(forced).build().unwrap_err();
            let text = e.to_string();
            assert!(matches!(e, Error::Mechanism { mechanism, .. } if mechanism == forced), "{e:?}");
            assert!(
                text.contains("STERNA_HOST_FAULTS=") && !text.contains(&format!("=`{forced}`")),
                "names the remedy: {text}"
            );
        }
        let rt = Runtime::builder().device("cpu:0").build().unwrap();
        assert_eq!(rt.stats().mechanism, Mechanism::Guard);
        works(&rt);
        return;
    }
    succeeds(child(name).env_remove("STERNA_HOST_FAULTS"));
}

#[test]
fn little_address_space_and_short_files() {
    let name = "little_address_space_and_short_files";
    if is_child() {
        match Runtime::builder().device("cpu:0").memory(16 << 20).build() {
            Ok(rt) => {
                println!("arena {}", rt.space().bytes());
                works(&rt);
            }
            Err(e) => {
                println!("error: {e}");
                assert!(matches!(e, Error::Arena { .. } | Error::Device { .. } | Error::System(_)), "{e:?}");
                assert!(e.to_string().contains("ulimit"), "names the remedy: {e}");
            }
        }
        return;
    }
    let arena = |text: &str| {
        let line = text.lines().find_map(|l| l.split_once("arena ")).map(|(_, n)| n.trim().parse::<u64>().unwrap());
        line.unwrap_or_else(|| panic!("{text}"))
    };
    let whole = arena(&succeeds(&mut child(name)));
    // In KiB: plenty for 64 GiB twice and a window, less than for the usual arena.
    let less = arena(&succeeds(&mut limited(name, "ulimit -v 4000000000")));
    assert!(less < whole && less >= 64 << 30, "{less} of {whole}");
    let text = succeeds(&mut limited(name, "ulimit -v 60000000"));
    assert!(text.contains("error: "), "{text}");
    // In blocks of 512 bytes: 1 TiB; then 1 GiB, which is less than the smallest arena.
    let less = arena(&succeeds(&mut limited(name, "ulimit -f 2147483648")));
    assert!(less <= 1 << 40, "{less}");
    let text = succeeds(&mut limited(name, "ulimit -f 2097152"));
    assert!(text.contains("error: "), "{text}");
    let text = succeeds(&mut limited(name, "ulimit -f 2000"));
    assert!(text.contains("error: "), "{text}");
}

#[test]
fn few_descriptors_and_no_more_threads() {
    let name = "few_descriptors_and_no_more_threads";
    if is_child() {
        let e = Runtime::builder().device("cpu:0").memory(16 << 20).build().map(|rt| works(&rt));
        println!("ended: {e:?}");
        return;
    }
    for n in 3..16 {
        let o = limited(name, &format!("ulimit -n {n}")).output().unwrap();
        // Below a handful the test program itself cannot start; from there on it ends by itself, with an error or without.
        assert!(n < 6 || said(&o).contains("ended: "), "{n} descriptors: {}", said(&o));
    }
}

#[test]
fn nobody_in_particular_may_use_it_too() {
    let name = "nobody_in_particular_may_use_it_too";
    // SAFETY: plain queries.
    let root = unsafe { libc::geteuid() } == 0;
    let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|s| s.trim() == "1");
    if is_child() {
        match Runtime::builder().device("cpu:0").memory(16 << 20).build() {
            Ok(rt) => {
                works(&rt);
                println!("works with {}", rt.stats().mechanism);
            }
            Err(e) => println!("{e}"),
        }
        return;
    }
    // A place where anybody may run it.
    let dir: PathBuf = std::env::temp_dir().join(format!("sterna-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let copy = dir.join("program");
    // By another process: a descriptor of this one, open for writing, would live on in the children of other tests, and what
    // somebody may write cannot be run.
    let copied = std::process::Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap();
    assert!(copied.success());
    for path in [&dir, &copy] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let run = |mechanism: &str| {
        let mut c = program(&copy, name);
        c.env("STERNA_HOST_FAULTS", mechanism).current_dir("/");
        if root {
            c.uid(65534).gid(65534);
        }
        succeeds(&mut c)
    };
    for m in ["signal", "guard", "none"] {
        assert!(run(m).contains(&format!("works with {m}")), "{m}");
    }
    let text = run("transparent");
    if allowed {
        assert!(text.contains("works with transparent"), "{text}");
    } else {
        let parts = [
            "`transparent` is not available",
            "CAP_SYS_PTRACE",
            "vm.unprivileged_userfaultfd=1",
            "STERNA_HOST_FAULTS=signal",
        ];
        assert!(parts.iter().all(|p| text.contains(p)), "{text}");
    }
    let best = run("");
    assert!(best.contains(if allowed { "works with transparent" } else { "works with signal" }), "{best}");
    std::fs::remove_dir_all(&dir).unwrap();
}
