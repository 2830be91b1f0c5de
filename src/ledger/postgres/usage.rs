//! Who paid, who was served, and the upstream's account: the statements of [`UsageBook`].
//!
//! Reports read many rows, so they have connections and a time limit of their own: nothing that is
//! bought waits for one, or is refused because one was slow.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::PostgresLedger;
use super::pool::{Failure, Tx, damaged};
use super::rows::{instant, int8, number};
use crate::base::outcome::SavingCause;
use crate::ledger::budget::Windows;
use crate::ledger::usage::{
    AccountRow, Adjustment, Baseline, Charged, Count, DayUsage, Figures, Payer, Served, ServedBatch,
    TeamMonth, UsageBook, is_closed,
};
use crate::ledger::{CallId, CallState, LedgerError};

/// Batches of a process that has booked none for so many days are forgotten: it is gone.
const BATCH_MEMORY_DAYS: i64 = 30;

/// What is added to the calls.
pub(super) const SCHEMA: &str = "
CREATE TABLE granary.served (
    day      text   NOT NULL,
    team     text   NOT NULL,
    cause    text   NOT NULL,
    payer    text   NOT NULL,                     -- 'own': the team had paid itself; 'other'
    requests bigint NOT NULL,
    credits  bigint NOT NULL,                     -- what they would have cost
    PRIMARY KEY (day, team, cause, payer)
) WITH (fillfactor = 50);
CREATE TABLE granary.served_batches (
    process  text   PRIMARY KEY,
    number   bigint NOT NULL,                     -- its last batch that is booked
    day      text   NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE granary.adjustments (
    id         bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    call       bigint  NOT NULL,                  -- changed when its month was closed
    call_day   text    NOT NULL,
    is_first   boolean NOT NULL,                  -- of this call
    team       text    NOT NULL,
    from_state text    NOT NULL,
    to_state   text    NOT NULL,
    credits    bigint  NOT NULL,                  -- 0, or less when its credits count no more
    day        text    NOT NULL,                  -- when it changed
    month      text    NOT NULL
);
CREATE INDEX adjustments_by_call ON granary.adjustments (call);
CREATE INDEX adjustments_by_day ON granary.adjustments (day);
CREATE INDEX adjustments_by_call_day ON granary.adjustments (call_day) WHERE is_first;
CREATE TABLE granary.accounts (
    namespace        text   PRIMARY KEY,
    version          bigint NOT NULL,
    balance          bigint NOT NULL,
    seen_at          text   NOT NULL,
    baseline_balance bigint NOT NULL,
    baseline_least   bigint NOT NULL,
    baseline_most    bigint NOT NULL,
    baseline_at      text   NOT NULL,
    outside          bigint NOT NULL
);
CREATE INDEX calls_by_day ON granary.calls (day, team, namespace, state, credits) WHERE NOT adopted;
CREATE INDEX spent_by_period ON granary.spent (period);
";

/// All of it is in the index by day: of a million rows none is read that has rested for a while.
pub(super) const PAID: &str = "SELECT day, team, state, count(*) AS number, sum(credits)::bigint AS credits \
                               FROM granary.calls WHERE NOT adopted AND day BETWEEN $1 AND $2 \
                               GROUP BY day, team, state";

/// The same.
pub(super) const CHARGED: &str = "SELECT state, sum(credits)::bigint AS credits FROM granary.calls \
                                  WHERE NOT adopted AND namespace = $1 GROUP BY state";

#[async_trait]
impl UsageBook for PostgresLedger {
    async fn book_served(&self, batch: ServedBatch) -> Result<(), LedgerError> {
        let what = Arc::new((batch, self.booker.zone.clone()));
        self.reports
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { book_served(&tx, &what.0, &Windows::at(tx.now, &what.1)).await }
            })
            .await
    }

    async fn usage(&self, from: Date, to: Date) -> Result<Vec<DayUsage>, LedgerError> {
        self.reports.report(move |tx| async move { usage(&tx, from, to).await }).await
    }

    async fn month(&self) -> Result<Vec<TeamMonth>, LedgerError> {
        let zone = Arc::new(self.booker.zone.clone());
        self.reports
            .report(move |tx| {
                let zone = Arc::clone(&zone);
                async move { month(&tx, &Windows::at(tx.now, &zone)).await }
            })
            .await
    }

    async fn adjustments(&self, from: Date, to: Date) -> Result<Vec<Adjustment>, LedgerError> {
        self.reports.report(move |tx| async move { adjustments(&tx, from, to).await }).await
    }

    async fn charged(&self, namespace: &str) -> Result<Charged, LedgerError> {
        let namespace: Arc<str> = namespace.into();
        self.reports
            .report(move |tx| {
                let namespace = Arc::clone(&namespace);
                async move { charged(&tx, &namespace).await }
            })
            .await
    }

    async fn account(&self, namespace: &str) -> Result<Option<AccountRow>, LedgerError> {
        let namespace: Arc<str> = namespace.into();
        self.reports
            .read(move |tx| {
                let namespace = Arc::clone(&namespace);
                async move { account(&tx, &namespace).await }
            })
            .await
    }

    async fn keep_account(&self, namespace: &str, account: &AccountRow) -> Result<bool, LedgerError> {
        let what = Arc::new((namespace.to_owned(), account.clone()));
        self.reports
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { keep_account(&tx, &what.0, &what.1).await }
            })
            .await
    }
}

