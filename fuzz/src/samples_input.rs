//! What the samples read: graphs, pictures, sizes on a command line.
//!
//! The first byte chooses the parser.

use anyhow::Result;
use sterna_samples::graph::Graph;
use sterna_samples::sky;

/// Gives the bytes to a parser.
///
/// # Panics
/// If a parser panics, an error has no text, or what was read is not what was written.
pub fn run(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    match which % 3 {
        0 => {
            if let Some(graph) = refusal(Graph::from_bytes(data)) {
                again(&graph);
            }
        }
        1 => {
            if let Some(picture) = refusal(sky::from_bytes(data)) {
                assert_eq!(picture.as_raw().len(), picture.width() as usize * picture.height() as usize * 3);
            }
        }
        _ => {
            if let Some(n) = std::str::from_utf8(data)
                .ok()
                .and_then(|text| refusal(sterna::parse_bytes(text).map_err(anyhow::Error::msg)))
            {
                assert_eq!(sterna::parse_bytes(&n.to_string()).expect("a plain number"), n);
            }
        }
    }
}

fn refusal<T>(read: Result<T>) -> Option<T> {
    read.map_err(|e| assert!(!e.to_string().is_empty(), "an error without a text")).ok()
}

/// A graph that was read, written and read again, is the same.
fn again(graph: &Graph) {
    let mut lines: Vec<String> = graph.names.iter().map(|name| format!("{name}\t")).collect();
    for (from, to) in &graph.edges {
        let line = &mut lines[*from as usize];
        line.push(' ');
        line.push_str(&graph.names[*to as usize]);
    }
    let read = Graph::parse(&lines.join("\n")).expect("a graph that was read before");
    assert!(read == *graph, "{graph:?} became {read:?}");
}
