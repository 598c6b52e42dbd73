//! Runs the suite in a process of its own for each mechanism, and again behind a cell that ended its process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna::Mechanism;
use sterna::hmm::Space;

use crate::kinds::{self, Config};
use crate::support::available;
use crate::table::{Cell, Table};
use crate::vulkan::required;
use crate::{Ctx, cell, tests};

const CHILD: &str = "STERNA_HMM_CHILD";
const FORCED: &str = "STERNA_HOST_FAULTS";
const ONLY: &str = "STERNA_HMM_ONLY";
/// The kinds of devices that the child runs over, by their numbers.
const KINDS: &str = "STERNA_HMM_KINDS";
/// A planted defect that the child switches on.
pub(crate) const PLANT: &str = "STERNA_HMM_PLANT";
/// A cell that takes longer hangs; with a defect some do.
const LIMIT: Duration = Duration::from_secs(30);
const LIMIT_PLANTED: Duration = Duration::from_secs(8);

/// The mechanisms that serve faults: without faults there is nothing to test.
pub(crate) fn mechanisms() -> Vec<Mechanism> {
    Mechanism::ALL.into_iter().filter(|m| *m != Mechanism::None).collect()
}

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Past the test harness, which keeps what tests print.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

pub(crate) fn chosen(name: &str) -> bool {
    std::env::var(ONLY).map_or(true, |only| fits(name, &only))
}

/// With a `=` before it the whole name.
fn fits(name: &str, only: &str) -> bool {
    only.strip_prefix('=').map_or_else(|| name.contains(only), |whole| name == whole)
}

static CELLS: AtomicU64 = AtomicU64::new(0);

/// The cells of one mechanism, from the one whose number the environment gives; one line before and one after each.
pub(crate) fn child() {
    let from: usize = std::env::var(CHILD).ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let mechanism = std::env::var(FORCED).ok().and_then(|m| m.parse().ok());
    let space = Space::process(mechanism).expect("the mechanism");
    #[cfg(feature = "planted")]
    crate::planted::plant();
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload().downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| info.payload().downcast_ref::<&str>().copied()).unwrap_or("");
        // Whole buffers may be in it.
        let text: String = text.replace('\n', " ").chars().take(240).collect();
        say(&format!("WHY\t{at}: {text}\n"));
    }));
    let limit = if std::env::var(PLANT).is_ok_and(|p| !p.is_empty()) { LIMIT_PLANTED } else { LIMIT };
    std::thread::spawn(move || {
        loop {
            let seen = CELLS.load(Ordering::SeqCst);
            std::thread::sleep(limit);
            if CELLS.load(Ordering::SeqCst) == seen {
                say("WHY\tit hangs\n");
                std::process::abort();
            }
        }
    });
    let numbers = std::env::var(KINDS).unwrap_or_default();
    let configs = || numbers.split(',').map(|n| &kinds::ALL[n.parse::<usize>().expect("a number")]);
    let mut n = 0;
    for test in tests().into_iter().filter(|t| chosen(t.name)) {
        for config in configs() {
            n += 1;
            if n <= from {
                continue;
            }
            say(&format!("BEGIN\t{n}\n"));
            let segments = space.segments();
            let result = cell(test, &Ctx { space, config });
            CELLS.fetch_add(1, Ordering::SeqCst);
            crate::device::eventually(|| space.segments() == segments);
            let line = match result {
                Ok(Ok(())) if space.segments() != segments => "FAIL\tit leaves segments behind".to_string(),
                Ok(Ok(())) => "PASS".into(),
                Ok(Err(why)) => format!("N\t{why}"),
                Err(_) => "FAIL".into(),
            };
            say(&format!("END\t{line}\n"));
        }
    }
}

/// The whole table.
pub(crate) fn all() -> Table {
    let forced: Option<Mechanism> = std::env::var(FORCED).ok().map(|m| m.parse().expect("a mechanism"));
    let (mut table, there) = (Table::new(), kinds::available());
    for m in mechanisms() {
        if forced.is_some_and(|f| f != m) {
            continue;
        }
        if !available(m) {
            say(&format!("SKIP hmm under {m}: not available to this user\n"));
            assert!(!required(&m.to_string()), "STERNA_REQUIRE names {m}, which is missing");
            continue;
        }
        let configs: Vec<_> = there.iter().copied().filter(|c| c.belongs(m)).collect();
        if configs.is_empty() {
            continue;
        }
        table.columns(m, &configs, mechanism(m, &configs, &std::env::var(ONLY).unwrap_or_default(), None));
    }
    table
}

/// The cells of one mechanism, test by test and configuration by configuration, of the tests whose name contains `only`, or is
/// `only` behind a `=`; with a planted defect if one is named.
pub(crate) fn mechanism(m: Mechanism, configs: &[&Config], only: &str, plant: Option<&str>) -> Vec<Cell> {
    let expected = tests().into_iter().filter(|t| fits(t.name, only)).count() * configs.len();
    let number = |c: &&Config| kinds::ALL.iter().position(|k| std::ptr::eq(k, *c)).expect("a kind").to_string();
    let numbers = configs.iter().map(number).collect::<Vec<_>>().join(",");
    let mut cells = Vec::new();
    while cells.len() < expected {
        let before = cells.len();
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["conformance", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, before.to_string())
            .env(FORCED, m.to_string())
            .env(ONLY, only)
            .env(KINDS, &numbers)
            .env(PLANT, plant.unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if plant.is_some() { Stdio::null() } else { Stdio::inherit() })
            .spawn()
            .expect("a child");
        let mut why = String::new();
        for line in BufReader::new(child.stdout.take().expect("its output")).lines() {
            let line = line.unwrap_or_default();
            let mut parts = line.splitn(3, '\t');
            match (parts.next(), parts.next(), parts.next()) {
                (Some("WHY"), Some(w), _) => why = w.to_string(),
                (Some("BEGIN"), ..) => why = String::new(),
                (Some("END"), Some("PASS"), _) => cells.push(Cell::Pass),
                (Some("END"), Some("N"), Some(w)) => cells.push(Cell::Not(w.to_string())),
                (Some("END"), Some("FAIL"), w) => cells.push(Cell::Fail(w.unwrap_or(&why).to_string())),
                _ => {}
            }
        }
        let status = child.wait().expect("a child");
        if cells.len() < expected {
            // It ended inside a cell: that one has failed, and the rest is run by another process.
            cells.push(Cell::Fail(format!("its process ended: {status} {why}")));
            if plant.is_some() {
                break; // caught; the rest would end it, too
            }
        }
    }
    cells
}
