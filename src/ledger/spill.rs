//! The last resort: what was paid for while the ledger cannot be written goes to a file.
//!
//! [`SpillLedger`] is a [`Ledger`] around another one. A booking that says that the upstream answered,
//! or that brings a fetched result, is money; when the ledger does not take it, a file beside the
//! ledger does, synced, before the error is returned. The caller goes on trying. When it succeeds the
//! file goes; when the process ends first, the next start books it ([`Ledger::recover`]).
//!
//! Such a file may hold a signed URL of the upstream. Only our user can read it, and it is removed
//! with the state that needs it.

mod file;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::file::{Folder, Spilled};
use super::budget::{Budget, Scope, Used};
use super::spool::{SpoolUsage, Spooled};
use super::{
    Booking, CallFacts, CallId, CallState, Changes, ForeignCall, Ledger, LedgerError, Permit, Recovery,
    Reservation, Reserved, Soundness, StateTotal,
};
use crate::archive::{ArchiveId, Membership};
use crate::key::CacheKey;
use crate::picture::ObjectName;
use crate::store::Record;

/// How often the folder is looked through for what is of no use any more.
const SWEEP_PAUSE: Duration = Duration::from_secs(3600);

/// See the module.
pub struct SpillLedger {
    ledger: Arc<dyn Ledger>,
    folder: Arc<Folder>,
    /// What is under way in this process.
    open: Mutex<HashMap<CallId, OpenCall>>,
}

/// What a file says of its call besides the booking, so that it is never booked on another's row.
#[derive(Clone)]
struct OpenCall {
    namespace: String,
    key: CacheKey,
    generation: u64,
    /// Its newest booking is in a file.
    spilled: Option<CallState>,
}

