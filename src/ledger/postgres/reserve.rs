//! The gate before a purchase: who may buy a key, whether the budgets have the credits, and the last
//! step before the money is spent.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::book::Booker;
use super::pool::{Failure, NOW, Tx};
use super::rows::{self, int8, number};
use super::spool::{self, Room};
use super::usage;
use crate::base::crash::crash_point;
use crate::base::key::CacheKey;
use crate::ledger::budget::{self, BudgetRefusal, Scope, Windows};
use crate::ledger::{CallId, CallState, LedgerError, Permit, Reservation, Reserved, Won};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What is asked, and by whom.
pub(super) struct FillRequest {
    pub(super) reservation: Reservation,
    pub(super) owner: String,
    pub(super) room: Option<Room>,
    pub(super) zone: TimeZone,
}

/// What the book says of a key at one instant.
struct Standing {
    open: Option<CallId>,
    is_stored: bool,
    /// One more than whatever was stored or purged before, so that its record may replace theirs.
    generation: i64,
    /// When its calls of unclear outcome ended.
    doubtful: Vec<Timestamp>,
    frozen: Option<Scope>,
    now: Timestamp,
}

/// Decides who may buy a key. The order is the order of reasons a caller is told.
///
/// The lock on the key is held: between the look and the new row nobody else makes one.
pub(super) async fn reserve(tx: &Tx, wanted: &FillRequest) -> Result<Reserved, Failure> {
    let FillRequest { reservation, owner, room, zone } = wanted;
    let Standing { open, is_stored, generation, doubtful, frozen, now } = standing(tx, reservation).await?;
    if let Some(id) = open {
        return Ok(Reserved::Held(id));
    }
    if !reservation.refresh && is_stored {
        let found = rows::stored(tx, &reservation.namespace, reservation.key).await?;
        // Lost since.
        return found
            .map(|record| Reserved::Stored(Box::new(record)))
            .ok_or(Failure::Again("it changed its state"));
    }
    if let Some(until) = budget::rests_until(&doubtful, now) {
        return Ok(Reserved::Resting { until, wait: budget::until(until, now) });
    }
    if let Some(scope) = frozen {
        return Ok(Reserved::Frozen(scope));
    }
    let windows = Windows::at(now, zone);
    let Some(id) = insert(tx, reservation, owner, generation, &windows, now).await? else {
        // An imported record, or a late answer.
        return Err(Failure::Again("another row has the key"));
    };
    let counted =
        count(tx, &reservation.team, &windows.day, &windows.month, int8(reservation.credits)?).await?;
    if let Some(refusal) = over_budget(tx, reservation, &windows, &counted, now).await? {
        tx.undo();
        return Ok(Reserved::OverBudget(refusal));
    }
    if let Some(room) = room {
        spool::check_room(tx, *room).await?;
    }
    Ok(Reserved::Won(Won { id, generation: u64::try_from(generation).unwrap_or(0) }))
}

/// In one statement, and so at one instant.
async fn standing(tx: &Tx, wanted: &Reservation) -> Result<Standing, Failure> {
    let sql = format!(
        "WITH c AS (SELECT id, state, late, generation, ended_at FROM granary.calls \
                    WHERE namespace = $1 AND key = $2 AND state IN \
                    ('reserved', 'sent', 'answered', 'stored', 'lost', 'unknown', 'unfetchable')), \
              p AS (SELECT coalesce(max(generation), -1) AS purged FROM granary.purged \
                    WHERE namespace = $1 AND key = $2) \
         SELECT (SELECT id FROM c WHERE NOT late AND state IN ('reserved', 'sent', 'answered') LIMIT 1) AS open, \
                EXISTS (SELECT FROM c, p WHERE NOT late AND state = 'stored' AND generation > purged) AS is_stored, \
                (SELECT greatest(max(generation), (SELECT purged FROM p)) + 1 FROM c \
                 WHERE NOT late AND state IN ('stored', 'lost')) AS generation, \
                ARRAY(SELECT ended_at FROM c WHERE state IN ('unknown', 'unfetchable')) AS doubtful, \
                ARRAY(SELECT scope FROM granary.frozen WHERE scope IN ($3, $4)) AS frozen, \
                {NOW} AS now"
    );
    let team = Scope::Team(wanted.team.clone());
    let row = tx
        .one(
            &sql,
            &[
                (&wanted.namespace, Type::TEXT),
                (&&wanted.key.as_bytes()[..], Type::BYTEA),
                (&Scope::Global.to_string(), Type::TEXT),
                (&team.to_string(), Type::TEXT),
            ],
        )
        .await?;
    let mut doubtful = Vec::new();
    for text in row.try_get::<_, Vec<&str>>("doubtful")? {
        doubtful.push(text.parse().map_err(|_| super::pool::damaged("ended_at"))?);
    }
    doubtful.sort_unstable();
    Ok(Standing {
        open: row.try_get::<_, Option<i64>>("open")?.map(CallId),
        is_stored: row.try_get("is_stored")?,
        generation: row.try_get("generation")?,
        doubtful,
        frozen: frozen(&row, team)?,
        now: tx.instant(row.try_get("now")?),
    })
}

