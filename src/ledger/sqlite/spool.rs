//! The spool's statements: results that wait for the store, beside the rows that paid for them.
//!
//! The bytes are the last column, so that everything else is read without them. Each row has a copy
//! of its own, also where two results are equal, so that removing one never takes the other's.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::calls;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::budget::Windows;
use crate::ledger::spool::{SpoolUsage, Spooled};
use crate::ledger::{Booking, CallId, CallState, LedgerError};

/// Layout 2.
pub(super) const SCHEMA: &str = "
CREATE TABLE spool (
    position   INTEGER PRIMARY KEY AUTOINCREMENT,  -- oldest first
    call       INTEGER NOT NULL UNIQUE,
    digest     BLOB    NOT NULL,
    extension  TEXT    NOT NULL,
    spooled_at TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    data       BLOB    NOT NULL
) STRICT;
CREATE INDEX spool_by_object ON spool (digest, extension);
CREATE INDEX spool_sizes ON spool (bytes);
";

/// Refuses a result for which the spool has no room. A row that has been booked already needs none.
pub(super) fn check_fits(
    db: &Connection,
    id: CallId,
    booking: &Booking,
    max: u64,
) -> Result<(), LedgerError> {
    let Booking::Spooled { bytes, .. } = booking else { return Ok(()) };
    let (_, used) = sizes(db)?;
    let wanted = bytes.len() as u64;
    if used.saturating_add(wanted) > max && calls::call(db, id)?.state != CallState::Stored {
        return Err(LedgerError::SpoolFull { wanted, used, max });
    }
    Ok(())
}

/// What [`Ledger::keep_room`](crate::ledger::Ledger::keep_room) asks for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) each: u64,
    pub(super) max: u64,
}

/// Refuses a call whose result the spool could not take beside those of all that are open. In the
/// transaction that makes its row, so that no two are given the same room.
pub(super) fn check_room(db: &Connection, room: Room) -> Result<(), LedgerError> {
    let Room { each, max } = room;
    let open: u64 = db
        .prepare_cached("SELECT count(*) FROM calls WHERE state IN ('reserved', 'sent', 'answered')")?
        .query_row([], |row| row.get(0))?;
    let used = sizes(db)?.1.saturating_add(open.saturating_mul(each));
    if used.saturating_add(each) > max {
        return Err(LedgerError::SpoolFull { wanted: each, used, max });
    }
    Ok(())
}

pub(super) fn insert(
    db: &Connection,
    id: CallId,
    record: &Record,
    bytes: &Bytes,
    now: &str,
) -> Result<(), LedgerError> {
    db.prepare_cached(
        "INSERT INTO spool (call, digest, extension, spooled_at, bytes, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        id.0,
        record.digest.as_bytes(),
        record.extension,
        now,
        bytes.len() as u64,
        &bytes[..]
    ])?;
    Ok(())
}

pub(super) fn object(db: &Connection, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
    let data: Option<Vec<u8>> = db
        .prepare_cached("SELECT data FROM spool WHERE digest = ?1 AND extension = ?2 LIMIT 1")?
        .query_row(params![name.digest.as_bytes(), name.format.extension()], |row| row.get(0))
        .optional()?;
    Ok(data.map(Bytes::from))
}

pub(super) fn has(db: &Connection, name: ObjectName) -> Result<bool, LedgerError> {
    let there = db
        .prepare_cached("SELECT 1 FROM spool WHERE digest = ?1 AND extension = ?2")?
        .exists(params![name.digest.as_bytes(), name.format.extension()])?;
    Ok(there)
}

pub(super) fn list(db: &Connection, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut places =
        db.prepare_cached("SELECT position, call FROM spool WHERE position > ?1 ORDER BY position LIMIT ?2")?;
    let places = places.query_map(params![after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut found = Vec::new();
    for place in places {
        let (position, call) = place?;
        let id = CallId(call);
        found.push(Spooled { position, id, record: record_of(db, id)? });
    }
    Ok(found)
}

fn record_of(db: &Connection, id: CallId) -> Result<Record, LedgerError> {
    let sql = format!("SELECT {} FROM calls WHERE id = ?1", calls::RECORD);
    Ok(db.prepare_cached(&sql)?.query_row([id.0], calls::record)?)
}

pub(super) fn remove(
    db: &Connection,
    id: CallId,
    standing: &Record,
    windows: &Windows,
) -> Result<(), LedgerError> {
    let removed = db.prepare_cached("DELETE FROM spool WHERE call = ?1")?.execute([id.0])?;
    if removed == 0 {
        return Ok(());
    }
    let ours = record_of(db, id)?;
    if *standing == (Record { stored_at: standing.stored_at, ..ours }) {
        // A write before a crash may have set another time; the store's is what others see.
        db.prepare_cached("UPDATE calls SET ended_at = ?2 WHERE id = ?1")?
            .execute(params![id.0, standing.stored_at.to_string()])?;
        return Ok(());
    }
    db.prepare_cached("UPDATE calls SET late = 1 WHERE id = ?1")?.execute([id.0])?;
    calls::import_record(db, standing, windows)
}

/// How many wait, and their bytes; an index has both.
fn sizes(db: &Connection) -> Result<(u64, u64), LedgerError> {
    let sizes = db
        .prepare_cached("SELECT count(*), coalesce(sum(bytes), 0) FROM spool")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(sizes)
}

pub(super) fn usage(db: &Connection, now: Timestamp) -> Result<SpoolUsage, LedgerError> {
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    let oldest = db
        .prepare_cached("SELECT spooled_at FROM spool ORDER BY position LIMIT 1")?
        .query_row([], |row| calls::instant(row, "spooled_at"))
        .optional()?;
    let mut open = db.prepare_cached(
        "SELECT state, answered_at FROM calls WHERE state IN ('reserved', 'sent', 'answered')",
    )?;
    let mut open = open.query([])?;
    let (mut open_calls, mut answers) = (0, Vec::new());
    while let Some(row) = open.next()? {
        open_calls += 1;
        if row.get_ref("state")?.as_str().is_ok_and(|state| state == CallState::Answered.as_str()) {
            answers.push(calls::instant(row, "answered_at")?);
        }
    }
    let (objects, bytes) = sizes(db)?;
    Ok(SpoolUsage {
        objects,
        bytes,
        oldest_age: oldest.map(age),
        open_calls,
        answered_calls: answers.len() as u64,
        oldest_answer_age: answers.into_iter().min().map(age),
    })
}
