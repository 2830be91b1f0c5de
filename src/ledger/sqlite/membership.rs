//! The row that says which archive this ledger belongs to, and how many of its records it knows.

use rusqlite::{Connection, OptionalExtension, params};

use crate::archive::{ArchiveId, Import, Membership, NoArchiveId};
use crate::ledger::LedgerError;

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

pub(super) fn is_complete(db: &Connection) -> Result<bool, LedgerError> {
    Ok(db.prepare_cached("SELECT 1 FROM archive WHERE complete = 1")?.exists([])?)
}
