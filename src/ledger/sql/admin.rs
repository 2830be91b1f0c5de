//! Reads and changes of operators; each change adds a line to the audit. The text of an answer is never read.

use super::book::{self, CallRow};
use super::counters::{self, add_change, adjust, count};
use super::reserve::generations;
use super::{Lock, Query, Value, each, int, read, values};
use crate::base::key::CacheKey;
use crate::ledger::admin::{
    Action, Actor, AuditLine, CallDetail, CallFilter, CallPage, GivenBack, Purge, Settled, Settlement,
};
use crate::ledger::budget::Scope;
use crate::ledger::rules;
use crate::ledger::{CallId, CallState, StateTotal};

/// The most rows that one page scans without an index.
const WINDOW: i64 = 20_000;

/// Adds an audit line, at the end of a transaction.
pub(crate) async fn note<Q: Query>(
    q: &Q,
    by: &Actor,
    action: Action,
    subject: &str,
    detail: &str,
) -> Result<(), Q::Error> {
    // Until the commit, so that no line appears before one that was read.
    q.lock(Lock::Audit).await?;
    let sql = "INSERT INTO granary.audit (at, who, action, subject, detail) VALUES ($1, $2, $3, $4, $5)";
    let at = q.now().to_string();
    q.execute(sql, values![&at, by.as_str(), action.as_str(), subject, detail]).await?;
    Ok(())
}

pub(crate) async fn purge<Q: Query>(
    q: &Q,
    namespace: &str,
    key: CacheKey,
    by: &Actor,
) -> Result<Purge, Q::Error> {
    q.lock_key(&key).await?;
    let purge = generations(q, namespace, key).await?.purge();
    if let Purge::Done { generation } = purge {
        let sql = "INSERT INTO granary.purged (namespace, key, generation) VALUES ($1, $2, $3) \
                   ON CONFLICT (namespace, key) DO UPDATE SET generation = excluded.generation";
        q.execute(sql, values![namespace, &key, int(generation)?]).await?;
        add_change(q, namespace, key).await?;
        let detail = format!("{namespace}, up to generation {generation}");
        note(q, by, Action::Purge, &key.to_string(), &detail).await?;
    }
    Ok(purge)
}

pub(crate) async fn purged<Q: Query>(q: &Q, namespace: &str, key: CacheKey) -> Result<Option<u64>, Q::Error> {
    let sql = "SELECT generation FROM granary.purged WHERE namespace = $1 AND key = $2";
    let row = q.row(sql, values![namespace, &key]).await?;
    Ok(row.map(|row| row.get("generation")).transpose()?)
}

pub(crate) async fn freeze<Q: Query>(
    q: &Q,
    scope: &Scope,
    frozen: bool,
    by: &Actor,
) -> Result<bool, Q::Error> {
    let has_changed = counters::set_frozen(q, scope, frozen).await?;
    if has_changed {
        let action = if frozen { Action::Freeze } else { Action::Thaw };
        note(q, by, action, &scope.to_string(), "").await?;
    }
    Ok(has_changed)
}

pub(crate) async fn frozen<Q: Query>(q: &Q) -> Result<Vec<Scope>, Q::Error> {
    let rows = q.rows("SELECT scope FROM granary.frozen ORDER BY scope COLLATE \"C\"", &[]).await?;
    Ok(each(&rows, |row| {
        let scope: String = row.get("scope")?;
        Ok(scope.strip_prefix("team:").map_or(Scope::Global, |team| Scope::Team(team.to_owned())))
    })?)
}

pub(crate) async fn settle<Q: Query>(
    q: &Q,
    id: CallId,
    settlement: Settlement,
    by: &Actor,
) -> Result<Settled, Q::Error> {
    let Some(row) = book::locked(q, id).await? else { return Ok(Settled::NoSuchCall) };
    let today = q.today();
    let settling = match rules::settle((row.state, row.settled), settlement, &row.month, &today) {
        Ok(settling) => settling,
        Err(settled) => return Ok(settled),
    };
    let sql = format!("UPDATE granary.calls SET state = $2, settled = $3{} WHERE id = $1", Q::TOUCH);
    q.execute(&sql, values![id, settling.to, settlement.as_str()]).await?;
    if settling.counted != 0 {
        count(q, &row.team, [&row.day, &row.month], settling.counted.saturating_mul(row.credits)).await?;
    }
    adjust(q, id, &row.month, row.state, settling.to).await?;
    let CallRow { team, credits, day, month, .. } = row;
    let outcome = match settling.given_back {
        None => "its credits stay counted".to_owned(),
        Some(GivenBack::Budgets) => format!("given back to {day}"),
        Some(GivenBack::Adjustment) => format!("an adjustment on {}, since {month} is closed", today.day),
    };
    let detail = format!("{}: {credits} credits of {team}; {outcome}", settlement.as_str());
    note(q, by, Action::Settle, &id.0.to_string(), &detail).await?;
    Ok(Settled::Done { given_back: settling.given_back })
}

