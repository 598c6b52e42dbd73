//! Of kernels over whole numbers and places.

/// `y[i] = x[index[i]]`, as [`gather`](crate::gather).
///
/// ```
/// assert_eq!(sterna_kernels::reference::gather(&[1, 1], &[5, 6]), [6, 6]);
/// ```
#[must_use]
pub fn gather<T: Copy>(index: &[u32], x: &[T]) -> Vec<T> {
    index.iter().map(|i| x[*i as usize]).collect()
}

/// Running sums modulo 2³², as [`scan`](crate::scan) and then [`scan_add`](crate::scan_add).
///
/// ```
/// assert_eq!(sterna_kernels::reference::scan(&[1, 2, 3]), [1, 3, 6]);
/// ```
#[must_use]
pub fn scan(x: &[u32]) -> Vec<u32> {
    let sum = |sum: &mut u32, x: &u32| {
        *sum = sum.wrapping_add(*x);
        Some(*sum)
    };
    x.iter().scan(0, sum).collect()
}

/// How often each value below `bins` occurs, as [`histogram`](crate::histogram) with counts that begin at 0.
///
/// ```
/// assert_eq!(sterna_kernels::reference::histogram(2, &[1, 1, 0]), [1, 2]);
/// ```
#[must_use]
pub fn histogram(bins: usize, x: &[u32]) -> Vec<u32> {
    let mut counts = vec![0; bins];
    for v in x {
        counts[*v as usize] += 1;
    }
    counts
}

/// Levels after one step of a breadth-first search, as [`bfs_step`](crate::bfs_step).
///
/// `row_ptr` and `source` list the incoming edges of each node.
///
/// ```
/// use sterna_kernels::UNREACHED;
/// assert_eq!(sterna_kernels::reference::bfs_step(0, &[0, 0, 1], &[0], &[0, UNREACHED]), [0, 1]);
/// ```
#[must_use]
pub fn bfs_step(depth: u32, row_ptr: &[u32], source: &[u32], level: &[u32]) -> Vec<u32> {
    assert_eq!(row_ptr.len(), level.len() + 1);
    let mut next = level.to_vec();
    for v in 0..level.len() {
        for u in &source[row_ptr[v] as usize..row_ptr[v + 1] as usize] {
            if level[v] == crate::UNREACHED && level[*u as usize] == depth {
                next[v] = depth + 1;
            }
        }
    }
    next
}
