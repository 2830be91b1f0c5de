//! A ledger in memory, for tests: the same contract as the real ones, without their files.
//!
//! It keeps counters beside its rows, as a database does, so that a test can compare the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::budget::{self, Budget, BudgetRefusal, Scope, Used, Windows};
use super::{
    Booking, CallId, CallState, Ledger, LedgerError, Permit, Recovery, Reservation, Reserved, StateTotal,
    UnfinishedCall, Won,
};
use crate::clock::Clock;
use crate::key::CacheKey;
use crate::secret::Secret;
use crate::store::Record;

/// See the module.
pub(crate) struct MemoryLedger {
    book: Mutex<Book>,
    clock: Clock,
    zone: TimeZone,
}

/// All that is written.
#[derive(Default)]
pub(crate) struct Book {
    /// In the order of their numbers: row 1 first.
    pub(crate) rows: Vec<Row>,
    /// Credits by scope and window.
    pub(crate) spent: BTreeMap<(String, String), i64>,
    pub(crate) frozen: BTreeSet<String>,
    /// Counts the changes.
    pub(crate) version: u64,
}

/// One call.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) id: CallId,
    pub(crate) bought: Reservation,
    pub(crate) generation: u64,
    pub(crate) state: CallState,
    pub(crate) late: bool,
    pub(crate) adopted: bool,
    pub(crate) day: String,
    pub(crate) month: String,
    /// The whole answer, while the state is `answered`.
    pub(crate) text: Option<Secret>,
    pub(crate) answered_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) record: Option<Record>,
}

impl Row {
    fn is_of(&self, namespace: &str, key: CacheKey) -> bool {
        self.bought.namespace == namespace && self.bought.key == key
    }

    /// Is it in the unique index?
    pub(crate) fn holds(&self) -> bool {
        !self.late && self.state.holds_key()
    }

    /// Scopes and windows its credits count in.
    pub(crate) fn counters(&self) -> [(String, String); 4] {
        let team = format!("team:{}", self.bought.team);
        let global = || "global".to_owned();
        [
            (global(), self.day.clone()),
            (global(), self.month.clone()),
            (team.clone(), self.day.clone()),
            (team, self.month.clone()),
        ]
    }
}

impl MemoryLedger {
    pub(crate) fn new(clock: Clock, zone: TimeZone) -> Self {
        Self { book: Mutex::default(), clock, zone }
    }

    /// The book itself, to look at.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book();
        book.version += 1;
        book
    }

    pub(crate) fn reserve(&self, wanted: &Reservation) -> Reserved {
        let now = self.clock.now();
        self.book().reserve(wanted, now, &Windows::at(now, &self.zone))
    }

    pub(crate) fn mark_sent(&self, id: CallId) -> Permit {
        self.change().mark_sent(id)
    }

    pub(crate) fn book_call(&self, id: CallId, booking: &Booking) -> Result<(), LedgerError> {
        let now = self.clock.now();
        self.change().book(id, booking, now)
    }

    pub(crate) fn adopt_record(&self, record: &Record) {
        self.change().adopt(record, &Windows::at(record.stored_at, &self.zone));
    }

    pub(crate) fn lose_record(&self, record: &Record) -> Result<(), LedgerError> {
        let now = self.clock.now();
        self.change().lose(record, now)
    }

    pub(crate) fn recover_calls(&self) -> Result<Recovery, LedgerError> {
        let now = self.clock.now();
        self.change().recover(now)
    }

    pub(crate) fn used_of(&self, budgets: Vec<Budget>) -> Vec<Used> {
        let windows = Windows::at(self.clock.now(), &self.zone);
        let book = self.book();
        let used = |budget: Budget| Used { used: book.used(&budget, &windows), budget };
        budgets.into_iter().map(used).collect()
    }

    pub(crate) fn freeze(&self, scope: &Scope, frozen: bool) {
        let mut book = self.change();
        if frozen {
            book.frozen.insert(scope.to_string());
        } else {
            book.frozen.remove(&scope.to_string());
        }
    }
}

impl Book {
    pub(crate) fn row(&self, id: CallId) -> Option<&Row> {
        self.rows.get(usize::try_from(id.0).ok()?.checked_sub(1)?)
    }

    fn row_mut(&mut self, id: CallId) -> Result<&mut Row, LedgerError> {
        let at = usize::try_from(id.0).ok().and_then(|id| id.checked_sub(1));
        at.and_then(|at| self.rows.get_mut(at))
            .ok_or_else(|| LedgerError::Unavailable(format!("there is no call {}", id.0)))
    }

    pub(crate) fn stored(&self, namespace: &str, key: CacheKey) -> Option<&Row> {
        let stored = self
            .rows
            .iter()
            .filter(|row| row.is_of(namespace, key) && row.state == CallState::Stored && !row.late);
        stored.max_by_key(|row| row.generation)
    }

