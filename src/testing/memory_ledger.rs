//! A ledger in memory, for tests: the same contract as the real ones, without their files.
//!
//! It keeps counters beside its rows, as a database does, so that a test can compare the two.

mod admin;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::clock::Clock;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::base::secret::Secret;
use crate::ledger::admin::{AuditLine, Purge, Settlement};
use crate::ledger::budget::{Budget, Scope, Used, Windows};
use crate::ledger::rules::{self, Abandoned, Decision, Generations, ImportStanding, Imported, KeyStanding};
use crate::ledger::{
    Absence, ArchiveIndex, Booking, CallId, CallState, Calls, Changes, ForeignOpenCall, Leases, LedgerError,
    Orphan, Permit, Queries, Recovery, Reservation, Reserved, SpoolTable, StateTotal, UnfinishedCall, Won,
};
use crate::ledger::{SpoolUsage, Spooled};

/// See the module.
#[derive(Clone)]
pub(crate) struct MemoryLedger {
    book: Arc<Mutex<Book>>,
    /// Who of several keeps it, where they live beside each other.
    owner: Option<u64>,
    spool_max: u64,
    clock: Clock,
    zone: TimeZone,
    gate: Option<Arc<dyn Gate>>,
}

/// What stands before a ledger in a test: it may hold or refuse each operation, by its name.
#[async_trait]
pub(crate) trait Gate: Send + Sync {
    async fn pass(&self, operation: &'static str) -> Result<(), LedgerError>;
    /// What is said instead of the ledger's permit.
    fn permit(&self) -> Option<Permit>;
    fn has_leases(&self) -> bool;
}

const OWNER_DIED: &str = "the process that owned it died";

/// All that is written.
#[derive(Default)]
pub(crate) struct Book {
    /// In the order of their numbers: row 1 first.
    pub(crate) rows: Vec<Row>,
    /// Credits by scope and window.
    pub(crate) spent: BTreeMap<(String, String), i64>,
    pub(crate) frozen: BTreeSet<String>,
    /// What waits for the store, by its position.
    pub(crate) spool: BTreeMap<u64, Waiting>,
    /// The last position that was given.
    last_position: u64,
    pub(crate) membership: Option<Membership>,
    /// Up to which generation a key counts as absent.
    purged: BTreeMap<(String, [u8; 32]), u64>,
    /// What was refreshed or purged, oldest first.
    changes: Vec<(String, CacheKey)>,
    /// What operators did, oldest first.
    pub(crate) audit: Vec<AuditLine>,
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
    pub(crate) owner: u64,
    pub(crate) heartbeat: u64,
    pub(crate) late: bool,
    pub(crate) adopted: bool,
    pub(crate) day: String,
    pub(crate) month: String,
    /// The whole answer, while the state is `answered`.
    pub(crate) text: Option<Secret>,
    pub(crate) answered_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) record: Option<Record>,
    pub(crate) reserved_at: Timestamp,
    pub(crate) sent_at: Option<Timestamp>,
    pub(crate) reason: Option<String>,
    /// The upstream's two.
    pub(crate) ids: Option<(String, String)>,
    pub(crate) settled: Option<Settlement>,
}

/// A result in the spool.
#[derive(Clone)]
pub(crate) struct Waiting {
    pub(crate) id: CallId,
    pub(crate) name: ObjectName,
    pub(crate) bytes: Bytes,
    pub(crate) since: Timestamp,
}

impl Row {
    fn is_of(&self, namespace: &str, key: CacheKey) -> bool {
        self.bought.namespace == namespace && self.bought.key == key
    }

    /// Is it in the unique index?
    pub(crate) fn holds(&self) -> bool {
        !self.late && self.state.holds_key()
    }

    fn is_orphan(&self) -> bool {
        self.state == CallState::Unknown && self.reason.as_deref() == Some(OWNER_DIED)
    }

    /// Its result is permanent.
    fn keep(&mut self, record: &Record) {
        (self.text, self.reason) = (None, None);
        self.ended_at = Some(record.stored_at);
        self.answered_at = self.answered_at.or(self.ended_at);
        self.ids = Some((record.upstream_request_id.clone(), record.upstream_log_id.clone()));
        self.record = Some(record.clone());
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
        Self { book: Arc::default(), owner: None, spool_max: 2 << 30, clock, zone, gate: None }
    }

    /// The same with so many bytes for the spool.
    pub(crate) fn with_spool_max(self, spool_max: u64) -> Self {
        Self { spool_max, ..self }
    }

