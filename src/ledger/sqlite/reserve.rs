//! The gate before a purchase. The one writer makes it exact: nobody comes in between.

use super::query::Db;
use crate::ledger::rules::{self, Decision};
use crate::ledger::sql::counters::{self, Counters};
use crate::ledger::sql::{self, Query, int, spool, standing};
use crate::ledger::{LedgerError, Reservation, Reserved, Won};

pub(super) async fn reserve(db: &Db<'_>, wanted: &Reservation) -> Result<Reserved, LedgerError> {
    let (found, now) = standing::of_key(db, wanted).await?;
    let generation = match rules::decide(found, wanted, now) {
        Decision::Buy(generation) => generation,
        Decision::No(reason) => return Ok(reason),
        Decision::Stored => {
            let found = sql::stored(db, &wanted.namespace, wanted.key).await?;
            return Ok(Reserved::Stored(Box::new(found.ok_or_else(|| sql::damaged("a stored result"))?)));
        }
    };
    let windows = db.today();
    let mut used = Vec::new();
    for limit in wanted.enforced() {
        used.push(counters::spent(db, &limit.scope.to_string(), windows.of(limit.window).0).await?);
    }
    if let Some(refusal) = rules::over_budget(wanted, &used, now, &windows) {
        return Ok(Reserved::OverBudget(refusal));
    }
    let id = standing::insert(db, wanted, generation, &windows, now).await?;
    let id = id.ok_or_else(|| sql::damaged("the holder of a key"))?;
    let counters = Counters { team: &wanted.team, day: &windows.day, month: &windows.month };
    counters::count(db, counters, int(wanted.credits)?).await?;
    spool::check_room(db).await?;
    Ok(Reserved::Won(Won { id, generation }))
}
