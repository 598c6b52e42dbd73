//! Runs every program as a user would, and the ways in which they fail.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const HELLO: &str = env!("CARGO_BIN_EXE_01_hello");
const OWN_KERNEL: &str = env!("CARGO_BIN_EXE_02_own_kernel");
const PAGERANK: &str = env!("CARGO_BIN_EXE_03_pagerank");
const HUBBLE: &str = env!("CARGO_BIN_EXE_04_hubble");
const HEAT: &str = env!("CARGO_BIN_EXE_05_heat");
const TOUR: &str = env!("CARGO_BIN_EXE_tour");

/// An empty folder for one test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut c = Command::new(program);
    c.args(args).env("RUST_BACKTRACE", "0");
    c
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program that has to succeed, and returns what it printed.
fn good(program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(program, args).output().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}\n{}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// Runs a program that has to fail, and returns its complaint.
fn bad(program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(program, args).output().unwrap();
    assert_eq!(
        status.code().filter(|c| *c != 0 && *c < 100),
        status.code(),
        "{program} {args:?}: {status}\n{}",
        text(&stdout)
    );
    assert!(!text(&stdout).contains('✓'), "{}", text(&stdout));
    text(&stderr)
}

/// A reader that goes away after the first line ends a program without a word, as any other program.
#[test]
fn a_closed_pipe_is_the_quiet_end_of_a_program() {
    for program in [HELLO, OWN_KERNEL, PAGERANK, HUBBLE, HEAT, TOUR] {
        let out = folder("closed_pipe");
        let mut c = command(program, &[]);
        if program != HELLO && program != PAGERANK {
            c.args(["--out", out.to_str().unwrap()]);
        }
        let mut child = c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert_eq!((status.code(), text(&stderr).contains("panicked")), (Some(141), false), "{program}: {}", text(&stderr));
    }
}

#[test]
fn hello() {
    assert!(good(HELLO, &[]).contains("y[7] = 14\n✓ 1000000 elements are right"));
}

#[test]
fn own_kernel() {
    let out = folder("own_kernel");
    let said = good(OWN_KERNEL, &["--width", "256", "--limit", "60", "--out", out.to_str().unwrap()]);
    assert!(said.contains("✓ 49,152 pixels"), "{said}");
    assert_eq!(image::open(out.join("fractal.png")).unwrap().width(), 256);
}

#[test]
fn pagerank() {
    let said = good(PAGERANK, &["--memory", "16MiB"]);
    let first = said.lines().nth(2).unwrap();
    assert!(first.ends_with("libc6") && first.contains("21,808"), "{said}");
    assert!(said.contains("✓ ranks sum up to 1"), "{said}");
}

#[test]
fn pagerank_of_a_file() {
    let path = folder("graph").join("small.tsv");
    fs::write(&path, "app\tlib base\ntool\tlib\nlib\tbase\nbase\t\n").unwrap();
    let said = good(PAGERANK, &["--graph", path.to_str().unwrap()]);
    assert!(said.contains("4 nodes, 4 edges") && said.lines().nth(2).unwrap().ends_with("base"), "{said}");
}

#[test]
fn hubble() {
    let out = folder("hubble");
    let said = good(HUBBLE, &["--out", out.to_str().unwrap(), "--memory", "12MiB"]);
    assert!(said.contains("stars and galaxies") && said.contains("✓ 2,616,000 values"), "{said}");
    assert_eq!(image::open(out.join("hubble.png")).unwrap().height(), 872);
}

#[test]
fn heat() {
    let out = folder("heat");
    let said = good(HEAT, &["--memory", "4MiB", "--steps", "5", "--out", out.to_str().unwrap()]);
    assert!(said.contains("2 grids of 2048 × 1024 (8 MiB each) on a device with 4 MiB"), "{said}");
    assert!(said.contains("evictions") && said.contains("✓ all 2,097,152 temperatures"), "{said}");
    assert_eq!(image::open(out.join("heat.png")).unwrap().width(), 1024);
}

#[test]
fn tour_under_every_mechanism() {
    for mechanism in ["transparent", "signal", "guard", "none"] {
        let out = command(TOUR, &[]).env("STERNA_HOST_FAULTS", mechanism).output().unwrap();
        let (said, complaint) = (text(&out.stdout), text(&out.stderr));
        if complaint.contains("is not available") {
            assert_ne!(mechanism, "none");
            println!("SKIP the tour under {mechanism}: {complaint}");
            assert!(!required(mechanism), "STERNA_REQUIRE names {mechanism}, which is missing");
            continue;
        }
        assert!(out.status.success(), "{mechanism}: {said}{complaint}");
        assert_eq!(said.matches('✓').count(), 6, "{said}");
        assert!(said.contains(&format!("host faults  {mechanism} (STERNA_HOST_FAULTS says so)")), "{said}");
        assert!(said.lines().count() <= 60, "{said}");
    }
}

/// Whether `STERNA_REQUIRE` names it: then it must not be left out.
fn required(what: &str) -> bool {
    std::env::var("STERNA_REQUIRE").unwrap_or_default().split(',').any(|r| r.trim() == what)
}

