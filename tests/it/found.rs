//! `found.md` beside this file: every defect has its row, and every test a row names exists.

use crate::faults::{Shown, faults_of, rows, tests};

const TABLE: &str = include_str!("found.md");

fn ids() -> Vec<String> {
    let ranges = [("A", 11), ("B", 8), ("C", 5)];
    let in_ranges = ranges.into_iter().flat_map(|(part, last)| (1..=last).map(move |n| format!("{part}{n}")));
    let alone = [
        "E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10", "E11", "E12", "E13", "E14", "E15",
        "E16", "F1", "G1",
    ];
    in_ranges.chain(alone.map(str::to_owned)).collect()
}

#[test]
fn every_defect_has_its_row_and_every_test_it_names_exists() {
    assert_eq!(faults_of(TABLE, &ids(), &tests()), Vec::<String>::new());
    let open = rows(TABLE).into_iter().filter(|(_, shown)| *shown == Shown::NotYet);
    println!("not yet: {:?}", open.map(|(id, _)| id).collect::<Vec<_>>());
}

#[test]
fn missing_row_and_missing_test_are_found() {
    let check = |from: &str, to: &str, expected: &[&str]| {
        let edited = TABLE.replacen(from, to, 1);
        assert_ne!(edited, TABLE, "{from}");
        assert_eq!(faults_of(&edited, &ids(), &tests()), expected, "{from} to {to}");
    };
    check("| E16 |", "| E17 |", &["E16 has no row", "E17 is no number of the list"]);
    check(
        "`it::integrity::process_cannot",
        "`it::integrity::process_can",
        &["E16 names it::integrity::process_can_be_dumped_or_looked_into, which does not exist"],
    );
}
