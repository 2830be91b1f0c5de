//! The configuration as a commented TOML file, for `granary config` and the admin listener.

use std::fmt::Write;

use super::Config;
use super::setting::{Field, Section};
use super::team::TeamConfig;

const HEAD: &str = "\
# The effective configuration of Granary. Secrets are shown as ***.
# Every field outside [[team]] can also be set by a variable, which goes before the file:
# listen in [server] is GRANARY_SERVER_LISTEN. Lists are separated by commas there.
";

/// Fields that are not set are comments.
pub(super) fn print(config: &Config) -> String {
    let mut config = config.clone();
    let mut text = HEAD.to_owned();
    for section in config.sections() {
        print_section(&mut text, "", &format!("[{}]", section.name), section);
    }
    for team in &mut config.teams {
        print_section(&mut text, "", "[[team]]", team.section("team"));
    }
    if config.teams.is_empty() {
        print_section(&mut text, "#", "[[team]]", TeamConfig::default().section("team"));
    }
    text
}

/// `prefix` is `#` for an example.
fn print_section(text: &mut String, prefix: &str, header: &str, section: Section<'_>) {
    print_docs(text, section.doc);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{prefix}{header}");
    for Field { name, doc, value } in section.fields {
        print_docs(text, doc);
        let _ = match value.shown() {
            Some(value) => writeln!(text, "{prefix}{name} = {value}"),
            None => writeln!(text, "#{name} ="),
        };
    }
}

fn print_docs(text: &mut String, lines: &[&str]) {
    text.push('\n');
    for line in lines {
        let _ = writeln!(text, "#{line}");
    }
}
