//! Rows, sums, forecasts and money of made-up findings.

use super::*;
use crate::billing::balance::Balance;
use crate::http::routes::admin::usage::csv;
use crate::ledger::budget::{Budget, Window};
use crate::ledger::usage::Count;

fn date(text: &str) -> Date {
    text.parse().expect("a date in a test")
}

fn bought(number: u64) -> Figures {
    let mut figures = Figures::default();
    *figures.calls_mut(CallState::Stored) += Count { number, credits: 3 * number };
    figures
}

fn findings(now: &str) -> Findings {
    let day =
        |day: &str, team: &str, figures: Figures| DayUsage { day: date(day), team: team.to_owned(), figures };
    let mut web = bought(2);
    *web.calls_mut(CallState::Unknown) += Count { number: 1, credits: 3 };
    *web.calls_mut(CallState::Refused) += Count { number: 4, credits: 12 };
    *web.served_mut(SavingCause::HitMemory, Payer::Own) += Count { number: 5, credits: 15 };
    *web.served_mut(SavingCause::HashFirst, Payer::Other) += Count { number: 1, credits: 3 };
    let gone = Figures { adjusted: -3, ..Figures::default() };
    let month = vec![
        day("2026-11-02", "web", web),
        day("2026-11-03", "old", gone),
        day("2026-11-03", "web", bought(1)),
    ];
    Findings {
        from: date("2026-11-01"),
        to: date("2026-11-22"),
        now: now.parse().expect("a moment in a test"),
        usage: month.clone(),
        month,
        teams: vec!["app".to_owned(), "web".to_owned()],
        used: vec![
            used(Scope::Global, Window::Month, 100, 12, true),
            used(Scope::Team("web".to_owned()), Window::Day, 10, 12, false),
        ],
        account: None,
        unbooked: 7,
        price: Some("0.003".parse().expect("a price")),
    }
}

fn used(scope: Scope, window: Window, limit: u64, used: u64, enforced: bool) -> Used {
    Used { budget: Budget { scope, window, limit, enforced }, used }
}

#[test]
fn rows_are_about_what_was_asked_for_and_add_up_to_the_total() {
    let findings = findings("2026-11-22T12:00:00+01:00[Europe/Berlin]");
    let check = |by, expected: &[(Option<&str>, Option<&str>, i64)]| {
        let report = compile(&findings, by);
        let rows: Vec<_> = report
            .rows
            .iter()
            .map(|row| (row.day.map(|day| day.to_string()), row.team.clone(), row.spent_credits))
            .collect();
        let owned = |text: &Option<&str>| text.map(str::to_owned);
        let expected: Vec<_> =
            expected.iter().map(|(day, team, spent)| (owned(day), owned(team), *spent)).collect();
        assert_eq!(rows, expected, "{by:?}");
        let total = &report.total;
        assert_eq!((total.spent_credits, total.adjusted_credits, total.bought), (9, -3, 4));
        assert_eq!(total.spent_money.as_deref(), Some("0.027"));
        assert_eq!(
            (total.saved_credits, total.saved_within_credits, total.saved_from_others_credits),
            (18, 15, 3)
        );
        assert_eq!(
            (total.calls["refused"], total.served["hit_memory"], total.served["hash_first"]),
            (4, 5, 1)
        );
        assert_eq!((report.time_zone.as_str(), report.unbooked_requests), ("Europe/Berlin", 7));
    };
    check(UsageBy::Team, &[(None, Some("app"), 0), (None, Some("old"), -3), (None, Some("web"), 12)]);
    check(UsageBy::Day, &[(Some("2026-11-02"), None, 9), (Some("2026-11-03"), None, 0)]);
    check(
        UsageBy::TeamAndDay,
        &[
            (Some("2026-11-02"), Some("web"), 9),
            (Some("2026-11-03"), Some("old"), -3),
            (Some("2026-11-03"), Some("web"), 3),
        ],
    );
}

#[test]
fn the_month_has_budgets_and_a_forecast() {
    // Ten of thirty days.
    let report = compile(&findings("2026-11-11T00:00:00+01:00[Europe/Berlin]"), UsageBy::Day);
    let month = &report.month;
    assert_eq!(
        (month.month.as_str(), month.ends_at.to_string().as_str()),
        ("2026-11", "2026-11-30T23:00:00Z")
    );
    let forecasts: Vec<_> =
        month.teams.iter().map(|month| (month.team.as_deref(), month.forecast_credits)).collect();
    // What was given back is given back once.
    assert_eq!(forecasts, [(Some("app"), 0), (Some("old"), -3), (Some("web"), 36)]);
    assert_eq!((month.total.forecast_credits, month.total.forecast_money.as_deref()), (33, Some("0.099")));
    let global = &month.total.budgets[..];
    assert_eq!((global.len(), global[0].left_credits, global[0].window.as_str()), (1, 88, "monthly"));
    assert_eq!(global[0].resets_at, month.ends_at);
    let web = &month.teams[2].budgets[..];
    assert_eq!((web.len(), web[0].left_credits, web[0].used_credits, web[0].enforced), (1, 0, 12, false));
}

#[test]
fn a_month_that_has_just_begun_counts_as_a_day_old() {
    let forecast_at = |now: &str| compile(&findings(now), UsageBy::Team).month.teams[2].forecast_credits;
    assert_eq!(forecast_at("2026-11-01T00:00:00+01:00[Europe/Berlin]"), 12 * 30);
    assert_eq!(forecast_at("2026-11-02T00:00:00+01:00[Europe/Berlin]"), 12 * 30);
    assert_eq!(forecast_at("2026-11-30T23:59:59+01:00[Europe/Berlin]"), 13, "rounded up");
    // The month in which the clocks change has an hour more.
    assert_eq!(forecast_at("2026-10-02T00:00:00+02:00[Europe/Berlin]"), 373);
}

#[test]
fn the_report_has_the_last_known_balance() {
    let at: Timestamp = "2026-11-22T09:00:00Z".parse().expect("a moment in a test");
    let mut findings = findings("2026-11-22T12:00:00Z[UTC]");
    findings.account = Some(Balance { credits: 900, seen_at: at });
    let report = compile(&findings, UsageBy::Team).account.expect("it is known");
    assert_eq!((report.balance_credits, report.seen_at), (900, at));
    assert_eq!(report.balance_money.as_deref(), Some("2.70"));
}

#[test]
fn what_is_told_is_read_back_and_csv_has_a_cell_for_each_column() {
    let mut findings = findings("2026-11-22T12:00:00+01:00[Europe/Berlin]");
    findings.usage[1].team = "o\"l,d".to_owned();
    let report = compile(&findings, UsageBy::TeamAndDay);
    let text = serde_json::to_string(&report).expect("it can be written");
    assert_eq!(serde_json::from_str::<UsageReport>(&text).expect("it can be read"), report);
    let text = csv::write(&report);
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert!(
        lines[0].starts_with("day,team,spent_credits,spent_money,adjusted_credits,bought,calls_reserved,")
    );
    assert_eq!(lines[1], "2026-11-02,web,9,0.027,0,3,0,0,0,0,2,4,0,1,0,0,5,0,0,0,1,18,15,3,0.054");
    assert!(lines[2].starts_with("2026-11-03,\"o\"\"l,d\",-3,-0.009,-3,0,"), "{text}");
    assert_eq!((lines.len(), lines[0].split(',').count(), lines[1].split(',').count()), (4, 25, 25));
}
