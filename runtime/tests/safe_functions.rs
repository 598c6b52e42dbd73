//! `docs/safe-functions.md` names every safe public function of the driver's layer and of devices, with who keeps it sound, and every
//! public trait, with what is believed of it. Fails if a function or trait is missing there, or is named that does not exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Headings of the page, and the sources that each is about.
const PARTS: [(&str, &str); 5] = [
    ("sterna::hmm", "runtime/src/hmm"),
    ("sterna_hal", "backends/hal/src"),
    ("sterna_cpu", "backends/cpu/src"),
    ("sterna_vulkan", "backends/vulkan/src"),
    ("sterna_host", "backends/host/src"),
];

/// Sources whose public traits the page names.
const TRAITS: [&str; 6] =
    ["runtime/src", "backends/hal/src", "backends/cpu/src", "backends/vulkan/src", "backends/host/src", "kernels/src"];

/// What a pair of braces is around.
#[derive(Clone, Debug, PartialEq)]
enum Around {
    /// Items: of a file, a module, or of a type (its name).
    Items(Option<String>),
    /// Functions of a public trait.
    Trait(String),
    /// A type's end: dropping it is a safe call, too.
    Drop(String),
    /// Rules of a macro.
    Rules,
    /// Nothing that is public, or of tests only.
    Nothing,
}

/// What sources have.
#[derive(Debug, Default)]
struct Found {
    functions: BTreeSet<String>,
    traits: BTreeSet<String>,
}

/// The words and signs of a source, without comments and with every literal as one sign.
fn words(text: &str) -> Vec<String> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        let (word, skip) = if rest.starts_with("//") {
            (None, rest.find('\n').unwrap_or(rest.len()))
        } else if let Some(hashes) = raw_string(rest) {
            let (open, end) = (rest.find('"').expect("a quote"), format!("\"{}", "#".repeat(hashes)));
            (Some("\"".into()), open + 1 + rest[open + 1..].find(&end).map_or(rest.len() - open - 1, |at| at + end.len()))
        } else if c == '"' {
            let mut at = 1;
            let bytes = rest.as_bytes();
            while at < bytes.len() && bytes[at] != b'"' {
                at += 1 + usize::from(bytes[at] == b'\\');
            }
            (Some("\"".into()), (at + 1).min(rest.len()))
        } else if let Some(len) = char_literal(rest) {
            (Some("\"".into()), len)
        } else if c.is_alphanumeric() || c == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Some(rest[..len].to_string()), len)
        } else if rest.starts_with("->") || rest.starts_with("=>") {
            (Some(rest[..2].to_string()), 2)
        } else {
            ((!c.is_whitespace()).then(|| c.to_string()), c.len_utf8())
        };
        out.extend(word);
        rest = &rest[skip..];
    }
    out
}

/// How many hashes a raw string that begins here has.
fn raw_string(text: &str) -> Option<usize> {
    let text = text.strip_prefix('b').or(text.strip_prefix('c')).unwrap_or(text).strip_prefix('r')?;
    let hashes = text.len() - text.trim_start_matches('#').len();
    text[hashes..].starts_with('"').then_some(hashes)
}

/// The length of a character in quotes, which a lifetime is not.
fn char_literal(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    let mut chars = inner.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        let (at, _) = chars.next()?;
        let close = inner[at + 1..].find('\'')?;
        return Some(1 + at + 1 + close + 1);
    }
    let (at, next) = chars.next()?;
    (next == '\'').then_some(1 + at + 1)
}

/// Behind generic parameters, if there are such at `at`.
fn behind_generics(words: &[String], mut at: usize) -> usize {
    let mut depth = 0;
    while let Some(w) = words.get(at) {
        match w.as_str() {
            "<" => depth += 1,
            ">" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return if w == ">" { at + 1 } else { at };
        }
        at += 1;
    }
    at
}

/// The last name of the path that a type is.
fn type_name(words: &[String]) -> String {
    let end = words.iter().position(|w| w == "<" || w == "where").unwrap_or(words.len());
    words[..end].iter().rev().find(|w| w.starts_with(char::is_alphanumeric)).cloned().unwrap_or_default()
}

