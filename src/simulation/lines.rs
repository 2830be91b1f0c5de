//! The ledger and the store as a process meets them: at the end of a [`Line`].
//!
//! Here, too, is where mistakes are planted: each is what a process would do at this border if its
//! code were wrong.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::Bug;
use super::faults::{Fault, Line};
use crate::key::CacheKey;
use crate::ledger::budget::{Budget, Scope, Used};
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{
    Booking, CallId, CallState, Ledger, LedgerError, Permit, Recovery, Reservation, Reserved, StateTotal,
};
use crate::picture::ObjectName;
use crate::store::memory::MemoryStore;
use crate::store::{Record, Store, StoreError};

/// See the module.
#[derive(Clone)]
pub(super) struct LedgerLine {
    line: Line,
    ledger: Arc<MemoryLedger>,
}

impl LedgerLine {
    pub(super) fn new(line: Line) -> Self {
        Self { ledger: line.world.ledger(line.life.ledger), line }
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        deed: impl FnOnce(&MemoryLedger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let ledger = self.ledger.clone();
        let done = self.line.call(what, move || deed(&ledger)).await;
        done.unwrap_or_else(|fault| {
            Err(LedgerError::Unavailable(match fault {
                Fault::Before => "planted: not done".to_owned(),
                Fault::After => "planted: the acknowledgement was lost".to_owned(),
            }))
        })
    }

    async fn book_now(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        self.call("book", move |ledger| {
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
impl Ledger for LedgerLine {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        let namespace = namespace.to_owned();
        self.call("look_up", move |ledger| {
            Ok(ledger.book().stored(&namespace, key).and_then(|row| row.record.clone()))
        })
        .await
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        let task = tokio::task::try_id();
        let (world, life, key) = (self.line.world.clone(), self.line.life.clone(), reservation.key);
        let reserved = self
            .call("reserve", move |ledger| {
                let reserved = ledger.reserve(&reservation);
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
            .call("mark_sent", move |ledger| {
                let permit = ledger.mark_sent(id);
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
        let follows_an_answer = matches!(booking, Booking::Answered { .. } | Booking::Stored { .. });
        if self.line.world.bug == Some(Bug::AnsweredAfterReply) && follows_an_answer {
            self.book_later(id, booking);
            return Ok(());
        }
        self.book_now(id, booking).await
    }

    async fn adopt(&self, record: &Record) -> Result<(), LedgerError> {
        let (world, life, record) = (self.line.world.clone(), self.line.life.clone(), record.clone());
        self.call("adopt", move |ledger| {
            ledger.adopt_record(&record);
            world.note(|| format!("{} adopt {}", life.name(), world.teams.name_of(record.key)));
            Ok(())
        })
        .await
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        let (world, life, record) = (self.line.world.clone(), self.line.life.clone(), record.clone());
        self.call("lose", move |ledger| {
            world.note(|| format!("{} lose {}", life.name(), world.teams.name_of(record.key)));
            ledger.lose_record(&record)
        })
        .await
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        let (world, life) = (self.line.world.clone(), self.line.life.clone());
        self.call("recover", move |ledger| {
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

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        self.ledger.totals().await
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        self.call("used", move |ledger| Ok(ledger.used_of(budgets))).await
    }

    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError> {
        self.ledger.set_frozen(scope, frozen).await
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
        let done = self.0.call(what, move || deed(&store)).await;
        done.unwrap_or_else(|_| Err(StoreError::Unavailable("planted".to_owned())))
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

    async fn object(&self, name: ObjectName) -> Result<Option<Bytes>, StoreError> {
        self.call("object", move |store| store.object(name)).await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.call("has_object", move |store| Ok(store.has_object(name))).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let (world, life, record) = (self.0.world.clone(), self.0.life.clone(), record.clone());
        self.call("put_record", move |store| {
            let standing = store.put_record(&record)?;
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
        let found = self.call("record", move |store| store.record(&namespace, key)).await;
        if found.is_err() {
            self.0.life.excuse(key, task);
        }
        found
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.call("check_room", |_| Ok(())).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The first digits of an object's name.
pub(super) fn short(name: ObjectName) -> String {
    name.digest.to_string()[..8].to_owned()
}
