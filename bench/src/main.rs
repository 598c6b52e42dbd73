//! What sterna costs, every figure beside its floor from the same run.
//!
//! `cargo run --release -p sterna-bench` prints the table; `--write` also keeps it under `bench/results`. Each row runs in a
//! process of its own: the arena, the host-fault mechanism and the threads belong to a process, and a row that fails takes no
//! other with it. `bench/README.md` says how to read the rows.

mod floor;
mod measure;
mod rows;
mod table;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Parser;
use table::{Line, Sheet, Verdict};

/// A row that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(100);

/// Measures sterna, every figure beside its floor from the same run.
#[derive(Parser, Debug)]
struct Options {
    /// Only the row of this name; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Name the rows and end.
    #[arg(long)]
    list: bool,
    /// Keep the table in bench/results.
    #[arg(long)]
    write: bool,
    /// The machine's name in the file's name; the processor's model by default.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// End with code 2 if a target is missed.
    #[arg(long)]
    strict: bool,
    /// Run one row in this process and print its lines for the parent.
    #[arg(long, hide = true, value_name = "NAME")]
    child: Option<String>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(name) = &options.child {
        let row = rows::by_name(name).context("no such row")?;
        let mut sheet = Sheet::for_parent();
        if let Err(e) = (row.run)(&mut sheet) {
            let unavailable = matches!(e.downcast_ref(), Some(sterna::Error::Mechanism { .. }));
            let verdict = if unavailable { Verdict::Skipped } else { Verdict::Wrong };
            sheet.add(&Line::new(verdict, name).figure(format!("{e:#}")));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if options.list {
        let list: String = rows::ALL.iter().map(|r| format!("{:<18} {}\n", r.name, r.question)).collect();
        show(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.only.iter().find(|n| rows::by_name(n).is_none()) {
        bail!("no row is called {unknown}: {}", rows::ALL.map(|r| r.name).join(", "));
    }

    let mut text = heading();
    let mut verdicts = Vec::new();
    let start = Instant::now();
    for row in rows::ALL.iter().filter(|r| options.only.is_empty() || options.only.iter().any(|n| n == r.name)) {
        let mut lines = Vec::new();
        let before = measure::load();
        for variant in row.variants {
            eprintln!("[{:3.0} s] {} {}", start.elapsed().as_secs_f64(), row.name, variant);
            lines.extend(in_a_child(row.name, variant));
        }
        verdicts.extend(lines.iter().map(|l| l.verdict));
        let _ = write!(text, "\n## {}: {}\n\n{}", row.name, row.question, table::markdown(&lines));
        let _ = writeln!(text, "\nload {before} before, {} after", measure::load());
    }
    let count = |v: Verdict| verdicts.iter().filter(|x| **x == v).count();
    let _ = writeln!(
        text,
        "\n{} targets met, {} missed, {} results wrong, {} not measured; {:.0} s",
        count(Verdict::Pass),
        count(Verdict::Miss),
        count(Verdict::Wrong),
        count(Verdict::Skipped),
        start.elapsed().as_secs_f64()
    );
    show(&text)?;
    if options.write {
        let path = keep(&text, &options.machine.clone().unwrap_or_else(measure::cpu_model))?;
        eprintln!("written to {}", path.display());
    }
    Ok(match () {
        () if count(Verdict::Wrong) > 0 => ExitCode::from(1),
        () if options.strict && count(Verdict::Miss) > 0 => ExitCode::from(2),
        () => ExitCode::SUCCESS,
    })
}

/// Runs a row in a process of its own. `variant` is a host-fault mechanism to force, or empty.
/// Prints a text; who stops reading it has seen enough.
fn show(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn in_a_child(name: &str, variant: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let failed = |what: String| Line::new(Verdict::Wrong, format!("{name} {variant}")).figure(what);
    let mut command = match std::env::current_exe() {
        Ok(exe) => Command::new(exe),
        Err(e) => return vec![failed(e.to_string())],
    };
    command.args(["--child", name]).stdout(Stdio::piped());
    for setting in ["STERNA_DEVICE", "STERNA_DEVICE_MEMORY", "STERNA_POLICY", "STERNA_CPU_WORKERS"] {
        command.env_remove(setting);
    }
    if !variant.is_empty() {
        command.env("STERNA_HOST_FAULTS", variant);
    }
    let mut child = match command.spawn() {
        Ok(c) => c,
        Err(e) => return vec![failed(e.to_string())],
    };
    let reader = child.stdout.take().map(|out| {
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).filter_map(|l| Line::parse(&l)).collect()
        })
    });
    let deadline = Instant::now() + LIMIT;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break None,
            Ok(Some(status)) => break Some(format!("ended with {status}")),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                // Both fail only for a child that has just ended.
                let _ = child.kill();
                let _ = child.wait();
                break Some(format!("had not ended after {} s", LIMIT.as_secs()));
            }
            Err(e) => break Some(e.to_string()),
        }
    };
    lines.extend(reader.and_then(|r: std::thread::JoinHandle<Vec<Line>>| r.join().ok()).unwrap_or_default());
    lines.extend(ended.map(failed));
    lines
}

fn heading() -> String {
    let git = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let commit = git.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    format!(
        "# sterna on {}\n\n{}; {} processors, {} of memory; Linux {}; commit {}\n",
        date(),
        measure::cpu_model(),
        measure::processors(),
        sterna::human(measure::total_memory()),
        measure::kernel(),
        commit.unwrap_or_else(|| "unknown".into()),
    )
}

fn keep(text: &str, machine: &str) -> Result<PathBuf> {
    let slug: String = machine.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let words: Vec<&str> = slug.split('-').filter(|w| !w.is_empty()).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}-{}.md", date(), words.join("-")));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Today, as year-month-day in UTC.
fn date() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (y, m, d) = civil(seconds / 86_400);
    format!("{y:04}-{m:02}-{d:02}")
}

/// The day of the Gregorian calendar that is `days` after 1970-01-01. Years begin in March here, so that the leap day is last.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let m = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(m <= 2), m, in_year - (153 * month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn days_of_the_calendar() {
        assert_eq!(super::civil(0), (1970, 1, 1));
        assert_eq!(super::civil(59), (1970, 3, 1));
        assert_eq!(super::civil(11_016), (2000, 2, 29));
        assert_eq!(super::civil(20_454), (2026, 1, 1));
    }
}
