//! The corpus of the fuzz targets, replayed: `make fuzz` looks for more.

use std::path::Path;

#[path = "../../fuzz/targets.rs"]
mod targets;

/// One of the functions that the fuzzer feeds.
type Target = fn(&[u8]);

/// Feeds every file of a target's corpus; returns their number.
fn replay(name: &str, target: Target) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in &files {
        let bytes = std::fs::read(file).unwrap();
        let held = std::panic::catch_unwind(|| target(&bytes));
        assert!(held.is_ok(), "{}", file.display());
    }
    files.len()
}

#[test]
fn corpus_of_every_target_is_replayed() {
    let targets: [(&str, Target); 5] = [
        ("heads", targets::heads),
        ("forms", targets::forms),
        ("answers", targets::answers),
        ("pictures", targets::pictures),
        ("records", targets::records),
    ];
    for (name, target) in targets {
        assert!(replay(name, target) >= 5, "{name} has hardly a corpus");
    }
}

#[test]
fn target_that_does_not_hold_fails() {
    let fails = std::panic::catch_unwind(|| replay("heads", |bytes| assert!(bytes.is_empty(), "it is fed")));
    assert!(fails.is_err());
}