pub(crate) async fn unsettled<Q: Query>(q: &Q) -> Result<u64, Q::Error> {
    let sql = "SELECT coalesce(sum(credits), 0)::bigint AS credits FROM granary.calls \
               WHERE state = 'unknown' AND settled IS NULL";
    Ok(q.one(sql, &[]).await?.get("credits")?)
}

pub(crate) async fn lines<Q: Query>(
    q: &Q,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<AuditLine>, Q::Error> {
    let sql = "SELECT id, at, who, action, subject, detail FROM granary.audit WHERE id < $1 \
               ORDER BY id DESC LIMIT $2";
    let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
    let rows = q.rows(sql, values![before, i64::try_from(limit).unwrap_or(i64::MAX)]).await?;
    Ok(each(&rows, |row| Ok(read!(row => AuditLine { id, at, who, action, subject, detail })))?)
}

pub(crate) async fn calls<Q: Query>(q: &Q, filter: &CallFilter) -> Result<CallPage, Q::Error> {
    let before = filter.before.map_or(i64::MAX, |before| before.0);
    let is_indexed = filter.key.is_some()
        || filter.state.is_some_and(|state| state.is_open() || state == CallState::Unknown);
    let floor = if is_indexed { None } else { floor(q, before).await? };
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let mut conditions = vec!["id < $1".to_owned(), "id >= $2".to_owned()];
    let mut values: Vec<Value<'_>> = values![before, floor.unwrap_or(i64::MIN), limit].to_vec();
    if let Some((namespace, key)) = &filter.key {
        values.extend([Value::from(namespace), Value::from(key)]);
        conditions.push(format!("namespace = ${} AND key = ${}", values.len() - 1, values.len()));
    }
    if let Some(state) = filter.state {
        // A literal, so that the partial indexes of states apply.
        conditions.push(format!("state = '{}'", state.as_str()));
    }
    if let Some(team) = &filter.team {
        values.push(Value::from(team));
        conditions.push(format!("team = ${}", values.len()));
    }
    let sql = format!(
        "SELECT id, namespace, key, generation, state, late, adopted, team, credits, day, image, width, height, \
         reserved_at, sent_at, answered_at, ended_at, reason, request_id, log_id, digest, extension, bytes, settled \
         FROM granary.calls WHERE {} ORDER BY id DESC LIMIT $3",
        conditions.join(" AND ")
    );
    let rows = q.rows(&sql, &values).await?;
    let calls: Vec<CallDetail> = each(&rows, |row| {
        Ok(read!(row => CallDetail {
            id, namespace, key, generation, state, late, adopted, team, credits, day, image, width, height,
            reserved_at, sent_at, answered_at, ended_at, reason, request_id, log_id, digest, extension, bytes, settled
        }))
    })?;
    let next = if calls.len() >= filter.limit { calls.last().map(|call| call.id) } else { floor.map(CallId) };
    Ok(CallPage { calls, next })
}

/// The lowest id that is scanned, when there are lower ones.
async fn floor<Q: Query>(q: &Q, before: i64) -> Result<Option<i64>, Q::Error> {
    let sql = "SELECT (SELECT min(id) FROM granary.calls) AS lowest, (SELECT max(id) FROM granary.calls) AS highest";
    let row = q.one(sql, &[]).await?;
    let ends: [Option<i64>; 2] = [row.get("lowest")?, row.get("highest")?];
    let [Some(lowest), Some(highest)] = ends else { return Ok(None) };
    let floor = before.min(highest.saturating_add(1)).saturating_sub(WINDOW);
    Ok((floor > lowest).then_some(floor))
}

/// Reads an index only.
pub(crate) const TOTALS: &str = "SELECT state, count(*) AS calls, sum(credits)::bigint AS credits \
                                            FROM granary.calls WHERE NOT adopted GROUP BY state";

pub(crate) async fn totals<Q: Query>(q: &Q) -> Result<Vec<StateTotal>, Q::Error> {
    let mut totals = CallState::ALL.map(|state| StateTotal { state, calls: 0, credits: 0 });
    for row in q.rows(TOTALS, &[]).await? {
        let state: CallState = row.get("state")?;
        let total = &mut totals[state as usize];
        (total.calls, total.credits) = (row.get("calls")?, row.get("credits")?);
    }
    Ok(totals.to_vec())
}