/// What stands frozen that concerns a team: everything, or the team itself.
fn frozen(row: &Row, team: Scope) -> Result<Option<Scope>, Failure> {
    let scopes: Vec<&str> = row.try_get("frozen")?;
    Ok([Scope::Global, team].into_iter().find(|scope| scopes.contains(&scope.to_string().as_str())))
}

async fn insert(
    tx: &Tx,
    wanted: &Reservation,
    owner: &str,
    generation: i64,
    windows: &Windows,
    now: Timestamp,
) -> Result<Option<CallId>, Failure> {
    let sql = "INSERT INTO granary.calls (namespace, key, generation, state, team, credits, day, month, image, \
               width, height, reserved_at, owner) \
               VALUES ($1, $2, $3, 'reserved', $4, $5, $6, $7, $8, $9, $10, $11, $12) \
               ON CONFLICT DO NOTHING RETURNING id";
    let values: [super::pool::Value<'_>; 12] = [
        (&wanted.namespace, Type::TEXT),
        (&&wanted.key.as_bytes()[..], Type::BYTEA),
        (&generation, Type::INT8),
        (&wanted.team, Type::TEXT),
        (&int8(wanted.credits)?, Type::INT8),
        (&windows.day, Type::TEXT),
        (&windows.month, Type::TEXT),
        (&&wanted.image.as_bytes()[..], Type::BYTEA),
        (&i64::from(wanted.width), Type::INT8),
        (&i64::from(wanted.height), Type::INT8),
        (&now.to_string(), Type::TEXT),
        (&owner, Type::TEXT),
    ];
    Ok(tx.row(sql, &values).await?.map(|row| row.try_get(0)).transpose()?.map(CallId))
}

/// What a scope has spent in a period by now.
type Counted = (String, String, u64);

/// Adds to the four counters a call belongs to, always in the same order: whoever comes second waits
/// at the first of them, and sees what the first one made of all.
pub(super) async fn count(
    tx: &Tx,
    team: &str,
    day: &str,
    month: &str,
    credits: i64,
) -> Result<Vec<Counted>, Failure> {
    let sql = "INSERT INTO granary.spent AS s (scope, period, credits) \
               VALUES ($1, $3, $5), ($1, $4, $5), ($2, $3, $5), ($2, $4, $5) \
               ON CONFLICT (scope, period) DO UPDATE SET credits = s.credits + excluded.credits \
               RETURNING scope, period, credits";
    let (global, team) = (Scope::Global.to_string(), Scope::Team(team.to_owned()).to_string());
    let rows = tx
        .rows(
            sql,
            &[
                (&global, Type::TEXT),
                (&team, Type::TEXT),
                (&day, Type::TEXT),
                (&month, Type::TEXT),
                (&credits, Type::INT8),
            ],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("scope")?, row.try_get("period")?, number(row, "credits")?)))
        .collect()
}

