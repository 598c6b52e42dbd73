//! The driver's pipeline cache, kept on disk between runs.
//!
//! **Guarantee:** the driver is given only what it made itself: a file carries the device and driver that it is from, its length
//! and a checksum, and one that does not fit is ignored, with a line on standard error. A file is replaced as a whole, so that
//! a reader sees the old one or the new one. Nothing here fails a program: without a cache pipelines are built anew.
//!
//! **States:** as read, then grown when a pipeline is built; saved when the device goes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ash::vk;

use crate::config::CacheFolder;
use crate::error::{VulkanError, opening};
use crate::gpu::Identity;
use crate::raw::Raw;

const MAGIC: &[u8; 8] = b"sterna 1";
/// Magic, identity, length, checksum.
const HEAD: usize = 8 + 28 + 8 + 8;
/// A longer file than this is none of ours.
const MOST: u64 = 256 << 20;

#[derive(Debug)]
pub(crate) struct Cache {
    device: Arc<Raw>,
    raw: vk::PipelineCache,
    file: Option<PathBuf>,
    grown: AtomicBool,
}

impl Cache {
    pub(crate) fn new(device: &Arc<Raw>, folder: &CacheFolder) -> Result<Self, VulkanError> {
        let identity = &device.gpu.can.identity;
        let file = folder.path().map(|f| f.join(name(identity)));
        let known = file.as_deref().and_then(|file| match read(file, identity) {
            Ok(data) => data,
            Err(why) => {
                say(&format!("{} is ignored: {why}", file.display()));
                None
            }
        });
        let known = known.unwrap_or_default();
        let info = vk::PipelineCacheCreateInfo::default().initial_data(&known);
        // SAFETY: the data is what this driver gave, or none.
        let raw = unsafe { device.device.create_pipeline_cache(&info, None) }.map_err(opening("vkCreatePipelineCache"))?;
        Ok(Self { device: Arc::clone(device), raw, file, grown: AtomicBool::new(false) })
    }

    pub(crate) fn raw(&self) -> vk::PipelineCache {
        self.raw
    }

    /// A pipeline was built.
    pub(crate) fn grew(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }

    /// Writes it, if it has grown.
    pub(crate) fn save(&self) {
        let Some(file) = self.file.as_deref().filter(|_| self.grown.swap(false, Ordering::Relaxed)) else { return };
        if self.device.is_lost() {
            return;
        }
        // SAFETY: a cache of this device.
        let Ok(data) = (unsafe { self.device.device.get_pipeline_cache_data(self.raw) }) else { return };
        if let Err(e) = replace(file, &wrap(&self.device.gpu.can.identity, &data)) {
            say(&format!(
                "{} cannot be written ({e}); STERNA_PIPELINE_CACHE names another folder, or `off`",
                file.display()
            ));
        }
    }

    pub(crate) fn destroy(&self) {
        // SAFETY: nobody builds pipelines any more.
        unsafe { self.device.device.destroy_pipeline_cache(self.raw, None) };
    }
}

fn say(what: &str) {
    // Not by a macro, which panics where standard error is closed.
    let _ = writeln!(io::stderr(), "sterna: pipeline cache {what}");
}

/// The name says all that the contents depend on, so that drivers do not take each other's file away.
fn name(id: &Identity) -> String {
    let uuid: String = id.cache.iter().map(|b| format!("{b:02x}")).collect();
    format!("vulkan-{:04x}-{:04x}-{:08x}-{uuid}", id.vendor, id.device, id.driver)
}

/// Whatever lies there, this neither waits nor reads more than a cache can have: it may be a pipe, or a link to a device.
fn read(file: &Path, identity: &Identity) -> Result<Option<Vec<u8>>, String> {
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(file);
    let file = match open {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        open => open.map_err(|e| e.to_string())?,
    };
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no regular file".into());
    }
    let mut bytes = Vec::new();
    // The length that the system names is not believed: it may grow, and files that are none on a disk have none.
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST {
        return Err(format!("it has more than {MOST} bytes"));
    }
    unwrap(identity, &bytes).map(|data| Some(data.to_vec())).map_err(String::from)
}

fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = file.with_extension(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let made = sterna_host::files::within_limits(|| File::create_new(&new).and_then(|mut f| f.write_all(bytes)))
        .and_then(|()| std::fs::rename(&new, file));
    if made.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    made
}

