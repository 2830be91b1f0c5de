//! The one row of the archive that this ledger belongs to.

use super::{Query, values};
use crate::base::archive::{ArchiveId, Import, Membership};

pub(crate) async fn read<Q: Query>(q: &Q) -> Result<Option<Membership>, Q::Error> {
    let sql = "SELECT id, settled, complete, imported FROM granary.archive";
    let Some(row) = q.row(sql, &[]).await? else { return Ok(None) };
    let import = match row.get("complete")? {
        true => Import::Complete,
        false => Import::UpTo(row.get("imported")?),
    };
    Ok(Some(Membership { archive: row.get("id")?, is_settled: row.get("settled")?, import }))
}

pub(crate) async fn begin<Q: Query>(q: &Q, archive: ArchiveId) -> Result<Membership, Q::Error> {
    let sql =
        "INSERT INTO granary.archive (one, id, settled) VALUES (true, $1, false) ON CONFLICT DO NOTHING";
    q.execute(sql, values![&archive.to_string()]).await?;
    Ok(read(q).await?.unwrap_or(Membership::new(archive, false)))
}

pub(crate) async fn settle<Q: Query>(q: &Q, archive: ArchiveId) -> Result<(), Q::Error> {
    let sql = "INSERT INTO granary.archive (one, id, settled) VALUES (true, $1, true) ON CONFLICT (one) DO UPDATE \
               SET id = excluded.id, settled = true, complete = false, imported = NULL";
    q.execute(sql, values![&archive.to_string()]).await?;
    Ok(())
}

pub(crate) async fn note_import<Q: Query>(
    q: &Q,
    archive: ArchiveId,
    import: &Import,
) -> Result<(), Q::Error> {
    let (is_complete, position) = match import {
        Import::Complete => (true, None),
        Import::UpTo(position) => (false, position.as_deref()),
    };
    let sql = "UPDATE granary.archive SET complete = $2, imported = $3 WHERE id = $1 AND settled";
    q.execute(sql, values![&archive.to_string(), is_complete, position]).await?;
    Ok(())
}
