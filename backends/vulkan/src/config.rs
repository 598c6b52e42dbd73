//! How a Vulkan device is made.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::VulkanError;

/// The unit of memory where nobody asks for another one, in bytes.
pub(crate) const GRAIN: u64 = 64 << 10;

/// What becomes of an access to a page that the device does not have, and where pages can be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageTable {
    /// Device addresses are host addresses, and entries are mappings of this process; an access to an absent page faults. Drivers
    /// that run on the host's processors only.
    Mmu,
    /// One sparse buffer an allocation, whose pages are bound to device memory as they are needed. Most GPUs.
    Sparse,
    /// One contiguous buffer an allocation, all of it in device memory. Every device.
    Fixed,
}

impl PageTable {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mmu => "mmu",
            Self::Sparse => "sparse",
            Self::Fixed => "fixed",
        }
    }
}

impl fmt::Display for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PageTable {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Mmu, Self::Sparse, Self::Fixed]
            .into_iter()
            .find(|k| k.name() == text)
            .ok_or_else(|| format!("there is no page table `{text}`; there are: mmu, sparse, fixed"))
    }
}

/// How bytes get into the memory of a device with page table *sparse* or *fixed*.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Copies {
    /// The host's processors write and read it where it is: memory that they can reach and that is theirs too.
    Mapped,
    /// By the device's copy queue, straight from and to the host's memory, which is imported piece by piece.
    Imported,
    /// By way of staging buffers and the device's copy queue.
    Staged,
}

impl Copies {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Imported => "imported",
            Self::Staged => "staged",
        }
    }
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Copies {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Mapped, Self::Imported, Self::Staged]
            .into_iter()
            .find(|c| c.name() == text)
            .ok_or_else(|| format!("there is no way of copies `{text}`; there are: mapped, imported, staged"))
    }
}

/// Where the driver's pipeline cache is kept between runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum CacheFolder {
    /// `sterna` in the user's cache folder: `XDG_CACHE_HOME`, or `.cache` in `HOME`. Nowhere if neither is set.
    #[default]
    User,
    /// Nowhere.
    Off,
    /// In this folder, which is made if it is not there.
    At(PathBuf),
}

impl CacheFolder {
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        match self {
            Self::Off => None,
            Self::At(folder) => Some(folder.clone()),
            Self::User => {
                let folder = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|h| h.join(".cache")));
                folder.map(|f| f.join("sterna"))
            }
        }
    }
}

impl FromStr for CacheFolder {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            folder if folder.starts_with('/') => Ok(Self::At(folder.into())),
            other => Err(format!("`{other}` is neither `off` nor a folder that begins with /")),
        }
    }
}

/// What a Vulkan device is opened with. [`Default`] is what a program wants.
#[derive(Clone, Debug, Default)]
pub struct VulkanConfig {
    /// Memory budget in bytes. `None`: most of what the driver says is free; a quarter of the machine's on software drivers.
    pub memory: Option<u64>,
    /// The page table. `None`: the best that works.
    pub page_table: Option<PageTable>,
    /// The way of copies, where there is a choice. `None`: mapped where all device memory is the host's, else imported where a
    /// probe of that works, else staged.
    pub copies: Option<Copies>,
    /// Where pipelines are kept between runs.
    pub pipeline_cache: CacheFolder,
    /// Unit of memory and of page-table entries in bytes: a power of two from 4 KiB to 2 MiB, and with page table *sparse* at least what the
    /// driver binds by. `None`: 64 KiB, or what the driver binds by if that is more.
    pub grain: Option<u64>,
}

impl VulkanConfig {
    /// The unit of memory, if nothing of the device's stands against it.
    pub(crate) fn grain(&self) -> Result<u64, VulkanError> {
        let grain = self.grain.unwrap_or(GRAIN);
        if grain.is_power_of_two() && (4 << 10..=2 << 20).contains(&grain) {
            return Ok(grain);
        }
        Err(VulkanError::Settings(format!("a grain of {grain} bytes; it is a power of two from 4096 to 2097152")))
    }
}
