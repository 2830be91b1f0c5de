//! How calls go on: each booking is one transaction on the call's own row, whoever owns it.

use jiff::tz::TimeZone;
use tokio_postgres::types::Type;

use super::pool::{Failure, Lock, Tx};
use super::reserve::{count, count_refused, missing};
use super::rows::{hash, int8, state};
use super::{spool, usage};
use crate::base::crash::crash_point;
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::ledger::budget::Windows;
use crate::ledger::{Booking, CallId, CallState, LedgerError};

/// What a booking needs to know of its row, which nobody else changes meanwhile.
struct CallRow {
    namespace: String,
    key: [u8; 32],
    generation: i64,
    state: CallState,
    team: String,
    credits: i64,
    day: String,
    month: String,
}

async fn locked(tx: &Tx, id: CallId) -> Result<CallRow, Failure> {
    let sql = "SELECT namespace, key, generation, state, team, credits, day, month FROM granary.calls \
               WHERE id = $1 FOR UPDATE";
    let row = tx.row(sql, &[(&id.0, Type::INT8)]).await?.ok_or_else(|| missing(id))?;
    Ok(CallRow {
        namespace: row.try_get("namespace")?,
        key: hash(&row, "key")?,
        generation: row.try_get("generation")?,
        state: state(&row)?,
        team: row.try_get("team")?,
        credits: row.try_get("credits")?,
        day: row.try_get("day")?,
        month: row.try_get("month")?,
    })
}

/// Who books, what may wait in the spool, and where days begin.
#[derive(Clone)]
pub(super) struct Booker {
    pub(super) owner: String,
    pub(super) spool_max: u64,
    pub(super) zone: TimeZone,
}

pub(super) async fn book(tx: &Tx, id: CallId, booking: &Booking, booker: &Booker) -> Result<(), Failure> {
    let row = locked(tx, id).await?;
    let state = booking.state();
    if row.state == state {
        return Ok(());
    }
    if !booking.may_follow(row.state) {
        let (id, state, wanted) = (id.0, row.state.as_str().to_owned(), state.as_str());
        return Err(LedgerError::Contradiction { id, state, wanted }.into());
    }
    match booking {
        Booking::Answered { text, request_id, log_id } => {
            // From `unknown` another call may have taken the key meanwhile; it keeps it.
            let late = held_by_another(tx, id, &row).await?;
            answer(tx, id, text, [request_id, log_id], late, &booker.owner).await?;
        }
        Booking::Stored { record, holds_key } => {
            // A late row gets its key back when whoever had taken it has let it go.
            let late = !holds_key || held_by_another(tx, id, &row).await?;
            keep(tx, id, record, late).await?;
            tell_if_newer(tx, record).await?;
        }
        Booking::Spooled { record, bytes } => {
            spool::insert(tx, id, record, bytes).await?;
            let late = held_by_another(tx, id, &row).await?;
            keep(tx, id, record, late).await?;
            spool::check_fits(tx, bytes.len() as u64, booker.spool_max).await?;
            tell_if_newer(tx, record).await?;
        }
        Booking::Released { reason }
        | Booking::Refused { reason, .. }
        | Booking::Failed { reason }
        | Booking::Unknown { reason }
        | Booking::Unfetchable { reason } => end(tx, id, state, reason).await?,
        Booking::Lost => {
            let reason = format!("found missing at {}", tx.now);
            let sql = "UPDATE granary.calls SET state = 'lost', reason = $2, beat = beat + 1 WHERE id = $1";
            tx.execute(sql, &[(&id.0, Type::INT8), (&reason, Type::TEXT)]).await?;
        }
    }
    if row.state == CallState::Answered {
        tx.execute("DELETE FROM granary.answers WHERE call = $1", &[(&id.0, Type::INT8)]).await?;
    }
    if row.state.counts_credits() && !state.counts_credits() {
        count(tx, &row.team, &row.day, &row.month, -row.credits).await?;
    }
    if let Booking::Refused { for_order: true, .. } = booking {
        count_refused(tx, row.team.clone(), &row.day, row.credits).await?;
    }
    usage::adjust(tx, id, &row.month, row.state, state, &booker.zone).await
}

/// Whoever books the answer fetches the result.
async fn answer(
    tx: &Tx,
    id: CallId,
    text: &Secret,
    [request_id, log_id]: [&String; 2],
    late: bool,
    owner: &str,
) -> Result<(), Failure> {
    let sql = "UPDATE granary.calls SET state = 'answered', answered_at = $2, ended_at = NULL, reason = NULL, \
               late = $3, request_id = $4, log_id = $5, owner = $6, beat = beat + 1 WHERE id = $1";
    tx.execute(
        sql,
        &[
            (&id.0, Type::INT8),
            (&tx.now.to_string(), Type::TEXT),
            (&late, Type::BOOL),
            (request_id, Type::TEXT),
            (log_id, Type::TEXT),
            (&owner, Type::TEXT),
        ],
    )
    .await?;
    let text = text.expose();
    let sql = "INSERT INTO granary.answers (call, text) VALUES ($1, $2)";
    tx.execute(sql, &[(&id.0, Type::INT8), (&text, Type::TEXT)]).await?;
    crash_point("CP13");
    Ok(())
}

