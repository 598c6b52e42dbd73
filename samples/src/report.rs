//! How a sample says that it is right, and how long it took.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::exit;
use std::time::{Duration, Instant};

/// Prints a line as `println!` does, and ends the program quietly where nobody reads any more (`05_heat | head -1`).
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::report::line(format_args!($($text)*))
    };
}

/// What a shell says of a program that a closed pipe has ended: 128 and the number of SIGPIPE.
const NOBODY_READS: i32 = 141;

/// See [`say`].
pub fn line(text: fmt::Arguments<'_>) {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => exit(NOBODY_READS),
        Err(e) => {
            let _ = writeln!(io::stderr(), "cannot write to standard output: {e}");
            exit(1);
        }
    }
}

/// A time as people read it: three figures and a unit.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(sterna_samples::report::time(Duration::from_micros(12_340)), "12.3 ms");
/// ```
#[must_use]
pub fn time(t: Duration) -> String {
    let s = t.as_secs_f64();
    let (value, unit) = match s {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let digits = if value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {unit}")
}

/// A number with its thousands set apart.
///
/// ```
/// assert_eq!(sterna_samples::report::count(1_234_567), "1,234,567");
/// ```
#[must_use]
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The last line of a sample: what was checked, and how long the program took.
pub fn checked(what: &str, since: Instant) {
    say!("✓ {what} ({})", time(since.elapsed()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 63_436].map(count), ["0", "999", "1,000", "63,436"]);
        assert_eq!(time(Duration::from_millis(2500)), "2.5 s");
        assert_eq!(time(Duration::from_micros(340)), "340 µs");
    }
}
