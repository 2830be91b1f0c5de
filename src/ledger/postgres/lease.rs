//! Whose call it is: showing that its owner lives, and acting for one that is silent.

use tokio_postgres::types::Type;

use super::book::{self, Booker};
use super::pool::{Failure, Tx};
use super::rows::{hash, instant, int8, number, state};
use crate::base::crash::crash_point;
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::ledger::{Booking, CallId, CallState, ForeignOpenCall, Orphan, Reservation, UnfinishedCall};

/// The reason of calls that another process ended. It is searched for, so it does not change.
const OWNER_SILENT: &str = "its owner was silent for a full lease";

pub(super) async fn renew(tx: &Tx, calls: &[i64], owner: &str) -> Result<Vec<CallId>, Failure> {
    let sql = "UPDATE granary.calls SET beat = beat + 1 WHERE id = ANY($1) AND owner = $2 \
               AND state IN ('reserved', 'sent', 'answered') RETURNING id";
    let rows = tx.rows(sql, &[(&calls, Type::INT8_ARRAY), (&owner, Type::TEXT)]).await?;
    rows.iter().map(|row| Ok(CallId(row.try_get(0)?))).collect()
}

/// All open calls but those that the asker has in hand.
pub(super) async fn foreign(tx: &Tx, in_hand: &[i64]) -> Result<Vec<ForeignOpenCall>, Failure> {
    let sql = "SELECT id, state, beat FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered') \
               AND NOT id = ANY($1) ORDER BY id";
    let rows = tx.rows(sql, &[(&in_hand, Type::INT8_ARRAY)]).await?;
    rows.iter()
        .map(|row| {
            Ok(ForeignOpenCall {
                id: CallId(row.try_get("id")?),
                state: state(row)?,
                heartbeat: number(row, "beat")?,
            })
        })
        .collect()
}

/// What became of a silent owner's call.
pub(super) enum Taken {
    /// It is not as it was seen any more.
    Nothing,
    Released,
    Unknown,
    Unfinished(Box<UnfinishedCall>),
}

pub(super) async fn take_over(tx: &Tx, silent: ForeignOpenCall, booker: &Booker) -> Result<Taken, Failure> {
    let sql = "SELECT c.namespace, c.key, c.generation, c.team, c.credits, c.image, c.width, c.height, \
               c.answered_at, a.text FROM granary.calls c LEFT JOIN granary.answers a ON a.call = c.id \
               WHERE c.id = $1 AND c.state = $2 AND c.beat = $3 FOR UPDATE OF c";
    let id = silent.id;
    let heartbeat = int8(silent.heartbeat)?;
    let values: [super::pool::Value<'_>; 3] =
        [(&id.0, Type::INT8), (&silent.state.as_str(), Type::TEXT), (&heartbeat, Type::INT8)];
    let Some(row) = tx.row(sql, &values).await? else { return Ok(Taken::Nothing) };
    let reason = OWNER_SILENT.to_owned();
    match silent.state {
        CallState::Reserved => {
            book::book(tx, id, &Booking::Released { reason }, booker).await?;
            Ok(Taken::Released)
        }
        CallState::Sent => {
            book::book(tx, id, &Booking::Unknown { reason }, booker).await?;
            Ok(Taken::Unknown)
        }
        CallState::Answered => {
            let sql = "UPDATE granary.calls SET owner = $2, beat = beat + 1 WHERE id = $1";
            tx.execute(sql, &[(&id.0, Type::INT8), (&booker.owner, Type::TEXT)]).await?;
            crash_point("CP34");
            Ok(Taken::Unfinished(Box::new(UnfinishedCall {
                id,
                reservation: Reservation {
                    namespace: row.try_get("namespace")?,
                    key: CacheKey::from_bytes(hash(&row, "key")?),
                    refresh: false,
                    team: row.try_get("team")?,
                    credits: number(&row, "credits")?,
                    budgets: Vec::new(),
                    image: Digest::from_bytes(hash(&row, "image")?),
                    width: number(&row, "width")?,
                    height: number(&row, "height")?,
                },
                generation: number(&row, "generation")?,
                text: Secret::new(row.try_get::<_, String>("text")?),
                answered_at: instant(&row, "answered_at")?,
            })))
        }
        _ => Ok(Taken::Nothing),
    }
}

/// The newest call whose owner died and whose result this may be; `None` when the ledger knows the
/// purchase, or must not keep it.
pub(super) async fn orphan_of(tx: &Tx, record: &Record) -> Result<Option<CallId>, Failure> {
    let sql = "SELECT id FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $3 \
               AND state = 'unknown' AND team = $4 AND credits = $5 AND reason = $6 \
               AND NOT EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 \
               AND request_id = $7 AND log_id = $8) \
               AND NOT EXISTS (SELECT FROM granary.purged WHERE namespace = $1 AND key = $2 AND generation >= $3) \
               ORDER BY id DESC LIMIT 1";
    let values: [super::pool::Value<'_>; 8] = [
        (&record.namespace, Type::TEXT),
        (&&record.key.as_bytes()[..], Type::BYTEA),
        (&int8(record.generation)?, Type::INT8),
        (&record.team, Type::TEXT),
        (&int8(record.credits)?, Type::INT8),
        (&OWNER_SILENT, Type::TEXT),
        (&record.upstream_request_id, Type::TEXT),
        (&record.upstream_log_id, Type::TEXT),
    ];
    let row = tx.row(sql, &values).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.map(CallId))
}

/// Whether the import is complete and no call of the key is an orphan.
pub(super) async fn knows_all_of(tx: &Tx, namespace: &str, key: CacheKey) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM granary.archive WHERE complete) AND NOT EXISTS (SELECT FROM granary.calls \
               WHERE namespace = $1 AND key = $2 AND state = 'unknown' AND reason = $3)";
    let values: [super::pool::Value<'_>; 3] =
        [(&namespace, Type::TEXT), (&&key.as_bytes()[..], Type::BYTEA), (&OWNER_SILENT, Type::TEXT)];
    Ok(tx.one(sql, &values).await?.try_get(0)?)
}

pub(super) async fn orphans(tx: &Tx) -> Result<Vec<Orphan>, Failure> {
    let sql =
        "SELECT id, namespace, key FROM granary.calls WHERE state = 'unknown' AND reason = $1 ORDER BY id";
    let rows = tx.rows(sql, &[(&OWNER_SILENT, Type::TEXT)]).await?;
    rows.iter()
        .map(|row| {
            let (namespace, key) = (row.try_get("namespace")?, CacheKey::from_bytes(hash(row, "key")?));
            Ok(Orphan { id: CallId(row.try_get("id")?), namespace, key })
        })
        .collect()
}
