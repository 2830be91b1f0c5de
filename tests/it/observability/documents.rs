//! Rules, alerts and the runbook say the same, and Prometheus's own tool finds nothing wrong with them.

use std::collections::BTreeSet;

use granary_kit::process::GranaryProcess;
use granary_kit::prometheus::promtool;

use super::promql::names;
use super::{PATIENCE, path, read};

const ALERTS: &str = "deploy/prometheus/rules/alerts.yaml";
const RUNBOOK: &str = "deploy/runbook.md";

/// Files below a folder of the repository.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path(folder)).unwrap().flatten() {
        let name = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() { found.extend(files(&name)) } else { found.push(name) }
    }
    found.sort();
    found
}

/// Everything that names metrics, and what it says.
pub(super) fn texts() -> Vec<(String, String)> {
    let pages = files("deploy").into_iter().filter(|file| file.ends_with(".md"));
    let all = files("grafana").into_iter().chain(files("deploy/prometheus")).chain(pages);
    all.map(|file| (file.clone(), read(&file))).collect()
}

/// Name, severity and runbook address of each alert, in order.
fn alerts() -> Vec<(String, String, String)> {
    let text = read(ALERTS);
    let mut entries = text.split("- alert: ");
    entries.next();
    entries
        .map(|entry| {
            let field = |name: &str| {
                let line = entry.lines().find_map(|line| line.trim().strip_prefix(name));
                line.unwrap_or_else(|| panic!("{name} is missing in {entry}")).trim().to_owned()
            };
            let severity = field("labels: { severity: ").trim_end_matches(" }").to_owned();
            assert!(!field("summary: ").is_empty() && !field("description: ").is_empty());
            (entry.lines().next().unwrap().to_owned(), severity, field("runbook_url: "))
        })
        .collect()
}

/// Families at most. A new one needs a panel, a rule or a runbook entry, and another number here with its reason.
const MOST_FAMILIES: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_metric_family_is_on_a_board_in_a_rule_or_in_the_runbook_and_there_are_at_most_64() {
    // Budgets have series when there are any.
    let granary = crate::harness::Granary::builtin("[budget]\ndaily_credits = 300\n").await;
    let text = granary.metrics().await;
    let families: Vec<&str> =
        text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split_once(' ')?.0)).collect();
    assert!((40..=MOST_FAMILIES).contains(&families.len()), "{} families", families.len());
    let texts = texts().into_iter().filter(|(file, _)| !file.contains("prometheus/tests/"));
    let used: BTreeSet<String> = texts.flat_map(|(_, text)| names(&text)).collect();
    let is_used = |family: &str| {
        ["", "_bucket", "_sum", "_count"].iter().any(|part| used.contains(&format!("{family}{part}")))
    };
    let unused: Vec<_> = families.into_iter().filter(|family| !is_used(family)).collect();
    assert!(unused.is_empty(), "nothing shows {unused:?}");
}

fn promtool_accepts(arguments: &[&str], files: &[String]) {
    let files: Vec<String> = files.iter().map(|file| path(file).display().to_string()).collect();
    let arguments: Vec<&str> = arguments.iter().copied().chain(files.iter().map(String::as_str)).collect();
    let said = promtool(&arguments, b"");
    let text = [said.stdout, said.stderr].concat();
    assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&text));
}

#[test]
fn promtool_finds_nothing_wrong_with_the_rules_and_the_example() {
    promtool_accepts(&["check", "rules"], &files("deploy/prometheus/rules"));
    promtool_accepts(&["check", "config"], &["deploy/prometheus/prometheus.yaml".to_owned()]);
}

#[test]
fn each_alert_fires_beyond_its_threshold_and_is_silent_before() {
    promtool_accepts(&["test", "rules"], &files("deploy/prometheus/tests"));
    let tests: String = files("deploy/prometheus/tests").iter().map(|file| read(file)).collect();
    for (alert, ..) in alerts() {
        let entry = tests.split("  - name: ").find(|entry| entry.split_whitespace().next() == Some(&alert));
        let entry = entry.unwrap_or_else(|| panic!("no test of {alert}"));
        let (silent, fires) =
            entry.split_once("promql_expr_test:").unwrap().1.trim_end().split_once('\n').unwrap();
        let named = format!("alertname=\"{alert}\"");
        assert!(!silent.contains(&named) && fires.contains(&named), "{alert}: {entry}");
    }
}

#[test]
fn each_alert_has_its_entry_in_the_runbook_and_the_runbook_no_other() {
    let runbook = read(RUNBOOK);
    let entries: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts = alerts();
    let names: Vec<&str> = alerts.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(entries, names, "entries and alerts are in the same order");
    for (name, severity, url) in &alerts {
        assert!(["page", "ticket"].contains(&severity.as_str()), "{name}: {severity}");
        assert_eq!(url.rsplit_once('#').map(|(_, anchor)| anchor), Some(name.as_str()));
        let entry = runbook.split("<a id=\"").find(|entry| entry.starts_with(&format!("{name}\"></a>")));
        let entry = entry.unwrap_or_else(|| panic!("no anchor for {name}"));
        assert!(entry.contains(&format!("\n*{severity}*")), "{name}: its severity is {severity}");
        for part in ["**Look**", "**Do**"] {
            assert!(entry.contains(part), "{name} has no {part}");
        }
    }
}

/// What an engineer types at three in the morning exists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_and_route_of_the_runbook_exists() {
    let runbook = read(RUNBOOK);
    let code = runbook.split('`').skip(1).step_by(2);
    let verbs: BTreeSet<&str> = code
        .filter_map(|code| code.trim_start_matches(['\n', '$', ' ']).strip_prefix("granary "))
        .map(|rest| rest.split_whitespace().next().unwrap())
        .collect();
    assert!(verbs.len() >= 5, "{verbs:?}");
    for verb in verbs {
        let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"));
        let told = builder.args([verb, "--help"]).run(PATIENCE).await;
        assert!(told.status.success(), "granary {verb}: {}", told.stderr);
    }
    let api = crate::harness::Granary::builtin("").await;
    let openapi =
        granary_kit::client::get(&format!("{}/admin/openapi.json", api.admin())).await.unwrap().json();
    let routes: BTreeSet<&str> = runbook
        .split("9090/")
        .skip(1)
        .map(|rest| rest.split([' ', '?', '`', '\'', '\n']).next().unwrap())
        .collect();
    for route in routes {
        let is_known = ["livez", "readyz", "metrics"].contains(&route)
            || openapi["paths"].get(format!("/{route}")).is_some();
        assert!(is_known, "/{route}");
    }
}

#[test]
fn the_board_links_of_the_runbook_lead_to_panels_that_exist() {
    let titles: BTreeSet<String> = super::boards::boards()
        .iter()
        .flat_map(|board| board.questions().into_iter().map(|(question, _)| question))
        .collect();
    let runbook = read(RUNBOOK);
    let quoted: Vec<&str> = runbook.split('“').skip(1).map(|rest| rest.split('”').next().unwrap()).collect();
    assert!(quoted.len() > 20, "{quoted:?}");
    for title in quoted {
        assert!(titles.contains(title), "no panel asks: {title}");
    }
}
