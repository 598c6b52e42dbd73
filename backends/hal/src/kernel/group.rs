//! A workgroup's place in the grid, and the mark that says 'this thread is inside a kernel'.

use std::cell::Cell;
use std::marker::PhantomData;

/// A workgroup's place in the grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// Its coordinates in x, y and z.
    pub id: [u32; 3],
    /// The whole grid, in groups.
    pub grid: [u32; 3],
}

impl Group {
    /// The group with linear number `index` of `grid`: x runs fastest. A grid of no groups in some direction counts as one there.
    #[must_use]
    pub fn nth(index: u32, grid: [u32; 3]) -> Self {
        let [x, y, _] = grid.map(|n| n.max(1));
        Self { id: [index % x, index / x % y, index / x / y], grid }
    }

    /// Its linear number: x runs fastest. Those of a launch have fewer than 2^32 groups; of a grid that has more than numbers go, it
    /// is the number's lowest bits.
    #[must_use]
    pub fn index(&self) -> usize {
        let [x, y, z] = self.id.map(|v| v as usize);
        let [gx, gy, _] = self.grid.map(|v| v as usize);
        gy.wrapping_mul(z).wrapping_add(y).wrapping_mul(gx).wrapping_add(x)
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is running a kernel's code, or is one of a device's that run kernels. Launching and waiting are errors there.
#[must_use]
pub fn in_kernel() -> bool {
    DEPTH.with(Cell::get) > 0
}

/// Marks this thread as one that runs kernels, for good. What a kernel has others do for it (rayon's tasks go to the pool whose thread
/// asks) runs on such threads between two groups, while the kernel waits for it: it waits for no launch either.
pub fn runs_kernels() {
    DEPTH.with(|d| d.set(d.get() + 1));
}

/// Held around the Rust form of a kernel, while one group runs. Not public: who is in a kernel waits for nothing, and the engine
/// believes the mark. Not `Send`: it is of the thread that made it.
#[derive(Debug)]
pub(crate) struct InKernel(PhantomData<*const ()>);

impl InKernel {
    /// Marks this thread until the value is dropped.
    pub(crate) fn enter() -> Self {
        DEPTH.with(|d| d.set(d.get() + 1));
        Self(PhantomData)
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
