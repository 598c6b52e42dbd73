//! Stretches of memory files as DMA buffers, by the kernel's `/dev/udmabuf`, for drivers that import no addresses of mapped files.
//!
//! The kernel takes hold of the pages that the file has there, for as long as the buffer exists. It wants files that cannot be shortened
//! (`F_SEAL_SHRINK`), and makes buffers of up to 64 MiB unless its module was told otherwise. Source: `linux/udmabuf.h`.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use sterna_hal::DeviceError;
use sterna_host::files::high;
use sterna_host::sys::invalid;

/// `struct udmabuf_create`.
#[repr(C)]
struct Create {
    file: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `_IOW('u', 0x42, struct udmabuf_create)`.
const CREATE: libc::c_ulong = 1 << 30 | (size_of::<Create>() as libc::c_ulong) << 16 | (b'u' as libc::c_ulong) << 8 | 0x42;
/// `UDMABUF_FLAGS_CLOEXEC`.
const CLOSED_ON_EXEC: u32 = 1;

/// The kernel's device, or in tests something that does as if.
#[derive(Clone, Debug)]
pub(crate) enum Udmabuf {
    Kernel(Arc<OwnedFd>),
    /// Hands over the file itself, which lavapipe maps from its beginning as it does with DMA buffers.
    #[cfg(test)]
    Itself,
}

impl Udmabuf {
    /// # Errors
    /// There is none, or this user may not open it.
    pub(crate) fn open() -> Result<Self, DeviceError> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/udmabuf");
        let file = file.map_err(|e| invalid("import", format!("/dev/udmabuf cannot be opened ({e})")))?;
        Ok(Self::Kernel(Arc::new(high(file.into())?)))
    }

    /// Bytes of a file as a DMA buffer.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn buffer(&self, file: BorrowedFd<'_>, bytes: &Range<u64>) -> Result<OwnedFd, DeviceError> {
        match self {
            Self::Kernel(device) => {
                let create = Create {
                    file: file.as_raw_fd() as u32,
                    flags: CLOSED_ON_EXEC,
                    offset: bytes.start,
                    size: bytes.end - bytes.start,
                };
                // SAFETY: the request reads the structure given; a new descriptor comes back.
                match unsafe { libc::ioctl(device.as_raw_fd(), CREATE as _, &create) } {
                    // SAFETY: it is nobody else's.
                    fd @ 0.. => high(unsafe { OwnedFd::from_raw_fd(fd) }),
                    _ => Err(DeviceError::os("ioctl(UDMABUF_CREATE)", &std::io::Error::last_os_error())),
                }
            }
            #[cfg(test)]
            Self::Itself => {
                let same = file.try_clone_to_owned();
                same.map_err(|e| DeviceError::os("fcntl", &e)).inspect(|_| assert_eq!(bytes.start, 0))
            }
        }
    }
}

const _: () = assert!(CREATE == 0x4018_7542);
