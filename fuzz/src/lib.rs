//! The fuzz targets: functions of bytes that panic when something is wrong. libFuzzer calls them, and so do the driver and the
//! test that runs every kept input.
//!
//! Not covered: what only the system's own errors lead to, and parsers of the crates below the samples.

pub mod operations;
pub mod samples_input;
pub mod settings;
pub mod spirv;

#[path = "../../runtime/tests/common/mod.rs"]
mod common;
#[path = "../../runtime/tests/world/mod.rs"]
mod world;

/// A target: panics when the bytes lead to something wrong.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 4] = [
    ("operations", operations::run),
    ("settings", settings::run),
    ("samples_input", samples_input::run),
    ("spirv", spirv::run),
];

/// The kept inputs of a target, in the order of their names.
///
/// # Panics
/// If its folder cannot be read, or is empty: a corpus that is not found must not look like one that passes.
#[must_use]
pub fn corpus(target: &str) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<_> = files
        .map(|f| f.expect("a file").path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
        .collect();
    assert!(!all.is_empty(), "{} is empty", folder.display());
    all.sort();
    all
}
