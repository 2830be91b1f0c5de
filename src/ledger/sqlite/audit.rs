//! What operators change, each with its line in the audit; the file itself lets no line be changed.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{admin, calls, usage};
use crate::base::key::CacheKey;
use crate::ledger::admin::{Action, Actor, AuditLine, GivenBack, Purge, Settled, Settlement};
use crate::ledger::budget::{Scope, Windows};
use crate::ledger::usage::is_closed;
use crate::ledger::{CallId, CallState, LedgerError};

/// Who changes something, and when.
pub(super) struct Change {
    pub(super) by: Actor,
    pub(super) at: Timestamp,
}

pub(super) fn note(
    db: &Connection,
    change: &Change,
    action: Action,
    subject: &str,
    detail: &str,
) -> Result<(), LedgerError> {
    db.prepare_cached("INSERT INTO audit (at, who, action, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![change.at.to_string(), change.by.as_str(), action.as_str(), subject, detail])?;
    Ok(())
}

pub(super) fn purge(
    db: &Connection,
    namespace: &str,
    key: CacheKey,
    change: &Change,
) -> Result<Purge, LedgerError> {
    let purge = admin::purge(db, namespace, key)?;
    if let Purge::Done { generation } = purge {
        let detail = format!("{namespace}, up to generation {generation}");
        note(db, change, Action::Purge, &key.to_string(), &detail)?;
    }
    Ok(purge)
}

pub(super) fn freeze(
    db: &Connection,
    scope: &Scope,
    frozen: bool,
    change: &Change,
) -> Result<bool, LedgerError> {
    if !calls::set_frozen(db, scope, frozen)? {
        return Ok(false);
    }
    let action = if frozen { Action::Freeze } else { Action::Thaw };
    note(db, change, action, &scope.to_string(), "")?;
    Ok(true)
}

pub(super) fn frozen(db: &Connection) -> Result<Vec<Scope>, LedgerError> {
    let mut scopes = db.prepare_cached("SELECT scope FROM frozen ORDER BY scope")?;
    let scopes = scopes.query_map([], |row| row.get::<_, String>(0))?;
    let mut found = Vec::new();
    for scope in scopes {
        let scope = scope?;
        found.push(match scope.strip_prefix("team:") {
            Some(team) => Scope::Team(team.to_owned()),
            None => Scope::Global,
        });
    }
    Ok(found)
}

pub(super) fn settle(
    db: &Connection,
    id: CallId,
    settlement: Settlement,
    windows: &Windows,
    change: &Change,
) -> Result<Settled, LedgerError> {
    if !db.prepare_cached("SELECT 1 FROM calls WHERE id = ?1")?.exists([id.0])? {
        return Ok(Settled::NoSuchCall);
    }
    let (row, before) = (calls::call(db, id)?, settled(db, id)?);
    match before {
        Some(before) if before == settlement => return Ok(Settled::Repeated),
        Some(before) => return Ok(Settled::Otherwise(before)),
        None if row.state != CallState::Unknown => return Ok(Settled::NotUnknown(row.state)),
        None => {}
    }
    db.prepare_cached("UPDATE calls SET settled = ?2 WHERE id = ?1")?
        .execute(params![id.0, settlement.as_str()])?;
    let (given_back, outcome) = match settlement {
        Settlement::Charged => (None, "its credits stay counted".to_owned()),
        Settlement::Free => {
            usage::adjusting(db, id, windows, || calls::give_back(db, id, &row))?;
            let is_closed = is_closed(&row.month, &windows.day);
            let given_back = if is_closed { GivenBack::Adjustment } else { GivenBack::Budgets };
            (Some(given_back), told(given_back, &row, windows))
        }
    };
    let detail = format!("{}: {} credits of {}; {outcome}", settlement.as_str(), row.credits, row.team);
    note(db, change, Action::Settle, &id.0.to_string(), &detail)?;
    Ok(Settled::Done { given_back })
}

fn told(given_back: GivenBack, row: &calls::CallRow, windows: &Windows) -> String {
    match given_back {
        GivenBack::Budgets => format!("given back to {}", row.day),
        GivenBack::Adjustment => {
            format!("an adjustment on {}, since {} is closed", windows.day, row.month)
        }
    }
}

pub(super) fn settled(db: &Connection, id: CallId) -> Result<Option<Settlement>, LedgerError> {
    let word: Option<String> = db
        .prepare_cached("SELECT settled FROM calls WHERE id = ?1")?
        .query_row([id.0], |row| row.get(0))
        .optional()?
        .flatten();
    Ok(word.as_deref().and_then(Settlement::of_word))
}

pub(super) fn unsettled(db: &Connection) -> Result<u64, LedgerError> {
    let credits = db
        .prepare_cached(
            "SELECT coalesce(sum(credits), 0) FROM calls WHERE state = 'unknown' AND settled IS NULL",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(credits)
}

pub(super) fn lines(
    db: &Connection,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<AuditLine>, LedgerError> {
    let mut lines = db.prepare_cached(
        "SELECT id, at, who, action, subject, detail FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
    let lines = lines.query_map(params![before, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        Ok(AuditLine {
            id: row.get("id")?,
            at: calls::instant(row, "at")?,
            who: row.get("who")?,
            action: row.get("action")?,
            subject: row.get("subject")?,
            detail: row.get("detail")?,
        })
    })?;
    Ok(lines.collect::<rusqlite::Result<_>>()?)
}
