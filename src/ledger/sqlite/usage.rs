//! Who paid, who was served, and the upstream's account: the statements of [`UsageBook`].
//!
//! Reports read much, so they have a thread and a connection of their own: no look-up waits for one. The statements keep to what other databases understand too.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::civil::Date;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::calls::{self, instant};
use super::{SqliteLedger, Windows};
use crate::base::outcome::SavingCause;
use crate::ledger::usage::{
    AccountRow, Adjustment, Baseline, Charged, Count, DayUsage, Figures, Payer, Served, ServedBatch,
    TeamMonth, UsageBook, is_closed,
};
use crate::ledger::{CallId, CallState, LedgerError};

/// Batches of a process that has booked none for so many days are forgotten: it is gone.
const BATCH_MEMORY_DAYS: i64 = 30;

/// What is added to the calls.
pub(super) const SCHEMA: &str = "
CREATE TABLE served (
    day      TEXT    NOT NULL,
    team     TEXT    NOT NULL,
    cause    TEXT    NOT NULL,
    payer    TEXT    NOT NULL,                -- 'own': the team had paid itself; 'other'
    requests INTEGER NOT NULL,
    credits  INTEGER NOT NULL,                -- what they would have cost
    PRIMARY KEY (day, team, cause, payer)
) STRICT, WITHOUT ROWID;
CREATE TABLE served_batches (
    process  TEXT    PRIMARY KEY,
    number   INTEGER NOT NULL,                -- its last batch that is booked
    day      TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE adjustments (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    call       INTEGER NOT NULL,              -- changed when its month was closed
    call_day   TEXT    NOT NULL,
    is_first   INTEGER NOT NULL,              -- 1: of this call
    team       TEXT    NOT NULL,
    from_state TEXT    NOT NULL,
    to_state   TEXT    NOT NULL,
    credits    INTEGER NOT NULL,              -- 0, or less when its credits count no more
    day        TEXT    NOT NULL,              -- when it changed
    month      TEXT    NOT NULL
) STRICT;
CREATE INDEX adjustments_by_call ON adjustments (call);
CREATE INDEX adjustments_by_day ON adjustments (day);
CREATE INDEX adjustments_by_call_day ON adjustments (call_day) WHERE is_first = 1;
CREATE TABLE accounts (
    namespace        TEXT    PRIMARY KEY,
    version          INTEGER NOT NULL,
    balance          INTEGER NOT NULL,
    seen_at          TEXT    NOT NULL,
    baseline_balance INTEGER NOT NULL,
    baseline_least   INTEGER NOT NULL,
    baseline_most    INTEGER NOT NULL,
    baseline_at      TEXT    NOT NULL,
    outside          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_by_day ON calls (day, team, namespace, state, credits, adopted) WHERE adopted = 0;
CREATE INDEX spent_by_period ON spent (period);
";

/// All of it is in the index by day: of a million rows none is read.
const PAID: &str = "SELECT day, team, state, count(*) AS number, sum(credits) AS credits FROM calls \
                    WHERE adopted = 0 AND day BETWEEN ?1 AND ?2 GROUP BY day, team, state";

/// The same: every day is more than nothing, and naming it leads to that index.
const CHARGED: &str = "SELECT namespace, state, sum(credits) AS credits FROM calls \
                       WHERE adopted = 0 AND day > '' GROUP BY namespace, state";

#[async_trait]
impl UsageBook for SqliteLedger {
    async fn book_served(&self, batch: ServedBatch) -> Result<(), LedgerError> {
        let today = self.today();
        self.write(move |db| book_served(db, &batch, &today)).await
    }

    async fn usage(&self, from: Date, to: Date) -> Result<Vec<DayUsage>, LedgerError> {
        self.report(move |db| usage(db, from, to)).await
    }

    async fn month(&self) -> Result<Vec<TeamMonth>, LedgerError> {
        let today = self.today();
        self.report(move |db| month(db, &today)).await
    }

    async fn adjustments(&self, from: Date, to: Date) -> Result<Vec<Adjustment>, LedgerError> {
        self.report(move |db| adjustments(db, from, to)).await
    }

    async fn charged(&self, namespace: &str) -> Result<Charged, LedgerError> {
        let namespace = namespace.to_owned();
        self.report(move |db| charged(db, &namespace)).await
    }

    async fn account(&self, namespace: &str) -> Result<Option<AccountRow>, LedgerError> {
        let namespace = namespace.to_owned();
        self.report(move |db| account(db, &namespace)).await
    }

    async fn keep_account(&self, namespace: &str, account: &AccountRow) -> Result<bool, LedgerError> {
        let (namespace, account) = (namespace.to_owned(), account.clone());
        self.write(move |db| keep_account(db, &namespace, &account)).await
    }
}

impl SqliteLedger {
    fn today(&self) -> Windows {
        Windows::at(self.clock.now(), &self.zone)
    }
}

/// Makes a change of a call's state; if the call's month is closed, it is an adjustment of today.
pub(super) fn adjusting<T>(
    db: &Connection,
    id: CallId,
    today: &Windows,
    change: impl FnOnce() -> Result<T, LedgerError>,
) -> Result<T, LedgerError> {
    let before = calls::call(db, id)?;
    let changed = change()?;
    if is_closed(&before.month, &today.day) {
        adjust(db, id, before.state, calls::call(db, id)?.state, today)?;
    }
    Ok(changed)
}

/// The same for a change of whatever calls are open.
pub(super) fn adjusting_open<T>(
    db: &Connection,
    today: &Windows,
    change: impl FnOnce() -> Result<T, LedgerError>,
) -> Result<T, LedgerError> {
    let mut statement = db.prepare_cached(
        "SELECT id, state, month FROM calls WHERE state IN ('reserved', 'sent', 'answered') AND month < ?1",
    )?;
    let open = statement.query_map([&today.month], |row| {
        Ok((CallId(row.get("id")?), state(row, "state")?, row.get::<_, String>("month")?))
    })?;
    let open = open.collect::<rusqlite::Result<Vec<_>>>()?;
    let changed = change()?;
    for (id, was, month) in open {
        if is_closed(&month, &today.day) {
            adjust(db, id, was, calls::call(db, id)?.state, today)?;
        }
    }
    Ok(changed)
}

fn adjust(
    db: &Connection,
    id: CallId,
    from: CallState,
    to: CallState,
    today: &Windows,
) -> Result<(), LedgerError> {
    if from == to {
        return Ok(());
    }
    let sign = i64::from(to.counts_credits()) - i64::from(from.counts_credits());
    db.prepare_cached(
        "INSERT INTO adjustments (call, call_day, is_first, team, from_state, to_state, credits, day, month) \
         SELECT id, day, (SELECT CASE count(*) WHEN 0 THEN 1 ELSE 0 END FROM adjustments WHERE call = :id), \
         team, :from, :to, :sign * credits, :day, :month FROM calls WHERE id = :id AND adopted = 0",
    )?
    .execute(named_params! {
        ":id": id.0,
        ":from": from.as_str(),
        ":to": to.as_str(),
        ":sign": sign,
        ":day": today.day,
        ":month": today.month,
    })?;
    Ok(())
}

fn book_served(db: &Connection, batch: &ServedBatch, today: &Windows) -> Result<(), LedgerError> {
    let process = batch.process.to_string();
    let is_new = db
        .prepare_cached(
            "INSERT INTO served_batches (process, number, day) VALUES (?1, ?2, ?3) \
             ON CONFLICT (process) DO UPDATE SET number = excluded.number, day = excluded.day \
             WHERE served_batches.number < excluded.number",
        )?
        .execute(params![process, batch.number, today.day])?
        > 0;
    if !is_new {
        return Ok(());
    }
    let mut statement = db.prepare_cached(
        "INSERT INTO served (day, team, cause, payer, requests, credits) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT (day, team, cause, payer) DO UPDATE SET \
         requests = served.requests + excluded.requests, credits = served.credits + excluded.credits",
    )?;
    for Served { day, team, cause, payer, count } in batch.bookable() {
        let served_on = day.to_string();
        let is_closed = served_on.get(..7).is_some_and(|month| is_closed(month, &today.day));
        let day = if is_closed { &today.day } else { &served_on };
        statement.execute(params![day, team, cause.as_str(), payer.as_str(), count.number, count.credits])?;
    }
    if batch.number == 1 {
        forget_batches(db, today)?;
    }
    Ok(())
}

/// Once in the life of each process is enough.
fn forget_batches(db: &Connection, today: &Windows) -> Result<(), LedgerError> {
    let Some(oldest) = today.day.parse::<Date>().ok().and_then(|today| {
        let memory = jiff::Span::new().try_days(BATCH_MEMORY_DAYS).ok()?;
        today.checked_sub(memory).ok()
    }) else {
        return Ok(());
    };
    db.prepare_cached("DELETE FROM served_batches WHERE day < ?1")?.execute([oldest.to_string()])?;
    Ok(())
}

fn usage(db: &Connection, from: Date, to: Date) -> Result<Vec<DayUsage>, LedgerError> {
    let (from, to) = (from.to_string(), to.to_string());
    let mut all: BTreeMap<(Date, String), Figures> = BTreeMap::new();
    let place =
        |row: &Row<'_>| -> rusqlite::Result<(Date, String)> { Ok((date(row, "day")?, row.get("team")?)) };
    let count = |row: &Row<'_>| -> rusqlite::Result<Count> {
        Ok(Count { number: row.get("number")?, credits: row.get("credits")? })
    };

    let mut paid = db.prepare_cached(PAID)?;
    let mut rows = paid.query([&from, &to])?;
    while let Some(row) = rows.next()? {
        *all.entry(place(row)?).or_default().calls_mut(state(row, "state")?) += count(row)?;
    }

    // Where a month was closed, its calls count as what they were then: before their first adjustment.
    let mut changed = db.prepare_cached(
        "SELECT first.call_day AS day, first.team, calls.state, calls.credits, first.from_state \
         FROM adjustments AS first JOIN calls ON calls.id = first.call \
         WHERE first.is_first = 1 AND first.call_day BETWEEN ?1 AND ?2",
    )?;
    let mut rows = changed.query([&from, &to])?;
    while let Some(row) = rows.next()? {
        let one = Count { number: 1, credits: row.get("credits")? };
        let figures = all.entry(place(row)?).or_default();
        let now = figures.calls_mut(state(row, "state")?);
        *now = Count {
            number: now.number.saturating_sub(one.number),
            credits: now.credits.saturating_sub(one.credits),
        };
        *figures.calls_mut(state(row, "from_state")?) += one;
    }

    let mut adjusted = db.prepare_cached(
        "SELECT day, team, sum(credits) AS credits FROM adjustments \
         WHERE day BETWEEN ?1 AND ?2 AND credits <> 0 GROUP BY day, team",
    )?;
    let mut rows = adjusted.query([&from, &to])?;
    while let Some(row) = rows.next()? {
        all.entry(place(row)?).or_default().adjusted += row.get::<_, i64>("credits")?;
    }

    let mut served = db.prepare_cached(
        "SELECT day, team, cause, payer, requests AS number, credits FROM served \
         WHERE day BETWEEN ?1 AND ?2",
    )?;
    let mut rows = served.query([&from, &to])?;
    while let Some(row) = rows.next()? {
        let cause = word(row, "cause", &SavingCause::ALL, SavingCause::as_str)?;
        let payer = word(row, "payer", &Payer::ALL, Payer::as_str)?;
        *all.entry(place(row)?).or_default().served_mut(cause, payer) += count(row)?;
    }
    Ok(all.into_iter().map(|((day, team), figures)| DayUsage { day, team, figures }).collect())
}

fn month(db: &Connection, today: &Windows) -> Result<Vec<TeamMonth>, LedgerError> {
    let mut all: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    let mut spent = db.prepare_cached(
        "SELECT substr(scope, 6) AS team, credits FROM spent WHERE period = ?1 AND scope LIKE 'team:%' \
         UNION ALL SELECT team, sum(credits) FROM adjustments WHERE day >= ?2 AND month = ?1 GROUP BY team",
    )?;
    let first = format!("{}-01", today.month);
    let mut rows = spent.query([&today.month, &first])?;
    while let Some(row) = rows.next()? {
        all.entry(row.get("team")?).or_default().0 += row.get::<_, i64>("credits")?;
    }
    let mut saved = db.prepare_cached(
        "SELECT team, sum(credits) AS credits FROM served WHERE day BETWEEN ?1 AND ?2 GROUP BY team",
    )?;
    // The last day that a month may have.
    let mut rows = saved.query([&first, &format!("{}-31", today.month)])?;
    while let Some(row) = rows.next()? {
        all.entry(row.get("team")?).or_default().1 += row.get::<_, u64>("credits")?;
    }
    Ok(all.into_iter().map(|(team, (spent, saved))| TeamMonth { team, spent, saved }).collect())
}

fn adjustments(db: &Connection, from: Date, to: Date) -> Result<Vec<Adjustment>, LedgerError> {
    let mut statement = db.prepare_cached(
        "SELECT call, team, from_state, to_state, credits, day FROM adjustments \
         WHERE day BETWEEN ?1 AND ?2 ORDER BY id",
    )?;
    let all = statement.query_map([from.to_string(), to.to_string()], |row| {
        Ok(Adjustment {
            call: CallId(row.get("call")?),
            team: row.get("team")?,
            from: state(row, "from_state")?,
            to: state(row, "to_state")?,
            credits: row.get("credits")?,
            day: date(row, "day")?,
        })
    })?;
    Ok(all.collect::<rusqlite::Result<_>>()?)
}

fn charged(db: &Connection, namespace: &str) -> Result<Charged, LedgerError> {
    let mut statement = db.prepare_cached(CHARGED)?;
    let mut rows = statement.query([])?;
    let mut charged = Charged::default();
    while let Some(row) = rows.next()? {
        if row.get::<_, String>("namespace")? != namespace {
            continue;
        }
        let credits: u64 = row.get("credits")?;
        match state(row, "state")? {
            CallState::Reserved | CallState::Released | CallState::Refused | CallState::Failed => {}
            CallState::Sent => charged.open += credits,
            CallState::Answered | CallState::Stored | CallState::Unknown => charged.booked += credits,
            CallState::Unfetchable | CallState::Lost => charged.booked += credits,
        }
    }
    Ok(charged)
}

fn account(db: &Connection, namespace: &str) -> Result<Option<AccountRow>, LedgerError> {
    let found = db
        .prepare_cached(
            "SELECT version, balance, seen_at, baseline_balance, baseline_least, baseline_most, baseline_at, \
             outside FROM accounts WHERE namespace = ?1",
        )?
        .query_row([namespace], |row| {
            Ok(AccountRow {
                version: row.get("version")?,
                balance: row.get("balance")?,
                seen_at: instant(row, "seen_at")?,
                baseline: Baseline {
                    balance: row.get("baseline_balance")?,
                    least: row.get("baseline_least")?,
                    most: row.get("baseline_most")?,
                    at: instant(row, "baseline_at")?,
                },
                outside: row.get("outside")?,
            })
        })
        .optional()?;
    Ok(found)
}

fn keep_account(db: &Connection, namespace: &str, account: &AccountRow) -> Result<bool, LedgerError> {
    let AccountRow { version, balance, seen_at, baseline, outside } = account;
    let kept = db
        .prepare_cached(
            "INSERT INTO accounts (namespace, version, balance, seen_at, baseline_balance, baseline_least, \
             baseline_most, baseline_at, outside) \
             SELECT :namespace, :version, :balance, :seen_at, :baseline_balance, :baseline_least, \
             :baseline_most, :baseline_at, :outside \
             WHERE :version = 1 OR EXISTS (SELECT 1 FROM accounts WHERE namespace = :namespace) \
             ON CONFLICT (namespace) DO UPDATE SET version = excluded.version, balance = excluded.balance, \
             seen_at = excluded.seen_at, baseline_balance = excluded.baseline_balance, \
             baseline_least = excluded.baseline_least, baseline_most = excluded.baseline_most, \
             baseline_at = excluded.baseline_at, outside = excluded.outside \
             WHERE accounts.version = excluded.version - 1",
        )?
        .execute(named_params! {
            ":namespace": namespace,
            ":version": version,
            ":balance": balance,
            ":seen_at": seen_at.to_string(),
            ":baseline_balance": baseline.balance,
            ":baseline_least": baseline.least,
            ":baseline_most": baseline.most,
            ":baseline_at": baseline.at.to_string(),
            ":outside": outside,
        })?;
    Ok(kept > 0)
}

fn state(row: &Row<'_>, column: &str) -> rusqlite::Result<CallState> {
    word(row, column, &CallState::ALL, CallState::as_str)
}

/// The one of `all` whose word stands in a column.
fn word<T: Copy>(
    row: &Row<'_>,
    column: &str,
    all: &[T],
    as_str: impl Fn(T) -> &'static str,
) -> rusqlite::Result<T> {
    let found: String = row.get(column)?;
    all.iter().copied().find(|one| as_str(*one) == found).ok_or_else(|| no_value(format!("{column} {found}")))
}

fn date(row: &Row<'_>, column: &str) -> rusqlite::Result<Date> {
    row.get::<_, String>(column)?.parse().map_err(|error: jiff::Error| no_value(error.to_string()))
}

fn no_value(what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sqlite::{inspect, migrate};

    #[test]
    fn reports_read_an_index_and_no_call() {
        let db = Connection::open_in_memory().unwrap();
        migrate(&db).unwrap();
        for (sql, parameters, index) in [
            (PAID, &["2026-11-01", "2026-11-30"][..], "calls_by_day"),
            (CHARGED, &[], "calls_by_day"),
            (inspect::TOTALS, &[], "calls_totals"),
        ] {
            let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let parameters = rusqlite::params_from_iter(parameters);
            let steps = plan.query_map(parameters, |row| row.get::<_, String>("detail")).unwrap();
            let steps: Vec<String> = steps.collect::<rusqlite::Result<_>>().unwrap();
            assert!(steps[0].contains(&format!("USING COVERING INDEX {index}")), "{steps:?}");
        }
    }
}
