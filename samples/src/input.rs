//! Files that a person names, which may be anything.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The longest file that is read, in bytes.
pub(crate) const LONGEST: u64 = 1 << 30;

/// What is in a file.
///
/// # Errors
/// A file that cannot be read, or has more than [`LONGEST`] bytes, as a device that never ends has.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= LONGEST, "{} has more than {LONGEST} bytes", path.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_not_read_to_its_end() {
        assert!(read(Path::new("/dev/zero")).unwrap_err().to_string().contains("more than 1073741824 bytes"));
        assert!(read(Path::new("no/such/file")).unwrap_err().to_string().contains("no/such/file"));
        assert_eq!(read(Path::new("/dev/null")).unwrap(), []);
    }
}
