//! The shape of the source: `src/lib.rs` draws who may import whom, and the files keep to it.
//!
//! Tests may name whatever they test, so what is compiled for tests only does not count here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Lines of a file, without its tests: beyond that a second idea has moved in.
const MAX_LINES: usize = 500;
/// Lines of a function.
const MAX_FUNCTION_LINES: usize = 70;
/// Functions that are tables.
const TABLES: [&str; 1] = ["error.rs: response"];
/// What has implementations that only the composition root may name.
const SEAMS: [&str; 4] = ["Leases", "Store", "Upstream", "ResultSource"];

/// A file of the program.
struct Source {
    /// Below `src`, as `store/local.rs`.
    path: String,
    /// All of it.
    text: String,
    /// What is compiled into the program: no tests, no comments.
    code: String,
}

impl Source {
    /// The module it belongs to that the map knows: `store` for `store/local.rs`.
    fn top(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Its own module: `store::local` for `store/local.rs`.
    fn module(&self) -> String {
        self.path.strip_suffix(".rs").unwrap().replace('/', "::")
    }
}

/// All files of the program that are not tests.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&root);
    let tests: Vec<String> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let is_test = |path: &str| {
        tests.iter().any(|module| {
            path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    };
    let sources: Vec<_> = files
        .into_iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| Source { code: code_of(&text), path, text })
        .collect();
    assert!(sources.len() > 50, "only {} files were found", sources.len());
    sources
}

/// Path below the folder, and text, of every Rust file.
fn rust_files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.push((below, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The modules a file declares for tests only, as paths without `.rs`.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let parent = match path {
        "lib.rs" | "main.rs" => String::new(),
        path => format!("{}/", path.strip_suffix(".rs").unwrap()),
    };
    let mut modules = Vec::new();
    let mut for_tests = false;
    for line in text.lines().map(str::trim) {
        for_tests |= line == "#[cfg(test)]";
        if line.starts_with("#[") {
            continue;
        }
        if let Some((_, name)) = line.split_once("mod ").filter(|_| for_tests)
            && let Some(name) = name.strip_suffix(';')
        {
            modules.push(format!("{parent}{name}"));
        }
        for_tests = false;
    }
    modules
}

/// A file without the tests at its foot and without comments.
fn code_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path that code names: those of `use`, with their braces expanded, and those written in full.
fn paths(code: &str) -> Vec<Vec<String>> {
    const BEGINNINGS: [&str; 4] = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
    let (mut found, mut rest) = (Vec::new(), String::new());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let Some(begun) = BEGINNINGS.iter().find_map(|beginning| line.trim().strip_prefix(beginning)) else {
            rest.push_str(line);
            rest.push('\n');
            continue;
        };
        let mut tree = begun.to_owned();
        while !tree.ends_with(';') {
            tree.push_str(lines.next().expect("a use ends"));
        }
        expand(&[], tree.trim_end_matches(';'), &mut found);
    }
    let is_of_a_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in rest.split(|c| !is_of_a_path(c)) {
        let path: Vec<String> = word.split("::").map(str::to_owned).collect();
        if path.len() > 1 && ["crate", "granary", "super", "self"].contains(&path[0].as_str()) {
            found.push(path);
        }
    }
    found
}

/// Adds the paths of a `use` tree: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand(before: &[String], tree: &str, found: &mut Vec<Vec<String>>) {
    let (names, branches) = match tree.split_once('{') {
        Some((names, branches)) => (names, branches.trim_end().strip_suffix('}')),
        None => (tree.split(" as ").next().expect("a split has a first part"), None),
    };
    let names = names.split("::").map(str::trim).filter(|name| !name.is_empty());
    let path: Vec<String> = before.iter().cloned().chain(names.map(str::to_owned)).collect();
    let Some(branches) = branches else {
        // A sentence in quotes may have the word in it.
        found.extend(Some(path).filter(|path| !path.is_empty()));
        return;
    };
    let mut depth = 0;
    let is_between = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    for branch in branches.split(is_between).filter(|branch| !branch.trim().is_empty()) {
        expand(&path, branch, found);
    }
}

