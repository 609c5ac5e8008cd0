//! The list of mutants and the code name the same rules: each mutant stands once in the code, and nowhere else than
//! where the list can find it. `scripts/mutants` shows that they die.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LIST: &str = include_str!("mutants.csv");

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

/// All Rust files below a directory.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The names in `removed!("…")` below `src/`, and in which file each stands.
fn inserted() -> Vec<(String, String)> {
    let source = root().join("src");
    let mut found = Vec::new();
    for path in rust_files(&source).into_iter().filter(|path| !path.ends_with("mutant.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        for after in text.split("removed!(").skip(1) {
            let name = after.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            let file = path.strip_prefix(&source).unwrap().display().to_string();
            found
                .push((name.unwrap_or_else(|| panic!("{file}: found removed! without a name")).into(), file));
        }
    }
    found
}

/// The rows of the list: name, how it is killed, what is taken away.
fn listed() -> Vec<[&'static str; 3]> {
    let mut lines = LIST.lines();
    assert_eq!(lines.next(), Some("mutant,killed_by,removed"), "the list's header");
    lines
        .map(|line| {
            let fields: Vec<_> = line.splitn(3, ',').collect();
            fields.try_into().unwrap_or_else(|_| panic!("mutants.csv: found {line:?}, expected three fields"))
        })
        .collect()
}

#[test]
fn every_listed_mutant_stands_once_in_the_code_and_every_one_there_is_listed() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in inserted() {
        places.entry(name).or_default().push(file);
    }
    let names: BTreeSet<_> = listed().into_iter().flat_map(|[mutant, ..]| mutant.split('+')).collect();
    for name in names {
        let found = places.remove(name).unwrap_or_default();
        assert_eq!(found.len(), 1, "{name} is listed: found it in {found:?}, expected one place");
    }
    assert!(places.is_empty(), "found in the code, but not in mutants.csv: {places:?}");
}

#[test]
fn every_mutant_is_named_after_a_rule_and_says_how_it_is_killed() {
    let source = |module: &str| fs::read_to_string(root().join(format!("tests/simulation/{module}.rs")));
    for [name, killed_by, removed] in listed() {
        for name in name.split('+') {
            let rule = name.split('-').next().unwrap();
            let (letter, number) = rule.split_at(1);
            let is_rule =
                "NVTRDHX".contains(letter) && number.parse::<u8>().is_ok() && rule.len() < name.len();
            assert!(is_rule, "found the mutant {name}, expected a name like V4-longest");
        }
        assert!(!removed.is_empty(), "{name} does not say what is taken away");
        let is_way = match killed_by.split_once("::") {
            Some((module, test)) => source(module).is_ok_and(|text| text.contains(&format!("fn {test}()"))),
            None => ["swarm", "liveness", "harmless"].contains(&killed_by),
        };
        assert!(
            is_way,
            "{name}: found {killed_by}, expected swarm, liveness, a test of the simulation or harmless"
        );
    }
}

#[test]
#[cfg(not(lastword_mutants))]
fn the_programs_have_no_trace_of_mutants() {
    let [first, ..] = listed()[0];
    for program in [env!("CARGO_BIN_EXE_server"), env!("CARGO_BIN_EXE_client")] {
        let bytes = fs::read(program).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for word in ["LASTWORD_MUTANT", first] {
            assert!(!text.contains(word), "{program}: found {word}, expected it nowhere");
        }
    }
}
