//! The layers of `src/lib.rs`, held up by a test: who may import whom, and what must not be anywhere.
//!
//! It reads the sources as text. Comments and literals are taken out, what is left is cut into words, and every path in
//! it (`use` declarations with their braces, and paths in code) is resolved as far as its first part. It is no compiler:
//! a name that a macro puts together escapes it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// One layer: its name below `src/`, and the layers that it may import besides itself.
const LAYERS: [(&str, &[&str]); 15] = [
    ("mutant", &[]),
    ("types", &[]),
    ("time", &[]),
    ("prng", &[]),
    ("row", &["types"]),
    ("config", &[]),
    ("chat", &["config", "row", "types"]),
    ("message", &["chat", "row", "types"]),
    ("wire", &["chat", "config", "message", "row", "types"]),
    ("replica", &["chat", "config", "message", "prng", "row", "time", "types"]),
    ("storage", &["chat", "config", "message", "prng", "row", "types"]),
    ("client", &["chat", "config", "message", "prng", "row", "time", "types", "wire"]),
    ("server", &["chat", "config", "message", "prng", "replica", "row", "storage", "time", "types", "wire"]),
    ("bin/server", &["config", "replica", "server"]),
    ("bin/client", &["chat", "client", "config", "message", "types"]),
];

/// What has no place in a deterministic layer: I/O, clocks, randomness, threads, the environment.
const OUTSIDE_WORLD: [&str; 11] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "tokio",
    "tokio_util",
    "rand",
];

/// Layers, what must not be in them, and the one file where it may be after all.
const ABSENT: [(&str, &[&str], &str); 9] = [
    ("types", &OUTSIDE_WORLD, ""),
    ("time", &OUTSIDE_WORLD, ""),
    ("prng", &OUTSIDE_WORLD, ""),
    ("row", &OUTSIDE_WORLD, ""),
    ("chat", &OUTSIDE_WORLD, ""),
    ("message", &OUTSIDE_WORLD, ""),
    ("replica", &OUTSIDE_WORLD, ""),
    (
        "wire",
        &[
            "std::time::Instant",
            "std::time::SystemTime",
            "std::fs",
            "std::net",
            "std::thread",
            "tokio",
            "rand",
        ],
        "",
    ),
    (
        "storage",
        &[
            "std::time::Instant",
            "std::time::SystemTime",
            "std::fs",
            "std::net",
            "std::thread",
            "tokio",
            "rand",
        ],
        "storage/disk.rs",
    ),
];

/// Macros and words that stand nowhere, tests included.
const NOWHERE: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "unsafe"];

/// One word or sign of a source, and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Cuts a source into words and signs; comments and literals are left out. `::` is one sign.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut out, mut i) = (Vec::new(), 0);
    let mut line = 1;
    while i < chars.len() {
        let begun = i;
        let c = at(i);
        let mut kept = false;
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            i = end_of_block_comment(&chars, i);
        } else if let Some(end) = end_of_string(&chars, i) {
            i = end;
        } else if c == '\'' {
            i = end_of_quote(&chars, i);
        } else if c.is_alphanumeric() || c == '_' {
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            kept = true;
        } else {
            i += if c == ':' && at(i + 1) == ':' { 2 } else { 1 };
            kept = !c.is_whitespace();
        }
        if kept {
            out.push(Token { text: chars[begun..i].iter().collect(), line });
        }
        line += chars[begun..i].iter().filter(|c| **c == '\n').count();
    }
    out
}

fn end_of_block_comment(chars: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    i
}

/// The end of a string literal that begins here, if one does: `"`, `b"`, `c"`, `r"`, `br#"` and the like.
fn end_of_string(chars: &[char], from: usize) -> Option<usize> {
    let mut i = from;
    while i < from + 2 && matches!(chars.get(i), Some('b' | 'c' | 'r')) {
        i += 1;
    }
    let raw = chars[from..i].contains(&'r');
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    i += hashes;
    if chars.get(i) != Some(&'"') || (hashes > 0 && !raw) {
        return None;
    }
    i += 1;
    while i < chars.len() {
        if !raw && chars[i] == '\\' {
            i += 2;
        } else if chars[i] == '"'
            && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
        {
            return Some(i + 1 + hashes);
        } else {
            i += 1;
        }
    }
    Some(chars.len())
}