async fn end(tx: &Tx, id: CallId, state: CallState, reason: &str) -> Result<(), Failure> {
    let sql =
        "UPDATE granary.calls SET state = $2, ended_at = $3, reason = $4, beat = beat + 1 WHERE id = $1";
    tx.execute(
        sql,
        &[
            (&id.0, Type::INT8),
            (&state.as_str(), Type::TEXT),
            (&tx.now.to_string(), Type::TEXT),
            (&reason, Type::TEXT),
        ],
    )
    .await?;
    Ok(())
}

/// The row's result is permanent.
async fn keep(tx: &Tx, id: CallId, record: &Record, late: bool) -> Result<(), Failure> {
    let sql = "UPDATE granary.calls SET state = 'stored', ended_at = $2, late = $3, answer = $4, digest = $5, \
               extension = $6, bytes = $7, beat = beat + 1, reason = NULL, answered_at = coalesce(answered_at, $2), \
               request_id = coalesce(request_id, $8), log_id = coalesce(log_id, $9) WHERE id = $1";
    tx.execute(
        sql,
        &[
            (&id.0, Type::INT8),
            (&record.stored_at.to_string(), Type::TEXT),
            (&late, Type::BOOL),
            (&record.answer, Type::TEXT),
            (&&record.digest.as_bytes()[..], Type::BYTEA),
            (&record.extension, Type::TEXT),
            (&int8(record.bytes)?, Type::INT8),
            (&record.upstream_request_id, Type::TEXT),
            (&record.upstream_log_id, Type::TEXT),
        ],
    )
    .await?;
    crash_point("CP27");
    Ok(())
}

async fn held_by_another(tx: &Tx, id: CallId, row: &CallRow) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $3 \
               AND id <> $4 AND NOT late AND state IN ('reserved', 'sent', 'answered', 'stored'))";
    let row = tx
        .one(
            sql,
            &[
                (&row.namespace, Type::TEXT),
                (&&row.key[..], Type::BYTEA),
                (&row.generation, Type::INT8),
                (&id.0, Type::INT8),
            ],
        )
        .await?;
    Ok(row.try_get(0)?)
}

/// Answers of an earlier generation may be in the memory of other processes.
async fn tell_if_newer(tx: &Tx, record: &Record) -> Result<(), Failure> {
    if record.generation == 0 {
        return Ok(());
    }
    tell(tx, &record.namespace, record.key).await
}

/// What was read under a key before is out of date.
pub(super) async fn tell(tx: &Tx, namespace: &str, key: CacheKey) -> Result<(), Failure> {
    // One at a time up to the commit, so that positions appear in their order.
    tx.lock(Lock::Changes).await?;
    let sql = "INSERT INTO granary.changes (namespace, key, position) \
               VALUES ($1, $2, nextval('granary.change_positions')) \
               ON CONFLICT (namespace, key) DO UPDATE SET position = excluded.position";
    tx.execute(sql, &[(&namespace, Type::TEXT), (&&key.as_bytes()[..], Type::BYTEA)]).await?;
    Ok(())
}

/// Marks the newest stored row of a key as lost, if it names this object.
pub(super) async fn lose(tx: &Tx, lost: &Record, booker: &Booker) -> Result<(), Failure> {
    let sql = "SELECT id FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $3 AND digest = $4 \
               AND state = 'stored' AND NOT late";
    let found = tx
        .row(
            sql,
            &[
                (&lost.namespace, Type::TEXT),
                (&&lost.key.as_bytes()[..], Type::BYTEA),
                (&int8(lost.generation)?, Type::INT8),
                (&&lost.digest.as_bytes()[..], Type::BYTEA),
            ],
        )
        .await?;
    match found {
        Some(row) => book(tx, CallId(row.try_get(0)?), &Booking::Lost, booker).await,
        None => Ok(()),
    }
}

pub(super) async fn import_record(tx: &Tx, record: &Record, windows: &Windows) -> Result<(), Failure> {
    let sql = "INSERT INTO granary.calls (namespace, key, generation, state, adopted, team, credits, day, month, \
               image, width, height, reserved_at, ended_at, answer, request_id, log_id, digest, extension, bytes) \
               SELECT $1, $2, $3, 'stored', true, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14, $15, $16, $17 \
               WHERE NOT EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $3 \
               AND digest = $15 AND state = 'lost') \
               AND NOT EXISTS (SELECT FROM granary.purged \
               WHERE namespace = $1 AND key = $2 AND generation >= $3) ON CONFLICT DO NOTHING";
    let values: [super::pool::Value<'_>; 17] = [
        (&record.namespace, Type::TEXT),
        (&&record.key.as_bytes()[..], Type::BYTEA),
        (&int8(record.generation)?, Type::INT8),
        (&record.team, Type::TEXT),
        (&int8(record.credits)?, Type::INT8),
        (&windows.day, Type::TEXT),
        (&windows.month, Type::TEXT),
        (&&record.image.as_bytes()[..], Type::BYTEA),
        (&i64::from(record.width), Type::INT8),
        (&i64::from(record.height), Type::INT8),
        (&record.stored_at.to_string(), Type::TEXT),
        (&record.answer, Type::TEXT),
        (&record.upstream_request_id, Type::TEXT),
        (&record.upstream_log_id, Type::TEXT),
        (&&record.digest.as_bytes()[..], Type::BYTEA),
        (&record.extension, Type::TEXT),
        (&int8(record.bytes)?, Type::INT8),
    ];
    if tx.execute(sql, &values).await? > 0 {
        tell_if_newer(tx, record).await?;
    }
    Ok(())
}
