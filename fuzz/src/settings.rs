//! Environment values and the builder's texts.
//!
//! The bytes are lines: device, memory, policy, mechanism, workers; a line that is missing is a variable that is not set. What is
//! valid is said here a second time, so that a parser that takes too much is found like one that takes too little.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use sterna::{Error, Mechanism, Runtime};

const VARIABLES: [&str; 5] =
    ["STERNA_DEVICE", "STERNA_DEVICE_MEMORY", "STERNA_POLICY", "STERNA_HOST_FAULTS", "STERNA_CPU_WORKERS"];

/// More valid ones than this are not opened: threads and address space are not what is looked for.
const MOST_WORKERS: u64 = 4;
const MOST_DEVICES: usize = 4;

/// Gives the lines to the builder and to the environment.
///
/// # Panics
/// If a wrong value is taken, a right one refused, or an error does not name the value.
pub fn run(data: &[u8]) {
    static IN_USE: OnceLock<Mechanism> = OnceLock::new();
    // The first runtime decides for the process; it is made before any variable is changed.
    let in_use = *IN_USE.get_or_init(|| Runtime::new().expect("a runtime").stats().mechanism);
    let mut lines: [&[u8]; 5] = [b""; 5];
    for (place, line) in lines.iter_mut().zip(data.split(|b| *b == b'\n')) {
        // No process can be given a variable with a zero byte.
        *place = if line.contains(&0) { b"" } else { line };
    }
    if let [Ok(device), _, Ok(policy), Ok(mechanism), _] = lines.map(std::str::from_utf8) {
        // Not those of the run before.
        put([b""; 5]);
        builder(device, policy, mechanism);
    }
    environment(lines, in_use);
}

fn is_device(text: &str) -> bool {
    text == "cpu" || (0..8).any(|i| text == format!("cpu:{i}"))
}

fn is_policy(text: &str) -> bool {
    ["auto", "declared", "demand", "remote"].contains(&text)
}

fn is_mechanism(text: &str) -> bool {
    ["transparent", "signal", "guard", "none"].contains(&text)
}

