//! The boards as a person would look at them: each panel asks a question and says what its answer means, in a unit,
//! without covering another; and nothing in them is about one machine.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{path, read};

/// What a panel or a board may take from a variable of Grafana's own.
const OF_GRAFANA: [&str; 3] = ["__rate_interval", "__range", "__data.fields.alertname"];
/// Where the runbook can be read, until it is changed.
const RUNBOOK: &str = "https://runbook.example.com/granary.md";

pub(super) struct Board {
    pub(super) name: String,
    json: Value,
}

/// All of them.
pub(super) fn boards() -> Vec<Board> {
    let files = std::fs::read_dir(path("grafana/dashboards")).unwrap();
    let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
        .into_iter()
        .map(|file| {
            let json = serde_json::from_str(&read(&format!("grafana/dashboards/{file}")));
            let json = json.unwrap_or_else(|error| panic!("{file}: {error}"));
            Board { name: file.strip_suffix(".json").expect("a board is JSON").to_owned(), json }
        })
        .collect()
}

impl Board {
    fn panels(&self) -> &[Value] {
        self.json["panels"].as_array().unwrap()
    }

    /// Title and query of every target, and of the annotations and variables, as Grafana would send them.
    pub(super) fn questions(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for panel in self.panels() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                all.push((text(&panel["title"]).to_owned(), filled_in(text(&target["expr"]))));
            }
        }
        for annotation in self.json["annotations"]["list"].as_array().unwrap() {
            all.push((text(&annotation["name"]).to_owned(), filled_in(text(&annotation["expr"]))));
        }
        for variable in self.variables().iter().filter(|variable| variable["type"] == "query") {
            let definition = text(&variable["definition"]);
            let series = definition.strip_prefix("label_values(").and_then(|rest| rest.split_once(", "));
            all.push((definition.to_owned(), series.expect("label_values(series, label)").0.to_owned()));
        }
        all
    }

    fn variables(&self) -> &[Value] {
        self.json["templating"]["list"].as_array().unwrap()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// With all teams, over an hour; a rate over what Grafana would take at a scrape interval of 75 s, so that a run on a
/// slow machine is in it whole.
fn filled_in(expression: &str) -> String {
    let filled = expression
        .replace("$__rate_interval", "5m")
        .replace("$__range", "1h")
        .replace("$team", ".*")
        .replace("$credit_price", "0.003");
    assert!(!filled.contains('$'), "what is in {filled}?");
    filled
}

/// Names after a `$`, with or without braces.
fn used_variables(text: &str) -> BTreeSet<String> {
    text.split('$')
        .skip(1)
        .map(|rest| match rest.strip_prefix('{') {
            Some(braced) => braced.split('}').next().unwrap_or_default().to_owned(),
            None => rest
                .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .next()
                .unwrap()
                .to_owned(),
        })
        .collect()
}

#[test]
fn each_board_finds_its_data_source_its_teams_the_others_and_the_runbook() {
    let boards = boards();
    assert_eq!(boards.len(), 4);
    let mut ids = BTreeSet::new();
    for Board { name, json } in &boards {
        assert_eq!(text(&json["uid"]), name, "a board is called as its file");
        assert!(ids.insert(name.clone()) && !text(&json["description"]).is_empty(), "{name}");
        assert!(json["schemaVersion"].as_u64().unwrap() >= 36 && json.get("id").is_none(), "{name}");
        let variables: BTreeSet<&str> =
            json["templating"]["list"].as_array().unwrap().iter().map(|it| text(&it["name"])).collect();
        assert!(["datasource", "team", "runbook"].iter().all(|it| variables.contains(it)), "{name}");
        let used = used_variables(&json.to_string());
        for variable in used.iter().filter(|it| !OF_GRAFANA.contains(&it.as_str()) && *it != "__all") {
            assert!(variables.contains(variable.as_str()), "{name} uses {variable}");
        }
        for variable in &variables {
            assert!(used.contains(*variable), "{name} does not use {variable}");
        }
        let links = json["links"].as_array().unwrap();
        assert!(
            links.iter().any(|link| link["type"] == "dashboards" && link["tags"] == json["tags"]),
            "{name}"
        );
        assert!(links.iter().any(|link| link["url"] == "${runbook}"), "{name}");
        let elsewhere = json.to_string().replace(RUNBOOK, "");
        assert!(!elsewhere.contains("://") && !elsewhere.contains("localhost"), "{name} names a host");
    }
}

#[test]
fn each_panel_asks_a_question_and_says_what_the_answer_means() {
    let check = |board: &str, panel: &Value| {
        let title = text(&panel["title"]);
        assert!(title.ends_with('?'), "{board}: {title} is no question");
        if panel["type"] == "row" {
            return;
        }
        let about = text(&panel["description"]);
        assert!(about.len() > 10 && about.ends_with('.'), "{board}: {title}: {about:?}");
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(!text(&defaults["unit"]).is_empty(), "{board}: {title} has no unit");
        let steps = defaults["thresholds"]["steps"].as_array().unwrap();
        assert!(steps[0]["value"].is_null(), "{board}: {title}: thresholds begin with the base");
        let values: Vec<f64> = steps[1..].iter().map(|step| step["value"].as_f64().unwrap()).collect();
        assert!(values.is_sorted(), "{board}: {title}: {values:?}");
        let targets = panel["targets"].as_array().unwrap();
        let refs: BTreeSet<&str> = targets.iter().map(|target| text(&target["refId"])).collect();
        assert!(!refs.is_empty() && refs.len() == targets.len(), "{board}: {title}");
        for source in targets.iter().map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
            assert_eq!(text(&source["uid"]), "${datasource}", "{board}: {title}");
        }
    };
    for board in boards() {
        board.panels().iter().for_each(|panel| check(&board.name, panel));
    }
}

#[test]
fn no_panel_covers_another_and_rows_are_full() {
    for board in boards() {
        let (mut taken, mut ids, mut last) = (BTreeSet::new(), BTreeSet::new(), (0, 0));
        for panel in board.panels() {
            let title = text(&panel["title"]);
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(
                ids.insert(panel["id"].as_u64().unwrap()),
                "{}: {title}: its id is another's",
                board.name
            );
            assert!(w > 0 && h > 0 && x + w <= 24, "{}: {title} is outside", board.name);
            assert!((y, x) >= last, "{}: {title} is read later than it is written", board.name);
            last = (y, x);
            for place in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
                assert!(taken.insert(place), "{}: {title} covers another", board.name);
            }
        }
        let rows = taken.iter().map(|(row, _)| row).max().unwrap() + 1;
        let free: Vec<_> = (0..rows)
            .flat_map(|row| (0..24).map(move |column| (row, column)))
            .filter(|place| !taken.contains(place))
            .map(|(row, _)| row)
            .collect();
        assert!(free.is_empty(), "{}: holes in the rows {free:?}", board.name);
    }
}
