//! The size of what people must know: settings, verbs, metrics, alerts, panels, routes, lines. `surface.toml` has a
//! limit for each. A change that makes one grow changes its number there, in the same commit, with the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use granary::config::Config;
use granary::http::routes::admin_paths;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Surface {
    settings: usize,
    verbs: usize,
    metric_families: usize,
    alerts: usize,
    panels: usize,
    admin_routes: usize,
    /// `.ci/run` compares it with the time it took.
    #[serde(rename = "ci_minutes")]
    _ci_minutes: usize,
    production_lines: BTreeMap<String, usize>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn limits() -> Surface {
    let text = std::fs::read_to_string(root().join("tests/it/surface.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

/// The texts of all files below a folder with this ending.
fn texts(folder: &Path, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|found| found == ending));
    let here = files.map(|path| std::fs::read_to_string(path).unwrap());
    here.chain(folders.iter().flat_map(|folder| texts(folder, ending))).collect()
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

fn panels(board: &serde_json::Value) -> usize {
    let inner = board["panels"].as_array().into_iter().flatten();
    inner.map(|panel| panels(panel) + usize::from(panel["type"] != "row")).sum()
}

/// A limit is the number itself: room to grow would be used.
fn check(what: &str, found: usize, limit: usize) {
    assert_eq!(
        found, limit,
        "{what}: change its number in surface.toml in the same commit, with the reason if it grew"
    );
}

#[tokio::test]
async fn surface_is_as_large_as_its_file_says() {
    let limits = limits();
    let settings = Config::default().to_commented_toml();
    let is_setting = |line: &&str| {
        let name = line.trim_start_matches("# ").split_once(" = ").map(|(name, _)| name);
        name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    check("settings", settings.lines().filter(is_setting).count(), limits.settings);

    let help = stdout(Command::new(env!("CARGO_BIN_EXE_granary")).arg("--help"));
    let (_, commands) = help.split_once("Commands:\n").expect("the help lists commands");
    let commands = commands.lines().take_while(|line| line.starts_with("  "));
    let verbs = commands.filter(|line| !line.starts_with("   ") && !line.starts_with("  help")).count();
    check("verbs", verbs, limits.verbs);

    let granary = crate::harness::Granary::builtin("[budget]\ndaily_credits = 300\n").await;
    let families = granary.metrics().await.lines().filter(|line| line.starts_with("# TYPE ")).count();
    check("metric families", families, limits.metric_families);

    let rules = texts(&root().join("deploy/prometheus/rules"), "yaml").join("\n");
    check("alerts", rules.lines().filter(|line| line.trim().starts_with("- alert:")).count(), limits.alerts);
    let boards = texts(&root().join("grafana"), "json");
    let boards = boards.iter().map(|text| serde_json::from_str(text).unwrap());
    check("panels", boards.map(|board: serde_json::Value| panels(&board)).sum(), limits.panels);
    check("admin routes", admin_paths().len(), limits.admin_routes);
}

#[test]
fn no_folder_has_more_production_lines_than_its_file_says() {
    let limits = limits().production_lines;
    let counted = stdout(Command::new("python3").arg(root().join("tools/count")));
    let mut folders: BTreeMap<String, usize> = BTreeMap::new();
    for row in counted.lines().filter_map(|line| line.strip_prefix("  ")) {
        let columns: Vec<&str> = row.split_whitespace().collect();
        if let [folder, _files, code, comment, blank, _test, _long] = columns[..]
            && let (Ok(code), Ok(comment), Ok(blank)) =
                (code.parse::<usize>(), comment.parse::<usize>(), blank.parse::<usize>())
        {
            folders.insert(folder.to_owned(), code + comment + blank);
        }
    }
    assert!(folders.len() > 15, "{counted}");
    for (folder, lines) in folders {
        let limit = limits.get(&folder).unwrap_or_else(|| panic!("surface.toml has no number for {folder}"));
        // A number per line would change with every commit; a hundred lines are a decision.
        assert!(lines <= *limit, "{folder} has {lines} lines, more than the {limit} of surface.toml");
        assert!(lines + 100 > *limit, "{folder} has {lines} lines: lower the {limit} of surface.toml");
    }
}
