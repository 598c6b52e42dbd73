//! The sources keep the structure that `docs/architecture.md` states. Four rules are checked:
//!
//! 1. Each module of `runtime/src` and `backends/*/src` stands once in the tables of that page, and no table names another one.
//! 2. No source is longer than [`FILE_LINES`], and no function longer than [`FUNCTION_LINES`].
//! 3. No module imports what [`FLOORS`] forbids it.
//! 4. An exception from rules 2 and 3 is listed here, and leaves the list when nothing needs it.
//!
//! Each message names file, line and rule. The reader of sources knows comments, literals, braces and paths; it expands no macro.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The page with the one list of modules.
const LIST: &str = "docs/architecture.md";

/// No source has more lines.
const FILE_LINES: usize = 600;

/// No function has more lines, from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 80;

/// Sources that are longer today, with their length. They may become shorter, not longer.
const LONG_FILES: &[(&str, usize)] =
    &[("runtime/src/hmm/attached.rs", 623), ("runtime/src/hmm/source.rs", 622), ("runtime/src/hmm/space.rs", 610)];

/// Functions that are longer today, with their length. They may become shorter, not longer.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("backends/vulkan/src/device.rs", "with_table", 105),
    ("runtime/src/hmm/attached.rs", "run_erased", 81),
    ("runtime/src/hmm/host/fault.rs", "serve", 114),
    ("runtime/src/hmm/range.rs", "map_remote", 133),
    ("runtime/src/sched/carry.rs", "launch", 85),
];

/// What some modules may not import.
struct Floor {
    rule: &'static str,
    /// Files and folders that the rule is about.
    of: &'static [&'static str],
    /// Those among them that it is not about.
    without: &'static [&'static str],
    /// Paths that are not imported, with all that is below them.
    not: &'static [&'static str],
    /// Paths among these that are allowed, with all that is below them.
    except: &'static [&'static str],
    /// Imports against the rule that exist today: the file and the path.
    today: &'static [(&'static str, &'static str)],
}

