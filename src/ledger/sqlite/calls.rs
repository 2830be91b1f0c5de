//! The statements: each function is what happens inside one transaction.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{PAGE_SIZE, admin, spool};
use crate::base::crash::crash_point;
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::ledger::budget::{self, BudgetRefusal, Scope, Windows};
use crate::ledger::{
    Booking, CallId, CallState, LedgerError, Permit, Recovery, Reservation, Reserved, UnfinishedCall, Won,
};

/// The columns [`record`] reads.
pub(super) const RECORD: &str = "namespace, key, generation, answer, digest, extension, bytes, team, credits, \
                      ended_at, request_id, log_id, image, width, height";

/// The newest stored result of a key.
pub(super) fn stored(db: &Connection, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
    let sql = format!(
        "SELECT {RECORD} FROM calls WHERE namespace = ?1 AND key = ?2 AND state = 'stored' AND late = 0 \
         AND generation > coalesce((SELECT generation FROM purged WHERE namespace = ?1 AND key = ?2), -1) \
         ORDER BY generation DESC LIMIT 1"
    );
    let found = db.prepare_cached(&sql)?.query_row(params![namespace, key.as_bytes()], record).optional()?;
    Ok(found)
}

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        version: Record::VERSION,
        namespace: row.get("namespace")?,
        key: CacheKey::from_bytes(row.get("key")?),
        generation: row.get("generation")?,
        answer: row.get("answer")?,
        digest: Digest::from_bytes(row.get("digest")?),
        extension: row.get("extension")?,
        bytes: row.get("bytes")?,
        team: row.get("team")?,
        credits: row.get("credits")?,
        stored_at: instant(row, "ended_at")?,
        upstream_request_id: row.get("request_id")?,
        upstream_log_id: row.get("log_id")?,
        image: Digest::from_bytes(row.get("image")?),
        width: row.get("width")?,
        height: row.get("height")?,
    })
}

pub(super) fn instant(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    row.get::<_, String>(column)?.parse().map_err(|error: jiff::Error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })
}

/// The reason of calls that a recovery ended. It is searched for, so it does not change.
pub(super) const OWNER_DIED: &str = "the process that owned it died";

/// Decides who may buy a key. The order is the order of reasons a caller is told.
pub(super) fn reserve(
    db: &Connection,
    wanted: &Reservation,
    now: Timestamp,
    windows: &Windows,
    room: Option<spool::Room>,
) -> Result<Reserved, LedgerError> {
    let (namespace, key) = (&wanted.namespace, wanted.key);
    if let Some(id) = open_call(db, namespace, key)? {
        return Ok(Reserved::Held(id));
    }
    if !wanted.refresh
        && let Some(record) = stored(db, namespace, key)?
    {
        return Ok(Reserved::Stored(Box::new(record)));
    }
    if let Some(until) = budget::rests_until(&unknown_outcome_times(db, namespace, key)?, now) {
        return Ok(Reserved::Resting { until, wait: budget::until(until, now) });
    }
    let team = Scope::Team(wanted.team.clone());
    if let Some(scope) = frozen(db, &team)? {
        return Ok(Reserved::Frozen(scope));
    }
    for limit in wanted.budgets.iter().filter(|budget| budget.enforced) {
        let (period, resets_at) = windows.of(limit.window);
        if spent(db, &limit.scope, period)?.saturating_add(wanted.credits) > limit.limit {
            return Ok(Reserved::OverBudget(BudgetRefusal {
                budget: limit.clone(),
                resets_at,
                resets_in: budget::until(resets_at, now),
            }));
        }
    }
    if let Some(room) = room {
        spool::check_room(db, room)?;
    }
    count(db, &wanted.team, &windows.day, &windows.month, i64::try_from(wanted.credits).unwrap_or(i64::MAX))?;
    // One more than whatever was stored or purged before, so that its record may replace theirs.
    let generation: u64 = db
        .prepare_cached(
            "SELECT coalesce(max(generation) + 1, 0) FROM ( \
             SELECT generation FROM calls \
             WHERE namespace = ?1 AND key = ?2 AND state IN ('stored', 'lost') AND late = 0 \
             UNION ALL SELECT generation FROM purged WHERE namespace = ?1 AND key = ?2)",
        )?
        .query_row(params![namespace, key.as_bytes()], |row| row.get(0))?;
    db.prepare_cached(
        "INSERT INTO calls (namespace, key, generation, state, team, credits, day, month, image, width, height, reserved_at) \
         VALUES (:namespace, :key, :generation, 'reserved', :team, :credits, :day, :month, :image, :width, :height, :now)",
    )?
    .execute(named_params! {
        ":namespace": namespace,
        ":key": key.as_bytes(),
        ":generation": generation,
        ":team": wanted.team,
        ":credits": wanted.credits,
        ":day": windows.day,
        ":month": windows.month,
        ":image": wanted.image.as_bytes(),
        ":width": wanted.width,
        ":height": wanted.height,
        ":now": now.to_string(),
    })?;
    Ok(Reserved::Won(Won { id: CallId(db.last_insert_rowid()), generation }))
}

