//! A report as CSV (RFC 4180), always with the same columns.

use std::collections::BTreeMap;

use super::report::{UsageReport, UsageRow};
use crate::base::outcome::SavingCause;
use crate::ledger::CallState;

/// Without the total, so that columns can be summed.
pub(super) fn write(report: &UsageReport) -> String {
    let columns = columns();
    let line = |cells: Vec<String>| cells.join(",") + "\r\n";
    let mut text = line(columns.iter().map(|(name, _)| name.clone()).collect());
    for row in &report.rows {
        text.push_str(&line(columns.iter().map(|(_, cell)| quoted(&cell(row))).collect()));
    }
    text
}

/// The name of a column, and the cell of a row.
type Column = (String, Box<dyn Fn(&UsageRow) -> String>);

fn columns() -> Vec<Column> {
    fn column(name: &str, cell: impl Fn(&UsageRow) -> String + 'static) -> Column {
        (name.to_owned(), Box::new(cell))
    }
    let of = |counts: &BTreeMap<String, u64>, word: &str| counts.get(word).copied().unwrap_or(0).to_string();
    let mut columns = vec![
        column("day", |row| row.day.map(|day| day.to_string()).unwrap_or_default()),
        column("team", |row| row.team.clone().unwrap_or_default()),
        column("spent_credits", |row| row.spent_credits.to_string()),
        column("spent_money", |row| row.spent_money.clone().unwrap_or_default()),
        column("adjusted_credits", |row| row.adjusted_credits.to_string()),
        column("bought", |row| row.bought.to_string()),
    ];
    let words = CallState::ALL.map(CallState::as_str);
    columns.extend(words.map(|word| column(&format!("calls_{word}"), move |row| of(&row.calls, word))));
    let words = SavingCause::ALL.map(SavingCause::as_str);
    columns.extend(words.map(|word| column(&format!("served_{word}"), move |row| of(&row.served, word))));
    columns.extend([
        column("saved_credits", |row| row.saved_credits.to_string()),
        column("saved_within_credits", |row| row.saved_within_credits.to_string()),
        column("saved_from_others_credits", |row| row.saved_from_others_credits.to_string()),
        column("saved_money", |row| row.saved_money.clone().unwrap_or_default()),
    ]);
    columns
}

/// Names of imported records may not be plain.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}