    /// The same behind a gate.
    pub(crate) fn behind(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    async fn pass(&self, operation: &'static str) -> Result<(), LedgerError> {
        match &self.gate {
            Some(gate) => gate.pass(operation).await,
            None => Ok(()),
        }
    }

    /// The same book, as another of those who keep it at the same time.
    pub(crate) fn kept_by(&self, owner: u64) -> Self {
        Self { owner: Some(owner), ..self.clone() }
    }

    /// The book itself, to look at.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> (Timestamp, Windows) {
        let now = self.clock.now();
        (now, Windows::at(now, &self.zone))
    }

    pub(crate) fn change(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book();
        book.version += 1;
        book
    }

    pub(crate) fn reserve(&self, wanted: &Reservation) -> Reserved {
        let now = self.clock.now();
        self.book().reserve(wanted, now, &Windows::at(now, &self.zone), self.owner.unwrap_or(0))
    }

    pub(crate) fn mark_sent(&self, id: CallId) -> Permit {
        let now = self.clock.now();
        self.change().mark_sent(id, now, self.owner.unwrap_or(0))
    }

    pub(crate) fn book_call(&self, id: CallId, booking: &Booking) -> Result<(), LedgerError> {
        let now = self.clock.now();
        let mut book = self.change();
        if let Booking::Spooled { bytes, .. } = booking {
            let is_stored = book.row(id).is_some_and(|row| row.state == CallState::Stored);
            if !is_stored {
                rules::fits(bytes.len() as u64, book.spooled_bytes(), self.spool_max)?;
            }
        }
        book.book(id, booking, now)
    }

    pub(crate) fn import_now(&self, record: &Record) -> Result<(), LedgerError> {
        let (now, mut book) = (self.clock.now(), self.change());
        match rules::import(record.generation, book.import_standing(record)) {
            Imported::Settles(id) => {
                let booking = Booking::Stored { record: Box::new(record.clone()), holds_key: true };
                book.book(id, &booking, now)?;
            }
            Imported::Added => book.add(record, &Windows::at(record.stored_at, &self.zone)),
            Imported::Ignored => {}
        }
        Ok(())
    }

    pub(crate) fn note_import(&self, archive: ArchiveId, import: Import) {
        let mut book = self.change();
        if let Some(membership) = book.membership.as_mut().filter(|one| one.archive == archive) {
            membership.import = import;
        }
    }

    pub(crate) fn lose_record(&self, record: &Record) -> Result<(), LedgerError> {
        let now = self.clock.now();
        self.change().lose(record, now)
    }

    pub(crate) fn recover_calls(&self) -> Result<Recovery, LedgerError> {
        if self.owner.is_some() {
            return Ok(Recovery::default());
        }
        let now = self.clock.now();
        self.change().recover(now)
    }

    pub(crate) fn renew_calls(&self, calls: &[CallId]) -> Vec<CallId> {
        let (owner, mut book) = (self.owner.unwrap_or(0), self.book());
        let mut ours = Vec::new();
        for &id in calls {
            if let Ok(row) = book.row_mut(id)
                && row.owner == owner
                && row.state.is_open()
            {
                row.heartbeat += 1;
                ours.push(id);
            }
        }
        ours
    }

    pub(crate) fn calls_of_others(&self, in_hand: &[CallId]) -> Vec<ForeignOpenCall> {
        let book = self.book();
        let open = book.rows.iter().filter(|row| row.state.is_open() && !in_hand.contains(&row.id));
        open.map(|row| ForeignOpenCall { id: row.id, state: row.state, heartbeat: row.heartbeat }).collect()
    }

    pub(crate) fn take_calls(&self, silent: &[ForeignOpenCall]) -> Result<Recovery, LedgerError> {
        let (now, owner) = (self.clock.now(), self.owner.unwrap_or(0));
        let mut book = self.change();
        let is_silent = |row: &Row| {
            let seen = silent.iter().find(|call| call.id == row.id);
            seen.is_some_and(|seen| rules::is_silent(seen, row.state, row.heartbeat))
        };
        let taken: BTreeSet<CallId> =
            book.rows.iter().filter(|row| is_silent(row)).map(|row| row.id).collect();
        let recovery = book.settle(|row| taken.contains(&row.id), now)?;
        for call in &recovery.unfinished {
            let row = book.row_mut(call.id)?;
            (row.owner, row.heartbeat) = (owner, row.heartbeat + 1);
        }
        Ok(recovery)
    }

