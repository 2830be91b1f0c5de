//! The spool's statements: results that wait for the store, beside the rows that paid for them.
//!
//! Each row has a copy of its own, also where two results are equal, so that removing one never takes
//! the other's.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio_postgres::types::Type;

use super::book;
use super::pool::{Failure, Lock, Tx};
use super::rows::{self, RECORD, instant, int8, number, record};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::budget::Windows;
use crate::ledger::spool::{SpoolUsage, Spooled};
use crate::ledger::{CallId, CallState, LedgerError};

/// What [`Ledger::keep_room`](crate::ledger::Ledger::keep_room) asks for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) each: u64,
    pub(super) max: u64,
}

/// Refuses a call whose result the spool could not take beside those of all that are open, this one
/// among them by now. One at a time up to the commit, so that no two are given the same room.
pub(super) async fn check_room(tx: &Tx, room: Room) -> Result<(), Failure> {
    let Room { each, max } = room;
    tx.lock(Lock::Spool).await?;
    let sql = "SELECT (SELECT coalesce(sum(bytes), 0)::bigint FROM granary.spool) AS bytes, \
               (SELECT count(*) FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered')) AS open";
    let row = tx.one(sql, &[]).await?;
    let others = number::<u64>(&row, "open")?.saturating_sub(1);
    let used = number::<u64>(&row, "bytes")?.saturating_add(others.saturating_mul(each));
    if used.saturating_add(each) > max {
        return Err(LedgerError::SpoolFull { wanted: each, used, max }.into());
    }
    Ok(())
}

/// Refuses what has just been put in when it is too much. One at a time up to the commit.
pub(super) async fn check_fits(tx: &Tx, wanted: u64, max: u64) -> Result<(), Failure> {
    tx.lock(Lock::Spool).await?;
    let row = tx.one("SELECT sum(bytes)::bigint AS bytes FROM granary.spool", &[]).await?;
    let with_it: u64 = number(&row, "bytes")?;
    if with_it > max {
        return Err(LedgerError::SpoolFull { wanted, used: with_it.saturating_sub(wanted), max }.into());
    }
    Ok(())
}

pub(super) async fn insert(tx: &Tx, id: CallId, record: &Record, bytes: &Bytes) -> Result<(), Failure> {
    let sql = "INSERT INTO granary.spool (call, digest, extension, spooled_at, bytes, data) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    tx.execute(
        sql,
        &[
            (&id.0, Type::INT8),
            (&&record.digest.as_bytes()[..], Type::BYTEA),
            (&record.extension, Type::TEXT),
            (&tx.now.to_string(), Type::TEXT),
            (&int8(bytes.len() as u64)?, Type::INT8),
            (&&bytes[..], Type::BYTEA),
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn object(tx: &Tx, name: ObjectName) -> Result<Option<Bytes>, Failure> {
    let sql = "SELECT data FROM granary.spool WHERE digest = $1 AND extension = $2 LIMIT 1";
    let extension = name.format.extension();
    let values: [super::pool::Value<'_>; 2] =
        [(&&name.digest.as_bytes()[..], Type::BYTEA), (&extension, Type::TEXT)];
    let Some(row) = tx.row(sql, &values).await? else { return Ok(None) };
    Ok(Some(Bytes::from(row.try_get::<_, Vec<u8>>(0)?)))
}

pub(super) async fn has(tx: &Tx, name: ObjectName) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM granary.spool WHERE digest = $1 AND extension = $2)";
    let extension = name.format.extension();
    let row = tx.one(sql, &[(&&name.digest.as_bytes()[..], Type::BYTEA), (&extension, Type::TEXT)]).await?;
    Ok(row.try_get(0)?)
}

pub(super) async fn list(tx: &Tx, after: u64, limit: usize) -> Result<Vec<Spooled>, Failure> {
    let sql = format!(
        "SELECT s.position, c.id, {RECORD} FROM granary.spool s JOIN granary.calls c ON c.id = s.call \
         WHERE s.position > $1 ORDER BY s.position LIMIT $2"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = tx.rows(&sql, &[(&int8(after)?, Type::INT8), (&limit, Type::INT8)]).await?;
    rows.iter()
        .map(|row| {
            let (position, id) = (number(row, "position")?, CallId(row.try_get("id")?));
            Ok(Spooled { position, id, record: record(row)? })
        })
        .collect()
}

pub(super) async fn remove(tx: &Tx, id: CallId, standing: &Record, windows: &Windows) -> Result<(), Failure> {
    let sql = format!("SELECT {RECORD} FROM granary.calls c WHERE c.id = $1 FOR UPDATE");
    let Some(row) = tx.row(&sql, &[(&id.0, Type::INT8)]).await? else { return Ok(()) };
    if tx.execute("DELETE FROM granary.spool WHERE call = $1", &[(&id.0, Type::INT8)]).await? == 0 {
        return Ok(());
    }
    let ours = record(&row)?;
    if *standing == (Record { stored_at: standing.stored_at, ..ours }) {
        // A write before a crash may have set another time; the store's is what others see.
        let sql = "UPDATE granary.calls SET ended_at = $2 WHERE id = $1";
        tx.execute(sql, &[(&id.0, Type::INT8), (&standing.stored_at.to_string(), Type::TEXT)]).await?;
        return Ok(());
    }
    tx.execute("UPDATE granary.calls SET late = true WHERE id = $1", &[(&id.0, Type::INT8)]).await?;
    book::import_record(tx, standing, windows).await
}

pub(super) async fn usage(tx: &Tx) -> Result<SpoolUsage, Failure> {
    let sql = format!(
        "SELECT count(*) AS objects, coalesce(sum(bytes), 0)::bigint AS bytes, \
         (SELECT spooled_at FROM granary.spool ORDER BY position LIMIT 1) AS oldest, {} AS now FROM granary.spool",
        super::pool::NOW
    );
    let row = tx.one(&sql, &[]).await?;
    let now = tx.instant(row.try_get("now")?);
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    let oldest = match row.try_get::<_, Option<&str>>("oldest")? {
        Some(_) => Some(instant(&row, "oldest")?),
        None => None,
    };
    let open = "SELECT state, answered_at FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered')";
    let (mut open_calls, mut answers) = (0, Vec::new());
    for row in tx.rows(open, &[]).await? {
        open_calls += 1;
        if rows::state(&row)? == CallState::Answered {
            answers.push(instant(&row, "answered_at")?);
        }
    }
    Ok(SpoolUsage {
        objects: number(&row, "objects")?,
        bytes: number(&row, "bytes")?,
        oldest_age: oldest.map(age),
        open_calls,
        answered_calls: answers.len() as u64,
        oldest_answer_age: answers.into_iter().min().map(age),
    })
}
