//! How much one group does, and why that much.
//!
//! Three things pull. A group costs some tens of nanoseconds to start, so it should run for microseconds. Groups are what keeps
//! the workers of a device busy, so there should be many. And memory moves in 4 KiB pages and 64 KiB granules: a chunk that is a
//! whole number of granules means that no two groups need the same page, so a group waits for nobody else's data.

/// Elements a group of a kernel that streams over `f32`: 16 Ki, which is exactly one 64 KiB granule.
pub const STREAM_CHUNK: usize = 16 * 1024;

/// Elements a group of a reduction: 64 Ki, four granules of `f32`.
///
/// Larger than [`STREAM_CHUNK`], since each group leaves one partial sum behind and all partial sums share a page or two: a
/// gigabyte of `f32` gives 4096 of them, 16 KiB, which the host adds up in microseconds.
pub const REDUCE_CHUNK: usize = 64 * 1024;

/// Rows a group of a kernel over sparse rows: 4096, which is 16 KiB or four whole pages of an `f32` result.
///
/// Smaller than a granule, since the work in a row varies: in a graph whose degrees follow a power law a few groups hold most
/// of the edges, and more groups spread better over the workers. Still whole pages, so that no page of the result has two
/// writers.
pub const SPARSE_ROWS: usize = 4 * 1024;

/// Elements that a group of a kernel over a plane has at least: 64 Ki, four granules of `f32`. See [`tile_rows`].
pub const TILE: usize = 64 * 1024;

/// Rows a group of a kernel over a plane of `width` columns that looks `reach` rows up and down.
///
/// Enough rows for [`TILE`] elements, and at least four times `reach`, so that however wide the plane is, what a group reads
/// beside its own rows is at most half of what it owns. A width that divides [`TILE`] makes tiles that share no granule.
///
/// ```
/// use sterna_kernels::tile_rows;
/// assert_eq!(tile_rows(1024, 1), 64);
/// assert_eq!(tile_rows(1_000_000, 1), 4);
/// assert_eq!(tile_rows(1_000_000, 0), 1);
/// ```
///
/// # Panics
/// If `width` is 0.
#[must_use]
pub const fn tile_rows(width: usize, reach: usize) -> usize {
    assert!(width > 0, "a plane has at least one column");
    let (filling, wide) = (TILE.div_ceil(width), reach.saturating_mul(4));
    if filling > wide { filling } else { wide }
}

/// The width of a plane as its kernels get it.
///
/// # Panics
/// If `width` is 0 or does not fit 32 bits, the size of an index in the kernels' other forms.
pub(crate) fn plane_width(width: usize) -> u32 {
    assert!(width > 0, "a plane has at least one column");
    u32::try_from(width).unwrap_or_else(|_| panic!("a plane has at most {} columns, not {width}", u32::MAX))
}

/// Refuses parts of different length: the buffers of this launch do not belong together.
#[track_caller]
pub(crate) fn same_len(kernel: &str, a: usize, b: usize) {
    assert!(a == b, "{kernel}: buffers of different length (a group got {a} elements of one and {b} of the other)");
}
