//! Fills a [`Config`] from the file, then from variables, and notes every problem.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::problems::Problems;
use super::setting::{Fault, Field, Section, kind, shown};
use super::team::TeamConfig;
use super::{Config, Environment};

/// Variables that are ours and no settings.
const OTHER_VARIABLES: [&str; 6] = [
    "GRANARY_CONFIG",
    "GRANARY_ADMIN_TOKEN",
    "GRANARY_CRASH_AT",
    "GRANARY_STOP_AT",
    "GRANARY_CLOCK_OFFSET",
    "GRANARY_DUMPABLE",
];

#[derive(Default)]
pub(super) struct ConfigReader {
    pub problems: Problems,
    pub warnings: Vec<String>,
    /// Fields of the file or a variable.
    set: BTreeSet<String>,
    /// Fields that could not be read; no problem follows from their values.
    unread: BTreeSet<String>,
}

impl ConfigReader {
    /// `None` when the file is not TOML.
    pub(super) fn file(&mut self, text: &str) -> Option<Config> {
        let mut root = parse(text).map_err(|problems| self.problems = problems).ok()?;
        let mut config = Config::default();
        let teams = root.remove("team");
        let mut known = Vec::new();
        for section in config.sections() {
            let name = section.name;
            known.push(name);
            match root.remove(name) {
                None => {}
                Some(Value::Table(table)) => self.table(name, section, table),
                Some(other) => {
                    self.problems.add(name, format!("is {}; write a section [{name}]", kind(&other)));
                }
            }
        }
        for name in root.keys() {
            let why = format!("is unknown; the sections are [{}] and [[team]]", known.join("], ["));
            self.problems.add(shown_name(name), why);
        }
        match teams {
            None => {}
            Some(Value::Array(teams)) => {
                let teams = teams.into_iter().enumerate();
                config.teams = teams.filter_map(|(index, team)| self.team(index, team)).collect();
            }
            Some(_) => self.no_team("team".to_owned()),
        }
        Some(config)
    }

    fn team(&mut self, index: usize, value: Value) -> Option<TeamConfig> {
        let Value::Table(table) = value else {
            self.no_team(team_path(index, ""));
            return None;
        };
        let mut team = TeamConfig::default();
        let name = table.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.table(&team_path(index, &name), team.section("team"), table);
        Some(team)
    }

    fn no_team(&mut self, field: String) {
        self.problems.add(field, "is not a team; begin each team with a line [[team]] and its name");
        self.unread.insert("team".to_owned());
    }

    /// `path` names the section in problems.
    fn table(&mut self, path: &str, section: Section<'_>, mut table: Table) {
        let known: Vec<_> = section.fields.iter().map(|field| field.name).collect();
        for Field { name, value, .. } in section.fields {
            if let Some(found) = table.remove(name) {
                self.note(format!("{path}.{name}"), "", value.read_toml(found));
            }
        }
        for name in table.keys() {
            let why = format!("is unknown; the fields here are {}", known.join(", "));
            self.problems.add(format!("{path}.{}", shown_name(name)), why);
        }
    }

    /// Variables override the file.
    pub(super) fn variables(&mut self, config: &mut Config, environment: &Environment) {
        let mut known = Vec::new();
        for section in config.sections() {
            for field in section.fields {
                let variable = format!("GRANARY_{}_{}", section.name, field.name).to_ascii_uppercase();
                if let Some(text) = environment.get(&variable) {
                    let (name, from) =
                        (format!("{}.{}", section.name, field.name), format!(" (from {variable})"));
                    self.note(name, &from, field.value.read_text(text));
                }
                known.push(variable);
            }
        }
        for name in &environment.unreadable {
            self.problems.add(name, "is a variable that is not UTF-8; set it again in that encoding");
        }
        let unknown =
            |name: &&str| !known.iter().any(|known| known == name) && !OTHER_VARIABLES.contains(name);
        for name in environment.variables.keys().map(String::as_str).filter(unknown) {
            self.warnings
                .push(format!("the variable {} is no setting of Granary and is ignored", shown_name(name)));
        }
    }

    pub(super) fn is_set(&self, field: &str) -> bool {
        self.set.contains(field)
    }

    /// Notes a problem of the first of `fields` that follows from all of them, unless one could not be read.
    pub(super) fn problem(&mut self, fields: &[&str], message: impl Into<String>) {
        if !fields.iter().any(|field| self.unread.contains(*field)) {
            self.problems.add(fields[0], message);
        }
    }

    /// `from` names the source if it is not the file.
    fn note(&mut self, field: String, from: &str, read: Result<(), Vec<Fault>>) {
        match read {
            Ok(()) => drop(self.unread.remove(&field)),
            Err(faults) => {
                for Fault { at, why } in faults {
                    self.problems.add(format!("{field}{at}{from}"), why);
                }
                self.unread.insert(field.clone());
            }
        }
        self.set.insert(field);
    }
}

pub(super) fn team_path(index: usize, name: &str) -> String {
    if crate::teams::is_team_name(name) { format!("team.{name}") } else { format!("team[{index}]") }
}

fn shown_name(name: &str) -> String {
    let plain = name.len() <= 40
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if plain && !name.is_empty() { name.to_owned() } else { shown(name) }
}

/// The parser's own report would quote the line, which may contain a key.
fn parse(text: &str) -> Result<Table, Problems> {
    let (_, mut errors) = toml::de::DeTable::parse_recoverable(text);
    if errors.is_empty() {
        match text.parse() {
            Ok(table) => return Ok(table),
            Err(error) => errors.push(error),
        }
    }
    // The first error of each line; the others follow from it.
    let mut lines = BTreeMap::new();
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    for error in &errors {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
        lines.entry(line).or_insert(error.message());
    }
    let mut problems = Problems::default();
    for (line, message) in lines {
        problems.add(format!("line {line}"), format!("is not TOML ({message})"));
    }
    Err(problems)
}