/// A whole number without a sign.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 1_u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
    let (digits, unit) =
        units.iter().find_map(|(name, unit)| Some((text.trim_end().strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    number(digits.trim_end())?.checked_mul(unit).filter(|n| *n > 0)
}

/// An error must name the value and what is valid.
fn names(error: &Error, value: &str, valid: &[&str]) {
    let text = error.to_string();
    assert!(text.contains(value) && valid.iter().all(|v| text.contains(v)), "{value:?}: {text}");
}

fn builder(device: &str, policy: &str, mechanism: &str) {
    match Runtime::builder().policy(policy) {
        Ok(_) => assert!(is_policy(policy), "{policy:?} is taken"),
        Err(e) => {
            assert!(!is_policy(policy), "{e}");
            names(&e, policy, &["auto", "declared", "demand", "remote"]);
        }
    }
    match mechanism.parse::<Mechanism>() {
        Ok(m) => assert_eq!(m.to_string(), mechanism),
        Err(e) => {
            assert!(!is_mechanism(mechanism), "{e}");
            names(&e, mechanism, &["transparent", "signal", "guard", "none"]);
        }
    }
    let built = Runtime::builder().device(device).memory(64 << 20).policy("demand").expect("a policy").build();
    match built {
        Ok(_) => assert!(is_device(device), "{device:?} is taken"),
        Err(e) => {
            assert!(!is_device(device), "{e}");
            names(&e, device, &["cpu:0", "cpu:7"]);
        }
    }
}

/// The value as the runtime sees it: empty counts as not set.
fn set(value: &[u8]) -> Option<Result<&str, String>> {
    (!value.is_empty()).then(|| std::str::from_utf8(value).map_err(|_| String::from_utf8_lossy(value).into_owned()))
}

fn put(values: [&[u8]; 5]) {
    // SAFETY: nobody else reads or writes the environment meanwhile: targets run one at a time, runtimes that were made before
    // are gone, and no thread of the process's memory or of libFuzzer looks at it.
    unsafe {
        for (name, value) in VARIABLES.iter().zip(values) {
            std::env::set_var(name, OsStr::from_bytes(value));
        }
    }
}

fn environment(lines: [&[u8]; 5], in_use: Mechanism) {
    let [device, memory, policy, mechanism, workers] = lines.map(set);
    // In the order in which they are read; the first wrong one is what the error is about.
    let wrong = |value: &Option<Result<&str, String>>, valid: &dyn Fn(&str) -> bool| match value {
        Some(Ok(v)) => (!valid(v)).then(|| (*v).to_string()),
        Some(Err(shown)) => Some(shown.clone()),
        None => None,
    };
    let list = |v: &str| v.split(',').map(|s| s.trim().to_string()).collect::<Vec<_>>();
    let refused = [
        (wrong(&mechanism, &is_mechanism), vec!["transparent", "signal", "guard", "none"]),
        (wrong(&memory, &|v| bytes(v).is_some()), vec!["STERNA_DEVICE_MEMORY"]),
        (wrong(&policy, &is_policy), vec!["auto", "declared", "demand", "remote"]),
    ];
    let not_text = |v: &Option<Result<&str, String>>| v.as_ref().and_then(|v| v.as_ref().err().cloned());
    let devices = match &device {
        Some(Ok(v)) => list(v),
        _ => vec!["cpu:0".to_string()],
    };
    let count = match &workers {
        Some(Ok(v)) => number(v),
        _ => None,
    };
    if devices.len() > MOST_DEVICES || count.is_some_and(|n| (MOST_WORKERS + 1..=1024).contains(&n)) {
        return;
    }
    put(lines);
    let error = match Runtime::new() {
        Ok(rt) => {
            assert!(refused.iter().all(|r| r.0.is_none()), "taken: {:?}", refused);
            assert!(devices.iter().all(|d| is_device(d)) && not_text(&device).is_none(), "taken: {devices:?}");
            assert!(workers.is_none() || count.is_some_and(|n| n > 0), "taken: {workers:?}");
            if let Some(Ok(p)) = policy {
                assert_eq!(rt.stats().policy, p);
            }
            assert_eq!(rt.devices().len(), devices.len());
            return;
        }
        Err(e) => e,
    };
    let text = error.to_string();
    if let Some((value, valid)) = refused.iter().find_map(|(value, valid)| Some((value.as_ref()?, valid))) {
        return names(&error, value, valid);
    }
    if let Some(shown) = not_text(&device) {
        return names(&error, &shown, &["STERNA_DEVICE"]);
    }
    match error {
        Error::MechanismInUse { in_use: now, .. } => {
            assert!(mechanism != Some(Ok(&in_use.to_string())) && now == in_use, "{text}");
        }
        // By the whole value; the problem names the one that is not known.
        Error::Environment { name: "STERNA_DEVICE", value, problem } => {
            let unknown = devices.iter().find(|d| !is_device(d) && problem.contains(&format!("`{d}`")));
            assert!(unknown.is_some() && device == Some(Ok(&value)), "{devices:?} is refused: {problem}");
            assert!(problem.contains("cpu:0") && problem.contains("cpu:7"), "{problem}");
        }
        Error::Environment { name: "STERNA_CPU_WORKERS", value, problem } => {
            assert!(count.is_none_or(|n| n == 0 || n > 1024), "{value:?} is refused: {problem}");
        }
        // More than the machine has, which the message tells in bytes.
        Error::Environment { name: "STERNA_DEVICE_MEMORY", value, problem } => {
            let large = bytes(&value).filter(|m| *m > 1 << 30);
            assert!(large.is_some_and(|m| problem.contains(&m.to_string())), "{value:?} is refused: {problem}");
        }
        Error::BudgetTooSmall { budget, least, .. } => assert!(budget < least, "{text}"),
        // Too much of what is valid: the message must say of what.
        Error::Device { .. } => {
            let size = memory.and_then(|m| bytes(m.ok()?)).is_some_and(|m| m >= 1 << 40 && text.contains(&m.to_string()));
            let many = count.is_some_and(|n| n > 1024 && text.contains(&n.to_string()));
            assert!(size || many, "{text}");
        }
        _ => panic!("another error: {error:?}"),
    }
}
