//! A bar for long work, on a terminal only.

#![forbid(unsafe_code)]

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `steps` steps. It goes to standard error, and nothing is drawn where that is no terminal.
#[must_use]
pub fn bar(what: &'static str, steps: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps).with_style(style.progress_chars("#>.")).with_message(what)
}
