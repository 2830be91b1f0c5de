//! A report as CSV (RFC 4180), always with the same columns.

use std::collections::BTreeMap;

use super::report::{UsageReport, UsageRow};
use crate::base::outcome::SavingCause;
use crate::ledger::CallState;

/// Without the total, so that columns can be summed.
pub(super) fn write(report: &UsageReport) -> String {
    let mut text = line(&columns());
    for row in &report.rows {
        text.push_str(&line(&cells(row)));
    }
    text
}

fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
    cells.join(",") + "\r\n"
}

fn columns() -> Vec<String> {
    let ours = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    [
        ours(&["day", "team", "spent_credits", "spent_money", "adjusted_credits", "bought"]),
        CallState::ALL.map(|state| format!("calls_{}", state.as_str())).to_vec(),
        SavingCause::ALL.map(|cause| format!("served_{}", cause.as_str())).to_vec(),
        ours(&["saved_credits", "saved_within_credits", "saved_from_others_credits", "saved_money"]),
    ]
    .concat()
}

fn cells(row: &UsageRow) -> Vec<String> {
    let of = |counts: &BTreeMap<String, u64>, word: &str| counts.get(word).copied().unwrap_or(0).to_string();
    let mut cells = vec![
        row.day.map(|day| day.to_string()).unwrap_or_default(),
        row.team.clone().unwrap_or_default(),
        row.spent_credits.to_string(),
        row.spent_money.clone().unwrap_or_default(),
        row.adjusted_credits.to_string(),
        row.bought.to_string(),
    ];
    cells.extend(CallState::ALL.map(|state| of(&row.calls, state.as_str())));
    cells.extend(SavingCause::ALL.map(|cause| of(&row.served, cause.as_str())));
    cells.extend([
        row.saved_credits.to_string(),
        row.saved_within_credits.to_string(),
        row.saved_from_others_credits.to_string(),
        row.saved_money.clone().unwrap_or_default(),
    ]);
    cells
}

/// Names of imported records may not be plain.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}