const FLOORS: &[Floor] = &[
    Floor {
        rule: "the contract knows no backend, no runtime and no platform",
        of: &["backends/hal/src"],
        without: &[],
        not: &[
            "sterna",
            "sterna_host",
            "sterna_cpu",
            "sterna_vulkan",
            "sterna_kernels",
            "libc",
            "linux_raw_sys",
            "ash",
            "gpu_allocator",
        ],
        except: &[],
        today: &[],
    },
    Floor {
        rule: "what backends share knows no backend and no runtime",
        of: &["backends/host/src"],
        without: &[],
        not: &["sterna", "sterna_cpu", "sterna_vulkan", "sterna_kernels", "ash", "gpu_allocator"],
        except: &[],
        today: &[],
    },
    Floor {
        rule: "a backend knows the contract and what backends share: no other backend, no runtime",
        of: &["backends"],
        without: &["backends/hal", "backends/host", "backends/vulkan"],
        not: &["sterna", "sterna_vulkan", "sterna_kernels", "ash", "gpu_allocator"],
        except: &[],
        today: &[],
    },
    Floor {
        rule: "a backend knows the contract and what backends share: no other backend, no runtime",
        of: &["backends/vulkan/src"],
        without: &[],
        not: &["sterna", "sterna_cpu", "sterna_kernels"],
        except: &[],
        today: &[],
    },
    Floor {
        rule: "the stock kernels know the contract alone",
        of: &["kernels/src"],
        without: &[],
        not: &["sterna", "sterna_host", "sterna_cpu", "sterna_vulkan", "libc"],
        except: &[],
        today: &[],
    },
    Floor {
        rule: "of the runtime `backend` alone names a backend",
        of: &["runtime/src"],
        without: &["runtime/src/backend.rs"],
        not: &["sterna_cpu", "sterna_vulkan", "ash", "gpu_allocator"],
        except: &[],
        // What the crate hands on under its own name.
        today: &[("runtime/src/lib.rs", "sterna_cpu"), ("runtime/src/lib.rs", "sterna_vulkan")],
    },
    Floor {
        rule: "a policy knows the contract and its own terms: no engine, no scheduler, no handle",
        of: &["runtime/src/policy"],
        without: &[],
        not: &["sterna", "sterna_host", "libc"],
        except: &["sterna::policy", "sterna::Error"],
        today: &[("runtime/src/policy/mod.rs", "sterna::hmm::Grow")],
    },
    Floor {
        rule: "the engine knows nothing that is built on it",
        of: &["runtime/src/hmm"],
        without: &[],
        not: &["sterna"],
        except: &["sterna::hmm", "sterna::Error", "sterna::error", "sterna::stats"],
        today: &[
            ("runtime/src/hmm/attached.rs", "sterna::config"),
            ("runtime/src/hmm/attached.rs", "sterna::policy::Place"),
            ("runtime/src/hmm/exclusive.rs", "sterna::policy::Place"),
            ("runtime/src/hmm/inflight.rs", "sterna::wakers::Wakers"),
            ("runtime/src/hmm/range.rs", "sterna::policy::Place"),
            ("runtime/src/hmm/segment.rs", "sterna::policy"),
            ("runtime/src/hmm/watch.rs", "sterna::wakers"),
        ],
    },
    Floor {
        rule: "the seam to the operating system knows nothing of the engine",
        of: &["runtime/src/hmm/os"],
        without: &[],
        not: &["sterna"],
        except: &["sterna::hmm::os"],
        today: &[
            ("runtime/src/hmm/os/file.rs", "sterna::hmm::addr"),
            ("runtime/src/hmm/os/mem.rs", "sterna::Error"),
            ("runtime/src/hmm/os/mod.rs", "sterna::hmm::schedule"),
        ],
    },
    Floor {
        rule: "of the runtime the seam to the operating system alone names the C library",
        of: &["runtime/src"],
        without: &["runtime/src/hmm/os"],
        not: &["libc", "linux_raw_sys"],
        except: &[],
        // Constants and types, but for `pthread_atfork` in `fork` and the calls that a handler makes in `host/signal`.
        today: &[
            ("runtime/src/error.rs", "libc"),
            ("runtime/src/file.rs", "libc"),
            ("runtime/src/hmm/arena.rs", "libc"),
            ("runtime/src/hmm/backing.rs", "libc"),
            ("runtime/src/hmm/device_fault.rs", "libc"),
            ("runtime/src/hmm/fork.rs", "libc"),
            ("runtime/src/hmm/host/guard.rs", "libc"),
            ("runtime/src/hmm/host/service.rs", "libc"),
            ("runtime/src/hmm/host/signal.rs", "libc"),
        ],
    },
    Floor {
        rule: "a leaf of the engine imports no other module of the crate",
        of: &[
            "runtime/src/hmm/addr.rs",
            "runtime/src/hmm/extent.rs",
            "runtime/src/hmm/grid.rs",
            "runtime/src/hmm/pfn.rs",
            "runtime/src/hmm/places.rs",
            "runtime/src/hmm/planted.rs",
            "runtime/src/hmm/sync.rs",
        ],
        without: &[],
        not: &["sterna"],
        except: &[],
        today: &[],
    },
    Floor {
        rule: "the base of the engine knows no block, segment, device or launch",
        of: &[
            "runtime/src/hmm/arrivals.rs",
            "runtime/src/hmm/backing.rs",
            "runtime/src/hmm/claim.rs",
            "runtime/src/hmm/gate.rs",
            "runtime/src/hmm/lock.rs",
            "runtime/src/hmm/notifier.rs",
            "runtime/src/hmm/park.rs",
            "runtime/src/hmm/reaper.rs",
            "runtime/src/hmm/schedule",
            "runtime/src/hmm/stretches.rs",
        ],
        without: &[],
        not: &["sterna"],
        except: &[
            "sterna::Error",
            "sterna::hmm::addr",
            "sterna::hmm::extent",
            "sterna::hmm::lock",
            "sterna::hmm::os",
            "sterna::hmm::park",
            "sterna::hmm::places",
            "sterna::hmm::planted",
            "sterna::hmm::reaper",
            "sterna::hmm::schedule",
            "sterna::hmm::sync",
        ],
        today: &[],
    },
];

