//! `granary token new TEAM`: a token, shown once, and the line for the configuration.

use anyhow::Context;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Unit};

use super::{Console, Failure};
use crate::config::parse_moment;
use crate::teams::{LOCAL_TEAM, Token, is_team_name};

#[derive(clap::Subcommand)]
pub(super) enum TokenVerb {
    /// Make a token for a team: the token on standard output, the line to paste on standard error
    New {
        /// The team's name
        #[arg(value_parser = team_name)]
        team: String,
        /// When it stops working: a date (2027-01-31, at its beginning in UTC), a moment
        /// (2027-01-31T12:00:00Z), or a time from now (90d)
        #[arg(long, value_name = "DATE-OR-DURATION", value_parser = |text: &str| expiry(text, Timestamp::now()))]
        expires: Option<Timestamp>,
    },
}

pub(super) fn run(verb: TokenVerb, console: &mut Console<'_>) -> Result<(), Failure> {
    let TokenVerb::New { team, expires } = verb;
    let (secret, token) = Token::generate(expires)
        .context("the operating system has no randomness to make a token of; try again")?;
    let until = token.expires.map(|expires| format!(", expires = \"{expires}\"")).unwrap_or_default();
    writeln!(
        console.stderr,
        "This is the only time this token of team {team} is shown: Granary keeps no copy of it.\n\
         Hand it to the team, and paste the line with its id and hash into the configuration:\n\n\
         [[team]]\n\
         name = \"{team}\"\n\
         tokens = [\n    \
             {{ id = \"{}\", hash = \"{}\"{until} }},\n\
         ]\n",
        token.id, token.hash,
    )?;
    console.print(format_args!("{}\n", secret.expose()))
}

fn team_name(text: &str) -> Result<String, String> {
    if !is_team_name(text) {
        return Err("write 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or a digit".to_owned());
    }
    if text == LOCAL_TEAM {
        return Err("this name is reserved for the time when no teams are configured".to_owned());
    }
    Ok(text.to_owned())
}

fn expiry(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || "write a date such as 2027-01-31, or a time from now such as 90d".to_owned();
    let moment = match parse_moment(text) {
        Some(moment) => moment,
        None => {
            let span: Span = text.parse().map_err(|_| wrong())?;
            let then =
                now.to_zoned_datetime(TimeZone::UTC).checked_add(span).map_err(|_| wrong())?.timestamp();
            then.round(Unit::Second).map_err(|_| wrong())?
        }
    };
    if moment <= now { Err("that is not in the future".to_owned()) } else { Ok(moment) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_date_a_moment_or_a_time_from_now() {
        let now: Timestamp = "2026-11-22T16:00:00.4Z".parse().unwrap();
        let check = |text, expected: Option<&str>| {
            let read = expiry(text, now).ok().map(|moment| moment.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        };
        check("2027-01-31", Some("2027-01-31T00:00:00Z"));
        check("2027-01-31T12:00:00+01:00", Some("2027-01-31T11:00:00Z"));
        check("90d", Some("2027-02-20T16:00:00Z"));
        check("1y", Some("2027-11-22T16:00:00Z"));
        check("12h", Some("2026-11-23T04:00:00Z"));
        check("2026-11-22", None);
        check("-90d", None);
        check("0d", None);
        check("99999y", None);
        check("2027-01-31T12:00:00", None);
        check("soon", None);
        check("", None);
    }
}
