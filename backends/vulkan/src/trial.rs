//! Which way copies reach host storage: tried on a mapping of a memory file, as the arena is.

use std::sync::Arc;

use gpu_allocator::MemoryLocation;
use sterna_hal::{DeviceError, HostAt};
use sterna_host::regions::Regions;
use sterna_host::storage::Storage;
use sterna_host::sys::{BLOCK, invalid, to_usize};

use crate::imports::{Imports, Most, Way};
use crate::pool::Pool;
use crate::raw::Raw;
use crate::stage::{End, Run};
use crate::stages::Stages;
use crate::udmabuf::Udmabuf;

/// Tries by which way the device's copies reach a shared mapping of a memory file: by its addresses, else as DMA buffers.
///
/// # Errors
/// What stands in the way of both.
pub(crate) fn probe(raw: &Arc<Raw>, pool: &Arc<Pool>) -> Result<Way, DeviceError> {
    let Err(by_address) = there_and_back(raw, pool, Way::Address) else { return Ok(Way::Address) };
    if raw.is_lost() {
        return Err(by_address);
    }
    let way = Udmabuf::open().map(Way::DmaBuf).and_then(|way| there_and_back(raw, pool, way.clone()).map(|()| way));
    way.map_err(|e| invalid("import", format!("{by_address}; and as DMA buffers: {e}")))
}

/// Copies half of a block by import to the device and from it to the other half.
fn there_and_back(raw: &Arc<Raw>, pool: &Arc<Pool>, way: Way) -> Result<(), DeviceError> {
    let (storage, half) = (Storage::new(BLOCK)?, BLOCK / 2);
    let regions = Arc::new(Regions::default());
    // SAFETY: mapped from offset 0, and longer than the stages exist, which are the only ones to know of it.
    let region = unsafe { regions.attach(storage.base(), storage.bytes(), storage.file())? };
    let (there, bytes) = (storage.base(), to_usize(half));
    for i in 0..bytes {
        // SAFETY: inside the mapping, which is the probe's own; here and below.
        unsafe {
            there.add(i).write((i * 7 + i / 4096) as u8);
            // What has storage throughout is imported.
            there.add(bytes + i).write(0);
        }
    }
    let imports = Imports::new(raw, &regions, way, Most::of(raw))?;
    let mut stages = Stages::new(raw, pool, Some(Arc::clone(&imports)), None)?;
    let device = End::Device(Arc::new(pool.buffer(half, MemoryLocation::GpuOnly, "probe")?), 0);
    let host = |offset: u64| {
        // SAFETY: as above.
        End::Host(unsafe { there.add(to_usize(offset)) }, HostAt { region, offset })
    };
    for (from, to) in [(host(0), device.clone()), (device, host(half))] {
        stages.carry(&[Run { from, to, bytes: half }], 0).and_then(|()| stages.finish()).inspect_err(|_| {
            // SAFETY: nobody else has the device yet. What fails here is a lost device, which does nothing any more.
            let _ = unsafe { raw.device.device_wait_idle() };
        })?;
    }
    if imports.bytes() != BLOCK {
        return Err(invalid("import", imports.refused().unwrap_or_else(|| "nothing was imported".into())));
    }
    // SAFETY: as above; the copies have ended.
    let equal = unsafe {
        let [a, b] = [0, bytes].map(|at| std::slice::from_raw_parts(there.add(at).as_ptr(), bytes));
        a == b
    };
    if equal { Ok(()) } else { Err(invalid("import", "bytes that went there and back by import are not the same")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_there_and_back_by_either_way() {
        let Some(raw) = crate::raw::any() else { return };
        let pool = Pool::new(&raw).unwrap();
        // The second stands in for `/dev/udmabuf`: software drivers take the file itself.
        for way in [Way::Address, Way::DmaBuf(Udmabuf::Itself)] {
            match there_and_back(&raw, &pool, way.clone()).map_err(|e| e.to_string()) {
                Err(e) if e.contains("does not import such memory") => println!("SKIP {way:?}: {e}"),
                tried => assert_eq!(tried, Ok(()), "{way:?}"),
            }
        }
    }
}
