//! Credits by scope and window, adjustments of closed months, freezes, and the feed of changes.

use super::{Lock, Query, Row, each, int, values};
use crate::base::key::CacheKey;
use crate::ledger::budget::{Budget, Scope, Used, Windows};
use crate::ledger::{CallId, CallState, Changes, LedgerError, rules};

const PAGE: i64 = 1000;

/// Scope, period, and the credits spent.
pub(crate) type Counted = (String, String, u64);

/// Adds to the four counters of a call, in the same order, so that concurrent transactions wait at the first.
pub(crate) async fn count<Q: Query>(
    q: &Q,
    team: &str,
    [day, month]: [&str; 2],
    credits: i64,
) -> Result<Vec<Counted>, Q::Error> {
    let sql = "INSERT INTO granary.spent AS s (scope, period, credits) \
               VALUES ($1, $3, $5), ($1, $4, $5), ($2, $3, $5), ($2, $4, $5) \
               ON CONFLICT (scope, period) DO UPDATE SET credits = s.credits + excluded.credits \
               RETURNING scope, period, credits";
    let (global, team) = (Scope::Global.to_string(), Scope::Team(team.to_owned()).to_string());
    let rows = q.rows(sql, values![&global, &team, day, month, credits]).await?;
    Ok(counted(&rows)?)
}

fn counted(rows: &[Row]) -> Result<Vec<Counted>, LedgerError> {
    each(rows, |row| Ok((row.get("scope")?, row.get("period")?, row.get("credits")?)))
}

pub(crate) fn credits_of(counted: &[Counted], scope: &str, period: &str) -> Option<u64> {
    let found = counted.iter().find(|(of, within, _)| of == scope && within == period);
    found.map(|(.., credits)| *credits)
}

/// Runs after [`count`], so that all transactions lock counters in one order.
pub(super) async fn count_refused<Q: Query>(
    q: &Q,
    team: &str,
    day: &str,
    credits: i64,
) -> Result<(), Q::Error> {
    let sql = "INSERT INTO granary.spent AS s (scope, period, credits) VALUES ($1, $2, $3) \
               ON CONFLICT (scope, period) DO UPDATE SET credits = s.credits + excluded.credits";
    let scope = Scope::Refused(team.to_owned()).to_string();
    q.execute(sql, values![&scope, day, credits]).await?;
    Ok(())
}

pub(crate) async fn spent<Q: Query>(q: &Q, scope: &str, period: &str) -> Result<u64, Q::Error> {
    let sql = "SELECT credits FROM granary.spent WHERE scope = $1 AND period = $2";
    Ok(q.row(sql, values![scope, period]).await?.map_or(Ok(0), |row| row.get("credits"))?)
}

pub(crate) async fn used<Q: Query>(q: &Q, budgets: &[Budget]) -> Result<Vec<Used>, Q::Error> {
    let sql = format!("SELECT {} AS now", Q::NOW);
    let now = q.instant(q.one(&sql, &[]).await?.get("now")?);
    let windows = Windows::at(now, &q.keeper().zone);
    let scopes: Vec<String> = budgets.iter().map(|budget| budget.scope.to_string()).collect();
    let sql = format!(
        "SELECT scope, period, credits FROM granary.spent WHERE period IN ($1, $2) AND scope IN ({})",
        super::places(2, scopes.len())
    );
    let mut values = values![&windows.day, &windows.month].to_vec();
    values.extend(scopes.iter().map(super::Value::from));
    let rows = if budgets.is_empty() { Vec::new() } else { q.rows(&sql, &values).await? };
    let counted = counted(&rows)?;
    let used = budgets.iter().zip(&scopes).map(|(budget, scope)| {
        let used = credits_of(&counted, scope, windows.of(budget.window).0).unwrap_or(0);
        Used { budget: budget.clone(), used }
    });
    Ok(used.collect())
}

/// Books the adjustment of a call whose month is closed. The transaction holds the row.
pub(super) async fn adjust<Q: Query>(
    q: &Q,
    id: CallId,
    month: &str,
    from: CallState,
    to: CallState,
) -> Result<(), Q::Error> {
    let today = q.today();
    let Some(times) = rules::adjustment(month, from, to, &today) else { return Ok(()) };
    let sql = "INSERT INTO granary.adjustments \
               (call, call_day, is_first, team, from_state, to_state, credits, day, month) \
               SELECT id, day, NOT EXISTS (SELECT FROM granary.adjustments WHERE call = $1), team, $2, $3, \
               $4 * credits, $5, $6 FROM granary.calls WHERE id = $1 AND NOT adopted";
    q.execute(sql, values![id, from, to, times, &today.day, &today.month]).await?;
    Ok(())
}

/// Returns false when nothing changed. Spending transactions share the lock, so they end before.
pub(crate) async fn set_frozen<Q: Query>(q: &Q, scope: &Scope, freeze: bool) -> Result<bool, Q::Error> {
    q.lock(Lock::Freeze).await?;
    let sql = if freeze {
        "INSERT INTO granary.frozen (scope) VALUES ($1) ON CONFLICT DO NOTHING"
    } else {
        "DELETE FROM granary.frozen WHERE scope = $1"
    };
    Ok(q.execute(sql, values![&scope.to_string()]).await? > 0)
}

pub(super) async fn add_change<Q: Query>(q: &Q, namespace: &str, key: CacheKey) -> Result<(), Q::Error> {
    // Until the commit, so that positions appear in order.
    q.lock(Lock::Changes).await?;
    q.execute(Q::ADD_CHANGE, values![namespace, &key]).await?;
    Ok(())
}

pub(crate) async fn changes<Q: Query>(q: &Q, after: Option<u64>) -> Result<Changes, Q::Error> {
    let Some(after) = after else {
        let sql = "SELECT coalesce(max(position), 0) AS position FROM granary.changes";
        return Ok(Changes { position: q.one(sql, &[]).await?.get("position")?, keys: Vec::new() });
    };
    let sql = "SELECT namespace, key, position FROM granary.changes WHERE position > $1 \
               ORDER BY position LIMIT $2";
    let mut changes = Changes { position: after, keys: Vec::new() };
    for row in q.rows(sql, values![int(after)?, PAGE]).await? {
        changes.position = row.get("position")?;
        changes.keys.push((row.get("namespace")?, row.get("key")?));
    }
    Ok(changes)
}