/// The crates whose names begin a path that is looked at.
const CRATES: [&str; 10] = [
    "sterna",
    "sterna_hal",
    "sterna_host",
    "sterna_cpu",
    "sterna_vulkan",
    "sterna_kernels",
    "libc",
    "linux_raw_sys",
    "ash",
    "gpu_allocator",
];

/// The folders of sources: the runtime's, each backend's, and the stock kernels'.
fn folders() -> Vec<(String, String)> {
    let mut out =
        vec![("runtime/src".to_owned(), "sterna".to_owned()), ("kernels/src".to_owned(), "sterna_kernels".to_owned())];
    let mut backends: Vec<_> = fs::read_dir(Path::new(ROOT).join("backends")).unwrap().map(|entry| entry.unwrap()).collect();
    backends.sort_by_key(fs::DirEntry::file_name);
    for backend in backends {
        let name = backend.file_name().into_string().unwrap();
        if backend.path().join("src").is_dir() {
            out.push((format!("backends/{name}/src"), format!("sterna_{name}")));
        }
    }
    out
}

/// A source file, as its rules see it.
struct Source {
    /// Relative to the root of the project.
    file: String,
    /// The path of its module.
    module: Vec<String>,
    /// Its text, with comments and literals blanked.
    code: String,
    lines: usize,
}

fn collect(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every source, in order of its name.
fn sources() -> Vec<Source> {
    let mut out = Vec::new();
    for (folder, name) in folders() {
        let base = Path::new(ROOT).join(&folder);
        let mut paths = Vec::new();
        collect(&base, &mut paths);
        paths.sort();
        for path in paths {
            let text = fs::read_to_string(&path).unwrap();
            let inside = path.strip_prefix(&base).unwrap().to_str().unwrap().to_owned();
            let mut module = vec![name.clone()];
            module.extend(
                inside.trim_end_matches(".rs").split('/').filter(|part| !matches!(*part, "mod" | "lib")).map(str::to_owned),
            );
            out.push(Source {
                file: format!("{folder}/{inside}"),
                module,
                code: blanked(&text),
                lines: text.lines().count(),
            });
        }
    }
    assert!(out.len() > 150, "only {} sources were found", out.len());
    out
}

/// The text with every comment and every literal replaced by blanks. Lines keep their numbers, and places their offsets.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(text, at);
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).unwrap()
}

/// Where the comment or literal ends that begins at `at`; `at` itself if none does.
fn literal_end(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    let word_before = at > 0 && is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        let (mut depth, mut end) = (1, at + 2);
        while depth > 0 && end < bytes.len() {
            let step = match &bytes[end..] {
                [b'/', b'*', ..] => (1, 2),
                [b'*', b'/', ..] => (-1, 2),
                _ => (0, 1),
            };
            depth += step.0;
            end += step.1;
        }
        return end;
    }
    match rest[0] {
        b'r' if !word_before || (at == 1 || !is_word(bytes[at - 2])) && matches!(bytes[at - 1], b'b' | b'c') => {
            let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at;
            }
            let close = format!("\"{}", "#".repeat(hashes));
            let from = at + 2 + hashes;
            text[from..].find(&close).map_or(bytes.len(), |end| from + end + close.len())
        }
        b'"' => quoted_end(bytes, at, b'"'),
        b'\'' if rest.get(1) == Some(&b'\\') => quoted_end(bytes, at, b'\''),
        b'\'' => match text[at + 1..].chars().next() {
            // A lifetime has no quote behind its first letter.
            Some(c) if text[at + 1 + c.len_utf8()..].starts_with('\'') => at + 2 + c.len_utf8(),
            _ => at,
        },
        _ => at,
    }
}

fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != quote {
        end += 1 + usize::from(bytes[end] == b'\\');
    }
    (end + 1).min(bytes.len())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn line_of(code: &str, at: usize) -> usize {
    1 + code.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
}

