//! A workgroup's place in the grid, and the mark that says 'this thread is inside a kernel'.

use std::cell::Cell;

/// A workgroup's place in the grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// Its coordinates in x, y and z.
    pub id: [u32; 3],
    /// The whole grid, in groups.
    pub grid: [u32; 3],
}

impl Group {
    /// The group with linear number `index` of `grid`: x runs fastest.
    #[must_use]
    pub fn nth(index: u32, grid: [u32; 3]) -> Self {
        let [x, y, _] = grid;
        Self { id: [index % x, index / x % y, index / x / y], grid }
    }

    /// Its linear number: x runs fastest.
    #[must_use]
    pub fn index(&self) -> usize {
        let [x, y, z] = self.id.map(|v| v as usize);
        let [gx, gy, _] = self.grid.map(|v| v as usize);
        x + gx * (y + gy * z)
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is running a kernel's code. Launching and waiting are errors there.
#[must_use]
pub fn in_kernel() -> bool {
    DEPTH.with(Cell::get) > 0
}

/// Held by a backend around the host code of a kernel.
#[derive(Debug)]
pub struct InKernel(());

impl InKernel {
    /// Marks this thread until the value is dropped.
    #[must_use]
    pub fn enter() -> Self {
        DEPTH.with(|d| d.set(d.get() + 1));
        Self(())
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        DEPTH.with(|d| d.set(d.get() - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_number_and_coordinates_agree() {
        let grid = [3, 4, 5];
        for n in 0..60 {
            assert_eq!(Group::nth(n, grid).index(), n as usize);
        }
        assert_eq!(Group::nth(16, grid).id, [1, 1, 1]);
    }
}