/// What a sample says whose kernel needs what the device has not.
const LACKING: &str = "which the device does not have";

/// Every sample as it is, on a Vulkan device with each page table, under two mechanisms, or the one of them that `STERNA_HOST_FAULTS`
/// names.
#[test]
fn every_sample_on_a_vulkan_device() {
    let name = match sterna::vulkan::devices() {
        Ok(all) => match std::env::var("STERNA_VULKAN_TEST") {
            Ok(named) if !named.is_empty() => named,
            _ => all[0].index.to_string(),
        },
        Err(e) => {
            println!("SKIP vulkan: {e}");
            return assert!(!required("vulkan"), "STERNA_REQUIRE names vulkan, which is missing: {e}");
        }
    };
    let out = folder("vulkan");
    let out = out.to_str().unwrap();
    let all: [(&str, &[&str], usize); 6] = [
        (HELLO, &[], 1),
        (OWN_KERNEL, &["--width", "256", "--limit", "60", "--out", out], 1),
        (PAGERANK, &["--memory", "16MiB"], 1),
        (HUBBLE, &["--memory", "12MiB", "--out", out], 1),
        (HEAT, &["--memory", "4MiB", "--steps", "5", "--out", out], 1),
        (TOUR, &[], 6),
    ];
    let forced = std::env::var("STERNA_HOST_FAULTS").ok().filter(|m| !m.is_empty());
    for mechanism in ["transparent", "signal"].into_iter().filter(|m| forced.as_ref().is_none_or(|f| f == m)) {
        'tables: for table in ["mmu", "sparse", "fixed"] {
            for (program, args, checks) in all {
                let mut c = command(program, args);
                c.env("STERNA_DEVICE", format!("vulkan:{name}")).env("STERNA_PAGE_TABLE", table);
                let run = c.env("STERNA_HOST_FAULTS", mechanism).env("STERNA_PIPELINE_CACHE", "off").output().unwrap();
                let (said, complaint) = (text(&run.stdout), text(&run.stderr));
                let missing = [(table, "does not work on"), (mechanism, "is not available")];
                if let Some((what, _)) = missing.into_iter().find(|(_, words)| complaint.contains(words)) {
                    println!("SKIP {mechanism}, {table}: {complaint}");
                    assert!(!required(what), "STERNA_REQUIRE names {what}, which is missing");
                    continue 'tables;
                }
                // The tour goes on to its next stop.
                if let Some(why) = [&said, &complaint].into_iter().flat_map(|t| t.lines()).find(|l| l.contains(LACKING)) {
                    println!("SKIP {mechanism}, {table}, {program}: {why}");
                    continue;
                }
                assert!(run.status.success(), "{mechanism}, {table}, {program} {args:?}: {said}{complaint}");
                assert_eq!(said.matches('✓').count(), checks, "{mechanism}, {table}, {program}: {said}");
            }
        }
    }
}

#[test]
fn graphs_that_are_broken() {
    let folder = folder("broken");
    let path = folder.join("broken.tsv");
    let path = path.to_str().unwrap();
    let cases: [(&[u8], &str); 4] = [
        (b"a\tb\nb\t\nhalf a line\n", "line 3: no tab between name and targets"),
        (b"a\tb\n", "line 1: a leads to b, which has no line"),
        (b"\x1f\x8b broken", "cannot unpack it"),
        (b"", "a graph without edges"),
    ];
    for (bytes, expect) in cases {
        fs::write(path, bytes).unwrap();
        let complaint = bad(PAGERANK, &["--graph", path]);
        assert!(complaint.contains(expect) && complaint.contains(path), "{complaint}");
    }
    assert!(bad(PAGERANK, &["--graph", "no/such/file"]).contains("cannot read no/such/file"));
}

#[test]
fn pictures_that_are_broken() {
    let folder = folder("pictures");
    let (path, file) = (folder.join("text.png"), folder.join("file"));
    fs::write(&path, "no picture").unwrap();
    fs::write(&file, "in the way").unwrap();
    assert!(bad(HUBBLE, &["--image", path.to_str().unwrap()]).contains("is no JPEG or PNG"));
    assert!(bad(HUBBLE, &["--image", "no/such/file"]).contains("cannot read no/such/file"));
    let complaint = bad(OWN_KERNEL, &["--width", "64", "--out", file.to_str().unwrap()]);
    assert!(complaint.contains("choose another with --out"), "{complaint}");
}

#[test]
fn options_that_make_no_sense() {
    assert!(bad(HEAT, &["--memory", "much"]).contains("64KiB"));
    assert!(bad(HEAT, &["--steps", "0"]).contains("--steps"));
    assert!(bad(HUBBLE, &["--sigma", "90"]).contains("at most 5"));
    let out = command(TOUR, &[]).env("STERNA_HOST_FAULTS", "magic").output().unwrap();
    assert!(!out.status.success() && text(&out.stderr).contains("magic"), "{}", text(&out.stderr));
}

#[test]
fn help() {
    for program in [OWN_KERNEL, PAGERANK, HUBBLE, HEAT, TOUR] {
        assert!(good(program, &["--help"]).contains("Usage:"), "{program}");
    }
}
