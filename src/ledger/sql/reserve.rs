//! The gate before a purchase: who may buy a key, and whether the budgets have the credits.

use super::counters::{self, Counted, Counters};
use super::{Query, int, spool, standing, stored};
use crate::ledger::budget::Windows;
use crate::ledger::rules::{self, Decision};
use crate::ledger::{Reservation, Reserved, Won};

/// Several processes hold the locks on spending and on the key: no other process inserts a row after the key
/// was read, and a freeze is exact from its commit.
pub(crate) async fn reserve<Q: Query>(q: &Q, wanted: &Reservation) -> Result<Reserved, Q::Error> {
    let (found, now) = standing::of_key(q, wanted).await?;
    let generation = match rules::decide(found, wanted, now) {
        Decision::Buy(generation) => generation,
        Decision::No(reason) => return Ok(reason),
        Decision::Stored => {
            let found = stored(q, &wanted.namespace, wanted.key).await?;
            return Ok(Reserved::Stored(Box::new(found.ok_or_else(|| Q::conflict("a stored result"))?)));
        }
    };
    let windows = Windows::at(now, &q.keeper().zone);
    let over_budget = async |counted: &[Counted]| {
        let used = used_before(q, wanted, &windows, counted).await?;
        Ok::<_, Q::Error>(rules::over_budget(wanted, &used, now, &windows).map(Reserved::OverBudget))
    };
    // A single writer knows the counters before it changes them, so that a refusal writes nothing.
    if Q::IS_ALONE
        && let Some(refusal) = over_budget(&[]).await?
    {
        return Ok(refusal);
    }
    let id = standing::insert(q, wanted, generation, &windows, now).await?;
    // An imported record or a late answer may hold it.
    let id = id.ok_or_else(|| Q::conflict("the holder of a key"))?;
    let counters = Counters { team: &wanted.team, day: &windows.day, month: &windows.month };
    let counted = counters::count(q, counters, int(wanted.credits)?).await?;
    if !Q::IS_ALONE
        && let Some(refusal) = over_budget(&counted).await?
    {
        q.undo();
        return Ok(refusal);
    }
    spool::check_room(q).await?;
    Ok(Reserved::Won(Won { id, generation }))
}

/// Credits that each enforced budget had used before this call, which `counted` includes.
async fn used_before<Q: Query>(
    q: &Q,
    wanted: &Reservation,
    windows: &Windows,
    counted: &[Counted],
) -> Result<Vec<u64>, Q::Error> {
    let mut used = Vec::new();
    for budget in wanted.enforced() {
        let (scope, (period, _)) = (budget.scope.to_string(), windows.of(budget.window));
        let locked = counted.iter().find(|(counted, within, _)| *counted == scope && within == period);
        used.push(match locked {
            Some((_, _, with_it)) => with_it.saturating_sub(wanted.credits),
            None => counters::spent(q, &scope, period).await?,
        });
    }
    Ok(used)
}
