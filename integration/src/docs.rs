//! Holds the comparison in `docs/` to its word: every test that a row names exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The functions of each source file below `folder`, by the file's name; `.rs` stays where `stem`
/// is false.
fn functions(folder: &Path, stem: bool, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() && !matches!(name.as_str(), "target" | ".git" | ".cache") {
            functions(&path, stem, found);
        } else if let Some(module) = name.strip_suffix(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let key = if stem { module } else { &name };
            let names = text.lines().filter_map(|line| line.trim().strip_prefix("fn "));
            let names = names.filter_map(|rest| rest.split(['(', '<']).next());
            found.entry(key.to_owned()).or_default().extend(names.map(str::to_owned));
        }
    }
}

/// `file::name` in a cell, then names of the same file; `file::*` for all of it.
fn named(cell: &str) -> Vec<(String, String)> {
    let mut file = None;
    let mut tests = Vec::new();
    for (index, word) in cell.split('`').enumerate() {
        let is_name = |word: &str| {
            word == "*"
                || word.contains('_') && word.chars().all(|c| c.is_alphanumeric() || c == '_')
        };
        match word.split_once("::") {
            _ if index % 2 == 0 => {}
            Some((module, name)) => {
                file = Some(module.to_owned());
                tests.push((module.to_owned(), name.to_owned()));
            }
            None if is_name(word) => {
                tests.extend(file.clone().map(|file| (file, word.to_owned())));
            }
            None => {}
        }
    }
    tests
}

#[test]
fn every_test_that_the_docs_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut known = BTreeMap::new();
    functions(&root.join("integration/tests"), true, &mut known);
    functions(&root, false, &mut known);
    let mut count = 0;
    for page in fs::read_dir(root.join("docs")).unwrap().flatten() {
        let text = fs::read_to_string(page.path()).unwrap();
        let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
        for (number, line) in rows {
            for (file, name) in line.split('|').flat_map(named) {
                let names = known.get(&file);
                let exists = names.is_some_and(|names| name == "*" || names.contains(&name));
                assert!(exists, "{}:{}: {file}::{name}", page.path().display(), number + 1);
                count += 1;
            }
        }
    }
    assert!(count > 100, "only {count} tests are named in docs/");
}

#[test]
fn names_follow_their_file() {
    let pair = |file: &str, name: &str| (file.to_owned(), name.to_owned());
    assert_eq!(
        named(" `a::one_two`, `three_four`; `word`, unit: `plan.rs::versions` and `b::*` "),
        [
            pair("a", "one_two"),
            pair("a", "three_four"),
            pair("plan.rs", "versions"),
            pair("b", "*")
        ]
    );
}
