//! Host storage that copies reach without staging: pieces of it, imported when first used and kept.
//!
//! **Guarantee:** a piece that is handed out names the pages that are the storage's now. Importing gives no page storage that had
//! none, except to bytes that are being copied.
//!
//! **What a piece is:** neighbouring blocks of 2 MiB, within 64 MiB of the storage, each of which has storage throughout: drivers
//! take hold of every page of an import. What lies in other blocks goes through staging buffers, and is imported when it is used
//! after its block has filled. An allocation of a terabyte of which little is touched stays what it is.
//!
//! **Two ways:** by address; or, where a driver does not take addresses of files, as DMA buffers that the kernel makes of the file. What is
//! said here holds for both: the kernel, too, takes hold of pages.
//!
//! **Why the pages are the right ones.** Most drivers pin what they import: they use the pages of memory themselves from then on,
//! whatever the file has at that place later. The engine frees storage, after which other pages come there; it says so before it
//! uses them ([`Device::host_freed`](sterna_hal::Device::host_freed)), and a piece with such a page goes. One that was imported
//! meanwhile may have the old page or none: it serves the copy that it was made for, whose own bytes are never freed under it, and is
//! not kept. Mappings of the storage do not change while it is announced, and its file keeps its length. The system itself moves no
//! page that is pinned: `MADV_COLLAPSE` leaves such blocks as they are, so memory that a driver holds gets no huge folios any more.
//!
//! **States:** imports are made, or not any more: after a failure (a limit on locked memory, as a rule) everything beyond the pieces
//! that there are is staged, for good, which is said once on standard error. A piece is kept until it is freed beneath, is the one
//! used longest ago when there are too many, or its device goes; copies under way keep theirs until they have ended.
//!
//! **Lock:** `state`, over look-ups in the list; never over a call of the driver. One thread looks for pieces: that of the copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use ash::vk;
use parking_lot::Mutex;
use sterna_hal::{DeviceError, HostAt};
use sterna_host::regions::Regions;
use sterna_host::sys::{BLOCK, invalid};

use crate::import::{Import, Stretch, offered};
use crate::raw::Raw;
use crate::udmabuf::Udmabuf;

/// The longest piece in bytes; no piece crosses a multiple of it.
pub(crate) const PIECE: u64 = 64 << 20;
/// More pieces than this are not kept.
const MOST: usize = 1024;

/// How storage is imported.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// By its addresses.
    Address,
    /// As DMA buffers that the kernel makes of its file.
    DmaBuf(Udmabuf),
}

#[derive(Debug)]
pub(crate) struct Imports {
    raw: Arc<Raw>,
    regions: Arc<Regions>,
    way: Way,
    most: Most,
    state: Mutex<State>,
}

/// What is kept at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) pieces: usize,
    pub(crate) bytes: u64,
}

impl Most {
    /// Half of what the driver allocates at a time, and of the machine's memory.
    pub(crate) fn of(raw: &Raw) -> Self {
        // SAFETY: no memory is involved.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        let bytes = u64::try_from(pages).unwrap_or(1 << 18) * sterna_host::sys::page_size() / 2;
        Self { pieces: MOST.min(raw.gpu.can.max_allocations as usize / 2).max(1), bytes: bytes.max(PIECE) }
    }
}

#[derive(Debug, Default)]
struct State {
    /// By region and first byte.
    pieces: BTreeMap<(u32, u64), Piece>,
    bytes: u64,
    /// Counts uses.
    now: u64,
    /// Counts what was freed.
    freed: u64,
    refused: Option<String>,
}

#[derive(Debug)]
struct Piece {
    import: Arc<Import>,
    used: u64,
}

/// How bytes of the host are reached.
#[derive(Debug)]
pub(crate) enum Reach {
    /// This many of them, so many bytes into this import.
    Imported(Arc<Import>, u64, u64),
    /// Not at all, which holds for so many of them.
    Staged(u64),
}

impl State {
    /// The piece that has the byte.
    fn find(&mut self, at: HostAt, bytes: u64) -> Option<Reach> {
        let key = (at.region.0, at.offset);
        let (&(region, first), piece) = self.pieces.range_mut(..=key).next_back()?;
        let into = at.offset - first.min(at.offset);
        if region != at.region.0 || into >= piece.import.bytes {
            return None;
        }
        self.now += 1;
        piece.used = self.now;
        Some(Reach::Imported(Arc::clone(&piece.import), into, bytes.min(piece.import.bytes - into)))
    }

    /// What lies between the pieces around a byte that none has, within the stretch that one piece may be of.
    fn gap(&self, at: HostAt) -> (u64, u64) {
        let start = at.offset / PIECE * PIECE;
        let of = |offset| (at.region.0, offset);
        let before = self.pieces.range(of(start)..of(at.offset)).next_back().map(|(k, p)| k.1 + p.import.bytes);
        let behind = self.pieces.range(of(at.offset)..of(start + PIECE)).next().map(|(k, _)| k.1);
        (before.unwrap_or(start), behind.unwrap_or(start + PIECE))
    }

