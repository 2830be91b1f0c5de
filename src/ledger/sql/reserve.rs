//! The reservation of a purchase: the state of the key, the budgets, and the row of the new call.

use jiff::Timestamp;

use super::counters::{self, Counted};
use super::{Query, Row, damaged, int, read, spool, stored, values};
use crate::base::key::CacheKey;
use crate::ledger::budget::{Scope, Windows};
use crate::ledger::rules::{self, Decision, Generations, KeyStanding};
use crate::ledger::{CallId, LedgerError, Reservation, Reserved, Won};

/// Several processes hold the locks on spending and on the key: no other process inserts a row after the key
/// was read, and a freeze is exact from its commit.
pub(crate) async fn reserve<Q: Query>(q: &Q, wanted: &Reservation) -> Result<Reserved, Q::Error> {
    let (found, now) = standing_of(q, wanted).await?;
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
    let id = insert(q, wanted, generation, &windows, now).await?;
    // An imported record or a late answer may hold it.
    let id = id.ok_or_else(|| Q::conflict("the holder of a key"))?;
    let periods = [&*windows.day, &*windows.month];
    let counted = counters::count(q, &wanted.team, periods, int(wanted.credits)?).await?;
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
        used.push(match counters::credits_of(counted, &scope, period) {
            Some(with_it) => with_it.saturating_sub(wanted.credits),
            None => counters::spent(q, &scope, period).await?,
        });
    }
    Ok(used)
}

/// For the key `$2` in the namespace `$1`.
const GENERATIONS: &str = "(SELECT max(generation) FROM granary.calls WHERE namespace = $1 AND key = $2 \
                            AND state = 'stored' AND NOT late) AS stored, \
                           (SELECT max(generation) FROM granary.calls WHERE namespace = $1 AND key = $2 \
                            AND state IN ('stored', 'lost') AND NOT late) AS kept, \
                           (SELECT generation FROM granary.purged WHERE namespace = $1 AND key = $2) AS purged";

fn read_generations(row: &Row) -> Result<Generations, LedgerError> {
    Ok(read!(row => Generations { stored, kept, purged }))
}

pub(super) async fn generations<Q: Query>(
    q: &Q,
    namespace: &str,
    key: CacheKey,
) -> Result<Generations, Q::Error> {
    let row = q.one(&format!("SELECT {GENERATIONS}"), values![namespace, &key]).await?;
    Ok(read_generations(&row)?)
}

/// One statement, and so one instant, which is returned too.
async fn standing_of<Q: Query>(q: &Q, wanted: &Reservation) -> Result<(KeyStanding, Timestamp), Q::Error> {
    let sql = format!(
        "SELECT (SELECT id FROM granary.calls WHERE namespace = $1 AND key = $2 AND NOT late \
                 AND state IN ('reserved', 'sent', 'answered') LIMIT 1) AS open, {GENERATIONS}, \
                (SELECT string_agg(ended_at, ' ') FROM granary.calls WHERE namespace = $1 AND key = $2 \
                 AND state IN ('unknown', 'unfetchable')) AS unknown_outcomes, \
                (SELECT string_agg(scope, ' ') FROM granary.frozen WHERE scope = $3) AS everyone, \
                (SELECT string_agg(scope, ' ') FROM granary.frozen WHERE scope = $4) AS team, {} AS now",
        Q::NOW
    );
    let (global, team) = (Scope::Global.to_string(), Scope::Team(wanted.team.clone()).to_string());
    let row = q.one(&sql, values![&wanted.namespace, &wanted.key, &global, &team]).await?;
    let frozen: [Option<String>; 2] = [row.get("everyone")?, row.get("team")?];
    let ended: Option<String> = row.get("unknown_outcomes")?;
    let ended = ended.iter().flat_map(|times| times.split(' ')).map(str::parse);
    let standing = KeyStanding {
        open: row.get("open")?,
        generations: read_generations(&row)?,
        unknown_outcome_times: ended.collect::<Result<_, _>>().map_err(|_| damaged("ended_at"))?,
        frozen: rules::frozen(&wanted.team, |scope| frozen.iter().flatten().any(|found| found == scope)),
    };
    Ok((standing, q.instant(row.get("now")?)))
}

/// Inserts the row of a new call; `None` when another row holds the key.
async fn insert<Q: Query>(
    q: &Q,
    wanted: &Reservation,
    generation: u64,
    windows: &Windows,
    now: Timestamp,
) -> Result<Option<CallId>, Q::Error> {
    let [column, owner] = Q::OWNER;
    let sql = format!(
        "INSERT INTO granary.calls (namespace, key, generation, state, team, credits, day, month, image, width, \
         height, reserved_at{column}) VALUES ($1, $2, $3, 'reserved', $4, $5, $6, $7, $8, $9, $10, $11{owner}) \
         ON CONFLICT DO NOTHING RETURNING id"
    );
    let reserved_at = now.to_string();
    let values = values! {
        &wanted.namespace, &wanted.key, int(generation)?, &wanted.team, int(wanted.credits)?, &windows.day,
        &windows.month, &wanted.image, wanted.width, wanted.height, &reserved_at, &q.keeper().owner
    };
    Ok(q.row(&sql, values).await?.map(|row| row.get("id")).transpose()?)
}
