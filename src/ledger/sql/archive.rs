//! The archive's one row, imported records, and orphans.

use super::counters::add_change;
use super::{Query, each, int, read, values};
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::ledger::budget::Windows;
use crate::ledger::rules::{self, ImportStanding};
use crate::ledger::{Absence, Orphan};

pub(crate) async fn membership<Q: Query>(q: &Q) -> Result<Option<Membership>, Q::Error> {
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
    Ok(membership(q).await?.unwrap_or(Membership::new(archive, false)))
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

pub(super) async fn standing<Q: Query>(q: &Q, record: &Record) -> Result<ImportStanding, Q::Error> {
    let sql = "SELECT (SELECT generation FROM granary.purged WHERE namespace = $1 AND key = $2) AS purged, \
               EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 \
                       AND request_id = $3 AND log_id = $4) AS has_purchase, \
               EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $5 \
                       AND digest = $6 AND state = 'lost') AS is_lost, \
               (SELECT id FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $5 \
                AND state = 'unknown' AND team = $7 AND credits = $8 AND reason = $9 \
                ORDER BY id DESC LIMIT 1) AS orphan";
    let values = values! {
        &record.namespace, &record.key, &record.upstream_request_id, &record.upstream_log_id,
        int(record.generation)?, &record.digest, &record.team, int(record.credits)?, Q::OWNER_DIED
    };
    let row = q.one(sql, values).await?;
    Ok(read!(row => ImportStanding { purged, has_purchase, is_lost, orphan }))
}

/// Adds an unpaid row, unless another one holds the key.
pub(super) async fn add<Q: Query>(q: &Q, record: &Record) -> Result<(), Q::Error> {
    let windows = Windows::at(record.stored_at, &q.keeper().zone);
    let sql = "INSERT INTO granary.calls (namespace, key, generation, state, adopted, team, credits, day, month, \
               image, width, height, reserved_at, ended_at, answer, request_id, log_id, digest, extension, bytes) \
               VALUES ($1, $2, $3, 'stored', true, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14, $15, \
               $16, $17) ON CONFLICT DO NOTHING";
    let at = record.stored_at.to_string();
    let values = values! {
        &record.namespace, &record.key, int(record.generation)?, &record.team, int(record.credits)?,
        &windows.day, &windows.month, &record.image, record.width, record.height, &at, &record.answer,
        &record.upstream_request_id, &record.upstream_log_id, &record.digest, &record.extension,
        int(record.bytes)?
    };
    if q.execute(sql, values).await? > 0 && rules::invalidates(record) {
        add_change(q, &record.namespace, record.key).await?;
    }
    Ok(())
}

pub(crate) async fn absence<Q: Query>(q: &Q, namespace: &str, key: CacheKey) -> Result<Absence, Q::Error> {
    let sql = "SELECT EXISTS (SELECT FROM granary.archive WHERE complete) AS is_complete, \
               EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 \
                       AND state = 'unknown' AND reason = $3) AS has_orphan, \
               EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 \
                       AND state IN ('sent', 'answered')) AS has_open_call";
    let row = q.one(sql, values![namespace, &key, Q::OWNER_DIED]).await?;
    Ok(Absence::of(row.get("is_complete")?, row.get("has_orphan")?, row.get("has_open_call")?))
}

pub(crate) async fn orphans<Q: Query>(q: &Q) -> Result<Vec<Orphan>, Q::Error> {
    let sql =
        "SELECT id, namespace, key FROM granary.calls WHERE state = 'unknown' AND reason = $1 ORDER BY id";
    let rows = q.rows(sql, values![Q::OWNER_DIED]).await?;
    Ok(each(&rows, |row| Ok(read!(row => Orphan { id, namespace, key })))?)
}