impl SpillLedger {
    /// Around `ledger`; `folder` is made when it is needed.
    pub fn new(ledger: Arc<dyn Ledger>, folder: PathBuf) -> Self {
        Self { ledger, folder: Arc::new(Folder::new(folder)), open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<CallId, OpenCall>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn know(&self, id: CallId, reservation: &Reservation, generation: u64) {
        let Reservation { namespace, key, .. } = reservation.clone();
        self.open().insert(id, OpenCall { namespace, key, generation, spilled: None });
    }

    /// Does work that may block on the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let folder = Arc::clone(&self.folder);
        tokio::task::spawn_blocking(move || work(&folder)).await.map_err(std::io::Error::other)?
    }

    /// Writes a booking to a file, once.
    async fn spill(&self, id: CallId, booking: Booking) {
        let state = booking.state();
        let Some(call) = self.open().get(&id).filter(|call| call.spilled != Some(state)).cloned() else {
            return;
        };
        let OpenCall { namespace, key, generation, .. } = call;
        let facts = CallFacts { namespace, key, generation, state };
        match self.on_disk(move |folder| folder.write(&Spilled { id, facts, booking })).await {
            Ok(()) => {
                tracing::warn!(
                    call = id.0,
                    state = state.as_str(),
                    "the ledger did not take a booking: it waits in a file"
                );
                if let Some(call) = self.open().get_mut(&id) {
                    call.spilled = Some(state);
                }
            }
            Err(error) => {
                tracing::error!(%error, call = id.0, "the ledger did not take a booking, and it could not be written to a file");
            }
        }
    }

    /// The ledger has a booking: no file of this call is needed any more.
    async fn settle(&self, id: CallId, state: CallState) {
        let was_spilled = {
            let mut open = self.open();
            let spilled = open.get_mut(&id).and_then(|call| call.spilled.take());
            if !state.is_open() {
                open.remove(&id);
            }
            spilled
        };
        if was_spilled.is_some() {
            self.remove(id).await;
        }
    }

    async fn remove(&self, id: CallId) {
        if let Err(error) = self.on_disk(move |folder| folder.remove(id)).await {
            tracing::error!(%error, call = id.0, "a booking's file could not be removed; the next start does it");
        }
    }

    /// Is the result of a call in a file?
    fn has_result(&self, id: CallId) -> bool {
        self.open().get(&id).is_some_and(|call| call.spilled == Some(CallState::Stored))
    }

    /// A result whose URL serves it no more is not gone while we have it: the file's booking is made
    /// instead, as soon as there is room for it.
    async fn book_result_instead(&self, id: CallId) -> Result<(), LedgerError> {
        let name = Folder::name(id, CallState::Stored);
        let spilled = self.on_disk(move |folder| folder.read(&name)).await;
        let spilled =
            spilled.map_err(|error| LedgerError::Unavailable(format!("a result's file: {error}")))?;
        self.ledger.book(id, spilled.booking).await?;
        self.settle(id, CallState::Stored).await;
        let (state, wanted) = (CallState::Stored.as_str().to_owned(), CallState::Unfetchable.as_str());
        Err(LedgerError::Contradiction { id: id.0, state, wanted })
    }

    /// Books what earlier processes left in files; says how many rows are not `unknown` any more.
    async fn book_files(&self) -> Result<Replayed, LedgerError> {
        let mut replayed = Replayed::default();
        let files = self.on_disk(|folder| folder.list()).await.unwrap_or_else(|error| {
            tracing::error!(%error, "the folder of spilled bookings cannot be read; what is in it is not booked");
            Vec::new()
        });
        for file in files {
            let read = {
                let file = file.clone();
                self.on_disk(move |folder| folder.read(&file)).await
            };
            match read {
                Ok(spilled) => self.book_file(spilled, &mut replayed).await?,
                Err(error) => self.set_aside(file, &error.to_string()).await,
            }
        }
        Ok(replayed)
    }

    async fn book_file(&self, spilled: Spilled, replayed: &mut Replayed) -> Result<(), LedgerError> {
        let Spilled { id, facts, booking } = spilled;
        let row = self.ledger.call(id).await?;
        let is_ours = |row: &CallFacts| CallFacts { state: facts.state, ..row.clone() } == facts;
        let Some(row) = row.filter(is_ours) else {
            self.set_aside(Folder::name(id, facts.state), "the ledger has no such call").await;
            return Ok(());
        };
        let is_known = match facts.state {
            CallState::Answered => {
                matches!(row.state, CallState::Answered | CallState::Unfetchable)
                    || matches!(row.state, CallState::Stored | CallState::Lost)
            }
            _ => matches!(row.state, CallState::Stored | CallState::Lost),
        };
        if booking.may_follow(row.state) {
            match self.ledger.book(id, booking).await {
                Ok(()) => {}
                // It is fetched once more, and tried again; the file stays until that succeeds.
                Err(error @ LedgerError::SpoolFull { .. }) => {
                    tracing::error!(%error, call = id.0, "a result stays in its file");
                    replayed.left.push(id);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            tracing::warn!(
                call = id.0,
                state = facts.state.as_str(),
                "booked from a file what the ledger missed"
            );
            replayed.bookings += 1;
            replayed.answers += u64::from(row.state == CallState::Unknown);
        } else if !is_known {
            let why = format!("the ledger says {} of its call", row.state.as_str());
            self.set_aside(Folder::name(id, facts.state), &why).await;
            return Ok(());
        }
        self.remove(id).await;
        Ok(())
    }

    /// Keeps what cannot be booked out of the way, for a person to look at.
    async fn set_aside(&self, file: String, why: &str) {
        tracing::error!(
            file,
            why,
            "a spilled booking cannot be booked: money may be in it; it is kept as .damaged"
        );
        if let Err(error) = self.on_disk(move |folder| folder.set_aside(&file)).await {
            tracing::error!(%error, "it could not be set aside either");
        }
    }
}

/// Removes from time to time, as long as there is a ledger, what was set aside and is of no use.
async fn remove_expired(folder: Weak<Folder>) {
    while let Some(folder) = folder.upgrade() {
        let removed = tokio::task::spawn_blocking(move || folder.remove_expired()).await;
        if let Ok(Err(error)) = removed {
            tracing::error!(%error, "files of spilled answers that were set aside could not be removed");
        }
        tokio::time::sleep(SWEEP_PAUSE).await;
    }
}

/// What came of the files.
#[derive(Default)]
struct Replayed {
    bookings: u64,
    /// Rows that were `unknown` and are `answered` now.
    answers: u64,
    /// Calls whose results still have files.
    left: Vec<CallId>,
}

#[async_trait]
impl Ledger for SpillLedger {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        self.ledger.look_up(namespace, key).await
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        let reserved = self.ledger.reserve(reservation.clone()).await?;
        if let Reserved::Won(won) = &reserved {
            self.know(won.id, &reservation, won.generation);
        }
        Ok(reserved)
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        let permit = self.ledger.mark_sent(id).await?;
        if permit == Permit::Lost {
            self.open().remove(&id);
        }
        Ok(permit)
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        if matches!(booking, Booking::Unfetchable { .. }) && self.has_result(id) {
            return self.book_result_instead(id).await;
        }
        let (state, is_money) =
            (booking.state(), matches!(booking, Booking::Answered { .. } | Booking::Spooled { .. }));
        let booked = self.ledger.book(id, booking.clone()).await;
        match &booked {
            Ok(()) => self.settle(id, state).await,
            // A result that the spool does not take is in memory alone.
            Err(LedgerError::Unavailable(_) | LedgerError::Damaged(_) | LedgerError::SpoolFull { .. })
                if is_money =>
            {
                self.spill(id, booking).await
            }
            Err(_) => {}
        }
        booked
    }

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        self.ledger.import_record(record).await
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        self.ledger.lose(record).await
    }

    /// Settles first what the ledger knows, which makes a `sent` row `unknown`; then books the files,
    /// which may follow `unknown`; then tells what is left to be fetched.
    async fn recover(&self) -> Result<Recovery, LedgerError> {
        let mut recovery = self.ledger.recover().await?;
        let replayed = self.book_files().await?;
        tokio::spawn(remove_expired(Arc::downgrade(&self.folder)));
        if replayed.bookings > 0 {
            recovery.unfinished = self.ledger.recover().await?.unfinished;
            recovery.unknown = recovery.unknown.saturating_sub(replayed.answers);
        }
        for call in &recovery.unfinished {
            self.know(call.id, &call.reservation, call.generation);
        }
        let mut open = self.open();
        for id in replayed.left {
            if let Some(call) = open.get_mut(&id) {
                call.spilled = Some(CallState::Stored);
            }
        }
        Ok(recovery)
    }

    fn has_leases(&self) -> bool {
        self.ledger.has_leases()
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        self.ledger.renew(calls).await
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignCall>, LedgerError> {
        self.ledger.foreign_calls(in_hand).await
    }

    async fn take_over(&self, silent: Vec<ForeignCall>) -> Result<Recovery, LedgerError> {
        let recovery = self.ledger.take_over(silent).await?;
        for call in &recovery.unfinished {
            self.know(call.id, &call.reservation, call.generation);
        }
        Ok(recovery)
    }

    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        self.ledger.changes(after).await
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        self.ledger.purged(namespace, key).await
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        self.ledger.totals().await
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        self.ledger.used(budgets).await
    }

    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError> {
        self.ledger.set_frozen(scope, frozen).await
    }

    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        self.ledger.archive().await
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        self.ledger.begin_archive(archive).await
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        self.ledger.settle_archive(archive).await
    }

    async fn call(&self, id: CallId) -> Result<Option<CallFacts>, LedgerError> {
        self.ledger.call(id).await
    }

    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        self.ledger.spooled_object(name).await
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.ledger.is_spooled(name).await
    }

    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
        self.ledger.spooled(after, limit).await
    }

    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        self.ledger.unspool(id, standing).await
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        self.ledger.spool_usage().await
    }

    fn soundness(&self) -> Soundness {
        self.ledger.soundness()
    }

    fn keep_room(&self, each: Option<u64>) {
        self.ledger.keep_room(each);
    }
}
