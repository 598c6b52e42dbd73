//! The table *test × configuration*, printed and compared with the documentation.

use std::fmt;

use sterna::Mechanism;

use crate::runner::{chosen, mechanisms, say};
use crate::{CONFIGS, tests};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md");

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    Pass,
    /// It cannot be in this configuration, and why.
    Not(String),
    Fail(String),
}

/// The columns that were run, each with its cells test by test.
pub(crate) struct Table {
    columns: Vec<(Mechanism, Vec<Cell>)>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { columns: Vec::new() }
    }

    pub(crate) fn column(&mut self, m: Mechanism, cells: Vec<Cell>) {
        self.columns.push((m, cells));
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.columns.iter().flat_map(|(_, c)| c)
    }

    fn count(&self, f: impl Fn(&Cell) -> bool) -> usize {
        self.cells().filter(|c| f(c)).count()
    }

    /// The reasons for N, each once, in order.
    fn reasons(&self) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        for c in self.cells() {
            if let Cell::Not(why) = c
                && !out.contains(&why.as_str())
            {
                out.push(why);
            }
        }
        out
    }

    /// Fails if a cell failed, or if the documentation shows another table.
    pub(crate) fn check(&self) {
        for (m, cells) in &self.columns {
            for (i, c) in cells.iter().enumerate() {
                if let Cell::Fail(why) = c {
                    let test = tests().into_iter().filter(|t| chosen(t.name)).nth(i / CONFIGS.len()).expect("a test").name;
                    say(&format!("FAILED {test}, {m}, {}: {why}\n", CONFIGS[i % CONFIGS.len()].name));
                }
            }
        }
        assert_eq!(self.count(|c| matches!(c, Cell::Fail(_))), 0, "cells that failed");
        let partial = std::env::var_os("STERNA_HMM_ONLY").is_some() || self.columns.len() < mechanisms().len();
        if partial {
            return; // fewer columns or rows than the documentation has
        }
        let text = document(self);
        if std::env::var("STERNA_CONFORMANCE").is_ok_and(|v| v == "write") {
            std::fs::write(PATH, text).expect("docs/conformance.md");
            return;
        }
        match std::fs::read_to_string(PATH) {
            Ok(kept) => assert!(kept == text, "docs/conformance.md shows another table: run with STERNA_CONFORMANCE=write"),
            Err(e) => say(&format!("SKIP comparing with docs/conformance.md: {e}\n")),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = self.reasons();
        write!(f, "| test |")?;
        for (m, _) in &self.columns {
            for c in CONFIGS {
                write!(f, " {m}: {} |", c.name)?;
            }
        }
        writeln!(f)?;
        writeln!(f, "|---|{}", "---|".repeat(self.columns.len() * CONFIGS.len()))?;
        for (i, t) in tests().into_iter().filter(|t| chosen(t.name)).enumerate() {
            write!(f, "| `{}`{} |", t.name, if t.adapted.is_empty() { "" } else { " *" })?;
            for (_, cells) in &self.columns {
                for c in &cells[i * CONFIGS.len()..(i + 1) * CONFIGS.len()] {
                    match c {
                        Cell::Pass => write!(f, " pass |")?,
                        Cell::Fail(_) => write!(f, " **FAIL** |")?,
                        Cell::Not(why) => write!(f, " N{} |", reasons.iter().position(|r| r == why).unwrap_or(0) + 1)?,
                    }
                }
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for (i, r) in reasons.iter().enumerate() {
            writeln!(f, "N{}: {r}.", i + 1)?;
        }
        let (pass, not) = (self.count(|c| *c == Cell::Pass), self.count(|c| matches!(c, Cell::Not(_))));
        let fail = self.count(|c| matches!(c, Cell::Fail(_)));
        writeln!(
            f,
            "{} tests, {} configurations: {pass} cells pass, {not} cannot be, {fail} fail.",
            tests().len(),
            self.columns.len() * CONFIGS.len()
        )
    }
}

/// The page of the documentation.
fn document(table: &Table) -> String {
    let mut adapted = String::new();
    for t in tests().into_iter().filter(|t| !t.adapted.is_empty()) {
        adapted += &format!("- `{}`: {}.\n", t.name, t.adapted);
    }
    format!(
        "# Conformance\n\n\
         What the HMM suite (`cargo test -p sterna --test hmm`) says: each test of the Linux kernel's own suite for HMM, under the\n\
         kernel's name, then tests of what that suite leaves out. The test writes this page (`STERNA_CONFORMANCE=write`) and fails\n\
         if it says something else. A row is a test, a column a host-fault mechanism and a kind of device; *N* is a cell that\n\
         cannot be, with its reason below.\n\n\
         `private` devices have replicas of host pages, `private, host mapping` devices use host pages in place and have memory\n\
         that the host can read, `coherent` devices have memory that the host uses in place.\n\n\
         {table}\n## Where a test differs from the kernel's (*)\n\n{adapted}"
    )
}
