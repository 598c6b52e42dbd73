//! PageRank: which packages the others lean on, with the stock kernels, until nothing changes any more.

#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use sterna::kernels::{fill, pagerank_contributions, pagerank_step, reduce_abs_diff, reduce_sum_len, reference};
use sterna::{Runtime, Shared};

use crate::graph::Graph;
use crate::incoming::Incoming;
use crate::moved::Moved;
use crate::places;

/// The probability to follow an edge rather than to jump anywhere; the authors' choice.
const DAMPING: f32 = 0.85;
/// Rounds end when the ranks change by less than this in all; they sum up to 1.
const ENOUGH: f64 = 1e-6;
/// How far the ranks may be from those of the reference, in all. They are `f32`, the reference's are `f64`.
const TOLERANCE: f64 = 1e-5;
const MOST_ROUNDS: usize = 200;

/// The ranks of a graph's nodes.
#[derive(Debug)]
pub struct Ranking {
    /// The edges.
    pub incoming: Incoming,
    rank: Shared<f32>,
    /// Rounds it took.
    pub rounds: usize,
    /// What moved.
    pub moved: Moved,
    /// Where the pages of edges and ranks were at the end.
    pub places: [String; 2],
}

/// A place in the ranking.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its rank.
    pub rank: f32,
    /// How many edges lead to it.
    pub edges: usize,
}

/// Ranks the nodes of `graph`.
///
/// # Errors
/// Those of the runtime; ranks that do not settle.
pub fn run(rt: &Runtime, graph: &Graph) -> Result<Ranking> {
    let nodes = graph.names.len();
    let incoming = Incoming::new(rt, graph)?;
    let before = rt.stats();
    let mut rank = rt.shared::<f32>(nodes)?;
    let mut next = rt.shared::<f32>(nodes)?;
    let mut contribution = rt.shared::<f32>(nodes)?;
    let mut dangling = rt.shared::<f32>(reduce_sum_len(nodes))?;
    let mut change = rt.shared::<f32>(reduce_sum_len(nodes))?;

    let Incoming { row_ptr, source, out_degree } = &incoming;
    rt.launch(&fill(1.0 / nodes as f32), (&mut rank,))?;
    let mut rounds = 0;
    loop {
        rounds += 1;
        rt.launch(&pagerank_contributions(), (&rank, out_degree, &mut contribution, &mut dangling))?;
        rt.launch(&pagerank_step(DAMPING), (row_ptr, source, &contribution, &dangling, &mut next))?;
        rt.launch(&reduce_abs_diff(), (&rank, &next, &mut change))?;
        std::mem::swap(&mut rank, &mut next);
        // Looking at a shared value waits for what writes it, and nothing else comes home.
        let changed: f64 = change.iter().copied().map(f64::from).sum();
        if changed < ENOUGH {
            break;
        }
        ensure!(rounds < MOST_ROUNDS, "ranks still change by {changed:.1e} after {rounds} rounds");
    }
    let places = [places::bar(source, 16)?, places::bar(&rank, 16)?];
    Ok(Ranking { moved: Moved::since(rt, &before), incoming, rank, rounds, places })
}

/// The numbers of the `n` highest ranks; equal ones in the order of their numbers.
fn best<R: PartialOrd>(rank: &[R], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank.len()).collect();
    order.sort_by(|a, b| rank[*b].partial_cmp(&rank[*a]).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b)));
    order.truncate(n);
    order
}

impl Ranking {
    /// The `n` highest places.
    #[must_use]
    pub fn top<'a>(&self, graph: &'a Graph, n: usize) -> Vec<Entry<'a>> {
        let entry = |v: usize| Entry { name: &graph.names[v], rank: self.rank[v], edges: self.incoming.in_degree(v) };
        best(&self.rank, n).into_iter().map(entry).collect()
    }

    /// Compares with a plain computation in `f64`, and says what was compared.
    ///
    /// # Errors
    /// Ranks that do not sum up to 1, or are not those of the plain computation.
    pub fn check(&self) -> Result<String> {
        let sum = reference::sum(&self.rank);
        ensure!((sum - 1.0).abs() < TOLERANCE, "ranks sum up to {sum}");
        let Incoming { row_ptr, source, out_degree } = &self.incoming;
        let mut expect = vec![1.0 / self.rank.len() as f64; self.rank.len()];
        for _ in 0..self.rounds {
            expect = reference::pagerank_step(DAMPING, row_ptr, source, out_degree, &expect);
        }
        let off: f64 = self.rank.iter().zip(&expect).map(|(a, b)| (f64::from(*a) - b).abs()).sum();
        ensure!(off < TOLERANCE, "ranks differ by {off:.1e} in all from those of a plain computation");
        ensure!(best(&self.rank, 10) == best(&expect, 10), "the first ten are not those of a plain computation");
        Ok(format!("ranks sum up to 1 and differ by {off:.0e} in all from a plain f64 computation; the same first ten"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_all_lean_on_is_first() {
        let rt = crate::devices::open(Some(64 << 20)).unwrap();
        let graph = Graph::parse("app\tlib base\ntool\tlib\nlib\tbase\nbase\t\n").unwrap();
        let ranking = run(&rt, &graph).unwrap();
        ranking.check().unwrap();
        let top = ranking.top(&graph, 2);
        assert_eq!((top[0].name, top[0].edges), ("base", 2));
        assert_eq!((top[1].name, top[1].edges), ("lib", 2));
    }

    #[test]
    fn order_of_equals() {
        assert_eq!(best(&[1.0, 3.0, 3.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(best(&[1.0], 10), [0]);
    }
}
