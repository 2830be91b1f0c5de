//! What operators change, each with its line in the audit; the table itself lets no line be changed.

use jiff::tz::TimeZone;
use tokio_postgres::types::Type;

use super::pool::{Failure, Lock, Tx};
use super::reserve::{count, set_frozen};
use super::rows::{instant, number, state};
use super::{admin, usage};
use crate::base::key::CacheKey;
use crate::ledger::admin::{Action, Actor, AuditLine, GivenBack, Purge, Settled, Settlement};
use crate::ledger::budget::{Scope, Windows};
use crate::ledger::usage::is_closed;
use crate::ledger::{CallId, CallState};

/// The last that a transaction does.
pub(super) async fn note(
    tx: &Tx,
    by: &Actor,
    action: Action,
    subject: &str,
    detail: &str,
) -> Result<(), Failure> {
    // One at a time up to the commit, so that no line appears behind one that was read.
    tx.lock(Lock::Audit).await?;
    let sql = "INSERT INTO granary.audit (at, who, action, subject, detail) VALUES ($1, $2, $3, $4, $5)";
    tx.execute(
        sql,
        &[
            (&tx.now.to_string(), Type::TEXT),
            (&by.as_str(), Type::TEXT),
            (&action.as_str(), Type::TEXT),
            (&subject, Type::TEXT),
            (&detail, Type::TEXT),
        ],
    )
    .await?;
    Ok(())
}

/// The lock on the key is held, as [`admin::purge`] says.
pub(super) async fn purge(tx: &Tx, namespace: &str, key: CacheKey, by: &Actor) -> Result<Purge, Failure> {
    let purge = admin::purge(tx, namespace, key).await?;
    if let Purge::Done { generation } = purge {
        let detail = format!("{namespace}, up to generation {generation}");
        note(tx, by, Action::Purge, &key.to_string(), &detail).await?;
    }
    Ok(purge)
}

/// The lock on freezing is held, as [`set_frozen`] says.
pub(super) async fn freeze(tx: &Tx, scope: &Scope, frozen: bool, by: &Actor) -> Result<bool, Failure> {
    if !set_frozen(tx, scope, frozen).await? {
        return Ok(false);
    }
    let action = if frozen { Action::Freeze } else { Action::Thaw };
    note(tx, by, action, &scope.to_string(), "").await?;
    Ok(true)
}

pub(super) async fn frozen(tx: &Tx) -> Result<Vec<Scope>, Failure> {
    let rows = tx.rows("SELECT scope FROM granary.frozen ORDER BY scope COLLATE \"C\"", &[]).await?;
    rows.iter()
        .map(|row| {
            let scope: &str = row.try_get("scope")?;
            Ok(scope.strip_prefix("team:").map_or(Scope::Global, |team| Scope::Team(team.to_owned())))
        })
        .collect()
}

/// What is settled, which nobody else changes meanwhile.
struct Doubt {
    state: CallState,
    settled: Option<Settlement>,
    team: String,
    credits: i64,
    day: String,
    month: String,
}

async fn locked(tx: &Tx, id: CallId) -> Result<Option<Doubt>, Failure> {
    let sql = "SELECT state, settled, team, credits, day, month FROM granary.calls WHERE id = $1 FOR UPDATE";
    let Some(row) = tx.row(sql, &[(&id.0, Type::INT8)]).await? else { return Ok(None) };
    Ok(Some(Doubt {
        state: state(&row)?,
        settled: row.try_get::<_, Option<&str>>("settled")?.and_then(Settlement::of_word),
        team: row.try_get("team")?,
        credits: row.try_get("credits")?,
        day: row.try_get("day")?,
        month: row.try_get("month")?,
    }))
}

pub(super) async fn settle(
    tx: &Tx,
    id: CallId,
    settlement: Settlement,
    zone: &TimeZone,
    by: &Actor,
) -> Result<Settled, Failure> {
    let Some(call) = locked(tx, id).await? else { return Ok(Settled::NoSuchCall) };
    match call.settled {
        Some(before) if before == settlement => return Ok(Settled::Repeated),
        Some(before) => return Ok(Settled::Otherwise(before)),
        None if call.state != CallState::Unknown => return Ok(Settled::NotUnknown(call.state)),
        None => {}
    }
    let sql = "UPDATE granary.calls SET settled = $2 WHERE id = $1";
    tx.execute(sql, &[(&id.0, Type::INT8), (&settlement.as_str(), Type::TEXT)]).await?;
    let (given_back, outcome) = match settlement {
        Settlement::Charged => (None, "its credits stay counted".to_owned()),
        Settlement::Free => {
            give_back(tx, id, &call).await?;
            usage::adjust(tx, id, &call.month, call.state, CallState::Failed, zone).await?;
            let (given_back, outcome) = told(&call, &Windows::at(tx.now, zone));
            (Some(given_back), outcome)
        }
    };
    let detail = format!("{}: {} credits of {}; {outcome}", settlement.as_str(), call.credits, call.team);
    note(tx, by, Action::Settle, &id.0.to_string(), &detail).await?;
    Ok(Settled::Done { given_back })
}

/// It was not charged: it counts as failed.
async fn give_back(tx: &Tx, id: CallId, call: &Doubt) -> Result<(), Failure> {
    let sql = "UPDATE granary.calls SET state = 'failed', beat = beat + 1 WHERE id = $1";
    tx.execute(sql, &[(&id.0, Type::INT8)]).await?;
    count(tx, &call.team, &call.day, &call.month, -call.credits).await?;
    Ok(())
}

fn told(call: &Doubt, today: &Windows) -> (GivenBack, String) {
    if is_closed(&call.month, &today.day) {
        let told = format!("an adjustment on {}, since {} is closed", today.day, call.month);
        return (GivenBack::Adjustment, told);
    }
    (GivenBack::Budgets, format!("given back to {}", call.day))
}

pub(super) async fn unsettled(tx: &Tx) -> Result<u64, Failure> {
    let sql = "SELECT coalesce(sum(credits), 0)::bigint AS credits FROM granary.calls \
               WHERE state = 'unknown' AND settled IS NULL";
    number(&tx.one(sql, &[]).await?, "credits")
}

pub(super) async fn lines(tx: &Tx, before: Option<u64>, limit: usize) -> Result<Vec<AuditLine>, Failure> {
    let sql = "SELECT id, at, who, action, subject, detail FROM granary.audit WHERE id < $1 \
               ORDER BY id DESC LIMIT $2";
    let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = tx.rows(sql, &[(&before, Type::INT8), (&limit, Type::INT8)]).await?;
    rows.iter()
        .map(|row| {
            Ok(AuditLine {
                id: number(row, "id")?,
                at: instant(row, "at")?,
                who: row.try_get("who")?,
                action: row.try_get("action")?,
                subject: row.try_get("subject")?,
                detail: row.try_get("detail")?,
            })
        })
        .collect()
}
