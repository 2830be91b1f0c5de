//! The row that says which archive this ledger belongs to.

use tokio_postgres::types::Type;

use super::pool::{Failure, Tx, damaged};
use crate::archive::{ArchiveId, Membership};

pub(super) async fn read(tx: &Tx) -> Result<Option<Membership>, Failure> {
    let Some(row) = tx.row("SELECT id, settled FROM granary.archive", &[]).await? else { return Ok(None) };
    let archive = row.try_get::<_, &str>("id")?.parse().map_err(|_| damaged("the id of the archive"))?;
    Ok(Some(Membership { archive, is_settled: row.try_get("settled")? }))
}

pub(super) async fn begin(tx: &Tx, archive: ArchiveId) -> Result<Membership, Failure> {
    let sql =
        "INSERT INTO granary.archive (one, id, settled) VALUES (true, $1, false) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[(&archive.to_string(), Type::TEXT)]).await?;
    Ok(read(tx).await?.unwrap_or(Membership { archive, is_settled: false }))
}

pub(super) async fn settle(tx: &Tx, archive: ArchiveId) -> Result<(), Failure> {
    let sql = "INSERT INTO granary.archive (one, id, settled) VALUES (true, $1, true) \
               ON CONFLICT (one) DO UPDATE SET id = excluded.id, settled = true";
    tx.execute(sql, &[(&archive.to_string(), Type::TEXT)]).await?;
    Ok(())
}
