//! `faults.md` beside this file: every fault has its row, and every test a row names exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How many faults each part of the list has.
const PARTS: [(char, u32); 6] = [('A', 11), ('B', 11), ('E', 15), ('F', 9), ('H', 10), ('I', 10)];

/// What a row says shows its fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    By(Vec<String>),
    NotYet,
    Nowhere,
}

fn table() -> &'static str {
    include_str!("faults.md")
}

/// The rows of a table: number, and what shows it.
pub(crate) fn rows(table: &str) -> Vec<(String, Shown)> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.skip(1)
        .map(|row| {
            let [number, fault, shown] = row.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("not three columns: {row}");
            };
            assert!(!fault.is_empty(), "{row}");
            // Every other piece between the marks of code.
            let tests: Vec<String> = shown.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            let reason = |word: &str| shown.strip_prefix(word).is_some_and(|why| why.len() > 10);
            let shown = match () {
                () if reason("not yet: ") => Shown::NotYet,
                () if reason("nowhere: ") => Shown::Nowhere,
                () => Shown::By(tests),
            };
            (number.to_owned(), shown)
        })
        .collect()
}

/// The name of every test of the workspace, with the path of its file.
pub(crate) fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = BTreeSet::new();
    for (folder, prefix) in [
        ("src", ""),
        ("tests/it", "it::"),
        ("tests/kit/src", "kit::"),
        ("engine/src", "engine::"),
        ("engine/tests", "engine::"),
    ] {
        collect(&root.join(folder), prefix, &mut all);
    }
    all
}

fn collect(folder: &Path, prefix: &str, all: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            collect(&path, &format!("{prefix}{stem}::"), all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            all.extend(tests_in(&text).into_iter().map(|name| format!("{prefix}{stem}::{name}")));
        }
    }
}

/// The functions below `#[test]` and its like.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        match line.strip_prefix("#[") {
            Some(attribute) => {
                is_test |= attribute.starts_with("test]") || attribute.starts_with("tokio::test")
            }
            None => {
                let line = line.strip_prefix("async ").unwrap_or(line);
                if let (true, Some(rest)) = (is_test, line.strip_prefix("fn ")) {
                    names.push(rest.split('(').next().unwrap().to_owned());
                }
                is_test = false;
            }
        }
    }
    names
}

/// Every number of the list.
fn numbers() -> Vec<String> {
    PARTS
        .into_iter()
        .flat_map(|(part, last)| (1..=last).map(move |number| format!("{part}{number}")))
        .collect()
}

/// What is wrong with a table that has a row for each of these numbers.
pub(crate) fn faults_of(table: &str, numbers: &[String], tests: &BTreeSet<String>) -> Vec<String> {
    let rows = rows(table);
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for (number, shown) in &rows {
        *counts.entry(number).or_default() += 1;
        match shown {
            Shown::By(named) if named.is_empty() => {
                wrong.push(format!("{number} names no test and no reason"))
            }
            Shown::By(named) => {
                let missing = named.iter().filter(|test| !tests.contains(*test));
                wrong.extend(missing.map(|test| format!("{number} names {test}, which does not exist")));
            }
            Shown::NotYet | Shown::Nowhere => {}
        }
    }
    for number in numbers {
        match counts.remove(number.as_str()) {
            Some(1) => {}
            Some(more) => wrong.push(format!("{number} has {more} rows")),
            None => wrong.push(format!("{number} has no row")),
        }
    }
    wrong.extend(counts.keys().map(|number| format!("{number} is no number of the list")));
    wrong
}

#[test]
fn every_fault_has_its_row_and_every_test_it_names_exists() {
    assert_eq!(faults_of(table(), &numbers(), &tests()), Vec::<String>::new());
    let open = rows(table()).into_iter().filter(|(_, shown)| *shown == Shown::NotYet);
    println!("not yet: {:?}", open.map(|(number, _)| number).collect::<Vec<_>>());
}

#[test]
fn a_missing_row_a_missing_test_and_a_missing_reason_are_found() {
    let tests = tests();
    assert!(tests.len() > 300, "{}", tests.len());
    let check = |from: &str, to: &str, expected: &[&str]| {
        let edited = table().replacen(from, to, 1);
        assert_ne!(edited, table(), "{from}");
        assert_eq!(faults_of(&edited, &numbers(), &tests), expected, "{from} to {to}");
    };
    check("| E7 |", "| E16 |", &["E7 has no row", "E16 is no number of the list"]);
    check("| E7 |", "| E8 |", &["E7 has no row", "E8 has 2 rows"]);
    check(
        "`it::race::two_processes",
        "`it::race::three_processes",
        &["I4 names it::race::three_processes_on_one_bucket_agree_and_never_overwrite, which does not exist"],
    );
    check("`it::disk::a_slow_disk_slows_down_misses_alone`", "", &["H7 names no test and no reason"]);
    check("`it::disk::a_slow_disk_slows_down_misses_alone`", "nowhere: disks are quick", &[]);
}