/// A call has become another state in this transaction, which holds its row. If its `month` is closed,
/// that is an adjustment of today.
pub(super) async fn adjust(
    tx: &Tx,
    id: CallId,
    month: &str,
    from: CallState,
    to: CallState,
    zone: &TimeZone,
) -> Result<(), Failure> {
    let today = Windows::at(tx.now, zone);
    if !is_closed(month, &today.day) {
        return Ok(());
    }
    let sign = i64::from(to.counts_credits()) - i64::from(from.counts_credits());
    let sql = "INSERT INTO granary.adjustments \
               (call, call_day, is_first, team, from_state, to_state, credits, day, month) \
               SELECT id, day, NOT EXISTS (SELECT FROM granary.adjustments WHERE call = $1), team, $2, $3, \
               $4 * credits, $5, $6 FROM granary.calls WHERE id = $1 AND NOT adopted";
    tx.execute(
        sql,
        &[
            (&id.0, Type::INT8),
            (&from.as_str(), Type::TEXT),
            (&to.as_str(), Type::TEXT),
            (&sign, Type::INT8),
            (&today.day, Type::TEXT),
            (&today.month, Type::TEXT),
        ],
    )
    .await?;
    Ok(())
}

async fn book_served(tx: &Tx, batch: &ServedBatch, today: &Windows) -> Result<(), Failure> {
    let sql = "INSERT INTO granary.served_batches AS b (process, number, day) VALUES ($1, $2, $3) \
               ON CONFLICT (process) DO UPDATE SET number = excluded.number, day = excluded.day \
               WHERE b.number < excluded.number";
    let process = batch.process.to_string();
    let values: [super::pool::Value<'_>; 3] =
        [(&process, Type::TEXT), (&int8(batch.number)?, Type::INT8), (&today.day, Type::TEXT)];
    if tx.execute(sql, &values).await? == 0 {
        return Ok(());
    }
    add_served(tx, batch.bookable(), today).await?;
    if batch.number == 1 {
        forget_batches(tx, today).await?;
    }
    Ok(())
}

/// Processes add to the same rows; all take them in the same order, so that no two wait for each other.
async fn add_served(tx: &Tx, served: impl Iterator<Item = &Served>, today: &Windows) -> Result<(), Failure> {
    // Two that were served on different days may be booked on the same one.
    let mut sums: BTreeMap<(String, &str, &str, &str), Count> = BTreeMap::new();
    for Served { day, team, cause, payer, count } in served {
        let served_on = day.to_string();
        let is_closed = served_on.get(..7).is_some_and(|month| is_closed(month, &today.day));
        let day = if is_closed { today.day.clone() } else { served_on };
        *sums.entry((day, team, cause.as_str(), payer.as_str())).or_default() += *count;
    }
    let days: Vec<&str> = sums.keys().map(|(day, ..)| day.as_str()).collect();
    let teams: Vec<&str> = sums.keys().map(|(_, team, ..)| *team).collect();
    let causes: Vec<&str> = sums.keys().map(|(_, _, cause, _)| *cause).collect();
    let payers: Vec<&str> = sums.keys().map(|(.., payer)| *payer).collect();
    let requests = sums.values().map(|count| int8(count.number)).collect::<Result<Vec<_>, _>>()?;
    let credits = sums.values().map(|count| int8(count.credits)).collect::<Result<Vec<_>, _>>()?;
    let sql = "INSERT INTO granary.served AS s (day, team, cause, payer, requests, credits) \
               SELECT * FROM unnest($1, $2, $3, $4, $5, $6) AS added (day, team, cause, payer, requests, credits) \
               ORDER BY day, team, cause, payer \
               ON CONFLICT (day, team, cause, payer) DO UPDATE SET \
               requests = s.requests + excluded.requests, credits = s.credits + excluded.credits";
    tx.execute(
        sql,
        &[
            (&days, Type::TEXT_ARRAY),
            (&teams, Type::TEXT_ARRAY),
            (&causes, Type::TEXT_ARRAY),
            (&payers, Type::TEXT_ARRAY),
            (&requests, Type::INT8_ARRAY),
            (&credits, Type::INT8_ARRAY),
        ],
    )
    .await?;
    Ok(())
}

/// Once in the life of each process is enough. A row that somebody has in hand is left to the next.
async fn forget_batches(tx: &Tx, today: &Windows) -> Result<(), Failure> {
    let Some(oldest) = today.day.parse::<Date>().ok().and_then(|today| {
        let memory = jiff::Span::new().try_days(BATCH_MEMORY_DAYS).ok()?;
        today.checked_sub(memory).ok()
    }) else {
        return Ok(());
    };
    let sql = "DELETE FROM granary.served_batches WHERE process IN \
               (SELECT process FROM granary.served_batches WHERE day < $1 FOR UPDATE SKIP LOCKED)";
    tx.execute(sql, &[(&oldest.to_string(), Type::TEXT)]).await?;
    Ok(())
}

async fn usage(tx: &Tx, from: Date, to: Date) -> Result<Vec<DayUsage>, Failure> {
    let (from, to) = (from.to_string(), to.to_string());
    let days: [super::pool::Value<'_>; 2] = [(&from, Type::TEXT), (&to, Type::TEXT)];
    let mut all: BTreeMap<(Date, String), Figures> = BTreeMap::new();
    let place =
        |row: &Row| -> Result<(Date, String), Failure> { Ok((date(row, "day")?, row.try_get("team")?)) };
    let count = |row: &Row| -> Result<Count, Failure> {
        Ok(Count { number: number(row, "number")?, credits: number(row, "credits")? })
    };

    for row in &tx.rows(PAID, &days).await? {
        *all.entry(place(row)?).or_default().calls_mut(state(row, "state")?) += count(row)?;
    }

    // Where a month was closed, its calls count as what they were then: before their first adjustment.
    let changed = "SELECT first.call_day AS day, first.team, c.state, c.credits, first.from_state \
                   FROM granary.adjustments AS first JOIN granary.calls c ON c.id = first.call \
                   WHERE first.is_first AND first.call_day BETWEEN $1 AND $2";
    for row in &tx.rows(changed, &days).await? {
        let one = Count { number: 1, credits: number(row, "credits")? };
        let figures = all.entry(place(row)?).or_default();
        let now = figures.calls_mut(state(row, "state")?);
        *now = Count {
            number: now.number.saturating_sub(one.number),
            credits: now.credits.saturating_sub(one.credits),
        };
        *figures.calls_mut(state(row, "from_state")?) += one;
    }

    let adjusted = "SELECT day, team, sum(credits)::bigint AS credits FROM granary.adjustments \
                    WHERE day BETWEEN $1 AND $2 AND credits <> 0 GROUP BY day, team";
    for row in &tx.rows(adjusted, &days).await? {
        all.entry(place(row)?).or_default().adjusted += row.try_get::<_, i64>("credits")?;
    }

    let served = "SELECT day, team, cause, payer, requests AS number, credits FROM granary.served \
                  WHERE day BETWEEN $1 AND $2";
    for row in &tx.rows(served, &days).await? {
        let cause = word(row, "cause", &SavingCause::ALL, SavingCause::as_str)?;
        let payer = word(row, "payer", &Payer::ALL, Payer::as_str)?;
        *all.entry(place(row)?).or_default().served_mut(cause, payer) += count(row)?;
    }
    Ok(all.into_iter().map(|((day, team), figures)| DayUsage { day, team, figures }).collect())
}

async fn month(tx: &Tx, today: &Windows) -> Result<Vec<TeamMonth>, Failure> {
    let mut all: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    // The last day that a month may have.
    let (first, last) = (format!("{}-01", today.month), format!("{}-31", today.month));
    let spent = "SELECT substr(scope, 6) AS team, credits FROM granary.spent \
                 WHERE period = $1 AND scope LIKE 'team:%' \
                 UNION ALL SELECT team, sum(credits)::bigint FROM granary.adjustments \
                 WHERE day BETWEEN $2 AND $3 GROUP BY team";
    let values: [super::pool::Value<'_>; 3] =
        [(&today.month, Type::TEXT), (&first, Type::TEXT), (&last, Type::TEXT)];
    for row in &tx.rows(spent, &values).await? {
        all.entry(row.try_get("team")?).or_default().0 += row.try_get::<_, i64>("credits")?;
    }
    let saved = "SELECT team, sum(credits)::bigint AS credits FROM granary.served \
                 WHERE day BETWEEN $1 AND $2 GROUP BY team";
    for row in &tx.rows(saved, &[(&first, Type::TEXT), (&last, Type::TEXT)]).await? {
        all.entry(row.try_get("team")?).or_default().1 += number::<u64>(row, "credits")?;
    }
    Ok(all.into_iter().map(|(team, (spent, saved))| TeamMonth { team, spent, saved }).collect())
}

async fn adjustments(tx: &Tx, from: Date, to: Date) -> Result<Vec<Adjustment>, Failure> {
    let sql = "SELECT call, team, from_state, to_state, credits, day FROM granary.adjustments \
               WHERE day BETWEEN $1 AND $2 ORDER BY id";
    let rows = tx.rows(sql, &[(&from.to_string(), Type::TEXT), (&to.to_string(), Type::TEXT)]).await?;
    rows.iter()
        .map(|row| {
            Ok(Adjustment {
                call: CallId(row.try_get("call")?),
                team: row.try_get("team")?,
                from: state(row, "from_state")?,
                to: state(row, "to_state")?,
                credits: row.try_get("credits")?,
                day: date(row, "day")?,
            })
        })
        .collect()
}

async fn charged(tx: &Tx, namespace: &str) -> Result<Charged, Failure> {
    let mut charged = Charged::default();
    for row in &tx.rows(CHARGED, &[(&namespace, Type::TEXT)]).await? {
        let credits: u64 = number(row, "credits")?;
        match state(row, "state")? {
            CallState::Reserved | CallState::Released | CallState::Refused | CallState::Failed => {}
            CallState::Sent => charged.open += credits,
            CallState::Answered | CallState::Stored | CallState::Unknown => charged.booked += credits,
            CallState::Unfetchable | CallState::Lost => charged.booked += credits,
        }
    }
    Ok(charged)
}

async fn account(tx: &Tx, namespace: &str) -> Result<Option<AccountRow>, Failure> {
    let sql = "SELECT version, balance, seen_at, baseline_balance, baseline_least, baseline_most, baseline_at, \
               outside FROM granary.accounts WHERE namespace = $1";
    let Some(row) = tx.row(sql, &[(&namespace, Type::TEXT)]).await? else { return Ok(None) };
    Ok(Some(AccountRow {
        version: number(&row, "version")?,
        balance: number(&row, "balance")?,
        seen_at: instant(&row, "seen_at")?,
        baseline: Baseline {
            balance: number(&row, "baseline_balance")?,
            least: number(&row, "baseline_least")?,
            most: number(&row, "baseline_most")?,
            at: instant(&row, "baseline_at")?,
        },
        outside: row.try_get("outside")?,
    }))
}

async fn keep_account(tx: &Tx, namespace: &str, account: &AccountRow) -> Result<bool, Failure> {
    let AccountRow { version, balance, seen_at, baseline, outside } = account;
    let sql = "INSERT INTO granary.accounts AS a (namespace, version, balance, seen_at, baseline_balance, \
               baseline_least, baseline_most, baseline_at, outside) \
               SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9 \
               WHERE $2 = 1 OR EXISTS (SELECT FROM granary.accounts WHERE namespace = $1) \
               ON CONFLICT (namespace) DO UPDATE SET version = excluded.version, balance = excluded.balance, \
               seen_at = excluded.seen_at, baseline_balance = excluded.baseline_balance, \
               baseline_least = excluded.baseline_least, baseline_most = excluded.baseline_most, \
               baseline_at = excluded.baseline_at, outside = excluded.outside \
               WHERE a.version = excluded.version - 1";
    let values: [super::pool::Value<'_>; 9] = [
        (&namespace, Type::TEXT),
        (&int8(*version)?, Type::INT8),
        (&int8(*balance)?, Type::INT8),
        (&seen_at.to_string(), Type::TEXT),
        (&int8(baseline.balance)?, Type::INT8),
        (&int8(baseline.least)?, Type::INT8),
        (&int8(baseline.most)?, Type::INT8),
        (&baseline.at.to_string(), Type::TEXT),
        (outside, Type::INT8),
    ];
    Ok(tx.execute(sql, &values).await? > 0)
}

fn state(row: &Row, column: &str) -> Result<CallState, Failure> {
    word(row, column, &CallState::ALL, CallState::as_str)
}

/// The one of `all` whose word stands in a column.
fn word<T: Copy>(
    row: &Row,
    column: &str,
    all: &[T],
    as_str: impl Fn(T) -> &'static str,
) -> Result<T, Failure> {
    let found: &str = row.try_get(column)?;
    all.iter().copied().find(|one| as_str(*one) == found).ok_or_else(|| damaged(column))
}

fn date(row: &Row, column: &str) -> Result<Date, Failure> {
    row.try_get::<_, &str>(column)?.parse().map_err(|_| damaged(column))
}