    fn remove(&mut self, key: (u32, u64)) -> Option<Piece> {
        let piece = self.pieces.remove(&key)?;
        self.bytes -= piece.import.bytes;
        Some(piece)
    }
}

impl Imports {
    /// # Errors
    /// The driver does not offer it.
    pub(crate) fn new(raw: &Arc<Raw>, regions: &Arc<Regions>, way: Way, most: Most) -> Result<Arc<Self>, DeviceError> {
        let by_address = matches!(way, Way::Address);
        offered(raw, by_address, USAGE)?;
        let alignment = raw.gpu.can.import_alignment;
        if by_address && alignment > BLOCK {
            return Err(invalid("import", format!("the driver imports multiples of {alignment} bytes only")));
        }
        Ok(Arc::new(Self { raw: Arc::clone(raw), regions: Arc::clone(regions), way, most, state: Mutex::default() }))
    }

    /// How the first of `bytes` bytes, which are being copied, are reached.
    pub(crate) fn reach(&self, at: HostAt, bytes: u64) -> Reach {
        let staged = Reach::Staged(bytes.min(BLOCK - at.offset % BLOCK));
        let (gap, freed) = {
            let mut state = self.state.lock();
            if let Some(found) = state.find(at, bytes) {
                return found;
            }
            if state.refused.is_some() {
                return staged;
            }
            (state.gap(at), state.freed)
        };
        let Some((first, end)) = self.stretch(at, bytes, gap) else { return staged };
        match self.import(HostAt { offset: first, ..at }, end - first) {
            Ok(import) => {
                let import = Arc::new(import);
                self.keep((at.region.0, first), &import, freed);
                Reach::Imported(import, at.offset - first, bytes.min(end - at.offset))
            }
            Err(e) => {
                if !self.raw.is_lost() {
                    say(&format!(
                        "sterna: {}: no more host memory can be imported ({e}); copies go through staging buffers. Where locked \
                         memory is limited, `ulimit -l` raises that.\n",
                        self.raw.gpu.name
                    ));
                }
                self.state.lock().refused = Some(e.to_string());
                staged
            }
        }
    }

    /// The blocks around a byte that have storage, or get it by this copy; `None` if its own is none of them.
    fn stretch(&self, at: HostAt, bytes: u64, (least, most): (u64, u64)) -> Option<(u64, u64)> {
        let look = self.regions.look();
        let length = look.bytes(at.region);
        let copied = at.offset..at.offset.saturating_add(bytes);
        let stored = |from: u64, to: u64| from >= to || look.stored(HostAt { offset: from, ..at }, to - from);
        let whole = |block: u64| {
            let end = block + BLOCK;
            end <= length && stored(block, copied.start.clamp(block, end)) && stored(copied.end.clamp(block, end), end)
        };
        let mut first = at.offset / BLOCK * BLOCK;
        if !whole(first) {
            return None;
        }
        let mut end = first + BLOCK;
        while end < most && whole(end) {
            end += BLOCK;
        }
        while first > least && whole(first - BLOCK) {
            first -= BLOCK;
        }
        Some((first, end))
    }

    fn import(&self, at: HostAt, bytes: u64) -> Result<Import, DeviceError> {
        let look = self.regions.look();
        let from = look.host("import", at, bytes)?;
        let stretch = match &self.way {
            Way::Address => {
                let alignment = self.raw.gpu.can.import_alignment.max(1);
                if !(from.addr().get() as u64).is_multiple_of(alignment) {
                    return Err(invalid("import", format!("host storage is at {from:?}, no multiple of {alignment}")));
                }
                Stretch::At(from.as_ptr().cast())
            }
            Way::DmaBuf(udmabuf) => Stretch::DmaBuf(udmabuf.buffer(look.file(at), &(at.offset..at.offset + bytes))?),
        };
        drop(look);
        // SAFETY: announced storage stays mapped as long as the device exists. What becomes of its pages: see the module's head.
        unsafe { Import::new(&self.raw, stretch, bytes, USAGE) }
    }

    /// Keeps a piece for later copies, unless something was freed since `freed` was read.
    fn keep(&self, key: (u32, u64), import: &Arc<Import>, freed: u64) {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        if state.freed != freed {
            return;
        }
        while state.pieces.len() >= self.most.pieces || state.bytes + import.bytes > self.most.bytes {
            let Some(oldest) = state.pieces.iter().min_by_key(|(_, p)| p.used).map(|(k, _)| *k) else { break };
            gone.extend(state.remove(oldest));
        }
        state.now += 1;
        let used = state.now;
        state.bytes += import.bytes;
        state.pieces.insert(key, Piece { import: Arc::clone(import), used });
        drop(state); // the driver is called without it
    }

