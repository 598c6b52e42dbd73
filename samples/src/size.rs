//! Sizes on a command line: `64MiB`.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};

/// Reads a number of bytes with an optional unit `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// Anything else, zero, and what does not fit.
///
/// ```
/// assert_eq!(sterna_samples::size::bytes("64MiB").unwrap(), 64 << 20);
/// assert!(sterna_samples::size::bytes("a lot").is_err());
/// ```
pub fn bytes(text: &str) -> Result<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let unit: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 0,
    };
    let number =
        digits.parse::<u64>().ok().filter(|_| unit > 0).context("expected bytes such as 65536, 512KiB, 64MiB or 2GiB")?;
    let bytes = number.checked_mul(unit).context("that many bytes do not fit 64 bits")?;
    ensure!(bytes > 0, "must be at least 1");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, expect) in [("4096", 4096), ("1B", 1), ("512 KiB", 512 << 10), ("2GiB", 2 << 30)] {
            assert_eq!(bytes(text).unwrap(), expect, "{text}");
        }
        for text in ["", "0", "MiB", "-1", "1.5MiB", "64mb", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