/// Whether it says `pub`, and to everybody.
fn is_public(header: &[String]) -> bool {
    header.iter().position(|w| w == "pub").is_some_and(|at| header.get(at + 1).is_none_or(|w| w != "("))
}

/// What the braces behind `header` are around, within others.
fn around(header: &[String], within: &Around) -> Around {
    let has = |word: &str| header.iter().position(|w| w == word);
    let test_only = header.windows(3).any(|w| w[0] == "cfg" && w[1] == "(" && w[2] == "test");
    if has("macro_rules").is_some() {
        return Around::Rules;
    }
    let Around::Items(None) = within else { return Around::Nothing };
    if test_only || has("fn").is_some() && has("impl").is_none_or(|i| has("fn").is_some_and(|f| f < i)) {
        return Around::Nothing;
    }
    if let Some(at) = has("trait") {
        let public = is_public(header);
        return if public { Around::Trait(header[at + 1].clone()) } else { Around::Nothing };
    }
    if let Some(at) = has("impl") {
        let of = &header[behind_generics(header, at + 1)..];
        let end = of.iter().position(|w| w == "where").unwrap_or(of.len());
        let of = &of[..end];
        return match of.iter().enumerate().position(|(i, w)| w == "for" && of.get(i + 1).is_none_or(|next| next != "<")) {
            None => Around::Items(Some(type_name(of))),
            Some(i) if of[..i].last().is_some_and(|w| w == "Drop") => Around::Drop(type_name(&of[i + 1..])),
            Some(_) => Around::Nothing,
        };
    }
    match has("mod") {
        Some(at) if header[at + 1] != "sealed" => Around::Items(None),
        _ => Around::Nothing,
    }
}

/// A function's name, if this is the header of a safe one that everybody can call.
fn function(header: &[String], within: &Around) -> Option<String> {
    // A pointer to a function has no name.
    let named = |w: &[String]| w[0] == "fn" && w[1].starts_with(|c: char| c.is_alphabetic() || c == '_');
    let at = header.windows(2).position(named)?;
    let name = &header[at + 1];
    let safe = !header[..at].iter().any(|w| w == "unsafe");
    match within {
        Around::Items(of) if safe && is_public(&header[..at]) => {
            Some(of.as_ref().map_or(name.clone(), |t| format!("{t}::{name}")))
        }
        Around::Trait(t) if safe => Some(format!("{t}::{name}")),
        Around::Drop(t) => Some(format!("{t}::{name}")),
        _ => None,
    }
}

/// Reads one source. Types that are not public are the compiler's business (`unreachable_pub`); those whose end is looked at are not.
fn read(text: &str, public_types: &BTreeSet<String>, found: &mut Found) {
    let words = words(text);
    let (mut open, mut header) = (vec![Around::Items(None)], Vec::<String>::new());
    let mut brackets = 0;
    for (i, w) in words.iter().enumerate() {
        match w.as_str() {
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets -= 1,
            _ => {}
        }
        let within = open.last().expect("a file").clone();
        assert!(
            within != Around::Rules || w != "fn" || i == 0 || words[i - 1] != "pub",
            "a macro makes public functions, which this test does not see: write them out"
        );
        if !matches!(w.as_str(), "{" | "}" | ";") || w == ";" && brackets > 0 {
            header.push(w.clone());
            continue;
        }
        if w != "}" {
            let ends = matches!(&within, Around::Drop(t) if !public_types.contains(t));
            found.functions.extend(function(&header, &within).filter(|_| !ends));
        }
        match w.as_str() {
            "{" => {
                let inner = around(&header, &within);
                if let Around::Trait(name) = &inner {
                    found.traits.insert(name.clone());
                }
                // A trait without a body of its own is none the less one.
                open.push(inner);
            }
            "}" => drop(open.pop()),
            _ => {}
        }
        header.clear();
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).expect("sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_stem().is_some_and(|n| n != "tests") {
            out.push(path);
        }
    }
    out.sort();
    out
}

