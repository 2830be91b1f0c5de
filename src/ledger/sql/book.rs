//! Bookings: each is one transaction on the call's own row, by any owner.

use super::counters::{add_change, adjust, count, count_refused};
use super::{Query, Row, archive, each, int, missing, read, spool, values};
use crate::base::crash::crash_point;
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::ledger::admin::Settlement;
use crate::ledger::rules::{self, Abandoned, Imported};
use crate::ledger::{Booking, CallId, CallState, LedgerError, Permit, Recovery, Reservation, UnfinishedCall};

pub(super) struct CallRow {
    pub(super) namespace: String,
    pub(super) key: CacheKey,
    pub(super) generation: i64,
    pub(super) state: CallState,
    pub(super) team: String,
    pub(super) credits: i64,
    pub(super) day: String,
    pub(super) month: String,
    pub(super) settled: Option<Settlement>,
    pub(super) request_id: Option<String>,
    pub(super) log_id: Option<String>,
}

impl CallRow {
    fn ids(&self) -> Option<(&str, &str)> {
        self.request_id.as_deref().zip(self.log_id.as_deref())
    }
}

pub(super) async fn locked<Q: Query>(q: &Q, id: CallId) -> Result<Option<CallRow>, Q::Error> {
    let sql = "SELECT namespace, key, generation, state, team, credits, day, month, settled, request_id, log_id \
               FROM granary.calls WHERE id = $1 FOR UPDATE";
    let Some(row) = q.row(sql, values![id]).await? else { return Ok(None) };
    Ok(Some(read!(row => CallRow {
        namespace, key, generation, state, team, credits, day, month, settled, request_id, log_id
    })))
}

pub(crate) async fn mark_sent<Q: Query>(q: &Q, id: CallId) -> Result<Permit, Q::Error> {
    let sql = format!(
        "SELECT state, team, month, {} AS is_ours, \
         EXISTS (SELECT FROM granary.frozen WHERE scope = 'global') AS everyone, \
         EXISTS (SELECT FROM granary.frozen WHERE scope = 'team:' || c.team) AS its_team \
         FROM granary.calls c WHERE id = $1 FOR UPDATE",
        Q::IS_OURS
    );
    let row = q.row(&sql, values![id, &q.keeper().owner]).await?.ok_or_else(|| missing(id))?;
    let [everyone, its_team] = [row.get("everyone")?, row.get("its_team")?];
    let team: String = row.get("team")?;
    let frozen = rules::frozen(&team, |scope| if scope == "global" { everyone } else { its_team });
    let (state, is_ours) = (row.get("state")?, row.get::<Option<bool>>("is_ours")?);
    let permit = rules::permit(state, is_ours == Some(true), frozen);
    if permit == Permit::Granted {
        let sql = format!("UPDATE granary.calls SET state = 'sent', sent_at = $2{} WHERE id = $1", Q::TOUCH);
        q.execute(&sql, values![id, &q.now().to_string()]).await?;
        crash_point("CP6");
        adjust(q, id, &row.get::<String>("month")?, state, CallState::Sent).await?;
    }
    Ok(permit)
}

pub(crate) async fn book<Q: Query>(q: &Q, id: CallId, booking: &Booking) -> Result<(), Q::Error> {
    let row = locked(q, id).await?.ok_or_else(|| missing(id))?;
    let is_held = booking.state().holds_key() && held_by_another(q, id, &row).await?;
    let Some(change) = rules::apply((id, row.state, row.ids()), booking, is_held)? else { return Ok(()) };
    let late = change.late.unwrap_or(false);
    match booking {
        Booking::Answered { text, request_id, log_id } => {
            answer(q, id, text, [request_id, log_id], late).await?;
        }
        Booking::Stored { record, .. } => keep(q, id, record, late).await?,
        Booking::Spooled { record, bytes } => {
            keep(q, id, record, late).await?;
            spool::insert(q, id, record, bytes).await?;
        }
        Booking::Released { reason }
        | Booking::Refused { reason, .. }
        | Booking::Failed { reason }
        | Booking::Unknown { reason }
        | Booking::Unfetchable { reason } => end(q, id, change.to, reason).await?,
        Booking::Lost => {
            let reason = format!("found missing at {}", q.now());
            let sql =
                format!("UPDATE granary.calls SET state = 'lost', reason = $2{} WHERE id = $1", Q::TOUCH);
            q.execute(&sql, values![id, &reason]).await?;
        }
    }
    if row.state == CallState::Answered {
        q.erase_answer(id).await?;
    }
    if change.counted != 0 {
        count(q, &row.team, [&row.day, &row.month], change.counted.saturating_mul(row.credits)).await?;
    }
    if change.counts_refused {
        count_refused(q, &row.team, &row.day, row.credits).await?;
    }
    if change.invalidates {
        add_change(q, &row.namespace, row.key).await?;
    }
    adjust(q, id, &row.month, row.state, change.to).await
}