/// Where `word` stands on its own, from the beginning to the end.
fn places_of<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let after = at + word.len();
        (*at == 0 || !is_word(bytes[at - 1])) && (after == bytes.len() || !is_word(bytes[after]))
    })
}

fn skip_blanks(code: &str, at: usize) -> usize {
    at + code[at..].len() - code[at..].trim_start().len()
}

/// The word at `at`, which is empty if there is none.
fn word_at(code: &str, at: usize) -> &str {
    let length = code.as_bytes()[at..].iter().take_while(|b| is_word(**b)).count();
    &code[at..at + length]
}

/// The place behind the bracket that closes the one at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The functions with a body: name, line, length in lines.
fn functions(code: &str) -> Vec<(&str, usize, usize)> {
    let mut out = Vec::new();
    for place in places_of(code, "fn") {
        let name = word_at(code, skip_blanks(code, place + 2));
        if name.is_empty() {
            continue;
        }
        let mut at = place;
        while at < code.len() {
            match code.as_bytes()[at] {
                b'(' | b'[' => at = closing(code, at),
                b';' => break,
                b'{' => {
                    let first = line_of(code, place);
                    out.push((name, first, line_of(code, closing(code, at)) - first + 1));
                    break;
                }
                _ => at += 1,
            }
        }
    }
    out
}

/// The modules that are written inside a file: their names and where their braces are.
fn inner_modules(code: &str) -> Vec<(&str, Range<usize>)> {
    let mut out = Vec::new();
    for place in places_of(code, "mod") {
        let name_at = skip_blanks(code, place + 3);
        let name = word_at(code, name_at);
        let open = skip_blanks(code, name_at + name.len());
        if !name.is_empty() && code[open..].starts_with('{') {
            out.push((name, place..closing(code, open)));
        }
    }
    out
}

/// Where modules of tests stand. Tests may import what they like.
fn test_modules(code: &str) -> Vec<Range<usize>> {
    let inner = inner_modules(code);
    let attributes = code.match_indices("#[cfg(test)]").map(|(at, mark)| skip_blanks(code, at + mark.len()));
    attributes.filter_map(|at| inner.iter().find(|(_, range)| range.start == at).map(|(_, range)| range.clone())).collect()
}

/// A path that a source names, as the compiler resolves it, and its line.
struct Import {
    line: usize,
    path: String,
}

/// The paths of `use` lines and of code that begin with `crate`, `super` or the name of a crate, but for those of tests.
fn imports(source: &Source) -> Vec<Import> {
    let code = &source.code;
    let mut found = Vec::new();
    let mut uses = Vec::new();
    for place in places_of(code, "use") {
        let from = skip_blanks(code, place + 3);
        // `use<'a>` is a bound.
        if !code[from..].starts_with('<') {
            uses.push(place..expand(code, from, &[], &mut found));
        }
    }
    for root in CRATES.into_iter().chain(["crate", "super"]) {
        for place in places_of(code, root) {
            let before = code[..place].trim_end();
            let visibility = before.strip_suffix("in").is_some_and(|rest| rest.ends_with('('));
            let inside = before
                .strip_suffix("::")
                .is_some_and(|path| path.ends_with(|c: char| c.is_alphanumeric() || "_>)".contains(c)));
            let begins = !inside && !visibility && code[place + root.len()..].starts_with("::");
            if begins && !uses.iter().any(|range| range.contains(&place)) {
                expand(code, place, &[], &mut found);
            }
        }
    }
    let (inner, tests) = (inner_modules(code), test_modules(code));
    let outside_tests = found.into_iter().filter(|(at, _)| !tests.iter().any(|range| range.contains(at)));
    outside_tests
        .filter_map(|(at, path)| {
            let mut module = source.module.clone();
            module.extend(inner.iter().filter(|(_, range)| range.contains(&at)).map(|(name, _)| (*name).to_owned()));
            Some(Import { line: line_of(code, at), path: resolved(&module, &path)? })
        })
        .collect()
}

