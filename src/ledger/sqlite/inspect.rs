//! Rows as operators see them. The text of an answer is not among what is read.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::calls;
use crate::base::key::{CacheKey, Digest};
use crate::ledger::admin::{CallDetail, CallFilter, CallPage, Settlement};
use crate::ledger::{CallId, CallState, LedgerError, StateTotal};

/// Rows that are looked at for one answer where no index leads to those that are asked for.
const WINDOW: i64 = 20_000;

const COLUMNS: &str = "id, namespace, key, generation, state, late, adopted, team, credits, day, image, width, \
                       height, reserved_at, sent_at, answered_at, ended_at, reason, request_id, log_id, digest, \
                       extension, bytes, settled";

pub(super) fn calls(db: &Connection, filter: &CallFilter) -> Result<CallPage, LedgerError> {
    let before = filter.before.map_or(i64::MAX, |before| before.0);
    let mut conditions = vec!["id < ?".to_owned()];
    let mut values = vec![Value::Integer(before)];
    if let Some((namespace, key)) = &filter.key {
        conditions.push("namespace = ? AND key = ?".to_owned());
        values.extend([Value::Text(namespace.clone()), Value::Blob(key.as_bytes().to_vec())]);
    }
    if let Some(state) = filter.state {
        // As a literal: else the indexes of some states are of no use.
        conditions.push(format!("state = '{}'", state.as_str()));
    }
    if let Some(team) = &filter.team {
        conditions.push("team = ?".to_owned());
        values.push(Value::Text(team.clone()));
    }
    let is_indexed = filter.key.is_some()
        || filter.state.is_some_and(|state| state.is_open() || state == CallState::Unknown);
    let floor = if is_indexed { None } else { floor(db, before)? };
    if let Some(floor) = floor {
        conditions.push("id >= ?".to_owned());
        values.push(Value::Integer(floor));
    }
    values.push(Value::Integer(i64::try_from(filter.limit).unwrap_or(i64::MAX)));
    let sql =
        format!("SELECT {COLUMNS} FROM calls WHERE {} ORDER BY id DESC LIMIT ?", conditions.join(" AND "));
    let mut statement = db.prepare_cached(&sql)?;
    let calls = statement.query_map(params_from_iter(values), detail)?;
    let calls = calls.collect::<rusqlite::Result<Vec<_>>>()?;
    let next = if calls.len() >= filter.limit { calls.last().map(|call| call.id) } else { floor.map(CallId) };
    Ok(CallPage { calls, next })
}

/// The lowest number that is looked at, when there are lower ones.
fn floor(db: &Connection, before: i64) -> Result<Option<i64>, LedgerError> {
    let (lowest, highest): (Option<i64>, Option<i64>) = db
        .prepare_cached("SELECT (SELECT min(id) FROM calls), (SELECT max(id) FROM calls)")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(lowest), Some(highest)) = (lowest, highest) else { return Ok(None) };
    let floor = before.min(highest.saturating_add(1)).saturating_sub(WINDOW);
    Ok((floor > lowest).then_some(floor))
}

fn detail(row: &Row<'_>) -> rusqlite::Result<CallDetail> {
    let word: String = row.get("state")?;
    let state = CallState::ALL.into_iter().find(|state| state.as_str() == word);
    let state = state.ok_or_else(|| {
        let text = format!("the unknown state {word}");
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, text.into())
    })?;
    let settled: Option<String> = row.get("settled")?;
    let instant = |column: &str| -> rusqlite::Result<Option<Timestamp>> {
        let text: Option<String> = row.get(column)?;
        text.map(|_| calls::instant(row, column)).transpose()
    };
    Ok(CallDetail {
        id: CallId(row.get("id")?),
        namespace: row.get("namespace")?,
        key: CacheKey::from_bytes(row.get("key")?),
        generation: row.get("generation")?,
        state,
        late: row.get("late")?,
        adopted: row.get("adopted")?,
        team: row.get("team")?,
        credits: row.get("credits")?,
        day: row.get("day")?,
        image: Digest::from_bytes(row.get("image")?),
        width: row.get("width")?,
        height: row.get("height")?,
        reserved_at: calls::instant(row, "reserved_at")?,
        sent_at: instant("sent_at")?,
        answered_at: instant("answered_at")?,
        ended_at: instant("ended_at")?,
        reason: row.get("reason")?,
        request_id: row.get("request_id")?,
        log_id: row.get("log_id")?,
        digest: row.get::<_, Option<[u8; 32]>>("digest")?.map(Digest::from_bytes),
        extension: row.get("extension")?,
        bytes: row.get("bytes")?,
        settled: settled.as_deref().and_then(Settlement::of_word),
    })
}

/// All of it is in the index for it: no row is read.
pub(super) const TOTALS: &str =
    "SELECT state, count(*), sum(credits) FROM calls WHERE adopted = 0 GROUP BY state";

pub(super) fn totals(db: &Connection) -> Result<Vec<StateTotal>, LedgerError> {
    let mut totals = CallState::ALL.map(|state| StateTotal { state, calls: 0, credits: 0 });
    let mut statement = db.prepare_cached(TOTALS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let word: String = row.get(0)?;
        if let Some(total) = totals.iter_mut().find(|total| total.state.as_str() == word) {
            (total.calls, total.credits) = (row.get(1)?, row.get(2)?);
        }
    }
    Ok(totals.to_vec())
}