/// The end of a character literal; of a lifetime only the quote is taken.
fn end_of_quote(chars: &[char], from: usize) -> usize {
    if chars.get(from + 1) == Some(&'\\') {
        let close = chars.iter().skip(from + 3).position(|c| *c == '\'');
        return close.map_or(chars.len(), |distance| from + 3 + distance + 1);
    }
    if chars.get(from + 2) == Some(&'\'') { from + 3 } else { from + 1 }
}

/// A path that a source names: its parts from the crate's root or from another crate's name on.
#[derive(Clone, Debug, PartialEq)]
struct Named {
    parts: Vec<String>,
    /// It brings a name into scope, by which more than itself can be reached.
    imported: bool,
    line: usize,
}

/// All paths of a source. `module` is where the source stands, such as `["chat", "apply"]`. Paths into this crate begin
/// with `crate`.
fn paths(tokens: &[Token], module: &[String]) -> Vec<Named> {
    let mut walk = Walk { tokens, i: 0, module: module.to_vec(), blocks: Vec::new(), found: Vec::new() };
    while walk.i < tokens.len() {
        walk.step();
    }
    walk.found
}

struct Walk<'a> {
    tokens: &'a [Token],
    i: usize,
    module: Vec<String>,
    /// For each open brace, whether it is that of a module.
    blocks: Vec<bool>,
    found: Vec<Named>,
}

impl Walk<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.i + ahead).map_or("", |token| token.text.as_str())
    }

    fn step(&mut self) {
        match self.text(0) {
            "mod" if self.text(2) == "{" => {
                self.module.push(self.text(1).to_owned());
                self.blocks.push(true);
                self.i += 3;
            }
            "{" => {
                self.blocks.push(false);
                self.i += 1;
            }
            "}" => {
                if self.blocks.pop() == Some(true) {
                    self.module.pop();
                }
                self.i += 1;
            }
            "use" if is_word(self.text(1)) || matches!(self.text(1), "::" | "{") => {
                self.i += 1;
                self.tree(&[]);
            }
            word if is_word(word) && self.text(1) == "::" => self.path(),
            _ => self.i += 1,
        }
    }

    fn path(&mut self) {
        let line = self.tokens[self.i].line;
        let mut parts = vec![self.text(0).to_owned()];
        self.i += 1;
        while self.text(0) == "::" && is_word(self.text(1)) {
            parts.push(self.text(1).to_owned());
            self.i += 2;
        }
        // What follows `::` otherwise are generic arguments, whose paths are found on their own.
        if self.text(0) == "::" {
            self.i += 1;
        }
        self.note(&parts, false, line);
    }

    /// A tree of a `use` declaration below `prefix`, to its end.
    fn tree(&mut self, prefix: &[String]) {
        let mut parts = prefix.to_vec();
        let line = self.tokens.get(self.i).map_or(0, |token| token.line);
        loop {
            match self.text(0) {
                "::" => self.i += 1,
                "{" => {
                    self.i += 1;
                    while !matches!(self.text(0), "}" | "") {
                        self.tree(&parts);
                        if self.text(0) == "," {
                            self.i += 1;
                        }
                    }
                    self.i += 1;
                    return;
                }
                "*" => {
                    self.i += 1;
                    return self.note(&parts, true, line);
                }
                "as" => self.i += 2,
                word if is_word(word) => {
                    if word != "self" || parts.is_empty() {
                        parts.push(word.to_owned());
                    }
                    self.i += 1;
                }
                _ => return self.note(&parts, true, line),
            }
        }
    }

    /// `super` and `self` are resolved; what stays within a module is of no interest.
    fn note(&mut self, parts: &[String], imported: bool, line: usize) {
        let ups = parts.iter().take_while(|part| *part == "super").count();
        let own = parts.first().is_some_and(|part| part == "self");
        let parts = match parts.first().map(String::as_str) {
            Some("super" | "self") => {
                let skipped = ups.max(usize::from(own));
                let ups = ups + parts.iter().skip(skipped).take_while(|part| *part == "super").count();
                let stay = self.module.len().saturating_sub(ups);
                let rest = parts.iter().skip_while(|part| matches!(part.as_str(), "super" | "self"));
                let root = std::iter::once("crate".to_owned());
                root.chain(self.module[..stay].iter().cloned()).chain(rest.cloned()).collect()
            }
            Some("lastword") => {
                std::iter::once("crate".to_owned()).chain(parts[1..].iter().cloned()).collect()
            }
            _ => parts.to_vec(),
        };
        self.found.push(Named { parts, imported, line });
    }
}

