//! The row that says which archive this ledger belongs to, and how many of its records it knows.

use tokio_postgres::types::Type;

use super::pool::{Failure, Tx, damaged};
use crate::base::archive::{ArchiveId, Import, Membership};

/// A ledger of an earlier program has booked every record of an archive that it created itself. An
/// adoption left a line in the audit: then there may be records that it does not know.
pub(super) const IMPORT: &str = "
ALTER TABLE granary.archive
    ADD COLUMN complete boolean NOT NULL DEFAULT false,  -- every record of the store is known
    ADD COLUMN imported text;                            -- up to this position of the store's list
UPDATE granary.archive SET complete = settled
    WHERE NOT EXISTS (SELECT FROM granary.audit WHERE action = 'adopt');
";

pub(super) async fn read(tx: &Tx) -> Result<Option<Membership>, Failure> {
    let sql = "SELECT id, settled, complete, imported FROM granary.archive";
    let Some(row) = tx.row(sql, &[]).await? else { return Ok(None) };
    let archive = row.try_get::<_, &str>("id")?.parse().map_err(|_| damaged("the id of the archive"))?;
    let import = match row.try_get("complete")? {
        true => Import::Complete,
        false => Import::UpTo(row.try_get("imported")?),
    };
    Ok(Some(Membership { archive, is_settled: row.try_get("settled")?, import }))
}

pub(super) async fn begin(tx: &Tx, archive: ArchiveId) -> Result<Membership, Failure> {
    let sql =
        "INSERT INTO granary.archive (one, id, settled) VALUES (true, $1, false) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[(&archive.to_string(), Type::TEXT)]).await?;
    Ok(read(tx).await?.unwrap_or(Membership::new(archive, false)))
}

pub(super) async fn settle(tx: &Tx, archive: ArchiveId) -> Result<(), Failure> {
    let sql = "INSERT INTO granary.archive (one, id, settled) VALUES (true, $1, true) ON CONFLICT (one) DO UPDATE \
               SET id = excluded.id, settled = true, complete = false, imported = NULL";
    tx.execute(sql, &[(&archive.to_string(), Type::TEXT)]).await?;
    Ok(())
}

pub(super) async fn note_import(tx: &Tx, archive: ArchiveId, import: &Import) -> Result<(), Failure> {
    let (is_complete, position) = match import {
        Import::Complete => (true, None),
        Import::UpTo(position) => (false, position.as_deref()),
    };
    let sql = "UPDATE granary.archive SET complete = $2, imported = $3 WHERE id = $1 AND settled";
    let values: [super::pool::Value<'_>; 3] =
        [(&archive.to_string(), Type::TEXT), (&is_complete, Type::BOOL), (&position, Type::TEXT)];
    tx.execute(sql, &values).await?;
    Ok(())
}
