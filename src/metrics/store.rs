//! [`MeteredStore`] times and counts the operations of a store.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::Metrics;
use super::labels::labels;
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::store::{RecordPage, Store, StoreError};

labels! {
    pub(crate) enum StoreOp {
        PutObject = "put_object", Object = "object", HasObject = "has_object", PutRecord = "put_record",
        Record = "record", ListRecords = "list_records", ForgetRecord = "forget_record",
        CheckRoom = "check_room", Prove = "prove", Archive = "archive", MarkArchive = "mark_archive",
    }

    pub(crate) enum StoreResult { Ok = "ok", Absent = "absent", Conflict = "conflict", Error = "error" }
}

/// Forwards to another store and records each operation, unless it is cancelled.
pub struct MeteredStore {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl MeteredStore {
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    async fn meter<T>(
        &self,
        op: StoreOp,
        work: impl Future<Output = Result<T, StoreError>>,
        result: impl Fn(&T) -> StoreResult,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let done = work.await;
        let result = match &done {
            Ok(found) => result(found),
            // The object is there.
            Err(StoreError::TooLong(_)) => StoreResult::Ok,
            Err(_) => StoreResult::Error,
        };
        self.metrics.store_operations_total[(op, result)].inc();
        self.metrics.store_duration_seconds[op].observe(begun.elapsed().as_secs_f64());
        // After any other error, the store is available.
        self.metrics.store_up.set(i64::from(!matches!(done, Err(StoreError::Unavailable(_)))));
        done
    }
}

fn done<T>(_: &T) -> StoreResult {
    StoreResult::Ok
}

fn is_there(is_there: &bool) -> StoreResult {
    if *is_there { StoreResult::Ok } else { StoreResult::Absent }
}

fn is_same(is_same: bool) -> StoreResult {
    if is_same { StoreResult::Ok } else { StoreResult::Conflict }
}

fn is_some<T>(found: &Option<T>) -> StoreResult {
    is_there(&found.is_some())
}

#[async_trait]
impl Store for MeteredStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        self.meter(StoreOp::PutObject, self.store.put_object(name, bytes), done).await
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        self.meter(StoreOp::Object, self.store.object(name, max), is_some).await
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.meter(StoreOp::HasObject, self.store.has_object(name), is_there).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let result = |standing: &Record| is_same(standing == record);
        self.meter(StoreOp::PutRecord, self.store.put_record(record), result).await
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        self.meter(StoreOp::Record, self.store.record(namespace, key), is_some).await
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        self.meter(StoreOp::ListRecords, self.store.list_records(after, limit), done).await
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        let work = self.store.forget_record(namespace, key, up_to);
        self.meter(StoreOp::ForgetRecord, work, is_there).await
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        self.meter(StoreOp::CheckRoom, self.store.check_room(), done).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.meter(StoreOp::Prove, self.store.prove(), done).await
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.meter(StoreOp::Archive, self.store.archive(), is_some).await
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        let result = |standing: &ArchiveId| is_same(*standing == archive);
        self.meter(StoreOp::MarkArchive, self.store.mark_archive(archive), result).await
    }
}