/// Adds the paths of the tree at `at`, each with the place of its last word, and gives the tree's end.
fn expand(code: &str, at: usize, before: &[&str], out: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = before.to_vec();
    let mut at = skip_blanks(code, at);
    if code[at..].starts_with("::") {
        at += 2;
    }
    loop {
        if code[at..].starts_with('{') {
            let end = closing(code, at) - 1;
            at = skip_blanks(code, at + 1);
            while at < end {
                at = expand(code, at, &path, out);
                at += code[at..end].find(',').map_or(end - at, |comma| comma + 1);
                at = skip_blanks(code, at);
            }
            return end + 1;
        }
        let word = if code[at..].starts_with('*') { "*" } else { word_at(code, at) };
        let end = at + word.len();
        if word.is_empty() {
            return end.max(at);
        }
        if word != "self" {
            path.push(word);
        }
        if !code[end..].starts_with("::") || code[end..].starts_with("::<") {
            out.push((at, path.iter().map(|word| (*word).to_owned()).collect()));
            return end;
        }
        at = skip_blanks(code, end + 2);
    }
}

/// The path from the crate's name on, if it begins with `crate`, `super` or a crate's name.
fn resolved(module: &[String], path: &[String]) -> Option<String> {
    let mut out = match path.first()?.as_str() {
        "crate" => module[..1].to_vec(),
        "super" => module.to_vec(),
        name if CRATES.contains(&name) => Vec::new(),
        _ => return None,
    };
    for word in path {
        match word.as_str() {
            "crate" => {}
            "super" => drop(out.pop()),
            word => out.push(word.to_owned()),
        }
    }
    Some(out.join("::"))
}

/// Whether a path is `above` or below it.
fn below(path: &str, above: &str) -> bool {
    path == above || path.strip_prefix(above).is_some_and(|rest| rest.starts_with("::"))
}

/// Whether a path brings `wanted` or what is below it, which a star above it may.
fn brings(path: &str, wanted: &str) -> bool {
    let star = path.strip_suffix('*').is_some_and(|open| wanted.starts_with(open));
    star || below(path, wanted)
}

/// Whether a file is `place` or lies in it.
fn lies_in(file: &str, place: &str) -> bool {
    file == place || file.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_module_is_named_once_in_the_one_list() {
    let text = fs::read_to_string(Path::new(ROOT).join(LIST)).unwrap();
    let mut wrong = Vec::new();
    let mut listed = BTreeMap::new();
    let mut folder = None;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('#') {
            // `backends/hal` stands for its sources.
            let named = line.split('`').nth(1).filter(|_| line.starts_with("### "));
            folder = named.map(|name| if name.contains("/src") { name.to_owned() } else { format!("{name}/src") });
            continue;
        }
        let Some(folder) = &folder else { continue };
        let Some(row) = line.strip_prefix("| `") else { continue };
        let Some((name, holds)) = row.split_once("` | ") else {
            wrong.push(format!("{LIST}:{number}: a row names one module and says what it holds"));
            continue;
        };
        if holds.trim_end_matches('|').trim().is_empty() {
            wrong.push(format!("{LIST}:{number}: the row of `{name}` does not say what it holds"));
        }
        let at = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
        let Some(file) = at.into_iter().find(|file| Path::new(ROOT).join(file).is_file()) else {
            wrong.push(format!("{LIST}:{number}: `{name}` is no module of {folder}; the list names modules that exist"));
            continue;
        };
        if let Some(first) = listed.insert(file, number) {
            wrong.push(format!("{LIST}:{number}: `{name}` stands in line {first} already; the list names a module once"));
        }
    }
    for source in sources().iter().filter(|source| !lies_in(&source.file, "kernels")) {
        if !listed.contains_key(&source.file) {
            wrong.push(format!("{}:1: no table of {LIST} names this module; the list names every module", source.file));
        }
    }
    report(&wrong);
}