/// Counts a call that was refused for its picture or numbers, against its team's day. Runs after
/// [`count`], so that all transactions lock counters in one order.
pub(super) async fn count_refused(tx: &Tx, team: String, day: &str, credits: i64) -> Result<(), Failure> {
    let sql = "INSERT INTO granary.spent AS s (scope, period, credits) VALUES ($1, $2, $3) \
               ON CONFLICT (scope, period) DO UPDATE SET credits = s.credits + excluded.credits";
    let scope = Scope::Refused(team).to_string();
    tx.execute(sql, &[(&scope, Type::TEXT), (&day, Type::TEXT), (&credits, Type::INT8)]).await?;
    Ok(())
}

/// The first budget that does not hold what has been counted.
async fn over_budget(
    tx: &Tx,
    wanted: &Reservation,
    windows: &Windows,
    counted: &[Counted],
    now: Timestamp,
) -> Result<Option<BudgetRefusal>, Failure> {
    for limit in wanted.budgets.iter().filter(|budget| budget.enforced) {
        let (period, resets_at) = windows.of(limit.window);
        let scope = limit.scope.to_string();
        let used = counted.iter().find(|(counted, within, _)| *counted == scope && within == period);
        let used = match used {
            Some((_, _, used)) => *used,
            None => rows::spent(tx, &scope, period).await?.saturating_add(wanted.credits),
        };
        if used > limit.limit {
            let resets_in = budget::until(resets_at, now);
            return Ok(Some(BudgetRefusal { budget: limit.clone(), resets_at, resets_in }));
        }
    }
    Ok(None)
}

/// One conditional update: still reserved, still ours, nothing frozen. The shared lock on freezing is
/// held, so that a freeze is exact from its commit.
pub(super) async fn mark_sent(tx: &Tx, id: CallId, booker: &Booker) -> Result<Permit, Failure> {
    let update = "UPDATE granary.calls c SET state = 'sent', sent_at = $3, beat = beat + 1 \
                  WHERE id = $1 AND owner = $2 AND state = 'reserved' AND NOT EXISTS \
                  (SELECT FROM granary.frozen f WHERE f.scope IN ($4, 'team:' || c.team)) RETURNING month";
    let owner = booker.owner.as_str();
    let global = Scope::Global.to_string();
    let marked = tx
        .row(
            update,
            &[
                (&id.0, Type::INT8),
                (&owner, Type::TEXT),
                (&tx.now.to_string(), Type::TEXT),
                (&global, Type::TEXT),
            ],
        )
        .await?;
    crash_point("CP6");
    if let Some(row) = marked {
        let month = row.try_get("month")?;
        usage::adjust(tx, id, month, CallState::Reserved, CallState::Sent, &booker.zone).await?;
        return Ok(Permit::Granted);
    }
    let why = "SELECT team, state = 'reserved' AND owner = $2 AS is_ours, \
               ARRAY(SELECT scope FROM granary.frozen) AS frozen FROM granary.calls WHERE id = $1";
    let row = tx.row(why, &[(&id.0, Type::INT8), (&owner, Type::TEXT)]).await?;
    let row = row.ok_or_else(|| missing(id))?;
    if row.try_get::<_, Option<bool>>("is_ours")? != Some(true) {
        return Ok(Permit::Lost);
    }
    let found = frozen(&row, Scope::Team(row.try_get("team")?))?;
    found.map(Permit::Frozen).ok_or(Failure::Again("it changed its state"))
}

pub(super) fn missing(id: CallId) -> Failure {
    LedgerError::Unavailable(format!("the ledger has no call {}", id.0)).into()
}

/// Says whether it was otherwise before. Whoever spends holds the lock shared, and so ends before this
/// begins.
pub(super) async fn set_frozen(tx: &Tx, scope: &Scope, freeze: bool) -> Result<bool, Failure> {
    let sql = if freeze {
        "INSERT INTO granary.frozen (scope) VALUES ($1) ON CONFLICT DO NOTHING"
    } else {
        "DELETE FROM granary.frozen WHERE scope = $1"
    };
    Ok(tx.execute(sql, &[(&scope.to_string(), Type::TEXT)]).await? > 0)
}

/// The name of a key's lock.
pub(super) fn locks(key: &CacheKey) -> [String; 2] {
    [super::pool::Lock::Freeze.shared(), super::pool::key_lock(key)]
}
