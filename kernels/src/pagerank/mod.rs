//! PageRank by power iteration, in two kernels a round.
//!
//! The algorithm is that of L. Page, S. Brin, R. Motwani, T. Winograd: *The PageRank Citation Ranking: Bringing Order to the
//! Web*, Stanford InfoLab 1999-66. A reader follows a random link with probability *d* (`damping`) and otherwise goes to any of
//! the *n* nodes; so he does at a node without links (*dangling*), whose rank would leak away otherwise:
//!
//! ```text
//! next[v] = (1 − d)/n + d · (D/n + Σ rank[u]/out_degree[u])       u: the nodes that link to v
//!                                                                D: the sum of rank over dangling nodes
//! ```
//!
//! *Pull form*: each node gathers over its incoming edges, so each has one writer and no atomic operation is needed. The division
//! happens once a node rather than once an edge, in a kernel of its own, which also adds up *D*: the host need not look at
//! anything between the rounds, and all of them can be launched at once.

mod rust;

use sterna_hal::kernel::{Each, EachOut, Kernel, Whole, each, each_out, whole};

use crate::forms::spirv;
use crate::{REDUCE_CHUNK, SPARSE_ROWS};

/// The first half of a round: what each node hands to each of its successors, and the rank that dangling nodes hold.
///
/// Launched with `(&rank, &out_degree, &mut contribution, &mut dangling)`. For *n* nodes the first three have *n* elements, and
/// `dangling` has [`reduce_sum_len(n)`](crate::reduce_sum_len): it is a list of partial sums, which [`pagerank_step`] adds up.
///
/// `contribution[u] = rank[u] / out_degree[u]`, or 0 if node *u* has no outgoing edge. Edges count with their multiplicity.
/// The rank to begin with is 1/*n* everywhere: [`fill(1.0 / n as f32)`](crate::fill).
///
/// ```
/// use sterna_kernels::pagerank_contributions;
/// assert_eq!(pagerank_contributions().params().len(), 4);
/// ```
#[must_use]
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
pub fn pagerank_contributions() -> Kernel<(Each<f32>, Each<u32>, EachOut<f32>, EachOut<f32>)> {
    let params = (each(REDUCE_CHUNK), each(REDUCE_CHUNK), each_out(REDUCE_CHUNK), each_out(1));
    spirv!(Kernel::new("pagerank_contributions", (), params, rust::contributions), "contributions")
}

/// The second half of a round: each node's next rank.
///
/// Launched with `(&row_ptr, &source, &contribution, &dangling, &mut next)`. `row_ptr` (*n* + 1 elements) and `source` (one
/// element an edge) list the *incoming* edges: those of node *v* come from `source[row_ptr[v] .. row_ptr[v + 1]]`. The next two
/// are what [`pagerank_contributions`] wrote; of `dangling` only the sum counts, so one element that the host wrote does as well.
/// `next` has *n* elements, and becomes `rank` in the next round. Sums are carried in `f64`; ranks are `f32`, and their total
/// stays 1 to within a few parts in 10⁷ a round.
///
/// A malformed graph fails the launch: see [`spmv_csr`](crate::spmv_csr), whose layout this is. So does a `contribution` whose
/// length is not that of `next`.
///
/// ```
/// use sterna_kernels::{pagerank_step, reference};
/// assert_eq!(pagerank_step(0.85).name(), "pagerank_step");
///
/// // 0 → 1, and 1 is dangling.
/// let next = reference::pagerank_step(0.85, &[0, 0, 1], &[0], &[1, 0], &[0.5, 0.5]);
/// assert!((next[0] - 0.2875).abs() < 1e-7 && (next[1] - 0.7125).abs() < 1e-7);
/// ```
///
/// # Panics
/// If `damping` is not within 0 to 1. The authors used 0.85.
#[must_use]
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
pub fn pagerank_step(damping: f32) -> Kernel<(Whole<u32>, Whole<u32>, Whole<f32>, Whole<f32>, EachOut<f32>)> {
    assert!((0.0..=1.0).contains(&damping), "damping is a probability, not {damping}");
    let params = (whole(), whole(), whole(), whole(), each_out(SPARSE_ROWS));
    spirv!(Kernel::new("pagerank_step", damping, params, rust::step), "step")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Buf, Random, lens, run};
    use crate::{reduce_sum_len, reference};

    fn round(damping: f32, row_ptr: &[u32], source: &[u32], out_degree: &[u32], rank: &[f32], seed: u64) -> Vec<f32> {
        let n = rank.len();
        let zeros = |len| vec![0.0_f32; len];
        let (mut contribution, mut dangling, mut next) = (zeros(n), zeros(reduce_sum_len(n)), zeros(n));
        let bufs = [Buf::read(rank), Buf::read(out_degree), Buf::write(&mut contribution), Buf::write(&mut dangling)];
        run(&pagerank_contributions(), seed, &bufs);
        let inputs = [Buf::read(row_ptr), Buf::read(source), Buf::read(&contribution), Buf::read(&dangling)];
        let [a, b, c, d] = inputs;
        run(&pagerank_step(damping), seed, &[a, b, c, d, Buf::write(&mut next)]);
        next
    }

    fn out_degrees(nodes: usize, source: &[u32]) -> Vec<u32> {
        let mut out = vec![0; nodes];
        source.iter().for_each(|u| out[*u as usize] += 1);
        out
    }

    fn check(nodes: usize, seed: u64, damping: f32) {
        let (row_ptr, source) = Random(seed).graph(nodes, nodes);
        let out_degree = out_degrees(nodes, &source);
        let mut rank = vec![1.0 / nodes as f32; nodes];
        let mut expect = vec![1.0 / nodes as f64; nodes];
        for _ in 0..4 {
            rank = round(damping, &row_ptr, &source, &out_degree, &rank, seed);
            expect = reference::pagerank_step(damping, &row_ptr, &source, &out_degree, &expect);
        }
        for (r, e) in rank.iter().zip(&expect) {
            assert!((f64::from(*r) - e).abs() <= 4e-6 * e, "{r} for {e}");
        }
        let total: f64 = rank.iter().copied().map(f64::from).sum();
        assert!(nodes == 0 || (total - 1.0).abs() < 1e-5, "rank leaks: {total}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn equals_the_reference(nodes in lens(SPARSE_ROWS), seed: u64, damping in 0.0_f32..=1.0) {
            check(nodes, seed, damping);
        }
    }

    #[test]
    fn equals_the_reference_where_dangling_has_several_parts() {
        for nodes in [REDUCE_CHUNK - 1, REDUCE_CHUNK, REDUCE_CHUNK + 1] {
            check(nodes, nodes as u64, 0.85);
        }
    }

    #[test]
    fn a_ring_stands_still_and_dangling_nodes_share_out() {
        let still = round(0.85, &[0, 1, 2, 3], &[2, 0, 1], &[1, 1, 1], &[1.0 / 3.0; 3], 0);
        assert!(still.iter().all(|r| (r - 1.0 / 3.0).abs() < 1e-7));
        let shared = round(0.5, &[0, 0, 0], &[], &[0, 0], &[0.9, 0.1], 0);
        assert!(shared.iter().all(|r| (r - 0.5).abs() < 1e-7));
    }

    #[test]
    #[should_panic(expected = "column 3 of 2")]
    fn an_edge_from_nowhere_fails() {
        round(0.85, &[0, 1, 1], &[3], &[1, 0], &[0.5, 0.5], 0);
    }

    #[test]
    #[should_panic(expected = "damping is a probability")]
    fn a_damping_of_nan_is_refused() {
        let _ = pagerank_step(f32::NAN);
    }
}
