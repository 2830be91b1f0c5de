//! The gate before a purchase: who may buy a key, and whether the budgets have the credits.

use super::failure::Failure;
use super::pool::Tx;
use crate::ledger::budget::Windows;
use crate::ledger::rules::{self, Decision};
use crate::ledger::sql::counters::{self, Counted, Counters};
use crate::ledger::sql::{self, Query, int, spool, standing};
use crate::ledger::{Reservation, Reserved, Won};

/// The locks on spending and on the key are held: between the look and the new row nobody else makes
/// one, and a freeze is exact from its commit.
pub(super) async fn reserve(tx: &Tx, wanted: &Reservation) -> Result<Reserved, Failure> {
    let (found, now) = standing::of_key(tx, wanted).await?;
    let generation = match rules::decide(found, wanted, now) {
        Decision::Buy(generation) => generation,
        Decision::No(reason) => return Ok(reason),
        Decision::Stored => {
            let found = sql::stored(tx, &wanted.namespace, wanted.key).await?;
            // Lost since.
            let found = found.ok_or(Failure::Again("it changed its state"))?;
            return Ok(Reserved::Stored(Box::new(found)));
        }
    };
    let windows = Windows::at(now, &tx.keeper().zone);
    let id = standing::insert(tx, wanted, generation, &windows, now).await?;
    // An imported record, or a late answer.
    let id = id.ok_or(Failure::Again("another row has the key"))?;
    let counters = Counters { team: &wanted.team, day: &windows.day, month: &windows.month };
    let counted = counters::count(tx, counters, int(wanted.credits)?).await?;
    let used = used_before(tx, wanted, &windows, &counted).await?;
    if let Some(refusal) = rules::over_budget(wanted, &used, now, &windows) {
        tx.undo();
        return Ok(Reserved::OverBudget(refusal));
    }
    spool::check_room(tx).await?;
    Ok(Reserved::Won(Won { id, generation }))
}

/// What each enforced budget had used before this call, whose counters are locked by now.
async fn used_before(
    tx: &Tx,
    wanted: &Reservation,
    windows: &Windows,
    counted: &[Counted],
) -> Result<Vec<u64>, Failure> {
    let mut used = Vec::new();
    for limit in wanted.enforced() {
        let (scope, (period, _)) = (limit.scope.to_string(), windows.of(limit.window));
        let locked = counted.iter().find(|(counted, within, _)| *counted == scope && within == period);
        used.push(match locked {
            Some((_, _, with_it)) => with_it.saturating_sub(wanted.credits),
            None => counters::spent(tx, &scope, period).await?,
        });
    }
    Ok(used)
}
