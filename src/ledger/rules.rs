//! The rules about money, as pure functions. Every ledger reads, decides here, and writes the decision.

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use jiff::civil::Date;

use super::admin::{GivenBack, Purge, Settled, Settlement};
use super::budget::{self, BudgetRefusal, Scope, Windows};
use super::{Booking, CallId, CallState, ForeignOpenCall, LedgerError, Permit, Reservation, Reserved};
use crate::base::record::Record;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generations {
    pub(crate) stored: Option<u64>,
    /// The newest `stored` or `lost` row.
    pub(crate) kept: Option<u64>,
    /// Results up to this generation count as absent.
    pub(crate) purged: Option<u64>,
}

impl Generations {
    pub(crate) fn is_stored(&self) -> bool {
        self.stored > self.purged
    }

    /// The generation of the next call: higher than all before, so that its record may replace theirs.
    pub(crate) fn next(&self) -> u64 {
        self.kept.max(self.purged).map_or(0, |last| last + 1)
    }

    /// A lost result is purged too: its record may be left in the store.
    pub(crate) fn purge(&self) -> Purge {
        match (self.is_stored(), self.kept.max(self.stored), self.purged) {
            (true, Some(generation), _) => Purge::Done { generation },
            (_, _, Some(generation)) => Purge::Repeated { generation },
            _ => Purge::Nothing,
        }
    }
}

/// The state of a key at one instant.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyStanding {
    /// A `reserved`, `sent` or `answered` row that holds the key.
    pub(crate) open: Option<CallId>,
    pub(crate) generations: Generations,
    /// The ends of its `unknown` and `unfetchable` calls, in any order.
    pub(crate) unknown_outcome_times: Vec<Timestamp>,
    pub(crate) frozen: Option<Scope>,
}

/// Budgets and spool room are checked after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The generation.
    Buy(u64),
    Stored,
    No(Reserved),
}

/// Decides who may buy a key. The order is that of the reasons a client is given.
pub(crate) fn decide(standing: KeyStanding, wanted: &Reservation, now: Timestamp) -> Decision {
    let KeyStanding { open, generations, mut unknown_outcome_times, frozen } = standing;
    unknown_outcome_times.sort_unstable();
    if let Some(id) = open {
        return Decision::No(Reserved::Held(id));
    }
    if !wanted.refresh && generations.is_stored() {
        return Decision::Stored;
    }
    if let Some(until) = budget::rests_until(&unknown_outcome_times, now) {
        return Decision::No(Reserved::Resting { until, wait: budget::until(until, now) });
    }
    match frozen {
        Some(scope) => Decision::No(Reserved::Frozen(scope)),
        None => Decision::Buy(generations.next()),
    }
}

/// The freeze that stops a team, the global one first.
pub(crate) fn frozen(team: &str, is_frozen: impl Fn(&str) -> bool) -> Option<Scope> {
    let scopes = [Scope::Global, Scope::Team(team.to_owned())];
    scopes.into_iter().find(|scope| is_frozen(&scope.to_string()))
}

/// The first exceeded budget. `used`: credits of each of [`Reservation::enforced`], without the call.
pub(crate) fn over_budget(
    wanted: &Reservation,
    used: &[u64],
    now: Timestamp,
    windows: &Windows,
) -> Option<BudgetRefusal> {
    let short = wanted.enforced().zip(used);
    let (budget, _) =
        short.into_iter().find(|(budget, used)| used.saturating_add(wanted.credits) > budget.limit)?;
    let resets_at = windows.of(budget.window).1;
    Some(BudgetRefusal { budget: budget.clone(), resets_at, resets_in: budget::until(resets_at, now) })
}

/// Refuses a result that does not fit into the spool, with [`LedgerError::SpoolFull`].
pub(crate) fn fits(wanted: u64, used: u64, max: u64) -> Result<(), LedgerError> {
    if used.saturating_add(wanted) > max {
        return Err(LedgerError::SpoolFull { wanted, used, max });
    }
    Ok(())
}

/// The limits of [`Calls::keep_room`](super::Calls::keep_room).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Bytes for each open call.
    pub(crate) each: u64,
    /// Bytes in the spool.
    pub(crate) max: u64,
}

/// Refuses a call when the spool has no room for its result and those of all other open calls.
pub(crate) fn has_room(room: Room, spooled: u64, other_open_calls: u64) -> Result<(), LedgerError> {
    fits(room.each, spooled.saturating_add(other_open_calls.saturating_mul(room.each)), room.max)
}

pub(crate) fn permit(state: CallState, is_ours: bool, frozen: Option<Scope>) -> Permit {
    if state != CallState::Reserved || !is_ours {
        return Permit::Lost;
    }
    frozen.map_or(Permit::Granted, Permit::Frozen)
}

/// The change of a call's counters, in multiples of its credits.
fn counted(from: CallState, to: CallState) -> i64 {
    i64::from(to.counts_credits()) - i64::from(from.counts_credits())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) to: CallState,
    /// Whether another row keeps the key; `None` leaves that as it is.
    pub(crate) late: Option<bool>,
    /// Added to the four counters, in multiples of the call's credits.
    pub(crate) counted: i64,
    pub(crate) counts_refused: bool,
    /// Other processes may have an earlier generation in memory.
    pub(crate) invalidates: bool,
}