/// The folders that code names as `crate::folder`, or `granary::folder` from the binary.
fn imports(code: &str) -> BTreeSet<String> {
    let from_root = |path: &Vec<String>| ["crate", "granary"].contains(&path[0].as_str()) && path.len() > 1;
    paths(code).into_iter().filter(from_root).map(|mut path| path.swap_remove(1)).collect()
}

/// For each folder of `src`, at any depth, which of its modules imports which other. What a parent
/// re-exports from a module counts as an import of that module.
fn graphs_of_folders(sources: &[Source]) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let modules: BTreeMap<Vec<String>, Vec<Vec<String>>> = sources
        .iter()
        .map(|source| {
            let module: Vec<String> = source.module().split("::").map(str::to_owned).collect();
            let paths = paths(&source.code).into_iter().map(|path| absolute(&module, path)).collect();
            (module, paths)
        })
        .collect();
    // The module that a path leads into.
    let resolve = |path: &[String]| {
        let known =
            (1..=path.len()).rev().map(|end| &path[..end]).find(|module| modules.contains_key(*module))?;
        let name = path.get(known.len())?;
        let is_of = |inner: &&Vec<String>| {
            inner.len() > known.len() + 1
                && inner.starts_with(known)
                && inner.last() == Some(name)
                && modules.contains_key(&inner[..=known.len()])
        };
        let re_exported = modules[known].iter().find(is_of).map(|inner| inner[..=known.len()].to_vec());
        Some(re_exported.unwrap_or_else(|| known.to_vec()))
    };
    let mut graphs: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, paths) in &modules {
        for to in paths.iter().filter_map(|path| resolve(path)) {
            let shared = module.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if shared > 0 && shared < module.len() && shared < to.len() {
                let graph = graphs.entry(module[..shared].join("::")).or_default();
                graph.entry(to[shared].clone()).or_default();
                graph.entry(module[shared].clone()).or_default().insert(to[shared].clone());
            }
        }
    }
    graphs
}

/// A path as seen from the root of the crate; one of another crate is of no module here.
fn absolute(module: &[String], path: Vec<String>) -> Vec<String> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    match path[0].as_str() {
        "crate" | "granary" => path[1..].to_vec(),
        "self" => [module, &path[1..]].concat(),
        "super" => [&module[..module.len().saturating_sub(ups)], &path[ups..]].concat(),
        _ => [module, &path].concat(),
    }
}

/// Functions of more than [`MAX_FUNCTION_LINES`], as `file: name`.
fn long_functions(path: &str, code: &str) -> Vec<String> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let indent = line.len() - line.trim_start().len();
        let is_signature = before
            .trim()
            .split(' ')
            .all(|word| ["", "pub", "pub(crate)", "pub(super)", "async", "const", "unsafe"].contains(&word));
        let is_declared_only = lines[begin..]
            .iter()
            .find(|line| line.ends_with(['{', ';']))
            .is_some_and(|line| line.ends_with(';'));
        if !is_signature || is_declared_only {
            continue;
        }
        let end = format!("{}}}", &line[..indent]);
        let length = lines[begin..].iter().position(|line| *line == end).unwrap_or(0) + 1;
        if length > MAX_FUNCTION_LINES {
            found.push(format!(
                "{path}: {}",
                after.split(['(', '<']).next().expect("a split has a first part")
            ));
        }
    }
    found
}

/// The map of `src/lib.rs`: the level of each module, the importers first.
fn map() -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let (_, after) = text.split_once("# Who may import whom").expect("lib.rs has the map");
    let block = after.split("```").nth(1).expect("the map stands in a block");
    let words = block.replace("text\n", "").replace("//!", " ").replace(['{', '}', ','], " ");
    let levels = words.split('>').enumerate();
    let names = levels.flat_map(|(level, names)| names.split_whitespace().map(move |name| (name, level)));
    names.map(|(name, level)| (name.to_owned(), level)).collect()
}

/// Whom each module imports.
fn graph(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.path != "lib.rs") {
        let mut imports = imports(&source.code);
        imports.remove(source.top());
        graph.entry(source.top().to_owned()).or_default().extend(imports);
    }
    graph
}

