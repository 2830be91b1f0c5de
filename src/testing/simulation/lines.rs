//! The ledger and the store as a process meets them: at the end of a [`Line`].
//!
//! Here, too, is where mistakes are planted: each is what a process would do at this border if its
//! code were wrong.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::Bug;
use super::faults::{Fault, Line};
use super::sales::number_of;
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::budget::{Budget, Used};
use crate::ledger::{
    Absence, ArchiveIndex, Booking, CallId, CallState, Calls, Changes, ForeignOpenCall, Leases, LedgerError,
    Orphan, Permit, Queries, Recovery, Reservation, Reserved, SpoolTable, StateTotal,
};
use crate::ledger::{SpoolUsage, Spooled};
use crate::store::{RecordPage, Store, StoreError};
use crate::testing::memory_ledger::MemoryLedger;
use crate::testing::memory_store::MemoryStore;

/// See the module.
#[derive(Clone)]
pub(super) struct LedgerLine {
    line: Line,
    ledger: Arc<MemoryLedger>,
    /// The version of the ledger, and since when it has had it.
    version: Arc<Mutex<(u64, Instant)>>,
}

impl LedgerLine {
    pub(super) fn new(line: Line) -> Self {
        let ledger = line.world.ledger(line.life.ledger);
        let ledger =
            if line.world.plan.is_fleet { Arc::new(ledger.kept_by(line.life.number as u64)) } else { ledger };
        Self { ledger, line, version: Arc::new(Mutex::new((0, Instant::now()))) }
    }

    /// Has nothing happened in the ledger for so long, with all owners alive, that nobody need be in
    /// a hurry? Worlds last for days, and nobody could wait for all the heartbeats of a day.
    fn is_quiet(&self) -> bool {
        let alive: Vec<u64> = self.line.world.alive().iter().map(|one| one.life.number as u64).collect();
        let book = self.ledger.book();
        if book.rows.iter().any(|row| row.state.is_open() && !alive.contains(&row.owner)) {
            return false;
        }
        let version = book.version;
        drop(book);
        let mut last = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != version {
            *last = (version, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(900)
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        deed: impl FnOnce(&MemoryLedger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let ledger = self.ledger.clone();
        let done = self.line.call(what, move || deed(&ledger)).await;
        done.unwrap_or_else(|fault| {
            Err(LedgerError::Unavailable(match fault {
                Fault::Before | Fault::Busy => "planted: not done".to_owned(),
                Fault::After => "planted: the acknowledgement was lost".to_owned(),
            }))
        })
    }

    async fn book_now(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        self.ask("book", move |ledger| {
            let from = ledger.book().row(id).map(|row| row.state);
            let is_answer = matches!(booking, Booking::Answered { .. });
            let booked =
                if world.bug == Some(Bug::FencedBooking) && is_answer && from != Some(CallState::Sent) {
                    let state = from.map_or("no row", CallState::as_str).to_owned();
                    Err(LedgerError::Contradiction { id: id.0, state, wanted: "answered" })
                } else {
                    ledger.book_call(id, &booking)
                };
            world.was_booked(&life, id, from, &booking, &booked);
            booked
        })
        .await
    }

    /// Says yes at once, and writes it down some time later.
    fn book_later(&self, id: CallId, booking: Booking) {
        let line = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(line.line.world.between(200, 2000)).await;
                line.line.live().await;
                if line.book_now(id, booking.clone()).await.is_ok() {
                    return;
                }
            }
        });
    }
}