fn is_word(text: &str) -> bool {
    text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}

/// Where a file stands: its layer, and its module path. None: it is `lib.rs`, or of no layer.
fn place(file: &str) -> Option<(&'static str, Vec<String>)> {
    let bare = file.strip_suffix(".rs")?;
    let (layer, _) = LAYERS.iter().find(|(layer, _)| {
        bare == *layer || bare.strip_prefix(layer).is_some_and(|rest| rest.starts_with('/'))
    })?;
    let in_binary = layer.strip_prefix("bin/");
    let module = match in_binary {
        // A binary is a crate of its own: its root is its main file.
        Some(_) => bare.strip_prefix(layer).unwrap_or_default().trim_start_matches('/'),
        None => bare,
    };
    let parts = module.split('/').filter(|part| !part.is_empty() && !matches!(*part, "mod" | "main"));
    Some((layer, parts.map(str::to_owned).collect()))
}

/// What is wrong with one file below `src/`.
fn complaints_about(file: &str, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut complaints = complaints_about_words(file, &tokens);
    if file == "lib.rs" {
        return complaints;
    }
    let Some((layer, module)) = place(file) else {
        complaints
            .push(format!("{file}: found a file of no layer, expected it in the table of tests/layers.rs"));
        return complaints;
    };
    let allowed = LAYERS.iter().find(|(name, _)| *name == layer).map_or(&[][..], |(_, allowed)| *allowed);
    for named in paths(&tokens, &module) {
        if let Some(found) = wrong_layer(layer, allowed, &named) {
            let line = named.line;
            complaints.push(format!(
                "{file}, line {line}: found {found} in {layer}, expected nothing of this crate but {}",
                allowed.join(", ")
            ));
        }
        let absent = ABSENT.iter().find(|(name, ..)| *name == layer);
        if let Some((_, banned, exempt)) = absent.filter(|(.., exempt)| *exempt != file)
            && let Some(path) = banned.iter().find(|path| reaches(&named, path))
        {
            let line = named.line;
            let where_else = if exempt.is_empty() { String::new() } else { format!(" but in {exempt}") };
            complaints.push(format!(
                "{file}, line {line}: found {}, expected nothing of {path} in {layer}{where_else}",
                named.parts.join("::")
            ));
        }
    }
    complaints
}

fn complaints_about_words(file: &str, tokens: &[Token]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let is_macro = tokens.get(i + 1).is_some_and(|next| next.text == "!");
        let is_banned = |word: &&&str| match word.strip_suffix('!') {
            Some(name) => is_macro && token.text == name,
            None => token.text == **word,
        };
        if let Some(word) = NOWHERE.iter().find(is_banned) {
            complaints.push(format!("{file}, line {}: found {word}, expected it nowhere", token.line));
        }
    }
    complaints
}