#[test]
fn sources_and_functions_are_short() {
    let mut wrong = Vec::new();
    let mut needed = Vec::new();
    for source in sources().iter().filter(|source| !lies_in(&source.file, "kernels")) {
        let file = &source.file;
        if source.lines > FILE_LINES {
            needed.push((file.clone(), String::new()));
            let bound = LONG_FILES.iter().find(|(long, _)| long == file).map_or(FILE_LINES, |(_, lines)| *lines);
            if source.lines > bound {
                wrong.push(format!("{file}:{}: the file has {} lines; {bound} are allowed", bound + 1, source.lines));
            }
        }
        for (name, line, lines) in functions(&source.code) {
            if lines > FUNCTION_LINES {
                needed.push((file.clone(), name.to_owned()));
                let long = LONG_FUNCTIONS.iter().find(|(long, function, _)| long == file && *function == name);
                let bound = long.map_or(FUNCTION_LINES, |(_, _, lines)| *lines);
                if lines > bound {
                    wrong.push(format!("{file}:{line}: function `{name}` has {lines} lines; {bound} are allowed"));
                }
            }
        }
    }
    let listed =
        LONG_FILES.iter().map(|(file, _)| (*file, "")).chain(LONG_FUNCTIONS.iter().map(|(file, name, _)| (*file, *name)));
    for (file, name) in listed {
        if !needed.iter().any(|(long, function)| long == file && function == name) {
            wrong.push(format!(
                "{file}:1: the exception of this file for length (`{name}`) is not needed; take it out of this test"
            ));
        }
    }
    report(&wrong);
}

#[test]
fn no_module_imports_what_lies_above_it() {
    let mut wrong = Vec::new();
    let sources = sources();
    for floor in FLOORS {
        for place in floor.of.iter().chain(floor.without) {
            assert!(Path::new(ROOT).join(place).exists(), "there is no {place}, which has a rule: {}", floor.rule);
        }
        let mut needed = Vec::new();
        for source in &sources {
            let file = &source.file;
            let about =
                floor.of.iter().any(|place| lies_in(file, place)) && !floor.without.iter().any(|place| lies_in(file, place));
            if !about {
                continue;
            }
            for Import { line, path } in imports(source) {
                let forbidden = floor.not.iter().any(|not| brings(&path, not))
                    && !floor.except.iter().any(|except| below(&path, except));
                let known = floor.today.iter().find(|(known, allowed)| known == file && below(&path, allowed));
                match known {
                    Some(known) if forbidden => needed.push(*known),
                    None if forbidden => wrong.push(format!("{file}:{line}: imports {path}; {}", floor.rule)),
                    _ => {}
                }
            }
        }
        for known in floor.today.iter().filter(|known| !needed.contains(known)) {
            wrong.push(format!("{}:1: does not import {} any more; take the exception out of this test", known.0, known.1));
        }
    }
    report(&wrong);
}

#[test]
fn the_reader_of_sources_reads_rust() {
    let text = "fn a() {\n  let c = '{'; let s = \"}\\\"{\"; // {\n  let r = r#\"{\"\"#; /* { /* { */ */\n}\nfn b<'a>(_: [u8; 2]) -> &'a str;\ntype F = fn(u8);\n";
    let code = blanked(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(functions(&code), [("a", 1, 4)]);
    let text = "use super::{b::{self, C}, d as e};\nuse ::sterna_hal::*;\nmod inner {\n  use super::f;\n}\n#[cfg(test)]\nmod tests {\n  use crate::g;\n}\npub(in crate::x) fn h() { crate::i::<u8>(); ::sterna_hal::j() }\n";
    let source = Source { file: String::new(), module: vec!["sterna".into(), "a".into()], code: blanked(text), lines: 0 };
    let found: Vec<_> = imports(&source).into_iter().map(|import| format!("{} {}", import.line, import.path)).collect();
    let expected = [
        "1 sterna::b",
        "1 sterna::b::C",
        "1 sterna::d",
        "2 sterna_hal::*",
        "4 sterna::a::f",
        "10 sterna_hal::j",
        "10 sterna::i",
    ];
    assert_eq!(found, expected);
    assert!(
        below("sterna::hmm::os", "sterna::hmm")
            && !below("sterna::hmm2", "sterna::hmm")
            && !below("sterna::*", "sterna::hmm")
    );
    assert!(brings("sterna::*", "sterna::hmm") && !brings("sterna::hmm2::*", "sterna::hmm"));
}
