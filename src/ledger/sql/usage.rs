//! Usage by team and day: calls paid, requests served, adjustments of closed months.

use std::collections::BTreeMap;

use jiff::civil::Date;

use super::{Query, Row, Value, int, places, read, values};
use crate::ledger::usage::{Count, DayUsage, Figures, Served, ServedBatch, TeamMonth};
use crate::ledger::{LedgerError, rules};

const BATCH_MEMORY_DAYS: i64 = 30;
/// Day, team, cause and payer.
type Line<'l> = (String, &'l str, &'l str, &'l str);
const LINES: usize = 100;

/// Reads the index by day only.
pub(crate) const PAID: &str = "SELECT day, team, state, count(*) AS number, sum(credits)::bigint AS credits FROM granary.calls \
     WHERE NOT adopted AND day BETWEEN $1 AND $2 GROUP BY day, team, state";

pub(crate) async fn book_served<Q: Query>(q: &Q, batch: &ServedBatch) -> Result<(), Q::Error> {
    let today = q.today();
    let sql = "INSERT INTO granary.served_batches AS b (process, number, day) VALUES ($1, $2, $3) \
               ON CONFLICT (process) DO UPDATE SET number = excluded.number, day = excluded.day \
               WHERE b.number < excluded.number";
    let process = batch.process.to_string();
    if q.execute(sql, values![&process, int(batch.number)?, &today.day]).await? == 0 {
        return Ok(());
    }
    // All processes lock the rows in one order, so that no two wait for each other.
    let mut sums: BTreeMap<Line<'_>, Count> = BTreeMap::new();
    for Served { day, team, cause, payer, count } in batch.bookable() {
        let day = rules::served_on(*day, &today);
        *sums.entry((day, team, cause.as_str(), payer.as_str())).or_default() += *count;
    }
    let sums: Vec<_> = sums.iter().collect();
    for lines in sums.chunks(LINES) {
        add_served(q, lines).await?;
    }
    if batch.number == 1 {
        forget_batches(q, &today.day).await?;
    }
    Ok(())
}

async fn add_served<Q: Query>(q: &Q, lines: &[(&Line<'_>, &Count)]) -> Result<(), Q::Error> {
    let rows: Vec<String> = (0..lines.len()).map(|line| format!("({})", places(6 * line, 6))).collect();
    let sql = format!(
        "INSERT INTO granary.served AS s (day, team, cause, payer, requests, credits) VALUES {} \
         ON CONFLICT (day, team, cause, payer) DO UPDATE SET \
         requests = s.requests + excluded.requests, credits = s.credits + excluded.credits",
        rows.join(", ")
    );
    let mut values: Vec<Value<'_>> = Vec::new();
    for ((day, team, cause, payer), count) in lines {
        let (number, credits) = (int(count.number)?, int(count.credits)?);
        values.extend_from_slice(values![day, *team, *cause, *payer, number, credits]);
    }
    q.execute(&sql, &values).await?;
    Ok(())
}

/// Runs once per process; a locked row is left to the next one.
async fn forget_batches<Q: Query>(q: &Q, today: &str) -> Result<(), Q::Error> {
    let Some(oldest) = today.parse::<Date>().ok().and_then(|today| {
        let memory = jiff::Span::new().try_days(BATCH_MEMORY_DAYS).ok()?;
        today.checked_sub(memory).ok()
    }) else {
        return Ok(());
    };
    let sql = "DELETE FROM granary.served_batches WHERE process IN \
               (SELECT process FROM granary.served_batches WHERE day < $1 FOR UPDATE SKIP LOCKED)";
    q.execute(sql, values![&oldest.to_string()]).await?;
    Ok(())
}

pub(crate) async fn usage<Q: Query>(q: &Q, from: Date, to: Date) -> Result<Vec<DayUsage>, Q::Error> {
    let (from, to) = (from.to_string(), to.to_string());
    let days: &[Value<'_>] = values![&from, &to];
    let mut all: BTreeMap<(Date, String), Figures> = BTreeMap::new();
    let place =
        |row: &Row| -> Result<(Date, String), LedgerError> { Ok((row.get("day")?, row.get("team")?)) };
    let count = |row: &Row| -> Result<Count, LedgerError> { Ok(read!(row => Count { number, credits })) };

    for row in &q.rows(PAID, days).await? {
        *all.entry(place(row)?).or_default().calls_mut(row.get("state")?) += count(row)?;
    }

    // Calls of closed months count by their state before the first adjustment.
    let changed = "SELECT first.call_day AS day, first.team, c.state, c.credits, first.from_state \
                   FROM granary.adjustments AS first JOIN granary.calls c ON c.id = first.call \
                   WHERE first.is_first AND first.call_day BETWEEN $1 AND $2";
    for row in &q.rows(changed, days).await? {
        let one = Count { number: 1, credits: row.get("credits")? };
        let figures = all.entry(place(row)?).or_default();
        let now = figures.calls_mut(row.get("state")?);
        *now = Count {
            number: now.number.saturating_sub(one.number),
            credits: now.credits.saturating_sub(one.credits),
        };
        *figures.calls_mut(row.get("from_state")?) += one;
    }

    let adjusted = "SELECT day, team, sum(credits)::bigint AS credits FROM granary.adjustments \
                    WHERE day BETWEEN $1 AND $2 AND credits <> 0 GROUP BY day, team";
    for row in &q.rows(adjusted, days).await? {
        all.entry(place(row)?).or_default().adjusted += row.get::<i64>("credits")?;
    }

    let served = "SELECT day, team, cause, payer, requests AS number, credits FROM granary.served \
                  WHERE day BETWEEN $1 AND $2";
    for row in &q.rows(served, days).await? {
        let (cause, payer) = (row.get("cause")?, row.get("payer")?);
        *all.entry(place(row)?).or_default().served_mut(cause, payer) += count(row)?;
    }
    Ok(all.into_iter().map(|((day, team), figures)| DayUsage { day, team, figures }).collect())
}

pub(crate) async fn month<Q: Query>(q: &Q) -> Result<Vec<TeamMonth>, Q::Error> {
    let month = q.today().month;
    let mut all: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    // The last day that a month may have.
    let (first, last) = (format!("{month}-01"), format!("{month}-31"));
    let spent = "SELECT substr(scope, 6) AS team, credits FROM granary.spent \
                 WHERE period = $1 AND scope LIKE 'team:%' \
                 UNION ALL SELECT team, sum(credits)::bigint FROM granary.adjustments \
                 WHERE day BETWEEN $2 AND $3 GROUP BY team";
    for row in &q.rows(spent, values![&month, &first, &last]).await? {
        all.entry(row.get("team")?).or_default().0 += row.get::<i64>("credits")?;
    }
    let saved = "SELECT team, sum(credits)::bigint AS credits FROM granary.served \
                 WHERE day BETWEEN $1 AND $2 GROUP BY team";
    for row in &q.rows(saved, values![&first, &last]).await? {
        all.entry(row.get("team")?).or_default().1 += row.get::<u64>("credits")?;
    }
    Ok(all.into_iter().map(|(team, (spent, saved))| TeamMonth { team, spent, saved }).collect())
}
