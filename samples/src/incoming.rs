//! The incoming edges of a graph in compressed sparse rows, built by the host in shared memory.

#![forbid(unsafe_code)]

use anyhow::Result;
use sterna::{Runtime, Shared};

use crate::graph::Graph;

/// Incoming edges: those of node `v` come from `source[row_ptr[v] .. row_ptr[v + 1]]`.
#[derive(Debug)]
pub struct Incoming {
    /// Where each node's part of `source` starts, and at the end where the last one ends.
    pub row_ptr: Shared<u32>,
    /// Where edges come from, node by node.
    pub source: Shared<u32>,
    /// How many edges leave each node.
    pub out_degree: Shared<u32>,
}

impl Incoming {
    /// Sorts the edges of `graph` by the node that they lead to. Shared memory is filled as any slice is: nothing is built
    /// elsewhere and copied over.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn new(rt: &Runtime, graph: &Graph) -> Result<Self> {
        let nodes = graph.names.len();
        let mut row_ptr = rt.shared::<u32>(nodes + 1)?;
        let mut source = rt.shared::<u32>(graph.edges.len())?;
        let mut out_degree = rt.shared::<u32>(nodes)?;

        let ends: &mut [u32] = &mut row_ptr;
        let leaving: &mut [u32] = &mut out_degree;
        for (from, to) in &graph.edges {
            ends[*to as usize + 1] += 1;
            leaving[*from as usize] += 1;
        }
        for v in 0..nodes {
            ends[v + 1] += ends[v];
        }
        let mut free = ends[..nodes].to_vec();
        let sources: &mut [u32] = &mut source;
        for (from, to) in &graph.edges {
            let place = &mut free[*to as usize];
            sources[*place as usize] = *from;
            *place += 1;
        }
        Ok(Self { row_ptr, source, out_degree })
    }

    /// How many edges lead to node `v`.
    #[must_use]
    pub fn in_degree(&self, v: usize) -> usize {
        let ends: &[u32] = &self.row_ptr;
        (ends[v + 1] - ends[v]) as usize
    }

    /// Bytes of all three.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * (self.row_ptr.len() + self.source.len() + self.out_degree.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_by_target() {
        let rt = crate::devices::open(Some(64 << 20)).unwrap();
        let graph = Graph::parse("a\tb c\nb\tc\nc\t\nd\tc c\n").unwrap();
        let csr = Incoming::new(&rt, &graph).unwrap();
        assert_eq!(csr.row_ptr[..], [0, 0, 1, 5, 5]);
        assert_eq!(csr.source[..], [0, 0, 1, 3, 3]);
        assert_eq!(csr.out_degree[..], [2, 1, 0, 2]);
        assert_eq!((csr.in_degree(2), csr.in_degree(3)), (4, 0));
        assert_eq!(csr.bytes(), 4 * (5 + 5 + 4));
    }

    #[test]
    fn every_edge_once() {
        let rt = crate::devices::open(Some(64 << 20)).unwrap();
        let graph = Graph::debian().unwrap();
        let csr = Incoming::new(&rt, &graph).unwrap();
        let mut found: Vec<(u32, u32)> = Vec::new();
        for v in 0..graph.names.len() {
            let part = &csr.source[csr.row_ptr[v] as usize..csr.row_ptr[v + 1] as usize];
            found.extend(part.iter().map(|u| (*u, v as u32)));
        }
        let mut edges = graph.edges.clone();
        edges.sort_unstable();
        found.sort_unstable();
        assert!(edges == found);
    }
}
