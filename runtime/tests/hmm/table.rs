//! The table *test × configuration*, printed and compared with the documentation.

use std::collections::BTreeMap;
use std::fmt;

use sterna::Mechanism;

use crate::kinds::{self, Config};
use crate::runner::{chosen, mechanisms, say};
use crate::tests;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md");

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    Pass,
    /// It cannot be in this configuration, and why.
    Not(String),
    Fail(String),
}

/// A mechanism and a kind of device, with a cell for each test.
struct Column {
    name: String,
    cells: Vec<Cell>,
}

/// The columns that were run.
pub(crate) struct Table {
    columns: Vec<Column>,
}

fn name(m: Mechanism, config: &Config) -> String {
    format!("{m}: {}", config.name)
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { columns: Vec::new() }
    }

    /// The columns of one mechanism; the cells are test by test, and of each test kind by kind.
    pub(crate) fn columns(&mut self, m: Mechanism, configs: &[&Config], cells: Vec<Cell>) {
        let mut columns: Vec<Column> = configs.iter().map(|c| Column { name: name(m, c), cells: Vec::new() }).collect();
        for (i, cell) in cells.into_iter().enumerate() {
            columns[i % configs.len()].cells.push(cell);
        }
        self.columns.append(&mut columns);
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        let rows = self.columns.iter().map(|c| c.cells.len()).max().unwrap_or(0);
        (0..rows).flat_map(|row| self.columns.iter().filter_map(move |c| c.cells.get(row)))
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
        for column in &self.columns {
            for (test, cell) in tests().into_iter().filter(|t| chosen(t.name)).zip(&column.cells) {
                if let Cell::Fail(why) = cell {
                    say(&format!("FAILED {}, {}: {why}\n", test.name, column.name));
                }
            }
        }
        assert_eq!(self.count(|c| matches!(c, Cell::Fail(_))), 0, "cells that failed");
        if std::env::var_os("STERNA_HMM_ONLY").is_some() {
            return; // fewer rows than the documentation has
        }
        let all: Vec<String> = mechanisms()
            .into_iter()
            .flat_map(|m| kinds::ALL.iter().filter(move |c| c.belongs(m)).map(move |c| name(m, c)))
            .collect();
        let complete = self.columns.iter().map(|c| &c.name).eq(&all);
        if std::env::var("STERNA_CONFORMANCE").is_ok_and(|v| v == "write") {
            assert!(complete, "a column is missing, so docs/conformance.md is not written");
            std::fs::write(PATH, document(self)).expect("docs/conformance.md");
            return;
        }
        match std::fs::read_to_string(PATH) {
            Ok(kept) if complete => {
                assert!(
                    kept == document(self),
                    "docs/conformance.md shows another table: run with STERNA_CONFORMANCE=write"
                );
            }
            Ok(kept) => assert_eq!(self.compare(&kept), Ok(()), "docs/conformance.md"),
            Err(e) => say(&format!("SKIP comparing with docs/conformance.md: {e}\n")),
        }
    }

    /// Compares the columns that were run; says what is shown differently.
    fn compare(&self, kept: &str) -> Result<(), String> {
        let kept = Kept::read(kept);
        for column in &self.columns {
            let rows = kept.0.get(&column.name).ok_or_else(|| format!("there is no column {}", column.name))?;
            for (test, cell) in tests().into_iter().zip(&column.cells) {
                let text = match cell {
                    Cell::Not(why) => why.as_str(),
                    _ => "pass",
                };
                let shown = rows.get(test.name).map_or("nothing", String::as_str);
                if shown != text {
                    return Err(format!("{} under {} is `{shown}` there, and here `{text}`", test.name, column.name));
                }
            }
        }
        Ok(())
    }
}

/// What the documentation says: by column and test, *pass* or why it cannot be.
struct Kept(BTreeMap<String, BTreeMap<String, String>>);

impl Kept {
    fn read(page: &str) -> Self {
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|')
                .split('|')
                .map(|c| c.trim().trim_end_matches(" *").trim_matches('`').to_string())
                .collect()
        };
        let reasons: BTreeMap<String, String> = page
            .lines()
            .filter(|l| l.starts_with('N'))
            .filter_map(|l| l.split_once(": "))
            .map(|(n, why)| (n.to_string(), why.trim_end_matches('.').to_string()))
            .collect();
        let mut rows = page.lines().filter(|l| l.starts_with('|'));
        let header = cells(rows.next().unwrap_or_default());
        let mut out: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for row in rows.map(cells) {
            for (column, cell) in header.iter().zip(&row).skip(1) {
                let said = reasons.get(cell).unwrap_or(cell).clone();
                out.entry(column.clone()).or_default().insert(row[0].clone(), said);
            }
        }
        Self(out)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = self.reasons();
        write!(f, "| test |")?;
        self.columns.iter().try_for_each(|c| write!(f, " {} |", c.name))?;
        writeln!(f)?;
        writeln!(f, "|---|{}", "---|".repeat(self.columns.len()))?;
        for (i, t) in tests().into_iter().filter(|t| chosen(t.name)).enumerate() {
            write!(f, "| `{}`{} |", t.name, if t.adapted.is_empty() { "" } else { " *" })?;
            for cell in self.columns.iter().filter_map(|c| c.cells.get(i)) {
                match cell {
                    Cell::Pass => write!(f, " pass |")?,
                    Cell::Fail(_) => write!(f, " **FAIL** |")?,
                    Cell::Not(why) => write!(f, " N{} |", reasons.iter().position(|r| r == why).unwrap_or(0) + 1)?,
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
            self.columns.len()
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
         if it says something else; where a column cannot be run, the others are compared. A row is a test, a column a host-fault\n\
         mechanism and a kind of device; *N* is a cell that cannot be, with its reason below.\n\n\
         `private` devices have replicas of host pages, `private, host mapping` devices use host pages in place and have memory\n\
         that the host can read, `coherent` devices have memory that the host uses in place: CPU devices of these kinds. `Vulkan`\n\
         is lavapipe (Mesa 25) with the page table named; grains of all devices are a page.\n\n\
         {table}\n## Where a test differs from the kernel's (*)\n\n{adapted}"
    )
}

#[cfg(test)]
mod unit {
    use super::*;

    /// Fails if a wrong cell of the documentation could go unseen where only some columns are run.
    #[test]
    fn one_column_is_compared_cell_by_cell() {
        if crate::runner::is_child() {
            return;
        }
        let config = &kinds::ALL[0];
        let cells: Vec<Cell> = tests()
            .iter()
            .enumerate()
            .map(|(i, _)| if i == 1 { Cell::Not("it is so".into()) } else { Cell::Pass })
            .collect();
        let mut table = Table::new();
        table.columns(Mechanism::Signal, &[config], cells);
        let page = document(&table);
        assert_eq!(table.compare(&page), Ok(()));
        for (right, wrong) in [("it is so.", "it is not so."), ("| pass |", "| N1 |")] {
            let other = page.replacen(right, wrong, 1);
            assert!(table.compare(&other).is_err(), "{wrong}");
        }
    }
}
