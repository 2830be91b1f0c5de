//! The configuration as a commented TOML file, for `granary config` and the admin listener.

use std::fmt::{Display, Write};

use super::setting::{FieldDoc, FieldVisitor, Section, Setting};
use super::team::TeamConfig;
use super::{Config, SectionVisitor};

/// Every section with every field and its docs; what is not set is there as a comment.
pub(super) fn print(config: &Config) -> String {
    let mut printer = Printer { text: String::new(), prefix: "" };
    printer.line("# The effective configuration of Granary. Secrets are shown as ***.");
    printer.line("# Every field outside [[team]] can also be set by a variable, which goes before the file:");
    printer.line("# listen in [server] is GRANARY_SERVER_LISTEN. Lists are separated by commas there.");
    let mut config = config.clone();
    config.visit(&mut printer);
    for team in &mut config.teams {
        printer.table("[[team]]", team);
    }
    if config.teams.is_empty() {
        printer.prefix = "#";
        printer.table("[[team]]", &mut TeamConfig::default());
    }
    printer.text
}

struct Printer {
    text: String,
    /// What fields begin with: `#` when they are only shown.
    prefix: &'static str,
}

impl Printer {
    fn line(&mut self, line: impl Display) {
        writeln!(self.text, "{line}").expect("a String takes everything");
    }

    fn docs(&mut self, lines: &[&str]) {
        for line in lines {
            self.line(format_args!("#{line}"));
        }
    }

    fn table<S: Section>(&mut self, header: &str, section: &mut S) {
        self.line("");
        self.docs(S::ABOUT);
        let prefix = self.prefix;
        self.line(format_args!("{prefix}{header}"));
        section.visit(self);
    }
}

impl SectionVisitor for Printer {
    fn section<S: Section>(&mut self, name: &'static str, section: &mut S) {
        self.table(&format!("[{name}]"), section);
    }
}

impl FieldVisitor for Printer {
    fn field<T: Setting>(&mut self, field: FieldDoc, value: &mut T) {
        self.line("");
        self.docs(field.doc);
        let (prefix, name) = (self.prefix, field.name);
        match value.to_toml() {
            Some(value) => self.line(format_args!("{prefix}{name} = {value}")),
            None => self.line(format_args!("#{name} =")),
        }
    }
}