/// The layer that a path leads to, if it must not.
fn wrong_layer(layer: &str, allowed: &[&str], named: &Named) -> Option<String> {
    if named.parts.first().is_none_or(|first| first != "crate") {
        return None;
    }
    // A binary's own modules stand at its root; the library's are named `lastword` there.
    let Some(target) = named.parts.get(1) else {
        return named.imported.then(|| "an import of the whole crate".to_owned());
    };
    let is_layer = LAYERS.iter().any(|(name, _)| name == target);
    (is_layer && target != layer && !allowed.contains(&target.as_str())).then(|| format!("crate::{target}"))
}

/// Whether a path is `banned` or below it, or an import of what holds it.
fn reaches(named: &Named, banned: &str) -> bool {
    let banned: Vec<&str> = banned.split("::").collect();
    let same = named.parts.iter().zip(&banned).take_while(|(a, b)| a == *b).count();
    same == banned.len() || (named.imported && same == named.parts.len() && same > 0)
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env_at_build()), PathBuf::from)
}

fn env_at_build() -> &'static str {
    option_env!("CARGO_MANIFEST_DIR").unwrap_or(".")
}

/// All Rust files below a directory, in order.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn read(directory: &Path) -> Vec<(String, String)> {
    let name = |path: &Path| path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
    rust_files(directory).iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn assert_none(complaints: &[String]) {
    let mut text = String::new();
    for complaint in complaints {
        let _ = writeln!(text, "  {complaint}");
    }
    assert!(complaints.is_empty(), "{} complaints:\n{text}", complaints.len());
}

#[test]
fn every_file_imports_only_the_layers_below_it_and_nothing_that_must_be_absent() {
    let files = read(&root().join("src"));
    for (layer, _) in LAYERS {
        let is_there = files.iter().any(|(file, _)| place(file).is_some_and(|(found, _)| found == layer));
        assert!(is_there, "found no file of the layer {layer}, expected one: is the table still true?");
    }
    let complaints: Vec<_> = files.iter().flat_map(|(file, source)| complaints_about(file, source)).collect();
    assert_none(&complaints);
}

#[test]
fn nothing_is_left_undone_in_tests_either() {
    let files = read(&root().join("tests"));
    assert!(files.len() > 3, "found {} files of tests", files.len());
    let complaints: Vec<_> =
        files.iter().flat_map(|(file, source)| complaints_about_words(file, &tokens(source))).collect();
    assert_none(&complaints);
}

// -- The checker itself ---------------------------------------------------------------------------------------------

#[test]
fn each_way_to_import_a_wrong_layer_is_noticed() {
    let bad = [
        ("chat/apply.rs", "use crate::message::Entry;"),
        ("chat/apply.rs", "use crate::{types::ServerId, wire::codec};"),
        ("chat/mod.rs", "pub use crate::storage as s;"),
        ("chat/mod.rs", "fn f() { let x = crate::replica::Replica::new(); }"),
        ("chat/mod.rs", "fn f(x: Vec<crate::client::Client>) {}"),
        ("chat/mod.rs", "fn f() { Vec::<crate::server::Options>::new(); }"),
        ("chat/mod.rs", "use super::server::Options;"),
        ("chat/apply.rs", "use super::super::wire;"),
        ("chat/apply.rs", "mod tests { use super::super::super::wire; }"),
        ("chat/apply.rs", "use self::super::super::wire;"),
        ("chat/apply.rs", "use crate::*;"),
        ("chat/apply.rs", "use crate as all;"),
        ("message/log.rs", "use crate::wire::Frame;"),
        ("message/log.rs", "use crate::replica::Event;"),
        ("wire/peer.rs", "use crate::storage::Disk;"),
        ("wire/peer.rs", "use crate::replica::Event;"),
        ("replica/log.rs", "use crate::wire::Frame;"),
        ("replica/log.rs", "use crate::storage::Disk;"),
        ("replica/log.rs", "use crate::server::Options;"),
        ("storage/scan.rs", "use crate::replica::Event;"),
        ("storage/scan.rs", "use crate::client::Client;"),
        ("client/mod.rs", "use crate::replica::Event;"),
        ("server/mod.rs", "use crate::client::Client;"),
        ("bin/server.rs", "use lastword::client::Client;"),
        ("bin/client/main.rs", "use lastword::storage::Disk;"),
        ("types.rs", "use crate::config::NAME_BYTES_MAX;"),
    ];
    for (file, source) in bad {
        assert_eq!(complaints_about(file, source).len(), 1, "{file}: {source}");
    }
}