/// The process that books the answer becomes the owner and downloads the result.
async fn answer<Q: Query>(
    q: &Q,
    id: CallId,
    text: &Secret,
    [request_id, log_id]: [&String; 2],
    late: bool,
) -> Result<(), Q::Error> {
    let sql = format!(
        "UPDATE granary.calls SET state = 'answered', answered_at = $2, ended_at = NULL, reason = NULL, \
         late = $3, request_id = $4, log_id = $5{}{} WHERE id = $1",
        Q::OWN,
        Q::TOUCH
    );
    let (now, owner) = (q.now().to_string(), &q.keeper().owner);
    q.execute(&sql, values![id, &now, late, request_id, log_id, owner]).await?;
    q.keep_answer(id, text).await?;
    crash_point("CP13");
    Ok(())
}

async fn end<Q: Query>(q: &Q, id: CallId, state: CallState, reason: &str) -> Result<(), Q::Error> {
    let sql = format!(
        "UPDATE granary.calls SET state = $2, reason = $4, answer = NULL, \
         ended_at = CASE WHEN state = $2 THEN ended_at ELSE $3 END{} WHERE id = $1",
        Q::TOUCH
    );
    q.execute(&sql, values![id, state, &q.now().to_string(), reason]).await?;
    Ok(())
}

async fn keep<Q: Query>(q: &Q, id: CallId, record: &Record, late: bool) -> Result<(), Q::Error> {
    let sql = format!(
        "UPDATE granary.calls SET state = 'stored', ended_at = $2, late = $3, answer = $4, digest = $5, \
         extension = $6, bytes = $7, reason = NULL, answered_at = coalesce(answered_at, $2), \
         request_id = $8, log_id = $9{} WHERE id = $1",
        Q::TOUCH
    );
    let stored_at = record.stored_at.to_string();
    let values = values! {
        id, &stored_at, late, &record.answer, &record.digest, &record.extension, int(record.bytes)?,
        &record.upstream_request_id, &record.upstream_log_id
    };
    q.execute(&sql, values).await?;
    crash_point("CP27");
    Ok(())
}

async fn held_by_another<Q: Query>(q: &Q, id: CallId, row: &CallRow) -> Result<bool, Q::Error> {
    let sql = "SELECT EXISTS (SELECT FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $3 \
               AND id <> $4 AND NOT late AND state IN ('reserved', 'sent', 'answered', 'stored')) AS is_held";
    let values = values![&row.namespace, &row.key, row.generation, id];
    Ok(q.one(sql, values).await?.get("is_held")?)
}

pub(crate) async fn lose<Q: Query>(q: &Q, lost: &Record) -> Result<(), Q::Error> {
    let sql = "SELECT id FROM granary.calls WHERE namespace = $1 AND key = $2 AND generation = $3 AND digest = $4 \
               AND state = 'stored' AND NOT late";
    let values = values![&lost.namespace, &lost.key, int(lost.generation)?, &lost.digest];
    match q.row(sql, values).await? {
        Some(row) => book(q, row.get("id")?, &Booking::Lost).await,
        None => Ok(()),
    }
}

pub(crate) async fn import_record<Q: Query>(q: &Q, record: &Record) -> Result<(), Q::Error> {
    match rules::import(record.generation, archive::standing(q, record).await?) {
        Imported::Settles(id) => {
            let record = Box::new(record.clone());
            book(q, id, &Booking::Stored { record, holds_key: true }).await
        }
        Imported::Added => archive::add(q, record).await,
        Imported::Ignored => Ok(()),
    }
}

/// Settles all open calls, whose owners are dead. `unfinished` reads those that stay `answered`.
pub(crate) async fn recover<Q: Query>(q: &Q, unfinished: &str) -> Result<Recovery, Q::Error> {
    let mut recovery = Recovery::default();
    let sql =
        "SELECT id, state FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered') ORDER BY id";
    for row in q.rows(sql, &[]).await? {
        let state = row.get("state")?;
        if let Abandoned::Book(booking) = rules::abandon(state, Q::OWNER_DIED) {
            book(q, row.get("id")?, &booking).await?;
            recovery.add(state);
        }
    }
    recovery.unfinished = each(&q.rows(unfinished, &[]).await?, self::unfinished)?;
    crash_point("CP34");
    Ok(recovery)
}

pub(crate) fn unfinished(row: &Row) -> Result<UnfinishedCall, LedgerError> {
    let reservation = read!(row => Reservation {
        namespace, key, team, credits, image, width, height; refresh: false, budgets: Vec::new()
    });
    let text = Secret::new(row.get::<String>("text")?);
    Ok(read!(row => UnfinishedCall { id, generation, answered_at; reservation: reservation, text: text }))
}
