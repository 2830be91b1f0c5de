//! Rows as operators see them. The text of an answer is not among what is read.

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::pool::{Failure, Tx, Value};
use super::rows::{hash, instant, number, state};
use crate::base::key::{CacheKey, Digest};
use crate::ledger::admin::{CallDetail, CallFilter, CallPage, Settlement};
use crate::ledger::{CallId, CallState};

/// Rows that are looked at for one answer where no index leads to those that are asked for.
const WINDOW: i64 = 20_000;

const COLUMNS: &str = "id, namespace, key, generation, state, late, adopted, team, credits, day, image, width, \
                       height, reserved_at, sent_at, answered_at, ended_at, reason, request_id, log_id, digest, \
                       extension, bytes, settled";

pub(super) async fn calls(tx: &Tx, filter: &CallFilter) -> Result<CallPage, Failure> {
    let before = filter.before.map_or(i64::MAX, |before| before.0);
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let is_indexed = filter.key.is_some()
        || filter.state.is_some_and(|state| state.is_open() || state == CallState::Unknown);
    let floor = if is_indexed { None } else { floor(tx, before).await? };
    let lowest = floor.unwrap_or(i64::MIN);
    let key = filter.key.as_ref().map(|(namespace, key)| (namespace, &key.as_bytes()[..]));

    let mut conditions = vec!["id < $1".to_owned(), "id >= $2".to_owned()];
    let mut values: Vec<Value<'_>> = vec![(&before, Type::INT8), (&lowest, Type::INT8), (&limit, Type::INT8)];
    if let Some((namespace, key)) = &key {
        values.extend([(*namespace as _, Type::TEXT), (key as _, Type::BYTEA)]);
        conditions.push(format!("namespace = ${} AND key = ${}", values.len() - 1, values.len()));
    }
    if let Some(state) = filter.state {
        // As a literal: else the indexes of some states are of no use.
        conditions.push(format!("state = '{}'", state.as_str()));
    }
    if let Some(team) = &filter.team {
        values.push((team, Type::TEXT));
        conditions.push(format!("team = ${}", values.len()));
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM granary.calls WHERE {} ORDER BY id DESC LIMIT $3",
        conditions.join(" AND ")
    );
    let rows = tx.rows(&sql, &values).await?;
    let calls = rows.iter().map(detail).collect::<Result<Vec<_>, _>>()?;
    let next = if calls.len() >= filter.limit { calls.last().map(|call| call.id) } else { floor.map(CallId) };
    Ok(CallPage { calls, next })
}

/// The lowest number that is looked at, when there are lower ones.
async fn floor(tx: &Tx, before: i64) -> Result<Option<i64>, Failure> {
    let row = tx.one("SELECT min(id) AS lowest, max(id) AS highest FROM granary.calls", &[]).await?;
    let (Some(lowest), Some(highest)) =
        (row.try_get::<_, Option<i64>>("lowest")?, row.try_get::<_, Option<i64>>("highest")?)
    else {
        return Ok(None);
    };
    let floor = before.min(highest.saturating_add(1)).saturating_sub(WINDOW);
    Ok((floor > lowest).then_some(floor))
}

fn detail(row: &Row) -> Result<CallDetail, Failure> {
    Ok(CallDetail {
        id: CallId(row.try_get("id")?),
        namespace: row.try_get("namespace")?,
        key: CacheKey::from_bytes(hash(row, "key")?),
        generation: number(row, "generation")?,
        state: state(row)?,
        late: row.try_get("late")?,
        adopted: row.try_get("adopted")?,
        team: row.try_get("team")?,
        credits: number(row, "credits")?,
        day: row.try_get("day")?,
        image: Digest::from_bytes(hash(row, "image")?),
        width: number(row, "width")?,
        height: number(row, "height")?,
        reserved_at: instant(row, "reserved_at")?,
        sent_at: if_set(row, "sent_at")?,
        answered_at: if_set(row, "answered_at")?,
        ended_at: if_set(row, "ended_at")?,
        reason: row.try_get("reason")?,
        request_id: row.try_get("request_id")?,
        log_id: row.try_get("log_id")?,
        digest: row
            .try_get::<_, Option<&[u8]>>("digest")?
            .map(|_| hash(row, "digest"))
            .transpose()?
            .map(Digest::from_bytes),
        extension: row.try_get("extension")?,
        bytes: row.try_get::<_, Option<i64>>("bytes")?.map(|_| number(row, "bytes")).transpose()?,
        settled: row.try_get::<_, Option<&str>>("settled")?.and_then(Settlement::of_word),
    })
}

fn if_set(row: &Row, column: &str) -> Result<Option<Timestamp>, Failure> {
    row.try_get::<_, Option<&str>>(column)?.map(|_| instant(row, column)).transpose()
}
