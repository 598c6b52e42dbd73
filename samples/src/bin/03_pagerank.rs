//! Which of 63,436 Debian packages do the others lean on? PageRank over their dependencies, with a graph that the host builds in
//! shared memory.
//!
//! `cargo run --release --bin 03_pagerank -- --memory 2MiB`

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use sterna_samples::graph::Graph;
use sterna_samples::say;
use sterna_samples::{devices, pagerank, report};

/// Ranks Debian packages, or the nodes of any graph, by PageRank, and checks the ranks.
#[derive(Parser)]
struct Options {
    /// Another graph: a file with one line a node, `name<TAB>target target …`, plain or gzip
    #[arg(long)]
    graph: Option<PathBuf>,
    /// Device memory, such as 2MiB
    #[arg(long, value_parser = sterna::parse_bytes)]
    memory: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let (options, start) = (Options::parse(), Instant::now());
    let graph = options.graph.as_deref().map_or_else(Graph::debian, Graph::from_file)?;
    let rt = devices::open(options.memory)?;
    let computing = Instant::now();
    let ranking = pagerank::run(&rt, &graph)?;
    let took = computing.elapsed();

    say!("{} nodes, {} edges", report::count(graph.names.len()), report::count(graph.edges.len()));
    say!("{:>10}  {:>14}  name", "rank", "edges to it");
    for e in ranking.top(&graph, 10) {
        say!("{:>10.6}  {:>14}  {}", e.rank, report::count(e.edges), e.name);
    }
    say!("{} rounds in {}", ranking.rounds, report::time(took));
    say!("moved: {}", ranking.moved);
    report::checked(&ranking.check()?, start);
    Ok(())
}