    /// Lets go of the pages of a stretch, whose storage was freed.
    pub(crate) fn forget(&self, at: HostAt, bytes: u64) {
        let end = at.offset.saturating_add(bytes);
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        state.freed += 1;
        let near = (at.region.0, at.offset / PIECE * PIECE)..(at.region.0, end);
        let has = |(k, p): (&(u32, u64), &Piece)| (k.1 + p.import.bytes > at.offset).then_some(*k);
        let keys: Vec<_> = state.pieces.range(near).filter_map(has).collect();
        keys.into_iter().for_each(|key| gone.extend(state.remove(key)));
        drop(state); // the driver is called without it
    }

    /// Why no more are made, if so.
    pub(crate) fn refused(&self) -> Option<String> {
        self.state.lock().refused.clone()
    }

    /// Bytes that are imported now.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }
}

const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::TRANSFER_SRC.as_raw() | vk::BufferUsageFlags::TRANSFER_DST.as_raw(),
);

/// Says a line on standard error, without its lock: who holds that may be waiting for a copy.
fn say(line: &str) {
    // SAFETY: as many bytes as there are. There is nobody to tell if it fails.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

const _: () = assert!(PIECE.is_multiple_of(BLOCK));

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_host::storage::Storage;

    /// Imports of storage that is all there, or `None` where the first device does not offer them.
    fn imports(storage: &Storage, way: Way, most: Most) -> Option<(Arc<Imports>, HostAt)> {
        let raw = crate::raw::any()?;
        let regions = Arc::new(Regions::default());
        // SAFETY: the storage outlives its test, whole.
        let region = unsafe {
            storage.base().write_bytes(1, sterna_host::sys::to_usize(storage.bytes()));
            regions.attach(storage.base(), storage.bytes(), storage.file()).unwrap()
        };
        match Imports::new(&raw, &regions, way, most) {
            Ok(imports) => Some((imports, HostAt { region, offset: 0 })),
            Err(e) => {
                println!("SKIP imports: {e}");
                None
            }
        }
    }

    #[test]
    fn the_piece_used_longest_ago_goes() {
        let storage = Storage::new(4 * PIECE).unwrap();
        for most in [Most { pieces: 2, bytes: u64::MAX }, Most { pieces: 9, bytes: 2 * PIECE }] {
            let Some((imports, at)) = imports(&storage, Way::Address, most) else { return };
            let reach = |piece: u64| match imports.reach(HostAt { offset: piece * PIECE + 5, ..at }, 100) {
                Reach::Imported(import, 5, 100) => import,
                other => panic!("{other:?}"),
            };
            let first = reach(0);
            let [second, again] = [reach(1), reach(0)];
            assert!(Arc::ptr_eq(&first, &again) && imports.bytes() == 2 * PIECE);
            // What goes on behind a piece is another's, on the way to it and when it is there.
            for _ in 0..2 {
                let behind = imports.reach(HostAt { offset: PIECE - 10, ..at }, 100);
                assert!(matches!(&behind, Reach::Imported(_, into, 10) if *into == PIECE - 10), "{behind:?}");
                imports.forget(at, 1);
            }
            let first = reach(0);
            reach(2); // in place of the second, which whoever has it keeps
            assert!(imports.bytes() == 2 * PIECE && Arc::strong_count(&second) == 1);
            assert!(Arc::ptr_eq(&first, &reach(0)) && !Arc::ptr_eq(&second, &reach(1)));
        }
    }

    #[test]
    fn dma_buffers_are_imported_and_kept_as_addresses_are() {
        let storage = Storage::new(PIECE).unwrap();
        let Some((imports, at)) = imports(&storage, Way::DmaBuf(Udmabuf::Itself), Most { pieces: 9, bytes: PIECE }) else {
            return;
        };
        for _ in 0..2 {
            let reach = imports.reach(HostAt { offset: 3 * BLOCK + 5, ..at }, 100);
            assert!(
                matches!(&reach, Reach::Imported(i, into, 100) if *into == 3 * BLOCK + 5 && i.bytes == PIECE),
                "{reach:?}"
            );
            assert_eq!((imports.bytes(), imports.refused()), (PIECE, None));
        }
        imports.forget(at, 1);
        assert_eq!(imports.bytes(), 0);
    }

    #[test]
    fn what_is_imported_while_something_is_freed_is_not_kept() {
        let storage = Storage::new(PIECE).unwrap();
        let Some((imports, at)) = imports(&storage, Way::Address, Most { pieces: 9, bytes: PIECE }) else { return };
        let piece = Arc::new(imports.import(at, PIECE).unwrap());
        let freed = imports.state.lock().freed;
        imports.forget(HostAt { offset: 9 * PIECE, ..at }, 1);
        imports.keep((at.region.0, 0), &piece, freed);
        assert_eq!(imports.bytes(), 0);
        imports.keep((at.region.0, 0), &piece, freed + 1);
        assert_eq!(imports.bytes(), PIECE);
    }
}
