//! Reading the environment; the table of variables is `environment.md`, part of the crate's documentation.

use std::str::FromStr;

use crate::Error;

/// What sets the memory budget of a device that was named, and that of one that the program opened: what its errors say helps.
pub(crate) const BY_ENVIRONMENT: &str = "STERNA_DEVICE_MEMORY";
pub(crate) const BY_BUILDER: &str = "`Builder::memory`";
pub(crate) const BY_SETTINGS: &str = "the memory in the settings that it was opened with";

/// Reads and parses an environment variable, if it is set and not empty.
pub(crate) fn var<T>(name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
    match std::env::var(name) {
        Ok(v) if v.is_empty() => Ok(None),
        Ok(v) => parse(&v).map(Some).map_err(|problem| Error::Environment { name, value: v, problem }),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(v)) => {
            let value = v.to_string_lossy().into_owned();
            // What is valid is said here, too.
            let problem = parse(&value).err().map_or("not UTF-8".into(), |p| format!("not UTF-8; {p}"));
            Err(Error::Environment { name, value, problem })
        }
    }
}

/// An error that a device gives for what one of the variables `read` said, as that variable's.
pub(crate) fn blamed(e: Error, read: &[&'static str]) -> Error {
    let by = match &e {
        Error::UnknownName { what: "device", .. } => "STERNA_DEVICE",
        Error::BudgetTooLarge { setting: BY_ENVIRONMENT, .. } => BY_ENVIRONMENT,
        _ => return e,
    };
    match read.iter().find(|name| **name == by).zip(std::env::var(by).ok()) {
        Some((name, value)) => Error::Environment { name, value, problem: e.to_string() },
        None => e,
    }
}

/// Reads a number of bytes as the environment's variables spell it: digits and an optional unit `KiB`, `MiB`, `GiB`, `TiB` or `B`.
/// For command lines; [`human`](crate::human) is the other way about.
///
/// # Errors
/// What was expected, for anything else, for zero, and for what does not fit 64 bits.
///
/// ```
/// assert_eq!(sterna::parse_bytes("64MiB"), Ok(64 << 20));
/// assert!(sterna::parse_bytes("a lot").unwrap_err().contains("512MiB"));
/// ```
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("expected a number of bytes such as 65536, 64KiB, 512MiB or 2GiB".into()),
    };
    let n =
        u64::from_str(digits).map_err(|_| "expected a number of bytes such as 65536, 64KiB, 512MiB or 2GiB".to_string())?;
    if n == 0 || n.leading_zeros() < shift {
        return Err("must be at least 1 and less than 2^64".into());
    }
    Ok(n << shift)
}

/// A count of at least one, and at most [`MOST`].
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match usize::from_str(text) {
        Ok(n) if (1..=MOST).contains(&n) && !text.starts_with('+') => Ok(n),
        _ => Err(format!("expected a whole number of at least 1 and at most {MOST}")),
    }
}

/// The most threads of a CPU device.
const MOST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("64KiB"), Ok(65536));
        assert_eq!(parse_bytes("2 GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("7"), Ok(7));
        for bad in ["", "0", "MiB", "64 kb", "-1", "99999999999TiB", "1.5GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts() {
        assert_eq!((count("1"), count("12")), (Ok(1), Ok(12)));
        for bad in ["", "0", "+3", "-1", "1.5", "many", "99999999999999999999", "1025"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = (parse_bytes(&text), count(&text));
        }
    }
}
