//! `granary usage`: the usage report of a running Granary.

use std::fmt::Write as _;

use anyhow::Context;
use http::Method;
use jiff::civil::Date;
use url::form_urlencoded;

use super::Failure;
use super::admin::{AdminArguments, AdminClient};
use crate::config::Environment;
use crate::http::routes::usage::{BudgetReport, TeamMonthReport, USAGE_PATH, UsageReport, UsageRow};

#[derive(clap::Args)]
pub(super) struct UsageArguments {
    /// What each row is about
    #[arg(long, default_value = "team", value_parser = ["team", "day", "team,day"])]
    by: String,
    /// The first day, such as 2026-11-01; by default the first of the month
    #[arg(long, value_name = "DATE")]
    from: Option<Date>,
    /// The last day, itself included; by default today
    #[arg(long, value_name = "DATE")]
    to: Option<Date>,
    /// Print everything there is as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print the rows as CSV, without their total
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

pub(super) fn run(arguments: &UsageArguments, environment: &Environment) -> Result<String, Failure> {
    let mut query = form_urlencoded::Serializer::new(format!("{USAGE_PATH}?"));
    query.append_pair("by", &arguments.by);
    query.append_pair("format", if arguments.csv { "csv" } else { "json" });
    for (name, day) in [("from", arguments.from), ("to", arguments.to)] {
        if let Some(day) = day {
            query.append_pair(name, &day.to_string());
        }
    }
    let answer = AdminClient::new(&arguments.admin, environment).ask(Method::GET, &query.finish())?;
    if arguments.json || arguments.csv {
        let mut text = String::from_utf8_lossy(&answer).into_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        return Ok(text);
    }
    let report = serde_json::from_slice(&answer)
        .context("the granary's answer is not the one of this version; use the same version, or --json")?;
    Ok(show(&report))
}

fn show(report: &UsageReport) -> String {
    let mut text = format!("credits from {} to {} ({})\n\n", report.from, report.to, report.time_zone);
    text.push_str(&rows(report));
    let _ = write!(text, "\ncredits in {}, and what the month may come to\n\n", report.month.month);
    text.push_str(&month(report));
    if let Some(account) = &report.account {
        let _ = writeln!(text, "\naccount: {} credits left at {}", account.balance_credits, account.seen_at);
    }
    let unknown = report.total.calls.get("unknown").copied().unwrap_or(0);
    if unknown > 0 {
        let _ = writeln!(text, "\nunknown: {unknown} calls that may have cost nothing are in what was spent");
    }
    if report.unbooked_requests > 0 {
        let requests = report.unbooked_requests;
        let _ = writeln!(text, "\nmissing: {requests} requests that the ledger has not taken yet");
    }
    text
}

/// Whether a column is shown, its name, and the cell of a row.
type Column<T> = (bool, &'static str, fn(&T) -> String);

fn rows(report: &UsageReport) -> String {
    let has_money = report.total.spent_money.is_some();
    let has_adjustments = report.rows.iter().any(|row| row.adjusted_credits != 0);
    let first = &report.rows.first();
    let has_day = first.is_some_and(|row| row.day.is_some());
    let has_team = first.is_none_or(|row| row.team.is_some());
    let columns: [Column<UsageRow>; 11] = [
        (has_day, "day", |row| row.day.map(|day| day.to_string()).unwrap_or_default()),
        (has_team, "team", |row| row.team.clone().unwrap_or_default()),
        (true, "bought", |row| row.bought.to_string()),
        (true, "spent", |row| row.spent_credits.to_string()),
        (has_adjustments, "adjusted", |row| row.adjusted_credits.to_string()),
        (has_money, "cost", |row| row.spent_money.clone().unwrap_or_default()),
        (true, "served", |row| row.served.values().sum::<u64>().to_string()),
        (true, "saved", |row| row.saved_credits.to_string()),
        (true, "within", |row| row.saved_within_credits.to_string()),
        (true, "from others", |row| row.saved_from_others_credits.to_string()),
        (has_money, "worth", |row| row.saved_money.clone().unwrap_or_default()),
    ];
    table(&columns, &report.rows, &report.total, usize::from(has_day) + usize::from(has_team))
}

fn month(report: &UsageReport) -> String {
    let has_money = report.month.total.spent_money.is_some();
    let columns: [Column<TeamMonthReport>; 7] = [
        (true, "team", |month| month.team.clone().unwrap_or_default()),
        (true, "spent", |month| month.spent_credits.to_string()),
        (has_money, "cost", |month| month.spent_money.clone().unwrap_or_default()),
        (true, "saved", |month| month.saved_credits.to_string()),
        (true, "forecast", |month| month.forecast_credits.to_string()),
        (has_money, "cost", |month| month.forecast_money.clone().unwrap_or_default()),
        (true, "left", |month| left(&month.budgets)),
    ];
    table(&columns, &report.month.teams, &report.month.total, 1)
}

fn left(budgets: &[BudgetReport]) -> String {
    let Some(least) = budgets.iter().min_by_key(|budget| (!budget.enforced, budget.left_credits)) else {
        return "no limit".to_owned();
    };
    let mode = if least.enforced { "" } else { ", shadow" };
    format!("{} of {} {}{mode}", least.left_credits, least.limit_credits, least.window)
}

/// The first `names` columns are aligned to the left.
fn table<T>(columns: &[Column<T>], rows: &[T], total: &T, names: usize) -> String {
    let shown: Vec<_> = columns.iter().filter(|(is_shown, ..)| *is_shown).collect();
    let cells = |row: &T| shown.iter().map(|(_, _, cell)| cell(row)).collect();
    let mut lines: Vec<Vec<String>> = vec![shown.iter().map(|(_, name, _)| (*name).to_owned()).collect()];
    lines.extend(rows.iter().chain([total]).map(cells));
    if let Some(cell) = lines.last_mut().and_then(|total| total.first_mut()) {
        *cell = "total".to_owned();
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..shown.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < names { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
