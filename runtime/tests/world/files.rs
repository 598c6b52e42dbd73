//! Files with the contents of allocations, read whole, mapped, and from odd places on.

use std::fs::{File, remove_file, write};
use std::path::PathBuf;

use sterna::bytemuck::cast_slice;
use sterna::hmm::Segment;

use super::{Both, World};

impl World {
    /// A file with the contents of an allocation.
    fn file(&self, of: usize) -> PathBuf {
        let Both { x, v, .. } = &self.all[of];
        let path = std::env::temp_dir().join(format!("sterna-random-{}-{:p}", std::process::id(), x.as_host_ptr()));
        write(&path, cast_slice(v)).unwrap();
        path
    }

    /// A mapped file takes the place of an allocation with the same contents.
    pub(super) fn map(&mut self, of: usize) {
        let path = self.file(of);
        // SAFETY: nobody writes it.
        let mut mapped = unsafe { self.rt.map_file::<u32>(&path) }.unwrap();
        let Both { v, .. } = &mut self.all[of];
        let half = v.len() / 2;
        mapped[half] ^= 5;
        v[half] ^= 5;
        mapped.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[half * 4..][..4], v[half].to_ne_bytes());
        remove_file(&path).unwrap();
        self.all[of] = Both::new(mapped, std::mem::take(v));
        let n = self.all[of].v.len();
        self.touched(of, &(0..n));
    }

    /// A file with the same contents, read.
    pub(super) fn read_file(&mut self, of: usize) {
        let path = self.file(of);
        let both = Both::new(self.rt.read_file(&path).unwrap(), self.all[of].v.clone());
        remove_file(&path).unwrap();
        self.keep(of, both);
    }

    /// A segment of `bytes` bytes over a file with the same contents, which begins at any byte of it or behind its end: what the file
    /// has is there, zeros follow, stores stay, and of those a shared file gets what it has room for.
    pub(super) fn file_from(&self, of: usize, at: u16, bytes: usize, shared: bool) {
        let path = self.file(of);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut contents: Vec<u8> = cast_slice(&self.all[of].v).to_vec();
        let offset = (contents.len() + 10_000) * usize::from(at) / 65536;
        let seg = Segment::of_file(self.rt.space(), file, offset as u64, bytes as u64, shared).unwrap();
        // SAFETY: the segment's own bytes, which nobody else uses.
        let there = unsafe { std::slice::from_raw_parts_mut(seg.as_host_ptr(), bytes) };
        let behind = contents.get(offset..).unwrap_or_default();
        let mut expect: Vec<u8> = behind.iter().copied().chain(std::iter::repeat(0)).take(bytes).collect();
        let wrong = |there: &[u8], expect: &[u8]| there.iter().zip(expect).position(|(a, b)| a != b);
        assert_eq!(wrong(there, &expect), None, "as read from {offset} on");
        for i in (0..bytes).step_by(4099) {
            there[i] ^= 0x5A;
            expect[i] ^= 0x5A;
            if let Some(b) = contents.get_mut(offset + i).filter(|_| shared) {
                *b ^= 0x5A;
            }
        }
        seg.flush().unwrap();
        assert_eq!(wrong(there, &expect), None, "as stored from {offset} on");
        assert!(std::fs::read(&path).unwrap() == contents, "what was written back from {offset} on");
        remove_file(&path).unwrap();
    }
}
