//! Lines of the table: what a row says of one figure, and how that travels from the row's process and is printed.

use std::fmt::Write as _;

use crate::measure::{Runs, Unit};

/// What became of a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The target is met.
    Pass,
    /// The target is missed.
    Miss,
    /// A result is wrong: bytes, counts or contents that must be exact are not.
    Wrong,
    /// There is no target.
    Info,
    /// It cannot be measured here.
    Skipped,
}

const WORDS: [(Verdict, &str); 5] = [
    (Verdict::Pass, "pass"),
    (Verdict::Miss, "MISS"),
    (Verdict::Wrong, "WRONG"),
    (Verdict::Info, ""),
    (Verdict::Skipped, "not measured"),
];

/// One line of the table.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Line {
    /// What it is about, figure, floor, ratio, target.
    cells: [String; 5],
    pub(crate) verdict: Verdict,
}

const HEAD: [&str; 6] = ["", "sterna", "floor", "ratio", "target", ""];

impl Line {
    pub(crate) fn new(verdict: Verdict, what: impl Into<String>) -> Self {
        Self { cells: [what.into(), String::new(), String::new(), String::new(), String::new()], verdict }
    }

    pub(crate) fn figure(mut self, text: impl Into<String>) -> Self {
        self.cells[1] = text.into();
        self
    }

    pub(crate) fn floor(mut self, text: impl Into<String>) -> Self {
        self.cells[2] = text.into();
        self
    }

    pub(crate) fn ratio(mut self, text: impl Into<String>) -> Self {
        self.cells[3] = text.into();
        self
    }

    pub(crate) fn target(mut self, text: impl Into<String>) -> Self {
        self.cells[4] = text.into();
        self
    }

    /// As one line of text, for the parent.
    fn print(&self) -> String {
        let clean = self.cells.clone().map(|c| c.replace(['\t', '\n', '|'], " "));
        format!("line\t{:?}\t{}", self.verdict, clean.join("\t"))
    }

    /// The opposite of `print`; `None` for other text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('\t');
        if parts.next() != Some("line") {
            return None;
        }
        let name = parts.next()?;
        let verdict = WORDS.iter().map(|w| w.0).find(|v| format!("{v:?}") == name)?;
        let cells: Vec<String> = parts.map(str::to_string).collect();
        Some(Self { cells: cells.try_into().ok()?, verdict })
    }
}

/// The lines as a table that also reads well as plain text.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let rows: Vec<[&str; 6]> = std::iter::once(HEAD)
        .chain(lines.iter().map(|l| {
            let word = WORDS.iter().find(|w| w.0 == l.verdict).map_or("", |w| w.1);
            let [a, b, c, d, e] = &l.cells;
            [a, b, c, d, e, word]
        }))
        .collect();
    let width: [usize; 6] = std::array::from_fn(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0).max(3));
    let mut out = String::new();
    for (n, row) in rows.iter().enumerate() {
        for (cell, w) in row.iter().zip(width) {
            let _ = write!(out, "| {cell:<w$} ");
        }
        out.push_str("|\n");
        if n == 0 {
            width.iter().for_each(|w| {
                let _ = write!(out, "|{:-<1$}", "", w + 2);
            });
            out.push_str("|\n");
        }
    }
    out
}

/// Where a row puts its lines: each goes to the parent at once, so that a row that dies leaves what it had.
#[derive(Debug)]
pub(crate) struct Sheet(());

impl Sheet {
    pub(crate) fn for_parent() -> Self {
        Self(())
    }

    pub(crate) fn add(&mut self, line: &Line) {
        println!("{}", line.print());
    }

    /// A figure beside its floor, round by round: the ratio of times is the median of the rounds' ratios.
    pub(crate) fn at_most(&mut self, what: &str, unit: Unit, ours: &Runs, floor: &Runs, most: Option<f64>) {
        let ratio = ours.over(floor);
        let line = Line::new(judge(most.map(|m| ratio <= m)), what).ratio(format!("{ratio:.2}"));
        self.beside(line.target(most.map_or(String::new(), |m| format!("≤ {m}"))), unit, ours, floor);
    }

    /// As [`at_most`](Self::at_most) for speeds, where more is better.
    pub(crate) fn at_least(&mut self, what: &str, unit: Unit, ours: &Runs, floor: &Runs, least: Option<f64>) {
        let ratio = ours.over(floor);
        let line = Line::new(judge(least.map(|l| ratio >= l)), what).ratio(format!("{ratio:.2}"));
        self.beside(line.target(least.map_or(String::new(), |l| format!("≥ {l}"))), unit, ours, floor);
    }

    /// A figure beside its floor, with a target for the difference.
    pub(crate) fn above(&mut self, what: &str, unit: Unit, ours: &Runs, floor: &Runs, most: f64) {
        let above = ours.minus(floor);
        let line = Line::new(judge(Some(above <= most)), what).ratio(format!("{:.2}", ours.over(floor)));
        self.beside(line.target(format!("≤ {} above; is {}", unit.show(most), unit.show(above))), unit, ours, floor);
    }

    /// A figure beside its floor, with a target for the figure alone.
    pub(crate) fn within(&mut self, what: &str, unit: Unit, ours: &Runs, floor: &Runs, most: Option<f64>) {
        let line = Line::new(judge(most.map(|m| ours.median() <= m)), what).ratio(format!("{:.2}", ours.over(floor)));
        self.beside(line.target(most.map_or(String::new(), |m| format!("≤ {}", unit.show(m)))), unit, ours, floor);
    }

    fn beside(&mut self, line: Line, unit: Unit, ours: &Runs, floor: &Runs) {
        self.add(&line.figure(unit.spread(ours)).floor(unit.spread(floor)));
    }

    /// A figure without a floor, with a target or without one.
    pub(crate) fn value(&mut self, what: &str, unit: Unit, ours: &Runs, most: Option<f64>) {
        let line = Line::new(judge(most.map(|m| ours.median() <= m)), what).figure(unit.spread(ours));
        self.add(&line.target(most.map_or(String::new(), |m| format!("≤ {}", unit.show(m)))));
    }

    /// Something that must be so.
    pub(crate) fn exact(&mut self, what: &str, is: impl Into<String>, should: impl Into<String>, right: bool) {
        let verdict = if right { Verdict::Pass } else { Verdict::Wrong };
        self.add(&Line::new(verdict, what).figure(is).target(format!("exactly {}", should.into())));
    }

    /// A remark.
    pub(crate) fn note(&mut self, what: &str, text: impl Into<String>) {
        self.add(&Line::new(Verdict::Info, what).figure(text));
    }
}

fn judge(met: Option<bool>) -> Verdict {
    match met {
        None => Verdict::Info,
        Some(true) => Verdict::Pass,
        Some(false) => Verdict::Miss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_the_way_to_the_parent() {
        for (verdict, _) in WORDS {
            let line = Line::new(verdict, "a").figure("1 µs (1–2)").floor("").ratio("1.00").target("≤ 1.1");
            assert_eq!(Line::parse(&line.print()), Some(line));
        }
        assert_eq!(Line::parse("thread 'main' panicked"), None);
    }
}
