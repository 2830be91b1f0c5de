//! [`MeteredLedger`] times the operations of a ledger and counts failed writes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::Metrics;
use super::labels::labels;
use crate::base::archive::{ArchiveId, Import, Membership};
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::budget::{Budget, Scope, Used};
use crate::ledger::spool::{SpoolUsage, Spooled};
use crate::ledger::{
    Booking, CallId, CallState, Changes, ForeignOpenCall, Ledger, LedgerError, Orphan, Permit, Recovery,
    Reservation, Reserved, Soundness, StateTotal,
};

labels! {
    /// A ledger operation, as far as they are told apart.
    pub(crate) enum LedgerOp {
        LookUp = "look_up", Reserve = "reserve", Send = "send", Answer = "answer", Store = "store",
        Other = "other",
    }
}

impl LedgerOp {
    fn of(state: CallState) -> Self {
        match state {
            CallState::Answered => Self::Answer,
            CallState::Stored => Self::Store,
            CallState::Reserved | CallState::Sent | CallState::Released | CallState::Refused => Self::Other,
            CallState::Failed | CallState::Unknown | CallState::Unfetchable | CallState::Lost => Self::Other,
        }
    }
}

/// A ledger that forwards to another one and records the time.
pub struct MeteredLedger {
    ledger: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
}

impl MeteredLedger {
    /// Wraps `ledger`.
    pub fn new(ledger: Arc<dyn Ledger>, metrics: Arc<Metrics>) -> Self {
        Self { ledger, metrics }
    }

    async fn read<T>(&self, op: LedgerOp, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.metrics.ledger_duration_seconds[op].observe(begun.elapsed().as_secs_f64());
        done
    }

    async fn write<T>(
        &self,
        op: LedgerOp,
        work: impl Future<Output = Result<T, LedgerError>>,
    ) -> Result<T, LedgerError> {
        let done = self.read(op, work).await;
        if let Err(LedgerError::Unavailable(_) | LedgerError::Damaged(_)) = done {
            self.metrics.ledger_write_failures_total.inc();
        }
        done
    }
}

#[async_trait]
impl Ledger for MeteredLedger {
    async fn look_up(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, LedgerError> {
        self.read(LedgerOp::LookUp, self.ledger.look_up(namespace, key)).await
    }

    async fn reserve(&self, reservation: Reservation) -> Result<Reserved, LedgerError> {
        self.write(LedgerOp::Reserve, self.ledger.reserve(reservation)).await
    }

    async fn mark_sent(&self, id: CallId) -> Result<Permit, LedgerError> {
        self.write(LedgerOp::Send, self.ledger.mark_sent(id)).await
    }

    async fn book(&self, id: CallId, booking: Booking) -> Result<(), LedgerError> {
        let op = LedgerOp::of(booking.state());
        self.write(op, self.ledger.book(id, booking)).await
    }

    async fn import_record(&self, record: &Record) -> Result<(), LedgerError> {
        self.write(LedgerOp::Other, self.ledger.import_record(record)).await
    }

    async fn lose(&self, record: &Record) -> Result<(), LedgerError> {
        self.write(LedgerOp::Other, self.ledger.lose(record)).await
    }

    async fn recover(&self) -> Result<Recovery, LedgerError> {
        self.write(LedgerOp::Other, self.ledger.recover()).await
    }

    fn has_leases(&self) -> bool {
        self.ledger.has_leases()
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        self.write(LedgerOp::Other, self.ledger.renew(calls)).await
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.foreign_calls(in_hand)).await
    }

    async fn take_over(&self, silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        self.write(LedgerOp::Other, self.ledger.take_over(silent)).await
    }

    async fn changes(&self, after: Option<u64>) -> Result<Changes, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.changes(after)).await
    }

    async fn purged(&self, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.purged(namespace, key)).await
    }

    async fn totals(&self) -> Result<Vec<StateTotal>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.totals()).await
    }

    async fn used(&self, budgets: Vec<Budget>) -> Result<Vec<Used>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.used(budgets)).await
    }

    async fn set_frozen(&self, scope: Scope, frozen: bool) -> Result<(), LedgerError> {
        self.write(LedgerOp::Other, self.ledger.set_frozen(scope, frozen)).await
    }

    async fn archive(&self) -> Result<Option<Membership>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.archive()).await
    }

    async fn begin_archive(&self, archive: ArchiveId) -> Result<Membership, LedgerError> {
        self.write(LedgerOp::Other, self.ledger.begin_archive(archive)).await
    }

    async fn settle_archive(&self, archive: ArchiveId) -> Result<(), LedgerError> {
        self.write(LedgerOp::Other, self.ledger.settle_archive(archive)).await
    }

    async fn note_import(&self, archive: ArchiveId, import: Import) -> Result<(), LedgerError> {
        self.write(LedgerOp::Other, self.ledger.note_import(archive, import)).await
    }

    async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Result<bool, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.knows_all_of(namespace, key)).await
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.orphans()).await
    }

    async fn spooled_object(&self, name: ObjectName) -> Result<Option<Bytes>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.spooled_object(name)).await
    }

    async fn is_spooled(&self, name: ObjectName) -> Result<bool, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.is_spooled(name)).await
    }

    async fn spooled(&self, after: u64, limit: usize) -> Result<Vec<Spooled>, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.spooled(after, limit)).await
    }

    async fn unspool(&self, id: CallId, standing: &Record) -> Result<(), LedgerError> {
        self.write(LedgerOp::Other, self.ledger.unspool(id, standing)).await
    }

    async fn spool_usage(&self) -> Result<SpoolUsage, LedgerError> {
        self.read(LedgerOp::Other, self.ledger.spool_usage()).await
    }

    fn keep_room(&self, each: Option<u64>) {
        self.ledger.keep_room(each);
    }

    fn soundness(&self) -> Soundness {
        self.ledger.soundness()
    }
}
