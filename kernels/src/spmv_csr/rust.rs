//! The Rust form, and the walk over sparse rows that other kernels share.

use std::ops::Range;

use sterna_hal::kernel::Group;

use crate::SPARSE_ROWS;

/// The rows of a compressed matrix that one group owns.
pub(crate) struct Rows<'g> {
    kernel: &'static str,
    /// Number of the group's first row.
    first: usize,
    /// One element more than the group has rows.
    row_ptr: &'g [u32],
}

impl<'g> Rows<'g> {
    /// The `count` rows of `group`.
    ///
    /// # Panics
    /// If `row_ptr` does not belong to a result of this grid's length.
    pub(crate) fn of(kernel: &'static str, group: Group, row_ptr: &'g [u32], count: usize) -> Self {
        // A grid may be a little larger than the buffers ask for, where a device wants it rectangular.
        if count == 0 {
            return Self { kernel, first: 0, row_ptr: &[] };
        }
        let first = group.index() * SPARSE_ROWS;
        let end = first + count;
        // Only the last group sees where the rows end; the others see whether there are too few.
        let last = count < SPARSE_ROWS || group.index() + 1 == group.grid.iter().map(|n| *n as usize).product();
        let fits = row_ptr.len() == end + 1 || (!last && row_ptr.len() > end);
        assert!(fits, "{kernel}: row_ptr has {} elements, which is not one more than there are rows", row_ptr.len());
        Self { kernel, first, row_ptr: &row_ptr[first..=end] }
    }

    /// For each row the range of its entries, which lies within `entries`.
    ///
    /// # Panics
    /// The iterator does, at a row that falls or points beyond `entries`.
    pub(crate) fn ranges(&self, entries: usize) -> impl Iterator<Item = Range<usize>> {
        self.row_ptr.windows(2).enumerate().map(move |(i, ends)| {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            if start > end || end > entries {
                malformed_row(self.kernel, self.first + i, start, end, entries);
            }
            start..end
        })
    }
}

#[cold]
#[inline(never)]
fn malformed_row(kernel: &str, row: usize, start: usize, end: usize, entries: usize) -> ! {
    panic!("{kernel}: entries {start}..{end} of row {row}, in a matrix of {entries} entries");
}

/// The element of `x` in column `col`.
///
/// # Panics
/// If there is none.
#[inline(always)]
pub(crate) fn at(kernel: &str, x: &[f32], col: u32) -> f64 {
    match x.get(col as usize) {
        Some(v) => f64::from(*v),
        None => no_column(kernel, col, x.len()),
    }
}

#[cold]
#[inline(never)]
fn no_column(kernel: &str, col: u32, columns: usize) -> ! {
    panic!("{kernel}: column {col} of {columns}");
}

pub(super) fn body(group: Group, (): (), row_ptr: &[u32], col: &[u32], val: &[f32], x: &[f32], y: &mut [f32]) {
    let rows = Rows::of("spmv_csr", group, row_ptr, y.len());
    for (y, r) in y.iter_mut().zip(rows.ranges(col.len().min(val.len()))) {
        let entries = col[r.clone()].iter().zip(&val[r]);
        *y = entries.map(|(c, v)| f64::from(*v) * at("spmv_csr", x, *c)).sum::<f64>() as f32;
    }
}
