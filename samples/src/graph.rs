//! A graph of named nodes, read from text: one line a node, `name<TAB>target target …`.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;

use crate::input;

/// Who depends on whom in Debian 12; see `data/README.md`.
const DEBIAN: &[u8] = include_bytes!("../data/debian-depends.tsv.gz");

/// A graph of named nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Graph {
    /// The nodes' names.
    pub names: Vec<String>,
    /// Edges, from one node to another; both by number.
    pub edges: Vec<(u32, u32)>,
}

impl Graph {
    /// The packages of Debian 12: an edge leads from a package to each one that it depends on.
    ///
    /// # Errors
    /// None, unless the data that were compiled in are broken.
    pub fn debian() -> Result<Self> {
        Self::from_bytes(DEBIAN).context("the Debian packages that were compiled in")
    }

    /// A graph from a file, plain or compressed with gzip.
    ///
    /// # Errors
    /// A file that cannot be read, and what [`parse`](Self::parse) refuses.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(&input::read(path)?).with_context(|| path.display().to_string())
    }

    /// A graph from the contents of a file, plain or compressed with gzip.
    ///
    /// # Errors
    /// What is neither text nor gzip, and what [`parse`](Self::parse) refuses.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            // A few bytes of gzip can stand for any number.
            return Self::unpacked(bytes, input::LONGEST);
        }
        Self::parse(std::str::from_utf8(bytes).context("neither text nor gzip")?)
    }

    fn unpacked(bytes: &[u8], longest: u64) -> Result<Self> {
        let mut text = Vec::new();
        GzDecoder::new(bytes).take(longest + 1).read_to_end(&mut text).context("cannot unpack it")?;
        ensure!(text.len() as u64 <= longest, "unpacked it has more than {longest} bytes");
        Self::parse(std::str::from_utf8(&text).context("unpacked it is no text")?)
    }

    /// A graph from text.
    ///
    /// # Errors
    /// With the line's number: a line without a tab, a name that is empty, contains white space or comes twice, a target that
    /// no line has. A graph without nodes or without edges.
    ///
    /// ```
    /// let graph = sterna_samples::graph::Graph::parse("vim\tlibc6 vim-common\nvim-common\t\nlibc6\t\n").unwrap();
    /// assert_eq!(graph.edges, [(0, 2), (0, 1)]);
    /// let error = sterna_samples::graph::Graph::parse("vim libc6\n").unwrap_err();
    /// assert_eq!(error.to_string(), "line 1: no tab between name and targets");
    /// ```
    pub fn parse(text: &str) -> Result<Self> {
        let mut numbers = HashMap::new();
        let mut lines = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let at = i + 1;
            let Some((name, targets)) = line.split_once('\t') else { bail!("line {at}: no tab between name and targets") };
            ensure!(!name.is_empty() && !name.contains(char::is_whitespace), "line {at}: {name:?} is no name");
            let number = u32::try_from(i).context("more than 2^32 nodes")?;
            if let Some(first) = numbers.insert(name, number) {
                bail!("line {at}: {name} has line {} already", first + 1);
            }
            lines.push((name, targets));
        }
        let mut edges = Vec::new();
        for (from, (name, targets)) in lines.iter().enumerate() {
            for target in targets.split_ascii_whitespace() {
                let Some(to) = numbers.get(target) else {
                    bail!("line {}: {name} leads to {target}, which has no line", from + 1)
                };
                edges.push((from as u32, *to));
            }
        }
        ensure!(!edges.is_empty(), "a graph without edges");
        ensure!(u32::try_from(edges.len()).is_ok(), "more than 2^32 edges");
        Ok(Self { names: lines.iter().map(|(name, _)| (*name).to_string()).collect(), edges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_is_whole() {
        let g = Graph::debian().unwrap();
        assert_eq!((g.names.len(), g.edges.len()), (63_436, 244_451));
    }

    #[test]
    fn what_is_refused_and_how() {
        let cases = [
            ("a\tb\nb\t\nbroken\n", "line 3: no tab between name and targets"),
            ("a\tb\nb\t\na\t\n", "line 3: a has line 1 already"),
            ("a\tb c\nb\t\n", "line 1: a leads to c, which has no line"),
            ("\tb\nb\t\n", "line 1: \"\" is no name"),
            ("a b\t\n", "line 1: \"a b\" is no name"),
            ("a\t\n", "a graph without edges"),
            ("", "a graph without edges"),
        ];
        for (text, expect) in cases {
            assert_eq!(Graph::parse(text).unwrap_err().to_string(), expect, "{text:?}");
        }
    }

    #[test]
    fn files_that_are_no_graph() {
        assert!(Graph::from_bytes(&[0xff, 0xfe]).unwrap_err().to_string().contains("neither text nor gzip"));
        assert!(Graph::from_bytes(&DEBIAN[..1000]).unwrap_err().to_string().contains("unpack"));
        assert_eq!(Graph::unpacked(DEBIAN, 1000).unwrap_err().to_string(), "unpacked it has more than 1000 bytes");
        assert!(Graph::from_file(Path::new("no/such/file")).unwrap_err().to_string().contains("no/such/file"));
    }
}