    pub(crate) fn used_of(&self, budgets: Vec<Budget>) -> Vec<Used> {
        let windows = Windows::at(self.clock.now(), &self.zone);
        let book = self.book();
        let used = |budget: Budget| Used { used: book.used(&budget, &windows), budget };
        budgets.into_iter().map(used).collect()
    }

    pub(crate) fn unspool_result(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        self.change().unspool(id, standing, &Windows::at(standing.stored_at, &self.zone))
    }

    pub(crate) fn usage(&self) -> SpoolUsage {
        let now = self.clock.now();
        self.book().spool_usage(now)
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

    pub(crate) fn row_mut(&mut self, id: CallId) -> Result<&mut Row, LedgerError> {
        let at = usize::try_from(id.0).ok().and_then(|id| id.checked_sub(1));
        at.and_then(|at| self.rows.get_mut(at))
            .ok_or_else(|| LedgerError::Unavailable(format!("there is no call {}", id.0)))
    }

    pub(crate) fn stored(&self, namespace: &str, key: CacheKey) -> Option<&Row> {
        let purged = self.purged(namespace, key);
        let stored = self.rows.iter().filter(|row| {
            let stands = row.state == CallState::Stored && !row.late;
            row.is_of(namespace, key) && stands && Some(row.generation) > purged
        });
        stored.max_by_key(|row| row.generation)
    }

    pub(crate) fn purged(&self, namespace: &str, key: CacheKey) -> Option<u64> {
        self.purged.get(&(namespace.to_owned(), *key.as_bytes())).copied()
    }

    pub(crate) fn purge(&mut self, namespace: &str, key: CacheKey) -> Purge {
        let purge = self.generations(namespace, key).purge();
        if let Purge::Done { generation } = purge {
            self.purged.insert((namespace.to_owned(), *key.as_bytes()), generation);
            self.changes.push((namespace.to_owned(), key));
        }
        purge
    }

    fn generations(&self, namespace: &str, key: CacheKey) -> Generations {
        let newest = |states: &[CallState]| {
            let of_key = self.rows.iter().filter(|row| row.is_of(namespace, key) && !row.late);
            of_key.filter(|row| states.contains(&row.state)).map(|row| row.generation).max()
        };
        Generations {
            stored: newest(&[CallState::Stored]),
            kept: newest(&[CallState::Stored, CallState::Lost]),
            purged: self.purged(namespace, key),
        }
    }

    pub(crate) fn changes(&self, after: Option<u64>) -> Changes {
        let told = after.map_or(self.changes.len(), |after| usize::try_from(after).unwrap_or(usize::MAX));
        let keys = self.changes.get(told..).unwrap_or_default().to_vec();
        Changes { position: self.changes.len() as u64, keys }
    }

    fn used(&self, budget: &Budget, windows: &Windows) -> u64 {
        let period = windows.of(budget.window).0.to_owned();
        let spent = self.spent.get(&(budget.scope.to_string(), period)).copied().unwrap_or(0);
        u64::try_from(spent).unwrap_or(0)
    }

    pub(crate) fn count(&mut self, row: &Row, sign: i64) {
        for counter in row.counters() {
            *self.spent.entry(counter).or_default() += sign * row.bought.credits as i64;
        }
    }

    fn frozen(&self, team: &str) -> Option<Scope> {
        rules::frozen(team, |scope| self.frozen.contains(scope))
    }

    fn standing(&self, wanted: &Reservation) -> KeyStanding {
        let of_key = || self.rows.iter().filter(|row| row.is_of(&wanted.namespace, wanted.key));
        let is_unknown = |row: &&Row| matches!(row.state, CallState::Unknown | CallState::Unfetchable);
        KeyStanding {
            open: of_key().find(|row| row.holds() && row.state.is_open()).map(|row| row.id),
            generations: self.generations(&wanted.namespace, wanted.key),
            unknown_outcome_times: of_key().filter(is_unknown).filter_map(|row| row.ended_at).collect(),
            frozen: self.frozen(&wanted.team),
        }
    }

    fn reserve(&mut self, wanted: &Reservation, now: Timestamp, windows: &Windows, owner: u64) -> Reserved {
        let generation = match rules::decide(self.standing(wanted), wanted, now) {
            Decision::Buy(generation) => generation,
            Decision::No(reason) => return reason,
            Decision::Stored => {
                let stored = self.stored(&wanted.namespace, wanted.key).and_then(|row| row.record.clone());
                return Reserved::Stored(Box::new(stored.expect("a stored row has its record")));
            }
        };
        let used: Vec<u64> = wanted.enforced().map(|budget| self.used(budget, windows)).collect();
        if let Some(refusal) = rules::over_budget(wanted, &used, now, windows) {
            return Reserved::OverBudget(refusal);
        }
        let row = self.insert(wanted.clone(), generation, now, windows);
        if let Ok(row) = self.row_mut(row.id) {
            row.owner = owner;
        }
        self.version += 1;
        self.count(&row, 1);
        Reserved::Won(Won { id: row.id, generation })
    }

    fn insert(&mut self, bought: Reservation, generation: u64, now: Timestamp, windows: &Windows) -> Row {
        let row = Row {
            id: CallId(self.rows.len() as i64 + 1),
            bought,
            generation,
            state: CallState::Reserved,
            owner: 0,
            heartbeat: 0,
            late: false,
            adopted: false,
            day: windows.day.clone(),
            month: windows.month.clone(),
            text: None,
            answered_at: None,
            ended_at: None,
            record: None,
            reserved_at: now,
            sent_at: None,
            reason: None,
            ids: None,
            settled: None,
        };
        self.rows.push(row.clone());
        row
    }

    fn mark_sent(&mut self, id: CallId, now: Timestamp, owner: u64) -> Permit {
        let Some(row) = self.row(id) else { return Permit::Lost };
        let permit = rules::permit(row.state, row.owner == owner, self.frozen(&row.bought.team));
        if let (Permit::Granted, Ok(row)) = (&permit, self.row_mut(id)) {
            (row.state, row.sent_at, row.heartbeat) = (CallState::Sent, Some(now), row.heartbeat + 1);
        }
        permit
    }

    fn book(&mut self, id: CallId, booking: &Booking, now: Timestamp) -> Result<(), LedgerError> {
        let row = self.row_mut(id)?.clone();
        let rival = |other: &Row| {
            other.id != id
                && other.holds()
                && other.is_of(&row.bought.namespace, row.bought.key)
                && other.generation == row.generation
        };
        let is_held = self.rows.iter().any(rival);
        let ids = row.ids.as_ref().map(|(request_id, log_id)| (request_id.as_str(), log_id.as_str()));
        let Some(change) = rules::apply((id, row.state, ids), booking, is_held)? else { return Ok(()) };
        self.count(&row, change.counted);
        if change.counts_refused {
            let counter = (Scope::Refused(row.bought.team.clone()).to_string(), row.day.clone());
            *self.spent.entry(counter).or_default() += row.bought.credits as i64;
        }
        if change.invalidates {
            self.changes.push((row.bought.namespace.clone(), row.bought.key));
        }
        if let Booking::Spooled { record, bytes } = booking
            && let Some(name) = record.object()
        {
            self.last_position += 1;
            self.spool.insert(self.last_position, Waiting { id, name, bytes: bytes.clone(), since: now });
        }
        let row = self.row_mut(id)?;
        let from = row.state;
        (row.state, row.heartbeat) = (change.to, row.heartbeat + 1);
        row.late = change.late.unwrap_or(row.late);
        match booking {
            Booking::Answered { text, request_id, log_id } => {
                row.ids = Some((request_id.clone(), log_id.clone()));
                row.reason = None;
                row.text = Some(text.clone());
                (row.answered_at, row.ended_at) = (Some(now), None);
            }
            Booking::Stored { record, .. } | Booking::Spooled { record, .. } => row.keep(record),
            Booking::Lost => row.reason = Some(format!("found missing at {now}")),
            Booking::Released { reason }
            | Booking::Refused { reason, .. }
            | Booking::Failed { reason }
            | Booking::Unknown { reason }
            | Booking::Unfetchable { reason } => {
                row.reason = Some(reason.clone());
                row.text = None;
                if from != change.to {
                    row.ended_at = Some(now);
                }
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

    pub(crate) fn is_complete(&self) -> bool {
        self.membership.as_ref().is_some_and(|membership| membership.import == Import::Complete)
    }

    pub(crate) fn absence(&self, namespace: &str, key: CacheKey) -> Absence {
        let of_key = || self.rows.iter().filter(|row| row.is_of(namespace, key));
        let is_open = |row: &Row| matches!(row.state, CallState::Sent | CallState::Answered);
        Absence::of(self.is_complete(), of_key().any(Row::is_orphan), of_key().any(is_open))
    }

    pub(crate) fn orphans(&self) -> Vec<Orphan> {
        let orphan = |row: &Row| {
            let Reservation { namespace, key, .. } = &row.bought;
            Orphan { id: row.id, namespace: namespace.clone(), key: *key }
        };
        self.rows.iter().filter(|row| row.is_orphan()).map(orphan).collect()
    }

    fn import_standing(&self, record: &Record) -> ImportStanding {
        let of_key = || self.rows.iter().filter(|row| row.is_of(&record.namespace, record.key));
        let ids = (record.upstream_request_id.clone(), record.upstream_log_id.clone());
        let is_lost = |row: &Row| {
            let digest = row.record.as_ref().map(|record| record.digest);
            (row.state, row.generation, digest) == (CallState::Lost, record.generation, Some(record.digest))
        };
        let may_be = |row: &&Row| {
            row.is_orphan()
                && row.generation == record.generation
                && (&row.bought.team, row.bought.credits) == (&record.team, record.credits)
        };
        ImportStanding {
            purged: self.purged(&record.namespace, record.key),
            has_purchase: of_key().any(|row| row.ids.as_ref() == Some(&ids)),
            is_lost: of_key().any(is_lost),
            orphan: of_key().rev().find(may_be).map(|row| row.id),
        }
    }

    /// Adds a row that costs nothing, unless another one holds the key.
    fn add(&mut self, record: &Record, windows: &Windows) {
        let holds = |row: &Row| {
            row.is_of(&record.namespace, record.key) && row.generation == record.generation && row.holds()
        };
        if self.rows.iter().any(holds) {
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
        let id = self.insert(bought, record.generation, record.stored_at, windows).id;
        if rules::invalidates(record) {
            self.changes.push((record.namespace.clone(), record.key));
        }
        if let Ok(row) = self.row_mut(id) {
            (row.state, row.adopted) = (CallState::Stored, true);
            (row.ended_at, row.record) = (Some(record.stored_at), Some(record.clone()));
            row.ids = Some((record.upstream_request_id.clone(), record.upstream_log_id.clone()));
        }
    }

    fn recover(&mut self, now: Timestamp) -> Result<Recovery, LedgerError> {
        self.settle(|_| true, now)
    }

    /// Settles the calls whose owners are known to be dead, or silent.
    fn settle(&mut self, is_dead: impl Fn(&Row) -> bool, now: Timestamp) -> Result<Recovery, LedgerError> {
        let mut recovery = Recovery::default();
        let dead: Vec<(CallId, CallState)> =
            self.rows.iter().filter(|row| is_dead(row)).map(|row| (row.id, row.state)).collect();
        for (id, state) in dead {
            if let Abandoned::Book(booking) = rules::abandon(state, OWNER_DIED) {
                self.book(id, &booking, now)?;
                recovery.add(state);
            }
        }
        let unfinished = self.rows.iter().filter(|row| is_dead(row)).filter_map(|row| {
            Some(UnfinishedCall {
                id: row.id,
                reservation: Reservation { refresh: false, budgets: Vec::new(), ..row.bought.clone() },
                generation: row.generation,
                text: row.text.clone()?,
                answered_at: row.answered_at?,
            })
        });
        recovery.unfinished = unfinished.collect();
        Ok(recovery)
    }

    fn spooled_bytes(&self) -> u64 {
        self.spool.values().map(|waiting| waiting.bytes.len() as u64).sum()
    }

    pub(crate) fn spooled_object(&self, name: ObjectName) -> Option<Bytes> {
        self.spool.values().find(|waiting| waiting.name == name).map(|waiting| waiting.bytes.clone())
    }

    pub(crate) fn spooled(&self, after: u64, limit: usize) -> Vec<Spooled> {
        let waiting = self.spool.range(after + 1..).take(limit);
        let spooled = waiting.filter_map(|(&position, Waiting { id, .. })| {
            Some(Spooled { position, id: *id, record: self.row(*id)?.record.clone()? })
        });
        spooled.collect()
    }

    fn unspool(&mut self, id: CallId, standing: &Record, windows: &Windows) -> Result<(), LedgerError> {
        let before = self.spool.len();
        self.spool.retain(|_, waiting| waiting.id != id);
        if self.spool.len() == before {
            return Ok(());
        }
        let row = self.row_mut(id)?;
        if row.record.as_ref().is_some_and(|ours| rules::is_same_purchase(ours, standing)) {
            (row.ended_at, row.record) = (Some(standing.stored_at), Some(standing.clone()));
            return Ok(());
        }
        row.late = true;
        let known = ImportStanding { orphan: None, ..self.import_standing(standing) };
        if rules::import(standing.generation, known) == Imported::Added {
            self.add(standing, windows);
        }
        Ok(())
    }

    fn spool_usage(&self, now: Timestamp) -> SpoolUsage {
        let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
        let open = || self.rows.iter().filter(|row| row.state.is_open());
        let answers = || open().filter(|row| row.state == CallState::Answered);
        SpoolUsage {
            objects: self.spool.len() as u64,
            bytes: self.spooled_bytes(),
            oldest_age: self.spool.values().next().map(|waiting| age(waiting.since)),
            open_calls: open().count() as u64,
            answered_calls: answers().count() as u64,
            oldest_answer_age: answers().filter_map(|row| row.answered_at).min().map(age),
        }
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
impl Calls for MemoryLedger {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        self.pass("look_up").await?;
        Ok(self.book().stored(namespace, key).and_then(|row| row.record.clone()))
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        self.pass("reserve").await?;
        Ok(Self::reserve(self, &reservation))
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        self.pass("mark_sent").await?;
        let planted = self.gate.as_ref().and_then(|gate| gate.permit());
        Ok(planted.unwrap_or_else(|| Self::mark_sent(self, id)))
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        self.pass("book").await?;
        self.book_call(id, &booking)
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        self.recover_calls()
    }
}

#[async_trait]
impl Leases for MemoryLedger {
    fn has_leases(&self) -> bool {
        self.owner.is_some() || self.gate.as_ref().is_some_and(|gate| gate.has_leases())
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        Ok(if self.owner.is_some() { self.renew_calls(&calls) } else { calls })
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        Ok(if self.owner.is_some() { self.calls_of_others(&in_hand) } else { Vec::new() })
    }

    async fn take_over(&self, silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        self.take_calls(&silent)
    }
}

#[async_trait]
impl SpoolTable for MemoryLedger {
    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        Ok(self.book().spooled_object(name))
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.pass("is_spooled").await?;
        Ok(self.book().spooled_object(name).is_some())
    }

    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
        Ok(self.book().spooled(after, limit))
    }

    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        self.unspool_result(id, standing)
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        Ok(self.usage())
    }
}

#[async_trait]
impl ArchiveIndex for MemoryLedger {
    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        Ok(self.book().membership.clone())
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        let begun = Membership::new(archive, false);
        Ok(self.change().membership.get_or_insert(begun).clone())
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        self.change().membership = Some(Membership::new(archive, true));
        Ok(())
    }

    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError> {
        Self::note_import(self, archive, import);
        Ok(())
    }

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        self.pass("import_record").await?;
        self.import_now(record)
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        self.pass("lose").await?;
        self.lose_record(record)
    }

    async fn absence(&self, namespace: &str, key: CacheKey) -> Result<Absence, LedgerError> {
        self.pass("absence").await?;
        Ok(self.book().absence(namespace, key))
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError> {
        self.pass("orphans").await?;
        Ok(self.book().orphans())
    }
}

#[async_trait]
impl Queries for MemoryLedger {
    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        self.pass("changes").await?;
        Ok(self.book().changes(after))
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        self.pass("purged").await?;
        Ok(self.book().purged(namespace, key))
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        Ok(self.book().totals())
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        self.pass("used").await?;
        Ok(self.used_of(budgets))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::ledger_contract::admin::admin_contract;
    use crate::testing::ledger_contract::{
        SPOOL_MAX, TurnableClock, WholeLedger, ledger_contract, model, zone,
    };

    async fn open(clock: Clock, zone: TimeZone) -> (MemoryLedger, ()) {
        (MemoryLedger::new(clock, zone).with_spool_max(SPOOL_MAX), ())
    }

    ledger_contract!(open);
    admin_contract!(open);

    proptest! {
        #[test]
        fn a_random_life_with_crashes_agrees_with_the_model(life in model::lives()) {
            let clock = TurnableClock::at("2026-03-27T20:00:00Z");
            let ledger = Arc::new(MemoryLedger::new(clock.clock(), zone()).with_spool_max(SPOOL_MAX));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let open = || async { ledger.clone() as Arc<dyn WholeLedger> };
            runtime.block_on(model::live(life, clock.clone(), open));
        }
    }
}
