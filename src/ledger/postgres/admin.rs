//! What operators change, and what it makes out of date.

use tokio_postgres::types::Type;

use super::book::tell;
use super::pool::{Failure, Tx};
use super::rows::{int8, number};
use crate::key::CacheKey;
use crate::ledger::admin::Purge;

/// The lock on the key is held: nobody reserves it, or purges it too, in between.
pub(super) async fn purge(tx: &Tx, namespace: &str, key: CacheKey) -> Result<Purge, Failure> {
    let before = purged(tx, namespace, key).await?;
    // Of what was lost a record may be left in the store; it goes as well.
    let sql = "SELECT max(generation) AS newest, \
               coalesce(max(generation) FILTER (WHERE state = 'stored'), -1) > $3 AS is_stored \
               FROM granary.calls WHERE namespace = $1 AND key = $2 AND state IN ('stored', 'lost') AND NOT late";
    let least = before.map_or(Ok(-1), int8)?;
    let key_bytes = &key.as_bytes()[..];
    let row =
        tx.one(sql, &[(&namespace, Type::TEXT), (&key_bytes, Type::BYTEA), (&least, Type::INT8)]).await?;
    if !row.try_get::<_, bool>("is_stored")? {
        return Ok(before.map_or(Purge::Nothing, |generation| Purge::Repeated { generation }));
    }
    let generation: u64 = number(&row, "newest")?;
    let sql = "INSERT INTO granary.purged (namespace, key, generation) VALUES ($1, $2, $3) \
               ON CONFLICT (namespace, key) DO UPDATE SET generation = excluded.generation";
    let newest = int8(generation)?;
    tx.execute(sql, &[(&namespace, Type::TEXT), (&key_bytes, Type::BYTEA), (&newest, Type::INT8)]).await?;
    tell(tx, namespace, key).await?;
    Ok(Purge::Done { generation })
}

pub(super) async fn purged(tx: &Tx, namespace: &str, key: CacheKey) -> Result<Option<u64>, Failure> {
    let sql = "SELECT generation FROM granary.purged WHERE namespace = $1 AND key = $2";
    let row = tx.row(sql, &[(&namespace, Type::TEXT), (&&key.as_bytes()[..], Type::BYTEA)]).await?;
    row.map(|row| number(&row, "generation")).transpose()
}