fn identity_bytes(id: &Identity) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&id.vendor.to_le_bytes());
    bytes[4..8].copy_from_slice(&id.device.to_le_bytes());
    bytes[8..12].copy_from_slice(&id.driver.to_le_bytes());
    bytes[12..].copy_from_slice(&id.cache);
    bytes
}

fn wrap(id: &Identity, data: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(HEAD + data.len());
    all.extend_from_slice(MAGIC);
    all.extend_from_slice(&identity_bytes(id));
    all.extend_from_slice(&(data.len() as u64).to_le_bytes());
    all.extend_from_slice(&checksum(data).to_le_bytes());
    all.extend_from_slice(data);
    all
}

/// The driver's data, if the file is whole and from this driver and device.
fn unwrap<'f>(id: &Identity, file: &'f [u8]) -> Result<&'f [u8], &'static str> {
    let (head, data) = file.split_at_checked(HEAD).ok_or("it is too short")?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    if &head[..8] != MAGIC {
        return Err("it is something else");
    }
    if head[8..36] != identity_bytes(id) {
        return Err("it is from another device or driver");
    }
    if number(36) != data.len() as u64 {
        return Err("it is cut off");
    }
    if number(44) != checksum(data) {
        return Err("its checksum is wrong");
    }
    // The driver's own header, VkPipelineCacheHeaderVersionOne.
    let word = |at: usize| data.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let own =
        word(0).is_some_and(|n| n >= 32) && word(4) == Some(1) && word(8) == Some(id.vendor) && word(12) == Some(id.device);
    if own && data.get(16..32) == Some(&id.cache[..]) { Ok(data) } else { Err("the driver's part is from another driver") }
}

/// FNV-1a, 64 bits (G. Fowler, L. C. Noll, K.-P. Vo): what is looked for is accidents.
fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Identity = Identity { vendor: 0x10005, device: 7, driver: 1, cache: [9; 16] };

    fn data() -> Vec<u8> {
        let mut data = Vec::new();
        for word in [32_u32, 1, ID.vendor, ID.device] {
            data.extend_from_slice(&word.to_le_bytes());
        }
        data.extend_from_slice(&ID.cache);
        data.extend_from_slice(b"and what the driver keeps");
        data
    }

    #[test]
    fn what_was_written_is_read_again() {
        assert_eq!(unwrap(&ID, &wrap(&ID, &data())), Ok(&data()[..]));
    }

    #[test]
    fn every_damaged_bit_and_every_cut_is_noticed() {
        let file = wrap(&ID, &data());
        for length in 0..file.len() {
            assert!(unwrap(&ID, &file[..length]).is_err(), "{length} bytes");
        }
        for bit in 0..8 * file.len() {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&ID, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_drivers_file_is_refused() {
        for other in [Identity { driver: 2, ..ID }, Identity { device: 8, ..ID }, Identity { cache: [8; 16], ..ID }] {
            assert_eq!(unwrap(&other, &wrap(&ID, &data())), Err("it is from another device or driver"));
            assert_ne!(name(&other), name(&ID));
        }
        // An honest head around another driver's data.
        let foreign = Identity { cache: [8; 16], ..ID };
        assert_eq!(unwrap(&foreign, &wrap(&foreign, &data())), Err("the driver's part is from another driver"));
    }

    #[test]
    fn what_is_no_file_of_bounded_length_is_neither_waited_for_nor_read() {
        let folder = std::env::temp_dir().join(format!("sterna-cache-hostile-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let at = |name: &str| folder.join(name);
        let pipe = std::process::Command::new("mkfifo").arg(at("pipe")).status();
        std::os::unix::fs::symlink("/dev/zero", at("zeros")).unwrap();
        std::os::unix::fs::symlink("/dev/tty", at("terminal")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        File::create(at("long")).unwrap().set_len(MOST + 5).unwrap();
        assert_eq!(read(&at("zeros"), &ID), Err("it is no regular file".into()));
        assert!(read(&at("terminal"), &ID).is_err());
        assert!(read(&at("folder"), &ID).is_err());
        assert_eq!(read(&at("long"), &ID), Err(format!("it has more than {MOST} bytes")));
        if pipe.is_ok_and(|status| status.success()) {
            assert_eq!(read(&at("pipe"), &ID), Err("it is no regular file".into()));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error() {
        assert!(replace(Path::new("/dev/null/cache/file"), b"x").is_err());
    }
}
