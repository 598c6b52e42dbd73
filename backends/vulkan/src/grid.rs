//! Which workgroups a launch runs: linear numbers of a grid, as dispatches.

use smallvec::SmallVec;
use sterna_hal::{DeviceError, Groups};
use sterna_host::sys::invalid;

/// Groups of a launch: numbers of workgroups beyond the last group must not wrap.
const MOST_GROUPS: u64 = u32::MAX as u64 - (1 << 17);

/// The stretches of groups that a launch runs.
pub(crate) fn stretches_of(grid: [u32; 3], groups: Groups<'_>) -> Result<SmallVec<[(u32, u32); 1]>, DeviceError> {
    let count = grid.iter().try_fold(1_u64, |n, g| n.checked_mul(u64::from(*g))).filter(|n| (1..=MOST_GROUPS).contains(n));
    let whole = count.filter(|_| grid[1] <= 0xFFFF && grid[2] <= 0xFFFF);
    let count = whole.ok_or_else(|| {
        let most = format!("it has 1 to {MOST_GROUPS} groups, and up to 65535 in y and z");
        invalid("submit", format!("a grid of {grid:?} groups; {most}"))
    })? as u32;
    match groups {
        Groups::All => Ok(smallvec::smallvec![(0, count)]),
        Groups::Range(first, end) if first == end && end <= count => Ok(SmallVec::new()),
        Groups::Range(first, end) if first < end && end <= count => Ok(smallvec::smallvec![(first, end)]),
        Groups::List(list) if list.iter().all(|n| *n < count) => Ok(list.iter().map(|n| (*n, n + 1)).collect()),
        Groups::Range(..) | Groups::List(_) => Err(invalid("submit", format!("groups outside a grid of {count}"))),
    }
}

/// So many workgroups as a rectangle within the device's limits, with few to spare.
pub(crate) fn fold(count: u32, most: [u32; 3]) -> [u32; 2] {
    let rows = count.div_ceil(most[0]);
    [count.div_ceil(rows), rows]
}

/// A box of workgroups: the first, and how many in each direction.
pub(crate) type Part = ([u32; 3], [u32; 3]);

/// Stretches of linear numbers as boxes of a grid. A stretch that is not the whole grid is cut at the ends of rows.
pub(crate) fn boxes(grid: [u32; 3], stretches: &[(u32, u32)]) -> Vec<Part> {
    let [width, height, depth] = grid;
    let all = width * height * depth;
    let mut parts = Vec::new();
    for &(first, end) in stretches {
        if (first, end) == (0, all) {
            parts.push(([0; 3], grid));
            continue;
        }
        let mut at = first;
        while at < end {
            let x = at % width;
            let count = (width - x).min(end - at);
            parts.push(([x, at / width % height, at / width / height], [count, 1, 1]));
            at += count;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_fold_with_few_to_spare() {
        let most = [65535; 3];
        for count in [1, 2, 65535, 65536, 1 << 20, 4_000_000_000] {
            let [x, y] = fold(count, most);
            assert!(x <= most[0] && y <= most[1]);
            let all = u64::from(x) * u64::from(y);
            assert!(all >= u64::from(count) && all - u64::from(count) < u64::from(y), "{count}: {x}·{y}");
        }
    }

    #[test]
    fn grids_that_make_no_sense_are_refused() {
        for grid in [[0, 1, 1], [u32::MAX, 1, 1], [1, 65536, 1], [70000, 70000, 1]] {
            assert!(stretches_of(grid, Groups::All).is_err(), "{grid:?}");
        }
        assert!(stretches_of([4, 1, 1], Groups::Range(2, 5)).is_err());
        assert!(stretches_of([4, 1, 1], Groups::List(&[4])).is_err());
        assert_eq!(stretches_of([4, 2, 1], Groups::All).unwrap().as_slice(), [(0, 8)]);
    }

    #[test]
    fn boxes_cover_stretches_once() {
        for (grid, stretch) in
            [([7, 1, 1], (2, 5)), ([3, 4, 2], (2, 23)), ([3, 4, 2], (0, 24)), ([1, 5, 1], (1, 4)), ([4, 4, 4], (5, 5))]
        {
            let mut seen = vec![0; 64];
            for ([x, y, z], [w, h, d]) in boxes(grid, &[stretch]) {
                for (k, j, i) in (0..d).flat_map(|k| (0..h).flat_map(move |j| (0..w).map(move |i| (k, j, i)))) {
                    assert!(x + i < grid[0] && y + j < grid[1] && z + k < grid[2]);
                    seen[(x + i + grid[0] * (y + j + grid[1] * (z + k))) as usize] += 1;
                }
            }
            let expect: Vec<i32> = (0..64).map(|n| i32::from((stretch.0..stretch.1).contains(&n))).collect();
            assert_eq!(seen, expect, "{grid:?} {stretch:?}");
        }
    }
}
