//! The families about the store, and [`MeteredStore`], which counts what is asked of one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prometheus::{Histogram, IntCounter, IntGauge};
use tokio::time::Instant;

use super::Metrics;
use super::families::{Each, Families};
use super::labels::labels;
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::store::{RecordPage, Store, StoreError};

/// Times the store takes, in seconds.
const STORE_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

labels! {
    /// What is asked of a store.
    enum StoreOp {
        PutObject = "put_object",
        Object = "object",
        HasObject = "has_object",
        PutRecord = "put_record",
        Record = "record",
        ListRecords = "list_records",
        ForgetRecord = "forget_record",
        CheckRoom = "check_room",
        Prove = "prove",
        Archive = "archive",
        MarkArchive = "mark_archive",
    }
}

labels! {
    /// What came of it.
    enum StoreResult {
        Ok = "ok",
        Absent = "absent",
        Conflict = "conflict",
        Error = "error",
    }
}

labels! {
    /// Which way bytes went.
    enum Direction {
        Read = "read",
        Written = "written",
    }
}

/// See the module.
pub(super) struct StoreFamilies {
    operations: Each<StoreOp, Each<StoreResult, IntCounter>>,
    duration: Each<StoreOp, Histogram>,
    bytes: Each<Direction, IntCounter>,
    up: IntGauge,
}

impl StoreFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let up = families.plain(
            "granary_store_up",
            "0 when the store could not be asked the last time, as while its breaker is open; 1 otherwise",
        );
        up.set(1);
        Self {
            operations: families.counter_pairs(
                "granary_store_operations_total",
                "Operations on the store by what came of them; conflict is a record that another one kept out",
                ["op", "result"],
            ),
            duration: families.histograms(
                "granary_store_duration_seconds",
                "Time an operation on the store took, its own retries included",
                "op",
                &STORE_BUCKETS,
            ),
            bytes: families.counters(
                "granary_store_bytes_total",
                "Bytes of results that were read from the store and written to it",
                "direction",
            ),
            up,
        }
    }

    fn done(&self, op: StoreOp, result: StoreResult, took: Duration) {
        self.operations[op][result].inc();
        self.duration[op].observe(took.as_secs_f64());
    }
}

/// A store around another one: what it is asked, it asks the other, and counts.
///
/// What is given up before there is an answer, as by a client that hangs up, is not counted.
pub struct MeteredStore {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl MeteredStore {
    /// Around `store`.
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
        let families = &self.metrics.store;
        let came_of_it = done.as_ref().map_or(StoreResult::Error, result);
        families.done(op, came_of_it, begun.elapsed());
        // Whatever else is wrong, it has answered.
        families.up.set(i64::from(!matches!(done, Err(StoreError::Unavailable(_)))));
        done
    }

    fn moved(&self, direction: Direction, bytes: usize) {
        self.metrics.store.bytes[direction].inc_by(bytes as u64);
    }
}

fn done<T>(_: &T) -> StoreResult {
    StoreResult::Ok
}

fn is_there(is_there: &bool) -> StoreResult {
    if *is_there { StoreResult::Ok } else { StoreResult::Absent }
}

fn is_some<T>(found: &Option<T>) -> StoreResult {
    is_there(&found.is_some())
}

#[async_trait]
impl Store for MeteredStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        let length = bytes.len();
        self.meter(StoreOp::PutObject, self.store.put_object(name, bytes), done).await?;
        self.moved(Direction::Written, length);
        Ok(())
    }

    async fn object(&self, name: ObjectName) -> Result<Option<Bytes>, StoreError> {
        let found = self.meter(StoreOp::Object, self.store.object(name), is_some).await?;
        self.moved(Direction::Read, found.as_ref().map_or(0, Bytes::len));
        Ok(found)
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        self.meter(StoreOp::HasObject, self.store.has_object(name), is_there).await
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let result = |standing: &Record| match standing == record {
            true => StoreResult::Ok,
            false => StoreResult::Conflict,
        };
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
        let result = |standing: &ArchiveId| match *standing == archive {
            true => StoreResult::Ok,
            false => StoreResult::Conflict,
        };
        self.meter(StoreOp::MarkArchive, self.store.mark_archive(archive), result).await
    }
}