fn scan(dir: &str) -> Found {
    let texts: Vec<String> =
        sources(&Path::new(ROOT).join(dir)).iter().map(|p| fs::read_to_string(p).expect("a source")).collect();
    let mut public = BTreeSet::new();
    for text in &texts {
        let words = words(text);
        let of = |w: &[String]| (w[0] == "pub" && matches!(w[1].as_str(), "struct" | "enum")).then(|| w[2].clone());
        public.extend(words.windows(3).filter_map(of));
    }
    let mut found = Found::default();
    texts.iter().for_each(|text| read(text, &public, &mut found));
    found
}

/// The names in the first column of the tables under a heading.
fn listed(page: &str, heading: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let section = page.split("\n## ").find(|s| s.lines().next() == Some(heading)).unwrap_or_default();
    for row in section.lines().filter(|l| l.starts_with("| `")) {
        let first = row.trim_start_matches('|').split('|').next().unwrap_or_default();
        for name in first.split('`').skip(1).step_by(2) {
            assert!(names.insert(name.to_string()), "{heading}: `{name}` is there twice");
        }
    }
    names
}

#[track_caller]
fn agree(heading: &str, there: &BTreeSet<String>, page: &BTreeSet<String>) {
    assert!(!there.is_empty(), "{heading}: the sources were not read");
    let missing: Vec<_> = there.difference(page).collect();
    let gone: Vec<_> = page.difference(there).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/safe-functions.md, {heading}\n  not on the page, say there who keeps each sound: {missing:#?}\n  not in the sources: {gone:#?}"
    );
}

fn page() -> Option<String> {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/safe-functions.md")).ok();
    if page.is_none() && fs::metadata(ROOT).is_err() {
        println!("SKIP: the sources are not where they were");
        return None;
    }
    Some(page.expect("docs/safe-functions.md"))
}

#[test]
fn the_page_names_every_safe_function_and_no_other() {
    let Some(page) = page() else { return };
    for (heading, dir) in PARTS {
        agree(heading, &scan(dir).functions, &listed(&page, heading));
    }
}

#[test]
fn the_page_names_every_public_trait_and_no_other() {
    let Some(page) = page() else { return };
    let traits = TRAITS.iter().flat_map(|dir| scan(dir).traits).collect();
    agree("Public traits", &traits, &listed(&page, "Public traits"));
}

#[test]
fn the_scanner_tells_functions_apart() {
    let text = r##"
        /// pub fn in_a_comment() {}
        pub struct Seen; pub(crate) struct Hidden;
        pub fn free(a: [u8; 4]) -> impl Fn() -> u32 { fn inner() {} let s = "pub fn in_a_string() {"; let c = '{'; move || 1 }
        pub const unsafe fn not_safe() {}
        pub(crate) fn not_public() {}
        impl<T: Into<Vec<u8>>> Generic<T> where T: Copy {
            pub fn of<'a>(x: &'a T) -> &'a T { x }
            fn private(&self) {}
            pub unsafe fn raw(&self) {}
        }
        impl Drop for Seen { fn drop(&mut self) { if true { } } }
        impl Drop for Hidden { fn drop(&mut self) {} }
        impl Clone for Seen { fn clone(&self) -> Self { Seen } }
        pub unsafe trait Open: Send { fn safe(&self); unsafe fn not(&self); fn given(&self) -> u32 { 1 } }
        mod sealed { pub trait Sealed { fn never(&self); } }
        trait Own { fn own(&self); }
        macro_rules! none { ($x:ident) => { fn $x() {} }; }
        #[cfg(test)] mod tests { pub fn of_tests() {} }
        mod part { pub fn in_a_module() {} }
    "##;
    let mut found = Found::default();
    read(text, &BTreeSet::from(["Seen".to_string()]), &mut found);
    let want = ["Generic::of", "Open::given", "Open::safe", "Seen::drop", "free", "in_a_module"];
    assert_eq!(found.functions.iter().map(String::as_str).collect::<Vec<_>>(), want);
    assert_eq!(found.traits.iter().map(String::as_str).collect::<Vec<_>>(), ["Open"]);
}