fn open_call(db: &Connection, namespace: &str, key: CacheKey) -> Result<Option<CallId>, LedgerError> {
    let id = db
        .prepare_cached(
            "SELECT id FROM calls WHERE namespace = ?1 AND key = ?2 AND late = 0 \
             AND state IN ('reserved', 'sent', 'answered') LIMIT 1",
        )?
        .query_row(params![namespace, key.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(id.map(CallId))
}

/// When the calls of unclear outcome of a key ended, oldest first.
fn unknown_outcome_times(
    db: &Connection,
    namespace: &str,
    key: CacheKey,
) -> Result<Vec<Timestamp>, LedgerError> {
    let mut statement = db.prepare_cached(
        "SELECT ended_at FROM calls WHERE namespace = ?1 AND key = ?2 \
         AND state IN ('unknown', 'unfetchable') ORDER BY id",
    )?;
    let ends = statement.query_map(params![namespace, key.as_bytes()], |row| instant(row, "ended_at"))?;
    let mut ends = ends.collect::<rusqlite::Result<Vec<_>>>()?;
    ends.sort_unstable();
    Ok(ends)
}

/// What stands frozen that concerns a team: everything, or the team itself.
fn frozen(db: &Connection, team: &Scope) -> Result<Option<Scope>, LedgerError> {
    for scope in [&Scope::Global, team] {
        let is_frozen =
            db.prepare_cached("SELECT 1 FROM frozen WHERE scope = ?1")?.exists(params![scope.to_string()])?;
        if is_frozen {
            return Ok(Some(scope.clone()));
        }
    }
    Ok(None)
}

/// Says whether it was otherwise before.
pub(super) fn set_frozen(db: &Connection, scope: &Scope, freeze: bool) -> Result<bool, LedgerError> {
    let sql = if freeze {
        "INSERT INTO frozen (scope) VALUES (?1) ON CONFLICT DO NOTHING"
    } else {
        "DELETE FROM frozen WHERE scope = ?1"
    };
    Ok(db.execute(sql, params![scope.to_string()])? > 0)
}

/// Credits counted for a scope in one day (`2026-11-22`) or month (`2026-11`).
pub(super) fn spent(db: &Connection, scope: &Scope, period: &str) -> Result<u64, LedgerError> {
    let credits = db
        .prepare_cached("SELECT credits FROM spent WHERE scope = ?1 AND period = ?2")?
        .query_row(params![scope.to_string(), period], |row| row.get(0))
        .optional()?;
    Ok(credits.unwrap_or(0))
}

/// Adds to the four counters a call belongs to, always in the same order.
fn count(db: &Connection, team: &str, day: &str, month: &str, credits: i64) -> Result<(), LedgerError> {
    let mut statement = db.prepare_cached(ADD)?;
    for scope in [Scope::Global, Scope::Team(team.to_owned())] {
        for period in [day, month] {
            statement.execute(params![scope.to_string(), period, credits])?;
        }
    }
    Ok(())
}

/// Counts a call that was refused for its picture or numbers, against its team's day.
fn count_refused(db: &Connection, row: &CallRow) -> Result<(), LedgerError> {
    db.prepare_cached(ADD)?.execute(params![
        Scope::Refused(row.team.clone()).to_string(),
        row.day,
        row.credits
    ])?;
    Ok(())
}

/// Adds credits to a counter.
const ADD: &str = "INSERT INTO spent (scope, period, credits) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (scope, period) DO UPDATE SET credits = credits + excluded.credits";

/// What a booking needs to know of its row.
pub(super) struct CallRow {
    namespace: String,
    key: [u8; 32],
    generation: u64,
    pub(super) state: CallState,
    pub(super) team: String,
    pub(super) credits: i64,
    pub(super) day: String,
    pub(super) month: String,
}

pub(super) fn call(db: &Connection, id: CallId) -> Result<CallRow, LedgerError> {
    let row = db
        .prepare_cached(
            "SELECT namespace, key, generation, state, team, credits, day, month FROM calls WHERE id = ?1",
        )?
        .query_row(params![id.0], |row| {
            Ok((
                row.get::<_, String>("state")?,
                CallRow {
                    namespace: row.get("namespace")?,
                    key: row.get("key")?,
                    generation: row.get("generation")?,
                    state: CallState::Reserved,
                    team: row.get("team")?,
                    credits: row.get("credits")?,
                    day: row.get("day")?,
                    month: row.get("month")?,
                },
            ))
        });
    let (word, row) = row?;
    let state = CallState::ALL.into_iter().find(|state| state.as_str() == word);
    let state = state
        .ok_or_else(|| LedgerError::Unavailable(format!("call {} has the unknown state {word}", id.0)))?;
    Ok(CallRow { state, ..row })
}

pub(super) fn mark_sent(db: &Connection, id: CallId, now: Timestamp) -> Result<Permit, LedgerError> {
    let row = call(db, id)?;
    if row.state != CallState::Reserved {
        return Ok(Permit::Lost);
    }
    if let Some(scope) = frozen(db, &Scope::Team(row.team))? {
        return Ok(Permit::Frozen(scope));
    }
    db.prepare_cached("UPDATE calls SET state = 'sent', sent_at = ?2 WHERE id = ?1")?
        .execute(params![id.0, now.to_string()])?;
    crash_point("CP6");
    Ok(Permit::Granted)
}

pub(super) fn book(
    db: &Connection,
    id: CallId,
    booking: &Booking,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let row = call(db, id)?;
    let state = booking.state();
    if row.state == state {
        return Ok(());
    }
    if !booking.may_follow(row.state) {
        return Err(LedgerError::Contradiction {
            id: id.0,
            state: row.state.as_str().to_owned(),
            wanted: state.as_str(),
        });
    }
    if row.state.counts_credits() && !state.counts_credits() {
        count(db, &row.team, &row.day, &row.month, -row.credits)?;
    }
    if let Booking::Refused { for_order: true, .. } = booking {
        count_refused(db, &row)?;
    }
    let now = now.to_string();
    match booking {
        Booking::Answered { text, request_id, log_id } => {
            // From `unknown` another call may have taken the key meanwhile; it keeps it.
            let late = held_by_another(db, id, &row)?;
            db.prepare_cached(
                "UPDATE calls SET state = 'answered', answered_at = ?2, ended_at = NULL, reason = NULL, \
                 late = ?3, answer = printf('%*s', ?7, '') || ?4, request_id = ?5, log_id = ?6 WHERE id = ?1",
            )?
            .execute(params![id.0, now, late, text.expose(), request_id, log_id, PAGE_SIZE])?;
            crash_point("CP13");
        }
        Booking::Stored { record, holds_key } => {
            // A late row gets its key back when whoever had taken it has let it go.
            let late = !holds_key || held_by_another(db, id, &row)?;
            keep(db, id, record, late)?;
        }
        Booking::Spooled { record, bytes } => {
            spool::insert(db, id, record, bytes, &now)?;
            let late = held_by_another(db, id, &row)?;
            keep(db, id, record, late)?;
        }
        Booking::Released { reason }
        | Booking::Refused { reason, .. }
        | Booking::Failed { reason }
        | Booking::Unknown { reason }
        | Booking::Unfetchable { reason } => {
            db.prepare_cached(
                "UPDATE calls SET state = ?2, ended_at = ?3, reason = ?4, answer = NULL WHERE id = ?1",
            )?
            .execute(params![id.0, state.as_str(), now, reason])?;
        }
        Booking::Lost => {
            db.prepare_cached("UPDATE calls SET state = 'lost', reason = ?2 WHERE id = ?1")?
                .execute(params![id.0, format!("found missing at {now}")])?;
        }
    }
    Ok(())
}

/// The row's result is permanent.
fn keep(db: &Connection, id: CallId, record: &Record, late: bool) -> Result<(), LedgerError> {
    db.prepare_cached(
        "UPDATE calls SET state = 'stored', ended_at = :ended_at, late = :late, reason = NULL, \
         answered_at = coalesce(answered_at, :ended_at), request_id = coalesce(request_id, :request_id), \
         log_id = coalesce(log_id, :log_id), answer = :answer, digest = :digest, extension = :extension, bytes = :bytes WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": id.0,
        ":request_id": record.upstream_request_id,
        ":log_id": record.upstream_log_id,
        ":ended_at": record.stored_at.to_string(),
        ":late": late,
        ":answer": record.answer,
        ":digest": record.digest.as_bytes(),
        ":extension": record.extension,
        ":bytes": record.bytes,
    })?;
    if record.generation > 0 {
        admin::tell(db, &record.namespace, record.key)?;
    }
    crash_point("CP27");
    Ok(())
}

/// An `unknown` call was not charged: it counts as failed.
pub(super) fn give_back(db: &Connection, id: CallId, row: &CallRow) -> Result<(), LedgerError> {
    db.prepare_cached("UPDATE calls SET state = 'failed' WHERE id = ?1")?.execute([id.0])?;
    count(db, &row.team, &row.day, &row.month, -row.credits)
}

fn held_by_another(db: &Connection, id: CallId, row: &CallRow) -> Result<bool, LedgerError> {
    let held = db
        .prepare_cached(
            "SELECT 1 FROM calls WHERE namespace = ?1 AND key = ?2 AND generation = ?3 AND id <> ?4 \
             AND late = 0 AND state IN ('reserved', 'sent', 'answered', 'stored')",
        )?
        .exists(params![row.namespace, row.key, row.generation, id.0])?;
    Ok(held)
}

/// The newest stored row of a key, if it names this object.
pub(super) fn stored_call(db: &Connection, record: &Record) -> Result<Option<CallId>, LedgerError> {
    let id = db
        .prepare_cached(
            "SELECT id FROM calls WHERE namespace = ?1 AND key = ?2 AND generation = ?3 AND digest = ?4 \
             AND state = 'stored' AND late = 0",
        )?
        .query_row(
            params![record.namespace, record.key.as_bytes(), record.generation, record.digest.as_bytes()],
            |row| row.get(0),
        )
        .optional()?;
    Ok(id.map(CallId))
}

pub(super) fn import_record(db: &Connection, record: &Record, windows: &Windows) -> Result<(), LedgerError> {
    let imported = db.prepare_cached(
        "INSERT INTO calls (namespace, key, generation, state, adopted, team, credits, day, month, image, width, \
         height, reserved_at, ended_at, answer, request_id, log_id, digest, extension, bytes) \
         SELECT :namespace, :key, :generation, 'stored', 1, :team, :credits, :day, :month, :image, :width, \
         :height, :at, :at, :answer, :request_id, :log_id, :digest, :extension, :bytes \
         WHERE NOT EXISTS (SELECT 1 FROM calls WHERE namespace = :namespace AND key = :key \
         AND generation = :generation AND digest = :digest AND state = 'lost') \
         AND NOT EXISTS (SELECT 1 FROM purged WHERE namespace = :namespace AND key = :key \
         AND generation >= :generation) ON CONFLICT DO NOTHING",
    )?
    .execute(named_params! {
        ":namespace": record.namespace,
        ":key": record.key.as_bytes(),
        ":generation": record.generation,
        ":team": record.team,
        ":credits": record.credits,
        ":day": windows.day,
        ":month": windows.month,
        ":image": record.image.as_bytes(),
        ":width": record.width,
        ":height": record.height,
        ":at": record.stored_at.to_string(),
        ":answer": record.answer,
        ":request_id": record.upstream_request_id,
        ":log_id": record.upstream_log_id,
        ":digest": record.digest.as_bytes(),
        ":extension": record.extension,
        ":bytes": record.bytes,
    })?;
    if imported > 0 && record.generation > 0 {
        admin::tell(db, &record.namespace, record.key)?;
    }
    Ok(())
}

pub(super) fn recover(db: &Connection, now: Timestamp) -> Result<Recovery, LedgerError> {
    let open = |state: CallState| -> Result<Vec<CallId>, LedgerError> {
        let mut statement = db.prepare_cached("SELECT id FROM calls WHERE state = ?1 ORDER BY id")?;
        let ids = statement.query_map(params![state.as_str()], |row| row.get(0).map(CallId))?;
        Ok(ids.collect::<rusqlite::Result<_>>()?)
    };
    let reserved = open(CallState::Reserved)?;
    for &id in &reserved {
        book(db, id, &Booking::Released { reason: OWNER_DIED.to_owned() }, now)?;
    }
    let sent = open(CallState::Sent)?;
    for &id in &sent {
        book(db, id, &Booking::Unknown { reason: OWNER_DIED.to_owned() }, now)?;
    }
    let mut statement = db.prepare_cached(
        "SELECT id, namespace, key, generation, team, credits, image, width, height, answered_at, \
         substr(answer, ?1 + 1) AS answer FROM calls WHERE state = 'answered' ORDER BY id",
    )?;
    let unfinished = statement.query_map([PAGE_SIZE], |row| {
        Ok(UnfinishedCall {
            id: CallId(row.get("id")?),
            reservation: Reservation {
                namespace: row.get("namespace")?,
                key: CacheKey::from_bytes(row.get("key")?),
                refresh: false,
                team: row.get("team")?,
                credits: row.get("credits")?,
                budgets: Vec::new(),
                image: Digest::from_bytes(row.get("image")?),
                width: row.get("width")?,
                height: row.get("height")?,
            },
            generation: row.get("generation")?,
            text: Secret::new(row.get::<_, String>("answer")?),
            answered_at: instant(row, "answered_at")?,
        })
    })?;
    crash_point("CP34");
    Ok(Recovery {
        released: reserved.len() as u64,
        unknown: sent.len() as u64,
        unfinished: unfinished.collect::<rusqlite::Result<_>>()?,
    })
}
