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
use crate::ledger::budget::{self, Budget, BudgetRefusal, Scope, Used, Windows};
use crate::ledger::spool::{SpoolUsage, Spooled};
use crate::ledger::{
    Booking, CallId, CallState, Changes, ForeignOpenCall, Ledger, LedgerError, Orphan, Permit, Recovery,
    Reservation, Reserved, StateTotal, UnfinishedCall, Won,
};

/// See the module.
pub(crate) struct MemoryLedger {
    book: Arc<Mutex<Book>>,
    /// Who of several keeps it, where they live beside each other.
    owner: Option<u64>,
    spool_max: u64,
    clock: Clock,
    zone: TimeZone,
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
        let ids = || (record.upstream_request_id.clone(), record.upstream_log_id.clone());
        self.ids.get_or_insert_with(ids);
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
        Self { book: Arc::default(), owner: None, spool_max: 2 << 30, clock, zone }
    }

    /// The same with so many bytes for the spool.
    pub(crate) fn with_spool_max(self, spool_max: u64) -> Self {
        Self { spool_max, ..self }
    }

    /// The same book, as another of those who keep it at the same time.
    pub(crate) fn kept_by(&self, owner: u64) -> Self {
        let Self { book, spool_max, clock, zone, .. } = self;
        Self {
            book: book.clone(),
            owner: Some(owner),
            spool_max: *spool_max,
            clock: clock.clone(),
            zone: zone.clone(),
        }
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
            let (wanted, used, max) = (bytes.len() as u64, book.spooled_bytes(), self.spool_max);
            let is_stored = book.row(id).is_some_and(|row| row.state == CallState::Stored);
            if !is_stored && used + wanted > max {
                return Err(LedgerError::SpoolFull { wanted, used, max });
            }
        }
        book.book(id, booking, now)
    }

    pub(crate) fn import_now(&self, record: &Record) -> Result<(), LedgerError> {
        let (now, mut book) = (self.clock.now(), self.change());
        match book.orphan_of(record) {
            Some(id) => {
                let booking = Booking::Stored { record: Box::new(record.clone()), holds_key: true };
                book.book(id, &booking, now)
            }
            None => {
                book.import(record, &Windows::at(record.stored_at, &self.zone));
                Ok(())
            }
        }
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
        let seen =
            |row: &Row, call: &ForeignOpenCall| (row.state, row.heartbeat) == (call.state, call.heartbeat);
        let is_silent =
            |row: &Row| silent.iter().any(|call| call.id == row.id && row.state.is_open() && seen(row, call));
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
        if self.stored(namespace, key).is_none() {
            let before = self.purged(namespace, key);
            return before.map_or(Purge::Nothing, |generation| Purge::Repeated { generation });
        }
        let generation = self.newest_kept(namespace, key).unwrap_or(0);
        self.purged.insert((namespace.to_owned(), *key.as_bytes()), generation);
        self.changes.push((namespace.to_owned(), key));
        Purge::Done { generation }
    }

    /// The highest generation that was ever stored.
    fn newest_kept(&self, namespace: &str, key: CacheKey) -> Option<u64> {
        let kept = |row: &&Row| matches!(row.state, CallState::Stored | CallState::Lost) && !row.late;
        let of_key = self.rows.iter().filter(|row| row.is_of(namespace, key));
        of_key.filter(kept).map(|row| row.generation).max()
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
        let scopes = [Scope::Global, Scope::Team(team.to_owned())];
        scopes.into_iter().find(|scope| self.frozen.contains(&scope.to_string()))
    }

    fn reserve(&mut self, wanted: &Reservation, now: Timestamp, windows: &Windows, owner: u64) -> Reserved {
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
        let last = self.newest_kept(namespace, key).max(self.purged(namespace, key));
        let generation = last.map_or(0, |last| last + 1);
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
        let is_ours = |row: &&Row| row.state == CallState::Reserved && row.owner == owner;
        let Some(row) = self.row(id).filter(is_ours) else {
            return Permit::Lost;
        };
        if let Some(scope) = self.frozen(&row.bought.team) {
            return Permit::Frozen(scope);
        }
        if let Ok(row) = self.row_mut(id) {
            (row.state, row.sent_at, row.heartbeat) = (CallState::Sent, Some(now), row.heartbeat + 1);
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
        if let Booking::Refused { for_order: true, .. } = booking {
            let counter = (Scope::Refused(row.bought.team.clone()).to_string(), row.day.clone());
            *self.spent.entry(counter).or_default() += row.bought.credits as i64;
        }
        let rival = |other: &Row| {
            other.id != id
                && other.holds()
                && other.is_of(&row.bought.namespace, row.bought.key)
                && other.generation == row.generation
        };
        let is_taken = self.rows.iter().any(rival);
        if let Booking::Spooled { record, bytes } = booking
            && let Some(name) = record.object()
        {
            self.last_position += 1;
            self.spool.insert(self.last_position, Waiting { id, name, bytes: bytes.clone(), since: now });
        }
        if let Booking::Stored { record, .. } | Booking::Spooled { record, .. } = booking
            && record.generation > 0
        {
            self.changes.push((record.namespace.clone(), record.key));
        }
        let row = self.row_mut(id)?;
        (row.state, row.heartbeat) = (state, row.heartbeat + 1);
        match booking {
            Booking::Answered { text, request_id, log_id } => {
                row.late = is_taken;
                row.ids = Some((request_id.clone(), log_id.clone()));
                row.reason = None;
                row.text = Some(text.clone());
                (row.answered_at, row.ended_at) = (Some(now), None);
            }
            Booking::Stored { record, holds_key } => {
                row.late = !holds_key || is_taken;
                row.keep(record);
            }
            Booking::Spooled { record, .. } => {
                row.late = is_taken;
                row.keep(record);
            }
            Booking::Lost => row.reason = Some(format!("found missing at {now}")),
            Booking::Released { reason }
            | Booking::Refused { reason, .. }
            | Booking::Failed { reason }
            | Booking::Unknown { reason }
            | Booking::Unfetchable { reason } => {
                row.reason = Some(reason.clone());
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

    pub(crate) fn is_complete(&self) -> bool {
        self.membership.as_ref().is_some_and(|membership| membership.import == Import::Complete)
    }

    pub(crate) fn knows_all_of(&self, namespace: &str, key: CacheKey) -> bool {
        self.is_complete() && !self.rows.iter().any(|row| row.is_orphan() && row.is_of(namespace, key))
    }

    pub(crate) fn orphans(&self) -> Vec<Orphan> {
        let orphan = |row: &Row| {
            let Reservation { namespace, key, .. } = &row.bought;
            Orphan { id: row.id, namespace: namespace.clone(), key: *key }
        };
        self.rows.iter().filter(|row| row.is_orphan()).map(orphan).collect()
    }

    /// The newest call whose owner died and whose result this may be.
    fn orphan_of(&self, record: &Record) -> Option<CallId> {
        let of_key = || self.rows.iter().filter(|row| row.is_of(&record.namespace, record.key));
        let ids = (record.upstream_request_id.clone(), record.upstream_log_id.clone());
        let is_purged = Some(record.generation) <= self.purged(&record.namespace, record.key);
        if is_purged || of_key().any(|row| row.ids.as_ref() == Some(&ids)) {
            return None;
        }
        let may_be = |row: &&Row| {
            row.is_orphan()
                && row.generation == record.generation
                && (&row.bought.team, row.bought.credits) == (&record.team, record.credits)
        };
        of_key().rev().find(may_be).map(|row| row.id)
    }

    fn import(&mut self, record: &Record, windows: &Windows) {
        let is_known = |row: &Row| {
            let digest = row.record.as_ref().map(|record| record.digest);
            let is_lost = row.state == CallState::Lost && digest == Some(record.digest);
            row.is_of(&record.namespace, record.key)
                && row.generation == record.generation
                && (row.holds() || is_lost)
        };
        let is_purged = Some(record.generation) <= self.purged(&record.namespace, record.key);
        if is_purged || self.rows.iter().any(is_known) {
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
        if record.generation > 0 {
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
        let in_state = |book: &Self, state: CallState| -> Vec<CallId> {
            let rows = book.rows.iter().filter(|row| row.state == state && is_dead(row));
            rows.map(|row| row.id).collect()
        };
        let died = || OWNER_DIED.to_owned();
        let (reserved, sent) = (in_state(self, CallState::Reserved), in_state(self, CallState::Sent));
        for &id in &reserved {
            self.book(id, &Booking::Released { reason: died() }, now)?;
        }
        for &id in &sent {
            self.book(id, &Booking::Unknown { reason: died() }, now)?;
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
        Ok(Recovery {
            released: reserved.len() as u64,
            unknown: sent.len() as u64,
            unfinished: unfinished.collect(),
        })
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
        let is_ours = row
            .record
            .as_ref()
            .is_some_and(|ours| *standing == Record { stored_at: standing.stored_at, ..ours.clone() });
        if is_ours {
            (row.ended_at, row.record) = (Some(standing.stored_at), Some(standing.clone()));
        } else {
            row.late = true;
            self.import(standing, windows);
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

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        self.import_now(record)
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        self.lose_record(record)
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        self.recover_calls()
    }

    fn has_leases(&self) -> bool {
        self.owner.is_some()
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        Ok(self.renew_calls(&calls))
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        Ok(self.calls_of_others(&in_hand))
    }

    async fn take_over(&self, silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        self.take_calls(&silent)
    }

    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        Ok(self.book().changes(after))
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        Ok(self.book().purged(namespace, key))
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

    async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Result<bool, LedgerError> {
        Ok(self.book().knows_all_of(namespace, key))
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError> {
        Ok(self.book().orphans())
    }

    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        Ok(self.book().spooled_object(name))
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ledger::admin::LedgerAdmin;
    use crate::testing::ledger_contract::admin::admin_contract;
    use crate::testing::ledger_contract::{SPOOL_MAX, TurnableClock, ledger_contract, model, zone};

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
            let open = || async {
                (ledger.clone() as Arc<dyn Ledger>, ledger.clone() as Arc<dyn LedgerAdmin>)
            };
            runtime.block_on(model::live_with_admin(life, clock.clone(), open));
        }
    }
}
