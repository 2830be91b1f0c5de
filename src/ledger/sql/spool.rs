//! The spool table. Each call has its own copy of the bytes, so that removing one keeps the others.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Lock, Query, RECORD, archive, each, int, read, record, values};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::rules::{self, Imported};
use crate::ledger::{CallId, CallState, SpoolUsage, Spooled};

const SIZES: &str = "SELECT (SELECT coalesce(sum(bytes), 0)::bigint FROM granary.spool) AS bytes, \
                     (SELECT count(*) FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered')) AS open";

/// Refuses a new call without room for its result. The lock until the commit keeps that room.
pub(crate) async fn check_room<Q: Query>(q: &Q) -> Result<(), Q::Error> {
    let Some(room) = q.keeper().room() else { return Ok(()) };
    q.lock(Lock::Spool).await?;
    let row = q.one(SIZES, &[]).await?;
    let others = row.get::<u64>("open")?.saturating_sub(1);
    Ok(rules::has_room(room, row.get("bytes")?, others)?)
}

/// The lock is held until the commit.
pub(super) async fn insert<Q: Query>(
    q: &Q,
    id: CallId,
    record: &Record,
    bytes: &Bytes,
) -> Result<(), Q::Error> {
    q.lock(Lock::Spool).await?;
    let sql = "SELECT coalesce(sum(bytes), 0)::bigint AS bytes FROM granary.spool";
    let wanted = bytes.len() as u64;
    rules::fits(wanted, q.one(sql, &[]).await?.get("bytes")?, q.keeper().spool_max)?;
    let sql = "INSERT INTO granary.spool (call, digest, extension, spooled_at, bytes, data) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let now = q.now().to_string();
    let values = values![id, &record.digest, &record.extension, &now, int(wanted)?, &bytes[..]];
    q.execute(sql, values).await?;
    Ok(())
}

pub(crate) async fn object<Q: Query>(q: &Q, name: ObjectName) -> Result<Option<Bytes>, Q::Error> {
    let sql = "SELECT data FROM granary.spool WHERE digest = $1 AND extension = $2 LIMIT 1";
    let row = q.row(sql, values![&name.digest, name.format.extension()]).await?;
    Ok(row.map(|row| row.get("data").map(Vec::into)).transpose()?)
}

pub(crate) async fn has<Q: Query>(q: &Q, name: ObjectName) -> Result<bool, Q::Error> {
    let sql = "SELECT EXISTS (SELECT FROM granary.spool WHERE digest = $1 AND extension = $2) AS is_there";
    Ok(q.one(sql, values![&name.digest, name.format.extension()]).await?.get("is_there")?)
}

pub(crate) async fn list<Q: Query>(q: &Q, after: u64, limit: usize) -> Result<Vec<Spooled>, Q::Error> {
    let sql = format!(
        "SELECT s.position, c.id, {RECORD} FROM granary.spool s JOIN granary.calls c ON c.id = s.call \
         WHERE s.position > $1 ORDER BY s.position LIMIT $2"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = q.rows(&sql, values![int(after)?, limit]).await?;
    Ok(each(&rows, |row| Ok(read!(row => Spooled { position, id; record: record(row)? })))?)
}

/// The row leaves the key to `standing` when that is of another purchase.
pub(crate) async fn remove<Q: Query>(q: &Q, id: CallId, standing: &Record) -> Result<(), Q::Error> {
    let sql = format!("SELECT {RECORD} FROM granary.calls c WHERE c.id = $1 FOR UPDATE");
    let Some(row) = q.row(&sql, values![id]).await? else { return Ok(()) };
    if q.execute("DELETE FROM granary.spool WHERE call = $1", values![id]).await? == 0 {
        return Ok(());
    }
    if rules::is_same_purchase(&record(&row)?, standing) {
        // The store's time is what others see.
        let sql = "UPDATE granary.calls SET ended_at = $2 WHERE id = $1";
        q.execute(sql, values![id, &standing.stored_at.to_string()]).await?;
        return Ok(());
    }
    q.execute("UPDATE granary.calls SET late = true WHERE id = $1", values![id]).await?;
    let known = rules::ImportStanding { orphan: None, ..archive::standing(q, standing).await? };
    if rules::import(standing.generation, known) == Imported::Added {
        archive::add(q, standing).await?;
    }
    Ok(())
}

pub(crate) async fn usage<Q: Query>(q: &Q) -> Result<SpoolUsage, Q::Error> {
    let sql = format!(
        "SELECT count(*) AS objects, coalesce(sum(bytes), 0)::bigint AS bytes, \
         (SELECT spooled_at FROM granary.spool ORDER BY position LIMIT 1) AS oldest, {} AS now FROM granary.spool",
        Q::NOW
    );
    let row = q.one(&sql, &[]).await?;
    let now = q.instant(row.get("now")?);
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    let open = "SELECT state, answered_at FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered')";
    let (mut open_calls, mut answers) = (0, Vec::new());
    for row in q.rows(open, &[]).await? {
        open_calls += 1;
        if row.get::<CallState>("state")? == CallState::Answered {
            answers.push(row.get("answered_at")?);
        }
    }
    Ok(SpoolUsage {
        objects: row.get("objects")?,
        bytes: row.get("bytes")?,
        oldest_age: row.get::<Option<_>>("oldest")?.map(age),
        open_calls,
        answered_calls: answers.len() as u64,
        oldest_answer_age: answers.into_iter().min().map(age),
    })
}