#[async_trait]
impl Calls for LedgerLine {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        let namespace = namespace.to_owned();
        self.ask("look_up", move |ledger| {
            Ok(ledger.book().stored(&namespace, key).and_then(|row| row.record.clone()))
        })
        .await
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        let task = tokio::task::try_id();
        let (world, life, key) = (self.line.world.clone(), self.line.life.clone(), reservation.key);
        let reserved = self
            .ask("reserve", move |ledger| {
                let reserved = MemoryLedger::reserve(ledger, &reservation);
                world.was_reserved(&life, &reservation, &reserved, task);
                Ok(reserved)
            })
            .await;
        if reserved.is_err() {
            // If it was won all the same, nobody will ever know: until the next start it stays as it is.
            let ledger = self.line.life.ledger;
            let lost = self.line.life.take_purchase_of(key, task);
            lost.map(|purchase| self.line.world.state().owners.remove(&(ledger, purchase.id)));
        }
        reserved
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        let permit = self
            .ask("mark_sent", move |ledger| {
                let permit = MemoryLedger::mark_sent(ledger, id);
                world.count(match permit {
                    Permit::Granted => "tails let go",
                    Permit::Frozen(_) => "tails held by a freeze",
                    Permit::Lost => "tails held by a takeover",
                });
                world.note(|| format!("{} mark_sent row {}: {permit:?}", life.name(), id.0));
                Ok(permit)
            })
            .await?;
        if permit == Permit::Granted {
            self.line.life.permit(id);
        }
        Ok(permit)
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        let follows_an_answer =
            matches!(booking, Booking::Answered { .. } | Booking::Stored { .. } | Booking::Spooled { .. });
        if self.line.world.bug == Some(Bug::AnsweredAfterReply) && follows_an_answer {
            self.book_later(id, booking);
            return Ok(());
        }
        self.book_now(id, booking).await
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        self.ask("recover", move |ledger| {
            let found = ledger.recover_calls()?;
            world.note(|| {
                let unfinished: Vec<i64> = found.unfinished.iter().map(|call| call.id.0).collect();
                let (released, unknown) = (found.released, found.unknown);
                format!(
                    "{} recover: {released} released, {unknown} unknown, unfinished {unfinished:?}",
                    life.name()
                )
            });
            Ok(found)
        })
        .await
    }
}

#[async_trait]
impl Leases for LedgerLine {
    fn has_leases(&self) -> bool {
        self.ledger.has_leases()
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        if self.is_quiet() {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        self.ask("renew", move |ledger| Ok(ledger.renew_calls(&calls))).await
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        if self.is_quiet() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        while self.ledger.calls_of_others(&[]).is_empty() {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        self.ask("foreign_calls", move |ledger| Ok(ledger.calls_of_others(&in_hand))).await
    }

    async fn take_over(&self, silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        self.ask("take_over", move |ledger| {
            let taken = ledger.take_calls(&silent)?;
            world.was_taken(&life, &silent, &taken);
            Ok(taken)
        })
        .await
    }
}

#[async_trait]
impl SpoolTable for LedgerLine {
    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        self.ask("spooled_object", move |ledger| Ok(ledger.book().spooled_object(name))).await
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.ask("is_spooled", move |ledger| Ok(ledger.book().spooled_object(name).is_some())).await
    }

    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
        self.ask("spooled", move |ledger| Ok(ledger.book().spooled(after, limit))).await
    }

    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        let (world, life, standing) = (self.line.world.clone(), self.line.life.clone(), standing.clone());
        self.ask("unspool", move |ledger| {
            world.count("results brought to the store");
            world.note(|| format!("{} takes the result of row {} out of the spool", life.name(), id.0));
            ledger.unspool_result(id, &standing)
        })
        .await
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        self.ask("spool_usage", |ledger| Ok(ledger.usage())).await
    }
}

#[async_trait]
impl ArchiveIndex for LedgerLine {
    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        self.ask("archive", |ledger| Ok(ledger.book().membership.clone())).await
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        self.ledger.begin_archive(archive).await
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        self.ledger.settle_archive(archive).await
    }

    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        self.ask("note_import", move |ledger| {
            world.note(|| format!("{} imported: {import:?}", life.name()));
            let is_complete = import == Import::Complete;
            world.count(if is_complete { "imports completed" } else { "pages imported" });
            MemoryLedger::note_import(ledger, archive, import);
            Ok(())
        })
        .await
    }

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        let (world, life, record) = (self.line.world.clone(), self.line.life.clone(), record.clone());
        self.ask("import_record", move |ledger| {
            world.note(|| format!("{} import_record {}", life.name(), world.teams.name_of(record.key)));
            ledger.import_now(&record)
        })
        .await
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        let (world, life, record) = (self.line.world.clone(), self.line.life.clone(), record.clone());
        self.ask("lose", move |ledger| {
            world.note(|| format!("{} lose {}", life.name(), world.teams.name_of(record.key)));
            ledger.lose_record(&record)
        })
        .await
    }

    async fn absence(&self, namespace: &str, key: CacheKey) -> Result<Absence, LedgerError> {
        let (world, namespace) = (self.line.world.clone(), namespace.to_owned());
        self.ask("absence", move |ledger| {
            let absence = match world.bug {
                Some(Bug::IncompleteDecides) => Absence::Certain,
                _ => ledger.book().absence(&namespace, key),
            };
            world.count(match absence {
                Absence::Certain => "absences decided by a ledger",
                Absence::OpenCall => "absences left to an open call",
                Absence::Uncertain => "absences not decided",
            });
            Ok(absence)
        })
        .await
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError> {
        self.ask("orphans", |ledger| Ok(ledger.book().orphans())).await
    }
}