/// Applies a booking, by any owner; `None` when it is booked already. `ids`: the upstream's ids of its
/// answer. `held_by_another`: another row of its generation holds the key, as after a late answer.
pub(crate) fn apply(
    (id, from, ids): (CallId, CallState, Option<(&str, &str)>),
    booking: &Booking,
    held_by_another: bool,
) -> Result<Option<Change>, LedgerError> {
    let to = booking.state();
    // An owner that is alive knows more than the process that settled the call: why it is `unknown`, or its
    // own result in place of a record that another ledger bought.
    let corrects = from == to
        && match booking {
            Booking::Unknown { .. } => true,
            Booking::Stored { record, .. } | Booking::Spooled { record, .. } => {
                ids.is_some_and(|ids| ids != (&record.upstream_request_id, &record.upstream_log_id))
            }
            _ => false,
        };
    if from == to && !corrects {
        return Ok(None);
    }
    if !corrects && !booking.may_follow(from) {
        return Err(LedgerError::Contradiction {
            id: id.0,
            state: from.as_str().to_owned(),
            wanted: to.as_str(),
        });
    }
    let late = match booking {
        // From `unknown` another call may have taken the key meanwhile; it keeps it.
        Booking::Answered { .. } | Booking::Spooled { .. } => Some(held_by_another),
        // A late row gets its key back once the other row has let it go.
        Booking::Stored { holds_key, .. } => Some(!holds_key || held_by_another),
        _ => None,
    };
    let invalidates = match booking {
        Booking::Stored { record, .. } | Booking::Spooled { record, .. } => invalidates(record),
        _ => false,
    };
    let counts_refused = matches!(booking, Booking::Refused { for_order: true, .. });
    Ok(Some(Change { to, late, counted: counted(from, to), counts_refused, invalidates }))
}

pub(crate) fn invalidates(record: &Record) -> bool {
    record.generation > 0
}

#[derive(Clone, Debug)]
pub(crate) enum Abandoned {
    Book(Booking),
    /// Its result is paid for; the new owner downloads it.
    Finish,
    Nothing,
}

pub(crate) fn abandon(state: CallState, reason: &str) -> Abandoned {
    let reason = reason.to_owned();
    match state {
        CallState::Reserved => Abandoned::Book(Booking::Released { reason }),
        CallState::Sent => Abandoned::Book(Booking::Unknown { reason }),
        CallState::Answered => Abandoned::Finish,
        _ => Abandoned::Nothing,
    }
}

pub(crate) fn is_silent(seen: &ForeignOpenCall, state: CallState, heartbeat: u64) -> bool {
    state.is_open() && (seen.state, seen.heartbeat) == (state, heartbeat)
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ImportStanding {
    pub(crate) purged: Option<u64>,
    /// A row has the upstream's ids of the record.
    pub(crate) has_purchase: bool,
    /// A row of the same generation and digest is `lost`.
    pub(crate) is_lost: bool,
    /// The newest call whose owner died and that may have made the record.
    pub(crate) orphan: Option<CallId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Imported {
    /// The orphan that made it becomes `stored`.
    Settles(CallId),
    /// An unpaid row, unless another one holds the key.
    Added,
    Ignored,
}

pub(crate) fn import(generation: u64, standing: ImportStanding) -> Imported {
    let ImportStanding { purged, has_purchase, is_lost, orphan } = standing;
    match orphan {
        _ if Some(generation) <= purged => Imported::Ignored,
        Some(id) if !has_purchase => Imported::Settles(id),
        _ if is_lost => Imported::Ignored,
        _ => Imported::Added,
    }
}

/// Returns true for records of one purchase; their times may differ after a crash.
pub(crate) fn is_same_purchase(ours: &Record, standing: &Record) -> bool {
    *standing == Record { stored_at: standing.stored_at, ..ours.clone() }
}

/// Returns true when a month, such as `2026-11`, is closed on a day, such as `2026-12-02`. It stays so.
pub(crate) fn is_closed(month: &str, today: &str) -> bool {
    let first = format!("{month}-01").parse().ok();
    let first_of_next = first.and_then(|first: Date| first.last_of_month().tomorrow().ok());
    first_of_next.is_some_and(|first_of_next| today.parse().is_ok_and(|today: Date| today > first_of_next))
}

/// In multiples of the call's credits; `None` when its month is open or its state has not changed.
pub(crate) fn adjustment(month: &str, from: CallState, to: CallState, today: &Windows) -> Option<i64> {
    (from != to && is_closed(month, &today.day)).then(|| counted(from, to))
}

/// The day on which a request counts that was served on `day` and is booked today.
pub(crate) fn served_on(day: Date, today: &Windows) -> String {
    let day = day.to_string();
    match day.get(..7) {
        Some(month) if is_closed(month, &today.day) => today.day.clone(),
        _ => day,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settling {
    pub(crate) to: CallState,
    pub(crate) counted: i64,
    pub(crate) given_back: Option<GivenBack>,
}

/// Settles an `unknown` call, or returns the answer when nothing changes.
pub(crate) fn settle(
    (state, settled): (CallState, Option<Settlement>),
    settlement: Settlement,
    month: &str,
    today: &Windows,
) -> Result<Settling, Settled> {
    match settled {
        Some(before) if before == settlement => return Err(Settled::Repeated),
        Some(before) => return Err(Settled::Otherwise(before)),
        None if state != CallState::Unknown => return Err(Settled::NotUnknown(state)),
        None => {}
    }
    let (to, given_back) = match settlement {
        Settlement::Charged => (state, None),
        Settlement::Free if is_closed(month, &today.day) => (CallState::Failed, Some(GivenBack::Adjustment)),
        Settlement::Free => (CallState::Failed, Some(GivenBack::Budgets)),
    };
    Ok(Settling { to, counted: counted(state, to), given_back })
}
