//! Rows as the ledger's types, and the statements that only read them.

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::pool::{Failure, Tx, damaged};
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::ledger::budget::{Budget, Used, Windows};
use crate::ledger::{CallState, Changes, LedgerError, StateTotal};

/// The columns [`record`] reads, of a row called `c`.
pub(super) const RECORD: &str = "c.namespace, c.key, c.generation, c.answer, c.digest, c.extension, c.bytes, c.team, \
                                 c.credits, c.ended_at, c.request_id, c.log_id, c.image, c.width, c.height";

/// The newest stored result of a key.
pub(super) async fn stored(tx: &Tx, namespace: &str, key: CacheKey) -> Result<Option<Record>, Failure> {
    let sql = format!(
        "SELECT {RECORD} FROM granary.calls c WHERE namespace = $1 AND key = $2 AND state = 'stored' AND NOT late \
         AND generation > coalesce((SELECT p.generation FROM granary.purged p \
                                    WHERE p.namespace = $1 AND p.key = $2), -1) \
         ORDER BY generation DESC LIMIT 1"
    );
    let found = tx.row(&sql, &[(&namespace, Type::TEXT), (&&key.as_bytes()[..], Type::BYTEA)]).await?;
    found.as_ref().map(record).transpose()
}

pub(super) fn record(row: &Row) -> Result<Record, Failure> {
    Ok(Record {
        version: Record::VERSION,
        namespace: row.try_get("namespace")?,
        key: CacheKey::from_bytes(hash(row, "key")?),
        generation: number(row, "generation")?,
        answer: row.try_get("answer")?,
        digest: Digest::from_bytes(hash(row, "digest")?),
        extension: row.try_get("extension")?,
        bytes: number(row, "bytes")?,
        team: row.try_get("team")?,
        credits: number(row, "credits")?,
        stored_at: instant(row, "ended_at")?,
        upstream_request_id: row.try_get("request_id")?,
        upstream_log_id: row.try_get("log_id")?,
        image: Digest::from_bytes(hash(row, "image")?),
        width: number(row, "width")?,
        height: number(row, "height")?,
    })
}

pub(super) fn hash(row: &Row, column: &str) -> Result<[u8; 32], Failure> {
    row.try_get::<_, &[u8]>(column)?.try_into().map_err(|_| damaged(column))
}

/// A number that is never negative.
pub(super) fn number<N: TryFrom<i64>>(row: &Row, column: &str) -> Result<N, Failure> {
    N::try_from(row.try_get::<_, i64>(column)?).map_err(|_| damaged(column))
}

pub(super) fn instant(row: &Row, column: &str) -> Result<Timestamp, Failure> {
    row.try_get::<_, &str>(column)?.parse().map_err(|_| damaged(column))
}

pub(super) fn state(row: &Row) -> Result<CallState, Failure> {
    let word: &str = row.try_get("state")?;
    CallState::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| damaged("a state"))
}

/// A number as the database takes it.
pub(super) fn int8(number: u64) -> Result<i64, Failure> {
    let too_large = |_| LedgerError::Unavailable(format!("{number} is more than a ledger can count"));
    Ok(i64::try_from(number).map_err(too_large)?)
}

/// All of it is in an index.
pub(super) const TOTALS: &str = "SELECT state, count(*) AS calls, sum(credits)::bigint AS credits \
                                 FROM granary.calls WHERE NOT adopted GROUP BY state";

pub(super) async fn totals(tx: &Tx) -> Result<Vec<StateTotal>, Failure> {
    let mut totals = CallState::ALL.map(|state| StateTotal { state, calls: 0, credits: 0 });
    for row in tx.rows(TOTALS, &[]).await? {
        let state = state(&row)?;
        for total in totals.iter_mut().filter(|total| total.state == state) {
            (total.calls, total.credits) = (number(&row, "calls")?, number(&row, "credits")?);
        }
    }
    Ok(totals.to_vec())
}

/// Credits counted for a scope in one day (`2026-11-22`) or month (`2026-11`).
pub(super) async fn spent(tx: &Tx, scope: &str, period: &str) -> Result<u64, Failure> {
    let sql = "SELECT credits FROM granary.spent WHERE scope = $1 AND period = $2";
    let row = tx.row(sql, &[(&scope, Type::TEXT), (&period, Type::TEXT)]).await?;
    row.map_or(Ok(0), |row| number(&row, "credits"))
}

pub(super) async fn used(tx: &Tx, budgets: &[Budget], windows: &Windows) -> Result<Vec<Used>, Failure> {
    let (day, month) = (windows.day.as_str(), windows.month.as_str());
    let scopes: Vec<String> = budgets.iter().map(|budget| budget.scope.to_string()).collect();
    let sql = "SELECT scope, period, credits FROM granary.spent WHERE scope = ANY($1) AND period IN ($2, $3)";
    let rows = tx.rows(sql, &[(&scopes, Type::TEXT_ARRAY), (&day, Type::TEXT), (&month, Type::TEXT)]).await?;
    let mut found = Vec::with_capacity(budgets.len());
    for (budget, scope) in budgets.iter().zip(&scopes) {
        let (period, _) = windows.of(budget.window);
        let mut used = 0;
        for row in &rows {
            if row.try_get::<_, &str>("scope")? == scope && row.try_get::<_, &str>("period")? == period {
                used = number(row, "credits")?;
            }
        }
        found.push(Used { budget: budget.clone(), used });
    }
    Ok(found)
}

/// What changed behind a position; with `None` only the position.
pub(super) async fn changes(tx: &Tx, after: Option<u64>) -> Result<Changes, Failure> {
    let Some(after) = after else {
        let row = tx.one("SELECT coalesce(max(position), 0) AS position FROM granary.changes", &[]).await?;
        return Ok(Changes { position: number(&row, "position")?, keys: Vec::new() });
    };
    let sql = "SELECT namespace, key, position FROM granary.changes WHERE position > $1 ORDER BY position";
    let mut changes = Changes { position: after, keys: Vec::new() };
    for row in tx.rows(sql, &[(&int8(after)?, Type::INT8)]).await? {
        changes.position = number(&row, "position")?;
        changes.keys.push((row.try_get("namespace")?, CacheKey::from_bytes(hash(&row, "key")?)));
    }
    Ok(changes)
}