#[async_trait]
impl Queries for LedgerLine {
    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        self.ask("changes", move |ledger| Ok(ledger.book().changes(after))).await
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        let namespace = namespace.to_owned();
        self.ask("purged", move |ledger| Ok(ledger.book().purged(&namespace, key))).await
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        self.ledger.totals().await
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        self.ask("used", move |ledger| Ok(ledger.used_of(budgets))).await
    }
}

/// See the module.
pub(super) struct StoreLine(pub(super) Line);

impl StoreLine {
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        deed: impl FnOnce(&MemoryStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.0.world.store.clone();
        self.answer(self.0.call(what, move || deed(&store)).await)
    }

    fn answer<T>(&self, done: Result<Result<T, StoreError>, Fault>) -> Result<T, StoreError> {
        done.unwrap_or_else(|fault| {
            let is_busy = fault == Fault::Busy && self.0.world.bug != Some(Bug::BusyIsAway);
            Err(if is_busy { StoreError::Busy } else { StoreError::Unavailable }("planted".to_owned()))
        })
    }
}

#[async_trait]
impl Store for StoreLine {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        let (world, life) = (self.0.world.clone(), self.0.life.clone());
        self.call("put_object", move |store| {
            world.note(|| format!("{} put_object {}", life.name(), short(name)));
            store.put_object(name, bytes)
        })
        .await
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        self.call("object", move |store| store.object(name, max)).await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.call("has_object", move |store| Ok(store.has_object(name))).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let (world, life, record) = (self.0.world.clone(), self.0.life.clone(), record.clone());
        self.call("put_record", move |store| {
            let standing = store.put_record(&record)?;
            if standing == record {
                let mut state = world.state();
                state.permanent_since.insert(record.key, (Instant::now(), life.ledger));
                let sale =
                    number_of(&record.upstream_request_id).and_then(|number| state.sales.get_mut(number));
                sale.expect("records are made of sales").was_recorded = true;
            }
            world.note(|| {
                let (ours, theirs) = (&record.upstream_request_id, &standing.upstream_request_id);
                format!("{} put_record of {ours}: that of {theirs} stands", life.name())
            });
            Ok(standing)
        })
        .await
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        let task = tokio::task::try_id();
        let namespace = namespace.to_owned();
        let is_second_look = self.0.life.is_buying(key, task);
        if is_second_look && self.0.world.bug == Some(Bug::NoSecondLookUp) {
            return Ok(None);
        }
        let store = self.0.world.store.clone();
        let found = self.0.call("record", move || store.record(&namespace, key)).await;
        match found {
            // A store that cannot be asked leaves the word to the ledger; a process that is busy does not.
            Err(Fault::Before | Fault::After) => self.0.life.excuse(key, task),
            Ok(Ok(None)) => self.0.life.was_absent(key),
            Err(Fault::Busy) | Ok(_) => {}
        }
        self.answer(found)
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        let after = after.map(str::to_owned);
        if after.is_none() {
            let ledger = self.0.life.ledger;
            self.0.world.state().import_began.entry(ledger).or_insert_with(Instant::now);
        }
        // Small pages, so that an import takes more than one.
        self.call("list_records", move |store| Ok(store.list_records(after.as_deref(), limit.min(3)))).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        let namespace = namespace.to_owned();
        self.call("forget_record", move |store| store.forget_record(&namespace, key, up_to)).await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.call("check_room", |_| Ok(())).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.0.world.store.archive().await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        self.0.world.store.mark_archive(archive).await
    }
}

/// The first digits of an object's name.
pub(super) fn short(name: ObjectName) -> String {
    name.digest.to_string()[..8].to_owned()
}