    fn used(&self, budget: &Budget, windows: &Windows) -> u64 {
        let period = windows.of(budget.window).0.to_owned();
        let spent = self.spent.get(&(budget.scope.to_string(), period)).copied().unwrap_or(0);
        u64::try_from(spent).unwrap_or(0)
    }

    fn count(&mut self, row: &Row, sign: i64) {
        for counter in row.counters() {
            *self.spent.entry(counter).or_default() += sign * row.bought.credits as i64;
        }
    }

    fn frozen(&self, team: &str) -> Option<Scope> {
        let scopes = [Scope::Global, Scope::Team(team.to_owned())];
        scopes.into_iter().find(|scope| self.frozen.contains(&scope.to_string()))
    }

    fn reserve(&mut self, wanted: &Reservation, now: Timestamp, windows: &Windows) -> Reserved {
        let (namespace, key) = (wanted.namespace.as_str(), wanted.key);
        let of_key = |row: &&Row| row.is_of(namespace, key);
        let open = |row: &&Row| row.holds() && row.state.is_open();
        if let Some(row) = self.rows.iter().filter(of_key).find(open) {
            return Reserved::Held(row.id);
        }
        if !wanted.refresh
            && let Some(record) = self.stored(namespace, key).and_then(|row| row.record.clone())
        {
            return Reserved::Stored(Box::new(record));
        }
        let doubtful = |row: &&Row| matches!(row.state, CallState::Unknown | CallState::Unfetchable);
        let ended = self.rows.iter().filter(of_key).filter(doubtful).filter_map(|row| row.ended_at);
        let mut ended: Vec<Timestamp> = ended.collect();
        ended.sort_unstable();
        if let Some(until) = budget::rests_until(&ended, now) {
            return Reserved::Resting { until, wait: budget::until(until, now) };
        }
        if let Some(scope) = self.frozen(&wanted.team) {
            return Reserved::Frozen(scope);
        }
        for limit in wanted.budgets.iter().filter(|budget| budget.enforced) {
            if self.used(limit, windows).saturating_add(wanted.credits) > limit.limit {
                let resets_at = windows.of(limit.window).1;
                return Reserved::OverBudget(BudgetRefusal {
                    budget: limit.clone(),
                    resets_at,
                    resets_in: budget::until(resets_at, now),
                });
            }
        }
        let kept = |row: &&Row| matches!(row.state, CallState::Stored | CallState::Lost) && !row.late;
        let last = self.rows.iter().filter(of_key).filter(kept).map(|row| row.generation).max();
        let generation = last.map_or(0, |last| last + 1);
        let row = self.insert(wanted.clone(), generation, windows);
        self.version += 1;
        self.count(&row, 1);
        Reserved::Won(Won { id: row.id, generation })
    }

    fn insert(&mut self, bought: Reservation, generation: u64, windows: &Windows) -> Row {
        let row = Row {
            id: CallId(self.rows.len() as i64 + 1),
            bought,
            generation,
            state: CallState::Reserved,
            late: false,
            adopted: false,
            day: windows.day.clone(),
            month: windows.month.clone(),
            text: None,
            answered_at: None,
            ended_at: None,
            record: None,
        };
        self.rows.push(row.clone());
        row
    }

    fn mark_sent(&mut self, id: CallId) -> Permit {
        let Some(row) = self.row(id).filter(|row| row.state == CallState::Reserved) else {
            return Permit::Lost;
        };
        if let Some(scope) = self.frozen(&row.bought.team) {
            return Permit::Frozen(scope);
        }
        if let Ok(row) = self.row_mut(id) {
            row.state = CallState::Sent;
        }
        Permit::Granted
    }

    fn book(&mut self, id: CallId, booking: &Booking, now: Timestamp) -> Result<(), LedgerError> {
        let row = self.row_mut(id)?.clone();
        let state = booking.state();
        if row.state == state {
            return Ok(());
        }
        if !booking.may_follow(row.state) {
            return Err(LedgerError::Contradiction {
                id: id.0,
                state: row.state.as_str().to_owned(),
                wanted: state.as_str(),
            });
        }
        if row.state.counts_credits() && !state.counts_credits() {
            self.count(&row, -1);
        }
        let rival = |other: &Row| {
            other.id != id
                && other.holds()
                && other.is_of(&row.bought.namespace, row.bought.key)
                && other.generation == row.generation
        };
        let is_taken = self.rows.iter().any(rival);
        let row = self.row_mut(id)?;
        row.state = state;
        match booking {
            Booking::Answered { text, .. } => {
                row.late = is_taken;
                row.text = Some(text.clone());
                (row.answered_at, row.ended_at) = (Some(now), None);
            }
            Booking::Stored { record, holds_key } => {
                row.late = !holds_key || is_taken;
                row.text = None;
                row.ended_at = Some(record.stored_at);
                row.record = Some((**record).clone());
            }
            Booking::Lost => {}
            Booking::Released { .. }
            | Booking::Refused { .. }
            | Booking::Failed { .. }
            | Booking::Unknown { .. }
            | Booking::Unfetchable { .. } => {
                row.text = None;
                row.ended_at = Some(now);
            }
        }
        Ok(())
    }

