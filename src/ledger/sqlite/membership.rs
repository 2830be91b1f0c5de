//! The row that says which archive this ledger belongs to.

use rusqlite::{Connection, OptionalExtension, params};

use crate::archive::{ArchiveId, Membership, NoArchiveId};
use crate::ledger::LedgerError;

/// One row, or none.
pub(super) const SCHEMA: &str = "
CREATE TABLE archive (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      TEXT    NOT NULL,
    settled INTEGER NOT NULL                  -- 1: the store has been seen to carry the same id
) STRICT;
";

pub(super) fn read(db: &Connection) -> Result<Option<Membership>, LedgerError> {
    let found = db
        .prepare_cached("SELECT id, settled FROM archive")?
        .query_row([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, is_settled)) = found else { return Ok(None) };
    let damaged = |error: NoArchiveId| LedgerError::Unavailable(format!("the row of the archive: {error}"));
    Ok(Some(Membership { archive: id.parse().map_err(damaged)?, is_settled }))
}

pub(super) fn begin(db: &Connection, archive: ArchiveId) -> Result<Membership, LedgerError> {
    db.prepare_cached("INSERT INTO archive (one, id, settled) VALUES (1, ?1, 0) ON CONFLICT DO NOTHING")?
        .execute(params![archive.to_string()])?;
    Ok(read(db)?.unwrap_or(Membership { archive, is_settled: false }))
}

pub(super) fn settle(db: &Connection, archive: ArchiveId) -> Result<(), LedgerError> {
    db.prepare_cached(
        "INSERT INTO archive (one, id, settled) VALUES (1, ?1, 1) \
         ON CONFLICT (one) DO UPDATE SET id = excluded.id, settled = 1",
    )?
    .execute(params![archive.to_string()])?;
    Ok(())
}
