//! The row that says which archive this ledger belongs to, and how many of its records it knows.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::calls::OWNER_DIED;
use crate::base::archive::{ArchiveId, Import, Membership, NoArchiveId};
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::ledger::{CallId, LedgerError, Orphan};

/// One row, or none.
pub(super) const SCHEMA: &str = "
CREATE TABLE archive (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      TEXT    NOT NULL,
    settled INTEGER NOT NULL                  -- 1: the store has been seen to carry the same id
) STRICT;
";

/// A ledger of an earlier program has booked every record of an archive that it created itself. An
/// adoption left a line in the audit: then there may be records that it does not know.
pub(super) const IMPORT: &str = "
ALTER TABLE archive ADD COLUMN complete INTEGER NOT NULL DEFAULT 0;  -- 1: every record of the store is known
ALTER TABLE archive ADD COLUMN imported TEXT;                        -- up to this position of the store's list
UPDATE archive SET complete = 1 WHERE settled = 1 AND NOT EXISTS (SELECT 1 FROM audit WHERE action = 'adopt');
";

pub(super) fn read(db: &Connection) -> Result<Option<Membership>, LedgerError> {
    let found = db
        .prepare_cached("SELECT id, settled, complete, imported FROM archive")?
        .query_row([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((id, is_settled, is_complete, imported)) = found else { return Ok(None) };
    let damaged = |error: NoArchiveId| LedgerError::Unavailable(format!("the row of the archive: {error}"));
    let import = if is_complete { Import::Complete } else { Import::UpTo(imported) };
    Ok(Some(Membership { archive: id.parse().map_err(damaged)?, is_settled, import }))
}

pub(super) fn begin(db: &Connection, archive: ArchiveId) -> Result<Membership, LedgerError> {
    db.prepare_cached("INSERT INTO archive (one, id, settled) VALUES (1, ?1, 0) ON CONFLICT DO NOTHING")?
        .execute(params![archive.to_string()])?;
    Ok(read(db)?.unwrap_or(Membership::new(archive, false)))
}

pub(super) fn settle(db: &Connection, archive: ArchiveId) -> Result<(), LedgerError> {
    db.prepare_cached(
        "INSERT INTO archive (one, id, settled) VALUES (1, ?1, 1) \
         ON CONFLICT (one) DO UPDATE SET id = excluded.id, settled = 1, complete = 0, imported = NULL",
    )?
    .execute(params![archive.to_string()])?;
    Ok(())
}

pub(super) fn note_import(db: &Connection, archive: ArchiveId, import: &Import) -> Result<(), LedgerError> {
    let (is_complete, position) = match import {
        Import::Complete => (true, None),
        Import::UpTo(position) => (false, position.as_deref()),
    };
    db.prepare_cached("UPDATE archive SET complete = ?2, imported = ?3 WHERE id = ?1 AND settled = 1")?
        .execute(params![archive.to_string(), is_complete, position])?;
    Ok(())
}

/// The newest call whose owner died and whose result this may be; `None` when the ledger knows the
/// purchase, or must not keep it.
pub(super) fn orphan_of(db: &Connection, record: &Record) -> Result<Option<CallId>, LedgerError> {
    let id = db
        .prepare_cached(
            "SELECT id FROM calls WHERE namespace = :namespace AND key = :key AND state = 'unknown' \
             AND generation = :generation AND team = :team AND credits = :credits AND reason = :died \
             AND NOT EXISTS (SELECT 1 FROM calls WHERE namespace = :namespace AND key = :key \
             AND request_id = :request_id AND log_id = :log_id) \
             AND NOT EXISTS (SELECT 1 FROM purged WHERE namespace = :namespace AND key = :key \
             AND generation >= :generation) ORDER BY id DESC LIMIT 1",
        )?
        .query_row(
            named_params! {
                ":namespace": record.namespace,
                ":key": record.key.as_bytes(),
                ":generation": record.generation,
                ":team": record.team,
                ":credits": record.credits,
                ":died": OWNER_DIED,
                ":request_id": record.upstream_request_id,
                ":log_id": record.upstream_log_id,
            },
            |row| row.get(0),
        )
        .optional()?;
    Ok(id.map(CallId))
}

/// Whether the import is complete and no call of the key is an orphan.
pub(super) fn knows_all_of(db: &Connection, namespace: &str, key: CacheKey) -> Result<bool, LedgerError> {
    let sql = "SELECT 1 FROM archive WHERE complete = 1 AND NOT EXISTS (SELECT 1 FROM calls \
               WHERE namespace = ?1 AND key = ?2 AND state = 'unknown' AND reason = ?3)";
    Ok(db.prepare_cached(sql)?.exists(params![namespace, key.as_bytes(), OWNER_DIED])?)
}

pub(super) fn orphans(db: &Connection) -> Result<Vec<Orphan>, LedgerError> {
    let sql = "SELECT id, namespace, key FROM calls WHERE state = 'unknown' AND reason = ?1 ORDER BY id";
    let mut statement = db.prepare_cached(sql)?;
    let orphans = statement.query_map([OWNER_DIED], |row| {
        Ok(Orphan { id: CallId(row.get(0)?), namespace: row.get(1)?, key: CacheKey::from_bytes(row.get(2)?) })
    })?;
    Ok(orphans.collect::<rusqlite::Result<_>>()?)
}