    fn lose(&mut self, lost: &Record, now: Timestamp) -> Result<(), LedgerError> {
        let is_it = |row: &&Row| {
            let stands = row.state == CallState::Stored && !row.late;
            let digest = row.record.as_ref().map(|record| record.digest);
            stands
                && row.is_of(&lost.namespace, lost.key)
                && row.generation == lost.generation
                && digest == Some(lost.digest)
        };
        match self.rows.iter().find(is_it).map(|row| row.id) {
            Some(id) => self.book(id, &Booking::Lost, now),
            None => Ok(()),
        }
    }

    fn adopt(&mut self, record: &Record, windows: &Windows) {
        let is_known = |row: &Row| {
            let digest = row.record.as_ref().map(|record| record.digest);
            let is_lost = row.state == CallState::Lost && digest == Some(record.digest);
            row.is_of(&record.namespace, record.key)
                && row.generation == record.generation
                && (row.holds() || is_lost)
        };
        if self.rows.iter().any(is_known) {
            return;
        }
        let bought = Reservation {
            namespace: record.namespace.clone(),
            key: record.key,
            refresh: false,
            team: record.team.clone(),
            credits: record.credits,
            budgets: Vec::new(),
            image: record.image,
            width: record.width,
            height: record.height,
        };
        let id = self.insert(bought, record.generation, windows).id;
        if let Ok(row) = self.row_mut(id) {
            (row.state, row.adopted) = (CallState::Stored, true);
            (row.ended_at, row.record) = (Some(record.stored_at), Some(record.clone()));
        }
    }

    fn recover(&mut self, now: Timestamp) -> Result<Recovery, LedgerError> {
        let in_state = |book: &Self, state: CallState| -> Vec<CallId> {
            book.rows.iter().filter(|row| row.state == state).map(|row| row.id).collect()
        };
        let died = || "the process that owned it died".to_owned();
        let (reserved, sent) = (in_state(self, CallState::Reserved), in_state(self, CallState::Sent));
        for &id in &reserved {
            self.book(id, &Booking::Released { reason: died() }, now)?;
        }
        for &id in &sent {
            self.book(id, &Booking::Unknown { reason: died() }, now)?;
        }
        let unfinished = self.rows.iter().filter_map(|row| {
            Some(UnfinishedCall {
                id: row.id,
                reservation: Reservation { refresh: false, budgets: Vec::new(), ..row.bought.clone() },
                generation: row.generation,
                text: row.text.clone()?,
                answered_at: row.answered_at?,
            })
        });
        Ok(Recovery {
            released: reserved.len() as u64,
            unknown: sent.len() as u64,
            unfinished: unfinished.collect(),
        })
    }

    fn totals(&self) -> Vec<StateTotal> {
        let total = |state| {
            let rows = self.rows.iter().filter(|row| row.state == state && !row.adopted);
            let empty = StateTotal { state, calls: 0, credits: 0 };
            rows.fold(empty, |total, row| StateTotal {
                state,
                calls: total.calls + 1,
                credits: total.credits + row.bought.credits,
            })
        };
        CallState::ALL.map(total).to_vec()
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        Ok(self.book().stored(namespace, key).and_then(|row| row.record.clone()))
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        Ok(Self::reserve(self, &reservation))
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        Ok(Self::mark_sent(self, id))
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        self.book_call(id, &booking)
    }

    async fn adopt(&self, record: &Record) -> Result<(), LedgerError> {
        self.adopt_record(record);
        Ok(())
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        self.lose_record(record)
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        self.recover_calls()
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        Ok(self.book().totals())
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        Ok(self.used_of(budgets))
    }

    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError> {
        self.freeze(&scope, frozen);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ledger::contract::{TurnableClock, ledger_contract, model, zone};

    async fn open(clock: Clock, zone: TimeZone) -> (MemoryLedger, ()) {
        (MemoryLedger::new(clock, zone), ())
    }

    ledger_contract!(open);

    proptest! {
        #[test]
        fn a_random_life_with_crashes_agrees_with_the_model(life in model::lives()) {
            let clock = TurnableClock::at("2026-03-27T20:00:00Z");
            let ledger = Arc::new(MemoryLedger::new(clock.clock(), zone()));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(model::live(life, clock.clone(), || async { ledger.clone() as Arc<dyn Ledger> }));
        }
    }
}