#[test]
fn each_way_to_the_outside_world_is_noticed() {
    let bad = [
        ("replica/mod.rs", "use std::time::Instant;"),
        ("replica/mod.rs", "use std::time::{Duration, SystemTime};"),
        ("replica/mod.rs", "fn f() { let now = std::time::Instant::now(); }"),
        ("replica/mod.rs", "fn f() { let now = ::std::time::Instant::now(); }"),
        ("replica/mod.rs", "use std::time;"),
        ("replica/mod.rs", "use std::time::{self, Duration};"),
        ("replica/mod.rs", "use std::time::*;"),
        ("replica/mod.rs", "use std::{fs, sync::Arc};"),
        ("replica/mod.rs", "use std::net::TcpStream;"),
        ("chat/mod.rs", "use tokio::sync::mpsc;"),
        ("chat/mod.rs", "#[tokio::test] async fn f() {}"),
        ("chat/mod.rs", "fn f() -> u64 { rand::random() }"),
        ("storage/scan.rs", "use std::fs::File;"),
        ("wire/codec.rs", "use tokio::net::TcpStream;"),
    ];
    for (file, source) in bad {
        assert_eq!(complaints_about(file, source).len(), 1, "{file}: {source}");
    }
}

#[test]
fn what_is_left_undone_is_noticed_with_its_line() {
    for word in ["todo!()", "unimplemented!(\"later\")", "dbg!(x)", "unsafe { x }"] {
        let source = format!("// fine\nfn f() {{\n    {word}\n}}\n");
        let complaints = complaints_about("server/mod.rs", &source);
        assert_eq!(complaints.len(), 1, "{word}");
        assert!(complaints[0].starts_with("server/mod.rs, line 3: found "), "{}", complaints[0]);
    }
}

#[test]
fn a_file_of_no_layer_is_noticed() {
    assert_eq!(complaints_about("util.rs", "").len(), 1);
    assert_eq!(complaints_about("bin/other.rs", "").len(), 1);
}

#[test]
fn what_is_allowed_is_not_complained_about() {
    let good = [
        ("replica/mod.rs", "use std::time::Duration;\nuse crate::time::Instant;"),
        ("replica/mod.rs", "use std::collections::{BTreeMap, VecDeque};\nuse std::sync::Arc;"),
        ("replica/log.rs", "mod tests { use super::*; use crate::types::ServerId; }"),
        ("wire/codec.rs", "use tokio_util::codec::Decoder;"),
        ("wire/mod.rs", "pub mod client; use self::client::decode; use super::message::Entry;"),
        ("storage/disk.rs", "use std::fs;"),
        ("chat/mod.rs", "// use crate::wire;\n/* todo!() /* dbg!(1) */ crate::wire::x */ fn f() {}"),
        (
            "chat/mod.rs",
            "fn f() { g(\"crate::wire::x \\\" todo!()\", r#\"dbg!(\"1\")\"#, b'\"', '\\'', '\"'); }",
        ),
        ("chat/mod.rs", "fn f<'a>(x: &'a str) -> &'a str { x } // 'todo!()"),
        ("chat/mod.rs", "impl<'a> F for G<'a> { fn todo(&self) { self.wire(); } }"),
        ("bin/client/main.rs", "mod output; use crate::output::Stop; use lastword::client::Client;"),
        ("lib.rs", "pub mod chat; pub mod wire;"),
    ];
    for (file, source) in good {
        assert_eq!(complaints_about(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}
