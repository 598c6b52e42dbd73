//! `bfs_step`: one level of a breadth-first search.

use sterna_hal::kernel::{EachOut, Group, Kernel, Whole, each_out, whole};

use crate::SPARSE_ROWS;
use crate::chunks::same_len;
use crate::forms::spirv;
use crate::spmv_csr::Rows;

/// The level of a node that was not reached.
pub const UNREACHED: u32 = u32::MAX;

/// How many counts a step over `nodes` nodes leaves: the length of its last buffer.
///
/// ```
/// assert_eq!(sterna_kernels::bfs_step_len(sterna_kernels::SPARSE_ROWS + 1), 2);
/// ```
#[must_use]
pub const fn bfs_step_len(nodes: usize) -> usize {
    nodes.div_ceil(SPARSE_ROWS)
}

/// One step of a breadth-first search: nodes that are [`UNREACHED`] and have an edge from a node of level `depth` get level
/// `depth + 1`; the others keep theirs.
///
/// Launched with `(&row_ptr, &source, &level, &mut next, &mut found)` for a graph of *n* nodes and *e* edges:
///
/// | buffer | elements | holds |
/// |---|---|---|
/// | `row_ptr: u32` | *n* + 1 | the edges to node *v* are `row_ptr[v] .. row_ptr[v + 1]`; never falls |
/// | `source: u32` | *e* | the node that each edge comes from |
/// | `level: u32` | *n* | levels before the step |
/// | `next: u32` | *n* | levels after it |
/// | `found: u32` | [`bfs_step_len(n)`](bfs_step_len) | how many nodes each group has reached; when all are 0 the search is over |
///
/// A node looks for a predecessor instead of being told by one, so that no two groups write to one place (S. Beamer, K. Asanović,
/// D. Patterson: Direction-Optimizing Breadth-First Search, 2012, the bottom-up step). A malformed graph fails the launch: `row_ptr`
/// of another length than *n* + 1, one that falls or points beyond `source`, a source of *n* or more.
///
/// ```
/// use sterna_kernels::{UNREACHED, bfs_step, reference};
/// assert_eq!(bfs_step(0).params().len(), 5);
/// // 0 → 1 → 2
/// let next = reference::bfs_step(0, &[0, 0, 1, 2], &[0, 1], &[0, UNREACHED, UNREACHED]);
/// assert_eq!(next, [0, 1, UNREACHED]);
/// ```
///
/// # Panics
/// If `depth + 1` would be [`UNREACHED`].
#[must_use]
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
pub fn bfs_step(depth: u32) -> Kernel<(Whole<u32>, Whole<u32>, Whole<u32>, EachOut<u32>, EachOut<u32>)> {
    assert!(depth < UNREACHED - 1, "a search is less than {} steps deep", UNREACHED - 1);
    let params = (whole(), whole(), whole(), each_out(SPARSE_ROWS), each_out(1));
    spirv!(Kernel::new("bfs_step", depth, params, body), "bfs_step")
}

fn body(group: Group, depth: u32, row_ptr: &[u32], source: &[u32], level: &[u32], next: &mut [u32], found: &mut [u32]) {
    let rows = Rows::of("bfs_step", group, row_ptr, next.len());
    if !next.is_empty() {
        // The rows have made sure that row_ptr is one longer than `next` as a whole.
        same_len("bfs_step", level.len() + 1, row_ptr.len());
    }
    let first = group.index() * SPARSE_ROWS;
    let mut reached = 0;
    for (v, (next, edges)) in next.iter_mut().zip(rows.ranges(source.len())).enumerate() {
        let at = |node: usize| level.get(node).copied().unwrap_or_else(|| no_node(node, level.len()));
        *next = at(first + v);
        if *next == UNREACHED && source[edges].iter().any(|u| at(*u as usize) == depth) {
            *next = depth + 1;
            reached += 1;
        }
    }
    crate::reduce::put("bfs_step", next.len(), found, reached);
}

#[cold]
#[inline(never)]
fn no_node(node: usize, nodes: usize) -> ! {
    panic!("bfs_step: node {node} of {nodes}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, lens, run};

    fn step(depth: u32, row_ptr: &[u32], source: &[u32], level: &[u32], seed: u64) -> (Vec<u32>, u32) {
        let (mut next, mut found) = (vec![0_u32; level.len()], vec![0_u32; bfs_step_len(level.len())]);
        let bufs = [Buf::read(row_ptr), Buf::read(source), Buf::read(level), Buf::write(&mut next), Buf::write(&mut found)];
        run(&bfs_step(depth), seed, &bufs);
        (next, found.iter().sum())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn a_search_equals_the_reference(nodes in lens(SPARSE_ROWS), seed: u64) {
            prop_assume!(nodes > 0);
            let (row_ptr, source) = Random(seed).graph(nodes, nodes);
            let mut level = vec![UNREACHED; nodes];
            level[seed as usize % nodes] = 0;
            for depth in 0..30 {
                let (next, found) = step(depth, &row_ptr, &source, &level, seed);
                let expect = reference::bfs_step(depth, &row_ptr, &source, &level);
                prop_assert_eq!(found as usize, expect.iter().zip(&level).filter(|(a, b)| a != b).count());
                prop_assert_eq!(&next, &expect);
                level = next;
                if found == 0 {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_line_is_walked_along() {
        let (row_ptr, source) = ([0, 0, 1, 2, 3], [0, 1, 2]);
        let mut level = vec![0, UNREACHED, UNREACHED, UNREACHED];
        for depth in 0..3 {
            level = step(depth, &row_ptr, &source, &level, u64::from(depth)).0;
        }
        assert_eq!(level, [0, 1, 2, 3]);
        assert_eq!(step(3, &row_ptr, &source, &level, 0), (vec![0, 1, 2, 3], 0));
    }

    #[test]
    #[should_panic(expected = "node 9 of 2")]
    fn an_edge_from_nowhere_fails() {
        step(0, &[0, 1, 1], &[9], &[UNREACHED, 0], 0);
    }

    #[test]
    #[should_panic(expected = "row_ptr has 2 elements")]
    fn a_short_row_ptr_fails() {
        step(0, &[0, 1], &[0], &[UNREACHED, 0], 0);
    }
}