/// Imports that point up the map.
fn upward(graph: &BTreeMap<String, BTreeSet<String>>, map: &BTreeMap<String, usize>) -> Vec<String> {
    let edges = graph.iter().flat_map(|(from, imports)| imports.iter().map(move |to| (from, to)));
    edges
        .filter(|(from, to)| map[*from] > map[*to])
        .map(|(from, to)| format!("{from} imports {to}"))
        .collect()
}

/// The modules of circles of imports, and those that lead into one. What imports nothing that is
/// left is taken away, until nothing is left, or only what cannot be.
fn circular(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut left = graph.clone();
    loop {
        let free: Vec<String> = left
            .iter()
            .filter(|(_, imports)| !imports.iter().any(|import| left.contains_key(import)))
            .map(|(module, _)| module.clone())
            .collect();
        if free.is_empty() {
            return left.into_keys().collect();
        }
        left.retain(|module, _| !free.contains(module));
    }
}

#[test]
fn the_map_names_every_module_and_no_other() {
    let modules: BTreeSet<String> = graph(&sources()).into_keys().collect();
    let mapped: BTreeSet<String> = map().into_keys().collect();
    assert_eq!(modules, mapped, "left: the files of src; right: the map in src/lib.rs");
}

#[test]
fn imports_point_one_way() {
    let graph = graph(&sources());
    assert_eq!(upward(&graph, &map()), Vec::<String>::new());
    assert_eq!(circular(&graph), BTreeSet::new());
    // The reader of imports reads them.
    for (from, to) in [("main", "cli"), ("app", "http"), ("http", "gateway"), ("fill", "ledger")] {
        assert!(graph[from].contains(to), "{from} imports {to}");
    }
}

#[test]
fn an_import_up_the_map_and_a_circle_are_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            graph.entry((*to).to_owned()).or_default();
        }
        graph
    };
    let found = upward(&graph(&[("http", "gateway"), ("store", "error")]), &map());
    assert_eq!(found, ["store imports error"]);
    assert!(circular(&graph(&[("fill", "slots"), ("fill", "cache"), ("slots", "cache")])).is_empty());
    let circle = circular(&graph(&[("fill", "slots"), ("slots", "cache"), ("cache", "slots")]));
    assert!(circle.contains("slots") && circle.contains("cache"));
    let code =
        "use crate::base::record::Record;\nlet x = my_crate::not_this;\nf(crate::fill::FillRequest::new())";
    assert_eq!(imports(code), ["fill", "base"].map(str::to_owned).into());
}

#[test]
fn modules_of_a_folder_import_each_other_one_way() {
    let graphs = graphs_of_folders(&sources());
    let circles: Vec<_> = graphs.iter().map(|(folder, graph)| (folder, circular(graph))).collect();
    let circles: Vec<_> = circles.into_iter().filter(|(_, circle)| !circle.is_empty()).collect();
    assert_eq!(circles, []);
    assert!(graphs["fill"]["task"].contains("lease"), "the reader of imports reads them");
}

#[test]
fn circle_inside_a_folder_is_found_also_through_a_re_export() {
    let source =
        |path: &str, code: &str| Source { path: path.to_owned(), text: String::new(), code: code.to_owned() };
    let circle = |one: &str, two: &str| {
        let root = source("ledger.rs", "mod one;\nmod two;\npub use two::{Two, Three};\n");
        let graphs = graphs_of_folders(&[root, source("ledger/one.rs", one), source("ledger/two.rs", two)]);
        graphs.get("ledger").is_some_and(|graph| !circular(graph).is_empty())
    };
    let one = "use std::fmt;\nuse crate::ledger::{Other, one};\n";
    assert!(!circle(one, "use super::one::One;\n"));
    assert!(circle("use super::two::{Two};\n", "use super::one::One;\n"));
    assert!(circle("use super::{Another, Two};\n", "fn f() { super::one::f() }\n"));
    assert!(circle("use crate::ledger::Three;\n", "fn f() { crate::ledger::one::f() }\n"));
}

#[test]
fn functions_fit_on_a_screen() {
    let long: Vec<_> =
        sources().iter().flat_map(|source| long_functions(&source.path, &source.code)).collect();
    assert_eq!(long, TABLES, "longer than {MAX_FUNCTION_LINES} lines");
    let function =
        |lines| format!("impl A {{\n    async fn f() {{\n{}    }}\n}}\n", "        g();\n".repeat(lines));
    assert_eq!(long_functions("a.rs", &function(68)), Vec::<String>::new());
    assert_eq!(long_functions("a.rs", &function(80)), ["a.rs: f"]);
}

