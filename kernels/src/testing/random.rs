//! Random inputs for kernels, from a seed. Files elsewhere in the workspace include this one: the example `speed`, and the tests of
//! kernels on Vulkan devices.

/// Splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// `len` numbers from −1 to 1.
    pub(crate) fn noise(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).collect()
    }

    /// A random sparse pattern, `row_ptr` and `col`: mostly short rows, some empty, a few long.
    pub(crate) fn graph(&mut self, rows: usize, columns: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut row_ptr, mut col) = (vec![0], Vec::new());
        for _ in 0..rows {
            let entries = if self.below(500) == 0 { 700 } else { self.below(6) };
            col.extend((0..entries).map(|_| self.below(columns) as u32));
            row_ptr.push(col.len() as u32);
        }
        (row_ptr, col)
    }
}
