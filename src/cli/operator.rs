//! The changes of operators: `purge`, `settle`, `freeze`, `thaw` and `adopt`. Each may be repeated, and says
//! whether it changed anything.

use std::fmt::Write as _;

use anyhow::Context;
use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::admin::{AdminArguments, AdminClient};
use super::{Failure, block_on};
use crate::app;
use crate::base::key::CacheKey;
use crate::config::{Config, Environment};
use crate::http::routes::ADOPT_PATH;

#[derive(clap::Args)]
pub(super) struct PurgeArguments {
    /// The key, as `granary key` and the header Granary-Key tell it
    key: CacheKey,
    #[command(flatten)]
    admin: AdminArguments,
}

#[derive(clap::Args)]
pub(super) struct SettleArguments {
    /// The number of the call; without one, those are listed whose outcome nobody knows
    #[arg(requires = "outcome")]
    call: Option<i64>,
    /// charged: the upstream charged it, and its credits stay counted. free: it did not
    #[arg(value_parser = ["charged", "free"])]
    outcome: Option<String>,
    #[command(flatten)]
    admin: AdminArguments,
}

#[derive(clap::Args)]
pub(super) struct SpendingArguments {
    /// Only this team's; left out: everyone's
    #[arg(long)]
    team: Option<String>,
    #[command(flatten)]
    admin: AdminArguments,
}

#[derive(Deserialize)]
struct Purged {
    generation: u64,
    changed: bool,
}

pub(super) fn purge(arguments: &PurgeArguments, environment: &Environment) -> Result<String, Failure> {
    let PurgeArguments { key, admin } = arguments;
    let path = format!("/admin/v1/keys/{key}/purge");
    let Purged { generation, changed } =
        read(&AdminClient::new(admin, environment).ask(Method::POST, &path)?)?;
    Ok(if changed {
        format!(
            "purged: what was stored up to generation {generation} counts as absent, and its URLs go on serving\n"
        )
    } else {
        format!("nothing changed: all up to generation {generation} was purged before\n")
    })
}

#[derive(Deserialize)]
struct Settled {
    changed: bool,
    given_back: Option<String>,
}

pub(super) fn settle(arguments: &SettleArguments, environment: &Environment) -> Result<String, Failure> {
    let client = AdminClient::new(&arguments.admin, environment);
    let (Some(call), Some(outcome)) = (arguments.call, &arguments.outcome) else {
        return unsettled(&client);
    };
    let path = format!("/admin/v1/calls/{call}/settle?outcome={outcome}");
    let Settled { changed, given_back } = read(&client.ask(Method::POST, &path)?)?;
    let text = match (changed, given_back.as_deref()) {
        (false, _) => "nothing changed: so it was settled before",
        (true, Some("adjustment")) => {
            "settled: its month is closed and stays as it is; an adjustment stands on today"
        }
        (true, Some(_)) => "settled: its credits are given back to the day and month they were taken from",
        (true, None) => "settled: its credits stay counted",
    };
    Ok(format!("{text}\n"))
}

#[derive(Deserialize)]
struct Calls {
    calls: Vec<Call>,
    next: Option<i64>,
}

#[derive(Deserialize)]
struct Call {
    id: i64,
    key: CacheKey,
    team: String,
    credits: u64,
    ended_at: Option<String>,
    reason: Option<String>,
    settled: Option<String>,
}

/// Newest first.
fn unsettled(client: &AdminClient) -> Result<String, Failure> {
    let (mut text, mut before) = (String::new(), String::new());
    loop {
        let page: Calls =
            read(&client.ask(Method::GET, &format!("/admin/v1/calls?state=unknown&limit=1000{before}"))?)?;
        for call in page.calls.iter().filter(|call| call.settled.is_none()) {
            let (ended, reason) =
                (call.ended_at.as_deref().unwrap_or("-"), call.reason.as_deref().unwrap_or("-"));
            let _ = writeln!(
                text,
                "{}\t{}\t{}\t{} credits\t{ended}\t{reason}",
                call.id, call.key, call.team, call.credits
            );
        }
        match page.next {
            Some(next) => before = format!("&before={next}"),
            None if text.is_empty() => return Ok("no call waits to be settled\n".to_owned()),
            None => return Ok(text),
        }
    }
}

#[derive(Deserialize)]
struct Spending {
    scope: String,
    changed: bool,
}

/// `verb` is `freeze` or `thaw`.
pub(super) fn set_spending(
    verb: &str,
    arguments: &SpendingArguments,
    environment: &Environment,
) -> Result<String, Failure> {
    let mut query = form_urlencoded::Serializer::new(format!("/admin/v1/{verb}?"));
    if let Some(team) = &arguments.team {
        query.append_pair("team", team);
    }
    let client = AdminClient::new(&arguments.admin, environment);
    let Spending { scope, changed } = read(&client.ask(Method::POST, &query.finish())?)?;
    let text = match (verb, changed) {
        ("freeze", true) => "frozen, hits go on",
        ("freeze", false) => "nothing changed: it was frozen before",
        (_, true) => "thawed",
        (_, false) => "nothing changed: it was not frozen",
    };
    Ok(format!("{scope}: {text}\n"))
}

#[derive(Deserialize)]
struct Adopted {
    found: String,
    archive: String,
}

/// A process that is serving holds ledger and store, so it is asked; otherwise it is done here.
pub(super) fn adopt(config: &Config, environment: &Environment) -> Result<String, Failure> {
    let Adopted { found, archive } = match block_on(app::adopt(config))?? {
        Some(adoption) => Adopted { found: adoption.to_string(), archive: adoption.archive.to_string() },
        None => {
            let answer = AdminClient::of_config(&config.server, environment)?.ask(Method::POST, ADOPT_PATH);
            let running = || format!("a granary is running on {}", config.state.path.display());
            serde_json::from_slice(&answer?).with_context(running)?
        }
    };
    Ok(format!(
        "found: {found}\nledger and store are archive {archive} now, and new crops are bought again\n"
    ))
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    let read = serde_json::from_slice(answer);
    Ok(read.context(
        "what was asked is done, but the answer is not one of this version's; use the same version",
    )?)
}