#[test]
fn stores_ledgers_and_upstreams_do_not_know_what_clients_are_told() {
    let graph = graph(&sources());
    for seam in ["store", "ledger", "upstream"] {
        for above in ["error", "gateway", "http", "fill"] {
            assert!(!graph[seam].contains(above), "{seam} imports {above}");
        }
    }
}

#[test]
fn only_the_composition_root_names_implementations() {
    let sources = sources();
    let implements =
        |source: &&Source| SEAMS.iter().any(|seam| source.code.contains(&format!("impl {seam} for ")));
    let implementations: Vec<&Source> = sources.iter().filter(implements).collect();
    let modules: Vec<String> = implementations.iter().map(|source| source.module()).collect();
    for known in
        ["ledger::sqlite", "store::local", "upstream::ailab", "upstream::builtin", "upstream::download::http"]
    {
        assert!(modules.iter().any(|module| module == known), "{known} is not among {modules:?}");
    }
    for source in sources.iter().filter(|source| source.top() != "app") {
        for implementation in &implementations {
            let name = format!("crate::{}", implementation.module());
            let is_own = source.top() == implementation.top();
            assert!(is_own || !source.code.contains(&name), "{} names {name}", source.path);
        }
    }
}

/// The methods of a trait, or of its implementation: `fn name(` from where that begins to where it ends.
fn methods(code: &str, beginning: &str) -> BTreeSet<String> {
    let (_, after) = code.split_once(beginning).unwrap_or_else(|| panic!("there is no {beginning}"));
    let (body, _) = after.split_once("\n}\n").expect("it ends");
    let names = body.split("\n    ").filter_map(|line| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        Some(line.strip_prefix("fn ")?.split(['(', '<']).next()?.to_owned())
    });
    names.collect()
}

/// What a trait says by default would be said in the place of what is inside.
#[test]
fn whoever_wraps_a_seam_hands_on_all_of_its_methods() {
    let sources = sources();
    let code = |path: &str| {
        let source = sources.iter().find(|source| source.path == path);
        format!("{}\n", source.unwrap_or_else(|| panic!("there is no {path}")).code)
    };
    for (seam, path, wrapper, file) in [
        ("Store", "store.rs", "Spool", "ledger/spooling.rs"),
        ("Store", "store.rs", "MeteredStore", "metrics/store.rs"),
    ] {
        let promised = methods(&code(path), &format!("pub trait {seam}: Send + Sync {{"));
        assert!(promised.len() > 8, "{promised:?}");
        let kept = methods(&code(file), &format!("impl {seam} for {wrapper} {{"));
        assert_eq!(kept, promised, "{wrapper}");
    }
}

#[test]
fn every_file_says_what_it_is_about() {
    for source in sources() {
        assert!(source.text.starts_with("//!"), "{} has no module documentation", source.path);
    }
}

#[test]
fn no_file_is_longer_than_can_be_read_at_once() {
    for source in sources() {
        let end = source.text.find("#[cfg(test)]\nmod tests {").unwrap_or(source.text.len());
        let lines = source.text[..end].lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines: which second idea has moved in?", source.path);
    }
}

#[test]
fn no_test_is_ignored_but_those_that_something_else_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut ignored = Vec::new();
    for folder in ["src", "tests", "engine/src", "engine/tests"] {
        for (path, text) in rust_files(&root.join(folder)) {
            let tests = text.lines().filter(|line| line.trim_start().starts_with("#[ignore"));
            ignored.extend(tests.map(|_| format!("{folder}/{path}")));
        }
    }
    // What `make test-all` runs, all of it.
    ignored.retain(|path| !path.starts_with("tests/it/proxies"));
    // The child process of the test below it, and what `make crash` and `make soak` run.
    assert_eq!(
        ignored,
        [
            "src/store/local/crash_tests.rs",
            // It has made the fixtures, with an earlier program.
            "tests/fixtures/make.rs",
            "tests/it/campaign.rs",
            "tests/it/soak.rs"
        ]
    );
}
